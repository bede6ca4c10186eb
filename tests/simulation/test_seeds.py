"""Schedules that follow from seeds: no law is broken, and the same seed is the same schedule.

They run in processes of their own: what a simulation does depends on nothing else there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.simulation.machine import Doing
from tests.simulation.runs import run_plan
from tests.simulation.seeds import plan_of

SCHEDULES = int(os.environ.get("SAGAZ_ES_SCHEDULES", "20000"))
"""The seeds from 1 on, none left out. So many take some two minutes on two cores."""


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


@pytest.mark.timeout(3000)
def test_no_law_is_broken() -> None:
    told = simulate("run", "--seeds", str(SCHEDULES))
    assert told.splitlines()[-1].startswith(f"{SCHEDULES} schedules"), told
    assert told.splitlines()[-1].endswith(" 0 violations"), told


def test_what_was_found_behind_the_range_stays_fixed() -> None:
    """A cancel that a closing engine refused for good; a start that was told and stood nowhere; a
    pause that was told by a fact that the fold rejects; steps that ran on behind a hand-over; one
    saga too many, of an id that two started at once; starts out of turn; a branch begun twice;
    a pause that was answered and told again by a take-over; an append of before a lost tail that
    lands in what was begun anew.
    Of the judge: the cancel that had stopped a step went with the log's tail; who closed an engine
    slept while its clients were to be told."""
    simulate(
        "seeds",
        "26282",
        "36393",
        "24095",
        "24738",
        "29167",
        "29364",
        "5001764",
        "5001982",
        "5002370",
        "5000100",
        "7001557",
        "7002076",
        "9000869",
    )


@pytest.mark.timeout(900)
def test_crashes_at_every_place_leave_no_law_broken() -> None:
    told = simulate("points", "--seeds", "30", "--pairs", "30")  # fails where a place is missing
    assert "never died at" not in told
    assert told.splitlines()[-1].endswith("; 0 violations"), told


def test_the_same_seed_twice_gives_the_same_trace_in_every_process() -> None:
    told = {simulate("seed", "17", PYTHONHASHSEED=hashes) for hashes in ("random", "1", "2")}
    assert len(told) == 1


def test_the_same_seed_twice_gives_the_same_trace_in_one_process() -> None:
    once, again = (
        simulate("seeds", *map(str, range(10))),
        simulate("seeds", *["5", *map(str, range(10))]),
    )
    assert once.splitlines() == again.splitlines()[1:]


def test_the_same_plan_twice_gives_the_same_trace() -> None:
    plan = next(plan for number in range(100) if (plan := plan_of(number)).habits.fails > 0)
    once, again = run_plan(plan), run_plan(plan)
    assert once.lines == again.lines
    assert plan == plan_of(plan.seed)


@pytest.mark.parametrize("words", [("run", "--seeds", "0"), ("mutants", "--seeds", "-5")])
def test_no_schedules_at_all_are_refused(words: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *words], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "is none: give 1 or more" in ended.stderr


def test_a_simulation_that_breaks_down_says_nothing_of_the_laws() -> None:
    outcome = run_plan(replace(plan_of(1), doings=(Doing(0.1, "nothing known", ()),)))
    assert outcome.broke.startswith("the bed broke: AttributeError")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "bug",
    [
        "an event that comes again is accepted again",
        "a step runs before its start is confirmed",
        "the mark passes sagas that are not finished",
        "steps are undone forwards",
        "the checkpoint is committed before the data",
        "the state at a time is that before its first event",
    ],
)
def test_a_planted_bug_is_found(bug: str) -> None:
    """The short form of `python -m tests.simulation mutants`."""
    told = simulate("mutants", "--only", bug, "--seeds", "300")
    assert told.splitlines()[-1] == "planted bugs found: 1 of 1"
