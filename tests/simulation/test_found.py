"""What the simulation found, by the shortest way there; more of it is among `mutants.py`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import structs

from sagaz_es import Engine, Saga, SagaStatus, action, child
from sagaz_es.core import events as e
from sagaz_es.core.decide import cancel, decide
from sagaz_es.core.fold import advance
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.state import SagaState
from sagaz_es.errors import EngineClosed, HistoryGone, PlanOutdated, SagaStillRunning, Unreachable
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Bounds, Chunk
from sagaz_es.reading.projector import Projector
from sagaz_es.storage.memory import MemoryProjectionStore
from tests.helpers import (
    QUIET,
    Declined,
    FaultyLog,
    Gate,
    Ledger,
    LedgerSaga,
    OrderSaga,
    engine_on,
    story,
    until,
)

# --- an append that stands, and the read behind it that fails -------------------------------------


class _Forgetful(FaultyLog):
    """Reads that do not wait fail now and then: the first few behind a foreign record."""

    def __init__(self) -> None:
        super().__init__(1)
        self.failures = 0

    async def read(self, partition: int, offset: int, **options: Any) -> Chunk:
        if self.failures:
            self.failures -= 1
            raise Unreachable("the log", self.name)
        return await super().read(partition, offset, **options)


async def test_an_append_behind_a_foreign_record_is_confirmed_though_reading_fails() -> None:
    log, ledger = _Forgetful(), Ledger()
    gate = ledger.gate("reserve")
    async with engine_on(log, ledger=ledger) as engine:
        running = asyncio.create_task(engine.run(OrderSaga, saga_id="s"))
        await gate.entered()
        # Nobody has read the foreign record when the step's outcome is appended behind it.
        log.failures = 2
        await log.append_raw(0, "nobody", b"foreign")
        gate.open()
        assert (await asyncio.wait_for(running, 10)).success
    assert ledger.order == ["reserve", "charge", "ship"]


# --- going back while an attempt's outcome is unknown ---------------------------------------------


def _interrupted(deadline_at: int = 0) -> tuple[SagaState, Graph]:
    """A saga that was taken over while `charge` ran; `deadline_at`, when it has to be done."""
    graph = Graph([StepNode("charge", compensable=True, on_unknown=True)])
    started = e.SagaStarted(graph.fingerprint, graph.text, deadline_at=deadline_at)
    state = SagaState()
    for sequence, fact in enumerate((started, e.StepStarted("charge")), 1):
        advance(state, e.Event("s", "order", b"one", 0, sequence, 1, fact))
    advance(state, e.Event("s", "order", b"two", 1, 3, 1, e.SagaClaimed("take-over")))
    return state, graph


def _undoing(facts: tuple[e.Fact, ...]) -> list[tuple[str, str]]:
    return [(type(f).__name__, getattr(f, "step", getattr(f, "steps", ""))) for f in facts]


UNDOES_IT = [("StepFailed", "charge"), ("CompensationStarted", '["charge"]')]


def test_a_cancel_after_a_take_over_undoes_what_the_dead_process_may_have_done() -> None:
    state, graph = _interrupted()
    assert _undoing(cancel(state, graph, e.CancelRequested("r", "s"))) == UNDOES_IT


def test_a_deadline_after_a_take_over_undoes_what_the_dead_process_may_have_done() -> None:
    state, graph = _interrupted(deadline_at=5)
    (lost,) = decide(state, graph, now=6).facts
    advance(state, e.Event("s", "order", b"two", 1, 4, 6, lost))
    assert _undoing((lost, *decide(state, graph, now=6).facts)) == UNDOES_IT


def test_an_attempt_that_fails_for_sure_says_nothing_of_the_one_that_died_before_it() -> None:
    state, graph = _interrupted()
    for fact in (e.StepStarted("charge", 2), e.StepFailed("charge", 2, "Declined")):
        event = e.Event("s", "order", b"two", 1, state.sequence + 1, 1, fact)
        advance(state, event)
    assert state.step("charge").unknown
    assert _undoing(decide(state, graph, now=1).facts) == [UNDOES_IT[1]]


async def test_a_cancel_between_two_attempts_undoes_what_the_first_may_have_done() -> None:
    state, graph = _interrupted()
    late = e.StepFailed("charge", 2, "SagaTimeoutError", retry_at=5, unknown=True)
    for fact in (e.StepStarted("charge", 2), late):
        event = e.Event("s", "order", b"two", 1, state.sequence + 1, 1, fact)
        advance(state, event)
    assert _undoing(cancel(state, graph, e.CancelRequested("r", "s"))) == [UNDOES_IT[1]]


# --- a cancel that comes while the saga goes back -------------------------------------------------


async def test_a_cancel_while_the_start_of_a_compensation_is_on_its_way_does_not_withdraw_it() -> (
    None
):
    log, ledger = FaultyLog(), Ledger()
    gate = Gate()
    log.outcomes.extend(["", "", gate])
    ledger.fails("charge", Declined())
    async with engine_on(log, ledger=ledger) as engine:
        handle = await engine.start(OrderSaga, saga_id="s")
        await gate.entered()
        cancelling = asyncio.create_task(engine.cancel("s"))
        await until(lambda: cancelling.done() or engine.host.runners["s"]._cancel_request)
        gate.open()
        await cancelling
        assert (await handle.result()).status is SagaStatus.ROLLED_BACK
    assert ledger.order == ["reserve", "charge", "undo reserve"]
    assert (await story(log, "s"))[4:] == [
        "StepFailed charge",
        "CompensationStarted",
        "StepCompensationStarted reserve",
        "StepCompensated reserve",
        "SagaRolledBack charge",
    ]


# --- who waits for a saga that is parked ----------------------------------------------------------


class Patient(Saga):
    """It waits for a signal."""

    saga_name = "patient"

    @action("go", wait_for="go")
    async def go(self, ctx: Any) -> None: ...


def _id_in(log: MemoryEventLog, partition: int) -> str:
    return next(f"s-{n}" for n in range(100) if log.partition_of(f"s-{n}") == partition)


async def test_who_waits_for_a_parked_saga_hears_of_its_end_also_after_a_hand_over() -> None:
    log = MemoryEventLog(2)
    saga_id = _id_in(log, 1)
    async with Engine(log, sagas=[Patient], config=QUIET) as one:
        handle = await one.start(Patient, saga_id=saga_id)
        waiting = asyncio.create_task(handle.result())
        await until(lambda: not one.host.runners)
        async with Engine(log, sagas=[Patient], config=QUIET) as other:
            assert other.host.partition_for(saga_id) is not None
            await other.signal(saga_id, "go")
            assert (await asyncio.wait_for(waiting, 10)).success


async def test_who_follows_a_saga_in_the_log_is_told_when_the_engine_closes() -> None:
    log = MemoryEventLog(2)
    saga_id = _id_in(log, 1)
    one, other = (Engine(log, sagas=[Patient], config=QUIET) for _ in range(2))
    await one.open()
    await other.open()
    await other.start(Patient, saga_id=saga_id)
    following = asyncio.create_task((await one.handle(saga_id)).result())
    await until(lambda: one.host.outcomes._followers)
    await one.close()
    with pytest.raises(EngineClosed):
        await asyncio.wait_for(following, 10)
    await other.close()


# --- a replay that is decided ---------------------------------------------------------------------


class _Closing(FaultyLog):
    """Once a replay is decided the log cannot be asked for a while."""

    refusals = 0

    async def read_saga(self, saga_id: str, from_offset: int = 0) -> Any:
        if self.refusals:
            self.refusals -= 1
            raise Unreachable("the log", self.name)
        return await super().read_saga(saga_id, from_offset)

    async def append(self, partition: int, entries: Any) -> int:
        base = await super().append(partition, entries)
        if self.appends[-1] == ["ReplayBranched"]:
            self.refusals = 1
        return base


async def test_a_replay_that_is_decided_begins_though_the_log_fails_behind_it() -> None:
    log, ledger = _Closing(), Ledger()
    ledger.fails("ship", Declined())
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="s")
        result = await engine.replay(await engine.plan_replay("s", "ship"))
        assert result.success
    assert ledger.standing == ["reserve", "charge", "ship"]


# --- a saga that is lost while its partition is handed over ---------------------------------------


class _Unread(FaultyLog):
    """A log that cannot be asked for the saga "s" while `down`."""

    down = False

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()  # in vain

    async def read_saga(self, saga_id: str, from_offset: int = 0) -> Any:
        if self.down and saga_id == "s":
            self.asked.set()
            raise Unreachable("the log", self.name)
        return await super().read_saga(saga_id, from_offset)


async def test_a_saga_that_nobody_could_look_at_before_a_hand_over_is_the_next_owners() -> None:
    log, ledger = _Unread(), Ledger()
    gate, release = ledger.gate("reserve"), Gate()
    config = structs.replace(QUIET, drain_seconds=0.01)
    one = engine_on(log, Patient(), OrderSaga(), ledger=ledger, config=config)
    await one.open()
    await one.start(Patient, saga_id="s")
    last = (await log.read_saga("s"))[-1].entry
    assert isinstance(last, e.Event)
    # Another engine claims it, and dies; this one cannot see what became of it.
    log.down = True
    claim = e.Event("s", "patient", b"other", 1, last.sequence + 1, 1, e.SagaClaimed("take-over"))
    await log.append(0, [claim])
    await until(lambda: _named("sagaz-es adopt s"))
    (adopting,) = _named("sagaz-es adopt s")
    await one.start(OrderSaga, saga_id="busy")
    await gate.entered()
    log.outcomes.append(release)  # what is at work is cut off, and its release takes a while
    closing = asyncio.create_task(one.close())
    await release.entered()
    await asyncio.wait([adopting], timeout=10)
    release.open()
    await closing
    log.down = False
    async with engine_on(log, Patient(), ledger=Ledger()) as other:
        assert (await story(log, "s"))[-1] == "SagaClaimed"
        await asyncio.wait_for(other.signal("s", "go"), 10)
        assert (await asyncio.wait_for((await other.handle("s")).result(), 10)).success


def _named(name: str) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == name]


# --- a replay that an engine decided which serves the partition no more ---------------------------


class _Outrun(FaultyLog):
    """Before a replay that is decided stands, another does: of an engine that is gone by then."""

    outrun = False

    async def append(self, partition: int, entries: Any) -> int:
        (event, *_) = entries
        fact = getattr(event, "fact", None)
        if isinstance(fact, e.ReplayBranched) and not self.outrun:
            self.outrun = True
            other = structs.replace(fact, branch_saga_id="others")
            before = structs.replace(event, writer=b"other", epoch=event.epoch + 1, fact=other)
            await super().append(partition, [before])
        return await super().append(partition, entries)


async def test_a_branch_that_a_dead_engine_decided_begins_though_ours_was_being_decided() -> None:
    log, ledger = _Outrun(), Ledger()
    ledger.fails("ship", Declined())
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="s")
        with pytest.raises(PlanOutdated):
            await engine.replay(await engine.plan_replay("s", "ship"))
        await until(lambda: "ship" in ledger.standing)
        assert (await (await engine.handle("others")).result()).success
    assert ledger.standing == ["reserve", "charge", "ship"]


# --- a child that ends while its parent begins to go back -----------------------------------------


class Quick(LedgerSaga):
    """Two saga steps beside each other."""

    saga_name = "quick"
    failure_strategy = "fail_fast"

    @child("order", OrderSaga, depends_on=[])
    async def order(self, ctx: Any) -> Any:
        return None

    @action("notify", depends_on=[], max_retries=0)
    async def notify(self, ctx: Any) -> Any:
        return await self.do(ctx)


async def test_a_child_that_ends_as_it_begins_to_be_taken_back_is_recorded_as_that_alone() -> None:
    log, ledger = FaultyLog(), Ledger()
    notify, begins = ledger.gate("notify"), Gate(late=True)
    ledger.fails("notify", Declined())
    ledger.fails("reserve", Declined())
    log.outcomes.extend(["", "", begins])  # the parent's start, ChildStarted, the child's start
    async with engine_on(log, Quick(), OrderSaga, ledger=ledger) as engine:
        handle = await engine.start("quick", saga_id="s")
        await begins.entered()
        notify.open()
        await until(lambda: engine.host.runners["s"].state.status == "compensating")
        begins.open()
        assert (await handle.result()).status is SagaStatus.ROLLED_BACK
    assert (await story(log, "s"))[3:] == [
        "ChildStarted order",
        "StepFailed notify",
        "CompensationStarted",
        "StepCompensationStarted order",
        "StepCompensated order",
        "SagaRolledBack notify",
    ]
    assert ledger.standing == []


# --- a child that another engine takes over, and that ends before anybody here has looked ---------


async def test_a_parent_hears_of_a_child_that_was_taken_over_and_has_ended_by_then() -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    reserve = ledger.gate("reserve")
    async with engine_on(log, Quick(), OrderSaga, ledger=ledger) as engine:
        handle = await engine.start("quick", saga_id="s")
        await reserve.entered()
        child_id = engine.host.runners["s"].state.step("order").child
        number = engine.host.runners[child_id].state.sequence
        done = (
            f for step in ("charge", "ship") for f in (e.StepStarted(step), e.StepCompleted(step))
        )
        taken = (
            e.SagaClaimed("take-over"),
            e.StepStarted("reserve", 2),
            e.StepCompleted("reserve", 2),
        )
        await log.append(
            0,
            [
                e.Event(child_id, "order", b"other", 1, number + n, 1, fact)
                for n, fact in enumerate((*taken, *done, e.SagaCompleted()), 1)
            ],
        )
        assert (await asyncio.wait_for(handle.result(), 10)).success


# --- an ended saga that another engine takes up while this one looks at it ------------------------


class _Overtaking(FaultyLog):
    """What is read of "s" is out of date when it arrives: another engine has claimed it by then."""

    engine: Engine | None = None
    reads = 0  # until it happens
    gate: Gate | None = None  # behind that, before the next answer

    async def read_saga(self, saga_id: str, from_offset: int = 0) -> Any:
        if self.gate is not None:
            await self.gate.pass_through()
        found = await super().read_saga(saga_id, from_offset)
        self.reads -= saga_id == "s"
        if (engine := self.engine) is not None and not self.reads:
            self.engine, self.gate = None, Gate()
            last = found[-1].entry
            assert isinstance(last, e.Event)
            claim = e.SagaClaimed("retry")
            await self.append(0, [e.Event("s", "order", b"other", 1, last.sequence + 1, 1, claim)])
            # Its own append behind that: now it has read what lies between.
            await engine.host.partitions[0].refuse(e.RequestRefused("nobody's", "nobody"))
        return found


@pytest.mark.parametrize(("asks", "reads"), [("retry", 1), ("replay", 2)])
async def test_what_another_engine_takes_up_is_not_taken_up_from_an_older_state(
    asks: str, reads: int
) -> None:
    log, ledger = _Overtaking(), Ledger()
    ledger.fails("charge", Declined())
    ledger.fails("undo reserve", *[Declined()] * 10)
    async with engine_on(log, ledger=ledger) as engine:
        assert (await engine.run(OrderSaga, saga_id="s")).status is SagaStatus.FAILED
    calls = len(ledger.calls)
    async with engine_on(log, ledger=ledger) as engine:  # which knows nothing of it
        plan = await engine.plan_replay("s", "ship")
        engine.host.partitions[0].forget_before(log._partitions[0].records[-1].offset + 1)
        log.engine, log.reads = engine, reads
        asking = asyncio.create_task(
            engine.retry_compensation("s", "reserve", reason="again")
            if asks == "retry"
            else engine.replay(plan)
        )
        await until(lambda: log.gate)
        assert log.gate is not None
        await log.gate.entered()  # it looks at what the other has claimed
        for _ in range(200):
            await asyncio.sleep(0)
        log.gate.open()
        with pytest.raises(SagaStillRunning if asks == "retry" else PlanOutdated):
            await asking
    assert len(ledger.calls) == calls


# --- retention that comes between the look at a log's bounds and the read from there --------------


class _Forgetting(FaultyLog):
    """Without an index. As soon as its bounds were told, its first records are gone."""

    indexed = False
    gone = 0

    async def bounds(self, partition: int) -> Bounds:
        told = await super().bounds(partition)
        return Bounds(self.gone, told.end)

    async def read(self, partition: int, offset: int, **options: Any) -> Chunk:
        if offset < 5 and self.gone == 1:
            self.gone = 5
        if offset < self.gone:
            raise HistoryGone("partition 0", f"offset {offset}", f"offset {self.gone}")
        return await super().read(partition, offset, **options)


async def test_a_start_is_not_refused_because_old_records_go_while_ids_are_looked_for() -> None:
    log, ledger = _Forgetting(), Ledger()
    async with engine_on(log, ledger=ledger) as engine:
        assert (await engine.run(OrderSaga, saga_id="old")).success
    async with engine_on(log, ledger=ledger) as engine:  # which knows nothing before its mark
        log.gone = 1
        assert (await engine.run(OrderSaga, saga_id="new")).success
    assert log.gone == 5


# --- housekeeping behind an error -----------------------------------------------------------------


class _Emptied(FaultyLog):
    """Without an index. Once a replay is decided, everything before that is gone."""

    indexed = False
    gone = 0

    async def append(self, partition: int, entries: Any) -> int:
        base = await super().append(partition, entries)
        if "ReplayBranched" in self.appends[-1]:
            self.gone = base
        return base

    async def bounds(self, partition: int) -> Bounds:
        return Bounds(self.gone, (await super().bounds(partition)).end)

    async def read(self, partition: int, offset: int, **options: Any) -> Chunk:
        if offset < self.gone:
            raise HistoryGone("partition 0", f"offset {offset}", f"offset {self.gone}")
        return await super().read(partition, offset, **options)


async def test_a_replay_that_is_decided_begins_though_its_store_has_missed_what_is_gone() -> None:
    log, store, ledger = _Emptied(), MemoryProjectionStore(), Ledger()
    ledger.fails("ship", Declined())
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="s")
    await Projector(log, store, batch=3).run_until({0: 3})
    resources = {"ledger": ledger}
    async with Engine(
        log, store=store, sagas=[OrderSaga], resources=resources, config=QUIET
    ) as engine:
        result = await engine.replay(await engine.plan_replay("s", "ship"))
        assert result.success
    assert ledger.standing == ["reserve", "charge", "ship"]


async def test_a_silent_saga_is_taken_over_though_the_log_failed_the_first_time() -> None:
    log = _Unread()
    config = structs.replace(QUIET, housekeeping_seconds=0.001, takeover_seconds=0.001)
    graph = Patient().definition().graph
    started = e.SagaStarted(graph.fingerprint, graph.text)
    async with engine_on(log, Patient(), ledger=Ledger(), config=config) as engine:
        log.down = True
        await log.append(0, [e.Event("s", "patient", b"dead", 0, 1, 1, started)])
        async with asyncio.timeout(10):
            await log.asked.wait()
        log.down = False
        await asyncio.wait_for(engine.signal("s", "go"), 10)
        assert (await asyncio.wait_for((await engine.handle("s")).result(), 10)).success


# --- a replay that an engine decides which has lost the head --------------------------------------


class _Zombie(FaultyLog):
    """Whoever asks for a replay is first answered by an engine that had lost the saga."""

    async def append(self, partition: int, entries: Any) -> int:
        base = await super().append(partition, entries)
        if isinstance(asked := entries[0], e.ReplayRequested):
            decided = e.ReplayBranched(asked.replay_id, "nowhere", request_id=asked.request_id)
            event = e.Event(asked.saga_id, "order", b"zombie", 0, 1, 1, decided)
            await super().append(partition, [event])
        return base


async def test_who_asks_for_a_replay_follows_the_branch_that_the_fold_accepts() -> None:
    log, ledger = _Zombie(2), Ledger()
    saga_id = _id_in(log, 1)
    ledger.fails("ship", Declined())
    async with engine_on(log, ledger=ledger) as one:
        assert not (await one.run(OrderSaga, saga_id=saga_id)).success
        async with engine_on(log, ledger=ledger) as other:
            (asks,) = (engine for engine in (one, other) if 1 not in engine.host.partitions)
            plan = await asks.plan_replay(saga_id, "ship")
            result = await asyncio.wait_for(asks.replay(plan), 10)
            assert result.success and result.new_saga_id != "nowhere"
    assert ledger.standing == ["reserve", "charge", "ship"]


# --- a saga that is stopped while it waits for the log --------------------------------------------


class Both(LedgerSaga):
    """Two steps beside each other."""

    saga_name = "both"

    @action("slow", depends_on=[])
    async def slow(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @action("quick", depends_on=[])
    async def quick(self, ctx: Any) -> Any:
        return await self.do(ctx)


async def test_what_runs_is_stopped_at_a_hand_over_also_while_another_outcome_is_on_its_way() -> (
    None
):
    log, ledger, outcome = FaultyLog(), Ledger(), Gate()
    slow = ledger.gate("slow")
    log.outcomes.extend(["", outcome])
    config = structs.replace(QUIET, drain_seconds=0.001)
    engine = engine_on(log, Both(), ledger=ledger, config=config)
    await engine.open()
    await engine.start("both", saga_id="s")
    await outcome.entered()  # of the quick one
    closing = asyncio.create_task(engine.close())
    await until(lambda: not engine.host.runners)
    outcome.open()
    await closing
    slow.open()
    for _ in range(20):
        await asyncio.sleep(0)
    assert ledger.standing == ["quick"]


# --- an undo that is overtaken while its claim is on its way --------------------------------------


async def test_an_undo_is_told_only_once_its_own_claim_stands() -> None:
    log, ledger = FaultyLog(), Ledger()
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="s")
        replay = await engine.replay(await engine.plan_replay("s", "ship"))
        held = Gate()
        log.outcomes.append(held)
        undoing = asyncio.create_task(engine.undo_replay(replay.replay_id))
        await held.entered()
        branch = await engine.current(replay.new_saga_id)
        other = e.Event(
            branch.saga_id, "order", b"o" * 16, 1, branch.sequence + 1, 1, e.SagaClaimed("undo")
        )
        await MemoryEventLog.append(log, 0, [other])  # of another engine, which died behind it
        held.open()
        assert (await asyncio.wait_for(undoing, 10)).success
        assert (await engine.current(branch.saga_id)).undone
    assert ledger.standing == ["reserve", "charge"]  # which are those of before
