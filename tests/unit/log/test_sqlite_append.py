"""Appends to a SQLite log when something is in the way."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core.events import Entry, StepCompleted
from sagaz_es.errors import AppendRefused, AppendUnknown, LogBusy, LogFull
from sagaz_es.log import sqlite_reader, sqlite_writer
from sagaz_es.log.sqlite import SQLiteEventLog
from sagaz_es.log.sqlite_file import LogFileUnusable
from sagaz_es.testing.contracts.entries import event, new_id, steps

CODEC = AvroCodec()


@asynccontextmanager
async def opened(
    path: Path, *, lock_wait_s: float = 5.0, deadline_s: float = 20.0
) -> AsyncIterator[SQLiteEventLog]:
    log = SQLiteEventLog(path, CODEC, partitions=2, lock_wait_s=lock_wait_s, deadline_s=deadline_s)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """As another process that is in the middle of a write."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    finally:
        connection.close()


async def entries_of(log: SQLiteEventLog, partition: int = 0) -> list[object]:
    return [record.entry for record in (await log.read(partition, 1)).records]


def large(megabytes: float) -> list[Entry]:
    fact = StepCompleted("charge", result="x" * 100_000)
    return [event(new_id(), fact) for _ in range(int(megabytes * 10))]


# --- a lock that somebody else holds --------------------------------------------------------------


