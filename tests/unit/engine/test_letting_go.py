"""Letting a partition go: sagas of which nothing runs need no word, and are carried on at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Engine, Saga, SagaStatus, action
from sagaz_es.connect import open_log
from sagaz_es.core import events as e
from sagaz_es.engine import serving
from sagaz_es.engine.config import EngineConfig
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import EventLog, Membership
from tests.helpers import story

MANY = 4000


class Approval(Saga):
    saga_name = "approval"

    @action("ask")
    async def ask(self, ctx: Any) -> dict[str, Any]:
        ctx.resources["asked"].append(ctx.saga_id)
        return {"asked": ctx["order"]}

    @action("act", depends_on=["ask"], wait_for="approved")
    async def act(self, ctx: Any) -> dict[str, Any]:
        return {"by": ctx.signal}


class Held(Saga):
    saga_name = "held"

    @action("only")
    async def only(self, ctx: Any) -> None:
        ctx.resources["asked"].append(ctx.saga_id)
        await ctx.resources["held"].wait()


def engine_on(log: EventLog, asked: list[str], held: asyncio.Event | None = None) -> Engine:
    return Engine(
        log,
        sagas=[Approval, Held],
        resources={"asked": asked, "held": held},
        config=EngineConfig(drain_seconds=0.05, request_seconds=30),
    )


async def released(log: EventLog) -> list[str]:
    found = []
    for partition in range(log.partitions):
        offset = 0
        while offset < (await log.bounds(partition)).end:
            chunk = await log.read(partition, offset, limit=5000)
            offset = chunk.next_offset
            found += [
                record.entry.saga_id
                for record in chunk.records
                if isinstance(record.entry, e.Event)
                and isinstance(record.entry.fact, e.SagaReleased)
            ]
    return found


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_thousands_that_wait_are_let_go_without_a_word_and_go_on_in_the_next_engine(
    kind: str, tmp_path: Path
) -> None:
    log = MemoryEventLog(4) if kind == "memory" else open_log(f"sqlite:///{tmp_path}/log.db")
    asked: list[str] = []
    ids = []
    async with engine_on(log, asked) as first:
        for _ in range(0, MANY, 500):
            handles = await asyncio.gather(
                *(first.start(Approval, {"order": "o-17"}) for _ in range(500))
            )
            ids += [handle.saga_id for handle in handles]
        async with asyncio.timeout(60):
            while (await first.health()).sagas_in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    async with engine_on(log, asked) as second:
        for saga_id in ids[:: MANY // 20]:
            await second.signal(saga_id, "approved", "olga")
            result = await (await second.handle(saga_id)).result(30)
            assert (result.status, result.context["by"]) == (SagaStatus.COMPLETED, "olga")
        assert await released(log) == []
    assert sorted(asked) == sorted(ids)


async def test_of_a_step_that_is_cut_off_the_next_owner_is_told() -> None:
    log, asked = MemoryEventLog(1), list[str]()
    async with engine_on(log, asked, asyncio.Event()) as engine:
        await engine.start(Held, saga_id="held")
        await engine.start(Approval, {"order": "o-17"}, saga_id="approval")
        async with asyncio.timeout(30):
            while (await engine.health()).sagas_in_flight != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert await released(log) == ["held"]
    assert (await story(log, "approval"))[-1] == "StepWaiting act"


class Mute(MemoryEventLog):
    """Once it is mute it confirms nothing: no append, no mark."""

    mute = False

    async def append(self, partition: int, entries: Sequence[e.Entry]) -> int:
        if self.mute:
            await asyncio.Event().wait()
        return await super().append(partition, entries)

    async def join(self, *args: Any, **named: Any) -> Membership:
        membership = await super().join(*args, **named)
        log, commit = self, membership.commit_low_water_mark

        class Muted:
            leave = membership.leave
            predecessor_is_alive = membership.predecessor_is_alive

            async def commit_low_water_mark(
                self, partition: int, offset: int, note: str = ""
            ) -> None:
                if log.mute:
                    await asyncio.Event().wait()
                await commit(partition, offset, note)

        return Muted()


@pytest.mark.parametrize("busy", [True, False])
async def test_a_log_that_does_not_answer_does_not_hold_an_engine_up_that_stops(
    busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "RELEASE_SECONDS", 0.05)
    log, asked = Mute(1), list[str]()
    async with asyncio.timeout(30):
        async with engine_on(log, asked, asyncio.Event()) as engine:
            if busy:
                await engine.start(Held, saga_id="held")
            log.mute = True
    log.mute = False
    held = asyncio.Event()
    held.set()
    async with engine_on(log, asked, held) as engine:
        if busy:
            assert (await (await engine.handle("held")).result(30)).success


class Overlapping(MemoryEventLog):
    """Who had a partition before is a member still, as where two share a group on Kafka."""

    async def join(self, *args: Any, **named: Any) -> Membership:
        membership = await super().join(*args, **named)

        class Lasting:
            leave = membership.leave
            commit_low_water_mark = membership.commit_low_water_mark

            async def predecessor_is_alive(self, partition: int) -> bool:
                return True

        return Lasting()


async def test_only_what_is_under_way_waits_for_the_old_owners_word() -> None:
    log, asked, held = Overlapping(1), list[str](), asyncio.Event()
    old = await left_by_an_engine_that_lives()
    last = old.pop()
    assert (last.saga_id, type(last.fact)) == ("held", e.SagaReleased)
    await log.append(0, old)
    patient = EngineConfig(drain_seconds=60)
    resources = {"asked": asked, "held": held}
    async with Engine(log, sagas=[Approval, Held], resources=resources, config=patient) as engine:
        await engine.signal("approval", "approved", "olga")
        result = await (await engine.handle("approval")).result(30)
        assert result.status is SagaStatus.COMPLETED
        assert "SagaClaimed" not in await story(log, "held")
        await log.append(0, [last])
        held.set()
        assert (await (await engine.handle("held")).result(30)).status is SagaStatus.COMPLETED
    assert asked == ["held"]


async def left_by_an_engine_that_lives() -> list[e.Event]:
    """One saga that waits for a signal, one inside its step that is cut off and released last."""
    log = MemoryEventLog(1)
    async with engine_on(log, [], asyncio.Event()) as engine:
        await engine.start(Held, saga_id="held")
        await engine.start(Approval, {"order": "o-17"}, saga_id="approval")
        async with asyncio.timeout(30):
            while (await engine.health()).sagas_in_flight != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    records = (await log.read(0, 0)).records
    return [record.entry for record in records if isinstance(record.entry, e.Event)]
