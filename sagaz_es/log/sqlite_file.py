"""The file of a SQLite log: its tables, how it is opened, and what its errors mean."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core.events import NamespaceCreated
from sagaz_es.databases.sqlite import DAMAGED, tables_in
from sagaz_es.databases.sqlite_read_only import ReadOnlyFile
from sagaz_es.errors import (
    AppendRefused,
    AppendUnknown,
    LogBusy,
    LogFull,
    SagaError,
    StorageFailed,
    UndecodableRecord,
    Unreachable,
    UnsuitableTopic,
)

# A record's key is kept as `saga_id`, its header as `replay_id` (empty: none).
TABLES = (
    """CREATE TABLE IF NOT EXISTS sagaz_log (
        partition INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        saga_id TEXT NOT NULL,
        appended_at INTEGER NOT NULL,
        replay_id TEXT NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (partition, offset)
    ) WITHOUT ROWID""",
    # Without a rowid the index ends with partition and offset: it gives a saga's records in order.
    "CREATE INDEX IF NOT EXISTS sagaz_log_saga ON sagaz_log (saga_id)",
    """CREATE TABLE IF NOT EXISTS sagaz_marks (
        group_name TEXT NOT NULL,
        partition INTEGER NOT NULL,
        low_water_mark INTEGER NOT NULL,
        note TEXT NOT NULL,
        PRIMARY KEY (group_name, partition)
    ) WITHOUT ROWID""",
)
FULL_BYTES = 65_536
"""What SQLite needs beside a file to open it, and more than a full disk has."""

_T = TypeVar("_T")
_FIRST = "SELECT value FROM sagaz_log WHERE partition = 0 ORDER BY offset LIMIT 1"
_INSERT = "INSERT INTO sagaz_log VALUES (?, 0, '', ?, '', ?)"


def exists(path: str) -> bool:
    """Whether there is a log in the file; False: no file, or an empty one. Changes nothing.

    Raises LogFileUnusable, NotALog: something else is there.
    """
    try:
        tables = tables_in(path)
    except (StorageFailed, Unreachable) as error:
        hint = getattr(error, "hint", "")
        detail = f"{error.detail}; {hint}" if hint else error.detail
        raise LogFileUnusable(path, detail) from error
    if tables is not None and "sagaz_log" not in tables:
        if "sagaz_checkpoints" in tables:
            raise NotALog(path, "it holds a sagaz store, no log: name it with --store")
        raise NotALog(path, f"its tables are of something else ({_some(tables)})")
    return tables is not None


def _some(tables: frozenset[str]) -> str:
    shown = sorted(tables)[:3]
    more = len(tables) - len(shown)
    return (", ".join(shown) or "it has none") + (f" and {more} more" if more else "")


class LogFileUnusable(Unreachable):
    """A file that cannot be a log: no SQLite database, read-only, or in no directory."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__("the log", path, detail)

    def __reduce__(self) -> tuple[type[LogFileUnusable], tuple[str, str]]:
        return LogFileUnusable, (self.address, self.detail)

    def __str__(self) -> str:
        return f"the log file {self.address!r} cannot be used: {self.detail}"


class NotALog(LogFileUnusable):
    """A SQLite database in which there is no log, where one is only to be read."""

    def __reduce__(self) -> tuple[type[NotALog], tuple[str, str]]:
        return NotALog, (self.address, self.detail)

    def __str__(self) -> str:
        return (
            f"{self.address!r} is not a sagaz log: {self.detail}; nothing was changed there; name "
            "the log with --log sqlite:///file.db"
        )


def connect(path: str, wait_s: float) -> sqlite3.Connection:
    """A connection for one thread at a time, in which a statement is its own transaction.

    It never waits for a lock, unless told so: `wait_s` seconds are for the connecting. Raises
    LogFileUnusable.
    """
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        # FULL: in WAL mode less would lose acknowledged appends when the machine dies.
        _patiently(partial(connection.execute, "PRAGMA synchronous = FULL"), wait_s)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.Error):
            raise LogFileUnusable(path, _explained(path, error)) from error
        raise
    return connection


