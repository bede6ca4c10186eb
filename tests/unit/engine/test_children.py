"""Child sagas: a step that is a saga of its own. Law: docs/decisions/0045.

The ledger is the world; parent and child both write it, so it shows whose effects stand.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar

import msgspec
import pytest

from sagaz_es import Engine, Saga, SagaListener, SagaStatus, action, child, compensate
from sagaz_es.core import events as e
from sagaz_es.errors import PlanOutdated, UndoRefused, Unreachable
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Record
from sagaz_es.testing.virtual_time import VirtualTimeLoop
from tests.helpers import (
    QUIET,
    After,
    Declined,
    Gate,
    Ledger,
    LedgerSaga,
    SetClock,
    accepted_story,
    engine_on,
    facts,
    until,
)


class PaymentSaga(LedgerSaga):
    """authorize → capture, both undone."""

    saga_name: ClassVar[str | None] = "payment"

    @action("authorize", max_retries=0)
    async def authorize(self, ctx: Any) -> Any:
        return {**await self.do(ctx), "amount": ctx["amount"]}

    @compensate("authorize", max_retries=0)
    async def void(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)

    @action("capture", depends_on=["authorize"], max_retries=0)
    async def capture(self, ctx: Any) -> Any:
        return {**await self.do(ctx), "receipt": f"R-{ctx['amount']}"}

    @compensate("capture", max_retries=0)
    async def refund(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)


class OrderSaga(LedgerSaga):
    """reserve → payment (a child) → ship."""

    saga_name: ClassVar[str | None] = "order"

    @action("reserve", max_retries=0)
    async def reserve(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @compensate("reserve", max_retries=0)
    async def release(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)

    @child("payment", PaymentSaga, depends_on=["reserve"], result_keys=["receipt"])
    async def payment(self, ctx: Any) -> Any:
        return {"amount": ctx["total"]}

    @action("ship", depends_on=["payment"], max_retries=0)
    async def ship(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @compensate("ship", max_retries=0)
    async def recall(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)


def shop(
    ledger: Ledger, log: MemoryEventLog | None = None, *sagas: type[Saga], **how: Any
) -> Engine:
    return engine_on(log or MemoryEventLog(4), *(sagas or (OrderSaga,)), ledger=ledger, **how)


async def children_of(log: MemoryEventLog, saga_id: str) -> list[str]:
    return [
        fact.child_saga_id for fact in await facts(log, saga_id) if isinstance(fact, e.ChildStarted)
    ]


# --- forward --------------------------------------------------------------------------------------


class Away(MemoryEventLog):
    """A log whose index answers nothing until a time of the loop's."""

    back_at = 0.0

    async def read_saga(self, saga_id: str, from_offset: int = 0) -> tuple[Record, ...]:
        if asyncio.get_running_loop().time() < self.back_at:
            raise Unreachable("the log", "here")
        return await super().read_saga(saga_id, from_offset)


def test_a_child_begins_soon_after_a_long_outage_has_ended() -> None:
    loop, ledger, log = VirtualTimeLoop(), Ledger(), Away(1)

    async def run() -> float:
        async with shop(ledger, log, clock=loop) as engine:
            handle = await engine.start(OrderSaga, {"total": 90})
            log.back_at = loop.time() + 585
            assert (await handle.result()).success
            return loop.time() - log.back_at

    late_s = loop.run_until_complete(run())
    loop.close()
    assert 0 < late_s < 2
    assert ledger.order == ["reserve", "authorize", "capture", "ship"]


async def test_a_child_step_runs_a_saga_and_merges_the_named_keys_of_its_context() -> None:
    ledger, log = Ledger(), MemoryEventLog(4)
    async with shop(ledger, log) as engine:
        result = await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
        assert result.status == "completed"
        assert ledger.order == ["reserve", "authorize", "capture", "ship"]
        assert result.context["receipt"] == "R-90"
        assert "amount" not in result.context
        [child_id] = await children_of(log, "order-1")
        assert result.children == {"payment": child_id}
        assert child_id.startswith("order-1/payment")
        assert await engine.status(child_id) is SagaStatus.COMPLETED
        assert log.partition_of(child_id) == log.partition_of("order-1")
    story = await accepted_story(log, "order-1")
    assert story[3:8] == [
        "StepStarted payment",
        "ChildStarted payment",
        "ChildEnded payment",
        "StepCompleted payment",
        "StepStarted ship",
    ]


