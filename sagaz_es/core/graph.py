"""The step graph of a saga: what is recorded at its start, and rules from then on.

Only what decides the meaning of recorded facts is part of the graph and its fingerprint: names,
dependencies, pivots, at-most-once, effects, which steps can be undone. Retries and time limits
may change under a running saga; they are the code's (`sagaz_es.sagas.definition`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property

import msgspec
from msgspec import Struct

from sagaz_es.errors import CircularDependencyError, DefinitionError, SagaDependencyError


class StepNode(Struct, frozen=True, gc=False, omit_defaults=True):
    """One step as the graph knows it."""

    name: str
    depends_on: tuple[str, ...] = ()
    pivot: bool = False
    at_most_once: bool = False
    effects: bool = True  # False: it only computes
    compensable: bool = False  # it has a compensation
    on_unknown: bool = False  # its compensation is called for an unknown outcome, too
    child: str = ""  # name of the saga that it starts, waits for, and takes back


_FIELDS = ("pivot", "at_most_once", "effects", "compensable", "on_unknown", "child")


class Graph:
    """Steps in written order, checked: names are unique, dependencies exist, nothing is circular.

    Raises DefinitionError, SagaDependencyError (step and missing name), CircularDependencyError.
    """

    def __init__(self, steps: Iterable[StepNode] = ()) -> None:
        self.steps = tuple(steps)
        self.by_name: dict[str, StepNode] = {}
        for step in self.steps:
            if step.name in self.by_name:
                raise DefinitionError(f"step {step.name!r} is declared twice")
            self.by_name[step.name] = step
        for step in self.steps:
            for name in step.depends_on:
                if name not in self.by_name:
                    raise SagaDependencyError(step.name, name, tuple(self.by_name))
        self.order = self._topological()
        """Names, dependencies first; level by level, each in written order."""

    def _topological(self) -> tuple[str, ...]:
        done: dict[str, None] = {}
        waiting = {step.name: step.depends_on for step in self.steps}
        while waiting:
            ready = [name for name, needs in waiting.items() if all(need in done for need in needs)]
            if not ready:
                raise CircularDependencyError(self._cycle(waiting))
            for name in ready:
                done[name] = None
                del waiting[name]
        return tuple(done)

    @staticmethod
    def _cycle(waiting: Mapping[str, tuple[str, ...]]) -> list[str]:
        path: list[str] = []
        name = next(iter(waiting))
        while name not in path:
            path.append(name)
            name = next(need for need in waiting[name] if need in waiting)
        return [*path[path.index(name) :], name]

    @cached_property
    def dependents(self) -> dict[str, frozenset[str]]:
        """For each step, all that depend on it, over any number of levels."""
        found: dict[str, set[str]] = {name: set() for name in self.by_name}
        for name in reversed(self.order):
            for need in self.by_name[name].depends_on:
                found[need] |= found[name] | {name}
        return {name: frozenset(names) for name, names in found.items()}

    @cached_property
    def ancestors(self) -> dict[str, frozenset[str]]:
        """For each step, all that it depends on, over any number of levels."""
        found: dict[str, frozenset[str]] = {}
        for name in self.order:
            needs = self.by_name[name].depends_on
            found[name] = frozenset(needs).union(*(found[need] for need in needs))
        return found

    @cached_property
    def pivots(self) -> tuple[str, ...]:
        """Steps behind which there is no way back."""
        return tuple(step.name for step in self.steps if step.pivot)

    @cached_property
    def has_pivot(self) -> bool:
        """Whether any step is one, its saga's or its child's."""
        return any(step.pivot for step in self.steps)

    @cached_property
    def child_steps(self) -> tuple[str, ...]:
        """Steps that are sagas of their own."""
        return tuple(step.name for step in self.steps if step.child)

    def undo_order(self, names: Iterable[str]) -> list[str]:
        """Dependents before what they depend on; else the reverse of the order of running."""
        wanted = set(names)
        return [name for name in reversed(self.order) if name in wanted]

    def undo_levels(self, names: Iterable[str]) -> list[list[str]]:
        """As `undo_order`, in levels of steps that could be undone side by side."""
        wanted = set(names)
        depth: dict[str, int] = {}
        for name in self.undo_order(wanted):
            after = [depth[other] for other in self.dependents[name] & wanted]
            depth[name] = 1 + max(after, default=-1)
        return _levels(depth)

    @cached_property
    def levels(self) -> list[list[str]]:
        """Steps that could run side by side, level by level. A step does not wait for its level."""
        depth: dict[str, int] = {}
        for name in self.order:
            needs = self.by_name[name].depends_on
            depth[name] = 1 + max((depth[need] for need in needs), default=-1)
        return _levels({step.name: depth[step.name] for step in self.steps})

    @cached_property
    def text(self) -> str:
        """JSON, as it is recorded."""
        return msgspec.json.encode(self.steps).decode()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits; equal for graphs that differ in the order of writing alone."""
        nodes = [
            msgspec.structs.replace(step, depends_on=tuple(sorted(step.depends_on)))
            for step in self.steps
        ]
        nodes.sort(key=lambda node: node.name)
        return hashlib.sha256(msgspec.json.encode(nodes)).hexdigest()[:16]

    def differences(self, code: Graph) -> tuple[str, ...]:
        """What `code` has otherwise than this recorded graph, in sentences; empty: nothing."""
        told: list[str] = []
        for name, step in self.by_name.items():
            now = code.by_name.get(name)
            if now is None:
                told.append(f"step {name!r} is missing")
                continue
            if set(now.depends_on) != set(step.depends_on):
                was, is_ = sorted(step.depends_on), sorted(now.depends_on)
                told.append(f"step {name!r} depends on {is_} instead of {was}")
            for field in _FIELDS:
                if getattr(now, field) != getattr(step, field):
                    told.append(
                        f"step {name!r} has {field}={getattr(now, field)} "
                        f"instead of {getattr(step, field)}"
                    )
        told += [f"step {name!r} is new" for name in code.by_name if name not in self.by_name]
        return tuple(told)


def _levels(depth: Mapping[str, int]) -> list[list[str]]:
    levels: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name, level in depth.items():
        levels[level].append(name)
    return levels


_NODES = msgspec.json.Decoder(tuple[StepNode, ...])
_KNOWN: dict[str, Graph] = {}
_KNOWN_LIMIT = 1000  # definitions; far above what one process meets


def parse_graph(text: str) -> Graph:
    """The graph of a recorded text; equal texts give one object."""
    graph = _KNOWN.get(text)
    if graph is None:
        graph = Graph(_NODES.decode(text) if text else ())
        if len(_KNOWN) >= _KNOWN_LIMIT:
            _KNOWN.clear()
        _KNOWN[text] = graph
    return graph
