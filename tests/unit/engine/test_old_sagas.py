"""A saga that waits for days does not hold the low-water mark back."""

from __future__ import annotations

import asyncio
from typing import Any

from sagaz_es import Engine, EngineConfig, Saga
from sagaz_es.core import events as e
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import SetClock

DAY = 86_400_000_000


def waiting_saga(calls: list[Any]) -> Saga:
    saga = Saga(name="patient").add_step("first", lambda ctx: calls.append("first"))
    return saga.add_step("second", lambda ctx: calls.append(ctx.signal), wait_for="go")


async def test_an_old_saga_is_carried_forward_and_taken_over_from_there() -> None:
    log, clock = MemoryEventLog(partitions=1), SetClock()
    calls: list[Any] = []
    settings = EngineConfig(housekeeping_seconds=0.01)
    async with Engine(log, sagas=[waiting_saga(calls)], clock=clock, config=settings) as engine:
        await engine.start("patient", saga_id="p-1")
        await stands(log, e.StepWaiting)
        clock.advance(DAY + 1)
        place = await stands(log, e.SagaCheckpointed)
        async with asyncio.timeout(5):
            while await log.low_water_mark(0) < place:  # noqa: ASYNC110 - housekeeping writes it
                await asyncio.sleep(0.01)

    later = waiting_saga(calls)
    async with Engine(log, sagas=[later], clock=clock) as engine:
        assert await log.low_water_mark(0) >= place
        handle = await engine.handle("p-1")
        await engine.signal("p-1", "go", "now")
        assert (await handle.result(5)).success
    assert calls == ["first", "now"]


async def stands(log: MemoryEventLog, kind: type[e.Fact]) -> int:
    """The offset of the first fact of a kind, once there is one."""
    async with asyncio.timeout(5):
        while True:
            for record in await log.read_saga("p-1"):
                if isinstance(record.entry, e.Event) and type(record.entry.fact) is kind:
                    return record.offset
            await asyncio.sleep(0.01)
