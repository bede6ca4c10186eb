"""A log that loses what it had acknowledged: it is said aloud, and what is left goes on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from sagaz_es.core import events as e
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.takeover import read_from_mark
from sagaz_es.errors import LogTruncated, SagaNotFound, Unreachable
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Chunk
from sagaz_es.reading.projector import Projector
from sagaz_es.storage.memory import MemoryProjectionStore
from tests.helpers import Ledger, OrderSaga, SetClock, engine_on, story


def lose_tail(log: MemoryEventLog, records: int) -> None:
    """The last records are gone, as after an election of a leader that lagged behind."""
    place = log._partitions[0]
    for record in place.records[-records:]:
        place.of_saga[record.key].remove(record.offset)
    del place.records[-records:]
    place.waiters.wake()


async def test_a_saga_goes_on_from_what_the_log_still_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    gate = ledger.gate("ship", late=True)
    async with engine_on(log, ledger=ledger) as engine:
        running = asyncio.create_task(engine.run(OrderSaga, saga_id="s"))
        await gate.entered()
        lose_tail(log, 1)  # that ship has started
        gate.open()
        assert (await running).success
    assert ledger.order == ["reserve", "charge", "ship", "ship"]
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.CRITICAL]
    assert any("the log lost its tail" in words for words in told)
    assert any(fact.startswith("SagaClaimed") for fact in await story(log, "s"))


async def _the_claim(log: MemoryEventLog) -> tuple[int, e.Event]:
    """Once a saga was claimed anew, where that stands, and what."""
    while True:
        for record in log._partitions[0].records:
            event = record.entry
            if isinstance(event, e.Event) and isinstance(event.fact, e.SagaClaimed):
                return record.offset, event
        await asyncio.sleep(0.01)  # it looks by real time


async def test_what_was_on_its_way_when_the_tail_was_lost_is_not_taken_for_what_comes_after() -> (
    None
):
    log, ledger = MemoryEventLog(1), Ledger()
    gate = ledger.gate("ship", late=True)
    async with engine_on(log, ledger=ledger) as engine:
        running = asyncio.create_task(engine.run(OrderSaga, saga_id="s"))
        await gate.entered()
        lose_tail(log, 1)
        offset, first = await _the_claim(log)
        lose_tail(log, len(log._partitions[0].records) - offset)
        _, second = await _the_claim(log)
        gate.open()
        assert (await running).success
    assert (first.epoch, first.sequence) == (second.epoch, second.sequence)
    assert first.writer != second.writer


class _AwayOnce(MemoryEventLog):
    """Its reads that wait for more fail once `away` is told, until `back`."""

    def __init__(self) -> None:
        super().__init__(1)
        self.away, self.failed, self.back = False, asyncio.Event(), asyncio.Event()

    async def read(self, partition: int, offset: int, **options: Any) -> Chunk:
        chunk = await super().read(partition, offset, **options)
        if self.away and options.get("wait_s"):
            self.away = False
            self.failed.set()
            await self.back.wait()
            raise Unreachable("the log", "memory://")
        return chunk


async def test_a_log_that_grew_again_while_it_could_not_be_read_is_noticed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, ledger = _AwayOnce(), Ledger()
    gate = ledger.gate("ship", late=True)
    async with engine_on(log, ledger=ledger) as engine:
        running = asyncio.create_task(engine.run(OrderSaga, saga_id="s"))
        await gate.entered()
        log.away = True
        await log.append_raw(0, "nobody", b"foreign")  # wakes who reads
        await log.failed.wait()
        lose_tail(log, 2)  # that ship has started, too
        for _ in range(5):
            await log.append_raw(0, "nobody", b"foreign")
        log.back.set()
        while "the log lost its tail" not in caplog.text:  # noqa: ASYNC110 - by real time
            await asyncio.sleep(0.01)
        gate.open()
        assert (await running).success
    assert ledger.order == ["reserve", "charge", "ship", "ship"]
    assert any(fact.startswith("SagaClaimed") for fact in await story(log, "s"))


async def test_who_waits_for_a_saga_that_is_gone_is_told() -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    gate = ledger.gate("reserve")
    async with engine_on(log, ledger=ledger) as engine:
        running = asyncio.create_task(engine.run(OrderSaga, saga_id="s"))
        await gate.entered()
        lose_tail(log, 2)
        with pytest.raises(SagaNotFound):
            await running


async def test_nothing_runs_on_a_store_that_knows_more_than_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, store, ledger = MemoryEventLog(1), MemoryProjectionStore(), Ledger()
    async with Engine(
        log, store, sagas=(OrderSaga,), resources={"ledger": ledger}, clock=SetClock(jumps=True)
    ) as engine:
        assert (await engine.run(OrderSaga, saga_id="s")).success
        await Projector(log, store).run_until()
        lose_tail(log, 1)
        # It looks, and tries again, by real time.
        while "partition 0 is not served" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await store.reset()
        while not engine.host.partitions:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await engine.run(OrderSaga, saga_id="s")).success


class _LosesAgain(MemoryEventLog):
    """It loses `loses` more records when a take-over asks for the mark, or while it reads."""

    def __init__(self) -> None:
        super().__init__(1)
        self.loses = self.loses_while_read = 0

    async def low_water_mark(self, partition: int, *, group: str = "") -> int:
        if self.loses:
            lose_tail(self, self.loses)
            self.loses = 0
        return await super().low_water_mark(partition, group=group)

    async def read(self, partition: int, offset: int, **options: Any) -> Chunk:
        chunk = await super().read(partition, offset, **options)
        if self.loses_while_read:
            lose_tail(self, self.loses_while_read)
            self.loses_while_read = 0
        return chunk


async def test_nothing_runs_on_a_store_that_knew_no_more_than_the_log_a_moment_ago(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, store, ledger = _LosesAgain(), MemoryProjectionStore(), Ledger()
    async with engine_on(log, ledger=ledger) as engine:
        assert (await engine.run(OrderSaga, saga_id="s")).success
    await Projector(log, store).run_until()
    log.loses = 2  # that it shipped, and is complete
    async with Engine(
        log, store, sagas=(OrderSaga,), resources={"ledger": ledger}, clock=SetClock(jumps=True)
    ) as engine:
        assert "partition 0 is not served" in caplog.text
        await store.reset()
        assert (await (await engine.handle("s")).result(10)).success
    assert ledger.order == ["reserve", "charge", "ship", "ship"]


async def test_what_is_lost_while_it_is_read_is_not_taken_over() -> None:
    log, ledger = _LosesAgain(), Ledger()
    async with engine_on(log, ledger=ledger) as engine:
        assert (await engine.run(OrderSaga, saga_id="s")).success
    log.loses_while_read = 1
    with pytest.raises(LogTruncated):
        await read_from_mark(log, None, 0, whole=True)


async def test_a_log_that_has_grown_past_the_mark_again_is_read_from_its_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    async with engine_on(log, ledger=ledger) as engine:
        assert (await engine.run(OrderSaga, saga_id="s")).success
    mark = await log.low_water_mark(0)
    lose_tail(log, 2)  # that it shipped, and is complete
    for _ in range(5):
        await log.append_raw(0, "nobody", b"foreign")
    assert mark < (await log.bounds(0)).end
    for _ in range(2):  # also by who comes after one that has said so
        async with engine_on(log, ledger=ledger) as engine:
            assert "partition 0 lost its tail since its mark was committed" in caplog.text
            assert (await (await engine.handle("s")).result(10)).success
    assert ledger.order == ["reserve", "charge", "ship", "ship"]
    caplog.clear()
    async with engine_on(log, ledger=ledger):
        assert not caplog.text  # the mark is another one by now


async def test_a_log_that_has_all_it_had_is_read_from_its_mark(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    for saga_id in ("one", "two"):
        async with engine_on(log, ledger=ledger) as engine:
            assert (await engine.run(OrderSaga, saga_id=saga_id)).success
    found = await read_from_mark(log, None, 0)
    assert found.start == found.position == (await log.bounds(0)).end
    assert found.last.startswith(f"{found.start - 1}/two/")
    assert "lost its tail" not in caplog.text
