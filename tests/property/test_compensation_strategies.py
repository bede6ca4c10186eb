"""Going back with failing compensations, by each strategy, over generated graphs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sagaz_es.core import events as e
from sagaz_es.core.decide import CompensationFailureStrategy as Strategy
from sagaz_es.core.decide import Rules, decide
from sagaz_es.core.fold import advance
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.state import SagaState

NAMES = ("a", "b", "c", "d", "e")


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    nodes = []
    for index, name in enumerate(NAMES):
        before = st.sets(st.sampled_from(NAMES[:index])) if index else st.just(set[str]())
        needs = tuple(sorted(draw(before)))
        nodes.append(StepNode(name, needs, compensable=draw(st.booleans()) or name == "a"))
    nodes.append(StepNode("last", NAMES))
    return Graph(nodes)


def undo(graph: Graph, failing: frozenset[str], rules: Rules) -> tuple[SagaState, list[str]]:
    """A saga whose last step fails, to its end; and the compensations that were called."""
    state, called = SagaState(), []

    def append(fact: e.Fact) -> None:
        event = e.Event("s", "saga", b"w" * 16, 0, state.sequence + 1, state.sequence, fact)
        advance(state, event)

    append(e.SagaStarted(graph=graph.text))
    for name in graph.order[:-1]:
        append(e.StepStarted(name))
        append(e.StepCompleted(name))
    append(e.StepStarted("last"))
    append(e.StepFailed("last", error_type="ValueError"))
    for _ in range(100):
        decision = decide(state, graph, now=0, rules=rules)
        for fact in decision.facts:
            append(fact)
        for attempt in decision.run:
            called.append(attempt.step)
            failed = attempt.step in failing
            append(
                e.StepCompensationFailed(attempt.step, attempt.attempt, "ValueError")
                if failed
                else e.StepCompensated(attempt.step, attempt.attempt)
            )
        if state.ended:
            return state, called
    raise AssertionError(f"it does not end: {state}")


CASES = given(graphs(), st.frozensets(st.sampled_from(NAMES)), st.sampled_from(Strategy))


@CASES
def test_it_ends_each_is_called_at_most_once_and_none_is_forgotten(
    graph: Graph, failing: frozenset[str], strategy: Strategy
) -> None:
    state, called = undo(graph, failing, Rules(compensation_failure=strategy))
    assert len(called) == len(set(called))
    compensable = {step.name for step in graph.steps if step.compensable}
    left = {n for n in compensable if state.step(n).status == "compensation_failed"}
    assert {n for n in compensable if state.step(n).status == "compensated"} == compensable - left
    assert state.status == ("failed" if failing & compensable else "rolled_back")


@CASES
def test_no_step_is_undone_before_what_depends_on_it(
    graph: Graph, failing: frozenset[str], strategy: Strategy
) -> None:
    _, called = undo(graph, failing, Rules(compensation_failure=strategy))
    for index, name in enumerate(called):
        assert graph.dependents[name].isdisjoint(called[index + 1 :])


@CASES
def test_what_is_tried_after_a_failure_is_what_the_strategy_says(
    graph: Graph, failing: frozenset[str], strategy: Strategy
) -> None:
    state, called = undo(graph, failing, Rules(compensation_failure=strategy))
    compensable = {step.name for step in graph.steps if step.compensable}
    untried = compensable - set(called)
    if strategy in (Strategy.CONTINUE_ON_ERROR, Strategy.RETRY_THEN_CONTINUE):
        assert not untried
    elif strategy is Strategy.SKIP_DEPENDENTS:
        failed = failing & set(called)
        assert untried == {n for n in compensable if graph.dependents[n] & failed}
    else:
        first = next((i for i, n in enumerate(called) if n in failing), len(called))
        wave = set(called[first + 1 :])  # begun side by side with it
        assert all(graph.dependents[n].isdisjoint(set(called[first:])) for n in wave)
    assert {state.step(n).error_type for n in untried} <= {"CompensationSkipped"}


@given(graphs(), st.frozensets(st.sampled_from(NAMES)))
def test_what_a_person_has_to_undo_is_never_called_by_itself(
    graph: Graph, manual: frozenset[str]
) -> None:
    state, called = undo(graph, frozenset(), Rules(manual=manual))
    compensable = {step.name for step in graph.steps if step.compensable}
    assert set(called) == compensable - manual
    assert state.status == ("failed" if compensable & manual else "rolled_back")
