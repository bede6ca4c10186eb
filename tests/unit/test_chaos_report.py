"""The report of `make chaos` says plainly which goals were met, and which were not."""

from __future__ import annotations

import pytest

from tests.chaos.faults import SHOP, STALL, TAKE_OVER_S, WANTED
from tests.chaos.memory import MIB, Trend, told, trend
from tests.chaos.processes import Memory
from tests.chaos.report import Happened, Row, missed, rows, table

KILLED, RESTARTED, DAMAGED = "engine killed (static member)", "Kafka restarted", "damaged records"


def happened(kind: str, *normal_s: float) -> list[Happened]:
    return [Happened(kind, at=1.0, down_s=3.0, normal_s=each) for each in normal_s]


def test_the_worst_time_is_what_the_goal_is_for() -> None:
    by_kind = rows(
        happened(RESTARTED, 0.9, 4.9, 1.1)
        + happened(KILLED, 1.0, 2.1, 1.2)
        + happened(DAMAGED, 0.2, 60.0)
    )
    assert by_kind == {
        KILLED: Row(3, 3.0, 1.2, 2.1, 2.0),
        RESTARTED: Row(3, 3.0, 1.1, 4.9, 5.0),
        DAMAGED: Row(2, 3.0, 30.1, 60.0, None),
    }
    assert missed(by_kind, {}) == [KILLED]
    told = table(by_kind, {})
    assert f"| {KILLED} | 3 | 3.0 | 1.20 | 2.10 | < 2 | **not met** |" in told
    assert f"| {RESTARTED} | 3 | 3.0 | 1.10 | 4.90 | < 5 | yes |" in told
    assert f"| {DAMAGED} | 2 | 3.0 | 30.10 | 60.00 |  |  |" in told


def test_every_restart_has_a_goal() -> None:
    for kind in (*SHOP, *STALL):
        if "killed" in kind or "restarted" in kind or "stopped" in kind:
            assert WANTED[kind] in (2.0, 5.0, TAKE_OVER_S), kind


def life(pid: int, seconds: int, a_minute: float, *, step_at: int | None = None) -> list[Memory]:
    """A sample a second: 40 MiB and what comes to it, and 20 MiB more in the first minute."""
    samples = []
    for at in range(seconds):
        size = 40 + 20 * min(at / 60, 1) + a_minute * at / 60
        size += 12 if step_at is not None and at > step_at else 0
        samples.append(Memory(float(at), pid, round(size * MIB)))
    return samples


@pytest.mark.parametrize(
    ("samples", "level", "a_minute"),
    [
        (life(1, 600, 0.0), True, 0.0),
        (life(1, 600, 0.2), True, 0.2),
        (life(1, 600, 1.0), False, 1.0),
        (life(1, 600, 0.0, step_at=300), False, 2.11),  # something stays, after a fault
        (life(1, 299, 9.0), None, None),
        (life(1, 100, 9.0) + life(2, 600, 0.0), True, 0.0),  # the longest life counts
    ],
)
def test_a_process_that_grows_is_found(
    samples: list[Memory], level: bool | None, a_minute: float | None
) -> None:
    found = trend(samples)
    assert found is not None
    assert found.level is level
    assert found.mib_a_minute == (None if a_minute is None else pytest.approx(a_minute, abs=0.02))


def test_a_trend_is_told_with_its_verdict() -> None:
    assert trend([]) is None
    grows = Trend(600, 60.0, 70.0, 1.0)
    assert told("engine 1", grows) == (
        "engine 1: 60.0 → 70.0 MiB in a life of 600 s, +1.00 MiB a minute: not met: it grows"
    )
    assert missed({}, {"engine 1": grows, "engine 2": Trend(9, 1.0, 9.0, None)}) == [
        "memory of engine 1"
    ]
    assert told("engine 2", Trend(9, 1.0, 9.0, None)).endswith("too short to tell (needs 300 s)")
