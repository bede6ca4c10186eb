"""100,000 finished sagas through one engine leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.sagas import CONTEXT
from benchmarks.table import markdown
from sagaz_es import Saga, action, connect

SAGAS = 100_000


class OneStep(Saga):
    saga_name = "one-step"

    @action("only")
    async def only(self, ctx: Any) -> None: ...


def resident_mib() -> float:
    """Resident memory of this process."""
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def grow(url: str) -> tuple[float, float, int]:
    async with connect(url, sagas=[OneStep]) as engine:
        gate = asyncio.Semaphore(256)

        async def one() -> None:
            async with gate:
                await engine.run(OneStep, CONTEXT)

        await asyncio.gather(*(one() for _ in range(1000)))
        gc.collect()
        before = resident_mib()
        for _ in range(SAGAS // 1000):
            await asyncio.gather(*(one() for _ in range(1000)))
        after = resident_mib()
        gc.collect()
        gc.disable()
        for _ in range(1000):
            await one()
        cycles = gc.collect()
        gc.enable()
    return before, after, cycles


def run() -> str:
    """In a process of its own: what other benchmarks have left must not count."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory"], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        before, after, cycles = asyncio.run(grow(f"sqlite:///{directory}/log.db"))
    print(
        markdown(
            f"{SAGAS:,} finished sagas through one engine on sqlite",
            ("MiB before", "MiB after", "objects in cycles after 1,000 more"),
            ((f"{before:.0f}", f"{after:.0f}", cycles),),
        )
    )


if __name__ == "__main__":
    main()
