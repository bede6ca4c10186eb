"""What a step hands to whoever does its work, so that they do it once."""

from __future__ import annotations

from typing import Any

import pytest

from sagaz_es import Saga
from sagaz_es.errors import DefinitionError
from tests.helpers import Declined, Ledger, engine_on


def charging(ledger: Ledger, key: str | None = None) -> Saga:
    async def do(ctx: Any) -> Any:
        return {ctx.step: await ledger.do(ctx)}

    async def undo(result: Any, ctx: Any) -> None:
        await ledger.undo(ctx, result)

    saga = Saga("order").add_step("charge", do, undo, idempotency_key=key, max_retries=0)
    return saga.add_step("ship", do, depends_on=["charge"], max_retries=0)


async def test_a_key_of_the_authors_own_is_another_one_in_each_saga() -> None:
    ledger = Ledger()
    ledger.fails("ship", Declined())
    async with engine_on(None, saga := charging(ledger, "payment")) as engine:
        await engine.run(saga, saga_id="o-1")
        await engine.run(saga, saga_id="o-2")
    assert [call.key for call in ledger.of("charge")] == ["o-1/payment", "o-2/payment"]
    assert [call.key for call in ledger.of("undo charge")] == ["o-1/payment/compensation"]


async def test_so_it_is_in_a_replay() -> None:
    ledger = Ledger()
    ledger.fails("ship", Declined())
    async with engine_on(None, saga := charging(ledger, "payment")) as engine:
        await engine.run(saga, saga_id="o-1")
        plan = await engine.plan_replay("o-1", "charge")
        replay = await engine.replay(plan, actor="ann", reason="again")
    branch = replay.new_saga_id
    assert [call.key for call in ledger.of("charge")] == ["o-1/payment", f"{branch}/payment"]


async def test_what_a_saga_shows_of_its_steps_has_the_same_key() -> None:
    saga = charging(Ledger(), "payment")
    keys = {step.name: step.idempotency_key for step in saga.steps}
    assert keys == {"charge": f"{saga.saga_id}/payment", "ship": f"{saga.saga_id}/ship"}


@pytest.mark.parametrize("taken", ["ship", "payment"])
def test_no_two_steps_of_a_saga_have_one_key(taken: str) -> None:
    saga = charging(Ledger(), "payment")
    if taken == "payment":
        saga.add_step("pay", print, idempotency_key="payment")
    else:
        saga = Saga("order").add_step("ship", print).add_step("a", print, idempotency_key="ship")
    with pytest.raises(DefinitionError, match=f"have the same idempotency key '{taken}': give"):
        saga.definition()
