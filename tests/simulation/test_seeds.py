"""Schedules that follow from seeds: no law is broken, and the same seed is the same schedule.

They run in processes of their own: what a simulation does depends on nothing else there.
"""

from __future__ import annotations

import os
import subprocess
import sys

SCHEDULES = 1000


def simulate(*words: str, **environment: str) -> str:
    """What `python -m tests.simulation` says; it has to find nothing."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


def test_no_law_is_broken() -> None:
    told = simulate("run", "--seeds", str(SCHEDULES))
    assert told.splitlines()[-1].startswith(f"{SCHEDULES} schedules"), told
    assert told.splitlines()[-1].endswith(" 0 violations"), told


def test_the_same_seed_twice_gives_the_same_trace_in_every_process() -> None:
    told = {simulate("seed", "17", PYTHONHASHSEED=hashes) for hashes in ("random", "1", "2")}
    assert len(told) == 1


def test_the_same_seed_twice_gives_the_same_trace_in_one_process() -> None:
    once, again = (
        simulate("seeds", *map(str, range(10))),
        simulate("seeds", *["5", *map(str, range(10))]),
    )
    assert once.splitlines() == again.splitlines()[1:]
