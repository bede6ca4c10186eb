"""While a pivot's outcome is open nothing goes back: the world's ledger says whether that is so.

Why: docs/decisions/0046.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import structs

from sagaz_es import Engine, ParallelFailureStrategy, Saga, SagaStatus, action, compensate
from sagaz_es.core import events as e
from sagaz_es.errors import PivotPassed, PivotUndecided, RequestRefusedError, SagaError
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.testing import cancel, crash_everywhere
from tests.helpers import (
    QUIET,
    Declined,
    FaultyLog,
    Gate,
    Ledger,
    SetClock,
    engine_on,
    facts,
    until,
)


def trip(ledger: Ledger, *, beside: bool = False, **options: Any) -> Saga:
    """book → pay (the pivot) → ship; `beside`: and hold → pack, which need neither."""
    saga = Saga("trip", failure_strategy=ParallelFailureStrategy.FAIL_FAST)

    async def do(ctx: Any) -> Any:
        return {ctx.step: await ledger.do(ctx)}

    async def undo(result: Any, ctx: Any) -> Any:
        return await ledger.undo(ctx, result)

    saga.add_step("book", do, undo, depends_on=[], max_retries=0)
    pay = {"max_retries": 3, "depends_on": ["book"], **options}
    saga.add_step("pay", do, undo, pivot=True, **pay)
    saga.add_step("ship", do, undo, depends_on=["pay"], max_retries=0)
    if beside:
        saga.add_step("hold", do, undo, depends_on=[], max_retries=0)
        saga.add_step("pack", do, undo, depends_on=["hold"], max_retries=0)
    return saga


async def asked(engine: Engine, saga_id: str = "s") -> asyncio.Task[None]:
    """A cancel that the saga's loop has heard of."""
    cancelling = asyncio.create_task(engine.cancel(saga_id, actor="ann"))
    runners = engine.host.runners
    await until(
        lambda: cancelling.done() or (saga_id in runners and runners[saga_id]._cancel_request)
    )
    return cancelling


async def heard(engine: Engine, saga_id: str = "s") -> None:
    """Until a cancel that was asked elsewhere has come through the log."""
    async with asyncio.timeout(10):
        while not getattr(  # noqa: ASYNC110
            engine.host.runners.get(saga_id), "_cancel_request", None
        ):
            await asyncio.sleep(0.005)


# --- a cancel -------------------------------------------------------------------------------------


async def test_a_cancel_while_the_pivot_runs_is_refused_once_the_pivot_has_happened() -> None:
    ledger = Ledger()
    saga, gate = trip(ledger), ledger.gate("pay")
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        cancelling = await asked(engine)
        gate.open()
        with pytest.raises(PivotPassed) as refused:
            await cancelling
        assert (refused.value.saga_id, refused.value.pivot) == ("s", "pay")
        assert (await handle.result()).success
    assert ledger.order == ["book", "pay", "ship"]


