"""A bound of sagas in flight: starts beyond it wait as requests in the log, and lose nothing."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sagaz_es import Engine, Saga, SagaStatus, action, connect, trigger
from sagaz_es.connect import open_log
from sagaz_es.core import events as e
from sagaz_es.engine import admission
from sagaz_es.engine.admission import Waiting
from sagaz_es.engine.config import EngineConfig
from sagaz_es.errors import ConfigurationError, HistoryGone, SagaNotFound, UnknownSagaName
from sagaz_es.log import recent
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Chunk, EventLog, Record
from sagaz_es.sagas.result import SagaHandle
from tests.helpers import Gate, story, until


def bound(sagas: int, **settings: Any) -> EngineConfig:
    return EngineConfig(max_in_flight=sagas, drain_seconds=1, request_seconds=5, **settings)


class World:
    """What the steps below did, in order; while it is closed, they wait in their middle."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.running = self.most = 0
        self._open = asyncio.Event()
        self._came = asyncio.Condition()

    def open(self) -> None:
        self._open.set()

    async def enter(self, order: str) -> None:
        self.began.append(order)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async with self._came:
                self._came.notify_all()
            await self._open.wait()
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


class Other(Saga):
    saga_name = "other"

    @action("only")
    async def only(self, ctx: Any) -> None:
        await ctx.resources["world"].enter(ctx["order"])


class Approval(Saga):
    saga_name = "approval"

    @action("act", wait_for="approved", wait_seconds=3600)
    async def act(self, ctx: Any) -> dict[str, Any]:
        return {"by": ctx.signal}


@pytest.fixture
async def world() -> World:
    return World()


def engine_of(
    world: World,
    log: EventLog,
    config: EngineConfig,
    sagas: Sequence[type[Saga]] = (Order, Other, Approval),
) -> Engine:
    return Engine(log, sagas=sagas, resources={"world": world}, config=config)


async def started(engine: Engine, saga: type[Saga], *orders: str) -> list[SagaHandle]:
    return [await engine.start(saga, {"order": order}) for order in orders]


async def ended(handles: Sequence[SagaHandle]) -> list[SagaStatus]:
    return [(await handle.result(30)).status for handle in handles]


async def requests(log: EventLog) -> list[e.StartRequested]:
    found = []
    for partition in range(log.partitions):
        chunk = await log.read(partition, 0, limit=100_000)
        found += [r.entry for r in chunk.records if isinstance(r.entry, e.StartRequested)]
    return found


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> EventLog:
    if request.param == "memory":
        return MemoryEventLog(4)
    return open_log(f"sqlite:///{tmp_path}/log.db")


async def test_never_more_sagas_run_than_may_and_each_runs_once(
    log: EventLog, world: World
) -> None:
    orders = [f"o-{n}" for n in range(40)]
    async with engine_of(world, log, bound(3)) as engine:
        handles = await started(engine, Order, *orders)
        await world.came(3)
        assert len(await requests(log)) == 37
        world.open()
        assert await ended(handles) == [SagaStatus.COMPLETED] * 40
        health = await engine.health()
    assert world.most == 3
    assert sorted(world.began) == sorted(orders)
    assert (health.sagas_in_flight, health.starts_waiting) == (0, 0)


async def test_in_one_partition_it_goes_by_the_order_of_coming(world: World) -> None:
    orders = [f"o-{n}" for n in range(20)]
    async with engine_of(world, MemoryEventLog(1), bound(1)) as engine:
        handles = await started(engine, Order, *orders)
        world.open()
        await ended(handles)
    assert world.began == orders


async def test_without_a_bound_no_start_waits(world: World) -> None:
    log = MemoryEventLog(1)
    async with engine_of(world, log, bound(0)) as engine:
        handles = await started(engine, Order, *(str(n) for n in range(1200)))
        await world.came(1200)
        world.open()
        await ended(handles)
    assert await requests(log) == []


def test_a_bound_below_zero_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_in_flight is 1 or more, or 0"):
        EngineConfig(max_in_flight=-1)