async def test_without_result_keys_the_whole_context_is_the_result_and_nothing_is_merged() -> None:
    class Whole(LedgerSaga):
        @child("payment", PaymentSaga)
        async def payment(self, ctx: Any) -> Any:
            return {"amount": 7}

        @action("look", max_retries=0)
        async def look(self, ctx: Any) -> Any:
            return {"seen": ctx.result_of("payment")["receipt"], "keys": sorted(ctx)}

    async with shop(Ledger(), None, Whole) as engine:
        result = await engine.run(Whole, {"a": 1})
    assert result.context == {"a": 1, "seen": "R-7", "keys": ["a"]}


async def test_a_child_that_rolls_back_fails_its_step_and_the_parent_undoes_the_rest() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("capture", Declined("no funds"))
    async with shop(ledger, log) as engine:
        result = await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
    assert result.status == "rolled_back"
    assert ledger.order == ["reserve", "authorize", "capture", "undo authorize", "undo reserve"]
    assert ledger.standing == []
    assert type(result.error).__name__ == "SagaStepError"
    assert "ChildSagaFailed" in str(result.error)
    assert "no funds" in str(result.error) and "order-1/payment" in str(result.error)


async def test_a_method_that_changes_its_context_fails_the_step_without_a_child() -> None:
    class Changing(Saga):
        @child("payment", PaymentSaga, max_retries=3)
        async def payment(self, ctx: Any) -> Any:
            ctx["x"] = 1
            return {"amount": 1}

    log = MemoryEventLog(1)
    async with shop(Ledger(), log, Changing) as engine:
        result = await engine.run(Changing, {}, saga_id="s")
    assert result.status == "rolled_back" and "changes 'x'" in str(result.error)
    assert await children_of(log, "s") == []
    assert (await accepted_story(log, "s")).count("StepStarted payment") == 1


async def test_a_saga_of_the_childs_id_that_somebody_else_started_is_not_adopted() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    async with shop(ledger, log) as engine:
        await engine.run(PaymentSaga, {"amount": 1}, saga_id="order-1/payment")
        result = await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
    assert result.status == "rolled_back" and "ChildIdTaken" in str(result.error)
    assert ledger.standing == ["authorize", "capture"]  # of the saga that was there


async def test_a_waiting_parent_has_no_task() -> None:
    ledger = Ledger()
    gate = ledger.gate("capture")
    async with shop(ledger) as engine:
        handle = await engine.start(OrderSaga, {"total": 90}, saga_id="order-1")
        await gate.entered()
        await until(lambda: "order-1" not in engine.host.runners)
        gate.open()
        assert (await handle.result()).success


async def test_a_child_of_a_child_of_a_hand_built_saga() -> None:
    ledger = Ledger()
    outer = Saga(name="outer")
    outer.add_step("order", lambda ctx: {"total": 5}, child=OrderSaga, result_keys=["receipt"])
    async with engine_on(MemoryEventLog(3), outer, ledger=ledger) as engine:
        result = await engine.run(outer, {}, saga_id="o")
    assert result.success and result.context["receipt"] == "R-5"
    assert ledger.of("capture")[0].saga_id.startswith("o/order")
    assert ledger.of("capture")[0].saga_id.count("/payment") == 1


# --- back -----------------------------------------------------------------------------------------


async def test_a_parent_that_rolls_back_takes_its_completed_child_back() -> None:
    ledger, log = Ledger(), MemoryEventLog(2)
    ledger.fails("ship", Declined("no truck"))
    async with shop(ledger, log) as engine:
        result = await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
        [child_id] = await children_of(log, "order-1")
        assert await engine.status(child_id) is SagaStatus.ROLLED_BACK
    assert result.status == "rolled_back" and ledger.standing == []
    assert ledger.order[4:] == ["undo capture", "undo authorize", "undo reserve"]
    story = await accepted_story(log, child_id)
    assert story[5:8] == ["SagaCompleted", "SagaClaimed", "CompensationStarted"]
    assert story[-1] == "SagaRolledBack"
    assert (await accepted_story(log, "order-1"))[-5:] == [
        "StepCompensationStarted payment",
        "StepCompensated payment",
        "StepCompensationStarted reserve",
        "StepCompensated reserve",
        "SagaRolledBack ship",
    ]


async def test_a_child_that_cannot_be_undone_leaves_the_parent_failed_and_is_listed() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("ship", Declined("no truck"))
    ledger.fails("undo capture", *[Declined("bank closed")] * 2)
    async with shop(ledger, log) as engine:
        result = await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
        assert result.status == "failed"
        assert result.committed_step_names == ["payment"]
        assert "capture" in str(result.compensation_errors[0])
        # Retried, it is tried in the child again.
        again = await engine.retry_compensation("order-1", "payment", reason="it opened")
        assert again.status == "failed"  # the second script entry
        again = await engine.retry_compensation("order-1", "payment", reason="it opened")
        assert again.status == "rolled_back"
        assert await engine.status("order-1/payment") is SagaStatus.ROLLED_BACK
    assert ledger.standing == []


