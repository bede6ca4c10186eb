"""The plan of going back as a value: dependents first, also over steps without a compensation."""

from __future__ import annotations

from typing import Any

import pytest

from sagaz_es import CircularDependencyError, SagaDependencyError, SagaExecutionGraph


async def undo(ctx: Any) -> None: ...


def test_dependents_are_undone_first_and_side_by_side() -> None:
    graph = SagaExecutionGraph()
    graph.register_compensation("1", undo)
    graph.register_compensation("2", undo, depends_on=["1"])
    graph.register_compensation("3", undo, depends_on=["1"])
    for name in "123":
        graph.mark_step_executed(name)
    order = graph.get_compensation_order()
    assert [sorted(level) for level in order] == [["2", "3"], ["1"]]
    graph.unmark_step_executed("3")
    assert graph.get_compensation_order() == [["2"], ["1"]]


def test_a_step_without_a_compensation_still_orders_the_others() -> None:
    graph = SagaExecutionGraph()
    graph.register_compensation("a", undo)
    graph.register_compensation("b", depends_on=["a"])
    graph.register_compensation("c", undo, depends_on=["b"])
    for name in "abc":
        graph.mark_step_executed(name)
    assert graph.get_compensation_order() == [["c"], ["a"]]


def test_a_graph_that_cannot_be_is_refused() -> None:
    graph = SagaExecutionGraph()
    graph.register_compensation("a", undo, depends_on=["b"])
    with pytest.raises(SagaDependencyError):
        graph.validate()
    graph.register_compensation("b", undo, depends_on=["a"])
    with pytest.raises(CircularDependencyError):
        graph.validate()
