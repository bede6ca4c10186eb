"""Steps that fail: retries and their waits, time limits, errors of every kind."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sagaz_es import ParallelFailureStrategy, Saga, SagaStatus
from sagaz_es.core import events as e
from sagaz_es.errors import PlanBlocked, SagaStepError, SagaTimeoutError
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.testing import given, replay, resolve
from tests.helpers import (
    After,
    Declined,
    Ledger,
    OrderSaga,
    SetClock,
    engine_on,
    facts,
)


def one_step(step: Any, undo: Any = None, **options: Any) -> Saga:
    return Saga("one").add_step("step", step, undo, **options)


async def failed(log: MemoryEventLog, saga_id: str = "s") -> list[e.StepFailed]:
    return [fact for fact in await facts(log, saga_id) if isinstance(fact, e.StepFailed)]


# --- retries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retries", "failures", "attempts", "status"),
    [
        (3, 2, 3, "completed"),
        (3, 3, 4, "completed"),
        (3, 9, 4, "rolled_back"),
        (0, 9, 1, "rolled_back"),
        (0, 0, 1, "completed"),
        (1, 1, 2, "completed"),
    ],
)
async def test_max_retries_are_attempts_after_the_first(
    retries: int, failures: int, attempts: int, status: str
) -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("step", *[Declined(str(n)) for n in range(failures)])
    async with engine_on(log, one_step(ledger.do, max_retries=retries)) as engine:
        result = await engine.run("one", saga_id="s")
    assert result.status == status
    assert [call.attempt for call in ledger.calls] == list(range(1, attempts + 1))
    assert {call.key for call in ledger.calls} == {"s/step"}
    assert len(await failed(log)) == min(failures, attempts)
    if status == "rolled_back":
        assert str(result.error) == str(retries)


async def test_waits_grow_from_the_base_by_two_up_to_the_cap() -> None:
    clock, log, ledger = SetClock(jumps=True), MemoryEventLog(1), Ledger()
    ledger.fails("step", *[Declined()] * 9)
    saga = one_step(ledger.do, max_retries=5, retry_delay_seconds=1, max_retry_delay_seconds=6)
    async with engine_on(log, saga, clock=clock) as engine:
        await engine.run(saga, saga_id="s")
    events = [record.entry for record in await log.read_saga("s")]
    waits = [
        (event.fact.retry_at - event.occurred_at) / 1e6
        for event in events
        if isinstance(event, e.Event) and isinstance(event.fact, e.StepFailed)
    ]
    assert waits[-1] < 0  # the last attempt: there is no next one
    for wait, base in zip(waits, [1, 2, 4, 6, 6], strict=False):
        # Up to a tenth more, so that many sagas do not come back at one moment.
        assert base <= wait <= min(base * 1.1, 6)


async def test_no_attempt_begins_before_its_time() -> None:
    clock, ledger = SetClock(), Ledger()
    ledger.fails("step", Declined())
    saga = one_step(ledger.do, max_retries=1, retry_delay_seconds=0.5)
    async with engine_on(None, saga, clock=clock) as engine:
        handle = await engine.start(saga)
        wait = await clock.wait()
        clock.advance(wait - 1)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(ledger.calls) == 1
        clock.advance(1)
        assert (await handle.result()).success
    assert len(ledger.calls) == 2


async def test_a_take_over_continues_a_wait_instead_of_starting_it_anew() -> None:
    clock, log, ledger = SetClock(), MemoryEventLog(1), Ledger()
    ledger.fails("step", Declined())
    saga = one_step(ledger.do, max_retries=1, retry_delay_seconds=20)
    async with engine_on(log, saga, clock=clock) as engine:
        await engine.start(saga, saga_id="s")
        whole = await clock.wait()
    clock.advance(6_000_000)
    async with engine_on(log, saga, clock=clock) as another:
        assert await clock.wait() == whole - 6_000_000
        clock.advance(whole)
        assert (await (await another.handle("s")).result()).success
    assert [call.attempt for call in ledger.calls] == [1, 2]
    assert {call.key for call in ledger.calls} == {"s/step"}


async def test_a_wait_that_is_over_at_the_take_over_is_not_waited_again() -> None:
    clock, log, ledger = SetClock(), MemoryEventLog(1), Ledger()
    ledger.fails("step", Declined())
    saga = one_step(ledger.do, max_retries=1, retry_delay_seconds=20)
    async with engine_on(log, saga, clock=clock) as engine:
        await engine.start(saga, saga_id="s")
        await clock.wait()
    clock.advance(200_000_000)
    async with engine_on(log, saga, clock=clock) as another:
        assert (await (await another.handle("s")).result(timeout=5)).success


async def test_failures_count_over_a_take_over_and_interruptions_do_not() -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    gate = ledger.gate("step")
    saga = one_step(ledger.do, max_retries=1)
    one = engine_on(log, saga)
    await one.open()
    await one.start(saga, saga_id="s")
    await gate.entered()
    other = engine_on(log, saga)
    await other.open()
    del ledger.gates["step"]
    ledger.fails("step", Declined(), Declined())
    await other.host._serving._serve(0)
    result = await (await other.handle("s")).result()
    assert result.status is SagaStatus.ROLLED_BACK
    assert [call.attempt for call in ledger.calls] == [1, 2, 3]
    await one.close()
    await other.close()


async def test_only_the_errors_named_are_retried() -> None:
    ledger = Ledger()
    ledger.fails("a", KeyError("k"), ValueError("v"))
    ledger.fails("b", ValueError("v"), KeyError("k"))
    for name, error in (("a", "ValueError"), ("b", "ValueError")):
        only = {"retry_on": (KeyError,)} if name == "a" else {"no_retry": (ValueError,)}
        saga = Saga(name).add_step(name, ledger.do, max_retries=3, **only)
        async with engine_on(None, saga) as engine:
            assert type((await engine.run(saga)).error).__name__ == error
    assert ledger.order == ["a", "a", "b"]


class Refused(Declined):
    """A kind of Declined."""


@pytest.mark.parametrize(
    ("error", "options", "attempts"),
    [
        (Refused(), {"retry_on": (Declined,)}, 3),
        (Refused(), {"no_retry": (Declined,)}, 1),
        (ExceptionGroup("", [Refused()]), {"retry_on": (Declined,)}, 3),
        (ExceptionGroup("", [Refused(), OSError()]), {"retry_on": (Declined,)}, 1),
        (ExceptionGroup("", [OSError(), ExceptionGroup("", [Refused()])]), {}, 3),
        (
            ExceptionGroup("", [OSError(), ExceptionGroup("", [Refused()])]),
            {"no_retry": (Declined,)},
            1,
        ),
        (ExceptionGroup("", [OSError()]), {"retry_on": (ExceptionGroup,)}, 3),
        (
            ExceptionGroup("", [Refused()]),
            {"retry_on": (ExceptionGroup,), "no_retry": (Declined,)},
            1,
        ),
        (ExceptionGroup("", [OSError()]), {"no_retry": (ExceptionGroup,)}, 1),
        (BaseExceptionGroup("", [OSError(), GeneratorExit()]), {}, 1),
    ],
)
async def test_a_group_of_errors_is_retried_if_each_in_it_is(
    error: BaseException, options: dict[str, Any], attempts: int
) -> None:
    """What a TaskGroup in a step raises."""
    ledger = Ledger()
    ledger.fails("step", *[error] * 3)
    saga = one_step(ledger.do, max_retries=2, **options)
    async with engine_on(None, saga) as engine:
        result = await engine.run(saga)
    assert (result.status, len(ledger.calls)) == (SagaStatus.ROLLED_BACK, attempts)


async def test_an_at_most_once_step_is_not_tried_again_whatever_its_retries_say() -> None:
    ledger = Ledger()
    ledger.fails("step", Declined("no"))
    saga = one_step(ledger.do, at_most_once=True, max_retries=3)
    async with engine_on(None, saga) as engine:
        result = await engine.run(saga)
    assert (result.status, ledger.order) == (SagaStatus.ROLLED_BACK, ["step"])


# --- time limits ----------------------------------------------------------------------------------


async def test_a_step_slower_than_its_limit_fails_with_a_time_out_that_names_it() -> None:
    log = MemoryEventLog(1)
    attempts: list[int] = []

    async def forever(ctx: Any) -> None:
        attempts.append(ctx.attempt)
        await asyncio.Event().wait()

    saga = one_step(forever, timeout_seconds=0.01, max_retries=2)
    async with engine_on(log, saga) as engine:
        result = await engine.run(saga, saga_id="s")
    assert attempts == [1, 2, 3], "each attempt has the full limit"
    assert isinstance(result.error, SagaTimeoutError)
    assert str(result.error) == "step 'step' took longer than 0.01 s"
    assert (result.status, result.unknown_step_names) == (SagaStatus.ROLLED_BACK, ["step"])
    assert {(f.error_type, f.unknown) for f in await failed(log)} == {("SagaTimeoutError", True)}


async def test_a_time_out_of_the_steps_own_is_an_error_like_others() -> None:
    log = MemoryEventLog(1)

    async def impatient(ctx: Any) -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    saga = one_step(impatient, max_retries=0)
    async with engine_on(log, saga) as engine:
        result = await engine.run(saga, saga_id="s")
    assert type(result.error) is TimeoutError
    assert [(f.error_type, f.unknown) for f in await failed(log)] == [("TimeoutError", False)]


async def test_a_step_that_swallows_its_time_out_and_completes_has_completed() -> None:
    async def stubborn(ctx: Any) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return {"late": True}

    saga = one_step(stubborn, timeout_seconds=0.01, max_retries=0)
    async with engine_on(None, saga) as engine:
        result = await engine.run(saga)
    assert (result.status, result.context) == (SagaStatus.COMPLETED, {"late": True})


async def test_a_time_out_is_undone_by_key_if_the_compensation_is_for_unknown_outcomes() -> None:
    ledger = Ledger()
    ledger.gate("step", late=True)
    undone: list[tuple[Any, str]] = []

    async def undo(result: Any, ctx: Any) -> None:
        undone.append((result, ctx.idempotency_key))

    saga = one_step(ledger.do, undo, timeout_seconds=0.01, max_retries=0, on_unknown=True)
    async with engine_on(None, saga) as engine:
        result = await engine.run(saga, saga_id="s")
    assert ledger.standing == ["step"], "the effect had happened"
    assert undone == [(None, "s/step/compensation")]
    assert (result.status, result.unknown_step_names) == (SagaStatus.ROLLED_BACK, [])


async def test_a_sync_step_has_a_limit_too() -> None:
    released = threading.Event()

    def slow(ctx: Any) -> None:
        released.wait(10)

    saga = one_step(slow, timeout_seconds=0.01, max_retries=0)
    async with engine_on(None, saga) as engine:
        result = await engine.run(saga)
        released.set()
    assert isinstance(result.error, SagaTimeoutError)


async def test_the_limit_of_a_sync_step_begins_once_it_has_a_thread() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    held, released = asyncio.Event(), threading.Event()
    waits, calls = asyncio.Event(), list[str]()
    loop = asyncio.get_running_loop()

    def holds(ctx: Any) -> None:
        loop.call_soon_threadsafe(held.set)
        released.wait(10)

    async def hangs(ctx: Any) -> None:
        await asyncio.Event().wait()

    first = Saga("first").add_step("hold", holds)
    second = Saga("second").add_step(
        "quick",
        lambda ctx: calls.append("quick"),
        timeout_seconds=0.05,
        max_retries=0,
        on_enter=lambda ctx, step: waits.set(),
    )
    clock = Saga("clock").add_step("hang", hangs, timeout_seconds=0.05, max_retries=0)
    async with asyncio.timeout(20), engine_on(None, first, second, clock) as engine:
        try:
            holding = await engine.start("first")
            await held.wait()
            waiting = await engine.start("second")
            await waits.wait()
            # Its limit began later than that of the step that waits would have.
            assert isinstance((await engine.run("clock")).error, SagaTimeoutError)
            assert calls == []
        finally:
            released.set()
        assert (await waiting.result()).status is SagaStatus.COMPLETED
        assert (await holding.result()).status is SagaStatus.COMPLETED
    assert calls == ["quick"]


# --- errors of every kind -------------------------------------------------------------------------


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class NotText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


class Outcome(BaseException):
    """As pytest's own `fail` and `skip` are."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Declined("no money"), "no money"),
        (Declined(), "Declined"),
        (Mute(), "Mute"),
        (NotText(), "NotText"),
        (Declined("\ud800 half"), "\\ud800 half"),
        (Declined("x" * 10_000), "x" * 4_000),
        (Outcome("stop"), "stop"),
        (GeneratorExit("odd"), "odd"),
        (ExceptionGroup("many", [Declined("a"), KeyError("b")]), "many (2 sub-exceptions)"),
        (BaseExceptionGroup("many", [Outcome()]), "many (1 sub-exception)"),
    ],
)
async def test_whatever_a_step_raises_is_recorded_and_the_saga_goes_back(
    error: BaseException, message: str
) -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("charge", error)
    async with engine_on(log, ledger=ledger) as engine:
        result = await asyncio.wait_for(engine.run(OrderSaga, saga_id="s"), 5)
    assert result.status is SagaStatus.ROLLED_BACK
    assert ledger.order == ["reserve", "charge", "undo reserve"]
    (fact,) = await failed(log)
    assert (fact.error_type, fact.error_message) == (type(error).__name__, message)
    assert fact.error_type in fact.traceback
    assert result.error is error