async def test_a_start_that_waits_is_pending_and_known_by_its_id(
    log: EventLog, world: World
) -> None:
    async with engine_of(world, log, bound(1)) as engine:
        first, second = await started(engine, Order, "a", "b")
        await world.came(1)
        assert await engine.status(first.saga_id) is SagaStatus.EXECUTING
        assert await engine.status(second.saga_id) is SagaStatus.PENDING
        assert (await engine.health()).starts_waiting == 1
        again = await engine.handle(second.saga_id)
        with pytest.raises(SagaNotFound):
            await engine.status("nobody")
        world.open()
        assert await ended([first, second, again]) == [SagaStatus.COMPLETED] * 3


async def test_a_saga_that_waits_for_a_signal_takes_no_room(world: World) -> None:
    async with engine_of(world, MemoryEventLog(1), bound(1)) as engine:
        waiting = [await engine.start(Approval) for _ in range(5)]
        world.open()
        done = await started(engine, Order, "a")
        assert await ended(done) == [SagaStatus.COMPLETED]
        for handle in waiting:
            await engine.signal(handle.saga_id, "approved", "olga")
        assert await ended(waiting) == [SagaStatus.COMPLETED] * 5


async def test_of_two_classes_that_wait_each_has_its_turn(world: World) -> None:
    async with engine_of(world, MemoryEventLog(1), bound(1)) as engine:
        handles = await started(engine, Order, *(f"order-{n}" for n in range(6)))
        handles += await started(engine, Other, "other-0", "other-1")
        world.open()
        await ended(handles)
    # The first runs when the others come; then they alternate, as long as both have any.
    assert world.began[:5] == ["order-0", "order-1", "other-0", "order-2", "other-1"]


async def test_a_saga_that_a_step_starts_and_waits_for_does_not_wait_for_its_room() -> None:
    class Parent(Saga):
        saga_name = "parent"

        @action("only")
        async def only(self, ctx: Any) -> None:
            results = await asyncio.gather(*(engine.run(Child) for _ in range(2)))
            assert all(result.success for result in results)

    class Child(Saga):
        saga_name = "child"

        @action("only")
        async def only(self, ctx: Any) -> None: ...

    engine = Engine(MemoryEventLog(2), sagas=[Parent, Child], config=bound(1))
    async with engine, asyncio.timeout(30):
        handles = [await engine.start(Parent) for _ in range(4)]
        assert await ended(handles) == [SagaStatus.COMPLETED] * 4


# --- by a given id ----------------------------------------------------------------------------


async def test_the_same_id_started_many_times_while_it_waits_runs_once(
    log: EventLog, world: World
) -> None:
    async with engine_of(world, log, bound(1)) as engine:
        first = await engine.start(Order, {"order": "a"})
        await world.came(1)
        handles = await asyncio.gather(
            *(engine.start(Order, {"order": "b"}, saga_id="b-1") for _ in range(5))
        )
        handles.append(await engine.start(Order, {"order": "b"}, saga_id="b-1"))
        world.open()
        assert await ended([first, *handles]) == [SagaStatus.COMPLETED] * 7
        assert await story(log, "b-1") == [
            "SagaStarted",
            "StepStarted only",
            "StepCompleted only",
            "SagaCompleted",
        ]
    assert world.began == ["a", "b"]


async def test_the_id_of_a_saga_that_has_ended_is_still_the_same_saga_where_there_is_no_room(
    log: EventLog, world: World
) -> None:
    world.open()
    async with engine_of(world, log, bound(1)) as engine:
        await engine.run(Order, {"order": "a"}, saga_id="a-1")
    world = World()
    async with engine_of(world, log, bound(1)) as engine:
        running = await engine.start(Order, {"order": "b"})
        await world.came(1)
        again = await engine.start(Order, {"order": "again"}, saga_id="a-1")
        world.open()
        assert await ended([running, again]) == [SagaStatus.COMPLETED] * 2
        assert (await again.result()).context == {"order": "a"}
    assert world.began == ["b"]


# --- asked of a saga whose start waits ---------------------------------------------------------


