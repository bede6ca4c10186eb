"""A parent and its child, with people who cancel, pause and signal either at any moment.

Every append of the log takes a random number of turns, and so does every step; each example is one
seed. Two engines come and go, so the family changes hands, too.

Law (no orphan): when the parent has ended, so has its child.
Law (no lies): what stands in the world is what the engine says of either.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from sagaz_es import Engine, Saga, action, child, compensate
from sagaz_es.core import events as e
from sagaz_es.errors import SagaError, SagaNotFound
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import QUIET, SetClock, engine_on

SEEDS = int(os.environ.get("SEEDS", "150"))


class SlowLog(MemoryEventLog):
    """Appends take their time."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__(2)
        self._dice = dice

    async def append(self, partition: int, entries: Sequence[e.Entry]) -> int:
        await turns(self._dice)
        base = await super().append(partition, entries)
        await turns(self._dice)
        return base


async def turns(dice: random.Random) -> None:
    for _ in range(dice.choice([0, 0, 1, 2, 5, 20])):
        await asyncio.sleep(0)


class Base(Saga):
    async def act(self, ctx: Any) -> Any:
        dice, stands = ctx.resources["dice"], ctx.resources["stands"]
        await turns(dice)
        if dice.random() < 0.06:
            raise ValueError(f"{ctx.step} fails")
        stands[ctx.idempotency_key] = ctx.step
        await turns(dice)
        return {"x": 1}

    async def back(self, ctx: Any) -> None:
        await turns(ctx.resources["dice"])
        key = ctx.idempotency_key.removesuffix("/compensation")
        ctx.resources["stands"].pop(key, None)


class Inner(Base):
    saga_name: ClassVar[str | None] = "inner"

    @action("x", max_retries=0)
    async def x(self, ctx: Any) -> Any:
        return await self.act(ctx)

    @compensate("x", on_unknown=True)
    async def undo_x(self, ctx: Any) -> None:
        await self.back(ctx)

    @action("y", max_retries=0, wait_for="go")
    async def y(self, ctx: Any) -> Any:
        return await self.act(ctx)

    @compensate("y", on_unknown=True)
    async def undo_y(self, ctx: Any) -> None:
        await self.back(ctx)


class Outer(Base):
    saga_name: ClassVar[str | None] = "outer"
    failure_strategy: ClassVar[Any] = "fail_fast"

    @child("inner", Inner, depends_on=[])
    async def inner(self, ctx: Any) -> Any:
        await turns(ctx.resources["dice"])
        return {}

    @action("side", depends_on=[], max_retries=0)
    async def side(self, ctx: Any) -> Any:
        return await self.act(ctx)

    @compensate("side", on_unknown=True)
    async def undo_side(self, ctx: Any) -> None:
        await self.back(ctx)

    @action("last", depends_on=["inner", "side"], max_retries=0)
    async def last(self, ctx: Any) -> Any:
        return await self.act(ctx)

    @compensate("last", on_unknown=True)
    async def undo_last(self, ctx: Any) -> None:
        await self.back(ctx)


async def meddle(engine: Engine, dice: random.Random, child_id: str) -> None:
    """People, who know of no order."""
    for _ in range(dice.randint(0, 6)):
        for _ in range(dice.randint(0, 40)):
            await asyncio.sleep(0)
        whose = dice.choice(["o", child_id])
        try:
            match dice.choice(["cancel", "pause", "resume", "signal", "signal", "signal"]):
                case "cancel":
                    await engine.cancel(whose)
                case "pause":
                    await engine.pause(whose)
                case "resume":
                    await engine.resume(whose)
                case "signal":
                    await engine.signal(child_id, "go")
        except (SagaError, TimeoutError):
            pass


async def relieve(engine: Engine, child_id: str) -> None:
    """In the end nobody leaves them paused, or waiting for a word."""
    for saga_id in ("o", child_id):
        try:
            await engine.resume(saga_id)
        except SagaError:
            pass
    while True:
        try:
            await engine.signal(child_id, "go")
            return
        except SagaNotFound:  # it has not begun, and may never
            await asyncio.sleep(0.001)
        except SagaError:
            return


async def live(seed: int) -> None:
    dice = random.Random(seed)
    stands: dict[str, str] = {}
    log = SlowLog(dice)
    clock = SetClock(jumps=True)
    resources = {"dice": dice, "stands": stands}
    how: dict[str, Any] = {"clock": clock, "config": QUIET, "resources": resources}
    lives = dice.randint(1, 3)
    for number in range(lives):
        async with engine_on(log, Outer, **how) as engine:
            if not number:
                await engine.start(Outer, saga_id="o")
            ids = [f"o/inner{end}" for end in ("", *(f"~{n}" for n in range(2, 20)))]
            child_id = next(i for i in ids if log.partition_of(i) == log.partition_of("o"))
            await meddle(engine, dice, child_id)
            if number < lives - 1:
                continue
            relieving = asyncio.create_task(relieve(engine, child_id))
            result = await (await engine.handle("o")).result(timeout=60)
            relieving.cancel()
            certain = Counter(name for name in result.committed_step_names if name != "inner")
            maybe = set(result.unknown_step_names)
            if child_id in result.children.values():
                inner = await engine.current(child_id)
                assert inner.ended, f"{inner.status}, and its parent is {result.status}"
                told = await engine.host.outcomes.result(inner)
                certain.update(told.committed_step_names)
                maybe.update(told.unknown_step_names)
                if result.success:
                    assert inner.status == "completed"
                if result.status in ("rolled_back", "cancelled"):
                    assert inner.status in ("rolled_back", "cancelled")
            found = Counter(stands.values())
            assert {k: v for k, v in found.items() if k not in maybe} == dict(certain)
            assert all(count == 1 for count in found.values())


@pytest.mark.parametrize("block", range(5))
def test_whatever_people_do_no_child_is_left_behind(block: int) -> None:
    for seed in range(block, SEEDS, 5):
        try:
            asyncio.run(live(seed))
        except BaseException:
            print(f"seed {seed}")
            raise
