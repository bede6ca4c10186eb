"""A start that nobody answers is durable: there is a handle, which tells what it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sagaz_es import Engine, EngineConfig, SagaResult, SagaStatus
from sagaz_es.core import events as e
from sagaz_es.errors import SagaIdTaken, UnknownSagaName
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import EventLog
from tests.helpers import Ledger, OrderSaga, engine_on

HASTY = EngineConfig(request_seconds=0.05, drain_seconds=1)


@asynccontextmanager
async def client(
    log: EventLog, *sagas: type[OrderSaga], config: EngineConfig = HASTY
) -> AsyncIterator[Engine]:
    """An engine that asks, and serves nothing."""
    engine = Engine(log, sagas=sagas, config=config)
    await engine.open(join=False)
    try:
        yield engine
    finally:
        await engine.close()


async def starts(log: EventLog) -> list[str]:
    chunk = await log.read(0, 0)
    return [r.entry.saga_id for r in chunk.records if isinstance(r.entry, e.StartRequested)]


@pytest.mark.parametrize("sagas", [(), (OrderSaga,)], ids=["by name", "by class"])
async def test_a_start_that_nobody_answers_stands_and_has_a_handle(
    sagas: tuple[type[OrderSaga], ...],
) -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    async with client(log, *sagas) as asker:
        handle = await asker.start("order", saga_id="o-1")
        assert await starts(log) == ["o-1"]
        assert await asker.status("o-1") is SagaStatus.PENDING
        end = asyncio.ensure_future(handle.result())
        async with engine_on(log, ledger=ledger):
            result: SagaResult = await end
    assert (result.saga_id, result.status) == ("o-1", SagaStatus.COMPLETED)
    assert [call.what for call in ledger.calls] == ["reserve", "charge", "ship"]


async def test_a_start_that_is_asked_for_again_while_nobody_answers_is_one_saga() -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    async with client(log) as asker:
        handles = [await asker.start("order", saga_id="o-1") for _ in range(2)]
        async with engine_on(log, ledger=ledger):
            results = [await handle.result(5) for handle in handles]
    assert [result.status for result in results] == [SagaStatus.COMPLETED] * 2
    assert [call.what for call in ledger.calls] == ["reserve", "charge", "ship"]


async def test_who_waits_too_long_for_a_saga_that_nobody_began_is_told_so() -> None:
    log = MemoryEventLog(1)
    async with client(log) as asker:
        handle = await asker.start("order", saga_id="o-1")
        for seconds in (0, 0.05):
            with pytest.raises(TimeoutError) as raised:
                await handle.result(seconds)
            assert str(raised.value) == (
                f"saga 'o-1' has not begun within {seconds:g} s: its start stands in the log, and "
                "no engine has begun it: does one with room run that serves partition 0 of "
                f"{log.name}, and has the saga's class? Asking again with the same saga_id is safe"
            )


async def test_that_nobody_answers_is_told_of_once_and_not_for_each_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with client(MemoryEventLog(1)) as asker:
        for n in range(3):
            await asker.start("order", saga_id=f"o-{n}")
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [text.partition(":")[0] for text in told] == ["saga o-0 (order) waits"]


async def test_a_refusal_that_comes_later_is_raised_by_the_handle() -> None:
    log = MemoryEventLog(1)
    async with client(log) as asker:
        handle = await asker.start("no-such", saga_id="o-1")
        async with engine_on(log):
            with pytest.raises(UnknownSagaName):
                await handle.result(5)


async def test_a_refusal_that_comes_at_once_is_raised_by_the_start() -> None:
    log = MemoryEventLog(1)
    async with engine_on(log), client(log, config=EngineConfig()) as asker:
        with pytest.raises(UnknownSagaName):
            await asker.start("no-such", saga_id="o-1")


async def test_an_id_that_turns_out_to_be_another_sagas_is_told_by_the_handle() -> None:
    log = MemoryEventLog(1)
    async with client(log) as asker:
        await asker.start("order", saga_id="x-1")
        late = await asker.start("other", saga_id="x-1")
        async with engine_on(log, ledger=Ledger()):
            with pytest.raises(SagaIdTaken):
                await late.result(5)


async def test_a_named_groups_client_waits_for_the_saga_of_another_group() -> None:
    """Its own group's mark passes the start; that does not mean that it is lost."""
    log, ledger = MemoryEventLog(1), Ledger()
    ours = EngineConfig(group="a", request_seconds=0.05, housekeeping_seconds=0.01)

    class Invoice(OrderSaga):
        saga_name = "invoice"

    async with Engine(log, sagas=[Invoice], config=ours) as asker:
        handle = await asker.start("order", saga_id="o-1")
        async with asyncio.timeout(5):
            while await log.low_water_mark(0, group="a") < (await log.bounds(0)).end:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError, match="has not begun"):
            await handle.result(0.05)
        theirs = EngineConfig(group="b", drain_seconds=1)
        async with engine_on(log, ledger=ledger, config=theirs):
            assert (await handle.result(5)).status is SagaStatus.COMPLETED
