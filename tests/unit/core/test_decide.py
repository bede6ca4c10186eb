"""What is undone when nobody knows whether an attempt had its effect."""

from __future__ import annotations

from sagaz_es.core import events as e
from sagaz_es.core.decide import Attempt, cancel, decide
from sagaz_es.core.fold import advance, fold_all
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.state import DEADLINE, SagaState

GRAPH = Graph(
    [
        StepNode("reserve", compensable=True, on_unknown=True),
        StepNode("pack", compensable=True),
        StepNode("ship", ("reserve", "pack")),
    ]
)
RUNNING = (e.StepStarted("reserve"), e.StepStarted("pack"))
PACKED = e.StepCompleted("pack")
CANCEL = e.CancelRequested("request-1", "s", 2000, "ann", "too late")
INTERRUPTED = e.StepFailed(
    "reserve", 1, "Interrupted", "its process stopped while it ran", unknown=True
)


def after(*facts: e.Fact, deadline_at: int = 0) -> SagaState:
    """The state after these; a claim changes the writer."""
    start = e.SagaStarted(GRAPH.fingerprint, GRAPH.text, deadline_at=deadline_at)
    writer, epoch, events = b"A" * 16, 0, []
    for number, fact in enumerate((start, *facts), 1):
        if isinstance(fact, e.SagaClaimed):
            writer, epoch = b"B" * 16, epoch + 1
        events.append(e.Event("s", "order", writer, epoch, number, 1000 + number, fact))
    return fold_all(events)


def carried_on(state: SagaState, *facts: e.Fact) -> SagaState:
    for fact in facts:
        number = state.sequence + 1
        event = e.Event("s", "order", state.writer, state.epoch, number, 1000 + number, fact)
        advance(state, event)
        state.sequence = number
    return state


def test_a_cancel_after_a_take_over_undoes_what_was_under_way() -> None:
    state = after(*RUNNING, PACKED, e.SagaClaimed())
    back = e.CompensationStarted(
        '["pack","reserve"]', "cancelled", "too late", "ann", cause="request-1"
    )
    assert cancel(state, GRAPH, CANCEL) == (INTERRUPTED, back)
    run = decide(carried_on(state, INTERRUPTED, back), GRAPH, 2000).run
    assert run == (Attempt("pack", 1, undo=True), Attempt("reserve", 1, undo=True))


def test_a_deadline_after_a_take_over_undoes_what_was_under_way() -> None:
    state = after(*RUNNING, PACKED, e.SagaClaimed(), deadline_at=1500)
    message = f"{INTERRUPTED.error_message}; {DEADLINE}"
    interrupted = e.StepFailed("reserve", 1, "Interrupted", message, unknown=True)
    assert decide(state, GRAPH, 2000).facts == (interrupted,)
    back = e.CompensationStarted('["pack","reserve"]', "rolled_back", DEADLINE)
    assert decide(carried_on(state, interrupted), GRAPH, 2000).facts == (back,)


def test_a_cancel_between_two_attempts_undoes_the_first_one_at_once() -> None:
    timed_out = e.StepFailed("reserve", 1, "TimeoutError", retry_at=10**9, unknown=True)
    state = after(*RUNNING, PACKED, timed_out)
    (back,) = cancel(state, GRAPH, CANCEL)
    assert isinstance(back, e.CompensationStarted)
    assert back.steps == '["pack","reserve"]'
    run = decide(carried_on(state, back), GRAPH, 2000).run
    assert run == (Attempt("pack", 1, undo=True), Attempt("reserve", 1, undo=True))


def test_an_attempt_that_failed_for_certain_before_the_cancel_is_not_undone() -> None:
    declined = e.StepFailed("reserve", 1, "Declined", retry_at=10**9)
    (back,) = cancel(after(*RUNNING, PACKED, declined), GRAPH, CANCEL)
    assert isinstance(back, e.CompensationStarted)
    assert back.steps == '["pack"]'
