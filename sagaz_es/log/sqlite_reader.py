"""Reading a SQLite log: one thread with its own connection, and a look-out for other writers."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from sagaz_es.errors import StorageFailed, Unreachable
from sagaz_es.log.sqlite_file import explain
from sagaz_es.ports import Bounds

Row = tuple[int, str, int, str, bytes]
"""Offset, key, time of the append, replay id, value."""

CHUNK_BYTES = 8 * 2**20
"""A chunk takes no further record beyond these, whatever its limit: values may be large."""

_READ = """SELECT offset, saga_id, appended_at, replay_id, value FROM sagaz_log
    WHERE partition = ? AND offset >= ? ORDER BY offset LIMIT ?"""
_SAGA = """SELECT offset, saga_id, appended_at, replay_id, value FROM sagaz_log
    WHERE saga_id = ? AND partition = ? AND offset >= ? ORDER BY offset"""
_BOUNDS = """SELECT (SELECT min(offset) FROM sagaz_log WHERE partition = ?),
    (SELECT max(offset) FROM sagaz_log WHERE partition = ?)"""
_MARK = "SELECT low_water_mark, note FROM sagaz_marks WHERE group_name = ? AND partition = ?"

_A = TypeVar("_A")


class Source(Protocol):
    """What is read: a file that is written, too, or a `ReadOnlyFile`. For one thread at a time,
    but for `others_wrote`."""

    def read(self, work: Callable[[sqlite3.Connection], _A]) -> _A: ...
    def others_wrote(self) -> bool: ...
    def close(self) -> None: ...


class Connections:
    """A connection to read on, and one for the look-out: what that sees is the connection's own."""

    def __init__(
        self, connection: sqlite3.Connection, look_out: sqlite3.Connection, wait_s: float
    ) -> None:
        self._connection, self._look_out = connection, look_out
        # In WAL mode a reader meets a lock only where the file is being repaired or closed.
        connection.execute(f"PRAGMA busy_timeout = {int(wait_s * 1000)}")
        self._seen = -1

    def read(self, work: Callable[[sqlite3.Connection], _A]) -> _A:
        return work(self._connection)

    def others_wrote(self) -> bool:
        try:
            seen: int = self._look_out.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.OperationalError:  # busy: somebody repairs the file; the next look will tell
            return False
        changed, self._seen = seen != self._seen, seen
        return changed

    def close(self) -> None:
        self._look_out.close()
        self._connection.close()


class Reader:
    """Questions to the file, answered outside the event loop, one after the other."""

    def __init__(self, path: str, source: Source, *, deadline_s: float) -> None:
        self._path, self._source, self._deadline_s = path, source, deadline_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sagaz-log-reader")

    def others_wrote(self) -> bool:
        """Whether anybody (this process' own writer too) has committed since the last time.

        For the event loop: it takes some µs and waits for nothing.
        """
        return self._source.others_wrote()

    async def rows(self, partition: int, offset: int, limit: int) -> list[Row]:
        """Up to `limit` records of a partition from an offset on."""
        return await self._ask(lambda connection: _rows(connection, partition, offset, limit))

    async def saga(self, saga_id: str, partition: int, offset: int) -> list[Row]:
        """All records of a saga from an offset on."""
        return await self._all(_SAGA, saga_id, partition, offset)

    async def bounds(self, partition: int) -> Bounds:
        return await self._ask(lambda connection: _bounds(connection, partition))

    async def ends(self, partitions: Sequence[int]) -> dict[int, int]:
        """Where each of these partitions ends now."""
        return await self._ask(lambda c: {p: _bounds(c, p).end for p in partitions})

    async def mark(self, group: str, partition: int) -> tuple[int, str] | None:
        """A group's low-water mark and its note, if one is kept."""
        rows: list[tuple[int, str]] = await self._all(_MARK, group, partition)
        return rows[0] if rows else None

    async def close(self) -> None:
        with suppress(Unreachable):
            await self._run(self._source.close)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _all(self, sql: str, *arguments: object) -> list[Any]:
        return await self._ask(lambda connection: connection.execute(sql, arguments).fetchall())

    async def _ask(self, work: Callable[[sqlite3.Connection], _A]) -> _A:
        return await self._run(lambda: self._source.read(work))

    async def _run(self, call: Callable[[], _A]) -> _A:
        """What `call` gives in the reading thread. Raises Unreachable, StorageFailed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._deadline_s):
                return await loop.run_in_executor(self._thread, call)
        except TimeoutError:
            detail = f"no answer in {self._deadline_s:g} s"
            raise Unreachable("the log", self._path, detail) from None
        except sqlite3.Error as error:
            raise StorageFailed(self._path, explain(error)) from error


# --- in the thread --------------------------------------------------------------------------------


def _rows(connection: sqlite3.Connection, partition: int, offset: int, limit: int) -> list[Row]:
    rows: list[Row] = []
    size = 0
    cursor = connection.execute(_READ, (partition, offset, limit))
    for row in cursor:
        rows.append(row)
        size += len(row[4])
        if size > CHUNK_BYTES:
            break
    cursor.close()  # an open one would keep the WAL from being cleaned up
    return rows


def _bounds(connection: sqlite3.Connection, partition: int) -> Bounds:
    first, last = connection.execute(_BOUNDS, (partition, partition)).fetchone()
    return Bounds(0, 0) if first is None else Bounds(first, last + 1)
