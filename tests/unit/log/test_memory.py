"""What the memory log does beyond the laws of a log."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sagaz_es import connect
from sagaz_es.errors import ConfigurationError
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Chunk
from sagaz_es.testing.contracts.entries import new_id, steps
from sagaz_es.testing.contracts.membership import Member


async def test_entries_are_kept_as_they_are() -> None:
    log = MemoryEventLog()
    entries = steps("order-17", 2)
    base = await log.append(2, entries)
    records = (await log.read(2, base)).records
    assert [record.entry is entry for record, entry in zip(records, entries, strict=True)] == [
        True,
        True,
    ]
    assert [record.value for record in records] == [b"", b""]


@pytest.mark.parametrize("partition", [-1, 4])
async def test_a_partition_that_does_not_exist_is_a_mistake(partition: int) -> None:
    log = MemoryEventLog(partitions=4)
    for call in (log.append(partition, steps("a", 1)), log.read(partition, 0)):
        with pytest.raises(ValueError, match="0 to 3"):
            await call


async def test_an_append_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        await MemoryEventLog().append(0, [])


def test_it_outlives_an_event_loop() -> None:
    log = MemoryEventLog()
    saga_id = new_id()

    async def engine() -> Chunk:
        one, two = Member(), Member()
        first = await log.join(one.on_change)
        second = await log.join(two.on_change)
        assert one.share | two.share == frozenset(range(4))
        partition = log.partition_of(saga_id)
        reading = asyncio.create_task(log.read(partition, 1, wait_s=5))
        await asyncio.sleep(0)
        await log.append(partition, steps(saga_id, 1))
        await second.leave()
        await first.leave()
        await reading
        return await log.read(partition, 1)

    first, second = asyncio.run(engine()), asyncio.run(engine())
    assert first.records == second.records[:1]
    assert len(second.records) == 2


async def test_an_engine_that_fails_to_let_go_does_not_keep_its_partitions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = MemoryEventLog()
    told: list[frozenset[int]] = []

    async def fails(share: frozenset[int]) -> None:
        told.append(share)
        if len(told) == 2:
            raise RuntimeError("cannot hand over")

    await log.join(fails)
    two = Member()
    await log.join(two.on_change)
    assert told[-1] | two.share == frozenset(range(4))
    assert not told[-1] & two.share
    assert "cannot hand over" in caplog.text


async def test_who_gives_up_joining_is_no_member() -> None:
    log = MemoryEventLog()
    one, two = Member(), Member()
    await log.join(one.on_change)
    one.gate.clear()
    joining = asyncio.create_task(log.join(two.on_change))
    await asyncio.wait([joining], timeout=0.01)
    joining.cancel()
    await asyncio.wait([joining])
    one.gate.set()
    while one.share != frozenset(range(4)):
        one.changed.clear()
        await one.changed.wait()
    assert not two.share


async def test_it_is_not_shared_with_the_event_loop_of_another_thread() -> None:
    """It waited for ever."""
    log, told = MemoryEventLog(name="memory://shared"), list[str]()

    async def join() -> None:
        async with connect(log):
            raise AssertionError("two event loops serve one memory log")

    def other_thread() -> None:
        try:
            asyncio.run(join())
        except ConfigurationError as error:
            told.append(str(error))

    async with connect(log):
        thread = threading.Thread(target=other_thread)
        thread.start()
        await asyncio.to_thread(thread.join)
    assert [text.partition(",")[0] for text in told] == [
        "log memory://shared: it is in use in another event loop"
    ]


def test_an_engine_that_ended_with_its_event_loop_holds_nothing_back() -> None:
    log = MemoryEventLog()

    async def never_closed() -> None:
        await connect(log).open()

    async def next_one() -> int:
        async with connect(log) as engine:
            return len(engine.host.partitions)

    asyncio.run(never_closed())
    assert asyncio.run(next_one()) == 4
