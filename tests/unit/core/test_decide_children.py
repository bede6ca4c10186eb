"""What follows for a saga with a child: begun, waited for, taken back."""

from __future__ import annotations

import pytest

from sagaz_es.core import events as e
from sagaz_es.core.decide import (
    Attempt,
    CompensationFailureStrategy,
    ParallelFailureStrategy,
    Rules,
    decide,
    go_back,
    take_back,
)
from sagaz_es.core.fold import advance, fold_all
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.state import SagaState
from sagaz_es.errors import PivotPassed

PAY = StepNode("pay", compensable=True, on_unknown=True, child="payment")
GRAPH = Graph([PAY, StepNode("stock", compensable=True), StepNode("ship", ("pay", "stock"))])
START = e.SagaStarted(graph=GRAPH.text, definition=GRAPH.fingerprint)
BEGUN = (e.StepStarted("pay"), e.ChildStarted("pay", "s/pay", "payment", context='{"a":1}'))
STOCKED = (e.StepStarted("stock"), e.StepCompleted("stock"))
FAILED = (e.StepStarted("stock"), e.StepFailed("stock", 1, "Declined"))
BACK = e.CompensationStarted('["stock","pay"]')
ASK = Attempt("pay", 1, ask="child")
TAKE_BACK = Attempt("pay", 1, undo=True, ask="take_back")
FAST = Rules(failure_strategy=ParallelFailureStrategy.FAIL_FAST)
ALL = Rules(failure_strategy=ParallelFailureStrategy.WAIT_ALL)


def after(*facts: e.Fact) -> SagaState:
    events = [
        e.Event("s", "order", b"A" * 16, 0, n, 1000 + n, fact)
        for n, fact in enumerate((START, *facts), 1)
    ]
    return fold_all(events)


def test_a_waiting_child_is_asked_for_and_nothing_else_starts() -> None:
    decision = decide(after(*BEGUN, *STOCKED), GRAPH, 2000)
    assert (decision.facts, decision.run) == ((), (ASK,))


def test_fail_fast_goes_back_at_once_and_undoes_the_running_child() -> None:
    decision = decide(after(*BEGUN, *FAILED), GRAPH, 2000, FAST)
    assert isinstance(decision.facts[0], e.CompensationStarted)
    assert decision.facts[0].steps == '["pay"]'


def test_a_method_that_was_interrupted_before_it_named_a_child_leaves_nothing_to_undo() -> None:
    later = (
        e.SagaClaimed("take-over"),
        e.StepStarted("pay", 2),
        e.StepFailed("pay", 2, "Declined"),
    )
    state = after(e.StepStarted("pay"))
    for number, fact in enumerate(later, 3):
        advance(state, e.Event("s", "order", b"B" * 16, 1, number, 2000, fact))
    assert not state.step("pay").unknown
    assert go_back(state, GRAPH).steps == "[]"


def test_wait_all_asks_the_child_until_it_has_ended() -> None:
    decision = decide(after(*BEGUN, *FAILED), GRAPH, 2000, ALL)
    assert (decision.facts, decision.run, decision.wake_at) == ((), (ASK,), 0)


def test_the_grace_of_siblings_is_the_childs_too() -> None:
    state = after(*BEGUN, *FAILED)
    decision = decide(state, GRAPH, 2000)
    assert (decision.facts, decision.run, decision.wake_at) == ((), (ASK,), 5_001_005)
    assert isinstance(decide(state, GRAPH, 5_001_005).facts[0], e.CompensationStarted)


def test_taking_back_is_asked_for_once_it_is_begun_and_again_after_a_take_over() -> None:
    state = after(*BEGUN, *STOCKED, BACK)
    decision = decide(state, GRAPH, 2000)
    assert e.StepCompensationStarted("pay", 1) in decision.facts and TAKE_BACK in decision.run
    begun = (
        *BEGUN,
        *STOCKED,
        BACK,
        e.StepCompensationStarted("pay", 1),
        e.StepCompensated("stock"),
    )
    assert decide(after(*begun), GRAPH, 2000).run == (TAKE_BACK,)
    claimed = decide(after(*begun, e.SagaReleased()), GRAPH, 2000)
    assert (claimed.facts, claimed.run) == ((), (TAKE_BACK,))


def test_a_child_that_runs_is_not_given_up_when_another_compensation_fails() -> None:
    rules = Rules(compensation_failure=CompensationFailureStrategy.FAIL_FAST)
    failed = e.StepCompensationFailed("stock", 1, "Declined")
    state = after(*BEGUN, *STOCKED, BACK, e.StepCompensationStarted("stock", 1), failed)
    decision = decide(state, GRAPH, 2000, rules)
    assert (decision.facts, decision.run) == ((e.StepCompensationStarted("pay", 1),), (TAKE_BACK,))


def test_an_interrupted_child_step_has_begun_nothing() -> None:
    state = after(*FAILED, e.StepStarted("pay"))
    state.steps["pay"] = type(state.step("pay"))("executing", 1, interrupted=True)
    decision = decide(state, GRAPH, 2000, FAST)
    assert [fact.unknown for fact in decision.facts if isinstance(fact, e.StepFailed)] == [False]


@pytest.mark.parametrize(("unknown", "steps"), [(False, '["stock"]'), (True, '["stock","pay"]')])
def test_of_a_failed_child_only_what_may_stand_is_taken_back(unknown: bool, steps: str) -> None:
    failed = e.StepFailed("pay", 1, "ChildSagaFailed", unknown=unknown)
    state = after(*STOCKED, *BEGUN, failed)
    assert go_back(state, GRAPH).steps == steps


def test_an_ended_saga_that_is_taken_back_undoes_what_was_stuck_too() -> None:
    graph = Graph([StepNode("a", compensable=True), StepNode("b", ("a",), compensable=True)])
    start = e.SagaStarted(graph=graph.text, definition=graph.fingerprint)
    done = [e.StepCompleted("a"), e.StepCompleted("b")]
    stuck = [e.CompensationStarted('["b","a"]'), e.StepCompensationFailed("b", 1, "Declined")]
    rest = [e.StepCompensationFailed("a", 0, "CompensationSkipped"), e.SagaFailed()]
    events = [
        e.Event("c", "child", b"A" * 16, 0, n, n, fact)
        for n, fact in enumerate([start, *done, *stuck, *rest], 1)
    ]
    back = take_back(fold_all(events), graph, reason="why", actor="ann", cause="r1")
    assert back == e.CompensationStarted('["b","a"]', "rolled_back", "why", "ann", "r1")


def test_a_saga_behind_its_pivot_is_not_taken_back() -> None:
    graph = Graph([StepNode("a", pivot=True, compensable=True)])
    start = e.SagaStarted(graph=graph.text, definition=graph.fingerprint)
    facts = [start, e.StepCompleted("a"), e.SagaCompleted()]
    state = fold_all(
        [e.Event("c", "child", b"A" * 16, 0, n, n, fact) for n, fact in enumerate(facts, 1)]
    )
    with pytest.raises(PivotPassed):
        take_back(state, graph, reason="", actor="", cause="")
