"""Commands that only look do so where nothing may be written, and leave everything as it is."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from sagaz_es import EngineConfig, connect
from tests.nobody import as_nobody

from .conftest import Output, Shop
from .shop import OrderSaga
from .test_foreign_files import LOOKING, everything

COMMANDS = (
    *(command for command in LOOKING if command != ("doctor",)),  # that tells the difference
    ("replay", "time-travel", "o-2", "--at", "step:charge"),
    ("replay", "list-changes", "o-2"),
    ("saga", "list", "--status", "rolled_back"),
    ("saga", "show", "nobody"),
)


OTHER = """import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("INSERT INTO sagaz_marks VALUES ('other', 0, 0, '')")
print("it is written", flush=True)
sys.stdin.read()
"""


def fill(path: Path, *, projected: bool) -> None:
    async def work() -> None:
        config = EngineConfig(projector=projected)
        async with connect(f"sqlite:///{path}", sagas=[OrderSaga], config=config) as engine:
            await engine.run(OrderSaga, {"token": "bad"}, saga_id="o-1")
            await engine.run(OrderSaga, {"token": "good"}, saga_id="o-2")

    asyncio.run(work())


@pytest.fixture(params=["at rest", "behind its log", "in use", "left by a crash"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory with `sagas.db`, log and store."""
    place = tmp_path / "place"
    place.mkdir()
    fill(place / "sagas.db", projected=request.param != "behind its log")
    with ExitStack() as stack:
        if request.param in ("in use", "left by a crash"):
            command = [sys.executable, "-c", OTHER, str(place / "sagas.db")]
            other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(other)
            stack.callback(other.kill)
            assert other.stdout is not None
            assert other.stdout.readline()
            if request.param == "left by a crash":
                other.kill()
                other.wait()
            assert (place / "sagas.db-wal").stat().st_size
        yield place


def told(given: Output, place: Path) -> tuple[int, str, list[str]]:
    """What a command gave, without where."""
    lines = [line.replace(str(place), "…") for line in given.stderr.splitlines()]
    return given.status, given.stdout.replace(str(place), "…"), lines


@pytest.mark.parametrize("mode", [0o555, 0o755])
def test_looking_needs_no_right_to_write(place: Path, mode: int) -> None:
    expected = []
    for number, command in enumerate(COMMANDS):  # by root, who may write, on a copy for each
        copy = place.with_name(f"copy-{number}")
        shutil.copytree(place, copy)
        given = Shop(f"sqlite:///{copy}/sagas.db").run(*command)
        expected.append(told(given, copy))
    (place / "sagas.db").chmod(0o444 if mode == 0o555 else 0o644)  # or somebody else's
    before = everything(place)
    with as_nobody(place, mode):
        shop = Shop(f"sqlite:///{place}/sagas.db")
        assert [told(shop.run(*command), place) for command in COMMANDS] == expected
        listed = shop.run("saga", "list").json
    assert everything(place) == before
    assert {saga["saga_id"] for saga in listed} == {"o-1", "o-2"}
    assert {status for status, _, _ in expected} == {0, 4}


def test_what_would_write_there_is_refused(place: Path) -> None:
    before = everything(place)
    with as_nobody(place):
        shop = Shop(f"sqlite:///{place}/sagas.db")
        for command in (("saga", "cancel", "o-1", "--reason", "x"), ("projector", "rebuild")):
            given = shop.run(*command)
            assert (given.status, given.stdout) == (1, ""), command
            assert "sagas.db' cannot be used: it is read-only" in given.error
    assert everything(place) == before


def test_doctor_says_that_nothing_may_be_written(place: Path) -> None:
    with as_nobody(place):
        given = Shop(f"sqlite:///{place}/sagas.db").run("doctor")
    assert given.status == 0
    (found,) = (check for check in given.json if check["check"] == "file")
    assert (found["result"], "this user cannot write" in found["found"]) == ("look", True)


@pytest.mark.parametrize("projected", [True, False], ids=["up to date", "behind its log"])
def test_one_can_look_on_a_full_disk(small_disk: Path, projected: bool) -> None:
    fill(small_disk / "sagas.db", projected=projected)
    shop = Shop(f"sqlite:///{small_disk}/sagas.db")
    expected = []
    for number, command in enumerate(COMMANDS):
        copy = small_disk.with_name(f"copy-{number}")
        shutil.copytree(small_disk, copy)
        expected.append(told(Shop(f"sqlite:///{copy}/sagas.db").run(*command), copy))
    with (small_disk / "fill").open("wb", buffering=0) as filling, suppress(OSError):
        while True:
            filling.write(bytes(1024))
    before = (small_disk / "sagas.db").read_bytes()
    assert [told(shop.run(*command), small_disk) for command in COMMANDS] == expected
    assert "file" in [check["check"] for check in shop.run("doctor").json]  # it is full indeed
    assert (small_disk / "sagas.db").read_bytes() == before


def test_newest_changes_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    fill(tmp_path / "sagas.db", projected=True)
    copied = tmp_path / "copied"
    copied.mkdir()
    with closing(sqlite3.connect(tmp_path / "sagas.db")) as connection, connection:
        connection.execute("INSERT INTO sagaz_marks VALUES ('other', 0, 0, '')")
        connection.commit()
        for end in ("", "-wal"):  # without `-shm`, where others would make it
            shutil.copy(tmp_path / f"sagas.db{end}", copied)
    before = everything(copied)
    with as_nobody(copied):
        for command in LOOKING:
            given = Shop(f"sqlite:///{copied}/sagas.db").run(*command)
            assert given.status == 1
            assert "sagas.db-wal, and only who may write there" in given.stdout + given.stderr
    assert everything(copied) == before
