"""A lock on a file that the operating system frees the moment its holder dies."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

_held: WeakSet[FileLock] = WeakSet()


class FileLock:
    """An exclusive lock on a file, held until `release` or the end of the process.

    It belongs to an open file description (flock): two in one process exclude each other too, and
    no time-out is ever needed. The file's first bytes can say who holds it.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self._fd = path, fd
        _held.add(self)

    def write(self, text: str) -> None:
        """Put a text at the file's beginning, always of the same length: it needs no new space."""
        with suppress(OSError):  # a full disk: then nobody knows the holder, but the lock holds
            os.pwrite(self._fd, text.encode(), 0)

    @property
    def removed(self) -> bool:
        """Whether somebody deleted the file: others then lock a new one beside us."""
        return os.fstat(self._fd).st_nlink == 0

    def rename(self, path: Path) -> None:
        """Give the file another name; the lock stays."""
        os.rename(self.path, path)
        self.path = path

    def release(self) -> None:
        """Free the lock; twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _held.discard(self)
            os.close(fd)


def take(path: Path) -> FileLock | None:
    """The lock on `path`, which is made if it is missing; None if somebody holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return FileLock(path, fd)


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock; False also if there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared: two who ask at the same moment do not take each other for a holder.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _forget_in_child() -> None:
    # A child made by fork would keep its parent's locks held after the parent's death. Closing its
    # copy does not free them: that takes the last copy, or an unlock.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_forget_in_child)
