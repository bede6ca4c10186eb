"""Orders, and the world they act on: a file that only the bodies of steps write.

A line says that a step (or, `undo`, its compensation) begins, or that its effect has happened. It
is one write, so that a process that dies leaves whole lines. Times are those of `time.monotonic`,
which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from sagaz_es import ReplayConfig, Saga, action, compensate

# What becomes of an order if nothing else goes wrong.
WELL = "well"
DECLINED = "charge is declined"
LOST = "ship fails"
FLAKY = "charge fails once"
STUBBORN = "charge is declined, and release fails once"

FATES = (*(WELL,) * 7, DECLINED, LOST, FLAKY, STUBBORN)


class Line(Struct, frozen=True):
    """One line of the ledger. `what`: begin, done; ready and accepted are the processes' own."""

    at: float
    what: str
    writer: str  # hex; the incarnation of the engine
    saga_id: str = ""
    step: str = ""
    undo: bool = False
    attempt: int = 0
    key: str = ""
    name: str = ""  # of the process
    pid: int = 0


class Ledger:
    """The file, for a process that writes it."""

    def __init__(self, path: str, name: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.path, self.name, self.writer = path, name, ""

    def note(self, what: str, **more: Any) -> None:
        line = {"at": time.monotonic(), "what": what, "writer": self.writer, **more}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def step(self, what: str, ctx: Any, *, undo: bool) -> None:
        self.note(
            what,
            saga_id=ctx.saga_id,
            step=ctx.step,
            undo=undo,
            attempt=ctx.attempt,
            key=ctx.idempotency_key,
        )

    def close(self) -> None:
        os.close(self._file)


class LedgerReader:
    """The file, for who looks at it: each call gives the lines that are new."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def more(self) -> Iterator[Line]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return  # it is being written
                self._at += len(raw)
                yield Line(**json.loads(raw))


class Refused(Exception):
    """The world says no: nothing happened."""


class Order(Saga):
    """reserve → charge and pack, side by side → ship, from which there is no way back → thank.

    Its context: `fate`, and `takes`, the seconds that each step takes.
    """

    saga_name = "order"
    replay_config = ReplayConfig(enable_snapshots=True)  # a snapshot before each step

    @action("reserve")
    async def reserve(self, ctx: Any) -> dict[str, str]:
        return await act(ctx)

    @compensate("reserve", on_unknown=True)
    async def release(self, ctx: Any) -> None:
        await act(ctx, undo=True)

    @action("charge", depends_on=["reserve"], max_retries=1)
    async def charge(self, ctx: Any) -> dict[str, str]:
        return await act(ctx)

    @compensate("charge", on_unknown=True)
    async def refund(self, ctx: Any) -> None:
        await act(ctx, undo=True)

    @action("pack", depends_on=["reserve"])
    async def pack(self, ctx: Any) -> dict[str, str]:
        return await act(ctx)

    @compensate("pack", on_unknown=True)
    async def unpack(self, ctx: Any) -> None:
        await act(ctx, undo=True)

    @action("ship", depends_on=["charge", "pack"], pivot=True, max_retries=1)
    async def ship(self, ctx: Any) -> dict[str, str]:
        return await act(ctx)

    @action("thank", depends_on=["ship"])
    async def thank(self, ctx: Any) -> dict[str, str]:
        return await act(ctx)


STEPS = {
    "reserve": (),
    "charge": ("reserve",),
    "pack": ("reserve",),
    "ship": ("charge", "pack"),
    "thank": ("ship",),
}
"""Each step with those it depends on, as the shop means it: the checker does not ask the engine."""

UNDOABLE = ("reserve", "charge", "pack")

_NO = {
    (DECLINED, "charge", False): 99,
    (STUBBORN, "charge", False): 99,
    (STUBBORN, "reserve", True): 1,
    (LOST, "ship", False): 99,
    (FLAKY, "charge", False): 1,
}
"""Up to which attempt the world refuses."""


async def act(ctx: Any, *, undo: bool = False) -> dict[str, str]:
    """One effect in the world, with the time that it takes before it happens and after it."""
    ledger: Ledger = ctx.resources["ledger"]
    ledger.step("begin", ctx, undo=undo)
    await asyncio.sleep(ctx["takes"] / 2)
    if ctx.attempt <= _NO.get((ctx["fate"], ctx.step, undo), 0):
        raise Refused(ctx.step)
    ledger.step("done", ctx, undo=undo)
    await asyncio.sleep(ctx["takes"] / 2)
    return {ctx.step: ctx.idempotency_key}
