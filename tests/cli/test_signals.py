"""What a person tells a saga: signal, pause, resume, recover, resolve."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Saga, connect
from sagaz_es_cli import asking

from .conftest import Output, Project, Shop
from .desk import Approval, Parcel, Payment

Ledger = Callable[[], list[str]]
HERE = ("--app", "tests.cli.desk")
ALONE = ("--timeout", "0.1")


@pytest.fixture
def desk(shop: Shop, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A log that nobody serves."""
    monkeypatch.setattr(asking, "PATIENCE_SECONDS", 0.05)
    return shop


def begun(shop: Shop, saga: type[Saga], until: str) -> None:
    """Saga s-1, carried on until one of its steps has that status; then its engine stops."""

    async def work() -> None:
        async with connect(shop.log, sagas=[saga]) as engine, asyncio.timeout(10):
            await engine.start(saga, saga_id="s-1")
            while True:
                steps = (await engine.current("s-1")).steps.values()
                if until in {step.status for step in steps}:
                    break
                await asyncio.sleep(0.01)

    asyncio.run(work())


def told(shop: Shop, what: str, *options: str) -> Output:
    return shop.run("saga", what, "s-1", *options)


# --- signal ---------------------------------------------------------------------------------------


def test_with_its_code_a_signal_carries_the_saga_on(desk: Shop, ledger: Ledger) -> None:
    begun(desk, Approval, "waiting")
    given = told(desk, "signal", "approved", "--payload", '{"by": "olga"}', *HERE)
    assert given.status == 0
    assert given.json == {
        "saga_id": "s-1",
        "saga_name": "approval",
        "status": "completed",
        "error": None,
    }
    assert "no engine has answered yet: this process joins and carries the saga on" in given.stderr
    assert ledger() == ["ask", "act", "close"]
    assert desk.run("saga", "show", "s-1").json["context"] == {"by": "olga"}


def test_a_signal_that_nothing_waits_for_is_kept_and_the_saga_waits_on(
    desk: Shop, ledger: Ledger
) -> None:
    begun(desk, Approval, "waiting")
    given = told(desk, "signal", "other", *HERE)
    assert (given.status, given.json["status"]) == (0, "executing")
    assert ledger() == ["ask"]


def test_where_nobody_serves_the_saga_it_is_status_1_and_the_request_stays(
    desk: Shop, ledger: Ledger
) -> None:
    begun(desk, Approval, "waiting")
    given = told(desk, "signal", "approved", "--payload", '{"by": "olga"}', *ALONE)
    assert (given.status, given.stdout) == (1, "")
    assert "no engine answered within 0.1 s: is one running that serves partition" in given.error
    assert given.error.endswith("The request stays in the log")
    told(desk, "signal", "other", *HERE)  # whoever serves the saga next answers the first, too
    assert ledger() == ["ask", "act", "close"]


def test_a_payload_that_is_no_json_is_wrong_usage(desk: Shop) -> None:
    given = told(desk, "signal", "approved", "--payload", "{by: olga}")
    assert given.status == 2
    assert "'{by: olga}' is not usable: column 2" in given.error


@pytest.mark.parametrize(
    "words",
    [
        ("signal", "nobody", "approved"),
        ("pause", "nobody", "--reason", "x"),
        ("resume", "nobody"),
        ("recover", "nobody", "--step", "ship", "--action", "retry", "--reason", "x"),
        ("resolve", "nobody", "--step", "pay", "--happened"),
    ],
)
def test_an_unknown_saga_is_status_4(desk: Shop, words: tuple[str, ...]) -> None:
    given = desk.run("saga", *words)
    assert (given.status, given.stdout) == (4, "")
    assert "there is no saga 'nobody'" in given.error


def test_an_ended_saga_hears_nothing(desk: Shop) -> None:
    desk.order("s-1")
    given = told(desk, "signal", "approved")
    assert (given.status, given.error) == (
        3,
        "Error: saga 's-1' is completed: it cannot be signalled",
    )
    assert told(desk, "pause", "--reason", "x").status == 3


# --- pause, resume --------------------------------------------------------------------------------


def test_a_paused_saga_starts_nothing_until_it_is_resumed(desk: Shop, ledger: Ledger) -> None:
    begun(desk, Approval, "waiting")
    assert told(desk, "pause", "--reason", "strike", *HERE).status == 0
    assert told(desk, "signal", "approved", "--payload", '{"by": "olga"}', *HERE).status == 0
    assert ledger() == ["ask"]
    resumed = told(desk, "resume", *HERE)
    assert (resumed.status, resumed.json["status"]) == (0, "completed")
    assert ledger() == ["ask", "act", "close"]


# --- recover --------------------------------------------------------------------------------------


def test_a_person_decides_how_it_goes_forward(desk: Shop, ledger: Ledger) -> None:
    begun(desk, Parcel, "failed")
    decide = ("--step", "ship", "--action", "retry_with_alternate", "--reason", "strike")
    given = told(desk, "recover", *decide, "-o", "carrier=courier", "--actor", "olga", *HERE)
    assert (given.status, given.json["status"]) == (0, "completed")
    assert ledger() == ["charge", "ship"]