async def test_what_is_mended_in_the_child_counts_in_its_parent() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("ship", Declined("no truck"))
    ledger.fails("undo capture", Declined("bank closed"))
    async with shop(ledger, log) as engine:
        assert (await engine.run(OrderSaga, {"total": 90}, saga_id="o")).status == "failed"
        kid = await engine.retry_compensation("o/payment", "capture", reason="it opened")
        assert kid.status == "rolled_back"
        calls = len(ledger.calls)
        parent = await engine.retry_compensation("o", "payment", reason="it is mended")
        assert parent.status == "rolled_back" and len(ledger.calls) == calls
    assert ledger.standing == []


async def test_a_child_that_is_cancelled_by_its_own_id_fails_its_step() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    gate = ledger.gate("capture")
    async with shop(ledger, log) as engine:
        handle = await engine.start(OrderSaga, {"total": 90}, saga_id="o")
        await gate.entered()
        await engine.cancel("o/payment", reason="fraud")
        result = await handle.result()
    assert result.status == "rolled_back" and "is cancelled" in str(result.error)
    assert ledger.standing == []


async def test_who_waits_for_a_parent_is_told_when_only_a_person_can_carry_its_child_on() -> None:
    class Wire(LedgerSaga):
        saga_name: ClassVar[str | None] = "wire"

        @action("send", at_most_once=True)
        async def send(self, ctx: Any) -> Any:
            await self.do(ctx)
            raise asyncio.CancelledError  # nobody knows whether it arrived

    class Bill(LedgerSaga):
        @child("wire", Wire)
        async def wire(self, ctx: Any) -> Any: ...

    class Month(LedgerSaga):
        @child("bill", Bill)
        async def bill(self, ctx: Any) -> Any: ...

    ledger, log = Ledger(), MemoryEventLog(1)
    async with shop(ledger, log, Month) as engine:
        result = await engine.run(Month, saga_id="m")
        assert (result.status, result.needs_intervention) == ("executing", True)
        handle = await engine.handle("m")
        await engine.resolve_outcome("m/bill/wire", "send", happened=True, actor="ann")
        assert (await handle.result()).success


