"""What a failing compensation means for the others, and compensations that a person sees to."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from sagaz_es import Engine, Saga, SagaStatus, action, compensate
from sagaz_es.core.decide import CompensationFailureStrategy as Strategy
from sagaz_es.errors import RequestRefusedError
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.sagas.definition import CompensationType


class Trip(Saga):
    """1 → 2, 3 → 4, which fails; the compensation of 2 fails, too."""

    saga_name = "trip"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls: list[str] = []

    @action("1", depends_on=[])
    async def one(self, ctx: Any) -> None: ...

    @compensate("1")
    async def undo_one(self, ctx: Any) -> None:
        self.calls.append("undo 1")

    @action("2", depends_on=["1"])
    async def two(self, ctx: Any) -> None: ...

    @compensate("2", max_retries=1, retry_delay_seconds=0)
    async def undo_two(self, ctx: Any) -> None:
        self.calls.append("undo 2")
        raise ValueError("cannot")

    @action("3", depends_on=[])
    async def three(self, ctx: Any) -> None: ...

    @compensate("3")
    async def undo_three(self, ctx: Any) -> None:
        self.calls.append("undo 3")

    @action("4", depends_on=["2", "3"], max_retries=0)
    async def four(self, ctx: Any) -> None:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("strategy", "calls", "stuck"),
    [
        (Strategy.RETRY_THEN_CONTINUE, ["undo 1", "undo 2", "undo 2", "undo 3"], ["2"]),
        (Strategy.CONTINUE_ON_ERROR, ["undo 1", "undo 2", "undo 3"], ["2"]),
        (Strategy.FAIL_FAST, ["undo 2", "undo 3"], ["1", "2"]),  # 2 and 3 began together
        ("skip_dependents", ["undo 2", "undo 3"], ["1", "2"]),
    ],
)
async def test_after_a_failure_the_strategy_says_what_else_is_tried(
    strategy: Any, calls: list[str], stuck: list[str]
) -> None:
    saga = Trip(compensation_failure_strategy=strategy)
    async with Engine(MemoryEventLog(), sagas=[saga]) as engine:
        result = await engine.run(saga)
    assert sorted(saga.calls) == calls
    assert result.status is SagaStatus.FAILED
    assert sorted(error.step for error in result.compensation_errors) == stuck


async def test_what_was_not_tried_can_be_retried_by_a_person() -> None:
    class Careful(Trip):
        compensation_failure_strategy = Strategy.SKIP_DEPENDENTS

    saga = Careful()
    async with Engine(MemoryEventLog(), sagas=[saga]) as engine:
        result = await engine.run(saga)
        assert "not tried" in str(result.compensation_errors[0])
        with pytest.raises(RequestRefusedError, match=r"retry the compensation of '2' first"):
            await engine.retry_compensation(result.saga_id, "1", reason="2 is forgotten")
        assert "undo 1" not in saga.calls
        await engine.skip_compensation(result.saga_id, "2", reason="refunded by phone")
        again = await engine.retry_compensation(result.saga_id, "1", reason="2 is settled")
    assert again.steps["1"] == "compensated"
    assert saga.calls.count("undo 1") == 1


class Paid(Saga):
    saga_name = "paid"
    calls: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    @action("pay")
    async def pay(self, ctx: Any) -> None: ...

    @compensate("pay", CompensationType.MANUAL)
    async def refund(self, ctx: Any) -> None:
        self.calls.append("refund")

    @action("ship", max_retries=0)
    async def ship(self, ctx: Any) -> None:
        raise ValueError("no")


async def test_a_manual_compensation_waits_for_a_person_and_is_called_when_retried() -> None:
    saga = Paid()
    async with Engine(MemoryEventLog(), sagas=[saga]) as engine:
        result = await engine.run(saga)
        assert (result.status, saga.calls) == (SagaStatus.FAILED, [])
        assert result.needs_intervention
        assert result.committed_step_names == ["pay"]
        assert "a person has to undo it" in str(result.compensation_errors[0])
        again = await engine.retry_compensation(result.saga_id, "pay", reason="approved")
    assert (again.status, saga.calls) == (SagaStatus.ROLLED_BACK, ["refund"])


def test_the_type_is_shown() -> None:
    step = Paid().get_step("pay")
    assert step is not None
    assert step.compensation_type == CompensationType.MANUAL


# --- what compensations return --------------------------------------------------------------------


class Refunds(Saga):
    """first → second → third, which fails; each undoing reads what those before it returned."""

    saga_name = "refunds"

    @action("first")
    async def first(self, ctx: Any) -> None: ...

    @compensate("first")
    async def undo_first(self, ctx: Any, compensation_results: dict[str, Any]) -> Any:
        return {"after": sorted(compensation_results), "sum": compensation_results["second"] + 1}

    @action("second")
    async def second(self, ctx: Any) -> str:
        return "kept"

    @compensate("second")
    async def undo_second(self, result: Any, ctx: Any) -> Any:
        assert result == "kept"
        return Decimal("9.90") + len(ctx.compensation_results)

    @action("silent")
    async def silent(self, ctx: Any) -> None: ...

    @compensate("silent")
    async def undo_silent(self, ctx: Any) -> None: ...

    @action("third", max_retries=0)
    async def third(self, ctx: Any) -> None:
        raise ValueError("no")


async def test_what_compensations_return_is_in_the_outcome_and_read_by_later_ones() -> None:
    log = MemoryEventLog(1)
    async with Engine(log, sagas=[Refunds]) as engine:
        result = await engine.run(Refunds, saga_id="r-1")
    assert result.status == "rolled_back"
    assert result.compensation_results == {
        "second": Decimal("9.90"),
        "first": {"after": ["second"], "sum": Decimal("10.90")},
    }
    async with Engine(log, sagas=[Refunds]) as other:  # another process reads the same
        again = await (await other.handle("r-1")).result()
    assert again.compensation_results == result.compensation_results


async def test_a_compensation_added_by_hand_takes_them_as_sagaz_passes_them() -> None:
    seen: list[Any] = []

    def fails(ctx: Any) -> None:
        raise ValueError("no")

    saga = Saga("by hand")
    saga.add_step(
        "a",
        lambda ctx: 1,
        lambda result, ctx, comp_results=None: seen.append((result, comp_results)),
    )
    saga.add_step("b", lambda ctx: 2, lambda ctx, compensation_results: "b is back")
    saga.add_step("c", fails, max_retries=0)
    async with Engine(MemoryEventLog(1)) as engine:
        result = await engine.run(saga)
    assert seen == [(1, {"b": "b is back"})]
    assert result.compensation_results == {"b": "b is back"}


async def test_a_saga_that_goes_forward_has_no_compensation_results() -> None:
    saga = Saga("forward").add_step("a", lambda ctx: dict(ctx.compensation_results))
    async with Engine(MemoryEventLog(1)) as engine:
        assert (await engine.run(saga)).compensation_results == {}
