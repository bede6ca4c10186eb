"""Engines and projectors on a network that fails: bytes that do not arrive, connections cut."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sagaz_es import Engine, Saga, SagaStatus, action, connect
from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.reading.projector import Projector
from sagaz_es.storage.postgresql import PostgreSQLProjectionStore
from sagaz_es.testing.contracts.histories import history, order_facts
from sagaz_es_projections.verify import verify
from tests.helpers import Gate
from tests.servers import KafkaServer, PostgreSQLServer, Proxy, Way

PATIENCE_S = 60.0
SESSION = "session_timeout_ms=1000"


@pytest.fixture
async def proxy(kafka_server: KafkaServer, kafka_namespace: str) -> AsyncIterator[Proxy]:
    """Between the broker and whoever connects to `kafka_server.through_proxy`."""
    async with Proxy(kafka_server.behind_proxy, kafka_server.proxy_port) as proxy:
        yield proxy


class World:
    """What the steps of two engines did: engine, step, attempt."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str, int]] = []
        self.gate = Gate()

    def engine(self, name: str, url: str) -> Engine:
        return connect(url, sagas=[Order], resources={"world": self, "name": name})


class Order(Saga):
    """reserve → charge, in which the engine named "cut off" is held → ship."""

    saga_name = "order"

    @action("reserve")
    async def reserve(self, ctx: Any) -> None:
        self._begin(ctx)

    @action("charge", depends_on=["reserve"])
    async def charge(self, ctx: Any) -> None:
        self._begin(ctx)
        if ctx.resources["name"] == "cut off":
            await ctx.resources["world"].gate.pass_through()

    @action("ship", depends_on=["charge"])
    async def ship(self, ctx: Any) -> None:
        self._begin(ctx)

    @staticmethod
    def _begin(ctx: Any) -> None:
        ctx.resources["world"].begun.append((ctx.resources["name"], ctx.step, ctx.attempt))


async def judged(engine: Engine, saga_id: str) -> list[tuple[Verdict, e.Event]]:
    """Every event of a saga in the log, and whether the fold accepts it."""
    state = SagaState()
    records = await engine.log.read_saga(saga_id)
    events = [record.entry for record in records if isinstance(record.entry, e.Event)]
    return [(fold_into(state, event), event) for event in events]


@pytest.mark.parametrize("way", Way)
async def test_an_engine_behind_a_black_hole_loses_its_sagas_and_begins_no_effect_any_more(
    kafka_server: KafkaServer, kafka_namespace: str, proxy: Proxy, way: Way
) -> None:
    world = World()
    options = f"{kafka_namespace}?partitions=1&{SESSION}"
    cut_off = world.engine("cut off", f"kafka://{kafka_server.through_proxy}/{options}")
    healthy = world.engine("healthy", f"kafka://{kafka_server.bootstrap}/{options}")
    async with asyncio.timeout(PATIENCE_S), cut_off:
        handle = await cut_off.start(Order, {}, saga_id="order-17")
        await world.gate.entered()
        proxy.hold(way)
        async with healthy:
            there = await healthy.handle("order-17")
            assert (await there.result()).status is SagaStatus.COMPLETED

            world.gate.open()  # what it was doing is done, and it wants to say so and to ship
            await until_pending(cut_off)
            proxy.release()
            assert (await handle.result()).status is SagaStatus.COMPLETED
            fresh = await cut_off.start(Order, {}, saga_id="order-18")
            assert (await fresh.result()).status is SagaStatus.COMPLETED

            assert [one for one in world.begun if one[0] == "healthy"][:2] == [
                ("healthy", "charge", 2),
                ("healthy", "ship", 1),
            ]
            mine = Counter(step for name, step, _ in world.begun if name == "cut off")
            assert mine["ship"] <= 1  # of order-18, if it has its partition back
            verdicts = await judged(healthy, "order-17")
            last = [event for verdict, event in verdicts if verdict is Verdict.ACCEPTED][-1]
            assert isinstance(last.fact, e.SagaCompleted)
            assert last.writer == healthy.host.writer
            late = [event for verdict, event in verdicts if verdict is not Verdict.ACCEPTED]
            assert {event.writer for event in late} <= {cut_off.host.writer}


async def until_pending(engine: Engine) -> None:
    """Until it waits for the log to take what it has to say."""
    while not (await engine.health()).oldest_pending_append_s:  # noqa: ASYNC110 - only asked for
        await asyncio.sleep(0.02)


