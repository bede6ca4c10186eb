"""`python -m tests.simulation seeds 1 100`, `seed 17`, `points`."""

from __future__ import annotations

import os
import sys
import time

from tests.simulation.runs import run_seed, run_seeds


def main() -> int:
    what, *args = sys.argv[1:]
    if what == "seed":
        outcome = run_seed(int(args[0]))
        print("\n".join(outcome.lines))
        print(*outcome.violations, sep="\n")
        print(outcome.digest, dict(outcome.counts))
        return bool(outcome.violations)
    if what == "seeds":
        first, count = int(args[0]), int(args[1])
        began = time.process_time()
        total, broken = run_seeds(range(first, first + count))
        for outcome in broken:
            print(f"seed {outcome.seed}: {outcome.violations[0][:300]}")
        print(f"{(time.process_time() - began) / count * 1000:.1f} ms", dict(total), len(broken))
        return bool(broken)
    return 2


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
