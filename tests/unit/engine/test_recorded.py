"""Sagas that other services record: an engine leaves them alone, and replays them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sagaz_es import Engine
from sagaz_es.core import events as e
from sagaz_es.errors import (
    DefinitionChanged,
    RecordedStillRunning,
    RequestRefusedError,
    SagaIsRecorded,
)
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.reading.lookup import current_state
from sagaz_es.reading.projector import Projector
from sagaz_es.recording.recorder import SagaRecorder
from sagaz_es.storage.memory import MemoryProjectionStore
from tests.helpers import Ledger, OrderSaga, engine_on, story


async def recorded_order(log: MemoryEventLog, ledger: Ledger, *, end: bool = True) -> None:
    """reserve and charge stand, ship failed; written by two services."""
    ledger.stands |= {"reserve-0": "reserve", "charge-0": "charge"}
    async with SagaRecorder(log, "order") as stock, SagaRecorder(log, "order") as bank:
        await stock.started("o-1", {"token": "bad", "note": "x"})
        await stock.step_completed("o-1", "reserve", {"reserve": "reserve-0"}, reads=["note"])
        await bank.step_completed("o-1", "charge", {"charge": "charge-0"}, reads=["token"])
        await stock.step_failed("o-1", "ship", "no truck")
        if end:
            await stock.failed("o-1")


@pytest.fixture(params=["indexed", "scanned"])
def log(request: pytest.FixtureRequest) -> MemoryEventLog:
    log = MemoryEventLog(2)
    log.indexed = request.param == "indexed"
    return log


async def test_a_recorded_saga_is_replayed_with_its_recorded_results(log: MemoryEventLog) -> None:
    ledger = Ledger()
    await recorded_order(log, ledger)
    before = await story(log, "o-1")
    async with engine_on(log, ledger=ledger) as engine:
        plan = await engine.plan_replay("o-1", "ship", context_override={"token": "good"})
        verdicts = [(step.step, str(step.verdict)) for step in plan.steps]
        assert verdicts == [("reserve", "reuse"), ("charge", "undo_first"), ("ship", "redo")]
        result = await engine.replay(plan)
        assert result.success
        assert ledger.order == ["undo charge", "charge", "ship"]
        assert ledger.standing == ["reserve", "charge", "ship"]
        assert ledger.of("undo charge")[0].result == {"charge": "charge-0"}
        assert await story(log, "o-1") == [*before, "ReplayBranched"]
        assert result.new_saga_id is not None
        assert (await engine.undo_replay(result.new_saga_id)).success
        assert ledger.standing == ["reserve"]


async def test_a_branch_of_a_recorded_saga_is_begun_by_the_next_engine(
    log: MemoryEventLog,
) -> None:
    ledger = Ledger()
    await recorded_order(log, ledger)
    gate = ledger.gate("ship")
    crashed = engine_on(log, ledger=ledger)
    await crashed.open()
    plan = await crashed.plan_replay("o-1", "ship")
    replaying = asyncio.create_task(crashed.replay(plan))
    await gate.entered()
    await crashed.close()
    await asyncio.gather(replaying, return_exceptions=True)
    ledger.gates.clear()
    recorded = await current_state(log, None, "o-1")
    assert recorded is not None
    async with engine_on(log, ledger=ledger) as engine:
        assert (await (await engine.handle(recorded.branch)).result(10)).success
    assert ledger.standing == ["reserve", "charge", "ship"]


async def test_one_without_an_end_is_refused_with_what_to_do_and_its_plan_is_shown(
    log: MemoryEventLog,
) -> None:
    ledger = Ledger()
    await recorded_order(log, ledger, end=False)
    async with engine_on(log, ledger=ledger) as engine:
        plan = await engine.plan_replay("o-1", "ship")
        assert not plan.blocked
        with pytest.raises(RecordedStillRunning, match="record its end"):
            await engine.replay(plan)
        async with SagaRecorder(log, "order") as recorder:
            await recorder.failed("o-1")
        assert (await engine.replay(await engine.plan_replay("o-1", "ship"))).success
    assert ledger.order == ["ship"]


async def test_effects_of_steps_that_the_class_does_not_have_are_not_lost_in_a_replay(
    log: MemoryEventLog,
) -> None:
    ledger = Ledger()
    async with SagaRecorder(log, "order") as recorder:
        await recorder.step_completed("o-1", "reserve", {"reserve": "reserve-0"})
        await recorder.step_completed("o-1", "gift", {"gift": 1})
        await recorder.completed("o-1")
    async with engine_on(log, ledger=ledger) as engine:
        plan = await engine.plan_replay("o-1", "ship")
        with pytest.raises(DefinitionChanged, match="step 'gift' is recorded and not in the code"):
            await engine.replay(plan)
        dry = await engine.replay(plan, dry_run=True)
    assert (str(dry.status), ledger.calls) == ("failed", [])
    assert "ReplayBranched" not in await story(log, "o-1")


Ask = Callable[[Engine], Awaitable[object]]
ASKED: dict[str, Ask] = {
    "cancelled": lambda engine: engine.cancel("o-1", reason="x"),
    "signalled": lambda engine: engine.signal("o-1", "go"),
    "paused": lambda engine: engine.pause("o-1"),
    "resumed": lambda engine: engine.resume("o-1"),
}


@pytest.mark.parametrize("what", ASKED)
async def test_what_only_an_engine_could_do_with_it_is_refused_at_once(
    log: MemoryEventLog, what: str
) -> None:
    await recorded_order(log, Ledger(), end=False)
    async with engine_on(log) as engine:
        with pytest.raises(SagaIsRecorded, match=f"it cannot be {what}"):
            await ASKED[what](engine)
    assert all("Requested" not in fact for fact in await story(log, "o-1"))


async def test_a_request_for_it_that_stands_in_the_log_is_refused_and_holds_no_mark(
    log: MemoryEventLog,
) -> None:
    await recorded_order(log, Ledger(), end=False)
    partition = log.partition_of("o-1")
    for request in (
        e.SignalSent("r-1", "o-1", 0, name="go"),
        e.CancelRequested("r-2", "o-1", 0),
    ):
        await log.append(partition, [request])
    async with engine_on(log) as engine:
        async with asyncio.timeout(10):
            while len(engine.host.partitions[partition].refused) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        served = engine.host.partitions[partition]
        assert served.low_water_mark() == served.position


async def test_a_stuck_compensation_that_was_recorded_is_not_tried_by_an_engine(
    log: MemoryEventLog,
) -> None:
    ledger = Ledger()
    async with SagaRecorder(log, "order") as recorder:
        await recorder.step_completed("o-1", "reserve", {"reserve": "reserve-0"})
        await recorder.compensation_failed("o-1", "reserve", "no")
        await recorder.failed("o-1")
    before = await story(log, "o-1")
    async with engine_on(log, ledger=ledger) as engine:
        with pytest.raises(SagaIsRecorded):
            await engine.retry_compensation("o-1", "reserve", reason="again")
        with pytest.raises(SagaIsRecorded):
            await engine.skip_compensation("o-1", "reserve", reason="let be")
    assert ledger.calls == []
    assert await story(log, "o-1") == before


@pytest.mark.parametrize("when", ["before", "while it serves"])
@pytest.mark.parametrize("with_store", [False, True])
async def test_the_id_of_a_recorded_saga_is_taken(
    log: MemoryEventLog, when: str, with_store: bool
) -> None:
    ledger = Ledger()
    store = MemoryProjectionStore() if with_store else None
    if when == "before":
        await recorded_order(log, ledger)
    engine = Engine(log, store, sagas=[OrderSaga], resources={"ledger": ledger})
    async with engine:
        if when != "before":
            await recorded_order(log, ledger)
        served = engine.host.partitions[log.partition_of("o-1")]
        async with asyncio.timeout(10):
            while served.position < (await log.bounds(served.index)).end:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        result = await engine.run(OrderSaga, {}, saga_id="o-1")
        assert str(result.status) == "failed"
        if store is not None:
            await Projector(log, store).run_until()
            served.forget_before((await log.bounds(served.index)).end)  # the store answers now
            assert str((await engine.run(OrderSaga, {}, saga_id="o-1")).status) == "failed"
    assert ledger.calls == []
    assert "SagaStarted" not in (await story(log, "o-1"))[1:]


async def test_of_a_start_and_a_record_at_once_the_first_in_the_log_wins(
    log: MemoryEventLog,
) -> None:
    ledger = Ledger()
    async with engine_on(log, ledger=ledger) as engine:
        async with SagaRecorder(log, "order") as recorder:
            # Both are on their way before either stands.
            recording = asyncio.create_task(recorder.step_completed("o-1", "reserve", {}))
            starting = asyncio.create_task(engine.start(OrderSaga, {}, saga_id="o-1"))
            await asyncio.gather(recording, starting)
            await recorder.completed("o-1")
        first = (await log.read_saga("o-1"))[0].entry
        assert isinstance(first, e.Event)
        result = await (await starting).result(10)
        assert str(result.status) == "completed"
        if first.epoch == e.RECORDED_EPOCH:
            assert ledger.calls == []
        else:
            assert ledger.standing == ["reserve", "charge", "ship"]


def test_what_an_engine_cannot_do_is_a_refusal() -> None:
    assert issubclass(SagaIsRecorded, RequestRefusedError)
    assert str(RecordedStillRunning("o-1")).startswith("saga 'o-1' is recorded by other services")
