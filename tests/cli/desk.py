"""Sagas that come to wait for a person; what they do is added to the file SHOP_LEDGER.

While the file DESK_STRIKE exists, a booking cannot be cancelled.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from sagaz_es import Saga, action, compensate, forward_recovery
from sagaz_es.sagas.definition import RecoveryAction


def _did(what: str) -> None:
    with open(os.environ["SHOP_LEDGER"], "a", encoding="utf-8") as file:
        file.write(f"{what}\n")


class Approval(Saga):
    """ask → act, which waits for the signal `approved` → close."""

    saga_name = "approval"

    @action("ask")
    async def ask(self, ctx: Any) -> None:
        _did("ask")

    @action("act", depends_on=["ask"], wait_for="approved", wait_seconds=3600)
    async def act(self, ctx: Any) -> dict[str, Any]:
        _did("act")
        return {"by": ctx.signal["by"]}

    @action("close", depends_on=["act"])
    async def close(self, ctx: Any) -> None:
        _did("close")


class Parcel(Saga):
    """charge, the pivot → ship, which only a courier does; a person decides."""

    saga_name = "parcel"

    @action("charge", pivot=True)
    async def charge(self, ctx: Any) -> None:
        _did("charge")

    @action("ship", depends_on=["charge"], max_retries=0)
    async def ship(self, ctx: Any) -> None:
        if ctx.get("carrier") != "courier":
            raise ConnectionError("the post is on strike")
        _did("ship")

    @forward_recovery("ship")
    async def recover(self, ctx: Any, error: Exception) -> RecoveryAction:
        return RecoveryAction.MANUAL_INTERVENTION


class Payment(Saga):
    """pay, at most once, with a bank that does not answer → thank."""

    saga_name = "payment"

    @action("pay", at_most_once=True, timeout_seconds=0.05)
    async def pay(self, ctx: Any) -> None:
        _did("pay")
        await asyncio.sleep(3600)

    @action("thank", depends_on=["pay"])
    async def thank(self, ctx: Any) -> None:
        _did("thank")


class Trip(Saga):
    """book → fly, which fails; undoing `book` fails during a strike."""

    saga_name = "trip"

    @action("book")
    async def book(self, ctx: Any) -> None:
        _did("book")

    @compensate("book", max_retries=0)
    def cancel(self, ctx: Any) -> None:
        if Path(os.environ["DESK_STRIKE"]).exists():
            raise ConnectionError("nobody picks up")
        _did("cancel")

    @action("fly", depends_on=["book"], max_retries=0)
    async def fly(self, ctx: Any) -> None:
        raise RuntimeError("fog")
