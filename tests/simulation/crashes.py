"""Every place of the code that calls a port, and a crash at each: before the call and after it.

The places are read off the source (`places_in`), so none is missing; which of them a schedule comes
to is counted while it runs. Where it does, the same schedule is run again with a crash there, and
with a second one at a place that comes after it: a crash during recovery.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random

from sagaz_es.testing.simulation.points import places_in
from tests.simulation.judge import Judge
from tests.simulation.machine import Plan, Simulation
from tests.simulation.runs import Outcome, run_plan
from tests.simulation.seeds import plan_of

FOLDERS = ("sagas", "reading", "engine", "recording")

OTHERS = {
    "sagas/orchestrator.py": "sagaz's list of sagas, over the store",
    "reading/past.py": "answers about the past, and changes nothing; the judge asks it",
    "reading/replay_log.py": "lists replays",
}
"""Modules of the engine that a simulated process does not use, and why."""

NEVER = {
    "engine/takeover.py _parts.<locals>.<lambda>: store.checkpoint": (
        "only of thousands of unfinished sagas"
    ),
    "recording/importing.py _Standing.of: log.read_saga": "only of a log that has an index",
    "reading/projector.py Projector._repair.<locals>.<lambda>: store.heads": (
        "the fold is total: only a fact that it never heard of comes here; the projector has a test"
    ),
}
"""Places that no schedule can come to, and why."""

RARE = (
    201, 293, 539, 819, 827, 100618, 100079, 100943, 100621, 202233, 309470, 309794,
    2400356, 679, 9180, 722, 744, 513, 1822,
)  # fmt: skip
"""Seeds that come to places which few schedules come to: an importer that asks the archive, a tail
behind retention, a cancel that waits for a pivot or for another engine's step, an append that was
lost behind a foreign record, a start in line whose partition is given up, a store beside a log that
lost its tail, the first look of a follower, a cancel in vain. They are looked at where a place is
missing. A change of the code may make other schedules of them: then look for new ones with
`explore`."""

FURTHER = 5
"""Places that these do not come to either are looked for in so many times as many seeds."""

Death = tuple[str, str, int]  # process, point, which time


@cache
def places() -> tuple[str, ...]:
    """Every place of engine, projector and replayer that calls a port of the world."""
    found = places_in(*FOLDERS)
    return tuple(p for p in found if p.partition(" ")[0] not in OTHERS and p not in NEVER)


@dataclass
class Sweep:
    """What crashes at places came to. `reached`: ways to each point, by component (`engine`, …) and
    point."""

    reached: dict[tuple[str, str], list[tuple[int, Death]]] = field(default_factory=dict)
    crashes: int = 0
    pairs: int = 0
    broken: list[Outcome] = field(default_factory=list)

    @property
    def died_at(self) -> list[tuple[str, str]]:
        return sorted(self.reached, key=lambda one: (one[1], one[0]))

    @property
    def missing(self) -> list[str]:
        """Places that nothing died at."""
        died_at = {point.rpartition(", ")[0] for _, point in self.reached}
        return [place for place in places() if place not in died_at]


def explore(seeds: int) -> Sweep:
    """Which points the schedules of these seeds come to, each with a few ways there. Further seeds
    are looked at as long as a place is missing."""
    sweep = Sweep()
    for seed in (*range(1, seeds + 1), *RARE, *range(seeds + 1, seeds * FURTHER + 1)):
        if seed > seeds and not sweep.missing:
            break
        simulation = Simulation(plan_of(seed))
        simulation.run(Judge())
        for (process, point), times in simulation.points.reached.items():
            component = process.partition("-")[0].partition(".")[0]
            if component == "judge":
                continue
            known = sweep.reached.setdefault((component, _side(point)), [])
            if len(known) < 3:
                known.append((seed, (process, point, (times + 1) // 2)))
    return sweep


def _side(point: str) -> str:
    """The point; of an append with what was appended last, of a step without its name."""
    place, _, how = point.rpartition(", ")
    return point if "log.append" in place else f"{place}, {how.partition(' ')[0]}"


def sweep(seeds: int, pairs: int) -> Sweep:
    """A crash at every point that these schedules come to, and `pairs` of two crashes."""
    found = explore(seeds)
    random = Random("pairs")
    ways = [way for known in found.reached.values() for way in known]
    for seed, death in ways:
        found.crashes += 1
        _crash(found, plan_of(seed), (death,))
    for seed, death in random.sample(ways, min(pairs, len(ways))):
        found.pairs += 1
        _crash(found, plan_of(seed), tuple(_second(random, ways, death)))
    return found


def _second(random: Random, ways: list[tuple[int, Death]], first: Death) -> Iterator[Death]:
    """A crash, and one of the process that follows: at whatever it comes to of the same kind."""
    yield first
    name, _, life = first[0].rpartition(".")
    for _ in range(40):  # most of these it never comes to
        point = random.choice(ways)[1][1]
        yield (f"{name}.{int(life) + 1}", point, random.choice((1, 1, 2, 5)))


def _crash(found: Sweep, plan: Plan, deaths: tuple[Death, ...]) -> None:
    outcome = run_plan(replace(plan, deaths=deaths))
    if outcome.violations:
        found.broken.append(outcome)
