"""Runs seeds and tells what came of them."""

from __future__ import annotations

import gc
import multiprocessing
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.simulation.judge import Judge
from tests.simulation.machine import Plan, Simulation
from tests.simulation.seeds import plan_of

CHUNK = 50
MAX_BROKEN = 20
BED_BROKE = "the bed broke"

FAULTS = ("kills", "pauses", "cuts", "clock jumps", "log restarts", "leader changes", "splits",
          "impostors", "lost tails", "store outages", "blob outages",
          "hand-overs", "poison records")  # fmt: skip


@dataclass
class Outcome:
    """What came of one schedule."""

    seed: int
    violations: list[str]
    counts: Counter[str]
    digest: str
    lines: list[str] = field(default_factory=list)

    @property
    def broke(self) -> str:
        """How the simulation itself broke down, which says nothing of laws; empty: it did not."""
        return next((one for one in self.violations if one.startswith(BED_BROKE)), "")

    @property
    def again(self) -> str:
        """The command that brings it back."""
        return f"make sim SEED={self.seed}"


@dataclass
class Total:
    """What came of many."""

    counts: Counter[str] = field(default_factory=Counter)
    schedules: int = 0
    violations: int = 0

    def __str__(self) -> str:
        counts = self.counts
        faults = ", ".join(f"{counts[what]:,} {what}" for what in FAULTS if counts[what])
        return (
            f"{self.schedules} schedules, {counts['sagas']:,} sagas, {counts['events']:,} events, "
            f"{counts['steps run']:,} steps run; {counts['faults']:,} faults ({faults}, the rest "
            f"calls that failed or were not answered); {self.violations} violations"
        )


def run_seed(seed: int) -> Outcome:
    return run_plan(plan_of(seed))


def run_plan(plan: Plan) -> Outcome:
    """One schedule, from its plan to the judge's word."""
    simulation, judge = Simulation(plan), Judge()
    try:
        simulation.run(judge)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        judge.violations.append(f"{BED_BROKE}: {error!r} at {where.filename}:{where.lineno}")
        simulation.lines.append("".join(traceback.format_exception(error)))
    if not judge.done and not judge.violations:
        judge.violations.append(f"stuck: {simulation.stuck}")
    counts = simulation.counts
    counts["faults"] = simulation.broker.faults + sum(counts[what] for what in FAULTS)
    counts["events"] = judge.events
    counts["steps run"] = len(simulation.world.executions)
    counts["sagas"] = judge.sagas
    return Outcome(plan.seed, judge.violations, counts, simulation.digest, simulation.lines)


def run_many(first: int, count: int, jobs: int = 1) -> tuple[Total, list[Outcome]]:
    """Many schedules, in `jobs` processes: the total, and those that broke a law (the first)."""
    total, broken = Total(), list[Outcome]()
    for counts, schedules, found in _chunks(first, count, jobs):
        total.counts += counts
        total.schedules += schedules
        total.violations += len(found)
        broken += found
    return total, broken[:MAX_BROKEN]


Chunk = tuple[Counter[str], int, list[Outcome]]


def _chunks(first: int, count: int, jobs: int) -> Iterator[Chunk]:
    end = first + count
    spans = [(at, min(at + CHUNK, end)) for at in range(first, end, CHUNK)]
    if jobs == 1:
        yield from map(_run_chunk, spans)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_run_chunk, spans)


def _run_chunk(span: tuple[int, int]) -> Chunk:
    counts: Counter[str] = Counter()
    broken = []
    for seed in range(*span):
        outcome = run_seed(seed)
        counts += outcome.counts
        if outcome.violations:
            outcome.lines = []
            broken.append(outcome)
    gc.collect()
    return counts, span[1] - span[0], broken
