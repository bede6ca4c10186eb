"""A saga's context_type: checked before a start, after an override and after each step."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, TypedDict, assert_type

import msgspec
import pytest

from sagaz_es import (
    Engine,
    RecoveryAction,
    Saga,
    SagaReplay,
    StepContext,
    action,
    compensate,
    connect,
    forward_recovery,
)
from sagaz_es.core import events as e
from sagaz_es.errors import ContextMismatch, DefinitionError, MigrationFailed, ReplayError
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.sagas.typed import context_type
from tests.helpers import facts


class Item(msgspec.Struct):
    sku: str
    count: Annotated[int, msgspec.Meta(ge=1)] = 1


class Order(msgspec.Struct):
    items: list[Item]
    amount: Decimal
    payment: str | None = None


class Typed(Saga):
    saga_name = "typed"
    context_type = Order

    @action("reserve")
    async def reserve(self, ctx: StepContext) -> dict[str, Any]:
        order = ctx.typed(Order)
        assert_type(order, Order)
        assert_type(order.items[0].sku, str)
        return {"reserved": [item.sku for item in order.items]}

    @compensate("reserve")
    async def release(self, ctx: StepContext) -> None: ...

    @action("charge", depends_on=["reserve"], retry_delay_seconds=0)
    async def charge(self, ctx: StepContext) -> Any:
        return ctx["charge_gives"] if "charge_gives" in ctx else {"payment": "p-1"}

    @compensate("charge")
    async def refund(self, ctx: StepContext) -> None: ...


GOOD = {"items": [{"sku": "A1", "count": 2}], "amount": Decimal("9.90")}


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with connect("memory://", sagas=[Typed]) as engine:
        yield engine


# --- at the start ---------------------------------------------------------------------------------


_numbers = itertools.count(1)


class Made(msgspec.Struct):
    number: int = msgspec.field(default_factory=lambda: next(_numbers))


async def test_a_default_factory_is_recorded_only_if_the_object_was_the_context() -> None:
    seen: list[int] = []

    class Looks(Saga):
        context_type = Made

        @action("one", depends_on=[])
        async def one(self, ctx: Any) -> None:
            seen.append(ctx.typed(Made).number)

        @action("two", depends_on=["one"])
        async def two(self, ctx: Any) -> None:
            seen.append(ctx.typed(Made).number)

    async with connect("memory://", sagas=[Looks]) as engine:
        bare = await engine.run(Looks, {})
        assert seen[0] != seen[1] and "number" not in bare.context
        given = Made()
        await engine.run(Looks, given)
        assert seen[2:] == [given.number] * 2


async def test_steps_read_the_context_as_the_type(engine: Engine) -> None:
    result = await engine.run(Typed, GOOD)
    assert result.success, result.error
    assert result.context["reserved"] == ["A1"]


async def test_a_saga_is_started_with_an_object_of_the_type(engine: Engine) -> None:
    order = Order([Item("A1"), Item("B2", 3)], Decimal("9.90"))
    result = await engine.run(Typed, order)
    assert result.context["items"] == [{"sku": "A1", "count": 1}, {"sku": "B2", "count": 3}]
    assert result.context["amount"] == Decimal("9.90")
    assert result.context["reserved"] == ["A1", "B2"]


@pytest.mark.parametrize(
    ("changes", "path", "found", "expected"),
    [
        ({"amount": "9.90 €"}, "amount", "str", "a decimal string"),
        ({"amount": None}, "amount", "null", "decimal"),
        ({"items": [{"sku": "A1", "count": 0}]}, "items[0].count", "int", "int >= 1"),
        ({"items": [{"sku": "A1"}, {"sku": 7}]}, "items[1].sku", "int", "str"),
        ({"items": [{}]}, "items[0].sku", "nothing", "a value"),
    ],
)
async def test_a_context_of_another_type_is_refused_with_path_found_and_expected(
    engine: Engine, changes: dict[str, Any], path: str, found: str, expected: str
) -> None:
    with pytest.raises(ContextMismatch) as caught:
        await engine.run(Typed, GOOD | changes, saga_id="t-1")
    error = caught.value
    assert (error.saga_name, error.where) == ("typed", "at its start")
    assert (error.path, error.found, error.expected) == (path, found, expected)
    assert str(error) == (f"saga 'typed', at its start: {path}: found {found}, expected {expected}")
    assert await facts(engine.log, "t-1") == []


async def test_a_key_that_is_missing_is_named(engine: Engine) -> None:
    with pytest.raises(ContextMismatch, match="amount: found nothing, expected a value"):
        await engine.run(Typed, {"items": []})


async def test_a_start_that_another_engine_asked_for_is_checked_where_the_code_is() -> None:
    log = MemoryEventLog(1)
    async with Engine(log, sagas=[Typed]) as worker:
        asker = Engine(log)
        await asker.open(join=False)
        with pytest.raises(ContextMismatch, match="amount"):
            await asker.start("typed", {"items": [], "amount": True}, saga_id="t-1")
        assert await facts(worker.log, "t-1") == []
        handle = await asker.start("typed", GOOD, saga_id="t-1")
        assert (await handle.result()).success


def test_what_is_no_type_for_contexts_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(DefinitionError, match="context_type"):

        class Wrong(Saga):
            context_type = int

            @action("a")
            async def a(self, ctx: StepContext) -> None: ...


# --- after a step ---------------------------------------------------------------------------------


async def test_what_a_step_leaves_behind_is_checked_and_not_tried_again(engine: Engine) -> None:
    result = await engine.run(Typed, GOOD | {"charge_gives": {"payment": 17}}, saga_id="t-1")
    assert result.status == "rolled_back"
    assert isinstance(result.error, ContextMismatch)
    assert (result.error.where, result.error.path) == ("after step 'charge'", "payment")
    assert (result.error.found, result.error.expected) == ("int", "str | null")
    failed = [fact for fact in await facts(engine.log, "t-1") if isinstance(fact, e.StepFailed)]
    assert [(fact.attempt, fact.unknown) for fact in failed] == [(1, True)]  # it has happened
    assert result.steps["reserve"] == "compensated"
    assert result.unknown_step_names == ["charge"]


async def test_a_key_that_a_step_deletes_or_changes_inside_is_noticed() -> None:
    def delete(ctx: StepContext) -> None:
        del ctx["amount"]

    def change(ctx: StepContext) -> None:
        ctx["items"].append("not an item")

    for function, path in ((delete, "amount"), (change, "items[1]")):
        saga = Saga("by hand", context_type=Order).add_step("a", function)
        async with connect("memory://") as engine:
            result = await engine.run(saga, GOOD)
        assert isinstance(result.error, ContextMismatch) and result.error.path == path


async def test_a_step_that_returns_an_object_sets_its_fields() -> None:
    class Paid(msgspec.Struct):
        payment: str

    saga = Saga("by hand", context_type=Order)
    saga.add_step("a", lambda ctx: Paid("p-9")).add_step("b", lambda ctx: ctx.typed(Order).payment)
    async with connect("memory://") as engine:
        result = await engine.run(saga, GOOD)
    assert result.success and result.context["payment"] == "p-9"


async def test_a_typed_look_counts_as_a_read_of_its_fields_alone() -> None:
    class Amount(msgspec.Struct):
        amount: Decimal

    saga = Saga("by hand").add_step("a", lambda ctx: str(ctx.typed(Amount).amount))
    async with connect("memory://") as engine:
        await engine.run(saga, GOOD, saga_id="s")
        completed = [f for f in await facts(engine.log, "s") if isinstance(f, e.StepCompleted)]
    assert completed[0].reads == '["amount"]'
    assert completed[0].result == '"9.90"'


async def test_a_look_that_does_not_fit_is_the_steps_error() -> None:
    class Other(msgspec.Struct):
        amount: int

    saga = Saga("by hand").add_step("a", lambda ctx: ctx.typed(Other), max_retries=0)
    async with connect("memory://") as engine:
        result = await engine.run(saga, GOOD)
    assert isinstance(result.error, ContextMismatch)
    assert (result.error.where, result.error.path) == ("in step 'a'", "amount")


# --- after an override ----------------------------------------------------------------------------


async def test_an_override_of_another_type_is_refused_by_plan_replay_and_dry_run(
    engine: Engine,
) -> None:
    await engine.run(Typed, GOOD, saga_id="t-1")
    wrong = {"amount": [1]}
    with pytest.raises(ContextMismatch) as caught:
        await engine.plan_replay("t-1", "charge", context_override=wrong)
    assert (caught.value.where, caught.value.path) == ("after the override", "amount")
    replay = SagaReplay("t-1", engine)
    dry = await replay.from_checkpoint("charge", wrong, dry_run=True)
    assert dry.status == "failed" and "amount" in str(dry.error_message)
    with pytest.raises(ReplayError, match="amount"):
        await replay.from_checkpoint("charge", wrong)
    assert (await replay.from_checkpoint("charge", {"amount": Decimal(1)})).success
    assert [entry["status"] for entry in await replay.get_replay_history()] == [
        "success",
        "refused",
        "failed",
    ]


async def test_a_replay_of_a_context_that_does_not_fit_any_more_is_refused(engine: Engine) -> None:
    class Wanted(TypedDict):
        items: list[Any]
        customer: str

    await engine.run(Typed, GOOD, saga_id="t-1")
    mended = SagaReplay("t-1", engine, saga_factory=lambda name: Typed(context_type=Wanted))
    dry = await mended.from_checkpoint("charge", dry_run=True)
    assert dry.status == "failed" and "customer: found nothing" in str(dry.error_message)
    with pytest.raises(ReplayError, match="customer"):
        await mended.from_checkpoint("charge")


class Shipment(TypedDict):
    carrier: str


class Shipping(Saga):
    saga_name = "shipping"
    context_type = Shipment

    @action("pay", pivot=True)
    async def pay(self, ctx: StepContext) -> None: ...

    @action("ship", depends_on=["pay"], max_retries=0)
    async def ship(self, ctx: StepContext) -> None:
        if ctx["carrier"] != "courier":
            raise ConnectionError("strike")

    @forward_recovery("ship")
    async def recover(self, ctx: StepContext, error: Exception) -> RecoveryAction:
        if ctx["carrier"] == "drone":
            ctx["carrier"] = 7
            return RecoveryAction.RETRY_WITH_ALTERNATE
        return RecoveryAction.MANUAL_INTERVENTION


async def test_a_decision_with_an_override_of_another_type_is_refused() -> None:
    async with connect("memory://", sagas=[Shipping]) as engine:
        result = await engine.run(Shipping, {"carrier": "post"}, saga_id="s-1")
        assert result.status == "forward_recovery"
        how: dict[str, Any] = {"actor": "eva"}
        with pytest.raises(ContextMismatch, match="carrier: found int, expected str"):
            await engine.decide_recovery(
                "s-1", "ship", "retry_with_alternate", context_override={"carrier": 7}, **how
            )
        assert await engine.status("s-1") == "forward_recovery"
        await engine.decide_recovery(
            "s-1", "ship", "retry_with_alternate", context_override={"carrier": "courier"}, **how
        )
        assert (await (await engine.handle("s-1")).result()).success


async def test_a_handler_that_leaves_another_type_leaves_it_to_a_person() -> None:
    async with connect("memory://", sagas=[Shipping]) as engine:
        result = await engine.run(Shipping, {"carrier": "drone"}, saga_id="s-1")
        assert (result.status, result.context) == ("forward_recovery", {"carrier": "drone"})
        decided = [f for f in await facts(engine.log, "s-1") if isinstance(f, e.RecoveryDecided)]
    assert "ContextMismatch" in decided[0].reason and "carrier" in decided[0].reason


async def test_a_migration_that_leaves_another_type_is_refused() -> None:
    class Grown(Typed):
        saga_name = "typed"
        compatible_with = (Typed.fingerprint(),)

        @action("more", depends_on=["charge"])
        async def more(self, ctx: StepContext) -> None: ...

        def migrate(self, saga: Any) -> dict[str, Any]:
            return {"amount": False}

    log = MemoryEventLog(1)
    async with Engine(log, sagas=[Typed]) as engine:
        await engine.run(Typed, GOOD, saga_id="t-1")
    async with Engine(log, sagas=[Grown]) as engine:
        with pytest.raises(MigrationFailed, match="amount"):
            await engine.plan_replay("t-1", "charge")


# --- children -------------------------------------------------------------------------------------


class Paid(msgspec.Struct):
    amount: int = 0
    receipt: str | None = None


async def test_what_a_child_starts_with_and_what_it_gives_are_checked() -> None:
    def pay(ctx: StepContext) -> dict[str, Any]:
        return {"receipt": ctx["amount"] if ctx["amount"] > 1 else "r-1"}

    payment = Saga("payment", context_type=Paid).add_step("pay", pay)
    loose = Saga("loose").add_step("pay", pay)
    parent = Saga("parent", context_type=Paid)
    start = lambda ctx: {"amount": ctx["start"]}  # noqa: E731
    parent.add_step("child", start, child=payment, result_keys=["receipt"], max_retries=0)
    other = Saga("other", context_type=Paid)
    other.add_step("child", start, child=loose, result_keys=["receipt"], max_retries=0)
    async with connect("memory://", sagas=[payment, loose, parent, other]) as engine:
        assert (await engine.run(parent, {"start": 1})).context["receipt"] == "r-1"
        wrong = await engine.run(parent, {"start": "one"})
        assert "amount: found str, expected int" in str(wrong.error)
        given = await engine.run(other, {"start": 7})
        assert "after step 'child': receipt: found int, expected str" in str(given.error)
        assert given.steps["child"] == "compensated"  # the child is taken back


# --- other types ----------------------------------------------------------------------------------


@dataclass
class Point:
    x: int
    y: int = 0


async def test_a_dataclass_is_a_type_too() -> None:
    saga = Saga("by hand", context_type=Point)
    saga.add_step("a", lambda ctx: {"sum": ctx.typed(Point).x + ctx.typed(Point).y})
    async with connect("memory://") as engine:
        assert (await engine.run(saga, Point(3, 4))).context["sum"] == 7
        with pytest.raises(ContextMismatch, match="x: found str, expected int"):
            await engine.run(saga, {"x": "3"})


async def test_a_pydantic_model_is_a_type_too() -> None:
    pydantic = pytest.importorskip("pydantic")
    model: Any = pydantic.create_model(
        "Model", sku=(str, ...), counts=(list[int], ...), amount=(Decimal, Decimal(1))
    )
    saga = Saga("by hand", context_type=model).add_step(
        "a", lambda ctx: {"seen": [ctx.typed(model).sku, ctx.typed(model).amount]}
    )
    async with connect("memory://") as engine:
        result = await engine.run(saga, model(sku="A1", counts=[1], amount=Decimal("9.90")))
        assert result.success, result.error
        assert result.context["seen"] == ["A1", Decimal("9.90")]
        with pytest.raises(ContextMismatch) as caught:
            await engine.run(saga, {"sku": "A1", "counts": [1, "two"]})
        assert (caught.value.path, caught.value.found) == ("counts[1]", "str")
        assert "integer" in caught.value.expected
        with pytest.raises(ContextMismatch, match="sku: found nothing, expected a value"):
            await engine.run(saga, {"counts": []})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"extra": 1}, "extra: found int, expected no such key"),
        ({"sku": ""}, "sku: found str, expected another value: String should have at least 1"),
        ({"count": 0}, "count: found int, expected greater than 0"),
        ({"even": 3}, "even: found int, expected another value: 3 is odd"),
    ],
)
def test_what_a_pydantic_model_refuses_reads_as_a_sentence(given: Any, said: str) -> None:
    pydantic = pytest.importorskip("pydantic")

    def is_even(value: int) -> int:
        if value % 2:
            raise ValueError(f"{value} is odd")
        return value

    model: Any = pydantic.create_model(
        "Model",
        __config__={"extra": "forbid"},
        sku=(str, pydantic.Field("A1", min_length=1)),
        count=(int, pydantic.Field(1, gt=0)),
        even=(Annotated[int, pydantic.AfterValidator(is_even)], 2),
    )
    with pytest.raises(ContextMismatch) as caught:
        context_type(model).read(given, "orders", "at its start")
    assert f"saga 'orders', at its start: {said}" in str(caught.value)


def test_declaring_a_type_imports_no_pydantic() -> None:
    code = (
        "import sys, msgspec, sagaz_es\n"
        "class Order(msgspec.Struct):\n    sku: str\n"
        "class OrderSaga(sagaz_es.Saga):\n    context_type = Order\n"
        "OrderSaga().definition()\n"
        "print('pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
