"""What an engine takes over runs within its bound, in turn with new starts, and loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Engine, Saga, SagaStatus, action, child, compensate, trigger
from sagaz_es.connect import open_log
from sagaz_es.core import events as e
from sagaz_es.engine.config import EngineConfig
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import EventLog
from tests.helpers import SetClock, story


class World:
    """What the steps below did, in order; while it is closed, they wait in their middle."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.running = self.most = 0
        self.opened = asyncio.Event()
        self._came = asyncio.Condition()

    async def enter(self, what: str) -> None:
        self.began.append(what)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async with self._came:
                self._came.notify_all()
            await self.opened.wait()
        finally:
            self.running -= 1

    async def came(self, count: int) -> None:
        """Until so many steps have begun."""
        async with asyncio.timeout(30), self._came:
            await self._came.wait_for(lambda: len(self.began) >= count)


class Order(Saga):
    saga_name = "order"

    @action("only")
    async def only(self, ctx: Any) -> None:
        await ctx.resources["world"].enter(ctx["order"])

    @compensate("only", on_unknown=True)
    async def undo(self, ctx: Any) -> None:
        await ctx.resources["world"].enter(f"undo {ctx['order']}")


class Other(Order):
    saga_name = "other"


class Hurried(Order):
    saga_name = "hurried"
    deadline_seconds = 60


class Approval(Saga):
    saga_name = "approval"

    @action("act", wait_for="approved", wait_seconds=3600)
    async def act(self, ctx: Any) -> dict[str, Any]:
        return {"by": ctx.signal}


class Outer(Saga):
    """Its step waits for another saga of the engine."""

    saga_name = "outer"

    @action("only")
    async def only(self, ctx: Any) -> None:
        await ctx.resources["world"].enter("outer")
        handle = await ctx.resources["engine"]().handle("inner")
        assert (await handle.result()).success


class Flaky(Saga):
    """Its step fails once, and is tried again after a while."""

    saga_name = "flaky"

    @action("only", max_retries=1, retry_delay_seconds=20)
    async def only(self, ctx: Any) -> None:
        if ctx.attempt == 1:
            raise OSError("away")
        await ctx.resources["world"].enter(ctx["order"])


class Parent(Saga):
    saga_name = "parent"

    @child("flaky", Flaky)
    async def flaky(self, ctx: Any) -> dict[str, str]:
        return {"order": "child"}


class Caller(Saga):
    """Its step starts a saga that has a child, and keeps its room until that has ended."""

    saga_name = "caller"

    @action("only")
    async def only(self, ctx: Any) -> None:
        assert (await ctx.resources["engine"]().run(Parent)).success


class Single(Saga):
    """One of them runs at a time."""

    saga_name = "single"

    @trigger("single", idempotency_key="order", max_concurrent=1)
    def on_order(self, event: Any) -> dict[str, Any]:
        return dict(event)

    @action("only", max_retries=1, retry_delay_seconds=20)
    async def only(self, ctx: Any) -> None:
        if ctx.attempt == 1 and ctx["order"] == "first":
            raise OSError("away")