async def test_through_connections_that_break_at_any_byte_every_step_runs_once(
    kafka_server: KafkaServer, kafka_namespace: str, proxy: Proxy
) -> None:
    world, orders, chosen = World(), 60, random.Random(17)
    world.gate.open()
    url = f"kafka://{kafka_server.through_proxy}/{kafka_namespace}?partitions=2"
    async with asyncio.timeout(PATIENCE_S), world.engine("cut off", url) as engine:
        made = proxy.connections
        for number in range(orders):
            if number % 4 == 0:
                proxy.cut_after(chosen.randrange(1, 4000))
            await engine.start(Order, {}, saga_id=f"order-{number}")
        for number in range(orders):
            handle = await engine.handle(f"order-{number}")
            assert (await handle.result()).status is SagaStatus.COMPLETED
        assert proxy.connections > made + 5  # they did break
    once = Counter({("cut off", step, 1): orders for step in ("reserve", "charge", "ship")})
    assert Counter(world.begun) == once


async def test_through_a_slow_network_that_resets_connections_every_step_runs_once(
    kafka_server: KafkaServer, kafka_namespace: str, proxy: Proxy
) -> None:
    world, orders = World(), 40
    world.gate.open()
    url = f"kafka://{kafka_server.through_proxy}/{kafka_namespace}?partitions=2"
    async with asyncio.timeout(PATIENCE_S), world.engine("cut off", url) as engine:
        made = proxy.connections
        proxy.delay_s = 0.05
        ids, handles = [f"order-{number}" for number in range(orders)], []
        for first in range(0, orders, 8):
            starts = [engine.start(Order, {}, saga_id=each) for each in ids[first : first + 8]]
            started = asyncio.gather(*starts)
            await asyncio.sleep(0.1)  # into the middle of it
            proxy.reset()
            handles += await started
        for handle in handles:
            assert (await handle.result()).status is SagaStatus.COMPLETED
        assert proxy.connections > made + 5  # they were reset
    once = Counter({("cut off", step, 1): orders for step in ("reserve", "charge", "ship")})
    assert Counter(world.begun) == once


@pytest.mark.parametrize("how", ["in order", "kill -9"])
async def test_while_the_broker_restarts_again_and_again_every_step_runs_once(
    kafka_server: KafkaServer, kafka_namespace: str, how: str
) -> None:
    world, ids, enough = World(), list[str](), asyncio.Event()
    world.gate.open()
    url = f"kafka://{kafka_server.bootstrap}/{kafka_namespace}?partitions=2"
    async with asyncio.timeout(PATIENCE_S * 2), world.engine("only", url) as engine:

        async def order() -> None:
            while not enough.is_set():
                await engine.start(Order, {}, saga_id=f"order-{len(ids)}")
                ids.append(f"order-{len(ids)}")
                await asyncio.sleep(0.01)

        async def until_more(number: int) -> None:
            wanted = len(ids) + number
            while len(ids) < wanted:  # noqa: ASYNC110 - only counted
                await asyncio.sleep(0.01)

        ordering = asyncio.create_task(order())
        for _ in range(2):
            await until_more(20)
            if how == "kill -9":
                await asyncio.to_thread(kafka_server.kill)
            await asyncio.to_thread(kafka_server.restart)
        await until_more(20)
        enough.set()
        await ordering
        for saga_id in ids:
            handle = await engine.handle(saga_id)
            assert (await handle.result()).status is SagaStatus.COMPLETED
    once = Counter({("only", step, 1): len(ids) for step in ("reserve", "charge", "ship")})
    assert Counter(world.begun) == once


async def test_a_projector_whose_connections_break_at_any_byte_keeps_the_fold(
    postgresql_server: PostgreSQLServer, postgresql_url: str
) -> None:
    log, chosen = MemoryEventLog(2), random.Random(17)
    sagas = {f"order-{n}": history(f"order-{n}", order_facts()) for n in range(300)}
    async with asyncio.timeout(PATIENCE_S), Proxy(postgresql_server.port) as proxy:
        behind = postgresql_url.replace(f":{postgresql_server.port}/", f":{proxy.port}/")
        store = PostgreSQLProjectionStore(behind)
        await store.open()
        projector = Projector(log, store, batch=20)
        running = asyncio.create_task(projector.run())
        try:
            for number, (saga_id, events) in enumerate(sagas.items()):
                await log.append(log.partition_of(saga_id), events)
                if number % 20 == 0:
                    proxy.cut_after(chosen.randrange(1, 8000))
                    await asyncio.sleep(0.05)
            proxy.release()
            await projector.run_until()
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        assert projector.counters["store_failures"] > 3  # they did break
        verified = await verify(log, store)
        assert (verified.sagas, verified.differences) == (300, ())
        await store.close()
