"""An engine whose sagas wait in the middle: `python -m tests.services.clock_worker LOG ORDERS`.

It prints `ready` with the time of day that it sees (seconds since 1970), starts so many orders, and
serves until it is ended. Its steps write a line each into the file named by LEDGER: step, order,
idempotency key, attempt, process, and the time of `time.monotonic`, which all processes share.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from sagaz_es import Saga, action, connect
from sagaz_es.connect import open_log
from sagaz_es_projections.runner import stop_at_signals

DELAY_S = 4.0


def note(ctx: Any) -> None:
    """One line, in one write."""
    names = (ctx.step, ctx["order"], ctx.idempotency_key, ctx.attempt, os.getpid())
    line = "\t".join(map(str, (*names, time.monotonic()))) + "\n"
    handle = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())
    os.close(handle)


class Reminder(Saga):
    """order → remind, DELAY_S later and once more after the first attempt → thank."""

    saga_name = "reminder"

    @action("order")
    async def order(self, ctx: Any) -> None:
        note(ctx)

    @action("remind", depends_on=["order"], delay_seconds=DELAY_S, retry_delay_seconds=1.0)
    async def remind(self, ctx: Any) -> None:
        note(ctx)
        if ctx.attempt == 1:
            raise RuntimeError("nobody is there")

    @action("thank", depends_on=["remind"])
    async def thank(self, ctx: Any) -> None:
        note(ctx)


async def main() -> None:
    async with connect(open_log(sys.argv[1]), sagas=[Reminder]) as engine:
        print("ready", time.time(), flush=True)
        for number in range(int(sys.argv[2])):
            await engine.start(Reminder, {"order": f"o-{number}"}, saga_id=f"o-{number}")
        with stop_at_signals() as stop:
            await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
