"""A child for each item of a list: how many is known only when the step runs."""

from __future__ import annotations

from typing import Any

import pytest

from sagaz_es import Engine, EngineConfig, Saga, SagaStatus, action, child, compensate
from sagaz_es.errors import ConfigurationError
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.testing import crash_everywhere
from tests.helpers import (
    Declined,
    Ledger,
    SetClock,
    accepted_story,
    engine_on,
    story,
    until,
)


class PackSaga(Saga):
    """Packs one parcel."""

    saga_name = "pack"

    @action("pack", max_retries=0)
    async def pack(self, ctx: Any) -> Any:
        return {"token": await ctx.resources["ledger"].do(ctx, ctx["item"])}

    @compensate("pack")
    async def unpack(self, result: Any, ctx: Any) -> None:
        ledger = ctx.resources["ledger"]
        ledger.stands.pop(result["token"])


class OrderSaga(Saga):
    """split → each (a PackSaga an item) → count"""

    saga_name = "order"

    @child("each", PackSaga, for_each=True)
    async def each(self, ctx: Any) -> Any:
        return [{"item": item} for item in ctx["items"]]

    @action("count", max_retries=0, effects=False)
    async def count(self, ctx: Any) -> Any:
        packed = [one["token"] for one in ctx.result_of("each")]
        if ctx.get("fails"):
            raise Declined
        return {"packed": packed}


async def test_each_item_has_a_child_and_the_results_keep_its_order() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    slow = ledger.gate("a")
    async with engine_on(log, OrderSaga, ledger=ledger) as engine:
        handle = await engine.start(OrderSaga, {"items": ["a", "b", "c"]}, saga_id="o-1")
        await slow.entered()
        await until(lambda: sorted(ledger.order) == ["a", "b", "c"])  # side by side
        slow.open()
        result = await handle.result()
        ids = [f"o-1/each/{n}" for n in (1, 2, 3)]
        assert [(await engine.current(name)).context["item"] for name in ids] == [
            '"a"',
            '"b"',
            '"c"',
        ]
        assert (await engine.current("o-1/each")).saga_name == "pack*3"
    assert result.context["packed"] == ["a-1", "b-1", "c-1"]
    assert set(result.context) == {"items", "packed"}, "nothing of the children is merged"


async def test_of_no_items_the_result_is_empty() -> None:
    async with engine_on(None, OrderSaga, ledger=Ledger()) as engine:
        result = await engine.run(OrderSaga, {"items": []}, saga_id="o-1")
    assert (result.success, result.context["packed"]) == (True, [])


async def test_if_one_fails_the_others_are_taken_back() -> None:
    ledger = Ledger()
    ledger.fails("b", Declined("torn"))
    async with engine_on(None, OrderSaga, ledger=ledger) as engine:
        result = await engine.run(OrderSaga, {"items": ["a", "b", "c"]}, saga_id="o-1")
    assert (result.status, ledger.standing) == (SagaStatus.ROLLED_BACK, [])
    assert result.steps == {"each": "failed", "count": "pending"}
    assert "Declined: torn" in str(result.error)


async def test_a_parent_that_goes_back_takes_all_of_them_back() -> None:
    ledger = Ledger()
    async with engine_on(None, OrderSaga, ledger=ledger) as engine:
        context = {"items": ["a", "b"], "fails": True}
        result = await engine.run(OrderSaga, context, saga_id="o-1")
        assert (result.status, ledger.standing) == (SagaStatus.ROLLED_BACK, [])
        assert sorted(ledger.order) == ["a", "b"]
        for name in ("o-1/each", "o-1/each/1", "o-1/each/2"):
            assert (await engine.current(name)).status == "rolled_back"


async def test_a_cancel_reaches_those_that_run() -> None:
    ledger = Ledger()
    gate = ledger.gate("b")
    async with engine_on(None, OrderSaga, ledger=ledger) as engine:
        handle = await engine.start(OrderSaga, {"items": ["a", "b"]}, saga_id="o-1")
        await gate.entered()
        await until(lambda: "a" in ledger.standing)
        await engine.cancel("o-1")
        assert (await handle.result()).status is SagaStatus.CANCELLED
    assert ledger.standing == []


async def test_another_engine_carries_them_on_from_the_class_of_the_parent_alone() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    gate = ledger.gate("b")
    async with engine_on(log, OrderSaga, ledger=ledger) as engine:
        await engine.start(OrderSaga, {"items": ["a", "b"]}, saga_id="o-1")
        await gate.entered()
        await until(lambda: "a" in ledger.standing)
    ledger.gates.clear()
    async with engine_on(log, OrderSaga, ledger=ledger) as another:
        result = await (await another.handle("o-1")).result()
    assert result.context["packed"] == ["a-1", "b-1"]
    assert (ledger.order.count("a"), ledger.order.count("b")) == (1, 2)
    assert (await accepted_story(log, "o-1")).count("ChildStarted each") == 1