async def test_a_waiting_start_can_be_cancelled_and_nothing_of_it_runs(
    log: EventLog, world: World
) -> None:
    async with engine_of(world, log, bound(1)) as engine:
        handles = await started(engine, Order, "a", "b", "c")
        await world.came(1)
        await engine.cancel(handles[1].saga_id, reason="not wanted", actor="olga")
        assert await ended(handles[1:2]) == [SagaStatus.CANCELLED]
        world.open()
        assert await ended(handles) == [
            SagaStatus.COMPLETED,
            SagaStatus.CANCELLED,
            SagaStatus.COMPLETED,
        ]
        state = await engine.current(handles[1].saga_id)
    assert world.began == ["a", "c"]
    assert (state.undo_reason, state.undo_actor, dict(state.steps)) == ("not wanted", "olga", {})


async def test_a_signal_to_a_waiting_start_is_kept(log: EventLog, world: World) -> None:
    async with engine_of(world, log, bound(1)) as engine:
        running = await started(engine, Order, "a")
        await world.came(1)
        waiting = await engine.start(Approval)
        assert await engine.status(waiting.saga_id) is SagaStatus.PENDING
        await engine.signal(waiting.saga_id, "approved", "olga")
        assert "SignalReceived" in await story(engine.log, waiting.saga_id)
        world.open()
        assert (await waiting.result(30)).context["by"] == "olga"
        await ended(running)


# --- over crashes and hand-overs ----------------------------------------------------------------


async def test_what_waited_when_its_engine_stopped_runs_in_the_next_one(
    log: EventLog, world: World
) -> None:
    engine = engine_of(world, log, bound(2))
    async with engine:
        handles = await started(engine, Order, *(f"o-{n}" for n in range(10)))
        await world.came(2)
        ids = [handle.saga_id for handle in handles]
        world.open()
    world_2 = World()
    world_2.open()
    async with engine_of(world_2, log, bound(2)) as engine:
        assert (await engine.health()).starts_waiting <= 8
        handles = [await engine.handle(saga_id) for saga_id in ids]
        assert await ended(handles) == [SagaStatus.COMPLETED] * 10
    assert sorted(world.began + world_2.began) == sorted(f"o-{n}" for n in range(10))
    assert world_2.most <= 2


async def test_what_a_dead_engine_left_in_line_is_served_in_order(world: World) -> None:
    log = MemoryEventLog(1)
    left = [
        e.StartRequested(f"r-{n}", f"s-{n}", 0, saga_name="order", context=f'{{"order":"{n}"}}')
        for n in range(10)
    ]
    await log.append(0, left)
    world.open()
    async with engine_of(world, log, bound(1)) as engine:
        handles = [await engine.handle(f"s-{n}") for n in range(10)]
        assert await ended(handles) == [SagaStatus.COMPLETED] * 10
    assert world.began == [str(n) for n in range(10)]


async def test_waiting_starts_go_along_with_their_partition_and_their_callers_hear_the_end(
    world: World,
) -> None:
    log = MemoryEventLog(2)
    async with engine_of(world, log, bound(1)) as first:
        stays = next(f"id-{n}" for n in range(100) if log.partition_of(f"id-{n}") == 0)
        handles = [await first.start(Order, {"order": "o-0"}, saga_id=stays)]
        handles += await started(first, Order, *(f"o-{n}" for n in range(1, 12)))
        await world.came(1)
        async with engine_of(world, log, bound(1)) as second:
            assert (set(first.host.partitions), set(second.host.partitions)) == ({0}, {1})
            await world.came(2)  # the second one has begun what waited in its partition
            world.open()
            assert await ended(handles) == [SagaStatus.COMPLETED] * 12
    assert sorted(world.began) == sorted(f"o-{n}" for n in range(12))


async def test_who_waits_for_a_saga_whose_step_outlasts_the_hand_over_hears_its_end(
    world: World,
) -> None:
    log = MemoryEventLog(2)
    quick = EngineConfig(drain_seconds=0.1)
    async with engine_of(world, log, quick) as first:
        moves = next(f"id-{n}" for n in range(100) if log.partition_of(f"id-{n}") == 1)
        handle = await first.start(Order, {"order": "a"}, saga_id=moves)
        await world.came(1)
        async with engine_of(world, log, quick) as second:
            assert set(second.host.partitions) == {1}
            world.open()
            assert (await handle.result(30)).status is SagaStatus.COMPLETED
    assert world.began == ["a", "a"]


