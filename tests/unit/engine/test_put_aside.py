"""A saga that waits takes little memory, and goes on as if it had been at hand."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Engine, Saga, SagaStatus, action, connect
from sagaz_es.core.state import SagaState, StepState
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.partitions.accepted import Accepted
from sagaz_es.engine.partitions.cell import Cell
from sagaz_es.log import recent
from sagaz_es.log.memory import MemoryEventLog


class Approval(Saga):
    saga_name = "approval"

    @action("ask")
    async def ask(self, ctx: Any) -> dict[str, Any]:
        return {"asked": ctx["order"]}

    @action("act", depends_on=["ask"], wait_for="approved")
    async def act(self, ctx: Any) -> dict[str, Any]:
        return {"by": ctx.signal, "for": ctx["asked"]}


async def parked(engine: Engine, count: int) -> list[Cell]:
    """The cells of so many sagas, once none of them runs."""
    async with asyncio.timeout(60):
        while True:
            cells = [
                cell for part in engine.host.partitions.values() for cell in part.cells.values()
            ]
            if len(cells) == count and not engine.host.runners:
                return cells
            await asyncio.sleep(0.01)


def is_aside(cell: Cell) -> bool:
    try:
        object.__getattribute__(cell, "state")
    except AttributeError:
        return True
    return False


def test_what_is_put_aside_comes_back_equal_and_some_is_known_without() -> None:
    state = SagaState("s-1", "approval", "executing", b"w" * 16, 2, 7, 1000, 2000)
    state.context = {"order": '"é\U0001f600"', "total": '{"$decimal":"9.90"}'}
    state.steps = {"ask": StepState("completed", 1, done_at=3, result='"r"')}
    state.signals = {"approved": ("1", "2")}
    expected = state.copy()
    cell = Cell(state, Accepted.of(state), ours=True, begin=4)
    cell.put_aside()
    assert (cell.ended, cell.started_at) == (False, 1000)
    assert is_aside(cell)
    assert cell.state == expected
    assert not is_aside(cell)
    assert (cell.ended, cell.started_at) == (False, 1000)


async def test_a_saga_that_waits_is_put_aside_and_goes_on_when_it_is_signalled() -> None:
    async with Engine(MemoryEventLog(2), sagas=[Approval]) as engine:
        handles = [await engine.start(Approval, {"order": f"o-{n}"}) for n in range(20)]
        assert all(map(is_aside, await parked(engine, 20)))
        for handle in handles:
            await engine.signal(handle.saga_id, "approved", "olga")
        for number, handle in enumerate(handles):
            result = await handle.result(30)
            assert result.status is SagaStatus.COMPLETED
            assert result.context == {
                "order": f"o-{number}",
                "asked": f"o-{number}",
                "by": "olga",
                "for": f"o-{number}",
            }


async def test_what_was_put_aside_is_released_and_taken_over_whole() -> None:
    log = MemoryEventLog(2)
    async with Engine(log, sagas=[Approval]) as first:
        handles = [await first.start(Approval, {"order": f"o-{n}"}) for n in range(20)]
        await parked(first, 20)
    async with Engine(log, sagas=[Approval]) as second:
        assert all(map(is_aside, await parked(second, 20)))
        for handle in handles:
            await second.signal(handle.saga_id, "approved", "olga")
            taken = await second.handle(handle.saga_id)
            assert (await taken.result(30)).context["for"] == (await taken.result(30)).context[
                "order"
            ]


async def test_a_waiting_saga_takes_less_than_two_kilobytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MAX_BYTES", 100_000)  # soon full: it must not count
    context = {"order": "o-17", "lines": [{"sku": f"sku-{n}", "count": n} for n in range(60)]}
    config = EngineConfig(projector=False)
    async with connect(f"sqlite:///{tmp_path}/log.db", sagas=[Approval], config=config) as engine:

        async def start(count: int) -> None:
            for _ in range(0, count, 50):
                await asyncio.gather(*(engine.start(Approval, context) for _ in range(50)))

        tracemalloc.start()
        try:
            await start(100)
            await parked(engine, 100)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            await start(500)
            await parked(engine, 600)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (after - before) / 500 < 2000
