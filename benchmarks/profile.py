"""Where the engine's own time goes: no single function, if the profile is flat."""

from __future__ import annotations

import asyncio
import cProfile
import pstats
from pathlib import Path

from benchmarks.sagas import CONTEXT, FiveSteps, load
from benchmarks.table import markdown
from sagaz_es import connect
from sagaz_es.engine.config import EngineConfig

SAGAS = 2000
SHOWN = 15


async def profiled(scale: float) -> cProfile.Profile:
    async with connect(
        "memory://", sagas=[FiveSteps], config=EngineConfig(projector=False)
    ) as engine:

        async def one() -> None:
            await engine.run(FiveSteps, CONTEXT)

        await load(one, 64, 500)
        profile = cProfile.Profile()
        profile.enable()
        await load(one, 16, max(100, round(SAGAS * scale)))
        profile.disable()
        return profile


def run(scale: float = 1.0) -> str:
    """The functions with most time of their own, in % of the whole."""
    stats = pstats.Stats(asyncio.run(profiled(scale)))
    found = sorted(stats.stats.items(), key=lambda item: -item[1][2])  # type: ignore[attr-defined]
    whole = sum(own for _, (_, _, own, _, _) in found)
    sagas = max(100, round(SAGAS * scale))
    rows = []
    for (file, _, name), (_, calls, own, _, _) in found[:SHOWN]:
        where = "" if file == "~" else f"{'/'.join(Path(file).parts[-2:])}: "
        rows.append((f"{where}{name}", f"{calls / sagas:.0f}", f"{own / whole * 100:.1f} %"))
    return markdown(
        "Where the time of a five-step saga goes, engine alone on memory (own time, by cProfile)",
        ("function", "calls a saga", "share"),
        rows,
    )
