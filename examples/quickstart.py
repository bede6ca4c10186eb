"""A payment fails, what was done is undone, and a replay puts it right. The README's saga."""

import asyncio
from typing import Any

from sagaz_es import Saga, action, compensate, connect


class OrderSaga(Saga):
    saga_name = "order"

    @action("reserve")
    async def reserve(self, ctx: Any) -> dict[str, str]:
        print("reserve", ctx["sku"])
        return {"reservation": "R-1"}

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        print("release", ctx["reservation"])

    @action("charge", max_retries=0)
    async def charge(self, ctx: Any) -> None:
        if ctx["token"] == "expired":
            raise ValueError("the token has expired")
        print("charge")


async def main() -> None:
    async with connect(sagas=[OrderSaga]) as engine:  # the log: sagaz-es.db, in this directory
        order = {"sku": "A1", "token": "expired"}
        result = await engine.run(OrderSaga, order, saga_id="order-1")
        print(result.status, "because", result.error)

        plan = await engine.plan_replay("order-1", "charge", context_override={"token": "new"})
        for step in plan.steps:
            print(f"plan: {step.verdict} {step.step}: {step.reason}")
        replay = await engine.replay(plan, actor="olga", reason="the token was renewed")
        print(replay.status)


asyncio.run(main())
