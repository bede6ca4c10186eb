"""A saga drawn as a Mermaid flowchart: its steps, how they are undone, and the trail of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.state import SagaState
from sagaz_es.errors import ConfigurationError

DIRECTIONS = ("TB", "TD", "BT", "LR", "RL")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = {"end", "graph", "flowchart", "subgraph", "style", "class", "click", "default"}
_STYLES = {
    "done": "fill:#d4edda,stroke:#28a745",
    "failed": "fill:#f8d7da,stroke:#dc3545",
    "undone": "fill:#fff3cd,stroke:#ffc107",
    "pivot": "stroke:#6f42c1,stroke-width:3px",
}


@dataclass(frozen=True, slots=True)
class Trail:
    """What a run did."""

    completed: frozenset[str] = frozenset()  # also what was undone since
    failed: str = ""
    compensated: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.completed or self.failed or self.compensated)


def trail_of(highlight: Mapping[str, Any] | None) -> Trail:
    """A trail from `{"completed_steps": …, "failed_step": …, "compensated_steps": …}`."""
    given = highlight or {}
    undone = frozenset(given.get("compensated_steps") or ())
    done = frozenset(given.get("completed_steps") or ())
    return Trail(done | undone, given.get("failed_step") or "", undone)


def trail_of_state(state: SagaState) -> Trail:
    """The trail of a recorded run."""
    by_status: dict[str, set[str]] = {}
    for name, step in state.steps.items():
        by_status.setdefault(step.status, set()).add(name)
    undone = by_status.get("compensated", set()) | by_status.get("compensating", set())
    done = by_status.get("completed", set()) | by_status.get("skipped", set())
    done |= by_status.get("compensation_failed", set())
    return Trail(frozenset(done | undone), state.failed_step, frozenset(undone))


def draw(
    graph: Graph,
    *,
    direction: str = "TB",
    show_compensation: bool = True,
    trail: Trail = Trail(),
    show_state_markers: bool = True,
) -> str:
    """The flowchart. With a trail, only what it touched is drawn.

    Stadiums are roots, boxes can be undone, slanted ones cannot, double ones are pivots. A step
    that is a saga of its own names it in a second line.
    """
    if direction not in DIRECTIONS:
        raise ConfigurationError(f"direction: one of {', '.join(DIRECTIONS)}, not {direction!r}")
    drawing = _Drawing(graph, trail, show_compensation, show_state_markers)
    return "\n".join([f"flowchart {direction}", *drawing.lines()])


class _Drawing:
    def __init__(self, graph: Graph, trail: Trail, compensation: bool, markers: bool) -> None:
        self._graph, self._trail = graph, trail
        self._markers = markers
        names = [step.name for step in graph.steps]
        if trail:
            names = [n for n in names if n in trail.completed or n == trail.failed]
        self._shown = dict.fromkeys(names)
        undone = [n for n in names if graph.by_name[n].compensable] if compensation else []
        if trail:
            undone = [n for n in undone if n in trail.compensated]
        self._undone = dict.fromkeys(undone)

    def lines(self) -> list[str]:
        return [f"    {line}" for line in (*self._nodes(), *self._edges(), *self._styles())]

    def _nodes(self) -> Iterable[str]:
        if self._markers:
            yield "START((●))"
        for name in self._shown:
            yield f"{_id(name)}{_shape(self._graph.by_name[name])}"
        if self._markers:
            if not self._trail.failed:
                yield "SUCCESS((◎))"
            if self._undone or self._trail.failed:
                yield "ROLLED_BACK((◎))"
        for name in self._undone:
            yield f'{_id(name, "comp_")}{{{{"undo {_label(name)}"}}}}'

    def _edges(self) -> Iterable[str]:
        graph = self._graph
        for name in self._shown:
            needs = [need for need in graph.by_name[name].depends_on if need in self._shown]
            if self._markers and not graph.by_name[name].depends_on:
                yield f"START --> {_id(name)}"
            for need in needs:
                yield f"{_id(need)} --> {_id(name)}"
        if self._markers and not self._trail.failed:
            for name in self._shown:
                if not graph.dependents[name]:
                    yield f"{_id(name)} --> SUCCESS"
        for name in self._undone:
            yield f"{_id(name)} -. compensate .-> {_id(name, 'comp_')}"
        for name in self._undone:
            before = self._undone_before(name)
            for need in before:
                yield f"{_id(name, 'comp_')} -.-> {_id(need, 'comp_')}"
            if self._markers and not before:
                yield f"{_id(name, 'comp_')} -.-> ROLLED_BACK"
        if self._markers and self._trail.failed and not self._undone:
            yield f"{_id(self._trail.failed)} -.-> ROLLED_BACK"

    def _undone_before(self, name: str) -> list[str]:
        """The nearest steps before this one that are undone after it."""
        found: dict[str, None] = {}
        asked: set[str] = set()
        waiting = list(self._graph.by_name[name].depends_on)
        while waiting:
            need = waiting.pop(0)
            if need in asked:
                continue
            asked.add(need)
            if need in self._undone:
                found[need] = None
            else:
                waiting += self._graph.by_name[need].depends_on
        return list(found)

    def _styles(self) -> Iterable[str]:
        classes: dict[str, list[str]] = {
            "done": [_id(n) for n in self._shown if n in self._trail.completed],
            "failed": [_id(n) for n in self._shown if n == self._trail.failed],
            "undone": [_id(n, "comp_") for n in self._undone],
            "pivot": [_id(n) for n in self._shown if self._graph.by_name[n].pivot],
        }
        for name, style in _STYLES.items():
            if classes[name]:
                yield f"classDef {name} {style}"
                yield f"class {','.join(classes[name])} {name}"


def _id(name: str, prefix: str = "") -> str:
    """An identifier that Mermaid takes; a name that is none is spelt in hexadecimal."""
    plain = _PLAIN.fullmatch(name) and name.lower() not in _RESERVED
    plain = plain and name not in ("START", "SUCCESS", "ROLLED_BACK")
    return prefix + (name if plain else f"s_{name.encode().hex()}")


def _child(name: str) -> str:
    if not name:
        return ""
    each = name.endswith("*")
    return f"<br/>saga {_label(name.removesuffix('*'))}{', for each item' if each else ''}"


def _label(name: str) -> str:
    return name.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def _shape(step: StepNode) -> str:
    label = f'"{_label(step.name)}{_child(step.child)}"'
    if step.pivot:
        return f"[[{label}]]"
    if not step.depends_on:
        return f"([{label}])"
    return f"[{label}]" if step.compensable else f"[/{label}/]"
