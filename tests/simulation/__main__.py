"""The simulation's commands; see `main`."""

from __future__ import annotations

import argparse
import os
import sys

from tests.simulation.runs import Outcome, run_many, run_seed


def main() -> int:
    """Exit: 0 nothing found, 1 a law is broken."""
    parser = argparse.ArgumentParser("python -m tests.simulation")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="many schedules, on every core")
    run.add_argument("--seeds", type=int, default=2000)
    run.add_argument("--first", type=int, default=1)
    run.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    seed = commands.add_parser("seed", help="one schedule, with its trace")
    seed.add_argument("seed", type=int)
    seeds = commands.add_parser("seeds", help="these schedules: digest and violations")
    seeds.add_argument("seeds", type=int, nargs="+")
    options = parser.parse_args()
    if options.command == "run":
        total, broken = run_many(options.first, options.seeds, options.jobs)
        for outcome in broken:
            tell(outcome)
        print(total, flush=True)
        return bool(broken)
    if options.command == "seed":
        outcome = run_seed(options.seed)
        print("\n".join(outcome.lines))
        tell(outcome)
        print(outcome.digest, outcome.counts)
        return bool(outcome.violations)
    outcomes = [run_seed(number) for number in options.seeds]
    for outcome in outcomes:
        print(outcome.seed, outcome.digest)
        tell(outcome)
    return any(outcome.violations for outcome in outcomes)


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
    sys.exit(main())
