"""`sagaz-es compensations`: what is stuck, trying it again, letting it be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import connect
from sagaz_es_cli import asking

from .conftest import Output, Shop
from .desk import Trip

Ledger = Callable[[], list[str]]
HERE = ("--app", "tests.cli.desk:Trip")


@pytest.fixture
def strike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file exists, no booking is cancelled. It does."""
    path = tmp_path / "strike"
    path.touch()
    monkeypatch.setenv("DESK_STRIKE", str(path))
    monkeypatch.setattr(asking, "PATIENCE_SECONDS", 0.05)  # nobody else runs on these logs
    return path


@pytest.fixture
def desk(shop: Shop, ledger: Ledger, strike: Path) -> Shop:
    """A log with one stuck compensation, of trip t-1."""
    trip(shop, "t-1")
    return shop


def trip(shop: Shop, saga_id: str) -> None:
    async def work() -> None:
        async with connect(shop.log, sagas=[Trip], clock=shop.clock) as engine:
            await engine.run(Trip, saga_id=saga_id)

    asyncio.run(work())


def listed(shop: Shop, *options: str) -> Any:
    return shop.run("compensations", "list", *options).json


def retry(shop: Shop, *options: str, step: str = "book", saga_id: str = "t-1") -> Output:
    return shop.run(
        "compensations", "retry", saga_id, "--step", step, "--reason", "they are back", *options
    )


def skip(shop: Shop, *options: str) -> Output:
    return shop.run(
        "compensations", "skip", "t-1", "--step", "book", "--reason", "by phone", *options
    )


STUCK = {
    "saga_id": "t-1",
    "saga_name": "trip",
    "step": "book",
    "error": "ConnectionError: nobody picks up",
}


# --- list -----------------------------------------------------------------------------------------


def test_list_says_which_step_of_which_saga_is_stuck_and_since_when(desk: Shop) -> None:
    (found,) = listed(desk)
    assert found.pop("since") == desk.run("saga", "show", "t-1").json["ended_at"]
    assert found == STUCK


def test_list_chooses_by_name_and_says_that_there_are_more(desk: Shop) -> None:
    trip(desk, "t-2")
    assert [found["saga_id"] for found in listed(desk, "--name", "trip")] == ["t-2", "t-1"]
    assert listed(desk, "--name", "other") == []
    first = desk.run("compensations", "list", "--limit", "1")
    assert [found["saga_id"] for found in first.json] == ["t-2"]
    assert "there are more than these 1; go on with --after t-2" in first.stderr
    rest = desk.run("compensations", "list", "--limit", "1", "--after", "t-2")
    assert ([found["saga_id"] for found in rest.json], rest.stderr) == (["t-1"], "")
    assert desk.run("compensations", "list", "--after", "nobody").status == 4


def test_nothing_stuck_is_no_error_and_says_so(shop: Shop) -> None:
    shop.order("o-1", token="bad")  # rolled back as it should be
    given = shop.run("compensations", "list", "--format", "table")
    assert (given.status, given.stdout) == (0, "no compensation is stuck\n")


# --- retry ----------------------------------------------------------------------------------------


def test_retry_undoes_the_step_and_the_saga_has_rolled_back(
    desk: Shop, ledger: Ledger, strike: Path
) -> None:
    strike.unlink()
    given = retry(desk, *HERE)
    assert given.status == 0
    assert given.json == {
        "saga_id": "t-1",
        "saga_name": "trip",
        "status": "rolled_back",
        "error": "RuntimeError: fog",
        "stuck": [],
    }
    assert ledger() == ["book", "cancel"]
    assert listed(desk) == []


def test_retry_that_fails_again_is_status_1_and_it_is_still_stuck(
    desk: Shop, ledger: Ledger
) -> None:
    given = retry(desk, *HERE)
    assert (given.status, given.json["status"], given.json["stuck"]) == (1, "failed", ["book"])
    assert ledger() == ["book"]
    assert [found["step"] for found in listed(desk)] == ["book"]


def test_where_nobody_serves_the_saga_retry_without_code_is_status_1(desk: Shop) -> None:
    given = retry(desk, "--timeout", "0.1")
    assert (given.status, given.stdout) == (1, "")
    assert "no engine answered within 0.1 s: is one running" in given.error


def test_what_is_not_stuck_is_status_4_and_names_what_is(desk: Shop) -> None:
    given = retry(desk, *HERE, step="fly")
    assert (given.status, given.stdout) == (4, "")
    assert "has no stuck compensation of step 'fly'; those stuck: 'book'" in given.error
    assert retry(desk, *HERE, saga_id="nobody").status == 4


def test_reason_and_step_are_required(desk: Shop) -> None:
    for command in ("retry", "skip"):
        assert desk.run("compensations", command, "t-1", "--step", "book").status == 2
        assert desk.run("compensations", command, "t-1", "--reason", "why").status == 2


# --- skip -----------------------------------------------------------------------------------------


def test_skip_lets_the_effect_stand_and_who_and_why_are_in_the_history(
    desk: Shop, ledger: Ledger
) -> None:
    given = skip(desk, "--actor", "olga", *HERE)
    assert (given.status, given.json["status"], given.json["stuck"]) == (0, "failed", [])
    assert ledger() == ["book"]
    assert listed(desk) == []
    changes = desk.run("replay", "list-changes", "t-1").json
    assert "StepSkipped" in [change["type"] for change in changes]
    assert skip(desk, *HERE).status == 4  # it is stuck no more


def test_sagas_that_wait_come_in_pages_that_go_on_behind_each_other(
    desk: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagaz_es_cli.listed.PAGE", 1)  # read of the store at a time
    monkeypatch.setattr("sagaz_es_cli.compensations.PAGE", 1)
    for number in range(2, 5):
        trip(desk, f"t-{number}")
    given, seen = desk.run("saga", "list", "--waiting", "--limit", "2"), list[str]()
    while given.json:
        seen += [row["saga_id"] for row in given.json]
        given = desk.run("saga", "list", "--waiting", "--limit", "2", "--after", seen[-1])
    assert seen == ["t-4", "t-3", "t-2", "t-1"]
    assert [row["saga_id"] for row in listed(desk)] == seen