async def test_a_pivot_that_fails_for_certain_is_not_tried_again_and_the_saga_is_cancelled() -> (
    None
):
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("pay", Declined())
    saga, gate = trip(ledger), ledger.gate("pay")
    async with engine_on(log, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        cancelling = await asked(engine)
        gate.open()
        await cancelling
        result = await handle.result()
    assert (result.status, result.unknown_step_names) == (SagaStatus.CANCELLED, [])
    assert (ledger.order, ledger.standing) == (["book", "pay", "undo book"], [])
    assert (await facts(log, "s"))[-1] == e.SagaCancelled("", "ann")


async def test_a_pivot_that_may_have_happened_is_tried_again_before_it_is_decided() -> None:
    ledger, clock = Ledger(), SetClock()
    saga = trip(ledger, timeout_seconds=0.05, retry_delay_seconds=20)
    gate = ledger.gate("pay", late=True)  # it is charged, and nobody hears of it
    async with engine_on(None, saga, clock=clock) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        cancelling = await asked(engine)
        wait = await clock.wait()
        assert not cancelling.done() and ledger.order == ["book", "pay"]
        gate.open()
        clock.advance(wait)
        with pytest.raises(PivotPassed):
            await cancelling
        assert (await handle.result()).success
    assert [(call.key, call.attempt) for call in ledger.of("pay")] == [("s/pay", 1), ("s/pay", 2)]


async def test_a_cancel_between_two_attempts_of_which_the_first_may_have_happened_waits() -> None:
    ledger, clock = Ledger(), SetClock()
    saga = trip(ledger, timeout_seconds=0.05, retry_delay_seconds=20)
    gate = ledger.gate("pay", late=True)
    async with engine_on(None, saga, clock=clock) as engine:
        handle = await engine.start(saga, saga_id="s")
        wait = await clock.wait()
        cancelling = asyncio.create_task(engine.cancel("s"))
        await until(lambda: "s" in engine.host.runners)
        gate.open()
        clock.advance(wait)
        with pytest.raises(PivotPassed):
            await cancelling
        assert (await handle.result()).success


async def test_who_fails_for_good_and_may_have_happened_is_named_in_the_result() -> None:
    ledger = Ledger()
    saga = trip(ledger, timeout_seconds=0.05, max_retries=1)
    ledger.gate("pay")
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await ledger.gates["pay"].entered()
        await engine.cancel("s")
        result = await handle.result()
    assert (result.status, result.unknown_step_names) == (SagaStatus.CANCELLED, ["pay"])
    assert ledger.order == ["book", "pay", "pay", "undo book"]


async def test_what_runs_beside_the_pivot_is_left_alone_and_nothing_new_begins() -> None:
    ledger = Ledger()
    saga = trip(ledger, beside=True)
    pay, hold = ledger.gate("pay"), ledger.gate("hold")
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await pay.entered()
        await hold.entered()
        cancelling = await asked(engine)
        hold.open()
        await until(lambda: handle and engine.host.runners["s"].state.step("hold").done_at)
        for _ in range(100):
            await asyncio.sleep(0)
        assert "pack" not in ledger.order
        pay.open()
        with pytest.raises(PivotPassed):
            await cancelling
        assert (await handle.result()).success
    assert sorted(ledger.standing) == ["book", "hold", "pack", "pay", "ship"]


async def test_what_runs_beside_a_pivot_is_stopped_once_the_pivot_has_failed() -> None:
    ledger = Ledger()
    ledger.fails("pay", Declined())
    saga = trip(ledger, beside=True)
    pay, hold = ledger.gate("pay"), ledger.gate("hold")
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await pay.entered()
        await hold.entered()
        cancelling = await asked(engine)
        pay.open()  # hold's gate stays closed: only a cancellation ends it
        await cancelling
        result = await handle.result()
    assert (result.status, result.unknown_step_names) == (SagaStatus.CANCELLED, ["hold"])
    assert ledger.standing == []


async def test_a_pivot_whose_start_is_on_its_way_when_the_cancel_comes_never_runs() -> None:
    ledger, log = Ledger(), FaultyLog()
    gate = Gate()
    saga = trip(ledger)
    log.outcomes.extend(["", gate])
    async with engine_on(log, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        assert log.appends[-1][-1] == "StepStarted pay"
        cancelling = await asked(engine)
        gate.open()
        await cancelling
        result = await handle.result()
    assert (result.status, result.unknown_step_names) == (SagaStatus.CANCELLED, [])
    assert (ledger.order, ledger.standing) == (["book", "undo book"], [])


async def test_another_engine_that_asks_hears_the_same() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    saga, gate = trip(ledger), ledger.gate("pay")
    desk = engine_on(log, saga)
    async with engine_on(log, saga) as engine:
        await desk.open(join=False)
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        cancelling = asyncio.create_task(desk.cancel("s"))
        await heard(engine)
        gate.open()
        with pytest.raises(PivotPassed, match="its pivot 'pay' has completed"):
            await cancelling
        assert (await handle.result()).success
        await desk.close()


async def test_another_engine_that_waits_in_vain_is_told_what_the_cancel_waits_for() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    saga, gate = trip(ledger), ledger.gate("pay")
    hasty = structs.replace(QUIET, request_seconds=0.1)
    desk = engine_on(log, saga, config=hasty)
    async with engine_on(log, saga) as engine:
        await desk.open(join=False)
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        with pytest.raises(TimeoutError, match="is in its pivot 'pay': the cancel stays"):
            await desk.cancel("s")
        ledger.fails("pay", Declined())
        gate.open()
        assert (await handle.result()).status is SagaStatus.CANCELLED
        await desk.close()


# --- its engine does not live to see the outcome --------------------------------------------------


async def taken_over(log: MemoryEventLog, saga: Saga) -> Engine:
    """Another engine, after a crash of the first: nothing was released."""
    another = engine_on(log, saga)
    await another.open()
    await another.host._serving._serve(0)
    return another


@pytest.mark.parametrize("declined", [False, True])
async def test_the_next_owner_tries_the_pivot_again_and_then_decides(declined: bool) -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    saga = trip(ledger)
    gate = ledger.gate("pay", late=not declined)
    one = engine_on(log, saga)
    await one.open()
    await one.start(saga, saga_id="s")
    await gate.entered()
    cancelling = await asked(one)
    if declined:
        ledger.fails("pay", *[Declined()] * 4)
    again = ledger.gate("pay")
    other = await taken_over(log, saga)
    await again.entered()
    await heard(other)
    again.open()
    result = await (await other.handle("s")).result()
    keys = {call.key for call in ledger.of("pay")}
    assert keys == {"s/pay"}
    if declined:
        await cancelling
        # An attempt of unknown outcome is behind it: each of its tries is used to find out.
        assert (result.status, len(ledger.of("pay"))) == (SagaStatus.CANCELLED, 5)
        assert ledger.standing == []
    else:
        with pytest.raises(RequestRefusedError):  # by then it may have completed
            await cancelling
        assert (result.status, len(ledger.of("pay"))) == (SagaStatus.COMPLETED, 2)
        assert "undo book" not in ledger.order
    await one.close()
    await other.close()


async def test_a_cancel_of_a_saga_that_waits_for_room_waits_with_it() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    saga, gate = trip(ledger), ledger.gate("pay", late=True)
    one = engine_on(log, saga)
    await one.open()
    for saga_id in ("s", "t"):
        await one.start(saga, saga_id=saga_id)
        await gate.entered()
    await until(lambda: len(ledger.of("pay")) == 2)
    other = engine_on(log, saga, config=structs.replace(QUIET, max_in_flight=1))
    await other.open()
    await other.host._serving._serve(0)
    await until(lambda: len(ledger.of("pay")) == 3)  # one of them has room, and tries it again
    waits = "t" if ledger.of("pay")[2].saga_id == "s" else "s"
    cancelling = asyncio.create_task(other.cancel(waits))
    await until(lambda: cancelling.done() or waits in other.host.runners)
    await heard(other, waits)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not cancelling.done()
    gate.open()
    with pytest.raises(RequestRefusedError):
        await cancelling
    for saga_id in ("s", "t"):
        assert (await (await other.handle(saga_id)).result()).success
    assert "undo book" not in ledger.order
    await one.close()
    await other.close()


class Slow(Saga):
    """book → pay, a pivot that takes its time and is declined in the end."""

    saga_name = "slow"

    @action("book", max_retries=0)
    async def book(self, ctx: Any) -> None:
        ctx.resources["world"].add("book")

    @compensate("book", on_unknown=True)
    async def unbook(self, ctx: Any) -> None:
        ctx.resources["world"].discard("book")

    @action("pay", pivot=True, max_retries=2)
    async def pay(self, ctx: Any) -> None:
        await asyncio.sleep(5)
        raise Declined


def test_a_crash_anywhere_while_a_cancel_waits_loses_nothing() -> None:
    report = crash_everywhere(
        Slow,
        world=set,
        resources=lambda world: {"world": world},
        when=[cancel()],
        invariant=lambda world: not world,  # what counts is how the saga ends
        status="cancelled",
        failures=False,
    )
    assert report.points >= 12  # before and after the CancelRequested among them


async def test_a_hand_over_waits_for_the_pivot_and_the_cancel_is_decided() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("pay", Declined())
    saga, gate = trip(ledger), ledger.gate("pay")
    async with engine_on(log, saga) as one:
        await one.start(saga, saga_id="s")
        await gate.entered()
        cancelling = await asked(one)
        closing = asyncio.create_task(one.close())
        await until(lambda: not one.host.partitions)
        gate.open()
        await closing
        await cancelling
    async with engine_on(log, saga) as other:
        assert (await (await other.handle("s")).result()).status is SagaStatus.CANCELLED
    assert (ledger.order, ledger.standing) == (["book", "pay", "undo book"], [])


# --- a pivot that runs at most once, a paused saga ------------------------------------------------


async def test_of_an_at_most_once_pivot_the_resolver_is_asked_before_it_is_decided() -> None:
    for happened in (True, False):
        ledger = Ledger()

        async def resolve(ctx: Any) -> bool:
            return happened  # noqa: B023 - called before the loop goes on

        options: dict[str, Any] = {
            "at_most_once": True,
            "resolve": resolve,
            "timeout_seconds": 0.05,
        }
        saga, gate = trip(ledger, **options), ledger.gate("pay", late=happened)
        async with engine_on(None, saga) as engine:
            handle = await engine.start(saga, saga_id="s")
            await gate.entered()
            cancelling = await asked(engine)
            if happened:
                with pytest.raises(PivotPassed):
                    await cancelling
            else:
                await cancelling
            result = await handle.result()
        assert result.status is (SagaStatus.COMPLETED if happened else SagaStatus.CANCELLED)
        assert ledger.standing == (["book", "pay", "ship"] if happened else [])


async def test_where_only_a_person_can_say_what_happened_the_cancel_is_refused() -> None:
    ledger = Ledger()
    saga = trip(ledger, at_most_once=True, timeout_seconds=0.05)
    gate = ledger.gate("pay", late=True)
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        cancelling = await asked(engine)
        with pytest.raises(PivotUndecided) as refused:
            await cancelling
        assert (refused.value.saga_id, refused.value.pivot) == ("s", "pay")
        assert (await handle.result()).needs_intervention
        with pytest.raises(PivotUndecided):
            await engine.cancel("s")
        assert ledger.order == ["book", "pay"]
        await engine.resolve_outcome("s", "pay", happened=False, actor="ann")
        result = await (await engine.handle("s")).result()
    assert result.status is SagaStatus.ROLLED_BACK
    assert ledger.order == ["book", "pay", "undo book"]


async def test_a_paused_saga_tries_no_pivot_again_and_the_cancel_says_so() -> None:
    ledger, clock = Ledger(), SetClock()
    saga = trip(ledger, timeout_seconds=0.05, retry_delay_seconds=20)
    gate = ledger.gate("pay", late=True)
    async with engine_on(None, saga, clock=clock) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        await engine.pause("s")
        cancelling = await asked(engine)
        with pytest.raises(PivotUndecided, match="resume the saga if it is paused"):
            await cancelling
        assert ledger.order == ["book", "pay"]
        gate.open()
        await engine.resume("s")
        clock.advance(await clock.wait())
        assert (await handle.result()).success


# --- a deadline, a sibling's failure --------------------------------------------------------------


@pytest.mark.parametrize("declined", [False, True])
async def test_a_deadline_waits_for_the_pivot_and_does_not_count_behind_it(declined: bool) -> None:
    ledger, clock = Ledger(), SetClock()
    saga, gate = trip(ledger), ledger.gate("pay")
    saga.deadline_seconds = 10  # type: ignore[misc] # of this object
    if declined:
        ledger.fails("pay", Declined())
    async with engine_on(None, saga, clock=clock) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        clock.advance(await clock.wait())
        for _ in range(100):
            await asyncio.sleep(0)
        assert ledger.order == ["book", "pay"]
        gate.open()
        result = await handle.result()
    if declined:
        assert (result.status, ledger.order[2:]) == (SagaStatus.ROLLED_BACK, ["undo book"])
    else:
        assert (result.status, ledger.standing) == (SagaStatus.COMPLETED, ["book", "pay", "ship"])


async def test_fail_fast_does_not_stop_a_pivot_and_what_it_needs_stays() -> None:
    ledger = Ledger()
    ledger.fails("pack", Declined())
    saga = trip(ledger, beside=True)
    pay, pack = ledger.gate("pay"), ledger.gate("pack")
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await pay.entered()
        await pack.entered()
        pack.open()
        await until(lambda: engine.host.runners["s"].state.failed_step)
        for _ in range(100):
            await asyncio.sleep(0)
        assert "undo hold" not in ledger.order
        pay.open()
        result = await handle.result()
    assert result.status is SagaStatus.PARTIALLY_COMMITTED
    assert (ledger.standing, ledger.order[-1]) == (["book", "pay"], "undo hold")


async def test_a_pivot_that_may_have_happened_is_tried_again_after_a_siblings_failure() -> None:
    ledger = Ledger()
    ledger.fails("pack", Declined())
    clock = SetClock()
    saga = trip(ledger, beside=True, timeout_seconds=0.05, retry_delay_seconds=20)
    pay = ledger.gate("pay", late=True)
    async with engine_on(None, saga, clock=clock) as engine:
        handle = await engine.start(saga, saga_id="s")
        wait = await clock.wait()
        assert "undo hold" not in ledger.order
        pay.open()
        clock.advance(wait)
        result = await handle.result()
    assert result.status is SagaStatus.PARTIALLY_COMMITTED
    assert [call.key for call in ledger.of("pay")] == ["s/pay"] * 2
    assert "undo book" not in ledger.order


async def test_a_cancel_at_any_turn_of_the_loop_never_undoes_what_a_standing_pivot_needs() -> None:
    """Whatever the loop is doing just then: steps not begun yet, running, done and not recorded."""
    ends = set()
    for turns in range(60):
        ledger = Ledger()
        saga = trip(ledger, beside=True)
        async with engine_on(None, saga) as engine:
            starting = asyncio.create_task(engine.start(saga, saga_id="s"))
            for _ in range(turns):
                await asyncio.sleep(0)
            refused = ""
            try:
                await asyncio.wait_for(engine.cancel("s"), 10)
            except SagaError as error:
                refused = type(error).__name__
            result = await asyncio.wait_for((await starting).result(), 10)
        ends.add(refused)
        if refused:
            assert (result.success, sorted(ledger.standing)) == (
                True,
                ["book", "hold", "pack", "pay", "ship"],
            ), (turns, refused)
        else:
            assert result.status is SagaStatus.CANCELLED, turns
            # A step that was stopped has no result: of it the ledger keeps what was not found.
            left = [step for step in ledger.standing if result.steps[step] != "failed"]
            assert (left, "pay" in ledger.standing) == ([], False), (turns, result.steps)
    assert {"", "PivotPassed", "SagaEnded"} <= ends


# --- a pivot that is a saga of its own ------------------------------------------------------------


def outer(ledger: Ledger, *, pivot: bool) -> Saga:
    """book → trip, a saga with a pivot → thank"""

    async def do(ctx: Any) -> Any:
        return {ctx.step: await ledger.do(ctx)}

    async def undo(result: Any, ctx: Any) -> Any:
        return await ledger.undo(ctx, result)

    saga = Saga("outer").add_step("flight", do, undo, max_retries=0)
    saga.add_step("trip", lambda ctx: {}, child=trip(ledger), pivot=pivot)
    return saga.add_step("thank", do, undo, max_retries=0)


@pytest.mark.parametrize("by", ["a cancel", "a deadline"])
async def test_of_a_child_that_is_a_pivot_the_end_decides(by: str) -> None:
    ledger, clock = Ledger(), SetClock()
    saga, gate = outer(ledger, pivot=True), ledger.gate("pay")
    saga.deadline_seconds = 60  # type: ignore[misc] # of this object
    async with engine_on(None, saga, clock=clock) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        if by == "a cancel":
            cancelling = await asked(engine)
        else:
            clock.advance(60_000_000)
        for _ in range(100):
            await asyncio.sleep(0)
        gate.open()
        if by == "a cancel":
            with pytest.raises(PivotPassed):
                await cancelling
        assert (await handle.result()).success
    assert ledger.order == ["flight", "book", "pay", "ship", "thank"]


async def test_a_pivot_that_is_a_saga_and_is_cancelled_by_its_id_lets_its_parent_go_back() -> None:
    ledger = Ledger()
    saga, gate = outer(ledger, pivot=True), ledger.gate("book")
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        cancelling = await asked(engine)
        await engine.cancel((await engine.current("s")).step("trip").child)
        await cancelling
        assert (await handle.result()).status is SagaStatus.CANCELLED
    assert (ledger.order, ledger.standing) == (["flight", "book", "undo flight"], [])


async def test_the_next_owner_waits_for_a_child_that_is_a_pivot_and_decides() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("pay", *[Declined()] * 9)
    saga, gate = outer(ledger, pivot=True), ledger.gate("pay")
    async with engine_on(log, saga) as one:
        await one.start(saga, saga_id="s")
        await gate.entered()
        cancelling = await asked(one)
    with pytest.raises(SagaError):  # EngineClosed; the request is in the log
        await cancelling
    async with engine_on(log, saga) as other:
        await heard(other)
        gate.open()
        result = await (await other.handle("s")).result()
    assert result.status is SagaStatus.CANCELLED
    assert ledger.standing == [] and "undo flight" in ledger.order


async def test_a_child_that_is_no_pivot_is_taken_back_and_what_stands_of_it_is_said() -> None:
    ledger = Ledger()
    saga, gate = outer(ledger, pivot=False), ledger.gate("pay")
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        await engine.cancel("s")
        gate.open()
        result = await handle.result()
    assert (result.status, result.committed_step_names) == (SagaStatus.FAILED, ["trip"])
    assert ledger.order[-1] == "undo flight"
