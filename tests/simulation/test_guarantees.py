"""docs/guarantees.md names tests: they exist."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from sagaz_es.testing.simulation.points import PORTS, places_in
from tests.simulation.crashes import FOLDERS, NEVER, OTHERS, places
from tests.simulation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
CALL = re.compile(r"\b_?(log|store|membership)\.(\w+)\(")
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def test_every_test_that_shows_a_guarantee_exists() -> None:
    named = NAMED.findall((ROOT / "docs" / "guarantees.md").read_text())
    missing = [
        f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()
    ]
    assert len(named) > 10
    assert missing == []


def test_every_call_of_a_port_is_a_place_to_die_at() -> None:
    """Another reading of the source, by its text, finds no call that the places lack."""
    listed = {
        (place.partition(" ")[0], place.rpartition(": ")[2].rpartition(".")[2])
        for place in places()
    }
    calls = {
        (file.relative_to(ROOT / "sagaz_es").as_posix(), call)
        for file in (ROOT / "sagaz_es" / "engine").rglob("*.py")
        for port, call in CALL.findall(file.read_text())
        if call in PORTS[port]
    }
    never = {
        (place.partition(" ")[0], place.rpartition(": ")[2].rpartition(".")[2]) for place in NEVER
    }
    assert {call for call in calls if call[0] not in OTHERS} <= listed | never
    assert ("engine/partitions/partition.py", "append") in listed
    assert ("reading/projector.py", "commit") in listed


def test_what_is_left_out_is_still_there() -> None:
    """Who moves or removes code removes the reason why nothing dies in it."""
    found = places_in(*FOLDERS)
    assert set(found) >= NEVER.keys()
    assert {place.partition(" ")[0] for place in found} >= OTHERS.keys()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_has_its_place(mutant: Mutant) -> None:
    """Who moves or changes the code moves the bug along."""
    spec = find_spec(mutant.module)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text()
    assert [source.count(old) for old, _ in mutant.changes] == [1] * len(mutant.changes)
