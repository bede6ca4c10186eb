"""What sagas leave behind in memory, and what those cost that wait: in processes of their own."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from benchmarks.goals import Goal, below
from benchmarks.sagas import CONTEXT
from benchmarks.table import markdown
from sagaz_es import Engine, Saga, action, connect
from sagaz_es.engine.config import EngineConfig

SAGAS = 100_000
STARTS = 50_000
WORDS = (
    "amount bank card charge city code customer delivery discount order payment price sku".split()
)


class OneStep(Saga):
    saga_name = "one-step"

    @action("only")
    async def only(self, ctx: Any) -> None: ...


class Waits(Saga):
    saga_name = "waits"

    @action("only", wait_for="go")
    async def only(self, ctx: Any) -> None: ...


class Stays(Saga):
    saga_name = "stays"

    @action("only", timeout_seconds=86_400)
    async def only(self, ctx: Any) -> None:
        await asyncio.Event().wait()


def resident_mib() -> float:
    """Resident memory of this process."""
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def context(number: int) -> dict[str, Any]:
    """2 KB that no two sagas have in common: words, ids and amounts."""
    chance = random.Random(number)
    lines = [
        {
            "sku": f"{chance.choice(WORDS)}-{chance.getrandbits(40):x}",
            "count": chance.randrange(1, 9),
            "price": chance.randrange(100_000),
            "note": " ".join(chance.choices(WORDS, k=3)),
        }
        for _ in range(22)
    ]
    return {"order": f"o-{number}", "lines": lines}


async def many(total: int, one: Callable[[int], Awaitable[object]]) -> None:
    """So many calls, 256 at a time."""
    numbers = iter(range(total))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(worker() for _ in range(256)))


async def finished(url: str, scale: float) -> dict[str, float]:
    """Sagas that have ended leave nothing behind."""
    async with connect(url, sagas=[OneStep]) as engine:

        async def one(number: int) -> None:
            await engine.run(OneStep, CONTEXT)

        await many(1000, one)
        gc.collect()
        before = resident_mib()
        await many(round(SAGAS * scale), one)
        after = resident_mib()
        gc.collect()
        gc.disable()
        await many(1000, one)
        cycles = gc.collect()
        gc.enable()
    return {"before": before, "after": after, "cycles": cycles}


async def waiting(url: str, scale: float) -> dict[str, float]:
    """Sagas that wait for a signal."""
    async with connect(url, sagas=[Waits]) as engine:

        async def one(number: int) -> None:
            await engine.start(Waits, context(number))

        await many(3000, one)
        await _at_rest(engine)
        before = resident_mib()
        total = round(SAGAS * scale)
        await many(total, one)
        await _at_rest(engine)
        after = resident_mib()
        assert (await engine.health()).sagas_unfinished == total + 3000
    return {"before": before, "after": after, "each": (after - before) * 2**20 / total}


async def starts(url: str, scale: float) -> dict[str, float]:
    """Starts that wait for room, as requests in the log."""
    config = EngineConfig(max_in_flight=100, drain_seconds=0.1)
    async with connect(url, sagas=[Stays], config=config) as engine:

        async def one(number: int) -> None:
            await engine.start(Stays, context(number))

        await many(3000, one)
        await _at_rest(engine, 100)
        before = resident_mib()
        total = round(STARTS * scale)
        await many(total, one)
        await _at_rest(engine, 100)
        after = resident_mib()
        assert (await engine.health()).starts_waiting == total + 2900
    return {"before": before, "after": after, "each": (after - before) * 2**20 / total}


async def _at_rest(engine: Engine, running: int = 0) -> None:
    """Until nothing runs beside those, and the projector has seen everything."""
    while True:
        health = await engine.health()
        if health.sagas_in_flight <= running and not health.projector_lag:
            gc.collect()
            return
        await asyncio.sleep(0.1)


KINDS = {"finished": finished, "waiting": waiting, "starts": starts}


def measured(kind: str, scale: float) -> dict[str, float]:
    """In a process of its own: what others have left must not count."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", kind, str(scale)],
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=dict[str, float])


def run(scale: float = 1.0) -> tuple[str, list[Goal]]:
    """The table, and what of the goals is met."""
    ended, wait, start = (measured(kind, scale) for kind in KINDS)
    sagas, queued = f"{round(SAGAS * scale):,}", f"{round(STARTS * scale):,}"
    rows = [
        (f"{sagas} sagas that have ended", f"{ended['before']:.0f}", f"{ended['after']:.0f}", ""),
        (
            f"{sagas} sagas that wait for a signal",
            f"{wait['before']:.0f}",
            f"{wait['after']:.0f}",
            f"{wait['each']:.0f}",
        ),
        (
            f"{queued} starts that wait for room",
            f"{start['before']:.0f}",
            f"{start['after']:.0f}",
            f"{start['each']:.0f}",
        ),
    ]
    table = markdown(
        "Memory of a process on sqlite; 2 KB context",
        ("what", "MiB before", "MiB after", "bytes each"),
        rows,
    )
    goals = [
        below(f"Memory after {sagas} finished sagas", ended["after"], 200, "MiB"),
        below("Objects in cycles after 1,000 sagas", ended["cycles"], 1),
        below("A saga that waits for a signal", wait["each"], 2048, "bytes"),
        below("A start that waits for room", start["each"], 1024, "bytes"),
    ]
    return table, goals


def main() -> None:
    kind, scale = sys.argv[1], float(sys.argv[2])
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(KINDS[kind](f"sqlite:///{directory}/log.db", scale))
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
