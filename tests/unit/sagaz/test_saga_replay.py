"""SagaReplay in the original design's and sagaz's spellings. Source: behaviours B35-B54, B59."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from sagaz_es import (
    Engine,
    InMemorySnapshotStorage,
    PostgreSQLSnapshotStorage,
    ReplayConfig,
    Saga,
    SagaConfig,
    SagaReplay,
    SagaTimeTravel,
    action,
    compensate,
    connect,
)
from sagaz_es.engine.saga_replay import ReplayRequest
from sagaz_es.errors import PlanBlocked, ReplayError, SnapshotNotFoundError
from sagaz_es.sagas.config import InMemorySagaStorage
from sagaz_es.storage.sqlite import SQLiteSnapshotStorage
from tests.helpers import Declined, Ledger, OrderSaga


class HandBuilt(Saga):
    """As users of sagaz write it: steps added in `build`, attributes that say what fails."""

    def __init__(self, ledger: list[str], fails: bool = False, **options: Any) -> None:
        super().__init__(name="order", **options)
        self.ledger, self.fails = ledger, fails

    async def build(self) -> None:
        await self.add_step("reserve", self.reserve, self.release)
        await self.add_step("charge", self.charge, self.refund, max_retries=0)
        await self.add_step("ship", self.ship)

    async def reserve(self, ctx: Any) -> dict[str, Any]:
        self.ledger.append("reserve")
        return {"reservation": f"r-{ctx['order_id']}"}

    async def release(self, result: Any, ctx: Any) -> None:
        self.ledger.append(f"release {result['reservation']}")

    async def charge(self, ctx: Any) -> dict[str, Any]:
        if self.fails or ctx.get("gateway") == "primary":
            raise Declined("card refused")
        self.ledger.append("charge")
        return {"charged": True}

    async def refund(self, result: Any, ctx: Any) -> None:
        self.ledger.append("refund")

    async def ship(self, ctx: Any) -> None:
        self.ledger.append("ship")


SNAPSHOTS = ReplayConfig(enable_snapshots=True)


async def failed(storage: Any, ledger: list[str], **options: Any) -> str:
    """A saga that was rolled back, run as sagaz users run it."""
    saga = HandBuilt(ledger, snapshot_storage=storage, replay_config=SNAPSHOTS, **options)
    saga.context.set("order_id", 7)
    saga.context.set("gateway", "primary")
    await saga.build()
    result = await saga.execute()
    assert result.status == "rolled_back"
    return str(saga.saga_id)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    if request.param == "memory":
        made: Any = InMemorySnapshotStorage()
    elif request.param == "sqlite":
        made = SQLiteSnapshotStorage(str(tmp_path / "snapshots.db"))
    else:
        made = PostgreSQLSnapshotStorage(request.getfixturevalue("postgresql_url"))
    async with made:
        yield made


async def test_a_saga_and_its_replay_share_the_snapshot_storage_they_are_given(
    storage: Any,
) -> None:
    ledger: list[str] = []
    saga_id = await failed(storage, ledger)
    names = [snapshot.step_name for snapshot in await storage.list_snapshots(UUID(saga_id))]
    assert {"reserve", "charge"} <= set(names)
    asked: list[str] = []

    def make(name: str) -> Saga:
        asked.append(name)
        return HandBuilt(ledger, snapshot_storage=storage)

    replay = SagaReplay(UUID(saga_id), storage, initiated_by="admin", saga_factory=make)
    result = await replay.from_checkpoint("charge", {"gateway": "backup"})
    assert (result.status, result.replay_status) == ("success", "success")
    assert result.original_saga_id == saga_id != result.new_saga_id
    assert asked == ["order"]
    assert ledger == ["reserve", "release r-7", "reserve", "charge", "ship"]
    branch = await SagaTimeTravel(result.new_saga_id, storage).get_context_at("2100-01-01")
    assert branch["gateway"] == "backup"
    assert await SagaTimeTravel(saga_id, storage).get_context_at("2100-01-01", "gateway") == (
        "primary"
    )


async def test_without_a_storage_the_saga_is_found_on_the_default_log() -> None:
    ledger: list[str] = []
    saga_id = await failed(None, ledger)

    async def make(name: str) -> Saga:
        return HandBuilt(ledger)

    replay = SagaReplay(saga_id)
    result = await replay.from_checkpoint(
        step_name="charge", context_override={"gateway": "backup"}, saga_factory=make
    )
    assert result.status == "success"
    (entry,) = await replay.get_replay_history()
    assert (entry["replay_id"], entry["status"]) == (result.replay_id, "success")


async def test_the_past_is_told_without_a_storage_from_the_default_log() -> None:
    saga_id = await failed(None, [])
    state = await SagaTimeTravel.get_state_at(saga_id=saga_id, timestamp="2100-01-01T00:00:00Z")
    assert state is not None and state.status == "rolled_back"
    changes = await SagaTimeTravel(saga_id).list_state_changes(limit=2)
    assert [change.sequence for change in changes] == [1, 2]
    assert await SagaTimeTravel(saga_id).get_context_at("2100-01-01", "gateway") == "primary"
    assert await SagaTimeTravel.get_state_at("nobody", "2100-01-01") is None


async def test_questions_take_no_partition_from_those_who_serve_the_log() -> None:
    ledger: list[str] = []
    saga_id = await failed(None, ledger)
    async with connect() as serving:  # the same log
        before = set(serving.host.partitions)
        replay = SagaReplay(saga_id, saga_factory=lambda name: HandBuilt(ledger))
        assert len(await replay.list_available_checkpoints()) == 2
        assert (await replay.from_checkpoint("charge", {"gateway": "b"}, dry_run=True)).success
        assert len(await replay.get_replay_history()) == 1
        assert await SagaTimeTravel(saga_id).get_context_at("2100-01-01", "order_id") == 7
        assert set(serving.host.partitions) == before
        assert await serving.log.members() == 1


async def test_settings_and_a_snapshot_storage_go_together() -> None:
    storage, ledger = InMemorySnapshotStorage(), list[str]()
    config = SagaConfig(storage=InMemorySagaStorage(), replay_config=SNAPSHOTS)
    saga = HandBuilt(ledger, config=config, snapshot_storage=storage, context={"order_id": 1})
    assert (await saga.execute()).success
    steps = [snapshot.step_name for snapshot in await storage.list_snapshots(saga.saga_id)]
    assert steps == ["ship", "charge", "reserve"]
    replay = SagaReplay(saga.saga_id, storage, saga_factory=lambda name: HandBuilt(ledger))
    assert (await replay.from_checkpoint("ship", dry_run=True)).status == "failed"  # it cannot undo
    assert len(await replay.get_replay_history()) == 1


async def test_a_saga_or_step_that_is_not_there_is_refused_and_the_attempt_recorded() -> None:
    ledger: list[str] = []
    saga_id = await failed(None, ledger)
    before = list(ledger)
    with pytest.raises(SnapshotNotFoundError, match=f"{saga_id}.*pack"):
        await SagaReplay(saga_id, initiated_by="eva").from_checkpoint("pack", {"a": 1})
    with pytest.raises(SnapshotNotFoundError, match=r"nobody.*charge"):
        await SagaReplay("nobody").from_checkpoint("charge")
    (entry,) = await SagaReplay(saga_id).get_replay_history()
    assert (entry["status"], entry["initiated_by"], entry["checkpoint_step"]) == (
        "refused",
        "eva",
        "pack",
    )
    assert entry["context_override"] == {"a": 1}
    assert [e["status"] for e in await SagaReplay("nobody").get_replay_history()] == ["refused"]
    assert ledger == before


async def test_a_dry_run_runs_nothing_and_is_told_apart_in_the_history() -> None:
    ledger: list[str] = []
    saga_id = await failed(None, ledger)
    before = list(ledger)
    replay = SagaReplay(saga_id, saga_factory=lambda name: HandBuilt(ledger))
    result = await replay.from_checkpoint("charge", {"gateway": "backup"}, dry_run=True)
    assert result.dry_run and result.success and result.new_saga_id is None
    assert result.plan is not None and [str(s.verdict) for s in result.plan.steps] == ["redo"] * 3
    assert ledger == before
    await replay.from_checkpoint("charge", {"gateway": "backup"})
    newest, dry = await replay.get_replay_history()
    assert [newest["dry_run"], dry["dry_run"]] == [False, True]
    assert newest["context_override"] == dry["context_override"] == {"gateway": "backup"}


async def test_a_dry_run_fails_where_factory_override_or_definition_would() -> None:
    saga_id = await failed(None, [])

    def broken(name: str) -> Saga:
        raise RuntimeError("no database")

    def other(name: str) -> Saga:
        return Saga(name).add_step("reserve", lambda ctx: None)

    replay = SagaReplay(saga_id)
    no_factory = await replay.from_checkpoint("charge", dry_run=True)
    assert no_factory.success and no_factory.plan is not None
    result = await replay.from_checkpoint("charge", dry_run=True, saga_factory=broken)
    assert result.status == "failed" and "no database" in str(result.error_message)
    result = await replay.from_checkpoint("charge", dry_run=True, saga_factory=other)
    assert result.status == "failed" and "charge" in str(result.error_message)
    result = await replay.from_checkpoint("charge", {"a": object()}, dry_run=True)
    assert result.status == "failed"
    assert str(result.error_message).startswith("a: an object cannot be kept")
    assert [e["dry_run"] for e in await replay.get_replay_history()] == [True] * 4


async def test_without_code_a_replay_is_refused() -> None:
    saga_id = await failed(None, [])
    with pytest.raises(ReplayError, match="no saga class is registered under the name 'order'"):
        await SagaReplay(saga_id).from_checkpoint("charge")
    with pytest.raises(ReplayError, match="RuntimeError: no database") as caught:
        await SagaReplay(saga_id, saga_factory=_broken).from_checkpoint("charge")
    assert isinstance(caught.value.__cause__, RuntimeError)
    statuses = [entry["status"] for entry in await SagaReplay(saga_id).get_replay_history()]
    assert statuses == ["refused", "refused"]


def _broken(name: str) -> Saga:
    raise RuntimeError("no database")


async def test_a_branch_that_fails_is_a_result_with_the_steps_error() -> None:
    ledger: list[str] = []
    saga_id = await failed(None, ledger)
    replay = SagaReplay(saga_id, saga_factory=lambda name: HandBuilt(ledger, fails=True))
    result = await replay.from_checkpoint("charge", {"gateway": "backup"})
    assert (result.status, result.error_message) == ("failed", "card refused")
    assert ledger[-2:] == ["reserve", "release r-7"]


async def test_a_forced_failure_is_compensated_and_said_to_be_forced() -> None:
    ledger: list[str] = []
    saga_id = await failed(None, ledger)
    replay = SagaReplay(saga_id, saga_factory=lambda name: HandBuilt(ledger))
    result = await replay.from_checkpoint("ship", {"gateway": "backup"}, force_failure=True)
    assert (result.status, result.force_failure) == ("failed", True)
    assert ledger[-4:] == ["reserve", "charge", "refund", "release r-7"]
    (entry,) = await replay.get_replay_history()
    assert entry["force_failure"] is True


async def test_checkpoints_are_the_steps_that_were_reached_once_and_in_order() -> None:
    saga_id = await failed(None, [])
    points = await SagaReplay(saga_id).list_available_checkpoints()
    assert [(p["step_name"], p["step_index"], p["status"]) for p in points] == [
        ("reserve", 0, "compensated"),
        ("charge", 1, "failed"),
    ]
    assert all(point["created_at"].endswith("+00:00") for point in points)


# --- on an engine ---------------------------------------------------------------------------------


class PivotSaga(OrderSaga):
    saga_name = "pivot"

    @action("ship", depends_on=["charge"], pivot=True)
    async def ship(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @compensate("ship")
    async def recall(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)


@pytest.fixture
async def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
async def engine(ledger: Ledger) -> AsyncIterator[Engine]:
    sagas = [OrderSaga, PivotSaga]
    async with connect("memory://", sagas=sagas, resources={"ledger": ledger}) as engine:
        yield engine


async def test_an_open_engine_serves_as_the_storage(engine: Engine, ledger: Ledger) -> None:
    ledger.fails("charge", Declined())
    rolled_back = await engine.run(OrderSaga, {}, saga_id="o-1")
    assert rolled_back.status == "rolled_back"
    result = await SagaReplay("o-1", engine, "eva").from_checkpoint("charge")
    assert (result.status, result.initiated_by) == ("success", "eva")
    assert ledger.standing == ["reserve", "charge", "ship"]
    (entry,) = await SagaReplay("o-1", engine).get_replay_history()
    assert (entry["status"], entry["new_saga_id"]) == ("success", result.new_saga_id)
    assert await engine.status("o-1") == "rolled_back"  # it can still be used


async def test_mended_code_serves_the_replay_alone(engine: Engine, ledger: Ledger) -> None:
    class Mended(OrderSaga):
        saga_name = "order"

        @action("charge", depends_on=["reserve"], max_retries=0)
        async def charge(self, ctx: Any) -> Any:
            ctx["mended"] = True
            return await self.do(ctx)

    ledger.fails("charge", Declined())
    await engine.run(OrderSaga, {}, saga_id="o-1")
    replay = SagaReplay("o-1", engine, saga_factory=lambda name: Mended())
    result = await replay.from_checkpoint("charge")
    assert result.new_saga_id is not None
    assert (await engine.history(result.new_saga_id).now()).context["mended"] is True
    after = await engine.run(OrderSaga, {})
    assert "mended" not in after.context


async def test_a_blocked_replay_is_refused_until_it_is_allowed(
    engine: Engine, ledger: Ledger
) -> None:
    await engine.run(PivotSaga, {}, saga_id="p-1")
    replay = SagaReplay("p-1", engine)
    with pytest.raises(ReplayError) as caught:
        await replay.from_checkpoint("ship")
    assert isinstance(caught.value, PlanBlocked)
    assert ledger.order == ["reserve", "charge", "ship"]
    assert (await replay.from_checkpoint("ship", allow=["ship"])).success
    assert [entry["status"] for entry in await replay.get_replay_history()] == [
        "success",
        "refused",
    ]


async def test_a_saga_that_runs_is_not_replayed_but_its_plan_is_shown(
    engine: Engine, ledger: Ledger
) -> None:
    gate = ledger.gate("charge")
    running = asyncio.ensure_future(engine.run(OrderSaga, {}, saga_id="o-1"))
    await gate.entered()
    replay = SagaReplay("o-1", engine)
    with pytest.raises(ReplayError, match="executing"):
        await replay.from_checkpoint("reserve")
    dry = await replay.from_checkpoint("reserve", dry_run=True)
    assert dry.plan is not None and "executing" in str(dry.error_message)
    gate.open()
    assert (await running).success


def test_a_request_merges_whole_keys() -> None:
    request = ReplayRequest("s", "charge", {"a": {"y": 2}, "c": 3})
    context = {"a": {"x": 1}, "b": 2}
    assert request.merge_context(context) == {"a": {"y": 2}, "b": 2, "c": 3}
    assert context == {"a": {"x": 1}, "b": 2}
    assert ReplayRequest("s", "charge").merge_context(context) == context
