"""Child sagas: a step that is a saga of its own. Law: docs/decisions/0045.

The ledger is the world; parent and child both write it, so it shows whose effects stand.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from sagaz_es import Engine, Saga, SagaStatus, action, child, compensate
from sagaz_es.core import events as e
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import Declined, Ledger, LedgerSaga, accepted_story, engine_on, facts, until


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


async def test_a_child_step_runs_a_saga_and_merges_the_named_keys_of_its_context() -> None:
    ledger, log = Ledger(), MemoryEventLog(4)
    async with shop(ledger, log) as engine:
        result = await engine.run(OrderSaga, {"total": 90}, saga_id="order-1")
        assert result.status == "completed"
        assert ledger.order == ["reserve", "authorize", "capture", "ship"]
        assert result.context["receipt"] == "R-90"
        assert "amount" not in result.context
        [child_id] = await children_of(log, "order-1")
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
    @child("buy", CommittedSaga)
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
    from tests.helpers import SetClock

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
    from tests.helpers import After

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
