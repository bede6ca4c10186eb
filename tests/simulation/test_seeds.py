"""Schedules that follow from seeds: no law is broken, and the same seed is the same schedule."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.simulation.runs import run_seed, run_seeds

SCHEDULES = 300


def test_no_law_is_broken() -> None:
    total, broken = run_seeds(range(SCHEDULES))
    assert [f"seed {o.seed}: {o.violations[0]}" for o in broken] == []
    assert total["schedules"] == SCHEDULES
    assert min(total["faults"], total["kills"], total["pauses"], total["cuts"]) > 0


def test_the_same_seed_twice_gives_the_same_trace() -> None:
    for seed in range(20):
        first, second = run_seed(seed), run_seed(seed)
        assert first.lines == second.lines
        assert first.digest == second.digest


def test_a_seed_gives_the_same_trace_in_every_process() -> None:
    told = {
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", "seed", "17"],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("random", "1", "2")
    }
    assert len(told) == 1