@pytest.mark.parametrize("error", [StopIteration("end"), Outcome("stop"), Declined("no")])
async def test_whatever_a_sync_step_raises_is_recorded_too(error: BaseException) -> None:
    def raises(ctx: Any) -> None:
        raise error

    saga = one_step(raises, max_retries=0, timeout_seconds=5)
    async with engine_on(None, saga) as engine:
        result = await asyncio.wait_for(engine.run(saga), 2)
    assert result.status is SagaStatus.ROLLED_BACK
    if isinstance(error, StopIteration):  # it cannot pass through a coroutine
        assert str(result.error) == "the step raised StopIteration"
    else:
        assert result.error is error


async def test_an_error_that_holds_itself_is_recorded() -> None:
    log = MemoryEventLog(1)

    async def raises(ctx: Any) -> None:
        one, other = Declined("one"), Declined("other")
        one.__cause__, other.__cause__ = other, one
        one.add_note("see the manual")
        raise one

    saga = one_step(raises, max_retries=0)
    async with engine_on(log, saga) as engine:
        await engine.run(saga, saga_id="s")
    (fact,) = await failed(log)
    assert "see the manual" in fact.traceback


async def test_the_error_of_a_result_is_the_steps_own_and_not_its_compensations() -> None:
    ledger = Ledger()
    ledger.fails("charge", Declined("the card"))
    ledger.fails("undo reserve", *[Declined("the stock")] * 3)
    async with engine_on(ledger=ledger) as engine:
        result = await engine.run(OrderSaga)
    assert result.status is SagaStatus.FAILED
    assert str(result.error) == "the card"


