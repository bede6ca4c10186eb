"""`sagaz-es saga …`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import yaml

from sagaz_es import Saga, action
from sagaz_es.connect import connect, open_log
from sagaz_es.core import events as e
from tests.helpers import NOON

from .conftest import APP, Project, Shop

Ledger = Callable[[], list[str]]


def test_start_runs_the_saga_and_shows_how_it_ended(shop: Shop, ledger: Ledger) -> None:
    given = shop.run(
        "saga", "start", "order", "--saga-id", "o-1", "--context", '{"token": "good"}', "--app", APP
    )
    assert given.status == 0
    assert given.json == {
        "saga_id": "o-1",
        "saga_name": "order",
        "status": "completed",
        "context": {
            "token": "good",
            "reservation": {"shelf": 7, "boxes": ["a", "b"]},
            "price": {"$decimal": "9.90"},
            "payment": "p-1",
        },
        "error": None,
    }
    assert ledger() == ["reserve", "charge", "ship"]


def test_what_the_code_of_a_saga_prints_goes_to_stderr(shop: Shop) -> None:
    given = shop.run("saga", "start", "order", "--context", '{"token": "good"}', "--app", APP)
    assert given.json["status"] == "completed"  # stdout is JSON and nothing else
    assert "the shop did ship" in given.stderr


def test_a_saga_that_does_not_complete_is_status_1(shop: Shop, ledger: Ledger) -> None:
    given = shop.run("saga", "start", "order", "--context", '{"token": "bad"}', "--app", APP)
    assert given.status == 1
    assert given.json["status"] == "rolled_back"
    assert given.json["error"] == "CardDeclined: token 'bad' was declined"
    assert ledger() == ["reserve", "release"]


def test_a_saga_that_waits_for_a_person_says_for_what(shop: Shop, ledger: Ledger) -> None:
    given = shop.run("saga", "start", "parcel", "--saga-id", "p-1", "--app", "tests.cli.desk")
    assert (given.status, given.json["status"]) == (1, "forward_recovery")
    why = "how to go on from step 'ship' (saga recover)"
    assert given.stderr.splitlines() == [f"saga 'p-1' waits for a person: {why}"]


def test_the_same_id_twice_is_the_same_saga(shop: Shop, ledger: Ledger) -> None:
    start = ("saga", "start", "order", "--saga-id", "o-1", "--context", '{"token": "good"}')
    first = shop.run(*start, "--app", APP)
    again = shop.run(*start, "--app", APP)
    assert (again.status, again.json) == (0, first.json)
    assert "saga 'o-1' (order) was there: it is not started again" in again.stderr
    assert ledger() == ["reserve", "charge", "ship"]


def test_tags_in_the_context_give_types(shop: Shop) -> None:
    context = '{"token": "good", "sum": {"$decimal": "1.10"}}'
    shop.run("saga", "start", "order", "--saga-id", "o-1", "--context", context, "--app", APP)
    value = shop.run("replay", "time-travel", "o-1", "--at", "1", "--key", "sum")
    assert value.json == {"$decimal": "1.10"}


def test_the_context_can_come_from_stdin(shop: Shop) -> None:
    start = ("saga", "start", "order", "--context", "-", "--app", APP)
    given = shop.run(*start, input='{"token": "good"}')
    assert given.json["status"] == "completed"


def test_a_context_that_is_no_object_is_wrong_usage(shop: Shop, ledger: Ledger) -> None:
    given = shop.run("saga", "start", "order", "--context", "[1]", "--app", APP)
    assert (given.status, given.stdout) == (2, "")
    assert "'[1]' is an array, not a JSON object" in given.error
    assert ledger() == []


def test_sagas_that_wait_and_were_not_asked_for_are_no_error(project: Project) -> None:
    class Waiting(Saga):
        saga_name = "waiting"

        @action("wait", wait_for="approved")
        async def wait(self, ctx: Any) -> None: ...

    async def begin() -> None:
        async with connect(f"sqlite:///{project.path}/sagaz-es.db", sagas=[Waiting]) as engine:
            await engine.start(Waiting, saga_id="w-1")

    asyncio.run(begin())
    given = project.run("saga", "start", "order", "--context", '{"token": "good"}', "--app", "shop")
    assert (given.status, given.json["status"]) == (0, "completed")
    assert "Error" not in given.stderr


def test_start_without_code_is_wrong_usage(shop: Shop) -> None:
    given = shop.run("saga", "start", "order")
    assert given.status == 2
    assert "name it with --app module:Class, or in SAGAZ_ES_APP" in given.error


def test_start_of_a_name_that_the_code_does_not_have_is_status_4(shop: Shop) -> None:
    given = shop.run("saga", "start", "orders", "--app", APP)
    assert given.status == 4
    assert "no saga class is registered under the name 'orders'; registered: 'order'" in given.error


def test_a_damaged_decimal_is_wrong_usage_and_readable(shop: Shop) -> None:
    price = '{"price": {"$decimal": "abc"}}'
    given = shop.run("saga", "start", "order", "--context", price, "--app", APP)
    assert given.status == 2
    assert "'abc' is no decimal number, such as 9.90" in given.error


# --- list -----------------------------------------------------------------------------------------


def test_list_has_every_saga_newest_first(shop: Shop) -> None:
    shop.order("o-1")
    shop.order("o-2", token="bad")
    given = shop.run("saga", "list")
    assert given.status == 0
    assert given.json == [
        {
            "saga_id": "o-2",
            "saga_name": "order",
            "status": "rolled_back",
            "started_at": given.json[0]["started_at"],
            "updated_at": given.json[0]["updated_at"],
            "error": "CardDeclined: token 'bad' was declined",
            "paused": False,
            "waits_for_person": None,
        },
        {
            "saga_id": "o-1",
            "saga_name": "order",
            "status": "completed",
            "started_at": given.json[1]["started_at"],
            "updated_at": given.json[1]["updated_at"],
            "error": None,
            "paused": False,
            "waits_for_person": None,
        },
    ]
    assert given.json[1]["started_at"].startswith("2026-01-01T10:00:0")
    assert given.json[1]["started_at"].endswith("+00:00")


def test_list_chooses_by_status_and_name(shop: Shop) -> None:
    shop.order("o-1")
    shop.order("o-2", token="bad")

    def ids(*options: str) -> list[str]:
        return [saga["saga_id"] for saga in shop.run("saga", "list", *options).json]

    assert ids("--status", "completed") == ["o-1"]
    assert ids("--status", "rolled_back", "--name", "order") == ["o-2"]
    assert ids("--name", "other") == []
    assert ids("--limit", "1") == ["o-2"]


def test_list_says_that_there_are_more(shop: Shop) -> None:
    for number in range(3):
        shop.order(f"o-{number}")
    first = shop.run("saga", "list", "--limit", "2")
    assert "there are more than these 2; go on with --after o-1, or" in first.stderr
    rest = shop.run("saga", "list", "--limit", "2", "--after", "o-1")
    assert ([saga["saga_id"] for saga in rest.json], rest.stderr) == (["o-0"], "")
    assert shop.run("saga", "list", "--after", "nobody").status == 4
    assert shop.run("saga", "list", "--limit", "3").stderr == ""


def test_an_empty_list_is_no_error_and_says_so(shop: Shop) -> None:
    nothing = shop.run("saga", "list")
    assert (nothing.status, nothing.json, nothing.error) == (0, [], "there are no sagas yet")
    shop.order("o-1")
    chosen = shop.run("saga", "list", "--status", "failed", "--format", "table")
    assert (chosen.status, chosen.stdout, chosen.stderr) == (0, "no saga fits\n", "")


def test_list_is_right_while_the_store_is_behind(shop: Shop) -> None:
    shop.order("o-1")
    # A store that knows nothing of the log yet, as after a kill before the projector's commit.
    given = shop.run("saga", "list", "--store", "memory://")
    assert [saga["saga_id"] for saga in given.json] == ["o-1"]


@pytest.mark.parametrize(
    "command",
    [
        ("saga", "list"),
        ("compensations", "list"),
        ("replay", "list-changes", "o-1"),
        ("projector", "verify"),
    ],
)
def test_a_limit_that_no_store_can_count_is_wrong_usage(
    shop: Shop, command: tuple[str, ...]
) -> None:
    given = shop.run(*command, "--limit", "9" * 20)
    assert given.status == 2
    assert "--limit" in given.error


def test_an_unknown_status_is_wrong_usage(shop: Shop) -> None:
    given = shop.run("saga", "list", "--status", "done")
    assert given.status == 2
    assert "'done' is not one of 'pending', 'executing'" in given.error


# --- show -----------------------------------------------------------------------------------------


def test_show_has_the_state_of_now_with_steps(shop: Shop) -> None:
    shop.order("o-1", token="bad")
    given = shop.run("saga", "show", "o-1")
    assert given.status == 0
    record = given.json
    assert (record["saga_id"], record["saga_name"], record["status"]) == (
        "o-1",
        "order",
        "rolled_back",
    )
    assert record["sequence"] == 9
    assert record["context"]["price"] == {"$decimal": "9.90"}
    assert record["completed_steps"] == []
    assert record["source"]["events_folded"] == 9
    assert record["steps"] == [
        {"step": "reserve", "status": "compensated", "attempts": 1, "error": None},
        {
            "step": "charge",
            "status": "failed",
            "attempts": 1,
            "error": "CardDeclined: token 'bad' was declined",
        },
        {"step": "ship", "status": "pending", "attempts": 0, "error": None},
    ]


def test_show_in_yaml_is_the_same(shop: Shop) -> None:
    shop.order("o-1", price=Decimal("1.0"))
    told = yaml.safe_load(shop.run("saga", "show", "o-1", "--format", "yaml").stdout)
    assert told == shop.run("saga", "show", "o-1").json


def test_show_of_an_unknown_saga_is_status_4(shop: Shop) -> None:
    given = shop.run("saga", "show", "nobody")
    assert (given.status, given.stdout) == (4, "")
    assert given.stderr.startswith("Error: there is no saga 'nobody' in memory://")


# --- cancel ---------------------------------------------------------------------------------------


def test_an_ended_saga_is_not_cancelled(shop: Shop) -> None:
    shop.order("o-1")
    given = shop.run("saga", "cancel", "o-1", "--reason", "too late")
    assert (given.status, given.stdout) == (3, "")
    assert given.error == "Error: saga 'o-1' is completed: it cannot be cancelled"


def test_cancelling_an_unknown_saga_is_status_4(shop: Shop) -> None:
    assert shop.run("saga", "cancel", "nobody", "--reason", "x").status == 4


def test_cancelling_needs_a_reason(shop: Shop) -> None:
    given = shop.run("saga", "cancel", "o-1")
    assert (given.status, given.error) == (2, "Error: Missing option '--reason'.")


def test_a_store_of_another_log_is_told_also_by_commands_that_look(project: Project) -> None:
    start = ("saga", "start", "order", "--app", "shop", "--context", '{"token": "good"}')
    store = ("--store", "sqlite:///shared.db")
    for log in ("one", "two"):
        assert project.run(*start, "--log", f"sqlite:///{log}.db").status == 0
    assert project.run("projector", "rebuild", "--log", "sqlite:///one.db", *store).status == 0
    assert len(project.run("saga", "list", "--log", "sqlite:///one.db", *store).json) == 1
    for command in (("saga", "list"), ("saga", "show", "x"), ("projector", "status")):
        given = project.run(*command, "--log", "sqlite:///two.db", *store)
        assert (given.status, given.stdout) == (1, ""), command
        assert "belongs to" in given.error


# --- starts that wait ---------------------------------------------------------------------------


def asked_to_start(shop: Shop, *ids: str) -> None:
    async def work() -> None:
        log = open_log(shop.log)
        await log.open()
        for number, saga_id in enumerate(ids):
            request = e.StartRequested(
                f"r-{saga_id}", saga_id, NOON + number, saga_name="order", context='{"n":7}'
            )
            await log.append(log.partition_of(saga_id), [request])
        await log.close()

    asyncio.run(work())


def test_a_start_that_waits_is_listed_as_pending(shop: Shop) -> None:
    shop.order("o-1")
    asked_to_start(shop, "o-2", "o-3")
    given = shop.run("saga", "list", "--status", "pending")
    assert [(row["saga_id"], row["saga_name"], row["status"]) for row in given.json] == [
        ("o-3", "order", "pending"),
        ("o-2", "order", "pending"),
    ]
    assert len(shop.run("saga", "list").json) == 3


def test_a_start_that_waits_is_shown_with_what_it_was_asked_with(shop: Shop) -> None:
    asked_to_start(shop, "o-2")
    given = shop.run("saga", "show", "o-2")
    assert given.status == 0
    assert (given.json["status"], given.json["context"]) == ("pending", {"n": 7})
    assert given.json["steps"] == []
    assert "its start waits in the log" in given.stderr
    assert shop.run("saga", "show", "nobody").status != 0
