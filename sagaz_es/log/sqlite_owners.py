"""Who is alive and who owns which partition of a log file, said by locked files beside it.

`<log>-owners/member-<when>-<id>` is locked by a member as long as its process lives;
`partition-<n>` by its owner, whose member name the file holds. Nobody needs space, a clock or the
database's lock to take over what a dead process had. A named group has `<log>-owners-<group>`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from sagaz_es.log.assignment import assign
from sagaz_es.log.file_lock import FileLock, is_held, take

_FORGOTTEN_S = 60.0  # a file that a process left when it died between making and naming it


def directory_of(log_path: str, group: str) -> Path:
    """Where the members of a group meet."""
    return Path(f"{log_path}-owners-{group}" if group else f"{log_path}-owners")


def alive_in(directory: Path) -> int:
    """How many members live. Changes nothing there."""
    return sum(is_held(path) for path in directory.glob("member-*"))


class Owners:
    """One member's view of the directory, and the locks that it holds. Blocking, but quick."""

    def __init__(self, directory: Path, partitions: int) -> None:
        self._directory, self._partitions = directory, partitions
        self._locks: dict[int, FileLock] = {}
        # Named by the time of joining: in a directory's order the oldest member comes first.
        self._name = f"member-{time.time_ns():020}-{uuid4().hex[:12]}"
        self._member: FileLock | None = None

    @property
    def held(self) -> frozenset[int]:
        """The partitions that this member owns."""
        return frozenset(self._locks)

    def enter(self) -> None:
        """Become a member that the others see."""
        self._directory.mkdir(exist_ok=True)
        self._clean_up()
        # Locked before it has its name: nobody ever sees a member that is not alive yet.
        lock = take(self._directory / f"entering-{self._name}")
        assert lock is not None, "a name of its own"
        lock.rename(self._directory / self._name)
        self._member = lock

    def share(self) -> frozenset[int]:
        """What this member is to own, as things stand."""
        if self._member is None or self._member.removed:
            self._enter_again()
        members = self._alive()
        owners = {
            partition: self._owner(partition)
            for partition in range(self._partitions)
            if partition not in self._locks
        }
        owners = {p: owner if owner != self._name else "" for p, owner in owners.items()}
        owners.update(dict.fromkeys(self._locks, self._name))
        return assign(members, owners, self._partitions).get(self._name, frozenset())

    def take(self, partitions: Iterable[int]) -> frozenset[int]:
        """Take those that nobody holds; which they are."""
        taken = set()
        for partition in partitions:
            lock = take(self._path(partition))
            if lock is not None:
                lock.write(self._name)
                self._locks[partition] = lock
                taken.add(partition)
        return frozenset(taken)

    def lost(self) -> frozenset[int]:
        """Those whose file was deleted: another member may have locked a new one."""
        return frozenset(number for number, lock in self._locks.items() if lock.removed)

    def release(self, partitions: Iterable[int]) -> None:
        """Let others have them."""
        for partition in partitions:
            lock = self._locks.pop(partition, None)
            if lock is not None:
                lock.write(" " * len(self._name))
                lock.release()

    def leave(self) -> None:
        """Release everything and stop being a member; twice is harmless."""
        member, self._member = self._member, None
        if member is not None:  # first: who sees partitions become free shall not count us
            member.path.unlink(missing_ok=True)
            member.release()
        self.release(self.held)

    def _enter_again(self) -> None:
        if self._member is not None:
            self._member.release()
        self.enter()

    def _alive(self) -> list[str]:
        names = []
        for path in sorted(self._directory.glob("member-*")):
            if path.name == self._name or is_held(path):
                names.append(path.name)
            else:
                path.unlink(missing_ok=True)  # its process died
        return names

    def _owner(self, partition: int) -> str:
        try:
            return self._path(partition).read_text()
        except (OSError, ValueError):
            return ""

    def _path(self, partition: int) -> Path:
        return self._directory / f"partition-{partition}"

    def _clean_up(self) -> None:
        for path in self._directory.glob("entering-*"):
            with suppress(FileNotFoundError):
                old = time.time() - os.stat(path).st_mtime > _FORGOTTEN_S
                if old and not is_held(path):
                    path.unlink()
