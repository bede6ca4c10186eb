"""`sagaz-es replay time-travel` and `list-changes`."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from .conftest import Shop

STATE_KEYS = [
    "saga_id",
    "saga_name",
    "status",
    "sequence",
    "timestamp",
    "context",
    "completed_steps",
    "current_step",
    "source",
    "children",
]


def test_time_travel_has_the_whole_state(shop: Shop) -> None:
    shop.order("o-1")
    given = shop.run("replay", "time-travel", "o-1", "--at", "step:charge")
    assert given.status == 0
    state = given.json
    assert list(state) == STATE_KEYS
    assert state["timestamp"].endswith("+00:00")
    assert (state["source"]["snapshot_sequence"], state["source"]["events_folded"]) == (None, 3)
    assert {key: state[key] for key in STATE_KEYS if key not in ("timestamp", "source")} == {
        "saga_id": "o-1",
        "saga_name": "order",
        "status": "executing",
        "sequence": 3,
        "context": {
            "token": "good",
            "reservation": {"shelf": 7, "boxes": ["a", "b"]},
            "price": {"$decimal": "9.90"},
        },
        "completed_steps": ["reserve"],
        "current_step": None,
        "children": {},
    }


def test_a_point_is_a_sequence_a_step_or_a_time(shop: Shop) -> None:
    shop.order("o-1")
    changes = shop.run("replay", "list-changes", "o-1").json
    third = changes[2]["timestamp"]

    def sequence(at: str) -> Any:
        return shop.run("replay", "time-travel", "o-1", "--at", at).json["sequence"]

    assert sequence("3") == 3
    assert sequence("step:charge") == 3
    assert sequence("step:reserve:after") == sequence("after:reserve") == 3
    assert sequence("step:charge:after") == 5
    assert sequence(third) == 3
    # Without a zone it is UTC; with another zone the same moment.
    assert sequence(third.removesuffix("+00:00")) == 3
    assert sequence(third.replace("+00:00", "Z")) == 3
    assert sequence(third.replace("T10:", "T12:").replace("+00:00", "+02:00")) == 3
    assert sequence("2030-01-01") == 8


def test_yaml_holds_the_same_as_json(shop: Shop) -> None:
    shop.order("o-1", note="line one\nline two: [x]", nothing=None, flag=False, empty="")
    point = ("replay", "time-travel", "o-1", "--at", "8")
    assert (
        yaml.safe_load(shop.run(*point, "--format", "yaml").stdout)
        == shop.run(*point, "--format", "json").json
    )


def test_text_has_a_line_for_each_value(shop: Shop) -> None:
    shop.order("o-1", nothing=None)
    lines = shop.run("replay", "time-travel", "o-1", "--at", "3", "-f", "text").stdout.splitlines()
    assert "status: executing" in lines
    assert "context.price: 9.90" in lines
    assert "context.nothing: null" in lines
    assert 'context.reservation: {"shelf": 7, "boxes": ["a", "b"]}' in lines


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("token", "good"),
        ("reservation.boxes[1]", "b"),
        ("reservation.boxes", ["a", "b"]),
        ("price", {"$decimal": "9.90"}),
        ("zero", 0),
        ("no", False),
        ("empty", ""),
        ("null", None),
        ("a.b", "dotted"),
        ("['a.b']", "dotted"),
    ],
)
def test_a_key_gives_that_value_only(shop: Shop, key: str, value: Any) -> None:
    given: dict[str, Any] = {"zero": 0, "no": False, "empty": "", "null": None, "a.b": "dotted"}
    shop.order("o-1", **given)
    found = shop.run("replay", "time-travel", "o-1", "--at", "8", "--key", key)
    assert (found.status, found.json) == (0, value)


def test_a_value_for_people_has_no_tags_and_no_quotes(shop: Shop) -> None:
    shop.order("o-1")

    def value(key: str) -> str:
        point = ("replay", "time-travel", "o-1", "--at", "8", "--key", key)
        return shop.run(*point, "--format", "text").stdout

    assert (value("price"), value("token")) == ("9.90\n", "good\n")
    assert value("reservation") == '{"shelf": 7, "boxes": ["a", "b"]}\n'


def test_a_missing_key_is_told_apart_from_a_missing_saga(shop: Shop) -> None:
    shop.order("o-1")
    key = shop.run("replay", "time-travel", "o-1", "--at", "1", "--key", "payment")
    assert (key.status, key.stdout) == (4, "")
    assert "has no 'payment' at sequence 1; its keys: 'token'" in key.error
    saga = shop.run("replay", "time-travel", "nobody", "--at", "1", "--key", "payment")
    assert (saga.status, saga.stdout) == (4, "")
    assert "there is no saga 'nobody'" in saga.error


@pytest.mark.parametrize(
    ("at", "why"),
    [
        ("2020-01-01", "did not exist at 2020-01-01T00:00:00+00:00; it began at 2026-01-01T10:"),
        ("99", "has no sequence 99 yet; its last is "),
        ("0", "did not exist at sequence 0"),
        ("step:pack", "has no step 'pack'; its steps: 'reserve', 'charge', 'ship'"),
        ("step:ship", "'ship'"),
    ],
)
def test_no_state_there_is_status_4_and_says_why(shop: Shop, at: str, why: str) -> None:
    shop.order("o-1", token="bad")
    given = shop.run("replay", "time-travel", "o-1", "--at", at)
    assert (given.status, given.stdout) == (4, "")
    assert why in given.error


@pytest.mark.parametrize("at", ["yesterday", "2026-13-01", "step:", "-1", ""])
def test_a_malformed_point_is_named_with_an_example(shop: Shop, at: str) -> None:
    given = shop.run("replay", "time-travel", "o-1", "--at", at)
    assert (given.status, given.stdout) == (2, "")
    assert repr(at) in given.error
    assert "step:charge" in given.error


# --- changes --------------------------------------------------------------------------------------


def test_changes_are_oldest_first_with_step_status_and_time(shop: Shop) -> None:
    shop.order("o-1")
    given = shop.run("replay", "list-changes", "o-1")
    assert given.status == 0
    assert [list(change) for change in given.json] == [
        "sequence timestamp type step status changes error actor reason action".split()
    ] * 8
    assert [(c["sequence"], c["type"], c["step"], c["status"]) for c in given.json] == [
        (1, "SagaStarted", None, "executing"),
        (2, "StepStarted", "reserve", "executing"),
        (3, "StepCompleted", "reserve", "executing"),
        (4, "StepStarted", "charge", "executing"),
        (5, "StepCompleted", "charge", "executing"),
        (6, "StepStarted", "ship", "executing"),
        (7, "StepCompleted", "ship", "executing"),
        (8, "SagaCompleted", None, "completed"),
    ]
    assert given.json[4]["changes"] == {"set": {"payment": "p-1"}, "deleted": []}


def test_bounds_count_and_the_limit_gives_the_oldest(shop: Shop) -> None:
    shop.order("o-1")
    times = [change["timestamp"] for change in shop.run("replay", "list-changes", "o-1").json]

    def sequences(*options: str) -> list[int]:
        found = shop.run("replay", "list-changes", "o-1", *options).json
        return [change["sequence"] for change in found]

    assert sequences("--after", times[2], "--before", times[4]) == [3, 4, 5]
    assert sequences("--after", times[2], "--limit", "2") == [3, 4]
    assert sequences("-b", times[0].removesuffix("+00:00")) == [1]


def test_no_change_in_the_range_says_so_with_status_0(shop: Shop) -> None:
    shop.order("o-1")
    range_ = ("replay", "list-changes", "o-1", "--after", "2030-01-01")
    given = shop.run(*range_)
    sentence = "nothing happened to the saga in this range"
    assert (given.status, given.json, given.error) == (0, [], sentence)
    table = shop.run(*range_, "--format", "table")
    assert (table.status, table.stdout) == (0, f"{sentence}\n")


def test_changes_of_an_unknown_saga_are_status_4(shop: Shop) -> None:
    for options in ((), ("--after", "2030-01-01")):
        given = shop.run("replay", "list-changes", "nobody", *options)
        assert (given.status, given.stdout) == (4, "")


@pytest.mark.parametrize("option", ["--after", "--before"])
def test_a_malformed_time_is_named(shop: Shop, option: str) -> None:
    given = shop.run("replay", "list-changes", "o-1", option, "10 o'clock")
    assert (given.status, given.stdout) == (2, "")
    assert f"{option}'" in given.error
    assert '"10 o\'clock" is not a time; write it as 2026-07-01T10:00:00Z' in given.error
