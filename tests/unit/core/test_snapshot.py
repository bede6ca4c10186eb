"""When snapshots are due: each strategy over the events of whole sagas."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sagaz_es.core import events as e
from sagaz_es.core.fold import fold
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.snapshot import (
    DEFAULT_POLICY,
    OFF,
    SnapshotPolicy,
    SnapshotStrategy,
    due,
    dump_policy,
    parse_policy,
    snapshot_id,
    state_hash,
)
from sagaz_es.core.state import SagaState

SECOND = 1_000_000
ORDER = Graph(
    [
        StepNode("reserve", compensable=True),
        StepNode("charge", ("reserve",), compensable=True),
        StepNode("ship", ("charge",), compensable=True),
    ]
)
BEGUN = e.SagaStarted(ORDER.fingerprint, ORDER.text, '{"sku":"A1"}')
RESERVED = (e.StepStarted("reserve"), e.StepCompleted("reserve", keys_set='{"reservation":1}'))
CHARGED = (e.StepStarted("charge"), e.StepCompleted("charge", keys_set='{"payment":2}'))
SHIPPED = (e.StepStarted("ship"), e.StepCompleted("ship", keys_set='{"parcel":3}'))
COMPLETED = (BEGUN, *RESERVED, *CHARGED, *SHIPPED, e.SagaCompleted())
CHARGE_FAILED = (
    BEGUN,
    *RESERVED,
    e.StepStarted("charge"),
    e.StepFailed("charge", error_type="Declined", retry_at=5),
    e.StepStarted("charge", 2),
    e.StepFailed("charge", 2, error_type="Declined"),
    e.CompensationStarted('["reserve"]'),
    e.StepCompensationStarted("reserve"),
    e.StepCompensationFailed("reserve", retry_at=6),
    e.StepCompensationStarted("reserve", 2),
    e.StepCompensated("reserve", 2),
    e.SagaRolledBack("Declined", "", "charge"),
)


def taken(
    strategy: SnapshotStrategy,
    facts: Sequence[e.Fact],
    *,
    at: Sequence[int] = (),
    every_events: int = 0,
    every_us: int = 0,
) -> list[tuple[SagaState, str, int]]:
    """The states kept over a saga's events, each with the step and index it is kept for."""
    policy = SnapshotPolicy(strategy, every_events=every_events, every_us=every_us)
    state = SagaState()
    kept: list[tuple[SagaState, str, int]] = []
    for number, fact in enumerate(facts, 1):
        when = at[number - 1] if at else number
        event = e.Event("order-17", "order", b"w" * 16, 0, number, when, fact)
        after = fold(state, event)
        assert after is not state, f"{fact} was not accepted"
        kept += [(kept_of, d.step, d.step_index) for kept_of, d in due(policy, state, event, after)]
        state = after
    return kept


def points(kept: list[tuple[SagaState, str, int]]) -> list[tuple[str, int, list[str]]]:
    return [(step, index, state.completed_steps) for state, step, index in kept]


def test_before_each_step_keeps_the_state_that_each_step_found() -> None:
    kept = taken(SnapshotStrategy.BEFORE_EACH_STEP, COMPLETED)
    assert points(kept) == [
        ("reserve", 0, []),
        ("charge", 1, ["reserve"]),
        ("ship", 2, ["reserve", "charge"]),
    ]
    assert [state.context for state, _, _ in kept] == [
        {"sku": '"A1"'},
        {"sku": '"A1"', "reservation": "1"},
        {"sku": '"A1"', "reservation": "1", "payment": "2"},
    ]
    assert [state.sequence for state, _, _ in kept] == [1, 3, 5]


def test_a_retry_of_a_step_or_compensation_makes_no_second_snapshot() -> None:
    kept = taken(SnapshotStrategy.BEFORE_EACH_STEP, CHARGE_FAILED)
    assert [step for _, step, _ in kept] == ["reserve", "charge", "reserve"]


def test_capture_goes_on_while_the_saga_compensates() -> None:
    for strategy in (SnapshotStrategy.BEFORE_EACH_STEP, SnapshotStrategy.AFTER_EACH_STEP):
        kept = taken(strategy, CHARGE_FAILED)
        assert (kept[-1][0].status, kept[-1][1]) == ("compensating", "reserve")


def test_after_each_step_keeps_what_each_step_left() -> None:
    kept = taken(SnapshotStrategy.AFTER_EACH_STEP, COMPLETED)
    assert points(kept) == [
        ("reserve", 0, ["reserve"]),
        ("charge", 1, ["reserve", "charge"]),
        ("ship", 2, ["reserve", "charge", "ship"]),
    ]


def test_on_completion_keeps_one_of_a_completed_saga() -> None:
    ((state, step, index),) = taken(SnapshotStrategy.ON_COMPLETION, COMPLETED)
    assert (state.status, step, index) == ("completed", "", 3)
    assert state.context["parcel"] == "3"


def test_on_completion_keeps_none_of_a_saga_that_went_back() -> None:
    assert taken(SnapshotStrategy.ON_COMPLETION, CHARGE_FAILED) == []


def test_on_failure_keeps_one_before_the_first_compensation() -> None:
    kept = taken(SnapshotStrategy.ON_FAILURE, CHARGE_FAILED)
    assert points(kept) == [("charge", 1, ["reserve"])]
    assert kept[0][0].step("charge").status == "failed"


