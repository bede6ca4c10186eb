"""docs/guarantees.md names tests: they exist."""

from __future__ import annotations

import re
from pathlib import Path

from sagaz_es.testing.simulation.points import PORTS, places_in
from tests.simulation.crashes import FOLDERS, NEVER, OTHERS, places

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
        (f"engine/{file.name}", call)
        for file in (ROOT / "sagaz_es" / "engine").glob("*.py")
        for port, call in CALL.findall(file.read_text())
        if call in PORTS[port]
    }
    assert {call for call in calls if call[0] not in OTHERS} <= listed
    assert ("engine/partition.py", "append") in listed
    assert ("reading/projector.py", "commit") in listed


def test_what_is_left_out_is_still_there() -> None:
    """Who moves or removes code removes the reason why nothing dies in it."""
    found = places_in(*FOLDERS)
    assert set(found) >= NEVER.keys()
    assert {place.partition(" ")[0] for place in found} >= OTHERS.keys()
