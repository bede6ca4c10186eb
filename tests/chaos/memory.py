"""Whether the memory of a process stays as it is: its trend in MiB a minute, and a verdict.

The rule. What counts is the life of a process that lasted longest, without its first two minutes,
in which it imports, connects and fills what it keeps. Through the rest goes the straight line with
the least squares; its slope is the trend. A life is level if the trend is at most 0.5 MiB a minute.
One of less than five minutes says nothing: then there is no verdict.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from msgspec import Struct

from tests.chaos.processes import Memory

MIB = 1 << 20
SETTLES_S = 120.0
LONG_ENOUGH_S = 300.0
LEVEL = 0.5  # MiB a minute


class Trend(Struct, frozen=True):
    """Of the longest life of a process: MiB when it had settled, at its end, and the slope."""

    lived_s: int
    begin_mib: float
    end_mib: float
    mib_a_minute: float | None  # None: too short a life to tell

    @property
    def level(self) -> bool | None:
        """None: nobody knows."""
        return None if self.mib_a_minute is None else self.mib_a_minute <= LEVEL


def lives(samples: Sequence[Memory]) -> list[list[Memory]]:
    """The samples of each incarnation."""
    by_pid: dict[int, list[Memory]] = defaultdict(list)
    for each in samples:
        by_pid[each.pid].append(each)
    return list(by_pid.values())


def trend(samples: Sequence[Memory]) -> Trend | None:
    """None: it was never measured."""
    longest = max(lives(samples), key=_lasted, default=None)
    if longest is None:
        return None
    settled = [each for each in longest if each.at - longest[0].at >= SETTLES_S]
    slope = None
    if _lasted(longest) >= LONG_ENOUGH_S:
        line = statistics.linear_regression(
            [each.at / 60 for each in settled], [each.size / MIB for each in settled]
        )
        slope = round(line.slope, 2)
    begin, end = (settled or longest)[0], longest[-1]
    return Trend(
        round(_lasted(longest)), round(begin.size / MIB, 1), round(end.size / MIB, 1), slope
    )


def _lasted(life: Sequence[Memory]) -> float:
    return life[-1].at - life[0].at


def told(name: str, trend: Trend) -> str:
    """One line of it."""
    line = f"{name}: {trend.begin_mib} → {trend.end_mib} MiB in a life of {trend.lived_s} s"
    if trend.mib_a_minute is None:
        return f"{line}, too short to tell (needs {LONG_ENOUGH_S:.0f} s)"
    verdict = "level" if trend.level else "not met: it grows"
    return f"{line}, {trend.mib_a_minute:+.2f} MiB a minute: {verdict}"
