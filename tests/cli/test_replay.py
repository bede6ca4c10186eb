"""`sagaz-es replay plan`, `run` and `undo`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from sagaz_es import connect

from .conftest import APP, Shop
from .shop import OrderSaga

Ledger = Callable[[], list[str]]


def test_a_plan_has_a_verdict_and_a_reason_for_each_step(shop: Shop) -> None:
    shop.order("o-1", token="bad")
    given = shop.run("replay", "plan", "o-1", "--from-step", "charge")
    assert given.status == 0
    plan = given.json
    assert list(plan) == ["saga_id", "from_step", "digest", "blocked", "steps"]
    assert (plan["saga_id"], plan["from_step"], plan["blocked"]) == ("o-1", "charge", False)
    assert plan["steps"] == [
        {"step": "reserve", "verdict": "redo", "reason": "its effect was undone"},
        {"step": "charge", "verdict": "redo", "reason": "it failed (CardDeclined)"},
        {"step": "ship", "verdict": "redo", "reason": "it never ran"},
    ]


def test_a_plan_runs_nothing_and_writes_nothing(shop: Shop, ledger: Ledger) -> None:
    shop.order("o-1", token="bad")
    before = shop.run("replay", "list-changes", "o-1").json
    shop.run("replay", "plan", "o-1", "-s", "charge", "-o", "token=good", "--app", APP)
    assert shop.run("replay", "list-changes", "o-1").json == before
    assert ledger() == ["reserve", "release"]


def test_a_blocked_plan_is_shown_and_says_how_to_allow_it(shop: Shop) -> None:
    shop.order("o-1")
    plan = ("replay", "plan", "o-1", "--from-step", "ship")
    given = shop.run(*plan)
    assert (given.status, given.json["blocked"]) == (0, True)
    assert "--allow ship" in shop.run(*plan, "--format", "table").stdout
    allowed = shop.run(*plan, "--allow", "ship")
    assert allowed.json["blocked"] is False


def test_a_plan_of_a_saga_that_runs_is_shown(shop: Shop) -> None:
    async def begin() -> None:
        async with connect(shop.log, sagas=[OrderSaga]) as engine:
            handle = await engine.start(OrderSaga, {"token": "good"}, saga_id="o-1")
            assert handle.saga_id == "o-1"

    asyncio.run(begin())  # closing lets running steps finish: what is left depends on the moment
    assert shop.run("replay", "plan", "o-1", "-s", "charge").status == 0


@pytest.mark.parametrize(
    ("saga_id", "step", "why"),
    [
        ("nobody", "charge", "there is no such saga"),
        ("o-1", "nothing", "it has no such step; its steps: reserve, charge, ship"),
    ],
)
def test_an_unknown_saga_or_step_is_status_4(
    shop: Shop, ledger: Ledger, saga_id: str, step: str, why: str
) -> None:
    shop.order("o-1", token="bad")
    for command in (("plan",), ("run", "--app", APP), ("run", "--dry-run")):
        given = shop.run("replay", *command, saga_id, "--from-step", step)
        assert (given.status, given.stdout) == (4, "")
        assert f"saga {saga_id!r} cannot be replayed from step {step!r}: {why}" in given.error
    assert ledger() == ["reserve", "release"]


def test_a_malformed_override_is_wrong_usage(shop: Shop) -> None:
    given = shop.run("replay", "plan", "o-1", "-s", "charge", "-o", '{"token": }')
    assert (given.status, given.stdout) == (2, "")
    assert "column 11: expecting value; write a JSON object such as" in given.error


# --- run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ['{"token": "good"}', "token=good", 'token="good"'])
def test_a_replay_runs_as_a_branch(shop: Shop, ledger: Ledger, override: str) -> None:
    shop.order("o-1", token="bad")
    given = shop.run(
        "replay", "run", "o-1", "--from-step", "charge", "--override", override, "--app", APP
    )
    assert given.status == 0
    result = given.json
    assert list(result) == [
        "status",
        "replay_id",
        "original_saga_id",
        "new_saga_id",
        "plan",
        "error",
    ]
    assert (result["status"], result["original_saga_id"]) == ("success", "o-1")
    assert result["error"] is None
    assert [step["verdict"] for step in result["plan"]["steps"]] == ["redo", "redo", "redo"]
    assert ledger() == ["reserve", "release", "reserve", "charge", "ship"]

    branch = shop.run("saga", "show", result["new_saga_id"]).json
    assert (branch["status"], branch["context"]["token"]) == ("completed", "good")
    assert (branch["parent_saga_id"], branch["replay_id"]) == ("o-1", result["replay_id"])
    original = shop.run("saga", "show", "o-1").json
    assert (original["status"], original["context"]["token"]) == ("rolled_back", "bad")
    assert original["branch"] == result["new_saga_id"]


def test_a_branch_that_fails_is_status_1_with_the_steps_error(shop: Shop, ledger: Ledger) -> None:
    shop.order("o-1", token="bad")
    given = shop.run("replay", "run", "o-1", "-s", "charge", "-o", "token=worse", "--app", APP)
    assert given.status == 1
    assert (given.json["status"], given.json["error"]) == ("failed", "token 'worse' was declined")
    assert given.json["new_saga_id"]
    assert ledger() == ["reserve", "release", "reserve", "release"]


def test_a_forced_failure_calls_no_action(shop: Shop, ledger: Ledger) -> None:
    shop.order("o-1", token="bad")
    given = shop.run(
        "replay", "run", "o-1", "-s", "charge", "--force-failure", "-o", "token=good", "--app", APP
    )
    assert given.status == 1
    assert "made to fail by the replay" in given.json["error"]
    assert ledger() == ["reserve", "release", "reserve", "release"]


def test_a_dry_run_shows_the_plan_and_runs_nothing(shop: Shop, ledger: Ledger) -> None:
    shop.order("o-1", token="bad")
    given = shop.run("replay", "run", "o-1", "-s", "charge", "-o", "token=good", "-d", "--app", APP)
    assert (given.status, given.stderr) == (0, "")
    assert (given.json["status"], given.json["new_saga_id"]) == ("success", None)
    assert [step["verdict"] for step in given.json["plan"]["steps"]] == ["redo", "redo", "redo"]
    assert [saga["saga_id"] for saga in shop.run("saga", "list").json] == ["o-1"]
    assert ledger() == ["reserve", "release"]


def test_a_dry_run_does_without_code_and_says_what_that_means(shop: Shop) -> None:
    shop.order("o-1", token="bad")
    given = shop.run("replay", "run", "o-1", "-s", "charge", "--dry-run")
    assert (given.status, given.json["status"]) == (0, "success")
    assert given.error == "without --app it is not checked whether the code of order fits"


def test_a_run_without_code_is_wrong_usage(shop: Shop) -> None:
    given = shop.run("replay", "run", "o-1", "-s", "charge")
    assert given.status == 2
    assert "replay run runs the code of the saga: name it with --app" in given.error


def test_a_blocked_replay_is_refused(shop: Shop, ledger: Ledger) -> None:
    shop.order("o-1")
    run = ("replay", "run", "o-1", "--from-step", "ship", "--app", APP)
    given = shop.run(*run)
    assert (given.status, given.stdout) == (3, "")
    assert "blocked by step 'ship'" in given.error and "--allow ship" in given.error
    dry = shop.run(*run, "--dry-run")
    assert (dry.status, dry.json["plan"]["blocked"]) == (3, True)
    assert ledger() == ["reserve", "charge", "ship"]

    allowed = shop.run(*run, "--allow", "ship", "--reason", "the parcel was lost")
    assert (allowed.status, allowed.json["status"]) == (0, "success")
    assert ledger() == ["reserve", "charge", "ship", "ship"]


def test_changed_code_is_refused_with_the_difference(shop: Shop, ledger: Ledger) -> None:
    shop.order("o-1", token="bad")
    given = shop.run("replay", "run", "o-1", "-s", "charge", "--app", "tests.cli.changed_shop")
    assert (given.status, given.stdout) == (3, "")
    assert "step 'pack' is new" in given.error
    assert ledger() == ["reserve", "release"]


# --- undo -----------------------------------------------------------------------------------------


def test_an_undo_compensates_what_the_branch_did_and_once(shop: Shop, ledger: Ledger) -> None:
    app = ("--app", "tests.cli.shop:GiftSaga")
    shop.run("saga", "start", "gift", "--saga-id", "g-1", *app)
    replayed = shop.run("replay", "run", "g-1", "-s", "wrap", *app).json
    before = ["reserve", "wrap", "unwrap", "wrap"]
    assert ledger() == before
    for _ in range(2):  # by the replay's id; the second time there is nothing left to do
        given = shop.run("replay", "undo", replayed["replay_id"], "--reason", "no gift", *app)
        assert (given.status, given.json["status"], given.json["error"]) == (0, "success", None)
        assert given.json["new_saga_id"] == replayed["new_saga_id"]
        assert ledger() == [*before, "unwrap"]  # reserve was only reused: it stands
    by_branch = shop.run("replay", "undo", replayed["new_saga_id"], *app)
    assert (by_branch.status, ledger()) == (0, [*before, "unwrap"])


def test_an_undo_behind_a_pivot_is_refused(shop: Shop, ledger: Ledger) -> None:
    shop.order("o-1", token="bad")
    run = ("replay", "run", "o-1", "-s", "charge", "-o", "token=good", "--app", APP)
    replay_id = shop.run(*run).json["replay_id"]
    before = ledger()
    given = shop.run("replay", "undo", replay_id, "--app", APP)
    assert (given.status, given.stdout) == (3, "")
    assert "there is no way back behind its pivots: 'ship'" in given.error
    assert ledger() == before


def test_an_undo_that_does_not_succeed_is_status_1(shop: Shop) -> None:
    app = ("--app", "tests.cli.shop:GiftSaga")
    start = ("saga", "start", "gift", "--saga-id", "g-1", "--context", '{"torn": false}')
    shop.run(*start, *app)
    shop.run("replay", "run", "g-1", "-s", "wrap", *app)
    torn = shop.run("replay", "run", "g-1", "-s", "wrap", "-o", "torn=true", *app).json
    given = shop.run("replay", "undo", torn["replay_id"], *app)
    assert (given.status, given.json["status"]) == (1, "failed")
    assert "the paper is torn" in given.json["error"]


def test_an_undo_of_an_unknown_replay_is_status_4(shop: Shop) -> None:
    shop.order("o-1")
    for replay_id in ("nothing", "o-1"):
        given = shop.run("replay", "undo", replay_id, "--app", APP)
        assert (given.status, given.stdout) == (4, "")
        assert f"there is no replay {replay_id!r}" in given.error
