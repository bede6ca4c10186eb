"""Group commit: one thread that writes everything that waits in one transaction."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from random import uniform
from typing import TypeVar

from sagaz_es.errors import AppendRefused, AppendUnknown, LogBusy, SagaError
from sagaz_es.log.sqlite_file import append_error, identity, is_busy

Row = tuple[str, str, bytes]
"""Key, replay id, value."""

BATCH_ROWS = 1024
BATCH_BYTES = 8 * 2**20
"""A transaction takes no further append beyond these: it bounds how long the next one waits."""

STATEMENT_ROWS = 512
"""Rows that one statement takes; SQLite allows 32,766 arguments, six times as many as it needs."""

WAITING_BYTES = 32 * 2**20
"""What may wait to be written; who would add to more waits itself."""

_ROW_COST_BYTES = 200  # what a waiting row takes besides its value, roughly

_END = "SELECT max(offset) + 1 FROM sagaz_log WHERE partition = ?"
_MARK = """INSERT INTO sagaz_marks VALUES (?, ?, ?, ?) ON CONFLICT (group_name, partition) DO UPDATE
    SET low_water_mark = excluded.low_water_mark, note = excluded.note
    WHERE excluded.low_water_mark > low_water_mark"""

_A = TypeVar("_A")
_log = logging.getLogger("sagaz_es.log")


class Job:
    """One append, or one low-water mark, on its way through the thread."""

    __slots__ = (
        "answer",
        "appended_at",
        "future",
        "given_up",
        "mark",
        "on_disk",
        "partition",
        "rows",
        "since",
        "size",
        "taken",
    )

    def __init__(
        self,
        partition: int,
        rows: Sequence[Row],
        size: int,
        loop: asyncio.AbstractEventLoop,
        mark: tuple[str, int, str] | None = None,  # the group, its mark, its note
        on_disk: Callable[[int, int], object] | None = None,
    ) -> None:
        self.partition, self.rows, self.size, self.mark = partition, rows, size, mark
        self.future: asyncio.Future[int] = loop.create_future()
        self.since = time.monotonic()
        self.taken = self.given_up = False
        self.answer: int | SagaError = -1
        self.appended_at = 0
        self.on_disk = on_disk


class GroupCommit:
    """Appends to the file, in the order in which they are asked for.

    `on_commit` is told, in the event loop, the new end of a partition. An append that gets no lock
    for `lock_wait_s` is refused; one without any answer after `deadline_s` is unknown.
    """

    def __init__(
        self,
        path: str,
        connection: sqlite3.Connection,
        on_commit: Callable[[int, int], None],
        *,
        lock_wait_s: float,
        deadline_s: float,
    ) -> None:
        self._path, self._on_commit = path, on_commit
        self._lock_wait_s, self._deadline_s = lock_wait_s, deadline_s
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._gathered: list[Job] = []  # since the loop last turned
        self._pending: deque[Job] = deque()  # without an answer, the oldest first
        self._waiting_bytes = 0
        self._room: deque[tuple[asyncio.Future[None], int]] = deque()
        self._watchdog: asyncio.TimerHandle | None = None
        self._claim = threading.Lock()  # over `taken` and `given_up`
        self._closed = False
        self._ended = self._loop.create_future()
        self._connection = connection
        self._identity = identity(path)
        self._ends: dict[int, int] = {}  # as far as this thread knows: others may write too
        # A daemon: a log that nobody closed does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"sagaz-log {path}", daemon=True)
        self._thread.start()

    # --- in the event loop ------------------------------------------------------------------------

    async def append(
        self,
        partition: int,
        rows: Sequence[Row],
        value_bytes: int,
        on_disk: Callable[[int, int], object] | None = None,
    ) -> int:
        """The offset of the first row, once all of them are on disk. `on_disk` is told that offset
        and the time of the append before anybody who waits for it goes on."""
        size = value_bytes + _ROW_COST_BYTES * len(rows)
        job = Job(partition, rows, size, self._loop, on_disk=on_disk)
        if self._waiting_bytes > WAITING_BYTES or self._room:
            await self._get_room(job)
        return await self._submit(job)

    async def raise_mark(self, group: str, partition: int, mark: int, note: str) -> None:
        """Keep a group's low-water mark, unless as high a one is kept."""
        await self._submit(Job(partition, (), 0, self._loop, (group, mark, note)))

    def _submit(self, job: Job) -> asyncio.Future[int]:
        if self._closed:
            raise AppendRefused(job.partition, f"{self._path}: the log is closed")
        self._waiting_bytes += job.size
        if not self._gathered:
            # Who was woken together appends together: one transaction, not a first and the rest.
            self._loop.call_soon(self._hand_over)
        self._gathered.append(job)
        self._pending.append(job)
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(self._deadline_s / 4, self._look_after)
        return job.future

    def _hand_over(self) -> None:
        if self._gathered:
            self._queue.put(self._gathered)
            self._gathered = []

    def _answered(self, jobs: list[Job]) -> None:
        ends: dict[int, int] = {}
        for job in jobs:
            self._waiting_bytes -= job.size
            answer, future = job.answer, job.future
            if isinstance(answer, int):
                ends[job.partition] = answer + len(job.rows)
                if job.on_disk is not None:
                    job.on_disk(answer, job.appended_at)
                if not future.done():
                    future.set_result(answer)
            elif not future.done():
                future.set_exception(answer)
        for partition, end in ends.items():
            self._on_commit(partition, end)
        if self._room:
            self._give_room()
        while self._pending and self._pending[0].future.done():
            self._pending.popleft()

    async def _get_room(self, job: Job) -> None:
        """Wait for one's turn, in the order of coming. Raises LogBusy at the deadline."""
        turn = self._loop.create_future()
        self._room.append((turn, job.size))
        try:
            async with asyncio.timeout(self._deadline_s):
                await turn
        except TimeoutError:
            detail = f"{self._path}: {self._waiting_bytes} bytes wait to be written already"
            raise LogBusy(job.partition, detail) from None

    def _give_room(self) -> None:
        free = WAITING_BYTES - self._waiting_bytes
        while self._room and free >= 0:
            turn, wanted = self._room.popleft()
            if not turn.done():
                free -= wanted
                turn.set_result(None)

    def _look_after(self) -> None:
        """Answer for the thread where it does not in time: a disk may hang."""
        self._watchdog = None
        overdue = time.monotonic() - self._deadline_s
        while self._pending:
            job = self._pending[0]
            if not job.future.done():
                if job.since > overdue:
                    self._watchdog = self._loop.call_later(self._deadline_s / 4, self._look_after)
                    return
                job.future.set_exception(self._overdue(job))
            self._pending.popleft()

    def _overdue(self, job: Job) -> SagaError:
        with self._claim:
            job.given_up = not job.taken
        detail = f"{self._path}: no answer in {self._deadline_s:g} s"
        if job.taken:
            return AppendUnknown(job.partition, detail)
        self._waiting_bytes -= job.size
        self._give_room()
        return LogBusy(job.partition, detail)

    async def close(self) -> None:
        """Write what waits, then end the thread and its connection."""
        if not self._closed:
            self._closed = True
            self._hand_over()
            self._queue.put(None)
        try:
            async with asyncio.timeout(self._deadline_s):
                await asyncio.shield(self._ended)
        except TimeoutError:
            _log.warning("%s: its disk does not answer; closed without waiting for it", self._path)
        else:
            self._thread.join()  # it has nothing left to do
        if self._watchdog is not None:
            self._watchdog.cancel()

    # --- in the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        waiting: deque[Job] = deque()
        going_on = True
        while going_on or waiting:
            while going_on and (not waiting or not self._queue.empty()):
                more = self._queue.get()
                going_on = more is not None
                waiting.extend(more or ())
            if waiting:
                self._commit(_batch(waiting))
        with suppress(sqlite3.Error):
            self._connection.close()
        self._call_soon(self._ended.set_result, None)

    def _call_soon(self, call: Callable[[_A], object], argument: _A) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(call, argument)

    def _commit(self, jobs: list[Job]) -> None:
        """Write the jobs and answer them: together, or one by one if they fail together."""
        with self._claim:
            jobs = [job for job in jobs if not job.given_up]
            for job in jobs:
                job.taken = True
        while jobs:
            try:
                self._write(jobs)
            except Exception as error:
                self._ends.clear()
                self._roll_back()
                if isinstance(error, sqlite3.Error) and is_busy(error):
                    jobs = self._without_expired(jobs, error)
                    # SQLite's own waits grow to 100 ms: beside a busy writer they starve.
                    time.sleep(uniform(0.0005, 0.004))
                    continue
                if len(jobs) > 1:  # the one that is at fault must not fail the others
                    for job in jobs:
                        self._commit([job])
                    return
                jobs[0].answer = append_error(error, jobs[0].partition, self._path)
            self._call_soon(self._answered, jobs)
            return

    def _without_expired(self, jobs: list[Job], error: sqlite3.Error) -> list[Job]:
        since = time.monotonic() - self._lock_wait_s
        expired = [job for job in jobs if job.since < since]
        for job in expired:
            job.answer = append_error(error, job.partition, self._path)
        if expired:
            self._call_soon(self._answered, expired)
        return [job for job in jobs if job.since >= since]

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            self._connection.rollback()

    def _write(self, jobs: list[Job]) -> None:
        # SQLite would go on in a file that has no name any more, and all of it would be lost.
        if identity(self._path) != self._identity:
            raise FileNotFoundError("the file was deleted or replaced; open the log again")
        rows = sum(len(job.rows) for job in jobs)
        known = all(job.mark is None and job.partition in self._ends for job in jobs)
        if known and rows <= STATEMENT_ROWS:
            # A statement is a transaction. If another process has appended since, our offsets are
            # taken and it fails as a whole. Too high they cannot be: a log only grows.
            with suppress(sqlite3.IntegrityError):
                now = time.time_ns() // 1000
                self._insert(self._numbered(jobs, now), now)
                return
        self._connection.execute("BEGIN IMMEDIATE")
        for job in jobs:
            if job.mark is not None:
                group, mark, note = job.mark
                self._connection.execute(_MARK, (group, job.partition, mark, note))
            else:
                found = self._connection.execute(_END, (job.partition,))
                self._ends[job.partition] = found.fetchone()[0] or 0
        now = time.time_ns() // 1000
        arguments = self._numbered(jobs, now)
        for start in range(0, len(arguments), 5 * STATEMENT_ROWS):
            self._insert(arguments[start : start + 5 * STATEMENT_ROWS], now)
        self._connection.execute("COMMIT")

    def _numbered(self, jobs: list[Job], now: int) -> list[object]:
        """The rows with their offsets, one after the other; the offsets also answer the jobs."""
        ends = self._ends
        arguments: list[object] = []
        for job in jobs:
            if job.rows:
                partition = job.partition
                job.answer = offset = ends[partition]
                job.appended_at = now
                for key, replay_id, value in job.rows:
                    arguments += (partition, offset, key, replay_id, value)
                    offset += 1
                ends[partition] = offset
        return arguments

    def _insert(self, arguments: list[object], now: int) -> None:
        rows = len(arguments) // 5
        size = 1 << (rows - 1).bit_length()
        arguments += [None] * (5 * (size - rows))
        self._connection.execute(_insert_sql(size), [now, *arguments])


@cache
def _insert_sql(rows: int) -> str:
    """One statement for so many rows; those without a partition are left out.

    One, because between two statements the thread loses the interpreter to a busy event loop. And
    of few sizes, because SQLite takes longer to compile one than to run it.
    """
    values = ", ".join(["(?, ?, ?, ?, ?)"] * rows)
    return (  # without numbers: Python 3.12.0 to 3.12.3 take ?1 for a name, and warn
        "INSERT INTO sagaz_log SELECT column1, column2, column3, ?, column4, column5 "
        f"FROM (VALUES {values}) WHERE column1 IS NOT NULL"
    )


def _batch(waiting: deque[Job]) -> list[Job]:
    """What the next transaction takes of those that wait: all, within its bounds."""
    batch: list[Job] = []
    rows = size = 0
    while waiting:
        job = waiting[0]
        if batch and (rows + len(job.rows) > BATCH_ROWS or size + job.size > BATCH_BYTES):
            break
        batch.append(waiting.popleft())
        rows += len(job.rows)
        size += job.size
    return batch
