"""Engines whose clocks differ: what one has set a time for, the other does not wait longer for."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from sagaz_es import Saga, SagaStatus, action
from sagaz_es.core import events as e
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import NOON, Declined, Ledger, LedgerSaga, SetClock, engine_on, until

HOUR, SECOND = 3_600_000_000, 1_000_000


class Retried(LedgerSaga):
    saga_name: ClassVar[str | None] = "timed"

    @action("first")
    async def first(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @action("second", depends_on=["first"], retry_delay_seconds=20)
    async def second(self, ctx: Any) -> Any:
        return await self.do(ctx)


class Delayed(Retried):
    saga_name: ClassVar[str | None] = "timed"

    @action("second", depends_on=["first"], delay_seconds=20)
    async def second(self, ctx: Any) -> Any:
        return await self.do(ctx)


class Hurried(Retried):
    saga_name: ClassVar[str | None] = "timed"
    deadline_seconds = 20

    @action("second", depends_on=["first"], wait_for="word")
    async def second(self, ctx: Any) -> Any:
        return await self.do(ctx)


async def left_with_a_time_set(saga: type[Saga], ledger: Ledger, clock: SetClock) -> MemoryEventLog:
    log = MemoryEventLog(1)
    async with engine_on(log, saga, ledger=ledger, clock=clock) as engine:
        await engine.start(saga, saga_id="t-1")
        await until(lambda: not engine.host.runners and engine.host.partitions[0].cells)
    return log


@pytest.mark.parametrize(
    ("saga", "status"),
    [
        (Retried, SagaStatus.COMPLETED),
        (Delayed, SagaStatus.COMPLETED),
        (Hurried, SagaStatus.ROLLED_BACK),
    ],
)
async def test_a_writer_whose_clock_was_ahead_makes_nobody_wait_longer(
    saga: type[Saga], status: SagaStatus
) -> None:
    ledger = Ledger()
    if saga is Retried:
        ledger.fails("second", Declined("busy"))
    log = await left_with_a_time_set(saga, ledger, SetClock(NOON + HOUR))
    clock = SetClock(NOON)
    async with engine_on(log, saga, ledger=ledger, clock=clock) as engine:
        assert 0 < await clock.wait() <= 30 * SECOND  # a retry's delay has some jitter
        assert "second" not in ledger.order[2:]
        clock.advance(30 * SECOND)
        result = await (await engine.handle("t-1")).result(5)
    assert result.status is status
    times = [
        record.entry.occurred_at
        for record in await log.read_saga("t-1")
        if isinstance(record.entry, e.Event)
    ]
    assert times == sorted(times)


async def test_a_clock_that_is_set_back_makes_nobody_wait_longer() -> None:
    ledger, clock, log = Ledger(), SetClock(NOON), MemoryEventLog(1)
    gate = ledger.gate("second")
    ledger.fails("second", Declined("busy"))
    async with engine_on(log, Retried, ledger=ledger, clock=clock) as engine:
        handle = await engine.start(Retried, saga_id="t-1")
        await gate.entered()
        clock.set(NOON - HOUR)
        gate.open()
        assert 0 < await clock.wait() <= 30 * SECOND
        clock.advance(30 * SECOND)
        assert (await handle.result(5)).success
