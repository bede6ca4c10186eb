"""A process that runs orders, for the tests to kill: `python -m tests.services.takeover_worker`.

Arguments: log URL, number of orders. LEDGER is the independent record of what happened in the
world: one line an attempt, appended by the steps. CHARGE_SECONDS: how long `charge` takes;
START_PAUSE_SECONDS: the pause between two starts.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from sagaz_es import Saga, action, compensate, connect
from sagaz_es.connect import open_log

LEDGER = os.environ.get("LEDGER", "")
PAUSE = float(os.environ.get("START_PAUSE_SECONDS", "0"))
SECONDS = float(os.environ.get("CHARGE_SECONDS", "0"))


def note(what: str, ctx: Any) -> None:
    """One line, in one write: what the step did, to which order, with which key and attempt."""
    line = f"{what}\t{ctx['order']}\t{ctx.idempotency_key}\t{ctx.attempt}\t{os.getpid()}\n"
    handle = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())
    os.close(handle)


class Order(Saga):
    saga_name = "order"

    @action("reserve")
    async def reserve(self, ctx: Any) -> dict[str, str]:
        note("reserve", ctx)
        return {"reservation": f"r-{ctx['order']}"}

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        note("release", ctx)

    @action("charge", depends_on=["reserve"])
    async def charge(self, ctx: Any) -> dict[str, str]:
        note("charge-begins", ctx)
        await asyncio.sleep(SECONDS)
        note("charge", ctx)
        return {"payment": f"p-{ctx['order']}"}

    @action("ship", depends_on=["charge"])
    async def ship(self, ctx: Any) -> None:
        assert ctx["reservation"] and ctx["payment"]
        note("ship", ctx)


async def main() -> None:
    count = int(sys.argv[2])
    async with connect(open_log(sys.argv[1]), sagas=[Order]) as engine:
        print("ready", time.monotonic(), flush=True)
        if count:
            handles = []
            for n in range(count):
                handles.append(await engine.start(Order, {"order": f"o-{n}"}, saga_id=f"o-{n}"))
                await asyncio.sleep(PAUSE)
            print("started", flush=True)
            for handle in handles:
                await handle.result()
            print("done", flush=True)
        else:
            await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main())