async def test_of_two_steps_that_fail_the_first_ones_error_is_the_sagas() -> None:
    ledger = Ledger()
    gate = ledger.gate("b")
    ledger.fails("a", Declined("first"))
    ledger.fails("b", Declined("second"))
    saga = Saga("two", failure_strategy=ParallelFailureStrategy.WAIT_ALL)
    for name in "ab":
        saga.add_step(name, ledger.do, depends_on=[], max_retries=0)
    log = MemoryEventLog(1)
    async with engine_on(log, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        gate.open()
        result = await handle.result()
    assert str(result.error) == "first"
    assert (await facts(log, "s"))[-1] == e.SagaRolledBack("Declined", "first", "a")


async def test_an_effect_of_a_step_that_says_it_failed_is_not_undone() -> None:
    ledger = Ledger()
    ledger.fails("charge", After(Declined("it happened all the same")))
    async with engine_on(ledger=ledger) as engine:
        result = await engine.run(OrderSaga)
    assert result.status is SagaStatus.ROLLED_BACK
    assert ledger.standing == ["charge"], "an error says that nothing happened; a time-out does not"


ENDINGS = [SystemExit(3), KeyboardInterrupt()]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("threads", [False, True], ids=["coroutine", "thread"])
async def test_a_step_that_would_end_the_process_only_fails(
    ending: BaseException, threads: bool
) -> None:
    calls: list[str] = []
    log = MemoryEventLog(1)

    def act(ctx: Any) -> None:
        calls.append(ctx.step)
        if ctx.step == "charge":
            raise ending

    def undo(ctx: Any) -> None:
        calls.append(f"undo {ctx.step}")
        if ctx.attempt == 1:
            raise ending

    async def act_here(ctx: Any) -> None:
        act(ctx)

    async def undo_here(ctx: Any) -> None:
        undo(ctx)

    saga = Saga("exits")
    for step in ("reserve", "charge"):
        do, back = (act, undo) if threads else (act_here, undo_here)
        saga.add_step(step, do, back, max_retries=1)
    async with engine_on(log, saga, clock=SetClock(jumps=True)) as engine:
        result = await engine.run(saga, saga_id="s")
        alive = await engine.run(one_step(Ledger().do), saga_id="t")
    assert calls == ["reserve", "charge", "charge", "undo reserve", "undo reserve"]
    assert result.status is SagaStatus.ROLLED_BACK
    name = type(ending).__name__
    assert [(f.error_type, bool(f.retry_at)) for f in await failed(log)] == [
        (name, True),
        (name, False),
    ]
    assert isinstance(result.error, SagaStepError), "raising it would end whoever waits"
    assert name in str(result.error)
    assert alive.success


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda error: type(error).__name__)
async def test_a_hook_that_would_end_the_process_ends_nothing(ending: BaseException) -> None:
    def hook(ctx: Any, step: str) -> None:
        raise ending

    ledger = Ledger()
    async with engine_on(None, one_step(ledger.do, on_enter=hook), ledger=ledger) as engine:
        assert (await engine.run("one")).success


