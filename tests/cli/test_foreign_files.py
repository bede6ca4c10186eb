"""Commands that only look change nothing: neither a file that is not ours, nor one that is."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from .conftest import APP, Shop

LOOKING = (
    ("saga", "list"),
    ("saga", "show", "o-1"),
    ("replay", "time-travel", "o-1", "--at", "1"),
    ("replay", "list-changes", "o-1"),
    ("replay", "plan", "o-1", "--from-step", "charge"),
    ("compensations", "list"),
    ("projector", "status"),
    ("projector", "verify"),
    ("doctor",),
    ("versions",),
)
ASKING = (
    ("saga", "cancel", "o-1", "--reason", "x"),
    ("saga", "signal", "o-1", "paid"),
    ("projector", "rebuild"),
    ("saga", "start", "order", "--app", APP),
)


def everything(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "directory"
        for path in sorted(directory.rglob("*"))
        if "__pycache__" not in path.parts
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, where the commands run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def foreign(here: Path) -> Path:
    """The same with somebody's own database and text file."""
    with closing(sqlite3.connect(here / "app.db")) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
        connection.execute("INSERT INTO customers VALUES ('ada')")
        connection.commit()
    (here / "notes.txt").write_text("not a database " * 100)
    return here


@pytest.mark.parametrize("command", LOOKING, ids=" ".join)
@pytest.mark.parametrize("file", ["app.db", "notes.txt"])
def test_a_file_that_is_no_log_is_left_as_it_is(
    foreign: Path, command: tuple[str, ...], file: str
) -> None:
    before = everything(foreign)
    given = Shop(f"sqlite:///{file}").run(*command)
    assert given.status == 1
    assert file in given.stdout + given.stderr
    assert everything(foreign) == before


@pytest.mark.parametrize("command", LOOKING, ids=" ".join)
def test_a_file_that_is_no_store_is_left_as_it_is(foreign: Path, command: tuple[str, ...]) -> None:
    shop = Shop("sqlite:///log.db")
    shop.run("saga", "start", "order", "--app", APP, "--context", '{"token": "good"}')
    before = everything(foreign)
    given = shop.run(*command, "--store", "sqlite:///app.db")
    assert given.status == 1
    assert "app.db" in given.stdout + given.stderr
    assert everything(foreign) == before


@pytest.mark.parametrize("command", LOOKING, ids=" ".join)
def test_looking_makes_no_file(here: Path, command: tuple[str, ...]) -> None:
    given = Shop("sqlite:///sagaz-es.db").run(*command)
    assert given.status in (0, 1, 4)
    assert everything(here) == {}


@pytest.mark.parametrize("command", ASKING, ids=" ".join)
def test_no_tables_are_made_in_somebodys_database(foreign: Path, command: tuple[str, ...]) -> None:
    given = Shop("sqlite:///app.db").run(*command)
    assert (given.status, given.stdout) == (1, "")
    with closing(sqlite3.connect(foreign / "app.db")) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        assert tables.fetchall() == [("customers",)]