def test_a_cancel_behind_the_pivot_says_how_a_saga_that_waits_goes_on(desk: Shop) -> None:
    begun(desk, Parcel, "failed")
    given = told(desk, "cancel", "--reason", "x", *HERE)
    assert given.status == 3
    assert "decide how it goes on: `sagaz-es saga recover s-1`, or see" in given.error
    assert "let it finish" not in given.error


def test_a_step_that_nothing_has_to_be_decided_about_is_status_4(desk: Shop) -> None:
    begun(desk, Parcel, "failed")
    decide = ("--action", "retry", "--reason", "x")
    given = told(desk, "recover", "--step", "charge", *decide, *HERE)
    assert (given.status, given.stdout) == (4, "")
    assert "does not wait about step 'charge'; it waits about: 'ship'" in given.error


def test_an_unknown_action_is_wrong_usage(desk: Shop) -> None:
    decide = ("--step", "ship", "--action", "explode", "--reason", "x")
    given = told(desk, "recover", *decide)
    assert given.status == 2
    assert "'explode' is not one of 'retry', 'retry_with_alternate', 'skip'" in given.error


# --- resolve --------------------------------------------------------------------------------------


def test_what_happened_is_taken_for_the_steps_result(desk: Shop, ledger: Ledger) -> None:
    begun(desk, Payment, "outcome_unknown")
    result = ("--happened", "--result", '{"payment": "p-1"}')
    given = told(desk, "resolve", "--step", "pay", *result, *HERE)
    assert (given.status, given.json["status"]) == (0, "completed")
    assert ledger() == ["pay", "thank"]
    assert desk.run("saga", "show", "s-1").json["context"] == {"payment": "p-1"}


def test_what_did_not_happen_has_failed(desk: Shop, ledger: Ledger) -> None:
    begun(desk, Payment, "outcome_unknown")
    given = told(desk, "resolve", "--step", "pay", "--not-happened", *HERE)
    assert (given.status, given.json["status"]) == (0, "rolled_back")
    assert ledger() == ["pay"]


EITHER = "say either --happened or --not-happened"


def test_whether_it_happened_has_to_be_said(desk: Shop) -> None:
    for neither_or_both in ((), ("--happened", "--not-happened")):
        given = told(desk, "resolve", "--step", "pay", *neither_or_both)
        assert (given.status, given.error) == (2, f"Error: {EITHER}")
    given = told(desk, "resolve", "--step", "pay", "--not-happened", "--result", "1")
    assert (given.status, given.error) == (2, "Error: --result is of a step that happened")


# --- beside a worker ------------------------------------------------------------------------------


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it did not come to that"


@pytest.fixture(params=["sqlite", "kafka"])
def served(request: pytest.FixtureRequest, project: Project, tmp_path: Path) -> Project:
    """A project with desk.py, on one SQLite file or on Kafka."""
    source = Path(__file__).with_name("desk.py")
    (project.path / "desk.py").write_text(source.read_text())
    env = {"DESK_STRIKE": str(tmp_path / "strike")}
    if request.param == "kafka":
        bootstrap = request.getfixturevalue("kafka_bootstrap")
        namespace = request.getfixturevalue("kafka_namespace")
        env["SAGAZ_ES_LOG"] = f"kafka://{bootstrap}/{namespace}"
    return replace(project, env=dict(project.env) | env)


def test_requests_without_code_are_answered_by_a_worker(served: Project, tmp_path: Path) -> None:
    def waits() -> bool:
        given = served.run("saga", "show", "a-1")
        return given.status == 0 and "waiting" in {s["status"] for s in given.json["steps"]}

    def ask(*words: str) -> Any:
        given = served.run(*words)
        assert given.status == 0, given.stderr
        return given.json

    (tmp_path / "strike").touch()
    start = ("saga", "start", "trip", "--saga-id", "t-1", "--app", "desk")
    assert served.run(*start).json["status"] == "failed"
    with served.start("saga", "start", "approval", "--saga-id", "a-1", "--app", "desk") as first:
        until(waits)
        first.send_signal(signal.SIGKILL)
    with served.start("engine", "run", "--app", "desk") as worker:
        (stuck,) = ask("compensations", "list")
        assert (stuck["saga_id"], stuck["step"]) == ("t-1", "book")
        (tmp_path / "strike").unlink()
        retry = ("compensations", "retry", "t-1", "--step", "book", "--reason", "they are back")
        assert ask(*retry)["status"] == "rolled_back"
        # The worker may not have noticed yet that whoever ran the saga is dead.
        assert ask("saga", "pause", "a-1", "--reason", "strike")["status"] == "executing"
        ask("saga", "signal", "a-1", "approved", "--payload", '{"by": "olga"}')
        ask("saga", "resume", "a-1")
        until(lambda: ask("saga", "show", "a-1")["status"] == "completed")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert (tmp_path / "ledger").read_text().split() == ["book", "ask", "cancel", "act", "close"]


