"""Opening the file of a SQLite log: what is there decides, and what cannot be is said."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import sqlite3
from pathlib import Path

import pytest

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core.events import CancelRequested, NamespaceCreated
from sagaz_es.errors import ConfigurationError, Unreachable, UnsuitableTopic
from sagaz_es.log.sqlite import SQLiteEventLog
from sagaz_es.log.sqlite_file import LogFileUnusable
from sagaz_es.ports import Bounds
from sagaz_es.testing.contracts.entries import steps
from tests.nobody import as_nobody

CODEC = AvroCodec()


async def test_the_recorded_number_of_partitions_rules(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    for asked in (3, 8):
        log = SQLiteEventLog(path, CODEC, partitions=asked)
        await log.open()
        assert log.partitions == 3
        await log.close()


async def test_it_begins_with_its_name_and_shape(tmp_path: Path) -> None:
    log = SQLiteEventLog(tmp_path / "orders.db", CODEC, partitions=2)
    await log.open()
    (record,) = (await log.read(1, 0)).records
    entry = record.entry
    assert isinstance(entry, NamespaceCreated)
    assert (entry.namespace, entry.partition, entry.partitions) == ("orders", 1, 2)
    await log.close()


async def test_every_commit_is_synced(tmp_path: Path) -> None:
    log = SQLiteEventLog(tmp_path / "sagas.db", CODEC)
    await log.open()
    settings = [
        log._writer._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous")
    ]
    assert settings == ["wal", 2], "2 is FULL"
    await log.close()


async def test_other_tables_of_the_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.execute("INSERT INTO theirs VALUES (42)")
    connection.close()
    log = SQLiteEventLog(path, CODEC)
    await log.open()
    await log.append(0, steps("order-17", 1))
    await log.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT x FROM theirs").fetchall() == [(42,)]
    connection.close()


async def test_a_file_that_is_no_database_is_refused_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, not a database\n" * 100)
    await _unusable(path, "not a SQLite database")
    assert path.read_text().startswith("these are notes"), "left alone"


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    await _unusable(tmp_path / "nowhere" / "sagas.db", f"{tmp_path / 'nowhere'}' does not exist")


async def test_a_directory_is_no_log(tmp_path: Path) -> None:
    await _unusable(tmp_path, "is a directory")


@pytest.mark.parametrize("directory_mode", [0o755, 0o777])
async def test_a_read_only_file_is_refused(tmp_path: Path, directory_mode: int) -> None:
    path = tmp_path / "sagas.db"
    log = SQLiteEventLog(path, CODEC)
    await log.open()
    await log.close()
    os.chmod(path, 0o444)
    with as_nobody(tmp_path, directory_mode):
        await _unusable(path, "read-only")


@pytest.mark.parametrize("directory_mode", [0o555, 0o755, 0o777])
async def test_a_file_that_may_only_be_read_is_read_beside_whoever_writes_it(
    tmp_path: Path, directory_mode: int
) -> None:
    path = tmp_path / "sagas.db"
    writer, reader = SQLiteEventLog(path, CODEC, 1), SQLiteEventLog(path, CODEC, reading=True)
    await writer.open()
    await writer.close()
    os.chmod(path, 0o644)
    request = CancelRequested(request_id="r-1", saga_id="order-1")
    with as_nobody(tmp_path, directory_mode):
        await reader.open()
        assert (reader.read_only, reader.partitions) == (True, 1)
        assert await reader.bounds(0) == Bounds(0, 1)
        assert os.listdir(tmp_path) == ["sagas.db"]
    waiting = asyncio.create_task(reader.read(0, 1, wait_s=10))
    await writer.open()  # read without locks so far: whoever comes to write is noticed
    await writer.append(0, [request])
    assert [record.entry for record in (await waiting).records] == [request]
    await writer.append(0, [request])
    await writer.close()  # with all of the write-ahead log put into the file
    assert len((await reader.read(0, 0)).records) == 3
    with pytest.raises(LogFileUnusable, match="opened to be read only"):
        await reader.append(0, [request])
    await reader.close()


async def test_newest_changes_that_cannot_be_read_are_told_and_not_passed_over(
    tmp_path: Path,
) -> None:
    writer = SQLiteEventLog(tmp_path / "sagas.db", CODEC, 1)
    await writer.open()
    await writer.append(0, [CancelRequested(request_id="r-1", saga_id="order-1")])
    copied = tmp_path / "copy"
    copied.mkdir()
    for end in ("", "-wal"):  # and not the shared memory, without which nobody may read along
        shutil.copy(tmp_path / f"sagas.db{end}", copied)
    await writer.close()
    with as_nobody(copied, 0o555):
        with pytest.raises(LogFileUnusable, match=r"stand in .*sagas\.db-wal.*copy both files"):
            await SQLiteEventLog(copied / "sagas.db", CODEC, reading=True).open()


async def test_a_directory_that_takes_no_file_is_refused(tmp_path: Path) -> None:
    with as_nobody(tmp_path, mode=0o555):
        await _unusable(tmp_path / "sagas.db", "cannot be opened")


async def test_a_damaged_first_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    log = SQLiteEventLog(path, CODEC)
    await log.open()
    await log.close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE sagaz_log SET value = x'00'")
    connection.close()
    with pytest.raises(UnsuitableTopic, match="first record is damaged"):
        await SQLiteEventLog(path, CODEC).open()


def test_a_log_needs_a_file() -> None:
    with pytest.raises(ConfigurationError, match="memory://"):
        SQLiteEventLog(":memory:", CODEC)


def test_the_error_can_be_pickled() -> None:
    error = LogFileUnusable("/x/sagas.db", "it is read-only")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


async def test_a_log_that_is_not_open_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not open"):
        await SQLiteEventLog(tmp_path / "sagas.db", CODEC).read(0, 0)


async def _unusable(path: Path, why: str) -> None:
    with pytest.raises(LogFileUnusable) as caught:
        await SQLiteEventLog(path, CODEC).open()
    assert isinstance(caught.value, Unreachable)
    assert str(path) in str(caught.value)
    assert why in str(caught.value)
