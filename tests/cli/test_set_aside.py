"""Damage in the log: what the commands say of a saga whose fact cannot be read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagaz_es.connect import open_log
from sagaz_es.core import events as e
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Record

from .conftest import APP, Shop


def memory_log(shop: Shop) -> MemoryEventLog:
    log = open_log(shop.log)
    assert isinstance(log, MemoryEventLog)
    return log


async def records_of(log: MemoryEventLog, saga_id: str) -> tuple[Record, ...]:
    return await log.read_saga(saga_id)


@pytest.fixture
def damaged(shop: Shop) -> Shop:
    """A shop where o-1 has run, but its fifth fact cannot be read; o-2 is well.

    The records are those of an order that ran elsewhere, written anew with that one spoilt.
    """
    other = Shop(f"{shop.log}-origin")
    other.order("o-1")
    other.order("o-2")

    async def copy() -> None:
        origin, log = memory_log(other), memory_log(shop)
        for saga_id in ("o-1", "o-2"):
            for record in await origin.read_saga(saga_id):
                entry: Any = record.entry
                if saga_id == "o-1" and isinstance(entry, e.Event) and entry.sequence == 5:
                    await log.append_raw(log.partition_of(saga_id), saga_id, b"\xc3\x01 damaged")
                else:
                    await log.append(log.partition_of(saga_id), [entry])

    asyncio.run(copy())
    return shop


def test_the_list_says_which_saga_is_set_aside_and_where(damaged: Shop) -> None:
    given = damaged.run("saga", "list")
    found = {saga["saga_id"]: saga for saga in given.json}
    assert found["o-2"]["error"] is None
    assert "saga 'o-1' is set aside: the record at partition" in found["o-1"]["error"]
    assert "its past is known up to sequence 4" in found["o-1"]["error"]
    assert "doctor" in given.error


def test_no_state_behind_the_damage_is_guessed(damaged: Shop) -> None:
    past = damaged.run("replay", "time-travel", "o-1", "--at", "4")
    assert (past.status, past.json["sequence"]) == (0, 4)
    for command in (
        ("replay", "time-travel", "o-1", "--at", "5"),
        ("replay", "time-travel", "o-1", "--at", "2100-01-01"),
        ("saga", "show", "o-1"),
        ("replay", "plan", "o-1", "--from-step", "charge", "--app", APP),
    ):
        given = damaged.run(*command)
        assert (given.status, given.stdout) == (3, ""), command
        assert "is set aside" in given.error
    assert damaged.run("saga", "show", "o-2").json["status"] == "completed"


def test_what_is_known_is_listed_and_the_rest_is_told(damaged: Shop) -> None:
    given = damaged.run("replay", "list-changes", "o-1")
    assert given.status == 5
    assert [change["sequence"] for change in given.json] == [1, 2, 3, 4]
    assert "cannot be read, and later events depend on it" in given.error
    within = damaged.run("replay", "list-changes", "o-1", "--limit", "2")
    assert (within.status, within.stderr) == (0, "")


def test_verify_and_doctor_say_it(damaged: Shop) -> None:
    damaged.run("saga", "list")  # projects
    given = damaged.run("projector", "verify")
    assert (given.status, given.json["ok"]) == (1, False)
    (difference,) = given.json["differences"]
    assert (difference["saga_id"], difference["what"]) == ("o-1", "set aside")
    assert "nothing is known beyond sequence 4" in difference["detail"]
    doctor = damaged.run("doctor")
    assert doctor.status == 1
    assert "projector drive o-1" in doctor.stdout


def test_bytes_that_were_never_a_fact_are_passed_over_when_told_so(shop: Shop) -> None:
    shop.order("o-1")
    log = memory_log(shop)
    asyncio.run(log.append_raw(log.partition_of("o-1"), "o-1", b"a stranger's"))
    (listed,) = shop.run("saga", "list").json
    assert listed["status"] == "completed"
    assert "are set aside" in listed["error"]
    assert shop.run("saga", "show", "o-1").json["status"] == "completed"

    kept = shop.run("projector", "drive", "o-1")
    assert (kept.status, kept.json) == (1, {"saga_id": "o-1", "folded": 0, "set_aside": 1})
    driven = shop.run("projector", "drive", "o-1", "--pass-over")
    assert (driven.status, driven.json["set_aside"]) == (0, 0)
    (listed,) = shop.run("saga", "list").json
    assert listed["error"] is None
    assert shop.run("projector", "verify").json["ok"]
    again = shop.run("projector", "drive", "o-1", "--format", "table")
    assert again.stdout == "nothing of saga o-1 is set aside\n"
