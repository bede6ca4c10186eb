"""Steps that wait for a signal or a time, pauses and deadlines; all of it durable."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from sagaz_es import Engine, Saga, SagaStatus, action, compensate
from sagaz_es.core import events as e
from sagaz_es.errors import ConfigurationError, SagaEnded, SagaNotFound, SagaTimeoutError
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import QUIET, Ledger, OrderSaga, SetClock, engine_on, facts

HOUR = 3_600_000_000


class Approval(Saga):
    """ask → approve (waits for the signal `decision`, an hour at most) → act."""

    saga_name = "approval"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    @action("ask")
    async def ask(self, ctx: Any) -> None:
        self.calls.append("ask")

    @compensate("ask")
    async def withdraw(self, ctx: Any) -> None:
        self.calls.append("withdraw")

    @action("approve", depends_on=["ask"], wait_for="decision", wait_seconds=3600)
    async def approve(self, ctx: Any) -> dict[str, Any]:
        self.calls.append(("approve", ctx.signal))
        return {"by": ctx.signal["by"]}

    @action("act", depends_on=["approve"])
    async def act(self, ctx: Any) -> None:
        self.calls.append(("act", ctx["by"]))


async def waiting(log: MemoryEventLog, saga_id: str, step: str) -> None:
    """Until the step waits, in the log."""
    await stands(log, saga_id, e.StepWaiting, step)


async def completed(log: MemoryEventLog, saga_id: str, step: str) -> None:
    """Until the step is completed, in the log."""
    await stands(log, saga_id, e.StepCompleted, step)


async def stands(log: MemoryEventLog, saga_id: str, kind: type[e.Fact], step: str) -> None:
    async with asyncio.timeout(5):
        while True:
            facts = [
                r.entry.fact for r in await log.read_saga(saga_id) if isinstance(r.entry, e.Event)
            ]
            if any(type(fact) is kind and getattr(fact, "step", "") == step for fact in facts):
                return
            await asyncio.sleep(0)


async def test_a_step_starts_when_its_signal_comes_and_reads_the_payload() -> None:
    log, saga = MemoryEventLog(), Approval()
    async with Engine(log, sagas=[saga], clock=SetClock()) as engine:
        handle = await engine.start(saga, saga_id="a-1")
        await waiting(log, "a-1", "approve")
        assert saga.calls == ["ask"]
        await engine.signal("a-1", "other", {"by": "nobody"})
        await engine.signal("a-1", "decision", {"by": "olga"}, actor="olga")
        assert (await handle.result(5)).status is SagaStatus.COMPLETED
    assert saga.calls == ["ask", ("approve", {"by": "olga"}), ("act", "olga")]


async def test_a_signal_that_comes_early_is_kept() -> None:
    log, saga = MemoryEventLog(), Approval()
    gate = asyncio.Event()

    async def slow(ctx: Any) -> None:
        await gate.wait()

    hand = Saga(name="early").add_step("slow", slow)
    hand.add_step("next", lambda ctx: saga.calls.append(ctx.signal), wait_for="go")
    async with Engine(log, sagas=[hand]) as engine:
        handle = await engine.start(hand)
        await engine.signal(handle.saga_id, "go", 7)
        gate.set()
        assert (await handle.result(5)).success
    assert saga.calls == [7]


async def test_without_its_signal_in_time_the_step_fails_and_the_saga_rolls_back() -> None:
    log, saga, clock = MemoryEventLog(), Approval(), SetClock()
    async with Engine(log, sagas=[saga], clock=clock) as engine:
        handle = await engine.start(saga, saga_id="a-1")
        await waiting(log, "a-1", "approve")
        clock.advance(HOUR)
        result = await handle.result(5)
    assert result.status is SagaStatus.ROLLED_BACK
    assert "no signal 'decision' came in time" in str(result.error)
    assert saga.calls == ["ask", "withdraw"]


async def test_a_wait_goes_on_in_another_process_and_its_time_does_not_begin_anew() -> None:
    log, clock = MemoryEventLog(), SetClock()
    first, second = Approval(), Approval()
    async with Engine(log, sagas=[first], clock=clock) as engine:
        await engine.start(first, saga_id="a-1")
        await waiting(log, "a-1", "approve")
    clock.advance(HOUR - 1_000_000)
    async with Engine(log, sagas=[second], clock=clock) as engine:
        handle = await engine.handle("a-1")
        clock.advance(1_000_000)
        assert (await handle.result(5)).status is SagaStatus.ROLLED_BACK
    assert (first.calls, second.calls) == (["ask"], ["withdraw"])


async def test_a_signal_reaches_a_saga_that_was_taken_over() -> None:
    log = MemoryEventLog()
    first, second = Approval(), Approval()
    async with Engine(log, sagas=[first]) as engine:
        await engine.start(first, saga_id="a-1")
        await waiting(log, "a-1", "approve")
    async with Engine(log, sagas=[second]) as engine:
        handle = await engine.handle("a-1")
        await engine.signal("a-1", "decision", {"by": "ann"})
        assert (await handle.result(5)).success
    assert second.calls == [("approve", {"by": "ann"}), ("act", "ann")]


async def test_a_delayed_step_starts_after_its_delay_also_after_a_restart() -> None:
    log, clock = MemoryEventLog(), SetClock()
    calls: list[str] = []

    def saga() -> Saga:
        return Saga(name="later").add_step(
            "remind", lambda ctx: calls.append("remind"), delay_seconds=3600
        )

    first = saga()
    async with Engine(log, sagas=[first], clock=clock) as engine:
        await engine.start(first, saga_id="l-1")
        await waiting(log, "l-1", "remind")
    clock.advance(HOUR // 2)
    async with Engine(log, sagas=[saga()], clock=clock) as engine:
        handle = await engine.handle("l-1")
        assert await clock.wait() == HOUR // 2
        assert calls == []
        clock.advance(HOUR // 2)
        assert (await handle.result(5)).success
    assert calls == ["remind"]


async def test_a_paused_saga_starts_no_step_until_it_is_resumed() -> None:
    log = MemoryEventLog()
    calls: list[str] = []
    begun, gate = asyncio.Event(), asyncio.Event()

    async def one(ctx: Any) -> None:
        begun.set()
        await gate.wait()
        calls.append("one")

    async def two(ctx: Any) -> None:
        calls.append("two")

    saga = Saga(name="pausing").add_step("one", one).add_step("two", two)
    async with Engine(log, sagas=[saga]) as engine:
        handle = await engine.start(saga)
        await begun.wait()
        await engine.pause(handle.saga_id, reason="stocktaking", actor="olga")
        gate.set()
        await completed(log, handle.saga_id, "one")
        for _ in range(20):
            await asyncio.sleep(0)
        assert calls == ["one"]
        await engine.resume(handle.saga_id, actor="olga")
        assert (await handle.result(5)).success
    assert calls == ["one", "two"]


class Deadline(Saga):
    saga_name = "deadline"
    deadline_seconds = 60
    calls: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.calls = []
        self.begun = asyncio.Event()

    @action("one")
    async def one(self, ctx: Any) -> None:
        self.calls.append("one")

    @compensate("one")
    async def undo(self, ctx: Any) -> None:
        self.calls.append("undo")

    @action("two", depends_on=["one"], timeout_seconds=3600)
    async def two(self, ctx: Any) -> None:
        self.begun.set()
        await asyncio.sleep(3600)


@pytest.mark.parametrize("signals", [0, 2])
async def test_what_is_to_be_held_runs_no_step_again_where_it_is_taken_over(signals: int) -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    gate = ledger.gate("charge")
    at_once = msgspec.structs.replace(QUIET, drain_seconds=0)
    async with engine_on(log, ledger=ledger, config=at_once) as first:
        await first.start(OrderSaga, saga_id="s")
        await gate.entered()
    gate.open()
    asker = engine_on(log, ledger=ledger)
    await asker.open(join=False)
    for n in range(signals):
        await log.append(0, [e.SignalSent(f"r-{n}", "s", 0, "olga", name="news")])
    end = (await log.bounds(0)).end
    pausing = asyncio.create_task(asker.pause("s", reason="strike", actor="ann"))
    while (await log.bounds(0)).end == end:  # noqa: ASYNC110 - until the request stands
        await asyncio.sleep(0)
    async with engine_on(log, ledger=ledger) as engine, asyncio.timeout(20):
        await pausing
        for _ in range(100):
            await asyncio.sleep(0)
        assert ledger.order == ["reserve", "charge"]
        paused = [fact for fact in await facts(log, "s") if isinstance(fact, e.SagaPaused)]
        assert [(fact.reason, fact.actor) for fact in paused] == [("strike", "ann")]
        heard: set[str] = set()
        while heard != {f"r-{n}" for n in range(signals)}:
            await asyncio.sleep(0.01)
            told = await facts(log, "s")
            heard = {fact.request_id for fact in told if isinstance(fact, e.SignalReceived)}
        await engine.resume("s")
        assert (await (await engine.handle("s")).result()).status is SagaStatus.COMPLETED
    assert ledger.order == ["reserve", "charge", "charge", "ship"]
    await asker.close()


async def test_a_saga_that_passes_its_deadline_is_rolled_back_also_in_the_middle_of_a_step() -> (
    None
):
    saga, clock = Deadline(), SetClock()
    async with Engine(MemoryEventLog(), sagas=[saga], clock=clock) as engine:
        handle = await engine.start(saga)
        await saga.begun.wait()
        clock.advance(60_000_000)
        result = await handle.result(5)
    assert result.status is SagaStatus.ROLLED_BACK
    assert saga.calls == ["one", "undo"]
    assert type(result.error) is SagaTimeoutError
    assert str(result.error) == "the saga's deadline has passed, in step 'two'"
    cancelled = "step 'two' failed with Cancelled: the step was cancelled"
    assert str(result.error.__cause__) == f"{cancelled}: the saga's deadline has passed"


async def test_a_cancel_by_request_names_no_deadline() -> None:
    log, saga = MemoryEventLog(), Deadline()
    async with Engine(log, sagas=[saga], clock=SetClock()) as engine:
        handle = await engine.start(saga)
        await saga.begun.wait()
        await engine.cancel(handle.saga_id, reason="changed my mind", actor="ann")
        assert (await handle.result(5)).status is SagaStatus.CANCELLED
    told = [f for f in await facts(log, handle.saga_id) if isinstance(f, e.StepFailed)]
    assert [fact.error_message for fact in told] == ["the step was cancelled"]


async def test_who_signals_a_saga_that_is_not_there_or_has_ended_is_told() -> None:
    saga = Saga(name="short").add_step("only", lambda ctx: None)
    async with Engine(MemoryEventLog(), sagas=[saga]) as engine:
        with pytest.raises(SagaNotFound):
            await engine.signal("nobody", "go")
        result = await engine.run(saga)
        with pytest.raises(SagaEnded, match="completed"):
            await engine.signal(result.saga_id, "go")


async def test_a_signal_that_no_step_of_the_class_waits_for_is_warned_of_and_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, saga = MemoryEventLog(), Approval()
    async with Engine(log, sagas=[saga]) as engine:
        handle = await engine.start(saga, saga_id="a-1")
        await engine.signal("a-1", "decison")
        await engine.signal("a-1", "decision", {"by": "ann"})
        assert (await handle.result(5)).success
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == (
        "saga a-1 (approval) was sent a signal 'decison', and no step of its class waits for that; "
        "they wait for: 'decision'"
    )
    kept = [fact.name for fact in await facts(log, "a-1") if isinstance(fact, e.SignalReceived)]
    assert kept == ["decison", "decision"]


def test_waits_that_make_no_sense_are_refused_when_the_step_is_declared() -> None:
    with pytest.raises(ConfigurationError, match="wait_seconds goes with wait_for"):
        Saga(name="s").add_step("a", lambda ctx: None, wait_seconds=5)
    with pytest.raises(ConfigurationError, match="not both"):
        Saga(name="s").add_step("a", lambda ctx: None, wait_for="x", delay_seconds=5)


async def test_a_waiting_saga_costs_no_task() -> None:
    log, saga = MemoryEventLog(), Approval()
    async with Engine(log, sagas=[saga]) as engine:
        before = len(asyncio.all_tasks())
        for number in range(50):
            await engine.start(saga, saga_id=f"a-{number}")
            await waiting(log, f"a-{number}", "approve")
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) <= before + 2  # one timer for all of them
