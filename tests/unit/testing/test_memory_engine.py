"""An engine for one test: virtual waits, calls that were seen, failures on demand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagaz_es import Saga, action, compensate
from sagaz_es.errors import ConfigurationError
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.storage.memory import MemoryProjectionStore
from sagaz_es.testing import InjectedFailure, VirtualClock, memory_engine
from tests.helpers import Gate, Ledger, OrderSaga, until

DAY = 86_400_000_000


class Reminder(Saga):
    """send → wait a day → send again; retried after ten minutes, and again after twenty."""

    saga_name = "reminder"

    @action("first")
    async def first(self, ctx: Any) -> None: ...

    @action("second", delay_seconds=86_400, retry_delay_seconds=600, max_retry_delay_seconds=9e3)
    async def second(self, ctx: Any) -> dict[str, int]:
        return {"attempts": ctx.attempt}

    @compensate("first")
    async def take_back(self, ctx: Any) -> None: ...


async def test_no_wait_takes_time_while_the_end_is_awaited() -> None:
    async with memory_engine(Reminder) as engine:
        engine.fails("second", attempts=[1, 2])
        began = engine.clock.now()
        result = await engine.run(Reminder)
        assert result.context == {"attempts": 3}
        assert DAY + 1800e6 <= engine.clock.now() - began <= DAY + 1.1 * 1800e6
        assert result.execution_time == pytest.approx((engine.clock.now() - began) / 1e6)


async def test_a_test_can_move_the_time_itself() -> None:
    async with memory_engine(Reminder) as engine:
        handle = await engine.start(Reminder)
        await until(lambda: [call.name for call in engine.calls] == ["first"])
        engine.clock.advance(86_399)
        for _ in range(100):
            await asyncio.sleep(0)
        assert [call.name for call in engine.calls] == ["first"]
        engine.clock.advance(1)
        await until(lambda: [call.name for call in engine.calls] == ["first", "second"])
        assert (await handle.result()).success


class Daily(Saga):
    """remind → a day → remind again → a day → file, which is a plain function."""

    saga_name = "daily"

    @action("remind")
    async def remind(self, ctx: Any) -> None: ...

    @action("again", delay_seconds=86_400)
    async def again(self, ctx: Any) -> None: ...

    @action("file", delay_seconds=86_400)
    def file(self, ctx: Any) -> None: ...


async def test_time_that_elapses_leaves_nobody_who_can_go_on() -> None:
    async with memory_engine(Daily) as engine:
        began = engine.clock.now()
        handle = await engine.start(Daily)
        for seconds, called in ((0, 1), (86_399, 1), (1, 2), (86_399, 2), (1, 3)):
            await engine.clock.elapse(seconds)
            assert len(engine.calls) == called
        assert engine.clock.now() - began == 2 * DAY
        assert (await engine.history(handle.saga_id).now()).status == "completed"


async def test_time_that_elapses_goes_from_wait_to_wait() -> None:
    async with memory_engine(Daily) as engine:
        await engine.start(Daily)
        await engine.clock.elapse(2 * 86_400)
        assert [call.name for call in engine.calls] == ["remind", "again", "file"]


async def test_no_time_is_skipped_while_a_step_of_any_engine_is_at_work() -> None:
    ledger, clock = Ledger(), VirtualClock()
    busy = memory_engine(OrderSaga, resources={"ledger": ledger}, clock=clock)
    async with busy, memory_engine(Reminder, clock=clock):
        gate = ledger.gate("charge")
        running = asyncio.create_task(busy.run(OrderSaga))
        async with asyncio.timeout(30):
            await gate.entered()
            waits = asyncio.create_task(clock.sleep_until(clock.now() + DAY))
            await asyncio.sleep(0.05)
            assert not waits.done()
            gate.open()
            assert (await running).success
            waits.cancel()


async def test_no_time_is_skipped_while_a_step_is_at_work() -> None:
    ledger = Ledger()
    async with memory_engine(OrderSaga, resources={"ledger": ledger}) as engine:
        gate = ledger.gate("charge")
        before = engine.clock.now()
        running = asyncio.create_task(engine.run(OrderSaga))
        await gate.entered()
        async with asyncio.timeout(30):
            waits = asyncio.create_task(engine.clock.sleep_until(before + DAY))
            await asyncio.sleep(0.05)
            assert not waits.done()
            gate.open()
            assert (await running).success
            waits.cancel()


async def test_calls_are_seen_and_failures_happen_on_demand() -> None:
    ledger = Ledger()
    async with memory_engine(OrderSaga, resources={"ledger": ledger}) as engine:
        engine.fails("ship", after=True)
        engine.fails("reserve", compensation=True, attempts=1, error=OSError)
        result = await engine.run(OrderSaga, saga_id="order-1")
    assert isinstance(result.error, InjectedFailure)
    names = ["reserve", "charge", "ship", "undo charge", "undo reserve", "undo reserve"]
    assert [call.name for call in engine.calls] == names
    assert engine.calls[3].key == "order-1/charge/compensation"
    assert engine.calls[3].result == {"charge": "charge-1"}
    assert ledger.standing == ["ship"]


async def test_a_step_that_nobody_knows_is_refused_with_those_there_are() -> None:
    async with memory_engine(Reminder) as engine:
        with pytest.raises(ConfigurationError, match="no step 'third'; there are 'first', 'second"):
            engine.fails("third")


async def test_another_engine_takes_over_on_the_same_log() -> None:
    log, clock, ledger = MemoryEventLog(1), VirtualClock(), Ledger()
    resources = {"ledger": ledger}
    gate = ledger.gate("charge", late=True)
    async with memory_engine(OrderSaga, log=log, clock=clock, resources=resources) as first:
        await first.start(OrderSaga, saga_id="order-1")
        await gate.entered()
        # It is closed while the step is under way, which does not end in its second of grace.
    ledger.gates.clear()
    async with memory_engine(OrderSaga, log=log, clock=clock, resources=resources) as second:
        assert (await (await second.handle("order-1")).result()).success
    assert [call.step for call in second.calls] == ["charge", "ship"]
    assert isinstance(gate, Gate)


async def test_a_replay_passes_its_time_too() -> None:
    async with memory_engine(Reminder, store=MemoryProjectionStore()) as engine:
        engine.fails("second", attempts=[1, 2, 3, 4])
        assert not (await engine.run(Reminder, saga_id="r")).success
        engine.heal()
        replay = await engine.replay(await engine.plan_replay("r", "second"))
        assert replay.status == "success"
        assert [call.name for call in engine.calls[-2:]] == ["first", "second"]
