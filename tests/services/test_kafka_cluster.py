"""Three brokers, of which those that lead the log's partitions die or freeze under load."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest

from sagaz_es import SagaStatus
from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict
from tests.servers import KafkaCluster
from tests.services.test_network import World, judged

ORDERS = 40  # for each thing that happens
PARTITIONS = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    with KafkaCluster() as cluster:
        yield cluster


@pytest.mark.services
@pytest.mark.timeout(300)
async def test_a_cluster_that_loses_its_leaders_loses_no_order_and_repeats_no_step(
    cluster: KafkaCluster,
) -> None:
    world = World()
    url = f"kafka://{cluster.bootstrap}/orders?partitions={PARTITIONS}"
    async with asyncio.timeout(250), world.engine("only", url) as engine:
        ids: list[str] = []

        async def order(number: int) -> None:
            for _ in range(number):
                ids.append(f"order-{len(ids)}")
                await engine.start("order", {}, saga_id=ids[-1])

        async def leader() -> int:
            node = await asyncio.to_thread(cluster.leader, "orders.saga-events", 0)
            return node.number - 1

        ordering = asyncio.create_task(order(ORDERS))
        killed = cluster.nodes[await leader()]
        await asyncio.to_thread(killed.kill)
        await ordering
        await order(ORDERS)
        await asyncio.to_thread(killed.start)

        ordering = asyncio.create_task(order(ORDERS))
        frozen = cluster.nodes[await leader()]
        await asyncio.to_thread(frozen.pause)
        await ordering
        await asyncio.to_thread(frozen.resume)
        await order(ORDERS)

        for saga_id in ids:
            handle = await engine.handle(saga_id)
            assert (await handle.result()).status is SagaStatus.COMPLETED
        for saga_id in ids[:: ORDERS // 2]:
            verdicts = await judged(engine, saga_id)
            assert {verdict for verdict, _ in verdicts} <= {Verdict.ACCEPTED, Verdict.DUPLICATE}
            assert isinstance(verdicts[-1][1].fact, e.SagaCompleted)
    steps = ("reserve", "charge", "ship")
    assert Counter(world.begun) == Counter({("only", s, 1): len(ids) for s in steps})
