"""The plan of going back as a value: dependents first, also over steps without a compensation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagaz_es import (
    CircularDependencyError,
    SagaCompensationContext,
    SagaDependencyError,
    SagaExecutionGraph,
)


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


# --- carried out by hand --------------------------------------------------------------------------


def plan(calls: list[str], *failing: str) -> SagaExecutionGraph:
    """1 ← 2, 3; 3 ← 4; all of them ran."""

    def undoing(name: str) -> Any:
        async def undo(ctx: Any, compensation_results: Any = None) -> Any:
            calls.append(name)
            if name in failing:
                raise ValueError(f"{name} cannot")
            return {"after": sorted(compensation_results), "order": ctx["order"]}

        return undo

    graph = SagaExecutionGraph()
    for name, needs in {"1": [], "2": ["1"], "3": ["1"], "4": ["3"]}.items():
        graph.register_compensation(name, undoing(name), needs, max_retries=1)
        graph.mark_step_executed(name)
    return graph


async def test_compensations_are_carried_out_dependents_first_with_results_handed_on() -> None:
    calls: list[str] = []
    result = await plan(calls).execute_compensations({"order": 7})
    assert result.success and sorted(result.executed) == ["1", "2", "3", "4"]
    assert calls[-1] == "1" and calls.index("4") < calls.index("3")
    assert result.results["1"] == {"after": ["2", "3", "4"], "order": 7}
    assert "4" in result.results["3"]["after"]


async def test_where_nothing_ran_the_plan_is_empty_and_succeeds() -> None:
    graph = plan([])
    graph.reset_execution()
    result = await graph.execute_compensations({})
    assert result.success and not (result.executed or result.failed or result.skipped)


@pytest.mark.parametrize(
    ("strategy", "calls", "skipped"),
    [
        ("fail_fast", ["4"], ["1", "2", "3"]),
        ("continue_on_error", ["1", "2", "3", "4"], []),
        ("retry_then_continue", ["1", "2", "3", "4", "4"], []),
        ("skip_dependents", ["2", "4"], ["1", "3"]),
    ],
)
async def test_after_a_failure_the_strategy_says_what_else_is_tried(
    strategy: str, calls: list[str], skipped: list[str]
) -> None:
    made: list[str] = []
    result = await plan(made, "4").execute_compensations({"order": 7}, strategy)
    assert sorted(made) == calls
    assert (result.success, result.failed, sorted(result.skipped)) == (False, ["4"], skipped)
    assert str(result.errors["4"]) == "4 cannot"


async def test_a_plan_that_cannot_be_and_one_that_is_too_slow_are_results() -> None:
    graph = SagaExecutionGraph()
    graph.register_compensation("a", undo, depends_on=["b"])
    graph.mark_step_executed("a")
    result = await graph.execute_compensations({})
    assert not result.success and "'b', which does not exist" in str(result.errors["_graph"])

    async def slow(ctx: Any) -> None:
        await asyncio.sleep(60)

    late = SagaExecutionGraph()
    late.register_compensation("a", slow, timeout_seconds=0.01)
    late.mark_step_executed("a")
    assert isinstance((await late.execute_compensations({})).errors["a"], TimeoutError)


def test_a_compensation_context_is_a_plain_record_and_back() -> None:
    context = SagaCompensationContext("s", "a", {"order": 7})
    context.set_result("b", 1)
    assert SagaCompensationContext.from_dict(context.to_dict()) == context
    assert context.get_result("b") == 1 and context.get_result("c", 2) == 2