async def test_an_append_waits_for_another_process(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    async with opened(path) as log:
        with locked(path):
            appending = asyncio.create_task(log.append(0, steps("a", 1)))
            await asyncio.wait([appending], timeout=0.2)
            assert not appending.done()
        assert await appending == 1


async def test_an_append_that_gets_no_lock_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    async with opened(path, lock_wait_s=0.1) as log:
        with locked(path):
            appends = [log.append(0, steps(name, 1)) for name in "abc"]
            outcomes = await asyncio.gather(*appends, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [LogBusy] * 3
        assert "another process holds its lock" in str(outcomes[0])
        assert str(path) in str(outcomes[0])
        assert await log.append(0, steps("d", 1)) == 1
        assert await entries_of(log) == steps("d", 1), "nothing of the others stands"


async def test_an_append_without_an_answer_is_unknown_and_may_stand_later(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    async with opened(path, lock_wait_s=60, deadline_s=0.2) as log:
        with locked(path):
            with pytest.raises(AppendUnknown, match="no answer in"):
                await log.append(0, steps("a", 1))
        assert (await log.read(0, 1, wait_s=5)).records[0].entry == steps("a", 1)[0]


async def test_an_append_that_was_not_begun_by_its_deadline_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    async with opened(path, lock_wait_s=60, deadline_s=0.2) as log:
        with locked(path):
            first = asyncio.create_task(log.append(0, steps("a", 1)))
            await asyncio.sleep(0.05)  # it is in the thread now; the next one waits behind it
            second = asyncio.create_task(log.append(0, steps("b", 1)))
            outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [AppendUnknown, LogBusy]
        await log.append(0, steps("c", 1))
        assert await entries_of(log) == steps("a", 1) + steps("c", 1)


async def test_reading_needs_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    async with opened(path) as log:
        await log.append(0, steps("a", 2))
        with locked(path):
            assert await entries_of(log) == steps("a", 2)


async def test_appends_of_another_connection_are_followed_by_ours(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    async with opened(path) as one, opened(path) as two:
        bases = [await log.append(0, steps("a", 2)) for log in (one, two, one, one, two, two)]
        assert bases == [1, 3, 5, 7, 9, 11]


async def test_a_file_that_was_deleted_takes_no_more_appends(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    async with opened(path) as log:
        await log.append(0, steps("a", 1))
        os.rename(path, tmp_path / "moved.db")
        with pytest.raises(AppendRefused, match="deleted or replaced"):
            await log.append(0, steps("b", 1))
        os.rename(tmp_path / "moved.db", path)
        assert await log.append(0, steps("c", 1)) == 2


# --- a disk that is full --------------------------------------------------------------------------


async def test_a_full_log_keeps_nothing_and_works_again_with_space(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    async with opened(path) as log:
        await log.append(0, steps("a", 1))
        connection = log._writer._connection  # the limit is one of its connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 10}")
        with pytest.raises(LogFull, match="free some space") as caught:
            await log.append(0, [*steps("b", 2), *large(0.5)])
        assert caught.value.partition == 0
        assert str(path) in str(caught.value)
        assert await log.append(0, steps("c", 1)) == 2, "what is small enough finds its place"
        connection.execute("PRAGMA max_page_count = 1000000")
        assert await log.append(0, large(0.5)) == 3
        assert (await entries_of(log))[:2] == steps("a", 1) + steps("c", 1)


async def test_one_append_too_large_for_the_disk_does_not_fail_the_others(tmp_path: Path) -> None:
    async with opened(tmp_path / "sagas.db") as log:
        connection = log._writer._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 20}")
        outcomes = await asyncio.gather(
            log.append(0, steps("a", 2)),
            log.append(0, large(0.5)),
            log.append(1, steps("b", 1)),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [int, LogFull, int]
        assert await entries_of(log, 0) == steps("a", 2)
        assert await entries_of(log, 1) == steps("b", 1)


async def test_a_real_full_disk(small_disk: Path) -> None:
    kept: list[object] = []
    async with opened(small_disk / "sagas.db") as log:
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(500_000))
        with pytest.raises(LogFull):
            while True:
                entries = large(0.2)
                await log.append(0, entries)
                kept += entries
        with pytest.raises(LogFull):
            await log.append(0, large(0.2))
        assert await entries_of(log) == kept
        ballast.unlink()
        kept += steps("after", 3)
        await log.append(0, steps("after", 3))
        assert await entries_of(log) == kept
    async with opened(small_disk / "sagas.db") as log:
        assert await entries_of(log) == kept


async def test_a_log_that_is_opened_on_a_full_disk_says_so(small_disk: Path) -> None:
    async with opened(small_disk / "sagas.db") as log:
        await log.append(0, steps("a", 1))
    with pytest.raises(OSError, match="No space left"), (small_disk / "ballast").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    with pytest.raises(LogFileUnusable, match="the disk is full"):
        async with opened(small_disk / "sagas.db"):
            pass
    (small_disk / "ballast").unlink()
    async with opened(small_disk / "sagas.db") as log:
        assert await entries_of(log) == steps("a", 1)


async def test_a_log_on_a_file_system_that_became_read_only_says_so(small_disk: Path) -> None:
    async with opened(small_disk / "sagas.db") as log:
        await log.append(0, steps("a", 1))
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    # As the system does after an error of the disk.
    await asyncio.to_thread(subprocess.run, remount, check=True)
    with pytest.raises(LogFileUnusable, match="its file system is read-only"):
        async with opened(small_disk / "sagas.db"):
            pass


async def test_a_file_system_that_counts_no_space_is_not_full() -> None:
    with pytest.raises(LogFileUnusable) as refused:
        async with opened(Path("/proc/sagas.db")):
            pass
    assert "the disk is full" not in str(refused.value)


# --- many at once ---------------------------------------------------------------------------------


async def test_appends_are_written_whole_whatever_their_size(tmp_path: Path) -> None:
    async with opened(tmp_path / "sagas.db") as log:
        sizes = [1, 2, 3, 511, 512, 513, 1500, 1, 2500]
        appends = [log.append(n % 2, steps(f"saga-{n}", size)) for n, size in enumerate(sizes)]
        bases = await asyncio.gather(*appends)
        for n, size in enumerate(sizes):
            chunk = await log.read(n % 2, bases[n], limit=size)
            assert [record.entry for record in chunk.records] == steps(f"saga-{n}", size)


async def test_a_chunk_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_reader, "CHUNK_BYTES", 250_000)
    async with opened(tmp_path / "sagas.db") as log:
        entries = large(1.0)
        await log.append(0, entries)
    async with opened(tmp_path / "sagas.db") as log:  # who has written it reads it from memory
        sizes: list[int] = []
        found: list[object] = []
        offset = 1
        while len(found) < len(entries):
            chunk = await log.read(0, offset)
            sizes.append(len(chunk.records))
            found += [record.entry for record in chunk.records]
            offset = chunk.next_offset
        assert found == entries
        assert sizes == [3, 3, 3, 1]


async def test_what_waits_to_be_written_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "WAITING_BYTES", 300_000)
    path = tmp_path / "sagas.db"
    async with opened(path) as log:
        with locked(path):
            appends = [asyncio.create_task(log.append(0, large(0.1))) for _ in range(20)]
            await asyncio.wait(appends, timeout=0.1)
            waiting = log._writer._waiting_bytes
        assert waiting < 600_000, "the rest waits with its callers"
        assert sorted(await asyncio.gather(*appends)) == list(range(1, 21))


async def test_who_finds_no_room_by_the_deadline_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "WAITING_BYTES", 1000)
    path = tmp_path / "sagas.db"
    async with opened(path, lock_wait_s=60, deadline_s=0.2) as log:
        with locked(path):
            first = asyncio.create_task(log.append(0, large(0.1)))
            await asyncio.sleep(0)
            with pytest.raises(LogBusy, match="wait to be written already"):
                await log.append(0, steps("a", 1))
            with pytest.raises(AppendUnknown):
                await first
        assert await log.append(0, steps("b", 1)) == 2


async def test_what_waits_is_written_before_the_log_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    async with opened(path) as log:
        appends = [asyncio.create_task(log.append(0, steps(f"s{n}", 1))) for n in range(100)]
        await asyncio.sleep(0)
        await log.close()
        assert await asyncio.gather(*appends) == list(range(1, 101))
        with pytest.raises(RuntimeError, match="not open"):
            await log.bounds(0)
        with pytest.raises(AppendRefused, match="closed"):
            await log.append(0, steps("late", 1))


async def test_a_key_that_is_no_text_harms_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path / "sagas.db") as log:
        outcomes = await asyncio.gather(
            log.append(0, steps("a", 1)),
            log.append_raw(0, "\ud800", b"x"),
            log.append(0, steps("b", 1)),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [int, AppendRefused, int]
        assert await entries_of(log) == steps("a", 1) + steps("b", 1)


# --- what is left behind --------------------------------------------------------------------------


async def test_a_closed_log_leaves_neither_threads_nor_files_open(tmp_path: Path) -> None:
    await _use(tmp_path / "warm.db")
    threads, files = threading.active_count(), _open_files()
    for n in range(5):
        await _use(tmp_path / f"{n}.db")
    assert (threading.active_count(), _open_files()) == (threads, files)
    assert not [name for name in os.listdir(tmp_path) if name.endswith("-wal")]


async def _use(path: Path) -> None:
    async def nothing(share: frozenset[int]) -> None: ...

    async with opened(path) as log:
        await log.join(nothing)  # a membership that nobody leaves ends with its log
        await log.append(0, steps("a", 3))
        await log.read(0, 4, wait_s=0.01)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
