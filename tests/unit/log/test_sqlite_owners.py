"""The locked files that say who owns which partition of a log file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagaz_es.log.file_lock import is_held, take
from sagaz_es.log.sqlite_owners import Owners


@pytest.fixture
def members(tmp_path: Path) -> Iterator[tuple[Owners, Owners]]:
    """Two members of a log of three partitions, the older one first."""
    older, younger = Owners(tmp_path / "owners", 3), Owners(tmp_path / "owners", 3)
    older.enter()
    younger.enter()
    yield older, younger
    older.leave()
    younger.leave()


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    lock = take(tmp_path / "lock")
    assert lock is not None
    assert take(tmp_path / "lock") is None
    assert is_held(tmp_path / "lock")
    lock.release()
    lock.release()  # twice is harmless
    assert not is_held(tmp_path / "lock")
    again = take(tmp_path / "lock")
    assert again is not None
    again.release()


def test_asking_and_trying_in_vain_leaves_no_file_open(tmp_path: Path) -> None:
    lock = take(tmp_path / "lock")
    assert lock is not None
    before = os.listdir("/proc/self/fd")
    for _ in range(10):
        assert take(tmp_path / "lock") is None
        assert is_held(tmp_path / "lock")
        assert not is_held(tmp_path / "missing")
    assert os.listdir("/proc/self/fd") == before
    lock.release()


def test_what_is_held_by_another_cannot_be_taken(members: tuple[Owners, Owners]) -> None:
    older, younger = members
    assert older.take([0, 1]) == {0, 1}
    assert younger.take([1, 2]) == {2}
    assert [set(older.held), set(younger.held)] == [{0, 1}, {2}]


def test_what_was_released_counts_for_nobody(members: tuple[Owners, Owners]) -> None:
    older, younger = members
    older.take([0])
    younger.take([1, 2])
    younger.release([2])
    assert [set(older.share()), set(younger.share())] == [{0, 2}, {1}]


def test_who_left_has_no_share(members: tuple[Owners, Owners]) -> None:
    older, younger = members
    younger.take([0, 1, 2])
    younger.leave()
    younger.leave()  # twice is harmless
    assert older.share() == {0, 1, 2}
    assert older.take(older.share()) == {0, 1, 2}


def test_the_files_of_the_dead_are_cleared_away(tmp_path: Path) -> None:
    directory = tmp_path / "owners"
    directory.mkdir()
    (directory / "member-1-dead").touch()
    (directory / "entering-member-2-dead").touch()
    os.utime(directory / "entering-member-2-dead", (1, 1))
    (directory / "entering-member-3-alive").touch()  # only just made: it may still be locked
    owners = Owners(directory, 2)
    owners.enter()
    assert owners.share() == {0, 1}
    left = sorted(os.listdir(directory))
    assert [name.partition("-")[0] for name in left] == ["entering", "member"]
    assert left[0] == "entering-member-3-alive"
    owners.leave()
    assert os.listdir(directory) == ["entering-member-3-alive"]
