"""Where a process may die, by name: before and after every call of a port, and in every step.

A point is a place in the code, `engine/partitions/partition.py Partition._send: log.append,
before`, and, for an append, what was to be appended. The places are found in the source itself, so
that none is missing: `places_in` lists every call of a port there is.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sagaz_es.testing.simulation.processes import Process

ROOT = Path(__file__).parents[2]  # of the package
PORTS = {
    "log": frozenset(
        "append append_raw read read_saga bounds low_water_mark mark_note join members".split()
    ),
    "store": frozenset(
        "checkpoint commit heads archived summaries parked_sagas parked_of parked rejected "
        "nearest_snapshot snapshot snapshots latest_snapshot save_snapshot delete_snapshot "
        "delete_expired_snapshots replays replay save_replay forget reset".split()
    ),
    "blobs": frozenset({"put", "get"}),
    "membership": frozenset("leave commit_low_water_mark predecessor_is_alive".split()),
}


class Points:
    """Counts how often each process comes to each point, and kills where it was told to."""

    def __init__(self) -> None:
        self.reached: Counter[tuple[str, str]] = Counter()  # (process, point)
        self.deaths: dict[tuple[str, str, int], None] = {}
        """(process, point, which time): where to kill."""

    def reach(self, process: Process, point: str) -> bool:
        """Whether the process is still alive behind this point."""
        if not process.alive:
            return False
        self.reached[process.name, point] += 1
        if self.deaths and (process.name, point, self.reached[process.name, point]) in self.deaths:
            process.kill(point)
            return False
        return True


_places: dict[object, str] = {}
_COMPREHENSION = re.compile(r"\.<locals>\.<(?:dict|list|set)comp>|\.<locals>\.<genexpr>")


def caller(depth: int) -> str:
    """The place in our code that called, `engine/partitions/partition.py Partition._send`."""
    code = sys._getframe(depth).f_code
    place = _places.get(code)
    if place is None:
        file = Path(code.co_filename)
        name = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name
        # A comprehension is a function of its own in some versions of Python.
        place = _places[code] = f"{name} {_COMPREHENSION.sub('', code.co_qualname)}"
    return place


def places_in(*folders: str) -> tuple[str, ...]:
    """Every place in these folders of the package that calls a port, as points name it, with the
    call: `engine/partitions/partition.py Partition._send: log.append`."""
    found: dict[str, None] = {}
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            for place, call in _calls(ast.parse(file.read_text()), ()):
                found[f"{name} {place}: {call}"] = None
    return tuple(found)


def _calls(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        inner = scope
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = (*scope, child.name, "<locals>")
        elif isinstance(child, ast.Lambda):
            inner = (*scope, "<lambda>", "<locals>")
        elif isinstance(child, ast.ClassDef):
            inner = (*scope, child.name)
        elif isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute):
            port = _port(child.func)
            if port:
                yield ".".join(scope[:-1]), f"{port}.{child.func.attr}"
        yield from _calls(child, inner)


def _port(function: ast.Attribute) -> str:
    """Which port a call is one of, by the name of what it is called on."""
    on = function.value
    name = on.attr if isinstance(on, ast.Attribute) else getattr(on, "id", "")
    port = name.lstrip("_")
    return port if function.attr in PORTS.get(port, ()) else ""