async def test_a_replay_starts_them_anew_for_another_list_and_undoes_the_first() -> None:
    ledger = Ledger()
    async with engine_on(None, OrderSaga, ledger=ledger) as engine:
        await engine.run(OrderSaga, {"items": ["a", "b"]}, saga_id="o-1")
        plan = await engine.plan_replay("o-1", "each", context_override={"items": ["b", "c", "d"]})
        replayed = await engine.replay(plan)
        assert replayed.success
        assert replayed.new_saga_id is not None
        again = await engine.plan_replay(replayed.new_saga_id, "count")
        assert {step.step: str(step.verdict) for step in again.steps}["each"] == "reuse"
    assert sorted(ledger.standing) == ["b", "c", "d"]


async def test_a_stuck_one_is_mended_at_its_own_id_and_up_to_the_parent() -> None:
    ledger = Ledger()

    class Fragile(PackSaga):
        @compensate("pack", max_retries=0)
        async def unpack(self, result: Any, ctx: Any) -> None:
            if ctx["item"] == "b" and ctx.attempt == 1:
                raise Declined("the tape holds")
            await super().unpack(result, ctx)

    class Order(OrderSaga):
        @child("each", Fragile, for_each=True)
        async def each(self, ctx: Any) -> Any:
            return [{"item": item} for item in ctx["items"]]

    async with engine_on(None, Order, ledger=ledger) as engine:
        context = {"items": ["a", "b"], "fails": True}
        result = await engine.run(Order, context, saga_id="o-1")
        assert (result.status, ledger.standing) == (SagaStatus.FAILED, ["b"])
        mended = await engine.retry_compensation("o-1", "each", reason="cut", actor="ann")
    assert (mended.status, ledger.standing) == (SagaStatus.ROLLED_BACK, [])


async def test_engines_of_another_group_run_them() -> None:
    class Order(OrderSaga):
        @child("each", "pack", for_each=True)
        async def each(self, ctx: Any) -> Any:
            return [{"item": item} for item in ctx["items"]]

    ledger, log = Ledger(), MemoryEventLog(1)

    def of_group(name: str, saga: type[Saga]) -> Engine:
        return engine_on(
            log, saga, ledger=ledger, clock=SetClock(), config=EngineConfig(group=name)
        )

    async with of_group("orders", Order) as engine, of_group("parcels", PackSaga):
        result = await (await engine.start(Order, {"items": ["a", "b"]}, saga_id="o-1")).result(10)
    assert result.context["packed"] == ["a-1", "b-1"]


def test_a_crash_anywhere_leaves_each_of_them_done_once() -> None:
    class World:
        def __init__(self) -> None:
            self.stands: list[str] = []

        async def do(self, ctx: Any, item: str) -> str:
            if item not in self.stands:  # its idempotency key, in short
                self.stands.append(item)
            return item

    report = crash_everywhere(
        OrderSaga,
        {"items": ["a", "b"]},
        world=World,
        resources=lambda world: {"ledger": world},
        view=lambda world: sorted(world.stands),
        failures=False,
        max_runs=250,
    )
    assert report.runs > 100


@pytest.mark.parametrize(
    ("items", "error", "sentence"),
    [
        ({"item": "a"}, "UnstorableValue", "for_each takes a list, an item a child"),
        (["a"], "UnstorableValue", "a context is a mapping"),
        ([{"item": "a"}] * 1001, "DefinitionError", "starts 1001 children, more than 1000"),
    ],
    ids=["no list", "no mapping", "too many"],
)
async def test_what_cannot_be_started_fails_the_step_once(
    items: Any, error: str, sentence: str
) -> None:
    log = MemoryEventLog(1)
    saga = Saga("order").add_step("each", lambda ctx: items, child=PackSaga, for_each=True)
    async with engine_on(log, saga, ledger=Ledger()) as engine:
        result = await engine.run(saga, saga_id="o-1")
    assert (result.status, type(result.error).__name__) == (SagaStatus.ROLLED_BACK, error)
    assert sentence in str(result.error)
    assert (await story(log, "o-1")).count("StepStarted each") == 1


def test_for_each_goes_with_child_and_without_result_keys() -> None:
    with pytest.raises(ConfigurationError, match="for_each goes with child, a saga"):
        Saga("s").add_step("each", print, for_each=True)
    with pytest.raises(ConfigurationError, match=r"read ctx.result_of\('each'\), a list"):
        child("each", PackSaga, for_each=True, result_keys=["token"])(lambda ctx: [])


def test_a_saga_may_start_several_of_itself() -> None:
    saga = Saga("tree")
    saga.add_step("branches", lambda ctx: ctx["of"], child=saga, for_each=True)
    engine_on(None, saga)
    assert saga.definition().graph.by_name["branches"].child == "tree*"
