"""A process of the shop: `python -m tests.chaos.worker engine|projector SETTINGS`, a JSON object.

It ends when its standard input does, so that none outlives the run. SIGTERM ends it in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import random
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sagaz_es import Engine, connect
from sagaz_es.connect import open_log, open_store
from sagaz_es.engine.config import EngineConfig
from sagaz_es.errors import SagaError
from sagaz_es.reading.projector import Projector
from sagaz_es_projections.runner import run, stop_at_signals
from tests.chaos.shop import FATES, Ledger, Order


def end_with_parent() -> None:
    """In a thread: nobody writes to our standard input, it only ends."""
    sys.stdin.buffer.read()
    os._exit(3)


def skew_clock(path: str) -> None:
    """Have the system's clock, as Python tells it, go wrong by the nanoseconds in a file."""
    with open(path, "rb") as file:
        offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    time_ns, seconds = time.time_ns, time.time
    read = struct.Struct("<q").unpack_from
    vars(time)["time_ns"] = lambda: time_ns() + read(offset)[0]
    vars(time)["time"] = lambda: seconds() + read(offset)[0] / 1e9


async def engine(settings: dict[str, Any]) -> None:
    ledger = Ledger(settings["ledger"], settings["name"])
    serving = connect(
        settings["log"],
        store=settings["store"],
        sagas=[Order],
        instance_id=settings["instance_id"] or None,
        config=EngineConfig(drain_seconds=3.0, takeover_seconds=5.0, request_seconds=20.0),
        resources={"ledger": ledger},
    )
    ledger.writer = serving.host.writer.hex()
    ledger.note("born", name=ledger.name, pid=os.getpid())
    with stop_at_signals() as stop:
        while not stop.is_set():
            try:
                await serving.open()
            except SagaError as error:  # a server that is down now; who supervises starts us again
                print(error, flush=True)
                sys.exit(4)
            break
        ledger.note("ready", name=ledger.name, pid=os.getpid())
        load = asyncio.create_task(sell(serving, ledger, settings["rate"]))
        await stop.wait()
        load.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await load
        await serving.close()


async def sell(engine: Engine, ledger: Ledger, rate: float) -> None:
    """Start `rate` orders a second here, until the shop is closed; what is acknowledged is written
    down."""
    chosen = random.Random()
    waiting: set[asyncio.Task[None]] = set()
    while not Path(ledger.path).with_name("closed").exists():
        await asyncio.sleep(chosen.expovariate(rate))
        if len(waiting) < 200:  # while the log is away nobody queues for ever
            task = asyncio.create_task(_sell_one(engine, ledger, chosen))
            waiting.add(task)
            task.add_done_callback(waiting.discard)


async def _sell_one(engine: Engine, ledger: Ledger, chosen: random.Random) -> None:
    order = {"fate": chosen.choice(FATES), "takes": takes(chosen)}
    try:
        handle = await engine.start(Order, order)
    except SagaError as error:
        print("not started:", type(error).__name__, error, flush=True)
    else:
        ledger.note("accepted", saga_id=handle.saga_id)


def takes(chosen: random.Random) -> float:
    """Seconds that a step takes: mostly none, sometimes enough to be caught in the middle."""
    return chosen.choice((0.0, 0.01, 0.05, 0.2, 0.8))


async def projector(settings: dict[str, Any]) -> None:
    log = open_log(settings["log"])
    store = open_store(settings["store"], log)
    assert store is not None
    with stop_at_signals() as stop:
        try:
            await run(log, store, stop=stop, projector=Projector(log, store, batch=200))
        except SagaError as error:
            print(type(error).__name__, error, flush=True)
            sys.exit(4)
    await store.close()
    await log.close()


def main() -> None:
    role, settings = sys.argv[1], json.loads(sys.argv[2])
    threading.Thread(target=end_with_parent, daemon=True).start()
    if settings["skew"]:
        skew_clock(settings["skew"])
    asyncio.run({"engine": engine, "projector": projector}[role](settings))


if __name__ == "__main__":
    main()
