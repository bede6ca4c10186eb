"""The projector's programs: run, rebuild, verify."""

from __future__ import annotations

import asyncio
import os
import signal

import msgspec
import pytest

from sagaz_es.errors import HistoryGone, LogTruncated
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Bounds, Checkpoint, Projection
from sagaz_es.storage.memory import MemoryProjectionStore
from sagaz_es.testing.contracts.histories import head_of, history, snapshot_row
from sagaz_es_projections.rebuild import rebuild
from sagaz_es_projections.runner import run, stop_at_signals
from sagaz_es_projections.verify import Difference, verify

SAGAS = tuple(f"order-{number}" for number in range(30))


@pytest.fixture
def store() -> MemoryProjectionStore:
    return MemoryProjectionStore()


@pytest.fixture
async def log() -> MemoryEventLog:
    log = MemoryEventLog(3)
    for saga_id in SAGAS:
        await log.append(log.partition_of(saga_id), history(saga_id))
    return log


async def test_run_projects_until_it_is_told_to_stop(
    log: MemoryEventLog, store: MemoryProjectionStore
) -> None:
    told: list[int] = []
    with stop_at_signals(signal.SIGUSR1) as stop:

        def progress(statuses: object) -> None:
            told.append(1)
            os.kill(os.getpid(), signal.SIGUSR1)

        statuses = await run(log, store, stop=stop, on_progress=progress, every_s=0.05)
    assert told
    assert [status.lag for status in statuses] == [0, 0, 0]
    assert len(await store.summaries()) == 30


async def test_run_raises_what_stops_it(store: MemoryProjectionStore) -> None:
    await store.commit(Projection(Checkpoint(0, 99, "98/x")), expected=0)
    with pytest.raises(LogTruncated):
        await asyncio.wait_for(run(MemoryEventLog(1), store), 5)


async def test_a_rebuild_makes_the_same_again(
    log: MemoryEventLog, store: MemoryProjectionStore
) -> None:
    await run(log, store, stop=_set())
    await rebuild(log, store)
    heads = {saga_id: head_of(history(saga_id)) for saga_id in SAGAS}
    assert await store.heads(SAGAS) == heads
    broken = heads["order-3"].copy()
    broken.status = "levitating"
    store._heads["order-3"] = broken
    by_hand = snapshot_row("by-hand", fold_version=0)
    await store.save_snapshot(by_hand)
    told: list[object] = []
    statuses = await rebuild(log, store, on_progress=told.append, every_s=0.001)
    assert [status.lag for status in statuses] == [0, 0, 0]
    assert told
    assert await store.heads(SAGAS) == heads
    assert await store.snapshot("by-hand") == by_hand
    assert (await verify(log, store)).ok


def _set() -> asyncio.Event:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, stop.set)
    return stop


class Shortened(MemoryEventLog):
    """A log that keeps its beginning no more."""

    async def bounds(self, partition: int) -> Bounds:
        return Bounds(3, (await super().bounds(partition)).end)


async def test_a_rebuild_is_refused_where_the_log_lost_its_beginning(
    store: MemoryProjectionStore,
) -> None:
    log = Shortened(1)
    await log.append(0, history("order-17"))
    await store.commit(Projection(Checkpoint(0, 1), (head_of(history("order-16")),)), expected=0)
    with pytest.raises(HistoryGone, match="offset 3"):
        await rebuild(log, store)
    assert len(await store.summaries()) == 1
    await rebuild(log, store, lose_older=True)
    assert await store.summaries() == ()


async def test_what_is_projected_well_is_found_equal(
    log: MemoryEventLog, store: MemoryProjectionStore
) -> None:
    await log.append_raw(log.partition_of("order-3"), "order-3", b"garbage")
    await log.append(log.partition_of("order-3"), history("order-3"))
    await rebuild(log, store)
    assert len(await store.parked()) == 9
    verified = await verify(log, store)
    assert (verified.sagas, verified.events, verified.differences) == (30, 240, ())
    assert verified.ok


async def test_a_store_that_is_behind_is_compared_as_far_as_it_is(
    log: MemoryEventLog, store: MemoryProjectionStore
) -> None:
    await rebuild(log, store)
    await log.append(log.partition_of("order-99"), history("order-99"))
    assert (await verify(log, store)).ok


async def test_each_difference_is_named(log: MemoryEventLog, store: MemoryProjectionStore) -> None:
    await rebuild(log, store)
    store._heads["order-1"].context["sku"] = '"B2"'
    del store._heads["order-2"]
    del store._archive["order-3"][4]
    row = store._archive["order-4"][2]
    event = msgspec.structs.replace(row.event, occurred_at=7)
    store._archive["order-4"][2] = msgspec.structs.replace(row, event=event)
    store._heads["stranger"] = head_of(history("stranger"))
    verified = await verify(log, store)
    assert set(verified.differences) == {
        Difference("order-1", "head", "context is not what the log says"),
        Difference("order-2", "head", "it is missing"),
        Difference("order-3", "archive", "event 5 is missing"),
        Difference("order-4", "archive", "an event is not what the log says"),
        Difference("stranger", "saga", "the log does not know it"),
    }
    assert len((await verify(log, store, max_differences=2)).differences) == 2


async def test_a_log_that_does_not_answer_does_not_hold_up_a_stop() -> None:
    log, store, stop = Silent(1), MemoryProjectionStore(), asyncio.Event()
    told = asyncio.Event()
    work = asyncio.create_task(
        run(log, store, stop=stop, on_progress=lambda _: told.set(), every_s=0.01)
    )
    async with asyncio.timeout(10):
        await told.wait()
        log.silent = True
        stop.set()
        reached = await work
    assert [status.partition for status in reached] == [0]


class Silent(MemoryEventLog):
    """Once it is silent it answers nothing, as a broker that is frozen."""

    silent = False

    async def bounds(self, partition: int) -> Bounds:
        if self.silent:
            await asyncio.Event().wait()
        return await super().bounds(partition)