def test_on_failure_keeps_none_of_a_completed_or_a_cancelled_saga() -> None:
    cancelled = (
        BEGUN,
        *RESERVED,
        e.CompensationStarted('["reserve"]', goal="cancelled"),
        e.StepCompensationStarted("reserve"),
        e.StepCompensated("reserve"),
        e.SagaCancelled(),
    )
    assert taken(SnapshotStrategy.ON_FAILURE, COMPLETED) == []
    assert taken(SnapshotStrategy.ON_FAILURE, cancelled) == []


def test_on_failure_keeps_one_when_a_stuck_compensation_is_tried_again() -> None:
    again = (
        *CHARGE_FAILED[:8],
        e.StepCompensationFailed("reserve", error_type="Down"),
        e.SagaFailed("Declined", "", "charge", '["reserve"]'),
        e.CompensationStarted('["reserve"]'),
        e.StepCompensationStarted("reserve", 2),
        e.StepCompensated("reserve", 2),
        e.SagaRolledBack(),
    )
    assert len(taken(SnapshotStrategy.ON_FAILURE, again)) == 1


def test_on_failure_keeps_one_of_a_recorded_saga_that_says_only_how_it_ended() -> None:
    ended = (BEGUN, *RESERVED, e.SagaFailed("Declined", "no money", "charge"))
    assert points(taken(SnapshotStrategy.ON_FAILURE, ended)) == [("charge", 1, ["reserve"])]


def test_every_n_events_keeps_one_at_each_multiple() -> None:
    facts = (BEGUN, *(e.SignalReceived("tick") for _ in range(34)))
    kept = taken(SnapshotStrategy.EVERY_N_EVENTS, facts, every_events=10)
    assert [state.sequence for state, _, _ in kept] == [10, 20, 30]


def test_every_interval_keeps_the_first_event_in_each() -> None:
    facts = (BEGUN, *(e.SignalReceived("tick") for _ in range(3)))
    at = [second * SECOND for second in (1000, 1050, 1070, 1140)]
    kept = taken(SnapshotStrategy.EVERY_INTERVAL, facts, at=at, every_us=60 * SECOND)
    assert [state.updated_at // SECOND for state, _, _ in kept] == [1070, 1140]


@pytest.mark.parametrize("strategy", [SnapshotStrategy.MANUAL, SnapshotStrategy.OFF])
def test_manual_and_off_keep_nothing_by_themselves(strategy: SnapshotStrategy) -> None:
    assert taken(strategy, COMPLETED) == []
    assert taken(strategy, CHARGE_FAILED) == []


def test_a_branch_keeps_none_for_what_it_reuses_or_undoes_first() -> None:
    branch = e.SagaStarted(
        ORDER.fingerprint,
        ORDER.text,
        '{"sku":"A1"}',
        replay_id="r-1",
        point="charge",
        plan='[["reserve","reuse",""],["charge","undo_first",""],["ship","redo",""]]',
        standing='[{"step":"reserve","owner":"a","keys_set":"{\\"reservation\\":1}"},'
        '{"step":"charge","owner":"a"}]',
    )
    undone = (e.StepCompensationStarted("charge"), e.StepCompensated("charge"))
    facts = (branch, *undone, *CHARGED, *SHIPPED, e.SagaCompleted())
    kept = taken(SnapshotStrategy.BEFORE_EACH_STEP, facts)
    assert points(kept) == [("charge", 1, ["reserve"]), ("ship", 2, ["reserve", "charge"])]


def test_parallel_steps_are_kept_at_sequences_of_their_own() -> None:
    fork = Graph([StepNode("a"), StepNode("b"), StepNode("c", ("a", "b"))])
    facts = (
        e.SagaStarted(fork.fingerprint, fork.text),
        e.StepStarted("a"),
        e.StepStarted("b"),
        e.StepCompleted("b"),
        e.StepCompleted("a"),
        e.StepStarted("c"),
    )
    kept = taken(SnapshotStrategy.BEFORE_EACH_STEP, facts)
    assert [(step, state.sequence) for state, step, _ in kept] == [("a", 1), ("b", 2), ("c", 5)]


def test_the_policy_comes_back_from_its_text() -> None:
    policy = SnapshotPolicy(
        SnapshotStrategy.EVERY_INTERVAL,
        every_us=60 * SECOND,
        retention_days=7,
        max_snapshots=3,
        compression="zstd",
        encryption_key_id="k1",
    )
    assert parse_policy(dump_policy(policy)) == policy
    assert parse_policy(dump_policy(OFF)) is OFF


def test_no_policy_and_one_of_a_newer_version_are_the_default() -> None:
    assert parse_policy("") is DEFAULT_POLICY
    assert parse_policy('{"strategy":"each_full_moon"}') is DEFAULT_POLICY


def test_retention_is_counted_from_the_event() -> None:
    policy = SnapshotPolicy(SnapshotStrategy.MANUAL, retention_days=365)
    assert policy.retention_until(5) == 5 + 365 * 86_400 * SECOND
    assert SnapshotPolicy(SnapshotStrategy.MANUAL).retention_until(5) == 0


def test_ids_and_hashes_differ_by_saga_and_sequence() -> None:
    assert snapshot_id("1/a", 1) != snapshot_id("a", 11)
    assert snapshot_id("a", 1) == snapshot_id("a", 1)
    assert state_hash("a", 1, 1, b"{}") != state_hash("a", 2, 1, b"{}")
    assert state_hash("a", 1, 1, b"{}") != state_hash("a", 1, 2, b"{}")
    assert state_hash("a", 1, 1, b"b/{}") != state_hash("a/b", 1, 1, b"{}")
