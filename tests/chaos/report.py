"""What a run says: a table, its counts as JSON, the memory of its processes as a picture."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from msgspec import Struct, to_builtins

from tests.chaos.faults import PROCESS_S, SERVER_S, SESSION_S, TAKE_OVER_S, WANTED
from tests.chaos.memory import MIB, Trend, lives, told
from tests.chaos.processes import Memory, Process


class Happened(Struct, frozen=True):
    """A fault: how long it lasted, and how long after it everything worked again."""

    kind: str
    at: float  # seconds since the run began
    down_s: float
    normal_s: float


class Outcome(Struct, frozen=True):
    """A run, for programs that read it."""

    seed: int
    minutes: float
    faults: int
    kinds: int
    kills: int
    orders: int
    events_checked: int
    effects_checked: int
    records: int
    rejected_by_the_fold: int
    steps_run_again: int
    late_effects_of_the_cut_off: int
    past_states_checked: int
    violations: int
    goals_missed: int
    memory: dict[str, Trend]
    by_kind: dict[str, Row]


class Row(Struct, frozen=True):
    """All faults of one kind. `wanted_s`: what the worst time to normal is to stay below."""

    times: int
    lasted_s: float  # median
    median_s: float
    worst_s: float
    wanted_s: float | None

    @property
    def met(self) -> bool | None:
        """None: nothing is aimed at."""
        return None if self.wanted_s is None else self.worst_s < self.wanted_s


def rows(happened: Sequence[Happened]) -> dict[str, Row]:
    """By kind, in the order of their names."""
    by_kind: dict[str, list[Happened]] = defaultdict(list)
    for each in happened:
        by_kind[each.kind].append(each)
    return {kind: _row(kind, all_of_it) for kind, all_of_it in sorted(by_kind.items())}


def _row(kind: str, all_of_it: Sequence[Happened]) -> Row:
    down = statistics.median(each.down_s for each in all_of_it)
    normal = [each.normal_s for each in all_of_it]
    median, worst = statistics.median(normal), max(normal)
    return Row(len(all_of_it), round(down, 1), round(median, 2), round(worst, 2), WANTED.get(kind))


def table(by_kind: Mapping[str, Row], memory: Mapping[str, Trend]) -> str:
    """Markdown: a line a kind, then what is aimed at, then the memory of each process."""
    lines = [
        "| what went wrong | times | lasted s | normal after s (median) | (worst) | wanted | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, row in by_kind.items():
        wanted = "" if row.wanted_s is None else f"< {row.wanted_s:g}"
        figures = f"{row.times} | {row.lasted_s} | {row.median_s:.2f} | {row.worst_s:.2f}"
        lines.append(f"| {kind} | {figures} | {wanted} | {_MET[row.met]} |")
    lines += [
        "",
        f"Wanted: below {PROCESS_S:g} s after a process, below {SERVER_S:g} s after a server is "
        f"there again; below {TAKE_OVER_S:g} s where others take over, because the session time-"
        f"out of {SESSION_S:g} s comes first.",
        "",
        "Memory:",
        "",
        *(f"- {told(name, each)}" for name, each in memory.items()),
    ]
    return "\n".join(lines)


_MET = {True: "yes", False: "**not met**", None: ""}


def missed(by_kind: Mapping[str, Row], memory: Mapping[str, Trend]) -> list[str]:
    """Goals that were not met: kinds of faults, and processes that grow."""
    kinds = [kind for kind, row in by_kind.items() if row.met is False]
    return kinds + [f"memory of {name}" for name, each in memory.items() if each.level is False]


def last_line(outcome: Outcome) -> str:
    """One line with the counts."""
    counts = {
        key: value for key, value in to_builtins(outcome).items() if isinstance(value, int | float)
    }
    return "chaos: " + ", ".join(f"{key} {value}" for key, value in counts.items())


# --- the picture ----------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, BOTTOM = 900, 360, 50, 30
COLOURS = ("#1b6ca8", "#c0392b", "#27ae60", "#8e44ad", "#d68910", "#16a085", "#7f8c8d")


def curve(processes: Sequence[Process], since: float) -> str:
    """SVG: the memory of each process over the run; a new line for each incarnation."""
    samples = [each for process in processes for each in process.memory]
    seconds = max([each.at - since for each in samples], default=1.0)
    most = max([each.size for each in samples], default=MIB) * 1.1

    def place(each: Memory) -> str:
        x = LEFT + (each.at - since) / seconds * (WIDTH - LEFT - 160)
        y = (HEIGHT - BOTTOM) * (1 - each.size / most)
        return f"{x:.1f},{y:.1f}"

    parts: list[Any] = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = (HEIGHT - BOTTOM) * (1 - share) + 8 * (share == 1.0)
        parts.append(f'<text x="2" y="{y:.0f}">{share * most / MIB:.0f} MiB</text>')
        x = LEFT + share * (WIDTH - LEFT - 160)
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - 10}">{share * seconds:.0f} s</text>')
    for number, process in enumerate(processes):
        colour = COLOURS[number % len(COLOURS)]
        for life in lives(process.memory):
            points = " ".join(map(place, life))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        y = 20 + 16 * number
        parts.append(
            f'<text x="{WIDTH - 150}" y="{y}" fill="{colour}">{escape(process.name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
