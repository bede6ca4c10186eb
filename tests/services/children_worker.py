"""A process that runs orders and their payments, and stops dead once a fact stands in the log:
`python -m tests.services.children_worker`.

Arguments: log URL, how many orders to start, and the fact after which it dies, as `saga-name Fact`
(empty: none). LEDGER is the independent record of what happened in the world: one line a call.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from sagaz_es import Saga, action, child, compensate, connect
from sagaz_es.connect import open_log
from sagaz_es.core import events as e
from sagaz_es.ports import EventLog

LEDGER = os.environ.get("LEDGER", "")


def note(what: str, ctx: Any) -> None:
    handle = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{what}\t{ctx.idempotency_key}\n".encode())
    os.close(handle)


class Payment(Saga):
    saga_name = "payment"

    @action("authorize")
    async def authorize(self, ctx: Any) -> None:
        note("authorize", ctx)

    @compensate("authorize")
    async def void(self, ctx: Any) -> None:
        note("void", ctx)

    @action("capture")
    async def capture(self, ctx: Any) -> Any:
        note("capture", ctx)
        return {"receipt": ctx["amount"]}

    @compensate("capture")
    async def refund(self, ctx: Any) -> None:
        note("refund", ctx)


class Order(Saga):
    """payment (a child) → ship, which fails for every order of an odd amount."""

    saga_name = "order"

    @child("payment", Payment, result_keys=["receipt"])
    async def payment(self, ctx: Any) -> Any:
        return {"amount": ctx["amount"]}

    @action("ship", max_retries=0)
    async def ship(self, ctx: Any) -> None:
        if ctx["receipt"] % 2:
            raise ValueError("no truck")
        note("ship", ctx)


def dead_after(log: EventLog, what: str) -> EventLog:
    """The log; this process ends once such a fact stands in it, and nothing comes back of it."""
    append = log.append

    async def and_die(partition: int, entries: Sequence[e.Entry]) -> int:
        base = await append(partition, entries)
        if any(named(entry) == what for entry in entries):
            os.kill(os.getpid(), signal.SIGKILL)
        return base

    if what:
        log.append = and_die  # type: ignore[method-assign]
    return log


def named(entry: e.Entry) -> str:
    if isinstance(entry, e.Event):
        return f"{entry.saga_name} {type(entry.fact).__name__}"
    return type(entry).__name__


async def main() -> None:
    url, orders, what = sys.argv[1:4]
    log = dead_after(open_log(url), what)
    # A static member of the group: the next process has its partitions at once.
    async with connect(log, sagas=[Order], instance_id="worker") as engine:
        print("ready", flush=True)
        for number in range(int(orders)):
            await engine.start(Order, {"amount": number}, saga_id=f"order-{number}")
        await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main())