async def test_ctrl_c_leaves_the_saga_to_the_next_engine() -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    gate = ledger.gate("charge")

    def first() -> None:
        async def run() -> None:
            main = asyncio.current_task()
            assert main is not None
            async with engine_on(log, ledger=ledger) as engine:
                running = asyncio.create_task(engine.run(OrderSaga, saga_id="s"))
                await gate.entered()
                main.cancel()  # what asyncio.run does at SIGINT
                await running

        asyncio.run(run())

    with pytest.raises(asyncio.CancelledError):
        await asyncio.to_thread(first)
    ledger.gates.clear()
    async with engine_on(log, ledger=ledger) as engine:
        assert (await (await engine.handle("s")).result(30)).success
    assert ledger.order == ["reserve", "charge", "charge", "ship"]


async def test_who_was_told_later_gets_the_error_in_words() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("reserve", Mute())
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="s")
    async with engine_on(log, ledger=ledger) as another:
        told = await (await another.handle("s")).result()
    assert isinstance(told.error, SagaStepError)
    assert str(told.error) == "step 'reserve' failed with Mute: Mute"
    assert told.completed_steps == 0


# --- attempts of unknown outcome ------------------------------------------------------------------


def payment(*, on_unknown: bool, **options: Any) -> Saga:
    """hold → pay, each with a compensation; `on_unknown` is that of pay."""

    async def step(ctx: Any) -> None: ...

    saga = Saga("payment").add_step("hold", step, step)
    return saga.add_step("pay", step, step, max_retries=1, on_unknown=on_unknown, **options)


