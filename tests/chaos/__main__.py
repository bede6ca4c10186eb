"""`python -m tests.chaos [--minutes N] [--seed S] [--kind TEXT] [--save DIRECTORY] [--strict]`.

`--kind`: only kinds of faults whose names hold this text. `--save`: chaos.json, chaos.md and
chaos.svg there. Exit status 1 if a law was broken; with `--strict` 3 if a goal was not met: a time
to normal, or memory that stays level (`memory.py` has the rule).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

import msgspec

from benchmarks.__main__ import machine
from tests.chaos.report import curve, last_line, missed, table
from tests.chaos.run import Run, all_kinds, be_quiet
from tests.servers import KafkaServer, PostgreSQLServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--kind", default="")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--strict", action="store_true")
    wanted = parser.parse_args()
    print(
        f"seed {wanted.seed}: make chaos MINUTES={wanted.minutes:g} SEED={wanted.seed}", flush=True
    )
    kinds = [name for name in all_kinds() if wanted.kind in name]
    with (
        be_quiet(),
        tempfile.TemporaryDirectory(prefix="sagaz-es-chaos-") as directory,
        KafkaServer() as kafka,
        PostgreSQLServer() as postgresql,
    ):
        run = Run(
            kafka,
            postgresql,
            Path(directory),
            namespace="chaos",
            database=postgresql.create_database("chaos"),
            seed=wanted.seed,
            say=lambda line: print(line, flush=True),
        )
        asyncio.run(run.run(kinds, seconds=wanted.minutes * 60))
        for world in run.worlds:
            for line in world.checker.violations:
                print("VIOLATION", line)
            for saga_id in {line.partition(":")[0] for line in world.checker.violations[:3]}:
                print(world.checker.tell(saga_id))
        outcome = run.outcome()
        rows = table(outcome.by_kind, outcome.memory)
        picture = curve([p for world in run.worlds for p in world.processes], run.began)
    print(rows)
    if not run.happened:
        sys.exit(f"no kind of fault is called {wanted.kind!r}")
    if wanted.save is not None:
        wanted.save.mkdir(parents=True, exist_ok=True)
        text = msgspec.json.format(msgspec.json.encode(outcome))
        (wanted.save / "chaos.json").write_bytes(text + b"\n")
        about = (
            f"# Chaos\n\n{machine()}\n\n{rows}\n\n{last_line(outcome)}\n\n![Memory](chaos.svg)\n"
        )
        (wanted.save / "chaos.md").write_text(about)
        (wanted.save / "chaos.svg").write_text(picture)
    print(last_line(outcome))
    for goal in missed(outcome.by_kind, outcome.memory):
        print("not met:", goal)
    sys.exit(1 if run.violations else 3 if wanted.strict and outcome.goals_missed else 0)


if __name__ == "__main__":
    main()
