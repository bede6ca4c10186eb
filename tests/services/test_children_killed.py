"""kill -9 of process after process, each at another place between a parent and its child."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Engine, EngineConfig, Saga, action, child, connect
from sagaz_es.connect import open_log
from sagaz_es.core import events as e
from tests.services import children_worker
from tests.services.children_worker import Order, Payment
from tests.services.running import Processes

ORDERS = 6
PARTITIONS = 3
PLACES = [
    "order ChildStarted",  # decided, and the child has not begun
    "payment SagaStarted",
    "payment SagaCompleted",  # ended, and its parent has not heard of it
    "UndoRequested",  # asked to go back, and nobody has answered
    "payment CompensationStarted",
    "payment SagaRolledBack",
]


def keys(tmp_path: Path) -> dict[str, set[str]]:
    """What was called in the world, by the idempotency keys it was called with."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in (tmp_path / "ledger").read_text().splitlines():
        what, key = line.split("\t")
        found[what].add(key)
    return found


async def outcome(engine: Engine, saga_id: str) -> str:
    result = await (await engine.handle(saga_id)).result(timeout=60)
    return str(result.status)


async def test_killed_between_a_parent_and_its_child_both_end_and_nothing_is_doubled(
    log_url: str, processes: Processes, tmp_path: Path
) -> None:
    for place in [*PLACES, ""]:
        # It starts all orders that are not there yet, and dies at this place.
        ledger = str(tmp_path / "ledger")
        process = processes.start("children_worker", log_url, str(ORDERS), place, LEDGER=ledger)
        if place:
            assert await asyncio.to_thread(process.wait, 60) == -signal.SIGKILL, place

    engine = connect(open_log(log_url), sagas=[Order])
    await engine.open(join=False)  # it serves nothing: the last process does
    try:
        begun = [f"order-{number}" for number in range(ORDERS)]
        async with asyncio.timeout(60):
            while not await _exists(engine, begun[-1]):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        ended = {saga_id: await outcome(engine, saga_id) for saga_id in begun}
        children = {saga_id: await _children(engine, saga_id) for saga_id in begun}
        ends = {kid: await outcome(engine, kid) for [kid] in children.values()}
    finally:
        await engine.close()
    happened = keys(tmp_path)
    for saga_id, [kid] in children.items():
        odd = int(saga_id.removeprefix("order-")) % 2
        assert ended[saga_id] == ("rolled_back" if odd else "completed")
        assert ends[kid] == ("rolled_back" if odd else "completed")
        assert kid.startswith(f"{saga_id}/payment")
        assert (f"{kid}/capture/compensation" in happened["refund"]) == bool(odd)
    # One child each: nothing else was ever authorized.
    assert happened["authorize"] == {f"{kid}/authorize" for kid in ends}
    assert happened["capture"] == {f"{kid}/capture" for kid in ends}
    assert len(happened["void"]) == sum(1 for end in ends.values() if end == "rolled_back")


async def _exists(engine: Engine, saga_id: str) -> bool:
    return bool(await engine.log.read_saga(saga_id))


async def _children(engine: Engine, saga_id: str) -> list[str]:
    """The children that its stream decides about, each once."""
    found = [
        record.entry.fact.child_saga_id
        for record in await engine.log.read_saga(saga_id)
        if isinstance(record.entry, e.Event) and isinstance(record.entry.fact, e.ChildStarted)
    ]
    return list(dict.fromkeys(found))


class Shop(Saga):
    """Knows the payment's saga by its name: engines of another group have it."""

    saga_name = "shop"

    @child("payment", "payment", result_keys=["receipt"])
    async def payment(self, ctx: Any) -> Any:
        return {"amount": ctx["amount"]}

    @action("ship", max_retries=0)
    async def ship(self, ctx: Any) -> None:
        if ctx["receipt"] % 2:
            raise ValueError("no truck")


async def test_a_group_of_its_own_runs_the_children_and_takes_them_back(
    log_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children_worker, "LEDGER", str(tmp_path / "ledger"))
    shops, payments = EngineConfig(group="shops"), EngineConfig(group="payments")
    async with (
        connect(open_log(log_url), sagas=[Payment], config=payments) as bank,
        connect(open_log(log_url), sagas=[Shop], config=shops) as engine,
    ):
        handles = [await engine.start(Shop, {"amount": n}) for n in range(8)]
        results = [await handle.result(timeout=60) for handle in handles]
        children = {(await _children(engine, handle.saga_id))[0]: handle for handle in handles}
        ends = [str(await bank.status(child_id)) for child_id in children]
        assert not bank.host.runners and not engine.host.runners
    assert [str(r.status) for r in results] == ["completed", "rolled_back"] * 4
    assert ends == ["completed", "rolled_back"] * 4
    assert keys(tmp_path)["capture"] == {f"{child_id}/capture" for child_id in children}
    assert len(keys(tmp_path)["refund"]) == 4
