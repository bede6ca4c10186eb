"""The simulation's commands; see `main`."""

from __future__ import annotations

import argparse
import os
import sys
from itertools import islice
from typing import TYPE_CHECKING

from tests.simulation.mutants import hunt, plant  # it imports nothing of ours

if TYPE_CHECKING:
    from tests.simulation.runs import Outcome


def main() -> int:
    """Exit: 0 nothing found (for mutants: all found), 2 asked wrongly, 1 otherwise."""
    parser = argparse.ArgumentParser("python -m tests.simulation")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="many schedules, on every core")
    run.add_argument("--seeds", type=_count, default=2000)
    run.add_argument("--first", type=int, default=1)
    run.add_argument("--jobs", type=_count, default=os.cpu_count() or 1)
    seed = commands.add_parser("seed", help="one schedule, with its trace")
    seed.add_argument("seed", type=int)
    seeds = commands.add_parser("seeds", help="these schedules: digest and violations")
    seeds.add_argument("seeds", type=int, nargs="+")
    mutants = commands.add_parser("mutants", help="plant every bug, and find it")
    mutants.add_argument("--seeds", type=_count, default=3000)
    mutants.add_argument("--jobs", type=_count, default=os.cpu_count() or 1)
    mutants.add_argument("--only", default="")
    mutant = commands.add_parser("mutant", help="plant one bug, and find it")
    mutant.add_argument("name")
    mutant.add_argument("--seeds", type=_count, default=3000)
    points = commands.add_parser("points", help="every place where a process may die; crash there")
    points.add_argument("--seeds", type=_count, default=300)
    points.add_argument("--pairs", type=int, default=300)
    points.add_argument("--list", action="store_true", help="only name them")
    options = parser.parse_args()
    command = {
        "run": many,
        "seed": one,
        "seeds": some,
        "mutants": bugs,
        "mutant": bug,
        "points": crashes,
    }
    return int(command[options.command](options))


def _count(text: str) -> int:
    """So many schedules; none would break no law."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is none: give 1 or more")
    return number


def many(options: argparse.Namespace) -> bool:
    from tests.simulation.runs import run_many

    total, broken = run_many(options.first, options.seeds, options.jobs)
    for outcome in broken:
        tell(outcome)
    print(total, flush=True)
    return bool(broken)


LEGEND = """
Each line begins with the virtual second. What stands in the log, as it lands:
  p0@7 order-0 8add35 1/9 StepStarted ship: partition 0, offset 7; saga, its writer, epoch/sequence,
  fact and step. `ask 1 cancel order-0`: a client asks engine 1; `kill 0`, `pause 1 3.5` and
  the like are done to process, log or store. engine-0.2 is the second life of engine 0.
What follows the engine in an ask:
  run NAME SAGA X: start this class, under this id (None: a random one), with {"first": X}
  signal SAGA NAME REQUEST; pause, resume SAGA REQUEST; cancel SAGA; cancel_head SAGA: its newest
  branch. REQUEST is the request's id: the same one twice counts once.
  replay SAGA STEP OVERRIDE ALLOW MARK: replay some member of the saga's family from this step, with
  {"first": OVERRIDE} changed (None: nothing), and with every blocked step allowed, or not. MARK is
  its reason, to find it by; one that ends in 7 also forces a failure.
  undo SAGA MARK: undo the replay that made some member of its family
  retry_compensation, skip_compensation, resolve, recover SAGA STEP REQUEST: what people decide
"""


def one(options: argparse.Namespace) -> bool:
    from tests.simulation.runs import run_seed
    from tests.simulation.seeds import plan_of

    outcome = run_seed(options.seed)
    print(plan_of(options.seed).in_words())
    print(LEGEND)
    print("\n".join(outcome.lines))
    tell(outcome)
    counts = ", ".join(f"{count} {what}" for what, count in sorted(outcome.counts.items()))
    print(f"trace {outcome.digest}; {counts}; {len(outcome.violations)} violations")
    return bool(outcome.violations)


def some(options: argparse.Namespace) -> bool:
    from tests.simulation.runs import run_seed

    outcomes = [run_seed(number) for number in options.seeds]
    for outcome in outcomes:
        print(outcome.seed, outcome.digest)
        tell(outcome)
    return any(outcome.violations for outcome in outcomes)


def crashes(options: argparse.Namespace) -> bool:
    from tests.simulation.crashes import NEVER, places, sweep

    if options.list:
        print(*places(), sep="\n")
        return False
    found = sweep(options.seeds, options.pairs)
    for component, point in found.died_at:
        print(f"{len(found.reached[component, point])} crashes  {component}: {point}")
    for place, why in NEVER.items():
        print(f"cannot come to  {place}: {why}")
    for place in found.missing:
        print(f"never died at  {place}")
    for outcome in found.broken:
        print(f"seed {outcome.seed}: {outcome.violations[0]}"[:300])
    print(
        f"{len(places())} places call a port, {len(places()) - len(found.missing)} were died at; "
        f"{len(found.died_at)} points with the steps' own, {found.crashes} crashes, {found.pairs} "
        f"pairs; {len(found.broken)} violations"
    )
    return bool(found.broken or found.missing)


MOST_PASSED_OVER = 200
"""For each schedule that can show a planted bug so many are looked at, at most."""


def bug(options: argparse.Namespace) -> bool:
    mutant = plant(options.name)
    from tests.simulation.runs import run_seed
    from tests.simulation.seeds import plan_of, words_of

    can_show_it = (
        number
        for number in range(1, MOST_PASSED_OVER * options.seeds + 1)
        if not mutant.needs or f" {mutant.needs} " in words_of(plan_of(number))
    )
    for tried, number in enumerate(islice(can_show_it, options.seeds), 1):
        outcome = run_seed(number)
        if outcome.broke:  # that says nothing of the planted bug
            print(f"{outcome.broke} (seed {number})")
            return True
        if outcome.violations:
            print(f"found after {tried}: {outcome.violations[0]}")
            return False
    print(f"missed in {options.seeds} schedules")
    return True


def bugs(options: argparse.Namespace) -> bool:
    from tests.simulation.runs import BED_BROKE

    found = hunt(options.seeds, options.jobs, options.only)
    for mutant, schedules, what in found:
        told = f"found after {schedules}: {what}" if schedules else f"MISSED: {what}"
        told = what if what.startswith(BED_BROKE) else told
        print(f"{mutant.name}: {told}"[:200])
    count = sum(1 for _, schedules, _ in found if schedules)
    print(f"planted bugs found: {count} of {len(found)}")
    return count < len(found)


def tell(outcome: Outcome) -> None:
    """One line that says what broke and how to see it again; the others below it."""
    if outcome.violations:
        first, *others = outcome.violations
        print(f"{first}   (again: {outcome.again})")
        for other in others[:5]:
            print(f"    {other}")


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a schedule
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped: what had been found by then is not told")
