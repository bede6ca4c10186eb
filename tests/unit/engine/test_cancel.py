"""Cancelling a saga, and code that does not take a cancellation as it is meant."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagaz_es import EngineConfig, ParallelFailureStrategy, Saga, SagaStatus
from sagaz_es.core import events as e
from sagaz_es.errors import PivotPassed, SagaEnded, SagaNotFound
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import (
    Declined,
    FaultyLog,
    Gate,
    Ledger,
    OrderSaga,
    SetClock,
    engine_on,
    facts,
    story,
    until,
)


def saga_of(ledger: Ledger, *names: str, **options: dict[str, Any]) -> Saga:
    """Roots beside each other that write the ledger; options by step."""
    saga = Saga("random", failure_strategy=ParallelFailureStrategy.WAIT_ALL)

    async def do(ctx: Any) -> Any:
        return {ctx.step: await ledger.do(ctx)}

    async def undo(result: Any, ctx: Any) -> Any:
        return await ledger.undo(ctx, result)

    for name in names:
        given = {"depends_on": [], "max_retries": 0, **options.get(name, {})}
        saga.add_step(name, do, undo, **given)
    return saga


# --- where the saga is when it is cancelled -------------------------------------------------------


async def test_a_cancel_returns_once_it_stands_in_the_log() -> None:
    ledger, log = Ledger(), FaultyLog()
    step, append = ledger.gate("charge"), Gate()
    async with engine_on(log, ledger=ledger) as engine:
        handle = await engine.start(OrderSaga, saga_id="s")
        await step.entered()
        log.outcomes.append(append)
        cancelling = asyncio.create_task(engine.cancel("s"))
        await append.entered()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not cancelling.done()
        append.open()
        await cancelling
        assert "CompensationStarted" in await story(log, "s")
        assert (await handle.result()).status is SagaStatus.CANCELLED


@pytest.mark.parametrize("signals", [0, 2])
async def test_what_is_to_be_cancelled_runs_no_step_again_where_it_is_taken_over(
    signals: int,
) -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    gate = ledger.gate("charge")
    first = engine_on(log, ledger=ledger, config=EngineConfig(drain_seconds=0))
    await first.open()
    await first.start(OrderSaga, saga_id="s")
    await gate.entered()
    await first.close()  # and no engine is there
    asker = engine_on(log, ledger=ledger)
    await asker.open(join=False)
    for n in range(signals):
        await log.append(0, [e.SignalSent(f"r-{n}", "s", 0, "olga", name="news")])
    end = (await log.bounds(0)).end
    cancelling = asyncio.create_task(asker.cancel("s", reason="customer called", actor="ann"))
    while (await log.bounds(0)).end == end:  # noqa: ASYNC110 - until the request stands
        await asyncio.sleep(0)
    async with engine_on(log, ledger=ledger) as engine:
        await cancelling
        result = await (await engine.handle("s")).result()
    await asker.close()
    assert result.status is SagaStatus.CANCELLED
    assert result.unknown_step_names == ["charge"]
    assert ledger.order == ["reserve", "charge", "undo reserve"]
    assert (await facts(log, "s"))[-1] == e.SagaCancelled("customer called", "ann")


async def test_a_cancel_stops_the_running_step_and_undoes_the_finished_ones_in_reverse() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    gate = ledger.gate("ship")
    async with engine_on(log, ledger=ledger) as engine:
        handle = await engine.start(OrderSaga, saga_id="s")
        await gate.entered()
        await engine.cancel("s", reason="customer called", actor="ann")
        result = await handle.result()
    assert result.status is SagaStatus.CANCELLED
    assert result.unknown_step_names == ["ship"]
    assert ledger.order == ["reserve", "charge", "ship", "undo charge", "undo reserve"]
    assert ledger.standing == []
    last = (await facts(log, "s"))[-1]
    assert last == e.SagaCancelled("customer called", "ann")


async def test_a_cancelled_step_is_undone_if_its_compensation_is_for_unknown_outcomes() -> None:
    ledger = Ledger()
    saga = saga_of(ledger, "a", a={"on_unknown": True})
    gate = ledger.gate("a", late=True)
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        await engine.cancel("s")
        result = await handle.result()
    assert (result.status, result.unknown_step_names) == (SagaStatus.CANCELLED, [])
    assert ledger.order == ["a", "undo a"]
    assert [call.result for call in ledger.of("undo a")] == [None]


async def test_a_cancel_while_a_step_waits_for_its_next_attempt_does_not_try_it_again() -> None:
    ledger = Ledger()
    ledger.fails("a", *[Declined()] * 9)
    saga = saga_of(ledger, "a", a={"max_retries": 9, "retry_delay_seconds": 1000})

    clock = SetClock()
    async with engine_on(None, saga, clock=clock) as engine:
        handle = await engine.start(saga, saga_id="s")
        await clock.wait()
        await engine.cancel("s")
        assert (await handle.result()).status is SagaStatus.CANCELLED
    assert ledger.order == ["a"]


async def test_a_cancel_while_the_start_of_a_step_is_on_its_way_means_it_never_runs() -> None:
    ledger, log = Ledger(), FaultyLog()
    gate = Gate()
    log.outcomes.extend(["", gate])
    async with engine_on(log, ledger=ledger) as engine:
        handle = await engine.start(OrderSaga, saga_id="s")
        await gate.entered()
        cancelling = asyncio.create_task(engine.cancel("s"))
        await until(lambda: engine.host.runners["s"]._cancel_request)
        gate.open()
        await cancelling
        result = await handle.result()
    assert ledger.order == ["reserve", "undo reserve"]
    assert (result.status, result.unknown_step_names) == (SagaStatus.CANCELLED, [])


async def test_a_cancel_before_the_first_append_stands_cancels_it_before_anything_ran() -> None:
    ledger, log = Ledger(), FaultyLog()
    gate = Gate(late=True)
    log.outcomes.append(gate)
    async with engine_on(log, ledger=ledger) as engine:
        starting = asyncio.create_task(engine.start(OrderSaga, saga_id="s"))
        await gate.entered()
        cancelling = asyncio.create_task(engine.cancel("s"))
        await until(lambda: engine.host.runners["s"]._cancel_request)
        gate.open()
        await cancelling
        assert (await (await starting).result()).status is SagaStatus.CANCELLED
    assert ledger.order == []


async def test_a_cancel_while_a_compensation_begins_takes_nothing_from_it() -> None:
    ledger, log = Ledger(), FaultyLog()
    ledger.fails("charge", Declined())
    gate = Gate()
    log.outcomes.extend(["", "", gate])
    async with engine_on(log, ledger=ledger) as engine:
        handle = await engine.start(OrderSaga, saga_id="s")
        await gate.entered()
        assert log.appends[-1][-1] == "StepCompensationStarted reserve"
        cancelling = asyncio.create_task(engine.cancel("s"))
        await until(lambda: engine.host.runners["s"]._cancel_request)
        gate.open()
        await cancelling
        result = await handle.result()
    assert result.status is SagaStatus.ROLLED_BACK and ledger.standing == []
    assert ledger.of("undo reserve")[0].result == {"reserve": "reserve-1"}


async def test_a_cancel_while_the_saga_already_goes_back_changes_nothing() -> None:
    ledger = Ledger()
    ledger.fails("charge", Declined())
    gate = ledger.gate("undo reserve")
    async with engine_on(ledger=ledger) as engine:
        handle = await engine.start(OrderSaga, saga_id="s")
        await gate.entered()
        cancelling = asyncio.create_task(engine.cancel("s"))
        await until(lambda: cancelling.done() or engine.host.runners["s"]._cancel_request)
        gate.open()
        await cancelling
        assert (await handle.result()).status is SagaStatus.ROLLED_BACK
    assert ledger.order == ["reserve", "charge", "undo reserve"]


async def test_a_saga_that_has_ended_is_not_cancelled_and_a_cancelled_one_twice_is_harmless() -> (
    None
):
    ledger, log = Ledger(), MemoryEventLog(1)
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="done")
        with pytest.raises(SagaEnded) as refused:
            await engine.cancel("done")
        assert (refused.value.saga_id, refused.value.status) == ("done", "completed")
        gate = ledger.gate("reserve")
        handle = await engine.start(OrderSaga, saga_id="s")
        await gate.entered()
        await asyncio.gather(engine.cancel("s"), engine.cancel("s"))
        await handle.result()
        before = await log.bounds(0)
        await engine.cancel("s")
        assert await log.bounds(0) == before
    assert (await story(log, "s")).count("CompensationStarted") == 1


async def test_a_cancel_behind_a_pivot_is_refused_and_the_running_step_is_not_stopped() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    saga = saga_of(ledger, "pay", "ship", pay={"pivot": True}, ship={"depends_on": ["pay"]})
    gate = ledger.gate("ship")
    async with engine_on(log, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        before = await log.bounds(0)
        with pytest.raises(PivotPassed) as refused:
            await engine.cancel("s")
        assert (refused.value.saga_id, refused.value.pivot) == ("s", "pay")
        assert await log.bounds(0) == before
        gate.open()
        assert (await handle.result()).success
    assert ledger.order == ["pay", "ship"]


async def test_steps_beside_each_other_are_all_stopped() -> None:
    ledger = Ledger()
    saga = saga_of(ledger, "a", "b", "c")
    gates = [ledger.gate(name) for name in "bc"]
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        for gate in gates:
            await gate.entered()
        await engine.cancel("s")
        result = await handle.result()
    assert result.status is SagaStatus.CANCELLED
    assert result.steps == {"a": "compensated", "b": "failed", "c": "failed"}
    assert sorted(ledger.order) == ["a", "b", "c", "undo a"]


async def test_a_cancel_at_any_turn_of_the_loop_leaves_nothing_standing() -> None:
    """Whatever the loop is doing just then: steps not begun yet, running, done and not recorded."""
    for turns in range(40):
        ledger = Ledger()
        saga = saga_of(
            ledger,
            *"abcd",
            a={"on_unknown": True},
            b={"on_unknown": True},
            c={"depends_on": ["a"], "on_unknown": True},
            d={"depends_on": ["b", "c"], "on_unknown": True},
        )
        async with engine_on(None, saga) as engine:
            starting = asyncio.create_task(engine.start(saga, saga_id="s"))
            for _ in range(turns):
                await asyncio.sleep(0)
            try:
                await engine.cancel("s")
            except SagaNotFound:
                assert (await (await starting).result()).success
                continue
            except SagaEnded:
                handle = await starting
                assert (await handle.result()).success
                assert sorted(ledger.standing) == ["a", "b", "c", "d"]
                continue
            result = await asyncio.wait_for((await starting).result(), 5)
            assert result.status is SagaStatus.CANCELLED, turns
            assert result.unknown_step_names == []
            # A step that was stopped has no result: of it the ledger keeps what was not found.
            done = [step for step in ledger.standing if result.steps[step] != "compensated"]
            assert done == [], (turns, result.steps, ledger.order)


# --- code that does not take it as it is meant ----------------------------------------------------


async def test_a_step_that_swallows_the_cancellation_and_completes_is_undone() -> None:
    calls: list[str] = []
    entered = asyncio.Event()
    saga = Saga("stubborn")

    async def step(ctx: Any) -> Any:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            calls.append("swallowed")
        return {"done": 1}

    async def undo(result: Any, ctx: Any) -> None:
        calls.append(f"undo {result}")

    saga.add_step("step", step, undo)
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await entered.wait()
        await engine.cancel("s")
        assert (await handle.result()).status is SagaStatus.CANCELLED
    assert calls == ["swallowed", "undo {'done': 1}"]


async def test_what_a_step_swallowed_is_not_laid_at_its_compensations_door() -> None:
    """A compensation whose own inner task is cancelled fails, and is tried again."""
    entered = asyncio.Event()
    calls: list[int] = []
    saga = Saga("stubborn")

    async def step(ctx: Any) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

    async def undo(ctx: Any) -> None:
        calls.append(ctx.attempt)
        if len(calls) < 3:
            raise asyncio.CancelledError

    saga.add_step("step", step, undo)
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await entered.wait()
        await engine.cancel("s")
        result = await asyncio.wait_for(handle.result(), 5)
    assert (result.status, result.compensation_errors) == (SagaStatus.CANCELLED, [])
    assert calls == [1, 2, 3]


async def test_a_step_that_raises_cancelled_error_itself_fails_with_an_unknown_outcome() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("charge", asyncio.CancelledError())
    async with engine_on(log, ledger=ledger) as engine:
        result = await engine.run(OrderSaga, saga_id="s")
    assert (result.status, result.unknown_step_names) == (SagaStatus.ROLLED_BACK, ["charge"])
    assert ledger.order == ["reserve", "charge", "undo reserve"]
    (failed,) = [fact for fact in await facts(log, "s") if isinstance(fact, e.StepFailed)]
    assert (failed.error_type, failed.unknown, failed.retry_at) == ("Cancelled", True, 0)
