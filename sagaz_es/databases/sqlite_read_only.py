"""A SQLite file that this process can only read, and in whose directory it can make nothing.

SQLite's own read-only mode wants two files beside a database in WAL mode, and makes them: here it
could not, or they would belong to the wrong user. Where they are, with something in them, SQLite
reads along. Where not, nobody has written since it was put in order: the file is read as it is,
without locks, and every answer is checked for somebody having come meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote

T = TypeVar("T")
_CANNOT_WRITE = (
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
)

TRIES = 10
"""Answers that somebody's writing has made doubtful, before it is given up."""


def may_only_read(path: str) -> bool:
    """Whether there is a file that SQLite could open for reading, but not for writing."""
    return (
        os.path.isfile(path)
        and _may(path, os.R_OK)
        and not (_may(path, os.W_OK) and _may(os.path.dirname(os.path.abspath(path)), os.W_OK))
    )


def cannot_write(error: BaseException | None) -> bool:
    """Whether an error of SQLite says that it can write nothing, there or beside it: the right is
    missing after all, or the disk is full (of which it speaks as of an I/O error)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, sqlite3.Error) and code in _CANNOT_WRITE


def _may(path: str, what: int) -> bool:
    return os.access(path, what, effective_ids=os.access in os.supports_effective_ids)


class ReadOnlyFile:
    """Questions to such a file, from one thread at a time. It is left as it is, and nothing is made
    beside it.

    Law (one moment): what a work is given to read is of one moment, whoever writes meanwhile.
    `prepare` makes of each new connection the one that is asked. Raises sqlite3.Error.
    """

    def __init__(
        self,
        path: str,
        wait_s: float,
        prepare: Callable[[sqlite3.Connection], sqlite3.Connection] = lambda connection: connection,
    ) -> None:
        self._path, self._wait_s, self._prepare = path, wait_s, prepare
        self._connection: sqlite3.Connection | None = None
        self._locks = False  # whether SQLite itself keeps what is read of one moment
        self._stamp = self._seen = _Stamp()

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` makes of the connection; it may be called again, with another one."""
        for _ in range(TRIES):
            try:
                result = work(self._connected())
                if self._locks or self._stamp == self._stamp_now():
                    return result
            except sqlite3.Error:
                if self._stamp == self._stamp_now():
                    raise
            self.close()
        raise sqlite3.OperationalError("it changes again and again while it is read")

    def others_wrote(self) -> bool:
        """Whether anybody has written to it since the last time."""
        seen = self._stamp_now()
        changed, self._seen = seen != self._seen, seen
        return changed

    def close(self) -> None:
        """Twice is harmless; the next call opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._stamp = self._stamp_now()  # before anything is read
            self._locks = self._is_in_use()
            mode = "mode=ro" if self._locks else "immutable=1"
            connection = sqlite3.connect(
                f"file:{quote(os.path.abspath(self._path))}?{mode}",
                uri=True,
                timeout=self._wait_s,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._connection = self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            if self._connection is not connection:
                connection.close()
        return self._connection

    def _is_in_use(self) -> bool:
        if self._stamp.wal_size > 0 and not os.path.exists(f"{self._path}-shm"):
            raise sqlite3.OperationalError(
                f"its newest changes stand in {self._path}-wal, and only who may write there can "
                "read them: copy both files to where you may"
            )
        return self._stamp.wal_size > 0 or os.path.exists(f"{self._path}-journal")

    def _stamp_now(self) -> _Stamp:
        return _Stamp(*_size_and_time(Path(self._path)), *_size_and_time(Path(f"{self._path}-wal")))


class _Stamp(NamedTuple):
    """By what a change is seen; sizes of files that are not there are -1."""

    size: int = -1
    changed_ns: int = 0
    wal_size: int = -1
    wal_changed_ns: int = 0


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return -1, 0
    return found.st_size, found.st_mtime_ns