async def test_the_mark_does_not_pass_a_waiting_start(world: World) -> None:
    log = MemoryEventLog(1)
    quick = bound(1, housekeeping_seconds=0.01)
    async with engine_of(world, log, quick) as engine:
        handles = await started(engine, Order, "a", "b", "c")
        await world.came(1)
        await asyncio.sleep(0.1)
        mark = await log.low_water_mark(0)
        chunk = await log.read(0, mark)
        assert sum(isinstance(r.entry, e.StartRequested) for r in chunk.records) == 2
        world.open()
        await ended(handles)
        async with asyncio.timeout(30):
            while await log.low_water_mark(0) < (await log.bounds(0)).end:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


# --- asked by others -----------------------------------------------------------------------------


def elsewhere(log: EventLog, owner: Engine) -> str:
    """An id that lives in a partition of this engine."""
    return next(
        f"id-{n}" for n in range(1000) if log.partition_of(f"id-{n}") in owner.host.partitions
    )


async def test_a_start_in_an_engine_without_room_is_durable_when_it_returns(world: World) -> None:
    log = MemoryEventLog(2)
    asking = EngineConfig(request_seconds=0.1, drain_seconds=1)
    async with (
        engine_of(world, log, bound(1)) as owner,
        engine_of(world, log, asking) as asker,
    ):
        running = await started(owner, Order, "a")
        await world.came(1)
        saga_id = elsewhere(log, owner)
        handle = await asker.start(Order, {"order": "b"}, saga_id=saga_id)
        assert [request.saga_id for request in await requests(log)] == [saga_id]
        assert await asker.status(saga_id) is SagaStatus.PENDING
        assert world.began == ["a"]
        world.open()
        assert await ended([*running, handle]) == [SagaStatus.COMPLETED] * 2


async def test_a_start_that_is_refused_when_its_turn_comes_fails_its_handle(world: World) -> None:
    log = MemoryEventLog(2)
    asking = EngineConfig(request_seconds=0.1, drain_seconds=1)
    async with (
        engine_of(world, log, bound(1), sagas=(Order,)) as owner,
        engine_of(world, log, asking) as asker,
    ):
        running = await started(owner, Order, "a")
        await world.came(1)
        handle = await asker.start(Other, {"order": "b"}, saga_id=elsewhere(log, owner))
        world.open()
        with pytest.raises(UnknownSagaName):
            await handle.result(30)
        await ended(running)


# --- what it costs -------------------------------------------------------------------------------


async def test_a_waiting_start_does_not_keep_what_it_was_started_with(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MAX_BYTES", 2**20)
    url = f"sqlite:///{tmp_path}/log.db"
    context, count = {"order": "a", "much": "x" * 8000}, 600
    async with connect(
        url, sagas=[Order], resources={"world": world}, config=bound(1, projector=False)
    ) as engine:
        tracemalloc.start()
        try:
            for _ in range(800):  # until the log keeps as many of its newest appends as it may
                await engine.start(Order, context)
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(count):
                await engine.start(Order, context)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        waiting = (await engine.health()).starts_waiting
    assert waiting >= count
    assert (after - before) / count < 1500


# --- with the turns of a class ------------------------------------------------------------------


async def test_a_class_with_many_that_wait_for_its_turn_leaves_room_and_memory_to_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "CROWD", 5)

    class Single(Saga):
        saga_name = "single"

        @trigger("single", idempotency_key="order", max_concurrent=1)
        def on_order(self, event: Any) -> dict[str, Any]:
            return dict(event)

        @action("only")
        async def only(self, ctx: Any) -> None:
            await ctx.resources["world"].enter(ctx["order"])

    log = MemoryEventLog(1)
    async with engine_of(world, log, bound(50), sagas=(Single, Order)) as engine:
        singles = await started(engine, Single, *(f"single-{n}" for n in range(20)))
        others = await started(engine, Order, "a", "b")
        await world.came(3)
        assert world.began == ["single-0", "a", "b"]
        assert len(engine.host.partitions[0].cells) <= 9
        world.open()
        assert await ended([*singles, *others]) == [SagaStatus.COMPLETED] * 22
    assert [name for name in world.began if name.startswith("single")] == [
        f"single-{n}" for n in range(20)
    ]


