"""kill -9 of projectors in the middle of their work; the store is the fold of the log anyway."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sagaz_es.connect import open_log, open_store
from sagaz_es.core import events as e
from sagaz_es.core.fold import fold_all
from sagaz_es.core.snapshot import SnapshotPolicy, SnapshotStrategy, dump_policy
from sagaz_es.ports import EventLog, ProjectionStore
from sagaz_es.reading.projector import Projector
from sagaz_es.testing.contracts.histories import declined_facts, history, order_facts
from sagaz_es_projections.verify import verify
from tests.services.running import Processes

PARTITIONS = 3
BEFORE = dump_policy(SnapshotPolicy(SnapshotStrategy.BEFORE_EACH_STEP))
SAGAS = {
    **{f"order-{n}": history(f"order-{n}", order_facts(policy=BEFORE)) for n in range(400)},
    **{f"declined-{n}": history(f"declined-{n}", declined_facts()) for n in range(100)},
}

ENDED = {"completed": 400, "rolled_back": 100}

Worker = Callable[[int], "subprocess.Popen[str]"]


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
async def log(log_url: str) -> AsyncIterator[EventLog]:
    log = open_log(log_url)
    await log.open()
    yield log
    await log.close()


@pytest.fixture
async def store(store_url: str, log: EventLog) -> AsyncIterator[ProjectionStore]:
    store = open_store(store_url, log)
    assert store is not None
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def start(processes: Processes, log_url: str, store_url: str) -> Worker:
    """Starts a projector with batches of so many records."""

    def started(batch: int) -> subprocess.Popen[str]:
        process = processes.start("projector_worker", log_url, store_url, str(batch))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    return started


async def fill(log: EventLog) -> None:
    """All sagas, step by step, as engines write them: many sagas in one append."""
    for place in range(9):
        by_partition: dict[int, list[e.Event]] = {}
        for saga_id, events in SAGAS.items():
            if place < len(events):
                by_partition.setdefault(log.partition_of(saga_id), []).append(events[place])
        for partition, batch in by_partition.items():
            await log.append(partition, batch)


async def test_after_any_kill_the_store_is_the_fold(
    log: EventLog, store: ProjectionStore, start: Worker
) -> None:
    await fill(log)
    chosen = random.Random(17)
    for batch in (3, 17, 50):
        process = await asyncio.to_thread(start, batch)
        await asyncio.sleep(chosen.uniform(0.1, 0.5))
        process.kill()
        await asyncio.to_thread(process.wait)
    projector = Projector(log, store)
    await projector.run_until(timeout_s=60)
    heads = {saga_id: fold_all(events) for saga_id, events in SAGAS.items()}
    assert await store.heads(SAGAS) == heads
    for saga_id, events in SAGAS.items():
        assert tuple(a.event for a in await store.archived(saga_id)) == events
        expected = 3 if saga_id.startswith("order") else 0
        assert len(await store.snapshots(saga_id)) == expected
    assert await store.rejected() == {}
    verified = await verify(log, store)
    assert (verified.sagas, verified.differences) == (500, ())


async def test_a_projector_that_is_asked_to_stop_stops_in_order(
    log: EventLog, store: ProjectionStore, start: Worker
) -> None:
    process = await asyncio.to_thread(start, 100)
    await fill(log)
    async with asyncio.timeout(60):
        # Another process' progress can only be asked for.
        while (await store.count_by_status()) != ENDED:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 10) == 0
    assert process.stdout is not None
    assert process.stdout.read() == "stopped\n"