class Queued(Saga):
    """Its step waits, with its room, for a saga that waits for its turn."""

    saga_name = "queued"

    @action("only")
    async def only(self, ctx: Any) -> None:
        assert (await ctx.resources["engine"]().run(Single, {"order": "second"})).success


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture(params=["memory", "sqlite"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventLog]:
    yield (
        MemoryEventLog(4)
        if request.param == "memory"
        else open_log(f"sqlite:///{tmp_path}/log.db?partitions=4")
    )


def engine_of(
    world: World,
    log: EventLog,
    most: int,
    *,
    clock: SetClock | None = None,
    engine: Callable[[], Engine] | None = None,
) -> Engine:
    return Engine(
        log,
        sagas=(Order, Other, Hurried, Approval, Outer, Flaky, Parent, Caller, Single, Queued),
        resources={"world": world, "engine": engine},
        clock=clock,
        config=EngineConfig(max_in_flight=most, drain_seconds=0.01, request_seconds=5),
    )


async def left_behind(
    log: EventLog,
    ids: Sequence[str],
    saga: type[Saga] = Order,
    *,
    clock: SetClock | None = None,
) -> Sequence[str]:
    """Sagas inside their only step when their engine has stopped; their ids."""
    world = World()
    async with engine_of(world, log, 0, clock=clock) as engine:
        for saga_id in ids:
            await engine.start(saga, {"order": saga_id}, saga_id=saga_id)
        await world.came(len(ids))
    return ids


async def ended(engine: Engine, ids: Sequence[str]) -> list[SagaStatus]:
    return [(await (await engine.handle(i)).result(30)).status for i in ids]


async def in_flight_and_unfinished(engine: Engine) -> tuple[int, int]:
    health = await engine.health()
    return health.sagas_in_flight, health.sagas_unfinished


async def until(engine: Engine, waiting: int) -> None:
    """Until so many sagas that were taken over, or woken, wait for room."""
    async with asyncio.timeout(30):
        while (await engine.health()).takeovers_waiting != waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_never_more_of_what_was_taken_over_run_than_may(log: EventLog, world: World) -> None:
    ids = await left_behind(log, [f"o-{n}" for n in range(60)])
    async with engine_of(world, log, 4) as engine:
        await world.came(4)
        await until(engine, 56)
        assert (await engine.health()).sagas_in_flight == 4
        world.opened.set()
        assert await ended(engine, ids) == [SagaStatus.COMPLETED] * 60
        health = await engine.health()
    assert world.most == 4
    assert sorted(world.began) == sorted(ids)
    assert (health.sagas_in_flight, health.takeovers_waiting) == (0, 0)


async def test_what_waits_is_claimed_already(world: World) -> None:
    log = MemoryEventLog(1)
    await left_behind(log, ["a", "b"])
    async with engine_of(world, log, 1) as engine:
        await until(engine, 1)
        assert [(await story(log, i))[-1] for i in ("a", "b")] == [
            "StepStarted only",
            "SagaClaimed",
        ]


async def test_new_starts_and_what_was_taken_over_take_turns(world: World) -> None:
    log = MemoryEventLog(1)
    await left_behind(log, [f"old-{n}" for n in range(4)])
    async with engine_of(world, log, 1) as engine:
        await until(engine, 3)
        handles = [await engine.start(Order, {"order": f"new-{n}"}) for n in range(4)]
        world.opened.set()
        for handle in handles:
            assert (await handle.result(30)).success
    assert world.began[0] == "old-0"
    assert {began[:3] for began in world.began[1:3]} == {"old", "new"}
    assert {began[:3] for began in world.began[3:5]} == {"old", "new"}


async def test_of_two_classes_taken_over_each_has_its_turn(world: World) -> None:
    log = MemoryEventLog(1)
    await left_behind(log, [f"order-{n}" for n in range(5)])
    await left_behind(log, ["other-0", "other-1"], Other)
    async with engine_of(world, log, 1) as engine:
        await until(engine, 6)
        world.opened.set()
        await ended(engine, ["order-4", "other-1"])
    assert world.began[:5] == ["order-0", "order-1", "other-0", "order-2", "other-1"]


async def test_what_waits_for_a_signal_waits_for_room_once_that_has_come(world: World) -> None:
    log = MemoryEventLog(1)
    await left_behind(log, ["a", "b"])
    async with engine_of(world, log, 0) as engine:
        await engine.start(Approval, saga_id="approval")
    world = World()
    async with engine_of(world, log, 1) as engine:
        await world.came(1)
        await engine.signal("approval", "approved", "olga")
        assert (await story(log, "approval"))[-1] == "SignalReceived"
        assert world.running == 1
        world.opened.set()
        assert await ended(engine, ["approval", "a", "b"]) == [SagaStatus.COMPLETED] * 3


# --- woken ---------------------------------------------------------------------------------------


async def test_what_many_have_waited_for_wakes_no_more_than_may_run(world: World) -> None:
    log, clock = MemoryEventLog(2), SetClock()
    async with engine_of(world, log, 2, clock=clock) as engine:
        for number in range(20):
            await engine.start(Flaky, {"order": f"f-{number}"}, saga_id=f"f-{number}")
        async with asyncio.timeout(30):
            while await in_flight_and_unfinished(engine) != (0, 20):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        clock.advance(60_000_000)
        await world.came(2)
        await until(engine, 18)
        assert await in_flight_and_unfinished(engine) == (2, 20)
        world.opened.set()
        ids = [f"f-{number}" for number in range(20)]
        assert await ended(engine, ids) == [SagaStatus.COMPLETED] * 20
    assert world.most == 2
    assert sorted(world.began) == sorted(ids)


async def test_what_wakes_and_new_starts_take_turns(world: World) -> None:
    log, clock = MemoryEventLog(1), SetClock()
    async with engine_of(world, log, 1, clock=clock) as engine:
        for name in ("f-0", "f-1", "f-2"):
            await engine.start(Flaky, {"order": name}, saga_id=name)
        async with asyncio.timeout(30):
            while await in_flight_and_unfinished(engine) != (0, 3):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await engine.start(Order, {"order": "a"}, saga_id="a")
        for name in ("b", "c"):
            await engine.start(Order, {"order": name}, saga_id=name)
        await world.came(1)
        clock.advance(60_000_000)
        await until(engine, 3)
        world.opened.set()
        ids = ["a", "b", "c", "f-0", "f-1", "f-2"]
        assert await ended(engine, ids) == [SagaStatus.COMPLETED] * 6
    flaky = [name.startswith("f") for name in world.began[1:]]
    assert flaky == [True, False, True, False, True]


async def test_a_child_that_wakes_does_not_wait_for_the_room_of_who_waits_for_its_parent(
    world: World,
) -> None:
    clock, engines = SetClock(), list[Engine]()
    world.opened.set()
    async with engine_of(
        world, MemoryEventLog(1), 1, clock=clock, engine=lambda: engines[-1]
    ) as engine:
        engines.append(engine)
        handle = await engine.start(Caller, saga_id="caller")
        async with asyncio.timeout(30):
            while await in_flight_and_unfinished(engine) != (1, 3):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        clock.advance(60_000_000)
        assert (await handle.result(30)).success


async def test_one_that_wakes_with_the_turn_of_its_class_does_not_wait_for_room(
    world: World,
) -> None:
    clock, engines = SetClock(), list[Engine]()
    made = engine_of(world, MemoryEventLog(1), 1, clock=clock, engine=lambda: engines[-1])
    async with made as engine:
        engines.append(engine)
        await engine.start(Single, {"order": "first"}, saga_id="first")
        async with asyncio.timeout(30):
            while await in_flight_and_unfinished(engine) != (0, 1):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            handle = await engine.start(Queued, saga_id="queued")
            while await in_flight_and_unfinished(engine) != (1, 3):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        clock.advance(60_000_000)
        assert (await handle.result(30)).success
        assert await ended(engine, ["first"]) == [SagaStatus.COMPLETED]


# --- asked of a saga that waits ------------------------------------------------------------------


async def test_a_cancel_stands_at_once_and_what_it_undoes_runs_in_its_turn(world: World) -> None:
    log = MemoryEventLog(1)
    await left_behind(log, ["a", "b"])
    async with engine_of(world, log, 1) as engine:
        await until(engine, 1)
        await engine.cancel("b", reason="not wanted")
        assert (await story(log, "b"))[-1] == "CompensationStarted"
        assert world.began == ["a"]
        world.opened.set()
        assert await ended(engine, ["a", "b"]) == [SagaStatus.COMPLETED, SagaStatus.CANCELLED]
    assert world.began == ["a", "undo b"]
    assert world.most == 1


async def test_a_saga_that_is_paused_while_it_waits_leaves_its_turn_to_others(world: World) -> None:
    log = MemoryEventLog(1)
    await left_behind(log, ["a", "b", "c"])
    async with engine_of(world, log, 1) as engine:
        await until(engine, 2)
        await engine.pause("b", reason="look at it first")
        world.opened.set()
        assert await ended(engine, ["a", "c"]) == [SagaStatus.COMPLETED] * 2
        assert world.began == ["a", "c"]
        await engine.resume("b")
        assert await ended(engine, ["b"]) == [SagaStatus.COMPLETED]


async def test_a_saga_that_a_step_waits_for_does_not_wait_for_its_room(world: World) -> None:
    log, engines = MemoryEventLog(1), list[Engine]()
    first = World()
    async with engine_of(first, log, 0, engine=lambda: engines[-1]) as engine:
        engines.append(engine)
        await engine.start(Outer, saga_id="outer")
        await engine.start(Order, {"order": "inner"}, saga_id="inner")
        await first.came(2)
    world.opened.set()
    async with engine_of(world, log, 1, engine=lambda: engines[-1]) as engine:
        engines.append(engine)
        assert await ended(engine, ["outer", "inner"]) == [SagaStatus.COMPLETED] * 2


async def test_its_deadline_is_kept_while_it_waits(world: World) -> None:
    log, clock = MemoryEventLog(1), SetClock()
    await left_behind(log, ["a"], clock=clock)
    await left_behind(log, ["b"], Hurried, clock=clock)
    async with engine_of(world, log, 1, clock=clock) as engine:
        await until(engine, 1)
        clock.advance(61_000_000)
        async with asyncio.timeout(30):
            while (await story(log, "b"))[-1] != "CompensationStarted":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert world.began == ["a"]


# --- over crashes and hand-overs -----------------------------------------------------------------


async def test_what_still_waits_when_its_engine_stops_runs_in_the_next_one(
    log: EventLog, world: World
) -> None:
    ids = await left_behind(log, [f"o-{n}" for n in range(30)])
    async with engine_of(World(), log, 2) as engine:
        await until(engine, 28)
    async with engine_of(world, log, 2) as engine:
        world.opened.set()
        assert await ended(engine, ids) == [SagaStatus.COMPLETED] * 30
    assert sorted(world.began) == sorted(ids)
    assert world.most <= 2


async def test_what_waits_goes_along_with_its_partition(world: World) -> None:
    log = MemoryEventLog(2)
    ids = await left_behind(log, [f"o-{n}" for n in range(30)])
    async with engine_of(world, log, 1) as first:
        await until(first, 29)
        async with engine_of(world, log, 1) as second:
            assert len(second.host.partitions) == 1
            world.opened.set()
            assert await ended(second, ids) == [SagaStatus.COMPLETED] * 30
    assert set(world.began) == set(ids)
    assert world.most <= 2


async def test_the_mark_does_not_pass_what_waits(world: World) -> None:
    log = MemoryEventLog(1)
    await left_behind(log, ["a", "b"])
    async with engine_of(world, log, 1) as engine:
        await until(engine, 1)
    mark = await log.low_water_mark(0)
    started = [
        record.entry.saga_id
        for record in (await log.read(0, mark)).records
        if isinstance(record.entry, e.Event) and isinstance(record.entry.fact, e.SagaStarted)
    ]
    assert started == ["a", "b"]
