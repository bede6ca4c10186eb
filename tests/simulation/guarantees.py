"""Runs the simulation and puts what it printed into docs/guarantees.md.

`python -m tests.simulation.guarantees [schedules]`
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "guarantees.md"
COUNTS = re.compile(r"(<!-- counts -->\n).*?(<!-- end -->)", re.DOTALL)


def told(*words: str) -> tuple[str, bool]:
    """The command and the last line it printed; whether it found nothing wrong."""
    command = [sys.executable, "-m", "tests.simulation", *words]
    ended = subprocess.run(command, capture_output=True, text=True)
    last = ended.stdout.strip().rpartition("\n")[2]
    return f"$ python -m tests.simulation {' '.join(words)}\n{last}\n", ended.returncode == 0


def main() -> int:
    schedules = sys.argv[1] if len(sys.argv) > 1 else "20000"
    runs = [
        told("run", "--seeds", schedules),
        told("points", "--seeds", "300", "--pairs", "300"),
        told("mutants", "--seeds", "3000"),
    ]
    text = "".join(text for text, _ in runs)
    print(text, end="")
    block = f"```text\n{text}```\n"
    PAGE.write_text(COUNTS.sub(lambda found: found[1] + block + found[2], PAGE.read_text()))
    return 0 if all(ok for _, ok in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
