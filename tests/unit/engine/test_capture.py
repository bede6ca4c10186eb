"""Snapshots of sagas that an engine runs: how many, of what moment, in every kind of saga."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from sagaz_es import Engine, Saga, action
from sagaz_es.errors import StorageFailed
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Projection
from sagaz_es.reading.projector import Projector
from sagaz_es.reading.time_travel import SagaHistory
from sagaz_es.snapshots import ReplayConfig, SagaSnapshot, from_stored
from sagaz_es.storage.memory import MemoryProjectionStore
from tests.helpers import Declined, Ledger, LedgerSaga, OrderSaga

STEPS = ["reserve", "charge", "ship"]


async def undo(result: Any, ctx: Any) -> Any:
    return await LedgerSaga.undo(ctx, result)


def decorated(config: ReplayConfig | None) -> Saga:
    class Order(OrderSaga):
        replay_config = config

    return Order()


def by_hand(config: ReplayConfig | None) -> Saga:
    saga = Saga("order", replay_config=config)
    for name in STEPS:
        saga.add_step(name, LedgerSaga.do, undo, max_retries=0)
    return saga


KINDS: dict[str, Callable[[ReplayConfig | None], Saga]] = {
    "decorated": decorated,
    "by hand": by_hand,
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Callable[[ReplayConfig | None], Saga]:
    return KINDS[request.param]


class Run:
    """A saga that has run to its end, projected; and what was captured of it."""

    def __init__(self, saga: Saga, ledger: Ledger | None = None) -> None:
        self.saga, self.ledger = saga, ledger or Ledger()
        self.log, self.store = MemoryEventLog(1), MemoryProjectionStore()
        self.engine = Engine(self.log, self.store, sagas=[saga], resources={"ledger": self.ledger})

    async def __aenter__(self) -> Run:
        await self.engine.open()
        await self.engine.run(self.saga, {"sku": "A1"}, saga_id="o-1")
        await Projector(self.log, self.store).run_until()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.close()

    async def captured(self, saga_id: str = "o-1") -> list[SagaSnapshot]:
        """Oldest first."""
        await Projector(self.log, self.store).run_until()
        return [from_stored(row) for row in reversed(await self.store.snapshots(saga_id))]


def strategy(name: str, **more: Any) -> ReplayConfig:
    return ReplayConfig(enable_snapshots=True, snapshot_strategy=name, **more)


async def test_before_each_step_keeps_what_each_step_found(
    kind: Callable[[ReplayConfig | None], Saga],
) -> None:
    async with Run(kind(ReplayConfig(enable_snapshots=True))) as run:  # it is the default
        found = await run.captured()
    assert [(one.step_name, one.step_index, one.completed_steps) for one in found] == [
        ("reserve", 0, []),
        ("charge", 1, ["reserve"]),
        ("ship", 2, ["reserve", "charge"]),
    ]
    assert [one.context for one in found] == [
        {"sku": "A1"},
        {"sku": "A1", "reserve": "reserve-1"},
        {"sku": "A1", "reserve": "reserve-1", "charge": "charge-1"},
    ]


async def test_after_each_step_keeps_what_each_step_left(
    kind: Callable[[ReplayConfig | None], Saga],
) -> None:
    async with Run(kind(strategy("after_each_step"))) as run:
        found = await run.captured()
    assert [one.step_name for one in found] == STEPS
    assert found[-1].completed_steps == STEPS


async def test_on_completion_keeps_the_end_of_a_completed_saga_alone(
    kind: Callable[[ReplayConfig | None], Saga],
) -> None:
    async with Run(kind(strategy("on_completion"))) as run:
        (only,) = await run.captured()
    assert only.context == {"sku": "A1", **{step: f"{step}-1" for step in STEPS}}
    failing = Ledger()
    failing.fails("charge", Declined())
    async with Run(kind(strategy("on_completion")), failing) as run:
        assert await run.captured() == []


async def test_on_failure_keeps_the_moment_before_the_first_compensation(
    kind: Callable[[ReplayConfig | None], Saga],
) -> None:
    failing = Ledger()
    failing.fails("charge", Declined())
    async with Run(kind(strategy("on_failure")), failing) as run:
        (only,) = await run.captured()
    assert (only.completed_steps, only.step_name) == (["reserve"], "charge")
    assert only.context == {"sku": "A1", "reserve": "reserve-1"}
    async with Run(kind(strategy("on_failure"))) as run:
        assert await run.captured() == []


async def test_without_capture_nothing_is_kept_and_the_past_is_known_from_events(
    kind: Callable[[ReplayConfig | None], Saga],
) -> None:
    for config in (None, ReplayConfig(), strategy("manual")):
        async with Run(kind(config)) as run:
            assert await run.captured() == []
            past = SagaHistory("o-1", run.log, run.store)
            assert (await past.state_at(3)).context == {"sku": "A1", "reserve": "reserve-1"}
            plan = await run.engine.plan_replay("o-1", "ship")
            assert (await run.engine.replay(plan)).success


async def test_capture_goes_on_while_a_saga_compensates(
    kind: Callable[[ReplayConfig | None], Saga],
) -> None:
    failing = Ledger()
    failing.fails("ship", Declined())
    async with Run(kind(strategy("before_each_step")), failing) as run:
        found = await run.captured()
    assert "compensating" in {str(one.status) for one in found}


async def test_a_branch_is_captured_as_its_original_was(
    kind: Callable[[ReplayConfig | None], Saga],
) -> None:
    async with Run(kind(strategy("after_each_step"))) as run:
        plan = await run.engine.plan_replay("o-1", "charge")
        result = await run.engine.replay(plan)
        found = await run.captured(str(result.new_saga_id))
        assert len(await run.captured("o-1")) == 3
    assert [one.step_name for one in found] == ["charge", "ship"]
    assert found[-1].completed_steps == STEPS


async def test_parallel_steps_are_captured_one_by_one() -> None:
    saga = Saga("wide", replay_config=strategy("after_each_step"))
    for name in ("a", "b", "c"):
        saga.add_step(name, LedgerSaga.do, undo, depends_on=[])
    async with Run(saga) as run:
        found = await run.captured()
    assert sorted(one.step_name for one in found) == ["a", "b", "c"]
    assert [len(one.completed_steps) for one in found] == [1, 2, 3]


async def test_each_snapshot_holds_a_list_as_it_was_at_its_moment() -> None:
    class Lists(Saga):
        replay_config = strategy("after_each_step")

        @action("a")
        async def a(self, ctx: Any) -> None:
            ctx["seen"] = {"list": ["a"]}

        @action("b")
        async def b(self, ctx: Any) -> None:
            ctx["seen"]["list"].append("b")

        @action("c")
        async def c(self, ctx: Any) -> None:
            ctx["seen"]["list"].append("c")

    async with Run(Lists()) as run:
        found = await run.captured()
    lists = [one.context["seen"]["list"] for one in found]
    assert lists == [["a"], ["a", "b"], ["a", "b", "c"]]


async def test_retention_is_counted_from_the_moment_that_was_captured() -> None:
    async with Run(decorated(strategy("on_completion", retention_days=365))) as run:
        (only,) = await run.captured()
    assert only.retention_until is not None
    assert only.retention_until - only.created_at == timedelta(days=365)


class Down(MemoryProjectionStore):
    """A store that keeps nothing while it is down."""

    down = False

    async def commit(self, projection: Projection, *, expected: int) -> None:
        if self.down:
            raise StorageFailed("the store", "it is down")
        await super().commit(projection, expected=expected)


async def test_a_store_that_is_down_changes_no_saga_and_misses_no_snapshot() -> None:
    log, store, ledger = MemoryEventLog(1), Down(), Ledger()
    failures: list[Exception] = []
    projector = Projector(log, store, on_failure=failures.append)
    saga = decorated(strategy("before_each_step"))
    engine = Engine(log, store, sagas=[saga], resources={"ledger": ledger}, projector=projector)
    async with engine:
        store.down = True
        for number in range(5):
            result = await engine.run(saga, saga_id=f"o-{number}")
            assert result.success
        async with asyncio.timeout(30):
            while not failures:  # noqa: ASYNC110 - a callback tells
                await asyncio.sleep(0.01)
        assert projector.counters["store_failures"] > 0
        store.down = False
        await projector.run_until(timeout_s=60)
        for number in range(5):
            assert len(await store.snapshots(f"o-{number}")) == 3
