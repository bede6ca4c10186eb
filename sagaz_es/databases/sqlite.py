"""One SQLite file on a thread of its own."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from sagaz_es.databases.sqlite_read_only import ReadOnlyFile, cannot_write, may_only_read
from sagaz_es.databases.versions import other_version
from sagaz_es.errors import AccessRefused, StorageFailed, Unreachable

P = TypeVar("P")
T = TypeVar("T")

IN_MEMORY = ":memory:"
DAMAGED = "it is damaged; restore a copy (what is whole of it, `sqlite3 FILE .recover` writes out)"


class SQLiteDatabase:
    """Runs work on one connection, in one thread.

    What it commits survives the process; a crash of the machine takes at most the newest commits,
    and none if it is `durable`. `tables` are made where they are missing; `component` names them in
    the table of versions. `reading`: nothing is to be written, so that a file will do that this
    process may only read (`read_only`, once it is open); what is not in it is empty then.

    Law (in order): works run one after another, in the order of the calls.
    Law (whole): what a `write` does stands whole or not at all, also if it raises or is cancelled.
    Raises Unreachable if the file cannot be opened, or stays locked; StorageFailed for other errors
    of SQLite. What `work` itself raises goes through.
    """

    def __init__(
        self,
        path: str,
        component: str,
        tables: tuple[str, ...],
        *,
        version: int = 1,
        wait_s: float = 5.0,
        durable: bool = False,
        reading: bool = False,
    ) -> None:
        self.path = path
        self.reading = reading
        self._component, self._tables, self._version = component, tables, version
        self._wait_s = wait_s
        self._synchronous = "FULL" if durable else "NORMAL"
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._file: ReadOnlyFile | None = None  # instead of the connection

    @property
    def read_only(self) -> bool:
        """Whether it was opened as a file that this process may only read."""
        return self._file is not None

    async def open(self) -> None:
        """Open the file, and make what is missing in it; again, if it was closed."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="sagaz-es-store")
        try:
            await self.read(lambda _: None)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """After the works that were called before."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                await asyncio.get_running_loop().run_in_executor(thread, self._disconnect)
            finally:
                thread.shutdown(wait=False)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` makes of the connection, which is in no transaction."""
        return await self._call(lambda: self._read(work))

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` makes of the connection, in a transaction of its own."""
        return await self._call(lambda: self._transaction(work))

    async def write_prepared(
        self, prepare: Callable[[], P], work: Callable[[sqlite3.Connection, P], T]
    ) -> T:
        """As `write`; what takes time and no connection is done first, while others may write."""

        def call() -> T:
            prepared = prepare()
            return self._transaction(lambda connection: work(connection, prepared))

        return await self._call(call)

    async def _call(self, call: Callable[[], T]) -> T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="sagaz-es-store")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except sqlite3.Error as error:
            raise explained(error, self.path) from error

    # --- in the thread

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None and self._file is None and self.reading:
            self._file = self._as_read_only()
        return self._file.read(work) if self._file is not None else work(self._connected())

    def _as_read_only(self) -> ReadOnlyFile | None:
        """The file, if it cannot be opened for writing, too."""
        if not may_only_read(self.path):
            try:
                self._connected()
                return None
            except sqlite3.Error as error:
                if not (cannot_write(error) and os.path.isfile(self.path)):
                    raise
        return ReadOnlyFile(self.path, self._wait_s, self._with_tables)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._file is not None:
            raise StorageFailed(self.path, "it was opened to be read only")
        connection = self._connected()
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()  # does nothing if SQLite has done it
            raise
        return result

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _connect(self) -> sqlite3.Connection:
        directory = Path(self.path).parent
        if self.path != IN_MEMORY and not directory.is_dir():
            missing = f"there is no directory {str(directory)!r}"
            raise AccessRefused("SQLite", self.path, missing, "make it, or name another file")
        connection = sqlite3.connect(
            self.path, timeout=self._wait_s, isolation_level=None, check_same_thread=False
        )
        try:
            self._in_wal_mode(connection)
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            self._make_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _in_wal_mode(self, connection: sqlite3.Connection) -> None:
        if self.path == IN_MEMORY:
            return
        end = time.monotonic() + self._wait_s  # SQLite's own wait does not cover the change
        while True:
            try:
                if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            time.sleep(0.002)

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        if self._version_found(connection) == self._version:
            return
        connection.execute("BEGIN IMMEDIATE")  # of two processes one makes them, the other waits
        try:
            found = self._version_found(connection)
            if found is None:
                for table in (VERSIONS, *self._tables):
                    connection.execute(table)
                row = (self._component, self._version)
                connection.execute("INSERT INTO sagaz_versions VALUES (?, ?)", row)
            elif found != self._version:
                raise other_version(self.path, self._component, found, self._version)
            connection.execute("COMMIT")
        finally:
            connection.rollback()  # does nothing after a commit

    def _with_tables(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """A connection to a file that can only be read, or to empty tables if it has none."""
        found = self._version_found(connection)
        if found is None:
            connection = sqlite3.connect(IN_MEMORY, isolation_level=None, check_same_thread=False)
            for table in self._tables:
                connection.execute(table)
        elif found != self._version:
            raise other_version(self.path, self._component, found, self._version)
        return connection

    def _version_found(self, connection: sqlite3.Connection) -> int | None:
        known = "SELECT count(*) FROM sqlite_master WHERE name = 'sagaz_versions'"
        if not connection.execute(known).fetchone()[0]:
            return None
        version = "SELECT version FROM sagaz_versions WHERE component = ?"
        row = connection.execute(version, (self._component,)).fetchone()
        return row[0] if row is not None else None


def explained(error: sqlite3.Error, path: str) -> Unreachable | StorageFailed:
    """What an error of SQLite means."""
    code = _code(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unreachable("SQLite", path, "another process holds its lock", "try again")
    if code == sqlite3.SQLITE_CANTOPEN:
        return AccessRefused("SQLite", path, "it cannot be opened", "check the permissions")
    known = {
        sqlite3.SQLITE_NOTADB: "it is not a SQLite database",
        sqlite3.SQLITE_CORRUPT: DAMAGED,
        sqlite3.SQLITE_READONLY: "it is read-only",
        sqlite3.SQLITE_FULL: "the disk is full",
    }
    return StorageFailed(path, known.get(code, str(error)))


def tables_in(path: str) -> frozenset[str] | None:
    """The names of a file's tables, without changing it or anything beside it; None: there is no
    such file, or it is empty. Raises Unreachable, StorageFailed: it is no SQLite database.
    """
    file = Path(path)
    try:
        if not file.exists() or (file.is_file() and not file.stat().st_size):
            return None
        if file.is_dir():
            raise StorageFailed(path, "it is a directory")
        if may_only_read(path):
            with closing(ReadOnlyFile(path, 5)) as found:
                return found.read(_tables_of)
        # With nothing in a WAL nobody writes now, and SQLite need not make one to read the file.
        wal = Path(f"{path}-wal")
        mode = "mode=ro" if wal.exists() and wal.stat().st_size else "immutable=1"
        url = f"file:{quote(os.path.abspath(path))}?{mode}"
        with closing(sqlite3.connect(url, uri=True, timeout=5)) as connection:
            return _tables_of(connection)
    except sqlite3.Error as error:
        raise explained(error, path) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise AccessRefused("SQLite", path, why, "check the permissions") from error


def _tables_of(connection: sqlite3.Connection) -> frozenset[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return frozenset(name for (name,) in rows)


VERSIONS = """CREATE TABLE IF NOT EXISTS sagaz_versions (
    component TEXT PRIMARY KEY, version INTEGER NOT NULL
)"""


def _code(error: sqlite3.Error) -> int:
    # The low byte is the kind, the rest the detail. Errors of the Python module itself have none.
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF
