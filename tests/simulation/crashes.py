"""Every place of the code that calls a port, and a crash at each: before the call and after it.

The places are read off the source (`places_in`), so none is missing; which of them a schedule comes
to is counted while it runs. Where it does, the same schedule is run again with a crash there, and
with a second one at a place that comes after it: a crash during recovery.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

from sagaz_es.testing.simulation.points import places_in
from tests.simulation.judge import Judge
from tests.simulation.machine import Plan, Simulation
from tests.simulation.runs import Outcome, run_plan
from tests.simulation.seeds import plan_of

OTHERS = {
    "recording/importing.py": "imports files, runs no saga",
    "recording/recorder.py": "records what others run",
    "sagas/orchestrator.py": "sagaz's list of sagas, over the store",
    "sagas/dry_run.py": "runs nothing",
    "engine/health.py": "only looks",
    "reading/past.py": "answers about the past, and changes nothing; the judge asks it",
    "reading/replay_log.py": "lists replays",
    "engine/children.py": "no saga of the simulation has children",
}
"""Modules of the engine that a simulated process does not use, and why."""

Death = tuple[str, str, int]  # process, point, which time


def places() -> tuple[str, ...]:
    """Every place of engine, projector and replayer that calls a port of the world."""
    found = places_in("sagas", "reading", "engine", "recording")
    return tuple(p for p in found if p.partition(" ")[0] not in OTHERS)


@dataclass
class Sweep:
    """What crashes at places came to."""

    reached: dict[str, list[tuple[int, Death]]] = field(default_factory=dict)  # place and side
    crashes: int = 0
    pairs: int = 0
    broken: list[Outcome] = field(default_factory=list)

    @property
    def died_at(self) -> list[str]:
        return sorted(self.reached)


def explore(seeds: int) -> Sweep:
    """Which points the schedules of these seeds come to, each with a few ways there."""
    sweep = Sweep()
    for seed in range(1, seeds + 1):
        simulation = Simulation(plan_of(seed))
        simulation.run(Judge())
        for (process, point), times in simulation.points.reached.items():
            known = sweep.reached.setdefault(_side(point), [])
            if len(known) < 3 and process != "judge":
                known.append((seed, (process, point, (times + 1) // 2)))
    sweep.reached = {point: ways for point, ways in sweep.reached.items() if ways}
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
