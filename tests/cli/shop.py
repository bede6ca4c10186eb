"""Sagas for the tests of the command line; what they do is added to the file SHOP_LEDGER."""

from __future__ import annotations

import asyncio
import os
from decimal import Decimal
from typing import Any

from sagaz_es import Saga, action, compensate


def _did(what: str) -> None:
    print(f"the shop did {what}")  # as user code does: it must not get among the results
    ledger = os.environ.get("SHOP_LEDGER")
    if ledger:
        with open(ledger, "a", encoding="utf-8") as file:
            file.write(f"{what}\n")


class CardDeclined(Exception):
    pass


class OrderSaga(Saga):
    """reserve → charge → ship; charge needs the token "good"."""

    saga_name = "order"

    @action("reserve")
    async def reserve(self, ctx: Any) -> dict[str, Any]:
        _did("reserve")
        return {"reservation": {"shelf": 7, "boxes": ["a", "b"]}, "price": Decimal("9.90")}

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        _did("release")

    @action("charge", max_retries=0)
    async def charge(self, ctx: Any) -> dict[str, Any]:
        if ctx["token"] != "good":
            raise CardDeclined(f"token {ctx['token']!r} was declined")
        _did("charge")
        return {"payment": "p-1"}

    @compensate("charge")
    async def refund(self, ctx: Any) -> None:
        _did("refund")

    @action("ship", max_retries=0, pivot=True)
    async def ship(self, ctx: Any) -> None:
        if ctx.get("broken"):
            raise RuntimeError("no van")
        _did("ship")


class GiftSaga(Saga):
    """reserve → wrap → send; all of it can be undone, unless the paper is torn."""

    saga_name = "gift"

    @action("reserve")
    async def reserve(self, ctx: Any) -> None:
        _did("reserve")

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        _did("release")

    @action("wrap")
    async def wrap(self, ctx: Any) -> None:
        _did("wrap")

    @action("send", max_retries=0, effects=False)
    async def send(self, ctx: Any) -> None:
        if ctx.get("late"):
            raise RuntimeError("the post office has closed")

    @compensate("wrap", max_retries=0)
    async def unwrap(self, ctx: Any) -> None:
        if ctx.get("torn"):
            raise RuntimeError("the paper is torn")
        _did("unwrap")


class SleepySaga(Saga):
    """Waits for an hour."""

    saga_name = "sleepy"

    @action("sleep", timeout_seconds=7200)
    async def sleep(self, ctx: Any) -> None:
        await asyncio.sleep(3600)


order = OrderSaga()
both = [OrderSaga, SleepySaga]
made = {"made": lambda name: OrderSaga(name)}
nothing = 7
