"""Services that run an order by messages between them record it, and a failed one is replayed.

No engine owns a recorded saga: each service writes what it did, in its own words and order, and the
log makes one history of it. Where a class of the saga's name is at hand, an engine can replay it.
It prints:

    1 SagaStarted
    2 StepCompleted reserve
    3 StepFailed charge
    4 StepCompensated reserve
    5 SagaRolledBack
    before charge: {'sku': 'A1', 'card': 'expired', 'reservation': 'R-1'}
    redo reserve: its effect was undone
    redo charge: it failed (CardRefused)
    warehouse reserves A1
    bank charges the new card
    success
"""

import asyncio
from typing import Any

from sagaz_es import Saga, action, compensate, connect
from sagaz_es.connect import open_log
from sagaz_es.recording.recorder import SagaRecorder

LOG = "sqlite:///recorded.db"


class CardRefused(Exception):
    """The bank does not take this card."""


def recorder() -> SagaRecorder:
    """What each service opens for itself; several may write about one saga."""
    return SagaRecorder(LOG, "order", opener=open_log)


async def shop(order: str) -> None:
    async with recorder() as facts:
        await facts.started(order, {"sku": "A1", "card": "expired"})


async def warehouse(order: str) -> None:
    async with recorder() as facts:
        await facts.step_completed(order, "reserve", {"reservation": "R-1"}, reads=["sku"])


async def bank(order: str) -> None:
    async with recorder() as facts:
        await facts.step_failed(order, "charge", CardRefused("the card has expired"))


async def warehouse_again(order: str) -> None:
    async with recorder() as facts:
        await facts.compensated(order, "reserve")
        await facts.rolled_back(order)


class OrderSaga(Saga):
    """The same order as steps, for replays."""

    saga_name = "order"

    @action("reserve")
    async def reserve(self, ctx: Any) -> dict[str, str]:
        print("warehouse reserves", ctx["sku"])
        return {"reservation": "R-2"}

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        print("warehouse releases", ctx["reservation"])

    @action("charge")
    async def charge(self, ctx: Any) -> None:
        print(f"bank charges the {ctx['card']} card")


async def main() -> None:
    for service in (shop, warehouse, bank, warehouse_again):
        await service("order-1")

    async with connect(LOG, sagas=[OrderSaga]) as engine:
        history = await engine.history("order-1")
        for change in await history.changes():
            print(f"{change.sequence} {change.type} {change.step or ''}".rstrip())
        print("before charge:", (await history.state_at("step:charge")).context)

        plan = await engine.plan_replay("order-1", "charge", context_override={"card": "new"})
        for step in plan.steps:
            print(f"{step.verdict} {step.step}: {step.reason}")
        replay = await engine.replay(plan, actor="olga", reason="the customer has a new card")
        print(replay.status)


if __name__ == "__main__":
    asyncio.run(main())
