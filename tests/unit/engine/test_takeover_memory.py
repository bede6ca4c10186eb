"""How much of a partition is held while it is read, and that it is the same in parts."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Engine, Saga, SagaStatus, action, connect
from sagaz_es.engine import takeover
from sagaz_es.engine.takeover import Found, read_from_mark

SAGAS = 1500
CONTEXT = {f"key {number}": "x" * 100 for number in range(20)}


class Approval(Saga):
    saga_name = "approval"
    calls: tuple[str, ...] = ()

    @action("ask")
    async def ask(self, ctx: Any) -> None:
        Approval.calls += (f"ask {ctx.saga_id}",)

    @action("approve", wait_for="go")
    async def approve(self, ctx: Any) -> None:
        Approval.calls += (f"approve {ctx.saga_id}",)


class Quick(Saga):
    saga_name = "quick"

    @action("look", effects=False)
    async def look(self, ctx: Any) -> None: ...


def opened(tmp_path: Path) -> Engine:
    return connect(f"sqlite:///{tmp_path}/log.db?partitions=1", sagas=[Approval, Quick])


async def read(tmp_path: Path) -> tuple[Found, int]:
    """What an engine finds, and how many bytes it took at most beyond what it keeps of it."""
    reader = opened(tmp_path)
    await reader.open(join=False)
    try:
        tracemalloc.start()
        found = await read_from_mark(reader.log, reader.store, 0)
        kept, peak = tracemalloc.get_traced_memory()
        return found, peak - kept
    finally:
        tracemalloc.stop()
        await reader.close()


@pytest.mark.parametrize("ended", [True, False])
async def test_of_very_many_sagas_no_more_than_some_are_whole_at_a_time(
    ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "MANY", 50)
    monkeypatch.setattr(takeover, "READ", 50)
    async with opened(tmp_path) as engine:
        await engine.start(Approval, saga_id="first")  # it holds the mark
        kind = Quick if ended else Approval
        start = engine.run if ended else engine.start
        for first in range(0, SAGAS, 100):
            some = (start(kind, CONTEXT, saga_id=f"s{first + n}") for n in range(100))
            await asyncio.gather(*some)
    found, more = await read(tmp_path)
    assert len(found.unfinished) == (1 if ended else SAGAS + 1)
    assert more / SAGAS < 1500, "a whole state takes some 4,000 bytes"


@pytest.mark.parametrize("many", [1, 2, 2000])
async def test_what_is_looked_up_in_parts_is_carried_on_as_a_whole(
    many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "MANY", many)
    monkeypatch.setattr(Approval, "calls", ())
    ids = [f"s{number}" for number in range(5)]
    async with opened(tmp_path) as engine:
        for saga_id in ids:
            await engine.start(Approval, saga_id=saga_id)
        assert (await engine.run(Quick, saga_id="q")).success
        plan = await engine.plan_replay("q", "look")
        branch = (await engine.replay(plan, actor="ann", reason="again")).new_saga_id
    async with opened(tmp_path) as engine:
        for saga_id in ids:
            await engine.signal(saga_id, "go")
            assert (await (await engine.handle(saga_id)).result(10)).success
        assert await engine.status("q") is SagaStatus.COMPLETED
        assert (await engine.run(Quick, saga_id="q")).saga_id == "q", "it is not begun again"
        assert (await (await engine.history("q")).now()).branch == branch
    asked = [call for call in Approval.calls if call.startswith("ask")]
    assert sorted(asked) == [f"ask {saga_id}" for saga_id in ids], "each once"
    assert len(Approval.calls) == 10
