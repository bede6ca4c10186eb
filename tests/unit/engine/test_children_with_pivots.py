"""A step whose saga has a pivot: its author has to say whether there is a way back behind it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from sagaz_es import Saga, SagaStatus, action, child
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.registry import Registry
from sagaz_es.errors import DefinitionError
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import Declined, Ledger, engine_on

UNSAID = (
    r"saga '(order|Order)': step 'trip' starts sagas of 'trip', which have a pivot, 'fly': once "
    r"that has completed, the step cannot be undone\. Write pivot=True at the step, .*; or "
    r"pivot=False, "
)


class Trip(Saga):
    saga_name: ClassVar[str | None] = "trip"

    @action("fly", pivot=True)
    async def fly(self, ctx: Any) -> None: ...


def by_hand(child: Any, **options: Any) -> Saga:
    return Saga("order").add_step("trip", lambda ctx: {}, child=child, **options)


def made() -> Saga:
    return Saga("trip").add_step("fly", lambda ctx: None, pivot=True)


def test_a_class_is_refused_when_it_is_made() -> None:
    with pytest.raises(DefinitionError, match=UNSAID):

        class Order(Saga):
            @child("trip", Trip)
            async def trip(self, ctx: Any) -> None: ...


@pytest.mark.parametrize("of", [Trip, made(), "trip"], ids=["class", "object", "name"])
def test_a_saga_built_by_hand_is_refused_when_the_engine_is_made(of: Any) -> None:
    order = by_hand(of)
    with pytest.raises(DefinitionError, match=UNSAID):
        Registry([order, Trip] if of == "trip" else [order])


def test_a_factorys_saga_is_refused_before_it_starts() -> None:
    registry = Registry({"order": lambda name: by_hand("trip"), "trip": lambda name: made()})
    for _ in range(2):
        with pytest.raises(DefinitionError, match=UNSAID):
            registry.by_name("order")


def test_a_saga_between_a_step_and_many_children_need_not_say_it() -> None:
    registry = Registry([by_hand(Trip, for_each=True, pivot=True)])
    assert registry.by_name("trip*2").steps["1"].pivot is False


def test_what_is_said_stands_and_what_need_not_be_said_may_be_left_out() -> None:
    class Quiet(Saga):
        @action("look")
        async def look(self, ctx: Any) -> None: ...

    assert by_hand(Trip, pivot=True).definition().steps["trip"].pivot is True
    assert by_hand(Trip, pivot=False).definition().steps["trip"].pivot is False
    assert by_hand(Quiet).definition().steps["trip"].pivot is False
    assert (
        by_hand(Trip, pivot=False).definition().graph.fingerprint
        == by_hand("trip").definition().graph.fingerprint
    ), "sagas that run already go on with pivot=False"


@pytest.mark.parametrize("pivot", [True, False])
async def test_what_comes_before_such_a_step_is_kept_or_undone_as_it_says(pivot: bool) -> None:
    ledger = Ledger()
    ledger.fails("sign", Declined())

    async def do(ctx: Any) -> Any:
        return {ctx.step: await ledger.do(ctx)}

    async def undo(result: Any, ctx: Any) -> Any:
        return await ledger.undo(ctx, result)

    trip = Saga("trip").add_step("fly", do, undo, pivot=True)
    order = Saga("order").add_step("pay", do, undo)
    order.add_step("trip", lambda ctx: {}, child=trip, pivot=pivot)
    order.add_step("sign", do, undo, max_retries=0)
    async with engine_on(None, order) as engine:
        result = await engine.run(order)
    status = SagaStatus.PARTIALLY_COMMITTED if pivot else SagaStatus.FAILED
    assert (result.status, ledger.standing) == (status, ["pay", "fly"] if pivot else ["fly"])


async def test_unfinished_sagas_of_a_factory_that_is_refused_hold_up_no_others() -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    gate = ledger.gate("a")

    def waits(name: str) -> Saga:
        return Saga(name).add_step("a", ledger.do)

    quick = EngineConfig(drain_seconds=0.01)
    async with Engine(log, sagas={"order": waits, "other": waits}, config=quick) as engine:
        await engine.start("order", saga_id="order")
        await engine.start("other", saga_id="other")
        await gate.entered()
    gate.open()

    def wrong(name: str) -> Saga:
        raise DefinitionError("declared wrongly")

    async with Engine(log, sagas={"order": wrong, "other": waits}) as engine:
        handle = await engine.handle("other")
        assert (await handle.result(5)).success
        with pytest.raises(DefinitionError, match="declared wrongly"):
            await (await engine.handle("order")).result(5)
