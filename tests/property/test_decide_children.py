"""What follows for a saga with children, whatever has happened to it: laws over lines of facts."""

from __future__ import annotations

from hypothesis import event, given
from hypothesis import strategies as st

from sagaz_es.core import events as e
from sagaz_es.core.decide import (
    CompensationFailureStrategy,
    Decision,
    ParallelFailureStrategy,
    Rules,
    decide,
    go_back,
    locked_by_pivots,
    take_back,
)
from sagaz_es.core.fold import fold_all
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.state import SagaState, dump_state, load_state
from sagaz_es.core.texts import names
from sagaz_es.engine.partitions.accepted import ENDINGS
from sagaz_es.errors import PivotPassed


def child_step(name: str) -> StepNode:
    return StepNode(name, ("a",), compensable=True, on_unknown=True, child="payment")


GRAPH = Graph(
    [
        StepNode("a", compensable=True),
        child_step("pay"),
        child_step("post"),
        StepNode("seal", ("pay",), pivot=True, compensable=True),
        StepNode("c", ("seal", "post"), compensable=True),
    ]
)
STEPS = st.sampled_from(GRAPH.order)
CHILDREN = st.sampled_from(["pay", "post"])
ATTEMPTS = st.integers(1, 3)
FACTS = st.one_of(
    st.builds(e.StepStarted, STEPS, ATTEMPTS),
    st.builds(e.StepCompleted, STEPS, ATTEMPTS),
    st.builds(
        e.StepFailed, STEPS, ATTEMPTS, retry_at=st.sampled_from([0, 0, 99]), unknown=st.booleans()
    ),
    st.builds(e.ChildStarted, CHILDREN, st.sampled_from(["s/pay", "s/pay~2"]), attempt=ATTEMPTS),
    st.builds(e.ChildEnded, CHILDREN),
    st.builds(e.StepOutcomeUnknown, STEPS, ATTEMPTS),
    st.builds(e.CompensationStarted, st.sampled_from(['["pay","a"]', '["c","post","pay"]', "[]"])),
    st.builds(e.StepCompensationStarted, STEPS, ATTEMPTS),
    st.builds(e.StepCompensated, STEPS, ATTEMPTS),
    st.builds(e.StepCompensationFailed, STEPS, ATTEMPTS, retry_at=st.sampled_from([0, 99])),
    st.builds(e.RecoveryDecided, STEPS, st.sampled_from(["retry", "skip", "manual_intervention"])),
    st.builds(e.SagaPaused),
    st.builds(e.SagaResumed),
    st.builds(e.SagaReleased),
)
START = e.SagaStarted(graph=GRAPH.text, definition=GRAPH.fingerprint)
STATES = st.lists(FACTS, max_size=14).map(
    lambda facts: fold_all(
        e.Event("s", "order", b"A" * 16, 0, n, n, fact) for n, fact in enumerate([START, *facts], 1)
    )
)
RULES = st.builds(
    Rules,
    failure_strategy=st.sampled_from(ParallelFailureStrategy),
    compensation_failure=st.sampled_from(CompensationFailureStrategy),
)


def under_way(state: SagaState) -> set[str]:
    """Children that run, or go back, as far as the parent knows."""
    return {
        name
        for name, step in state.steps.items()
        if GRAPH.by_name[name].child
        and (step.status == "compensating" or (step.status == "waiting" and step.child_start))
    }


def said(decision: Decision) -> set[str]:
    return {type(fact).__name__ for fact in decision.facts}


@given(STATES, RULES, st.sampled_from([0, 50, 10_000_000]))
def test_a_saga_never_ends_while_a_child_of_it_is_under_way(
    state: SagaState, rules: Rules, now: int
) -> None:
    decision = decide(state, GRAPH, now, rules)
    busy = under_way(state)
    event(f"{state.status}, {len(busy)} under way: {sorted(said(decision))}")
    if state.status == "compensating":
        busy &= set(state.undo)  # facts by the book: all that is under way is to be undone
    if busy:
        assert not any(type(fact) in ENDINGS for fact in decision.facts)


@given(STATES, RULES, st.sampled_from([0, 50, 10_000_000]))
def test_a_child_under_way_is_always_asked_about_or_decided_on(
    state: SagaState, rules: Rules, now: int
) -> None:
    """Else nobody would hear of its end."""
    if state.paused and state.status == "executing":
        return
    decision = decide(state, GRAPH, now, rules)
    asked = {attempt.step for attempt in decision.run if attempt.ask}
    decided = {getattr(fact, "step", "") for fact in decision.facts}
    going_back = any(isinstance(fact, e.CompensationStarted) for fact in decision.facts)
    if decision.stop_running or going_back or state.status not in ("executing", "compensating"):
        return
    for name in under_way(state):
        if state.status == "compensating" and (name not in state.undo or waits(state, name)):
            continue
        lost = "StepFailed" in said(decision)  # what ran before a take-over comes first
        assert name in asked | decided or lost or stale_first(state, name), decision


def waits(state: SagaState, name: str) -> bool:
    """For what depends on it, which is undone first."""
    later = GRAPH.dependents[name] & set(state.undo)
    settled = ("compensated", "compensation_failed")
    return any(state.step(other).status not in settled for other in later)


def stale_first(state: SagaState, name: str) -> bool:
    """A branch undoes what is stale before it goes forward; of the rest it asks then."""
    return any(step.status in ("stale", "compensating") for step in state.steps.values())


@given(STATES)
def test_whoever_goes_back_takes_running_children_along(state: SagaState) -> None:
    undone = names(go_back(state, GRAPH).steps)
    # A pivot that completes before what it depends on is in no log of an engine's.
    locked = locked_by_pivots(state, GRAPH)
    for name, step in state.steps.items():
        if step.status == "waiting" and step.child_start and name not in locked:
            assert name in undone
    assert undone == GRAPH.undo_order(undone)


@given(STATES)
def test_taking_back_undoes_all_that_can_be_or_says_which_pivot_forbids_it(
    state: SagaState,
) -> None:
    try:
        back = take_back(state, GRAPH, reason="", actor="", cause="")
    except PivotPassed as refused:
        assert state.step(refused.pivot).status == "completed"
        return
    undone = names(back.steps)
    assert undone == GRAPH.undo_order(undone) and len(set(undone)) == len(undone)
    for name, step in state.steps.items():
        if step.status in ("completed", "compensation_failed") and not step.undo_skipped:
            assert name in undone


@given(STATES)
def test_a_state_with_children_is_written_down_and_read_again(state: SagaState) -> None:
    assert load_state(dump_state(state)) == state