def test_an_attempt_that_timed_out_counts_though_a_later_one_fails() -> None:
    for on_unknown, undone, unknown in ((True, ["pay", "hold"], []), (False, ["hold"], ["pay"])):
        given(payment(on_unknown=on_unknown)).times_out("pay", attempts=1, after=True).fails(
            "pay"
        ).then(status="rolled_back", compensated=undone, unknown=unknown)


def test_an_attempt_whose_process_died_counts_though_a_later_one_fails() -> None:
    for on_unknown, undone, unknown in ((True, ["pay", "hold"], []), (False, ["hold"], ["pay"])):
        given(payment(on_unknown=on_unknown)).dies("pay").fails("pay").then(
            status="rolled_back", compensated=undone, unknown=unknown
        )


def test_an_attempt_of_unknown_outcome_is_settled_by_a_later_one_that_completes() -> None:
    saga = payment(on_unknown=True).add_step("send", lambda ctx: None)
    given(saga).times_out("pay", attempts=1).fails("send").then(
        status="rolled_back", compensated=["pay", "hold"], unknown=[]
    )


def test_a_step_that_a_person_says_did_not_happen_is_not_undone() -> None:
    given(payment(on_unknown=True, at_most_once=True)).dies("pay").when(
        resolve("pay", happened=False)
    ).then(status="rolled_back", compensated=["hold"], unknown=[])


def test_a_step_that_only_computes_leaves_nothing_in_doubt() -> None:
    saga = Saga("sums").add_step("sum", lambda ctx: None, effects=False, max_retries=0)
    given(saga).dies("sum").fails("sum").then(status="rolled_back", failed="sum", unknown=[])


def test_a_replay_does_not_take_an_effect_that_may_stand_for_none() -> None:
    failing = given(payment(on_unknown=False)).times_out("pay", attempts=1).fails("pay", attempts=2)
    failing.when(replay("pay")).then(status="rolled_back", refused=PlanBlocked)
