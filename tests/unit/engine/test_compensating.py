"""Going back: who is undone, in which order, with what; and compensations that fail."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagaz_es import Saga, SagaStatus, action, compensate
from sagaz_es.core import events as e
from sagaz_es.errors import DefinitionError
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import (
    Declined,
    Ledger,
    LedgerSaga,
    OrderSaga,
    SetClock,
    engine_on,
    facts,
    story,
)

THREE_TRIES = [Declined(f"try {n}") for n in range(3)]


@pytest.mark.parametrize(
    ("fails", "completed", "undone"),
    [
        ("reserve", 0, []),
        ("charge", 1, ["undo reserve"]),
        ("ship", 2, ["undo charge", "undo reserve"]),
    ],
)
async def test_what_completed_is_undone_in_reverse_and_the_error_is_the_steps_own(
    fails: str, completed: int, undone: list[str]
) -> None:
    ledger = Ledger()
    error = Declined(f"{fails} was declined")
    ledger.fails(fails, error)
    async with engine_on(None, ledger=ledger) as engine:
        result = await engine.run(OrderSaga)
    assert (result.status, result.completed_steps) == (SagaStatus.ROLLED_BACK, completed)
    assert result.error is error
    assert [call for call in ledger.order if call.startswith("undo")] == undone
    assert ledger.standing == []


async def test_a_compensation_reads_the_context_and_its_steps_result_also_in_another_process() -> (
    None
):
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("ship", Declined())
    gate = ledger.gate("undo charge")
    first = engine_on(log, ledger=ledger)
    await first.open()
    await first.start(OrderSaga, {"sku": "A1"}, saga_id="o-1")
    await gate.entered()
    await first.close()  # in the middle of a compensation
    ledger.gates.clear()
    async with engine_on(log, ledger=ledger) as second:
        result = await (await second.handle("o-1")).result(30)
    assert (result.status, ledger.standing) == (SagaStatus.ROLLED_BACK, [])
    assert {call.result["charge"] for call in ledger.of("undo charge")} == {"charge-1"}
    assert [call.attempt for call in ledger.of("undo charge")] == [1, 2]
    assert {call.key for call in ledger.of("undo charge")} == {"o-1/charge/compensation"}
    assert len(ledger.of("undo reserve")) == 1
    told = await story(log, "o-1")
    assert (told.count("StepCompensated charge"), told.count("StepCompensated reserve")) == (1, 1)


@pytest.mark.parametrize("returned", [object(), "x" * 3_000_000], ids=["object", "too much"])
async def test_a_compensation_whose_result_cannot_be_kept_is_done_all_the_same(
    returned: Any, caplog: pytest.LogCaptureFixture
) -> None:
    log, refunds = MemoryEventLog(1), []

    async def charge(ctx: Any) -> None: ...

    async def refund(ctx: Any) -> Any:
        refunds.append(ctx.attempt)
        return returned

    async def ship(ctx: Any) -> None:
        raise Declined

    saga = Saga("sale").add_step("charge", charge, refund)
    saga.add_step("ship", ship, max_retries=0)
    async with engine_on(log, saga, clock=SetClock(jumps=True)) as engine:
        result = await engine.run(saga, saga_id="o-1")
    assert (refunds, result.status) == ([1], SagaStatus.ROLLED_BACK)
    assert e.StepCompensated("charge", 1) in await facts(log, "o-1")
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    (line,) = [each for each in told if "compensation of step 'charge'" in each]
    assert "o-1" in line and "sale" in line and type(returned).__name__ in line


async def test_a_compensation_that_keeps_failing_is_tried_three_times_and_the_others_go_on() -> (
    None
):
    ledger, log, clock = Ledger(), MemoryEventLog(1), SetClock(jumps=True)
    ledger.fails("ship", Declined())
    ledger.fails("undo charge", *THREE_TRIES)
    async with engine_on(log, ledger=ledger, clock=clock) as engine:
        result = await engine.run(OrderSaga, saga_id="o-1")
        assert str(await engine.status("o-1")) == str(result.status) == "failed"
    assert [call.attempt for call in ledger.of("undo charge")] == [1, 2, 3]
    assert len(ledger.of("undo reserve")) == 1, "the other one was still attempted"
    assert ledger.standing == ["charge"]
    assert "try 2" in str(result.compensation_errors[0])
    assert result.steps["charge"] == "compensation_failed"
    events = [record.entry for record in await log.read_saga("o-1")]
    waits = [
        event.fact.retry_at - event.occurred_at
        for event in events
        if isinstance(event, e.Event) and isinstance(event.fact, e.StepCompensationFailed)
    ]
    assert 0 < waits[0] < waits[1], "with growing waits"


async def test_a_compensation_that_is_too_slow_has_failed() -> None:
    ledger = Ledger()

    class Slow(LedgerSaga):
        @action("a", max_retries=0)
        async def a(self, ctx: Any) -> Any:
            return await self.do(ctx)

        @compensate("a", timeout_seconds=0.05, max_retries=0)
        async def undo_a(self, result: Any, ctx: Any) -> Any:
            await asyncio.sleep(3600)

        @action("b", max_retries=0)
        async def b(self, ctx: Any) -> Any:
            return await self.do(ctx)

    ledger.fails("b", Declined())
    async with engine_on(None, Slow, ledger=ledger) as engine:
        result = await asyncio.wait_for(engine.run(Slow), 30)
    assert result.status is SagaStatus.FAILED
    assert result.steps["a"] == "compensation_failed"
    assert "a" in str(result.compensation_errors[0])


async def test_what_still_stands_can_be_retried_or_let_be_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("ship", Declined())
    ledger.fails("undo charge", *THREE_TRIES)
    ledger.fails("undo reserve", *THREE_TRIES)
    async with engine_on(log, ledger=ledger) as engine:
        result = await engine.run(OrderSaga, saga_id="o-1")
        assert (result.status, ledger.standing) == (SagaStatus.FAILED, ["reserve", "charge"])
    told = "waits for a person: the compensation of step"
    assert caplog.text.count(told) == 1
    async with engine_on(log, ledger=ledger) as engine:
        result = await engine.retry_compensation("o-1", "charge", reason="the bank is back")
        assert (result.status, ledger.standing) == (SagaStatus.FAILED, ["reserve"])
        assert caplog.text.count(told) == 2
        await engine.skip_compensation("o-1", "reserve", reason="released by hand")
        assert caplog.text.count(told) == 2
        assert ledger.standing == ["reserve"], "a skip calls nothing"
        assert ledger.of("undo charge")[-1].result == {"charge": "charge-1"}
    skipped = [fact for fact in await facts(log, "o-1") if isinstance(fact, e.StepSkipped)]
    assert [(fact.step, fact.reason) for fact in skipped] == [("reserve", "released by hand")]


# --- definitions ----------------------------------------------------------------------------------


def test_steps_and_compensations_of_a_class_are_collected_by_step_name() -> None:
    graph = OrderSaga().definition().graph
    assert graph.order == ("reserve", "charge", "ship")
    assert graph.by_name["charge"].depends_on == ("reserve",)
    assert all(graph.by_name[step].compensable for step in graph.order)


def test_a_compensation_for_an_unknown_step_is_a_definition_error() -> None:
    with pytest.raises(DefinitionError, match="'nothing'"):

        class Wrong(Saga):
            saga_name = "wrong"

            @action("a")
            async def a(self, ctx: Any) -> None: ...

            @compensate("nothing")
            async def undo(self, ctx: Any) -> None: ...


def test_two_steps_of_one_name_are_a_definition_error() -> None:
    with pytest.raises(DefinitionError, match="'a'"):

        class Twice(Saga):
            saga_name = "twice"

            @action("a")
            async def first(self, ctx: Any) -> None: ...

            @action("a")
            async def second(self, ctx: Any) -> None: ...


def test_no_step_is_added_by_hand_to_a_decorated_saga_and_else_they_are_chained() -> None:
    async def do(ctx: Any) -> None: ...

    with pytest.raises(TypeError, match="decorated"):
        OrderSaga().add_step("more", do)
    chained = Saga("chained").add_step("a", do).add_step("b", do)
    assert chained.definition().graph.order == ("a", "b")


async def test_a_saga_can_end_behind_its_pivots_or_before_them() -> None:
    ledger = Ledger()

    async def undo(result: Any, ctx: Any) -> Any:
        return await LedgerSaga.undo(ctx, result)

    saga = Saga("pivoted")
    for name in ("reserve", "charge", "pack", "ship"):
        saga.add_step(name, LedgerSaga.do, undo, pivot=name == "charge", max_retries=0)

    async def run(**fails: BaseException) -> Any:
        ledger.calls.clear()
        ledger.stands.clear()
        for step, error in fails.items():
            ledger.fails(step, error)
        return await engine.run(saga)

    async with engine_on(None, saga, ledger=ledger) as engine:
        result = await run()
        assert (result.success, result.pivot_reached) == (True, True)
        assert ledger.order == ledger.standing == ["reserve", "charge", "pack", "ship"]

        result = await run(charge=Declined())
        assert (result.status, result.pivot_reached) == (SagaStatus.ROLLED_BACK, False)
        assert ledger.standing == []

        result = await run(ship=Declined())
        assert (result.status, result.pivot_reached) == (SagaStatus.PARTIALLY_COMMITTED, True)
        assert result.rollback_boundary == "charge"
        assert ledger.standing == ["reserve", "charge"]
        assert "undo pack" in ledger.order
        assert set(result.committed_step_names) == {"reserve", "charge"}


async def test_ancestors_of_every_completed_pivot_stand_and_unrelated_branches_are_undone() -> None:
    ledger = Ledger()

    async def undo(result: Any, ctx: Any) -> Any:
        return await LedgerSaga.undo(ctx, result)

    saga = Saga("pivots")
    needs = {
        "a": [],
        "b": ["a"],
        "p1": ["b"],
        "x": [],
        "p2": ["x"],
        "free": [],
        "bad": ["p1", "p2", "free"],
    }
    for name, depends_on in needs.items():
        saga.add_step(
            name,
            LedgerSaga.do,
            undo,
            depends_on=depends_on,
            pivot=name.startswith("p"),
            max_retries=0,
        )
    ledger.fails("bad", Declined())
    async with engine_on(None, saga, ledger=ledger) as engine:
        result = await engine.run(saga)
    assert result.status is SagaStatus.PARTIALLY_COMMITTED
    assert sorted(ledger.standing) == ["a", "b", "p1", "p2", "x"]
    assert [call for call in ledger.order if call.startswith("undo")] == ["undo free"]