def identity(path: str) -> tuple[int, int]:
    """Which file stands under the path now; (0, 0) if none does."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return status.st_dev, status.st_ino


def prepare(path: str, codec: AvroCodec, partitions: int, wait_s: float) -> int:
    """Make the file a log of so many partitions, unless it is a log; how many it has.

    Raises LogFileUnusable, UnsuitableTopic.
    """
    directory = Path(path).parent
    try:
        if not directory.is_dir():
            raise LogFileUnusable(path, f"the directory {str(directory)!r} does not exist")
        if Path(path).is_dir():
            raise LogFileUnusable(path, "it is a directory")
    except PermissionError as error:
        raise LogFileUnusable(path, error.strerror or str(error)) from error
    try:
        with closing(connect(path, wait_s)) as connection:
            first = _patiently(partial(_first_value, connection, path, codec, partitions), wait_s)
            _check_writable(connection)
    except sqlite3.Error as error:
        raise LogFileUnusable(path, _explained(path, error)) from error
    return _partitions_of(path, codec, first)


def look_at(path: str, codec: AvroCodec, file: ReadOnlyFile) -> int:
    """How many partitions the log in a file has that can only be read.

    Raises LogFileUnusable, NotALog, UnsuitableTopic.
    """
    try:
        row = file.read(
            lambda connection: (
                connection.execute(_FIRST).fetchone() if _is_log(connection) else None
            )
        )
    except sqlite3.Error as error:
        raise LogFileUnusable(path, _explained(path, error)) from error
    if row is None:
        raise NotALog(path, "there is none in it, and it is read-only")
    return _partitions_of(path, codec, row[0])


def _partitions_of(path: str, codec: AvroCodec, first: bytes) -> int:
    try:
        created = codec.decode(first)
    except UndecodableRecord as error:
        raise UnsuitableTopic(path, (f"its first record is damaged ({error})",)) from error
    if not isinstance(created, NamespaceCreated):
        raise UnsuitableTopic(path, ("its first record is not NamespaceCreated",))
    return created.partitions


def _patiently(call: Callable[[], _T], wait_s: float) -> _T:
    # SQLite's own wait does not cover the change to WAL mode.
    end = time.monotonic() + wait_s
    while True:
        try:
            return call()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > end:
                raise
        time.sleep(0.002)


def _first_value(
    connection: sqlite3.Connection, path: str, codec: AvroCodec, partitions: int
) -> bytes:
    # Where a log is already, nothing is written: to open it must need neither lock nor space.
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise LogFileUnusable(path, "its file system cannot share memory (no WAL mode)")
    row = connection.execute(_FIRST).fetchone() if _is_log(connection) else None
    if row is None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for table in TABLES:
                connection.execute(table)
            row = connection.execute(_FIRST).fetchone()  # another process may have been quicker
            if row is None:
                row = _create(connection, path, codec, partitions)
            connection.execute("COMMIT")
        finally:
            connection.rollback()  # does nothing after a commit
    value: bytes = row[0]
    return value


def _is_log(connection: sqlite3.Connection) -> bool:
    found = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'sagaz_log'")
    return bool(found.fetchone()[0])


def _create(
    connection: sqlite3.Connection, path: str, codec: AvroCodec, partitions: int
) -> tuple[bytes]:
    now = time.time_ns() // 1000
    values = [
        codec.encode(NamespaceCreated(Path(path).stem, number, partitions, now))
        for number in range(partitions)
    ]
    connection.executemany(_INSERT, [(n, now, value) for n, value in enumerate(values)])
    return (values[0],)


def _check_writable(connection: sqlite3.Connection) -> None:
    try:
        # Changes nothing, but needs the right to; BEGIN IMMEDIATE alone would let a reader pass.
        connection.execute("DELETE FROM sagaz_marks WHERE 0")
    except sqlite3.OperationalError as error:
        if not is_busy(error):  # who waits for another writer could write
            raise


# --- errors ---------------------------------------------------------------------------------------


def _code(error: sqlite3.Error) -> int:
    # The low byte is the kind, the rest the detail. Errors of the Python module itself have none.
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another process holds the lock."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def explain(error: sqlite3.Error) -> str:
    """What an error of SQLite means for a person."""
    known = {
        sqlite3.SQLITE_NOTADB: "it is not a SQLite database",
        sqlite3.SQLITE_CORRUPT: DAMAGED,
        sqlite3.SQLITE_READONLY: "it is read-only",
        sqlite3.SQLITE_CANTOPEN: "it, or a file beside it, cannot be opened; check the permissions",
        sqlite3.SQLITE_FULL: "the disk is full",
        sqlite3.SQLITE_BUSY: "another process holds its lock",
    }
    text = known.get(_code(error))
    return f"{text} ({error})" if text else str(error)


def _explained(path: str, error: sqlite3.Error) -> str:
    """The same of a file that cannot be opened: where nothing can be made beside it, SQLite speaks
    of an I/O error or of a file only."""
    if _code(error) in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        place = Path(path).parent
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            return f"its file system is read-only ({error})"
        space = shutil.disk_usage(place)
        if space.total and space.free < FULL_BYTES:  # /proc and its like count none
            return f"the disk is full ({error})"
    return explain(error)


def append_error(error: Exception, partition: int, path: str) -> SagaError:
    """What an append raises whose transaction failed with `error`."""
    if not isinstance(error, sqlite3.Error):
        return AppendRefused(partition, f"{path}: {error}")
    if _code(error) == sqlite3.SQLITE_FULL:
        return LogFull(partition, f"{path}: {explain(error)}; free some space and try again")
    if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LogBusy(partition, f"{path}: {explain(error)}")
    if _code(error) == sqlite3.SQLITE_IOERR:
        # A commit that is written, but whose sync failed, stands if the machine dies now.
        return AppendUnknown(partition, f"{path}: {explain(error)}")
    return AppendRefused(partition, f"{path}: {explain(error)}")
