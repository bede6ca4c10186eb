"""What a real engine and projector capture in a store, by each strategy; see projection_store.py.

A store that keeps the laws of its rows keeps these, too. They say it in the words of a user: sagas
that run, snapshots as `SagaSnapshot`, states as time travel gives them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from sagaz_es.core.snapshot import SnapshotStrategy
from sagaz_es.errors import StorageFailed
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Projection, ProjectionStore
from sagaz_es.reading.projector import Projector
from sagaz_es.reading.time_travel import SagaHistory
from sagaz_es.sagas.decorators import action, compensate
from sagaz_es.sagas.saga import Saga
from sagaz_es.snapshots import ReplayConfig, SagaSnapshot, from_stored, to_stored
from sagaz_es.testing.contracts.histories import NOON, SECOND
from sagaz_es.testing.memory import MemoryEngine, memory_engine
from sagaz_es.testing.virtual_time import VirtualClock

ORDER = "order-17"
Steps = dict[str, dict[str, Any]]


class Declined(Exception):
    """Charge fails for good."""


class Order(Saga):
    """reserve → charge → ship; with `declined` in its context, charge fails."""

    saga_name = "order"

    @action("reserve")
    async def reserve(self, ctx: Any) -> dict[str, Any]:
        ctx["lines"].append("reserve")
        return {"reservation": 1}

    @compensate("reserve")
    async def release(self, ctx: Any) -> None: ...

    @action("charge", max_retries=0)
    async def charge(self, ctx: Any) -> dict[str, Any]:
        if ctx.get("declined"):
            raise Declined
        ctx["lines"].append("charge")
        return {"payment": 2}

    @compensate("charge")
    async def refund(self, ctx: Any) -> None: ...

    @action("ship")
    async def ship(self, ctx: Any) -> dict[str, Any]:
        ctx["lines"].append("ship")
        return {"parcel": 3}


def config(strategy: SnapshotStrategy | str, **options: Any) -> ReplayConfig:
    return ReplayConfig(True, strategy, **options)


def by_hand(policy: ReplayConfig | None, steps: Steps) -> Saga:
    """Steps that do nothing, with these options."""

    async def step(ctx: Any) -> None: ...

    saga = Saga("by hand", replay_config=policy)
    for name, options in steps.items():
        saga.add_step(name, step, **options)
    return saga


def projector(log: MemoryEventLog, store: ProjectionStore, **options: Any) -> Projector:
    """One for which it is NOON, as it is for the sagas: what they keep for days has not expired."""
    return Projector(log, store, clock=VirtualClock(NOON), **options)


class NotThere:
    """A store that is down for its first commits."""

    def __init__(self, store: ProjectionStore, commits: int) -> None:
        self._store, self._left = store, commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, projection: Projection, *, expected: int) -> None:
        self._left -= 1
        if self._left >= 0:
            raise StorageFailed("the store", "it is down")
        await self._store.commit(projection, expected=expected)


class CapturedSnapshotsContract:
    """What every store gives back of sagas that ran."""

    async def damage(self, store: ProjectionStore, snapshot_id: str) -> None:
        """Change one byte of what is stored of this snapshot."""
        raise NotImplementedError

    @pytest.fixture
    def log(self) -> MemoryEventLog:
        """The log that the sagas of one test ran on."""
        return MemoryEventLog(1)

    async def run(
        self,
        log: MemoryEventLog,
        store: ProjectionStore,
        saga: Saga,
        context: dict[str, Any] | None = None,
        saga_id: str = ORDER,
    ) -> list[SagaSnapshot]:
        """Run a saga to its end and project it; its snapshots, oldest first."""
        async with memory_engine(saga, log=log) as engine:
            await engine.run(saga, {"lines": [], **(context or {})}, saga_id=saga_id)
        await projector(log, store).run_until()
        return await self.snapshots(store, saga_id)

    async def snapshots(self, store: ProjectionStore, saga_id: str) -> list[SagaSnapshot]:
        rows = await store.snapshots(saga_id, limit=1000)
        return [from_stored(row) for row in rows][::-1]

    def order(self, strategy: SnapshotStrategy | str, **options: Any) -> Saga:
        return Order(replay_config=config(strategy, **options))

    # --- strategies

    async def test_before_each_step_captures_what_each_step_found(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        found = await self.run(log, store, self.order("before_each_step"), {"sku": "A1"})
        assert [(s.step_name, s.step_index, list(s.completed_steps)) for s in found] == [
            ("reserve", 0, []),
            ("charge", 1, ["reserve"]),
            ("ship", 2, ["reserve", "charge"]),
        ]
        start = {"sku": "A1", "lines": []}
        reserved = {"sku": "A1", "lines": ["reserve"], "reservation": 1}
        charged = {**reserved, "lines": ["reserve", "charge"], "payment": 2}
        assert [s.context for s in found] == [start, reserved, charged]
        assert {(s.saga_id, s.saga_name, s.status) for s in found} == {
            (ORDER, "order", "executing")
        }

    async def test_after_each_step_captures_what_each_step_left(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        found = await self.run(log, store, self.order("after_each_step"))
        assert [list(s.completed_steps) for s in found] == [
            ["reserve"],
            ["reserve", "charge"],
            ["reserve", "charge", "ship"],
        ]
        assert found[-1].context["parcel"] == 3

    async def test_on_completion_captures_the_end_of_a_completed_saga_alone(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        (found,) = await self.run(log, store, self.order("on_completion"))
        assert (found.status, found.context["lines"]) == (
            "completed",
            ["reserve", "charge", "ship"],
        )
        declined = {"declined": True}
        assert await self.run(log, store, self.order("on_completion"), declined, "o-2") == []

    async def test_on_failure_captures_once_before_the_first_compensation(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        (found,) = await self.run(log, store, self.order("on_failure"), {"declined": True})
        assert (found.step_name, list(found.completed_steps)) == ("charge", ["reserve"])
        assert found.status == "executing"
        assert await self.run(log, store, self.order("on_failure"), saga_id="o-2") == []

    async def test_every_n_events_captures_at_each_multiple(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        steps: Steps = {f"step-{n}": {} for n in range(16)}
        steps["step-3"] = {"delay_seconds": 1}  # one event more: 35
        saga = by_hand(config("every_n_events", every_events=10), steps)
        found = await self.run(log, store, saga)
        assert [s.sequence for s in found] == [10, 20, 30]
        (head,) = (await store.heads([ORDER])).values()
        assert head.sequence == 35

    async def test_every_interval_captures_the_first_event_in_each(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        policy = config("every_interval", every_seconds=60)
        delays = {"at-50": 50, "at-70": 20, "at-140": 70}
        later = {name: {"delay_seconds": seconds} for name, seconds in delays.items()}
        saga = by_hand(policy, {"at-0": {}, **later})
        found = await self.run(log, store, saga)
        after = [(to_stored(s).created_at - NOON) / SECOND for s in found]
        assert after == [70, 140]

    async def test_manual_captures_only_what_somebody_saves(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        assert await self.run(log, store, self.order("manual")) == []
        saved = SagaSnapshot.create(
            ORDER, "order", "charge", 1, "executing", {"sku": "A1"}, ["reserve"]
        )
        await store.save_snapshot(to_stored(saved))
        assert await self.snapshots(store, ORDER) == [saved]

    @pytest.mark.parametrize("policy", [None, ReplayConfig()], ids=["not configured", "off"])
    async def test_without_capture_the_past_is_answered_from_events(
        self, log: MemoryEventLog, store: ProjectionStore, policy: ReplayConfig | None
    ) -> None:
        saga = Order() if policy is None else Order(replay_config=policy)
        assert await self.run(log, store, saga, {"declined": True}) == []
        state = await SagaHistory(ORDER, log, store).state_at(3)
        assert list(state.completed_steps) == ["reserve"]
        assert state.source.snapshot_id is None
        async with memory_engine(saga, log=log) as engine:
            replay = await self.replayed(engine, ORDER, {"declined": False})
        await projector(log, store).run_until()
        assert await self.snapshots(store, replay) == []

    async def replayed(self, engine: MemoryEngine, saga_id: str, override: dict[str, Any]) -> str:
        """Replay the saga from charge; the branch's id."""
        plan = await engine.plan_replay(saga_id, "charge", context_override=override)
        result = await engine.replay(plan)
        assert result.status == "success"
        assert result.new_saga_id is not None
        return str(result.new_saga_id)

    # --- all sagas alike

    async def test_sagas_of_every_kind_are_captured_alike(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        policy = config("before_each_step")
        in_order: Steps = {"one": {}, "two": {}, "three": {}}
        beside: Steps = {
            "one": {"depends_on": []},
            "two": {"depends_on": []},
            "three": {"depends_on": ["one", "two"]},
        }
        for saga_id, steps in (("in order", in_order), ("beside", beside)):
            saga = by_hand(policy, steps)
            found = await self.run(log, store, saga, saga_id=saga_id)
            assert [s.step_name for s in found] == ["one", "two", "three"]
            assert list(found[-1].completed_steps) == ["one", "two"]
            assert len({s.sequence for s in found}) == 3

    async def test_a_branch_is_captured_like_its_original(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        saga = self.order("before_each_step")
        await self.run(log, store, saga, {"declined": True})
        async with memory_engine(saga, log=log) as engine:
            branch = await self.replayed(engine, ORDER, {"declined": False})
        await projector(log, store).run_until()
        found = await self.snapshots(store, branch)
        assert [s.step_name for s in found] == ["reserve", "charge", "ship"]
        assert found[-1].context["payment"] == 2

    async def test_capture_goes_on_while_a_saga_compensates(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        for strategy in ("before_each_step", "after_each_step"):
            saga_id = f"saga {strategy}"
            saga = self.order(strategy)
            found = await self.run(log, store, saga, {"declined": True}, saga_id)
            assert "compensating" in [s.status for s in found]

    async def test_each_snapshot_has_a_list_as_it_was_then(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        found = await self.run(log, store, self.order("after_each_step"))
        assert [s.context["lines"] for s in found] == [
            ["reserve"],
            ["reserve", "charge"],
            ["reserve", "charge", "ship"],
        ]

    async def test_retention_counts_from_the_event_that_made_the_state(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        saga = self.order("before_each_step", retention_days=365)
        for found in await self.run(log, store, saga):
            assert found.retention_until is not None
            assert (found.retention_until - found.created_at).days == 365

    # --- trouble

    async def test_a_store_that_was_down_has_every_snapshot_in_the_end(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        failures: list[Exception] = []
        down: Any = NotThere(store, commits=2)
        kept_up = projector(log, down, on_failure=failures.append)
        saga = self.order("before_each_step")
        running = asyncio.create_task(kept_up.run())
        try:
            async with memory_engine(saga, log=log) as engine:
                assert (await engine.run(saga, {"lines": []}, saga_id=ORDER)).success
            await kept_up.run_until(timeout_s=60)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert len(failures) == 2
        found = await self.snapshots(store, ORDER)
        assert [s.step_name for s in found] == ["reserve", "charge", "ship"]

    async def test_a_damaged_snapshot_is_passed_over_for_an_older_one_and_events(
        self, log: MemoryEventLog, store: ProjectionStore
    ) -> None:
        found = await self.run(log, store, self.order("before_each_step"), {"sku": "A1"})
        past = SagaHistory(ORDER, log, store)
        before = [await past.state_at(sequence) for sequence in range(1, 9)]
        await self.damage(store, found[-1].snapshot_id)
        after = [await past.state_at(sequence) for sequence in range(1, 9)]
        assert told(before) == told(after)
        assert after[-1].source.snapshot_sequence == found[-2].sequence
        assert found[-1].snapshot_id not in [s.source.snapshot_id for s in after]


def told(states: Iterable[Any]) -> list[tuple[Any, ...]]:
    """What was true then, without how that is known."""
    return [(s.sequence, s.status, s.context, s.completed_steps, s.timestamp) for s in states]
