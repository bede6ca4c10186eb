"""An engine at work keeps nothing of the sagas that have ended: objects are counted, not bytes."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Engine, ReplayConfig, Saga, action, compensate, connect
from sagaz_es.log import recent
from sagaz_es.log.partitioning import partition_of


class Order(Saga):
    saga_name = "order"
    replay_config = ReplayConfig(enable_snapshots=True)

    @action("reserve")
    async def reserve(self, ctx: Any) -> dict[str, str]:
        return {"reservation": ctx.idempotency_key}

    @compensate("reserve")
    async def release(self, ctx: Any) -> None: ...

    @action("charge", depends_on=["reserve"], max_retries=0)
    async def charge(self, ctx: Any) -> None:
        if ctx["declined"]:
            raise RuntimeError("declined")


async def sell(engine: Engine, count: int) -> int:
    """The blocks of memory that Python holds after so many more sagas, half of which fail."""
    for _ in range(0, count, 20):
        await asyncio.gather(*(engine.run(Order, {"declined": n % 2 == 0}) for n in range(20)))
    while (await engine.health()).projector_lag:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    for partition in engine.host.partitions.values():
        partition.forget_before(partition.position)  # as it does with each mark
    await engine.host.log.read(0, (await engine.host.log.bounds(0)).end)
    partition_of.cache_clear()  # it has a bound of its own
    gc.collect()
    return sys.getallocatedblocks()


async def test_an_engine_at_work_keeps_nothing_of_the_sagas_that_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "KEPT_S", 0.0)
    async with connect(f"sqlite:///{tmp_path}/log.db", sagas=[Order]) as engine:
        before = await sell(engine, 200)
        assert await sell(engine, 400) - before < 2000  # one that is kept is a hundred
