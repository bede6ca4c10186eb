"""A process that stops dead right after a decision stands in its log, before anybody hears of it:
`python -m tests.services.decisions_worker`.

Arguments: log URL, and the id of the request whose answer it does not survive (empty: none).
LEDGER is the independent record of what happened in the world: one line a call.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from sagaz_es import Saga, action, compensate, connect, forward_recovery
from sagaz_es.connect import open_log
from sagaz_es.core import events as e
from sagaz_es.ports import EventLog
from sagaz_es.sagas.definition import RecoveryAction

LEDGER = os.environ.get("LEDGER", "")


def note(what: str, ctx: Any) -> None:
    handle = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{what}\t{ctx.saga_id}\n".encode())
    os.close(handle)


class Parcel(Saga):
    """charge (pivot) → ship, which always fails; what then, is a person's to say."""

    saga_name = "parcel"

    @action("charge", pivot=True)
    async def charge(self, ctx: Any) -> None:
        note("charge", ctx)

    @action("ship", max_retries=0)
    async def ship(self, ctx: Any) -> None:
        note("ship", ctx)
        raise ConnectionError("the post is down")

    @forward_recovery("ship", max_retries=1)
    async def recover(self, ctx: Any, error: Exception) -> RecoveryAction:
        return RecoveryAction.MANUAL_INTERVENTION


class Transfer(Saga):
    """wire, of which nobody knows whether it happened, → book, which runs long."""

    saga_name = "transfer"

    @action("wire", at_most_once=True, timeout_seconds=0.05)
    async def wire(self, ctx: Any) -> None:
        note("wire", ctx)
        await asyncio.sleep(3600)

    @action("book")
    async def book(self, ctx: Any) -> None:
        note(f"book {ctx.get('reference')}", ctx)


class Trip(Saga):
    """book → fly, which fails; the compensation of book always fails, too."""

    saga_name = "trip"

    @action("book")
    async def book(self, ctx: Any) -> None:
        note("book", ctx)

    @compensate("book", max_retries=0)
    async def unbook(self, ctx: Any) -> None:
        note("unbook", ctx)
        raise ConnectionError("the hotel does not answer")

    @action("fly", max_retries=0)
    async def fly(self, ctx: Any) -> None:
        raise ValueError("no seats")


SAGAS = (Parcel, Transfer, Trip)


def dead_after(log: EventLog, request_id: str) -> EventLog:
    """The log; this process ends once the answer stands in it, and nothing comes back of it."""
    append = log.append

    async def and_die(partition: int, entries: Sequence[e.Entry]) -> int:
        base = await append(partition, entries)
        if any(
            isinstance(one, e.Event) and e.request_of(one.fact) == request_id for one in entries
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return base

    if request_id:
        log.append = and_die  # type: ignore[method-assign]
    return log


async def main() -> None:
    url, request_id = sys.argv[1:3]
    # A static member of the group: the next process has its partitions at once.
    async with connect(dead_after(open_log(url), request_id), sagas=SAGAS, instance_id="worker"):
        print("ready", flush=True)
        await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main())