async def test_an_id_that_two_start_at_once_takes_its_room_until_neither_is_at_it(
    world: World,
) -> None:
    async with engine_of(world, MemoryEventLog(1), bound(1)) as engine:
        line = engine.host.admission
        with line.entering("s"):
            with line.entering("s"):
                pass  # refused by a store that is away, say
            assert not line.admits("order")
        assert line.admits("order")


async def test_a_start_of_our_own_that_is_confirmed_late_keeps_its_place(world: World) -> None:
    """What stands behind it may have been read by then."""
    async with engine_of(world, MemoryEventLog(1), bound(1)) as engine:
        await engine.start(Order, {"order": "first"})
        await world.came(1)
        line = engine.host.admission
        for offset in (11, 12, 10, 9, 13):
            line.line_up(Waiting(0, offset, f"r-{offset}", f"s-{offset}", "order"))
        turns = [line._next() for _ in range(5)]
        assert [turn.offset for turn in turns if turn] == [9, 10, 11, 12, 13]
        world.open()


class _SlowToTell(MemoryEventLog):
    """A log that holds who reads a start that waits, until `gate` opens; if `lost`, it is gone."""

    def __init__(self) -> None:
        super().__init__(2)
        self.gate, self.lost = Gate(), False

    async def read(self, partition: int, offset: int, **options: Any) -> Chunk:
        if options.get("limit") == admission.READ_AHEAD:
            await self.gate.pass_through()
            if self.lost:
                raise HistoryGone("partition 1", str(offset), "the end")
        return await super().read(partition, offset, **options)

    async def read_saga(self, saga_id: str, from_offset: int = 0) -> tuple[Record, ...]:
        return () if self.lost else await super().read_saga(saga_id, from_offset)


async def _two_in_partition_1(engine: Engine, log: EventLog, world: World) -> list[SagaHandle]:
    """One saga that runs, one whose start waits."""
    ids = [f"s-{n}" for n in range(20) if log.partition_of(f"s-{n}") == 1][:2]
    handles = [await engine.start(Order, {"order": one}, saga_id=one) for one in ids]
    await world.came(1)
    return handles


async def test_who_waits_is_told_of_a_start_that_was_being_read_when_its_partition_went(
    world: World,
) -> None:
    log = _SlowToTell()
    first, second = engine_of(world, log, bound(1)), engine_of(world, log, bound(1))
    async with first:
        handles = await _two_in_partition_1(first, log, world)
        world.open()
        await log.gate.entered()  # the second is called, and being read
        async with second:
            assert second.host.partitions.keys() == {1}
            log.gate.open()
            assert await ended(handles) == [SagaStatus.COMPLETED] * 2
    assert len(world.began) == 2


async def test_who_waits_is_told_of_a_start_that_the_log_has_lost(world: World) -> None:
    log = _SlowToTell()
    async with engine_of(world, log, bound(1)) as engine:
        _, waits = await _two_in_partition_1(engine, log, world)
        log.lost = True
        log.gate.open()
        world.open()
        with pytest.raises(SagaNotFound):
            await waits.result(30)
        assert not engine.host.partitions[1].held  # it holds the mark no more


async def test_a_cancel_counts_although_the_start_is_told_again_while_it_is_let_in(
    world: World,
) -> None:
    log = _SlowToTell()
    async with engine_of(world, log, bound(1)) as engine:
        runs, waits = await _two_in_partition_1(engine, log, world)
        cancels = asyncio.create_task(engine.cancel(waits.saga_id))
        await log.gate.entered()  # its start is being read, to begin and end
        (asked,) = (one for one in await requests(log) if one.saga_id == waits.saga_id)
        again = msgspec.structs.replace(asked, request_id="again")
        await log.append(1, [again])
        await until(lambda: "again" in engine.host.partitions[1].held)
        log.gate.open()
        await cancels
        assert (await waits.result(30)).status is SagaStatus.CANCELLED
        assert len(world.began) == 1, "nothing of it has run"
        world.open()
        assert (await runs.result(30)).success
        await until(lambda: not engine.host.partitions[1].held)