class CommittedSaga(LedgerSaga):
    saga_name: ClassVar[str | None] = "committed"

    @action("pay", pivot=True, max_retries=0)
    async def pay(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @compensate("pay")
    async def refund(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)

    @action("book", max_retries=0)
    async def book(self, ctx: Any) -> Any:
        return await self.do(ctx)


class BuyerSaga(LedgerSaga):
    @child("buy", CommittedSaga, pivot=False)
    async def buy(self, ctx: Any) -> Any:
        return None

    @action("ship", max_retries=0)
    async def ship(self, ctx: Any) -> Any:
        return await self.do(ctx)


async def test_a_child_behind_its_pivot_cannot_be_taken_back_and_says_so() -> None:
    ledger = Ledger()
    ledger.fails("ship", Declined())
    async with shop(ledger, None, BuyerSaga) as engine:
        result = await engine.run(BuyerSaga)
    assert result.status == "failed" and result.committed_step_names == ["buy"]
    assert "pivot 'pay'" in str(result.compensation_errors[0])
    assert ledger.standing == ["pay", "book"]


async def test_a_child_that_is_partially_committed_fails_its_step_and_stands() -> None:
    ledger = Ledger()
    ledger.fails("book", Declined())
    async with shop(ledger, None, BuyerSaga) as engine:
        result = await engine.run(BuyerSaga)
    assert result.status == "failed" and ledger.standing == ["pay"]
    assert "ship" not in ledger.order
    assert [error.step for error in result.compensation_errors] == ["buy"]


async def test_a_cancelled_parent_cancels_its_running_child() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    gate = ledger.gate("capture")
    async with shop(ledger, log) as engine:
        handle = await engine.start(OrderSaga, {"total": 90}, saga_id="order-1")
        await gate.entered()
        await engine.cancel("order-1", reason="the customer called")
        result = await handle.result()
        assert result.status == "cancelled"
        assert await engine.status("order-1/payment") is SagaStatus.CANCELLED
    assert ledger.standing == []


async def test_a_running_child_behind_its_pivot_is_waited_for_and_stands() -> None:
    ledger = Ledger()
    gate = ledger.gate("book")
    async with shop(ledger, None, BuyerSaga) as engine:
        handle = await engine.start(BuyerSaga, saga_id="b")
        await gate.entered()
        await engine.cancel("b", reason="too late")
        home = engine.host.partition_for("b")
        assert home is not None
        await until(lambda: home.cells["b"].state.status == "compensating")
        assert ledger.standing == ["pay"]
        gate.open()
        result = await handle.result()
    assert result.status == "failed" and ledger.standing == ["pay", "book"]


async def test_a_parents_deadline_takes_a_running_child_back() -> None:

    class Hasty(OrderSaga):
        saga_name: ClassVar[str | None] = "hasty"
        deadline_seconds: ClassVar[float | None] = 60

    ledger, clock = Ledger(), SetClock()
    gate = ledger.gate("capture")
    async with shop(ledger, None, Hasty, clock=clock) as engine:
        handle = await engine.start(Hasty, {"total": 90}, saga_id="h")
        await gate.entered()
        await until(lambda: "h" not in engine.host.runners)
        clock.advance(61_000_000)
        result = await handle.result()
    assert result.status == "rolled_back" and ledger.standing == []


async def test_a_failed_sibling_takes_a_running_child_back() -> None:
    class Wide(LedgerSaga):
        failure_strategy = "fail_fast"

        @child("payment", PaymentSaga, depends_on=[])
        async def payment(self, ctx: Any) -> Any:
            return {"amount": 1}

        @action("stock", depends_on=[], max_retries=0)
        async def stock(self, ctx: Any) -> Any:
            return await self.do(ctx)

    ledger = Ledger()
    capture, stock = ledger.gate("capture"), ledger.gate("stock", late=True)

    ledger.fails("stock", After(Declined()))
    async with shop(ledger, None, Wide) as engine:
        handle = await engine.start(Wide, saga_id="w")
        await capture.entered()
        stock.open()
        result = await handle.result()
    assert result.status == "rolled_back" and ledger.standing == ["stock"]


async def test_wait_all_lets_a_running_child_finish_before_it_is_taken_back() -> None:
    class Patient(LedgerSaga):
        failure_strategy = "wait_all"

        @child("payment", PaymentSaga, depends_on=[])
        async def payment(self, ctx: Any) -> Any:
            return {"amount": 1}

        @action("stock", depends_on=[], max_retries=0)
        async def stock(self, ctx: Any) -> Any:
            return await self.do(ctx)

    ledger, log = Ledger(), MemoryEventLog(1)
    gate = ledger.gate("capture")
    ledger.fails("stock", Declined())
    async with shop(ledger, log, Patient) as engine:
        handle = await engine.start(Patient, saga_id="p")
        await gate.entered()
        await until(lambda: "p" not in engine.host.runners)
        gate.open()
        result = await handle.result()
    assert result.status == "rolled_back" and ledger.standing == []
    assert "StepCompleted payment" in await accepted_story(log, "p")


async def test_a_paused_parent_hears_of_its_childs_end_once_it_is_resumed() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    gate = ledger.gate("capture")
    async with shop(ledger, log) as engine:
        handle = await engine.start(OrderSaga, {"total": 90}, saga_id="order-1")
        await gate.entered()
        await engine.pause("order-1")
        gate.open()
        assert (await (await engine.handle("order-1/payment")).result()).success
        await asyncio.sleep(0)
        assert "ship" not in ledger.order
        await engine.resume("order-1")
        assert (await handle.result()).success


async def test_a_child_that_has_not_begun_is_cancelled_before_anything_of_it_runs() -> None:
    class Gated(OrderSaga):
        saga_name: ClassVar[str | None] = "gated"

        @child("payment", PaymentSaga, depends_on=["reserve"])
        async def payment(self, ctx: Any) -> Any:
            await gate.pass_through()
            return {"amount": 1}

    ledger, log, gate = Ledger(), MemoryEventLog(1), Gate()
    async with shop(ledger, log, Gated) as engine:
        handle = await engine.start(Gated, saga_id="g")
        await gate.entered()
        await engine.pause("g")
        gate.open()
        await until(lambda: "g" not in engine.host.runners)
        assert (await accepted_story(log, "g"))[-1] == "ChildStarted payment"
        await engine.cancel("g")
        assert (await handle.result()).status == "cancelled"
        assert await engine.status("g/payment") is SagaStatus.CANCELLED
    assert ledger.order == ["reserve", "undo reserve"]


async def test_listeners_hear_of_a_child_step_as_of_any_other() -> None:
    told: list[str] = []

    class Ear(SagaListener):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith("on_"):
                return lambda saga, step, *more: told.append(f"{name[3:]} {step}")
            return super().__getattribute__(name)

    class Heard(OrderSaga):
        saga_name: ClassVar[str | None] = "heard"
        listeners: ClassVar[Any] = (Ear(),)

    ledger = Ledger()
    ledger.fails("ship", Declined())
    async with shop(ledger, None, Heard) as engine:
        await engine.run(Heard, {"total": 90}, saga_id="h")
    assert [each for each in told if each.endswith("payment")] == [
        "step_enter payment",
        "step_success payment",
        "compensation_start payment",
        "compensation_complete payment",
    ]


async def test_children_begin_beyond_the_limit_of_sagas_in_flight() -> None:
    config = msgspec.structs.replace(QUIET, max_in_flight=1)
    ledger = Ledger()
    async with shop(ledger, None, config=config) as engine:
        handles = [await engine.start(OrderSaga, {"total": n}) for n in range(6)]
        assert all([(await handle.result()).success for handle in handles])
    assert ledger.order.count("capture") == 6


# --- another life ---------------------------------------------------------------------------------


async def test_a_new_engine_goes_on_waiting_for_a_child_and_runs_nothing_again() -> None:
    ledger, log = Ledger(), MemoryEventLog(2)
    gate = ledger.gate("capture")
    async with shop(ledger, log) as engine:
        await engine.start(OrderSaga, {"total": 90}, saga_id="order-1")
        await gate.entered()
    del ledger.gates["capture"]
    async with shop(ledger, log) as engine:
        result = await (await engine.handle("order-1")).result()
    assert result.success
    assert (ledger.order.count("reserve"), ledger.order.count("authorize")) == (1, 1)
    assert len(await children_of(log, "order-1")) == 1


# --- replays --------------------------------------------------------------------------------------


def verdicts(plan: Any) -> dict[str, str]:
    return {step.step: str(step.verdict) for step in plan.steps}


async def test_a_request_to_go_back_that_had_its_answer_does_not_undo_a_later_replay() -> None:
    """Whoever takes a partition over reads requests again that nothing in the log answers: the
    child had gone back by itself."""
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("capture", Declined("no funds"))
    async with shop(ledger, log) as engine:
        await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
        child_id = "order-1/payment"
        replay = await engine.replay(await engine.plan_replay(child_id, "authorize"))
        assert replay.success and replay.new_saga_id is not None
        late = e.UndoRequested("take back", child_id, caller_saga_id="order-1")
        await log.append(0, [late])
        await engine.run(PaymentSaga, {"amount": 1}, saga_id="behind it")
        await until(lambda: not engine.host.partitions[0].held)
        assert await engine.status(replay.new_saga_id) is SagaStatus.COMPLETED
    assert ledger.standing == ["authorize", "capture"] * 2  # the replay's, and the saga's behind it


async def test_a_replay_tries_again_to_take_back_a_child_that_was_stuck() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("ship", Declined("no truck"))
    ledger.fails("undo authorize", Declined("not now"))
    async with shop(ledger, log) as engine:
        result = await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
        assert (result.status, ledger.standing) == ("failed", ["authorize"])
        plan = await engine.plan_replay("order-1", "payment")
        assert plan.verdict("payment") == "undo_first"
        assert (await engine.replay(plan)).success
    assert ledger.standing == ["reserve", "authorize", "capture", "ship"]


async def test_a_replay_reuses_a_child_that_stands() -> None:
    ledger, log = Ledger(), MemoryEventLog(2)
    async with shop(ledger, log) as engine:
        await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
        plan = await engine.plan_replay("order-1", "ship")
        assert verdicts(plan) == {"reserve": "reuse", "payment": "reuse", "ship": "undo_first"}
        [child_id] = await children_of(log, "order-1")
        assert plan.steps[1].reason == (
            f"its saga {child_id!r} stands, and nothing it read is changed"
        )
        replay = await engine.replay(plan)
        assert replay.success
        assert replay.new_saga_id is not None
        assert (await engine.current(replay.new_saga_id)).context["receipt"] == '"R-90"'
    assert ledger.order[4:] == ["undo ship", "ship"]


async def test_a_stale_child_is_taken_back_and_a_new_one_started_in_the_branch() -> None:
    ledger, log = Ledger(), MemoryEventLog(2)
    async with shop(ledger, log) as engine:
        await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
        [first] = await children_of(log, "order-1")
        plan = await engine.plan_replay("order-1", "ship", context_override={"total": 80})
        assert verdicts(plan)["payment"] == "undo_first"
        assert plan.steps[1].reason == (
            f"its saga {first!r} stands, but it read 'total', which is changed: it goes back, and "
            "another one starts"
        )
        replay = await engine.replay(plan)
        assert replay.success and replay.new_saga_id is not None
        assert (await engine.current(replay.new_saga_id)).context["receipt"] == '"R-80"'
        [second] = await children_of(log, replay.new_saga_id)
        assert second.startswith(f"{replay.new_saga_id}/payment")
        assert await engine.status(first) is SagaStatus.ROLLED_BACK
        assert await engine.status(second) is SagaStatus.COMPLETED
        # A consumer that leaves replays out leaves out the children that they start.
        replayed = {r.entry.replay_id for r in await log.read_saga(second)}  # type: ignore[union-attr]
        assert replayed == {replay.replay_id}
        # What the branch did is taken back, and with it the child that it started.
        undone = await engine.undo_replay(replay.new_saga_id)
        assert undone.success
        assert await engine.status(second) is SagaStatus.ROLLED_BACK
    assert ledger.standing == ["reserve"]


async def test_a_child_that_failed_and_was_undone_is_started_anew() -> None:
    ledger, log = Ledger(), MemoryEventLog(2)
    ledger.fails("capture", Declined("no funds"))
    async with shop(ledger, log) as engine:
        await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
        plan = await engine.plan_replay("order-1", "payment")
        assert verdicts(plan) == {"reserve": "redo", "payment": "redo", "ship": "redo"}
        done = await engine.replay(plan)
        assert done.success, done
    assert ledger.standing == ["reserve", "authorize", "capture", "ship"]


async def test_a_stale_child_behind_its_pivot_blocks_the_plan() -> None:
    ledger = Ledger()
    async with shop(ledger, None, BuyerSaga) as engine:
        await engine.run(BuyerSaga, saga_id="b")
        plan = await engine.plan_replay("b", "buy")
        assert plan.blockers == ("buy", "ship")
        assert "behind its pivot 'pay'" in plan.steps[0].reason


async def test_an_undo_of_a_replay_is_refused_where_its_child_is_behind_a_pivot() -> None:
    class Careful(BuyerSaga):
        @compensate("ship")
        async def recall(self, result: Any, ctx: Any) -> Any:
            return await self.undo(ctx, result)

    async with shop(Ledger(), None, Careful) as engine:
        await engine.run(Careful, saga_id="b")
        replay = await engine.replay(await engine.plan_replay("b", "buy", allow=["buy"]))
        with pytest.raises(UndoRefused, match="behind a pivot"):
            await engine.undo_replay(replay.new_saga_id)


async def test_a_child_replayed_on_its_own_gives_a_later_replay_its_new_result() -> None:
    ledger, log = Ledger(), MemoryEventLog(2)
    async with shop(ledger, log) as engine:
        await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
        [first] = await children_of(log, "order-1")
        before = await accepted_story(log, "order-1")
        fix = await engine.plan_replay(first, "capture", context_override={"amount": 70})
        assert (await engine.replay(fix)).success
        assert await accepted_story(log, "order-1") == before
        plan = await engine.plan_replay("order-1", "ship")
        assert verdicts(plan)["payment"] == "reuse"
        replay = await engine.replay(plan)
        assert replay.success and replay.new_saga_id is not None
        assert (await engine.current(replay.new_saga_id)).context["receipt"] == '"R-70"'
        # Taken back, it is the head of its family that goes back.
        undone = await engine.plan_replay("order-1", "payment")
        assert (await engine.replay(undone)).success
    assert sorted(ledger.standing) == ["authorize", "capture", "reserve", "ship"]


async def test_what_read_the_old_result_of_a_replayed_child_is_stale() -> None:
    class Reader(OrderSaga):
        saga_name: ClassVar[str | None] = "reader"

        @action("ship", depends_on=["payment"], max_retries=0)
        async def ship(self, ctx: Any) -> Any:
            return {**await self.do(ctx), "with": ctx["receipt"]}

        @action("mail", depends_on=["ship"], max_retries=0)
        async def mail(self, ctx: Any) -> Any:
            return await self.do(ctx)

    ledger, log = Ledger(), MemoryEventLog(1)
    async with shop(ledger, log, Reader) as engine:
        await engine.run(Reader, {"total": 90}, saga_id="r")
        fix = await engine.plan_replay("r/payment", "authorize", context_override={"amount": 70})
        assert (await engine.replay(fix)).success
        plan = await engine.plan_replay("r", "mail")
        assert {s.step: s.reason for s in plan.steps}["ship"].endswith(
            "'receipt', which is changed"
        )


async def test_a_child_undone_on_its_own_is_redone_and_what_depends_on_it_too() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    async with shop(ledger, log) as engine:
        await engine.run(OrderSaga, {"total": 90}, saga_id="o")
        fix = await engine.replay(await engine.plan_replay("o/payment", "authorize"))
        plan_before = await engine.plan_replay("o", "ship")
        await engine.undo_replay(fix.new_saga_id)
        with pytest.raises(PlanOutdated, match="child"):
            await engine.replay(plan_before)
        plan = await engine.plan_replay("o", "ship")
        assert verdicts(plan) == {"reserve": "reuse", "payment": "redo", "ship": "undo_first"}
        assert "undone since" in plan.steps[1].reason
        done = await engine.replay(plan)
        assert done.success, done
    assert sorted(ledger.standing) == ["authorize", "capture", "reserve", "ship"]


async def test_a_replay_of_a_replay_takes_the_newest_child_back() -> None:
    ledger, log = Ledger(), MemoryEventLog(3)
    async with shop(ledger, log) as engine:
        await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
        for total in (80, 70, 60):
            plan = await engine.plan_replay("order-1", "payment", context_override={"total": total})
            done = await engine.replay(plan)
        assert done.success, done
    assert sorted(ledger.standing) == ["authorize", "capture", "reserve", "ship"]
    assert len(ledger.of("undo capture")) == 3


# --- the child's class is another group's ---------------------------------------------------------


class RemoteOrder(OrderSaga):
    """Knows the payment's saga by its name alone."""

    saga_name: ClassVar[str | None] = "remote"

    @child("payment", "payment", depends_on=["reserve"], result_keys=["receipt"])
    async def payment(self, ctx: Any) -> Any:
        return {"amount": ctx["total"]}


ORDERS = msgspec.structs.replace(QUIET, group="orders")
PAYMENTS = msgspec.structs.replace(QUIET, group="payments")


async def test_another_group_runs_the_child_and_takes_it_back() -> None:
    ledger, log = Ledger(), MemoryEventLog(2)
    async with (
        shop(ledger, log, RemoteOrder, config=ORDERS) as orders,
        shop(ledger, log, PaymentSaga, config=PAYMENTS) as payments,
    ):
        result = await orders.run(RemoteOrder, {"total": 90}, saga_id="r-1")
        assert result.success and result.context["receipt"] == "R-90"
        assert not orders.host.partition_for("r-1").waiting  # type: ignore[union-attr]
        ledger.fails("ship", Declined("no truck"))
        result = await orders.run(RemoteOrder, {"total": 80}, saga_id="r-2")
        [child_id] = await children_of(log, "r-2")
        assert await payments.status(child_id) is SagaStatus.ROLLED_BACK
    assert result.status == "rolled_back"
    assert sorted(ledger.standing) == ["authorize", "capture", "reserve", "ship"]


async def test_the_parent_waits_for_a_group_that_comes_later() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    async with shop(ledger, log, RemoteOrder, config=ORDERS) as orders:
        handle = await orders.start(RemoteOrder, {"total": 90}, saga_id="r-1")
        await until(lambda: "r-1" not in orders.host.runners)
        async with shop(ledger, log, PaymentSaga, config=PAYMENTS):
            assert (await handle.result()).success


async def test_a_running_child_of_another_group_is_cancelled() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    gate = ledger.gate("capture")
    async with (
        shop(ledger, log, RemoteOrder, config=ORDERS) as orders,
        shop(ledger, log, PaymentSaga, config=PAYMENTS),
    ):
        handle = await orders.start(RemoteOrder, {"total": 90}, saga_id="r-1")
        await gate.entered()
        await orders.cancel("r-1")
        assert (await handle.result()).status == "cancelled"
    assert ledger.standing == []


async def test_a_child_whose_class_nobody_has_fails_the_step() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    async with shop(ledger, log, RemoteOrder) as engine:
        result = await engine.run(RemoteOrder, {"total": 90}, saga_id="r-1")
    assert result.status == "rolled_back" and "UnknownSagaName" in str(result.error)
    assert ledger.standing == []


async def test_a_child_of_another_group_behind_its_pivot_stands_and_says_so() -> None:
    class Buyer(LedgerSaga):
        @child("buy", "committed", pivot=False)
        async def buy(self, ctx: Any) -> Any:
            return None

        @action("ship", max_retries=0)
        async def ship(self, ctx: Any) -> Any:
            return await self.do(ctx)

    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("ship", Declined())
    async with (
        shop(ledger, log, Buyer, config=ORDERS) as orders,
        shop(ledger, log, CommittedSaga, config=PAYMENTS),
    ):
        result = await orders.run(Buyer)
    assert result.status == "failed" and "pivot 'pay'" in str(result.compensation_errors[0])


async def test_a_child_of_another_group_whose_code_has_changed_cannot_be_taken_back() -> None:
    class Changed(LedgerSaga):
        saga_name: ClassVar[str | None] = "payment"

        @action("authorize", max_retries=0)
        async def authorize(self, ctx: Any) -> Any:
            return await self.do(ctx)

    ledger, log = Ledger(), MemoryEventLog(1)
    gate = ledger.gate("ship", late=True)
    ledger.fails("ship", After(Declined()))
    async with shop(ledger, log, RemoteOrder, config=ORDERS) as orders:
        async with shop(ledger, log, PaymentSaga, config=PAYMENTS):
            handle = await orders.start(RemoteOrder, {"total": 90}, saga_id="r-1")
            await gate.entered()
        gate.open()
        async with shop(ledger, log, Changed, config=PAYMENTS):
            result = await handle.result()
    assert result.status == "failed"
    assert "capture" in ledger.standing
    assert result.compensation_errors[0].step == "payment"
    assert "another definition" in str(result.compensation_errors[0])


async def test_parents_and_children_change_hands_together_and_nothing_runs_twice() -> None:
    ledger, log = Ledger(), MemoryEventLog(4)
    gate = ledger.gate("capture", late=True)
    async with shop(ledger, log) as first:
        ids = [f"order-{n}" for n in range(12)]
        for saga_id in ids:
            await first.start(OrderSaga, {"total": 90}, saga_id=saga_id)
        await until(lambda: len(ledger.of("capture")) == 12)
        opening = asyncio.create_task(first_moves(ledger, gate))
        async with shop(ledger, log) as second:
            await opening
            served = set(second.host.partitions)
            assert served and set(first.host.partitions).isdisjoint(served)
            results = [await (await second.handle(saga_id)).result() for saga_id in ids]
        assert all(result.success for result in results)
    for step in ("reserve", "authorize", "capture", "ship"):
        assert ledger.order.count(step) == 12, step
    assert len(ledger.standing) == 4 * 12


async def first_moves(ledger: Ledger, gate: Gate) -> None:
    """Running steps may end once the partitions are asked for: they hold the hand-over back."""
    for _ in range(50):
        await asyncio.sleep(0)
    del ledger.gates["capture"]
    gate.open()


async def test_waiting_parents_change_hands_while_their_children_wait_too() -> None:
    class Slow(PaymentSaga):
        @action("capture", depends_on=["authorize"], wait_for="captured")
        async def capture(self, ctx: Any) -> Any:
            return {**await self.do(ctx), "receipt": ctx.signal}

    class Order(OrderSaga):
        @child("payment", Slow, depends_on=["reserve"], result_keys=["receipt"])
        async def payment(self, ctx: Any) -> Any:
            return {"amount": ctx["total"]}

    ledger, log = Ledger(), MemoryEventLog(4)
    ids = [f"order-{n}" for n in range(12)]
    async with shop(ledger, log, Order) as first:
        for saga_id in ids:
            await first.start(Order, {"total": 90}, saga_id=saga_id)
        await until(lambda: not first.host.runners)
        async with shop(ledger, log, Order) as second:
            for n, saga_id in enumerate(ids):
                [child_id] = await children_of(log, saga_id)
                await (first, second)[n % 2].signal(child_id, "captured", f"R-{n}")
            for n, saga_id in enumerate(ids):
                result = await (await second.handle(saga_id)).result()
                assert result.success and result.context["receipt"] == f"R-{n}"
    assert Counter(ledger.order) == dict.fromkeys(["reserve", "authorize", "capture", "ship"], 12)


async def test_families_that_wait_are_put_aside_also_after_a_take_over() -> None:
    class Slow(PaymentSaga):
        @action("capture", depends_on=["authorize"], wait_for="captured")
        async def capture(self, ctx: Any) -> Any:
            return {**await self.do(ctx), "receipt": ctx.signal}

    class Order(OrderSaga):
        @child("payment", Slow, depends_on=["reserve"], result_keys=["receipt"])
        async def payment(self, ctx: Any) -> Any:
            return {"amount": ctx["total"]}

    log = MemoryEventLog(2)
    async with shop(Ledger(), log, Order) as first:
        for n in range(10):
            await first.start(Order, {"total": n}, saga_id=f"order-{n}")
        await until(lambda: not first.host.runners)
    async with shop(Ledger(), log, Order) as second:
        await until(lambda: second.host.runners)
        await until(lambda: not second.host.runners)
        cells = [cell for home in second.host.partitions.values() for cell in home.cells.values()]
        assert len(cells) == 20 and all("state" not in dir_of(cell) for cell in cells)


def dir_of(cell: Any) -> list[str]:
    """The slots of a cell that hold something."""
    found = []
    for name in type(cell).__slots__:
        try:
            object.__getattribute__(cell, name)
        except AttributeError:
            continue
        found.append(name)
    return found
