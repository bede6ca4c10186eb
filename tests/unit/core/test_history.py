"""What time travel says of the order saga, the one that went back."""

from __future__ import annotations

import pytest

from sagaz_es.core import events as e
from sagaz_es.core.fold import fold_all
from sagaz_es.core.history import (
    Change,
    Diff,
    Moment,
    Point,
    Reached,
    Step,
    changes,
    diff,
    reached,
    state_at,
)

WRITER = b"W" * 16
PAST: list[tuple[int, e.Fact]] = [
    (100, e.SagaStarted(context='{"sku":"A1","n":0}')),
    (100, e.StepStarted("reserve")),
    (110, e.StepCompleted("reserve", keys_set='{"r":{"id":7}}')),
    (105, e.StepStarted("charge")),  # a clock stepped back
    (106, e.StepFailed("charge", 1, "IOError", "busy", retry_at=120)),
    (120, e.StepStarted("charge", 2)),
    (120, e.StepFailed("charge", 2, "IOError", "gone")),
    (130, e.CompensationStarted('["reserve"]')),
    (130, e.StepCompensationStarted("reserve")),
    (140, e.StepCompensated("reserve")),
    (140, e.SagaRolledBack("IOError", "gone", "charge")),
]
EVENTS = [
    e.Event("order-17", "order", WRITER, 0, sequence, at, fact)
    for sequence, (at, fact) in enumerate(PAST, 1)
]


@pytest.mark.parametrize(
    ("point", "sequence"),
    [
        (0, 0),
        (1, 1),
        (11, 11),
        (99, 11),
        (Moment(99), 0),
        (Moment(100), 2),
        (Moment(104), 2),
        (Moment(109), 2),
        (Moment(110), 5),
        (Moment(119), 5),
        (Moment(120), 7),
        (Moment(10**12), 11),
        (Step("reserve"), 1),
        (Step("reserve", after=True), 3),
        (Step("charge"), 3),
        (Step("charge", after=True), 11),
        (Step("ship"), 11),
    ],
)
def test_points(point: Point, sequence: int) -> None:
    assert state_at(EVENTS, point) == fold_all(EVENTS[:sequence])


@pytest.mark.parametrize(
    ("at", "status", "completed"),
    [
        (110, "executing", ["reserve"]),
        (130, "compensating", []),
        (140, "rolled_back", []),
    ],
)
def test_a_saga_that_goes_back_shows_it(at: int, status: str, completed: list[str]) -> None:
    state = state_at(EVENTS, Moment(at))
    assert (state.status, state.completed_steps) == (status, completed)
    assert state_at(EVENTS, 10).step("reserve").status == "compensated"


def test_what_each_event_changed() -> None:
    told = list(changes(EVENTS))
    assert told[0] == Change(1, 100, "SagaStarted", "", "executing", {"sku": '"A1"', "n": "0"}, ())
    assert told[2] == Change(3, 110, "StepCompleted", "reserve", "executing", {"r": '{"id":7}'}, ())
    assert told[3].at == 110, "time never falls"
    assert told[6] == Change(7, 120, "StepFailed", "charge", "executing", {}, (), "IOError", "gone")
    assert [change.status for change in told[7:]] == ["compensating"] * 3 + ["rolled_back"]


def test_a_deleted_key_is_told_if_it_was_there() -> None:
    facts = [
        e.SagaStarted(context='{"a":1,"b":2}'),
        e.StepCompleted("x", keys_set='{"c":3,"d":4}', keys_deleted='["b","c","z"]'),
    ]
    events = [e.Event("s", "s", WRITER, 0, n, 0, fact) for n, fact in enumerate(facts, 1)]
    change = list(changes(events))[1]
    assert (change.set, change.deleted) == ({"d": "4"}, ("b",))


def test_a_branch_begins_with_all_that_it_inherits() -> None:
    start = e.SagaStarted(
        context='{"a":1}',
        replay_id="r",
        plan='[["x","reuse",""]]',
        overrides='{"c":3}',
        standing='[{"step":"x","owner":"o","keys_set":"{\\"b\\":2}"}]',
    )
    (change,) = changes([e.Event("s", "s", WRITER, 0, 1, 0, start)])
    assert change.set == {"a": "1", "b": "2", "c": "3"}


def test_a_difference_shows_before_and_after() -> None:
    a, b = state_at(EVENTS, 2), state_at(EVENTS, 10)
    assert diff(a, b) == Diff(
        sequences=(2, 10),
        statuses=("executing", "compensating"),
        set={"r": (None, '{"id":7}')},
        deleted={},
        steps={"reserve": ("executing", "compensated"), "charge": ("pending", "failed")},
    )
    assert diff(b, a).deleted == {"r": '{"id":7}'}


def test_the_steps_that_were_reached() -> None:
    assert reached(EVENTS) == [
        Reached("reserve", 0, "compensated", 100, 1),
        Reached("charge", 1, "failed", 110, 3),
    ]
    assert reached([]) == []


def test_a_recorded_start_that_comes_late_tells_what_it_added() -> None:
    facts = [e.StepCompleted("x", keys_set='{"a":1}'), e.SagaStarted(context='{"a":0,"b":2}')]
    events = [e.Event("s", "s", WRITER, -1, n, 0, fact) for n, fact in enumerate(facts, 1)]
    assert list(changes(events))[1].set == {"b": "2"}
