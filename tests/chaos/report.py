"""What a run says: a table, its counts as JSON, the memory of its processes as a picture."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import Any

from msgspec import Struct, to_builtins

from tests.chaos.faults import SERVER
from tests.chaos.processes import Memory, Process

MB = 1_000_000


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
    engine_back_s: dict[str, float]
    server_back_s: dict[str, float]
    memory_mb: dict[str, dict[str, float]]
    faults_by_kind: dict[str, int]


def table(happened: Sequence[Happened]) -> str:
    """Markdown: a line a kind."""
    by_kind: dict[str, list[Happened]] = defaultdict(list)
    for each in happened:
        by_kind[each.kind].append(each)
    lines = [
        "| what went wrong | times | lasted s | normal again after s (median) | (worst) |",
        "|---|---|---|---|---|",
    ]
    for kind, all_of_it in sorted(by_kind.items()):
        down = statistics.median(each.down_s for each in all_of_it)
        normal = sorted(each.normal_s for each in all_of_it)
        figures = f"{down:.1f} | {statistics.median(normal):.2f} | {normal[-1]:.2f}"
        lines.append(f"| {kind} | {len(all_of_it)} | {figures} |")
    return "\n".join(lines)


def back(happened: Sequence[Happened], *, servers: bool) -> dict[str, float]:
    """Median and worst time to normal of servers that were started again, or of processes."""
    times = [
        each.normal_s
        for each in happened
        if (each.kind.endswith(SERVER) and "frozen" not in each.kind and servers)
        or (each.kind == "engine killed (static member)" and not servers)
    ]
    if not times:
        return {}
    return {"median": round(statistics.median(times), 2), "worst": round(max(times), 2)}


def last_line(outcome: Outcome) -> str:
    """One line with the counts."""
    told = {
        key: value for key, value in to_builtins(outcome).items() if isinstance(value, int | float)
    }
    return "chaos: " + ", ".join(f"{key} {value}" for key, value in told.items())


def memory_of(process: Process) -> dict[str, float]:
    """Of the incarnation that lived longest: megabytes in its second tenth, and in its last."""
    lives: dict[int, list[Memory]] = defaultdict(list)
    for each in process.memory:
        lives[each.pid].append(each)
    if not lives:
        return {}
    longest = max(lives.values(), key=lambda life: life[-1].at - life[0].at)
    tenth = max(1, len(longest) // 10)
    begin = statistics.median(each.size for each in longest[tenth : 2 * tenth] or longest)
    end = statistics.median(each.size for each in longest[-tenth:])
    return {
        "lived_s": round(longest[-1].at - longest[0].at),
        "begin": round(begin / MB, 1),
        "end": round(end / MB, 1),
    }


# --- the picture ----------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, BOTTOM = 900, 360, 50, 30
COLOURS = ("#1b6ca8", "#c0392b", "#27ae60", "#8e44ad", "#d68910", "#16a085", "#7f8c8d")


def curve(processes: Sequence[Process], since: float) -> str:
    """SVG: the memory of each process over the run; a new line for each incarnation."""
    samples = [each for process in processes for each in process.memory]
    seconds = max([each.at - since for each in samples], default=1.0)
    most = max([each.size for each in samples], default=MB) * 1.1

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
        parts.append(f'<text x="2" y="{y:.0f}">{share * most / MB:.0f} MB</text>')
        x = LEFT + share * (WIDTH - LEFT - 160)
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - 10}">{share * seconds:.0f} s</text>')
    for number, process in enumerate(processes):
        colour = COLOURS[number % len(COLOURS)]
        lives: dict[int, list[Memory]] = defaultdict(list)
        for each in process.memory:
            lives[each.pid].append(each)
        for life in lives.values():
            points = " ".join(map(place, life))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        y = 20 + 16 * number
        parts.append(
            f'<text x="{WIDTH - 150}" y="{y}" fill="{colour}">{escape(process.name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
