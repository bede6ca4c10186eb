"""A process that runs orders, for the tests to kill: `python -m tests.services.takeover_worker`.

Arguments: log URL, number of orders. LEDGER is the independent record of what happened in the
world: one line an attempt, appended by the steps. CHARGE_SECONDS: how long `charge` takes;
START_PAUSE_SECONDS: the pause between two starts; LOAD_UNTIL: no further order once this file is
there, and MAX_IN_FLIGHT: the engine's.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from sagaz_es import Saga, action, compensate, connect
from sagaz_es.connect import open_log
from sagaz_es.engine.config import EngineConfig

LEDGER = os.environ.get("LEDGER", "")
PAUSE = float(os.environ.get("START_PAUSE_SECONDS", "0"))
SECONDS = float(os.environ.get("CHARGE_SECONDS", "0"))
LOAD_UNTIL = os.environ.get("LOAD_UNTIL", "")
MAX_IN_FLIGHT = int(os.environ.get("MAX_IN_FLIGHT", "1000"))


def note(what: str, ctx: Any) -> None:
    """One line, in one write: what the step did, to which order, with which key and attempt."""
    line = f"{what}\t{ctx['order']}\t{ctx.idempotency_key}\t{ctx.attempt}\t{os.getpid()}\n"
    handle = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())
    os.close(handle)


def enough() -> bool:
    """Whether somebody has said that no further order is needed."""
    return bool(LOAD_UNTIL) and Path(LOAD_UNTIL).exists()


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
    config = EngineConfig(max_in_flight=MAX_IN_FLIGHT)
    async with connect(open_log(sys.argv[1]), sagas=[Order], config=config) as engine:
        print("ready", time.monotonic(), flush=True)
        if count:
            handles = []
            for n in range(count):
                if enough():
                    break
                handles.append(await engine.start(Order, {"order": f"o-{n}"}, saga_id=f"o-{n}"))
                await asyncio.sleep(PAUSE)
            print("started", len(handles), flush=True)
            for handle in handles:
                await handle.result()
            print("done", flush=True)
        else:
            await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main())