# --- who did what, and why ------------------------------------------------------------------------


def changed(shop: Shop, type: str) -> dict[str, Any]:
    """The saga's last change of this type: who, why, what."""
    found: list[dict[str, Any]] = shop.run("replay", "list-changes", "s-1").json
    last = [change for change in found if change["type"] == type][-1]
    return {key: last[key] for key in ("step", "actor", "reason", "action")}


BY = ("--actor", "olga", "--reason", "OPS-7")


def test_the_history_shows_who_paused_resumed_and_cancelled_a_saga_and_why(
    desk: Shop, ledger: Ledger
) -> None:
    begun(desk, Approval, "waiting")
    asked = {"step": None, "actor": "olga", "reason": "OPS-7", "action": None}
    for what, type in (
        ("pause", "SagaPaused"),
        ("resume", "SagaResumed"),
        ("cancel", "CompensationStarted"),
    ):
        assert told(desk, what, *BY, *HERE).status == 0
        assert changed(desk, type) == asked
    table = desk.run("replay", "list-changes", "s-1", "--format", "text").stdout
    assert re.search(r"SagaPaused .*by olga: OPS-7$", table, re.MULTILINE)


def test_the_history_shows_what_was_decided_about_a_step(desk: Shop, ledger: Ledger) -> None:
    begun(desk, Parcel, "failed")
    how = ("--step", "ship", "--action", "retry_with_alternate", "-o", "carrier=courier")
    assert told(desk, "recover", *how, *BY, *HERE).status == 0
    assert changed(desk, "RecoveryDecided") == {
        "step": "ship",
        "actor": "olga",
        "reason": "OPS-7",
        "action": "retry_with_alternate",
    }
    table = desk.run("replay", "list-changes", "s-1", "--format", "text").stdout
    assert "retry_with_alternate by olga: OPS-7; carrier = courier" in table


def test_the_history_shows_what_was_said_of_an_unknown_outcome(desk: Shop, ledger: Ledger) -> None:
    begun(desk, Payment, "outcome_unknown")
    assert told(desk, "resolve", "--step", "pay", "--happened", *BY, *HERE).status == 0
    assert changed(desk, "OutcomeResolved") == {
        "step": "pay",
        "actor": "olga",
        "reason": "OPS-7",
        "action": "happened",
    }


# --- what waits is found --------------------------------------------------------------------------


def test_a_paused_saga_says_so_and_who_paused_it_and_why(desk: Shop, ledger: Ledger) -> None:
    begun(desk, Approval, "waiting")
    (row,) = desk.run("saga", "list").json
    assert (row["paused"], row["waits_for_person"]) == (False, None)
    assert told(desk, "pause", *BY, *HERE).status == 0
    shown = desk.run("saga", "show", "s-1")
    assert (shown.json["status"], shown.json["paused"]) == ("executing", True)
    assert {key: shown.json["pause"][key] for key in ("actor", "reason")} == {
        "actor": "olga",
        "reason": "OPS-7",
    }
    table = desk.run("saga", "show", "s-1", "--format", "text").stdout
    assert re.search(r"^paused: since .* by olga: OPS-7$", table, re.MULTILINE)
    since = shown.json["pause"]["since"]
    assert told(desk, "pause", "--reason", "the auditors", "--actor", "karl", *HERE).status == 0
    assert desk.run("saga", "show", "s-1").json["pause"] == {
        "actor": "karl",
        "reason": "the auditors",
        "since": since,
    }
    (row,) = desk.run("saga", "list").json
    assert (row["status"], row["paused"]) == ("executing", True)
    assert "paused" in desk.run("saga", "list", "--format", "table").stdout
    assert [row["saga_id"] for row in desk.run("saga", "list", "--waiting").json] == ["s-1"]
    assert told(desk, "resume", *HERE).status == 0
    shown = desk.run("saga", "show", "s-1")
    assert (shown.json["paused"], shown.json["pause"]) == (False, None)
    assert desk.run("saga", "list", "--waiting").json == []


@pytest.mark.parametrize(
    ("saga", "until", "why"),
    [
        (Payment, "outcome_unknown", "the outcome of step 'pay' is unknown (saga resolve)"),
        (Parcel, "failed", "how to go on from step 'ship' (saga recover)"),
    ],
)
def test_a_saga_that_waits_for_a_person_is_found(
    desk: Shop, ledger: Ledger, saga: type[Saga], until: str, why: str
) -> None:
    begun(desk, saga, until)
    desk.order("o-1")
    (row,) = desk.run("saga", "list", "--waiting").json
    assert (row["saga_id"], row["waits_for_person"]) == ("s-1", why)
    assert desk.run("saga", "show", "s-1").json["waits_for_person"] == why
    assert desk.run("saga", "list", "--waiting", "--status", "failed").json == []
