"""Runs seeds and tells what came of them."""

from __future__ import annotations

import gc
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.simulation.judge import Judge
from tests.simulation.machine import Plan, Simulation
from tests.simulation.seeds import plan_of

COLLECT_EVERY = 50


@dataclass
class Outcome:
    """What came of one schedule."""

    seed: int
    violations: list[str]
    counts: Counter[str]
    digest: str
    lines: list[str] = field(default_factory=list)


def run_seed(seed: int) -> Outcome:
    return run_plan(plan_of(seed))


def run_plan(plan: Plan) -> Outcome:
    """One schedule, from its plan to the judge's word."""
    simulation, judge = Simulation(plan), Judge()
    try:
        simulation.run(judge)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        judge.violations.append(f"the bed broke: {error!r} at {where.filename}:{where.lineno}")
        simulation.lines.append("".join(traceback.format_exception(error)))
    counts = simulation.counts
    counts["faults"] = simulation.broker.faults + sum(
        counts[what] for what in counts if what not in ("calls", "refused", "rounds of healing")
    )
    counts["events"] = judge.events
    counts["steps run"] = len(simulation.world.executions)
    counts["sagas"] = len(judge.log.sagas) if hasattr(judge, "log") else 0
    if not judge.violations and not hasattr(judge, "log"):
        judge.violations.append(f"not judged: {simulation.stuck}")
    return Outcome(plan.seed, judge.violations, counts, simulation.digest, simulation.lines)


def run_seeds(seeds: Iterable[int]) -> tuple[Counter[str], list[Outcome]]:
    """Many schedules: their counts, and those that broke a law."""
    total: Counter[str] = Counter()
    broken: list[Outcome] = []
    for number, seed in enumerate(seeds, 1):
        outcome = run_seed(seed)
        total += outcome.counts
        total["schedules"] += 1
        if outcome.violations:
            broken.append(outcome)
        if number % COLLECT_EVERY == 0:
            gc.collect()
    return total, broken
