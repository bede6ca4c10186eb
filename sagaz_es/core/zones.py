"""Where steps stand to the pivots of their saga: values to look at, nothing of them decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sagaz_es.core.graph import Graph, StepNode

_NOTHING: frozenset[str] = frozenset()


class StepZone(StrEnum):
    """A step's place."""

    REVERSIBLE = "reversible"  # no completed pivot depends on it, and it on none
    PIVOT = "pivot"
    COMMITTED = "committed"  # behind a completed pivot: the saga goes forward from here
    TAINTED = "tainted"  # a completed pivot depends on it: it is not undone any more


@dataclass(frozen=True, slots=True)
class PivotInfo:
    """A pivot, and what it locks once it has completed."""

    step_name: str
    completed: bool = False
    tainted_ancestors: frozenset[str] = _NOTHING


@dataclass(frozen=True, slots=True)
class SagaZones:
    """A saga's steps by zone."""

    reversible: frozenset[str] = _NOTHING
    pivots: frozenset[str] = _NOTHING
    committed: frozenset[str] = _NOTHING
    tainted: frozenset[str] = _NOTHING
    boundaries: Mapping[str, str] | None = None
    """The pivot nearest before each committed step."""

    def get_zone(self, step_name: str) -> StepZone:
        """The zone of a step; locked comes before pivot, pivot before committed."""
        if step_name in self.tainted:
            return StepZone.TAINTED
        if step_name in self.pivots:
            return StepZone.PIVOT
        return StepZone.COMMITTED if step_name in self.committed else StepZone.REVERSIBLE

    def is_rollback_allowed(self, step_name: str) -> bool:
        """Whether a failure may still undo the step."""
        return self.get_zone(step_name) in (StepZone.REVERSIBLE, StepZone.COMMITTED)

    def get_rollback_boundary(self, step_name: str) -> str | None:
        """The pivot that undoing stops at when this step fails; None: everything is undone."""
        return (self.boundaries or {}).get(step_name)


def zones_of(graph: Graph, completed: Iterable[str] = ()) -> SagaZones:
    """The zones of a saga whose pivots among `completed` have completed."""
    pivots = frozenset(step.name for step in graph.steps if step.pivot)
    done = pivots & frozenset(completed)
    tainted = _NOTHING.union(*(graph.ancestors[name] for name in done))
    behind = _NOTHING.union(*(graph.dependents[name] for name in done))
    nearest: dict[str, str] = {}
    for name in graph.order:
        if name in done:
            nearest.update(dict.fromkeys(graph.dependents[name], name))
    return SagaZones(
        reversible=frozenset(graph.by_name) - pivots - tainted - behind,
        pivots=pivots,
        committed=(behind | done) - tainted,
        tainted=tainted,
        boundaries=nearest,
    )


def pivots_of(graph: Graph, completed: Iterable[str] = ()) -> tuple[PivotInfo, ...]:
    """The pivots, in the order of running."""
    done = frozenset(completed)
    return tuple(
        PivotInfo(name, name in done, graph.ancestors[name])
        for name in graph.order
        if graph.by_name[name].pivot
    )


class TaintPropagator:
    """What completed pivots lock, of steps given by their names. Nothing here changes."""

    def __init__(
        self,
        step_names: Iterable[str],
        dependencies: Mapping[str, Iterable[str]],
        pivots: Iterable[str],
        completed_pivots: Iterable[str] | None = None,
    ) -> None:
        marked = frozenset(pivots)
        self.pivots = marked
        self.completed_pivots = frozenset(completed_pivots or ()) & marked
        self._graph = Graph(
            StepNode(name, tuple(sorted(dependencies.get(name, ()))), pivot=name in marked)
            for name in sorted(step_names)
        )

    def get_ancestors(self, step_name: str) -> frozenset[str]:
        """All that the step depends on, over any number of levels."""
        return self._graph.ancestors.get(step_name, _NOTHING)

    def get_descendants(self, step_name: str) -> frozenset[str]:
        """All that depends on the step, over any number of levels."""
        return self._graph.dependents.get(step_name, _NOTHING)

    def propagate_taint(self, completed_pivot: str) -> frozenset[str]:
        """What this pivot would lock, were it the next to complete."""
        if completed_pivot not in self.pivots:
            return _NOTHING
        return self.get_ancestors(completed_pivot) - self.calculate_zones().tainted

    def calculate_zones(self) -> SagaZones:
        """The zones, given the completed pivots."""
        return zones_of(self._graph, self.completed_pivots)

    def get_rollback_boundary(self, failed_step: str) -> str | None:
        """The pivot that undoing stops at when this step fails; None: everything is undone."""
        return self.calculate_zones().get_rollback_boundary(failed_step)

    def is_tainted(self, step_name: str) -> bool:
        """Whether a completed pivot locks the step."""
        return step_name in self.calculate_zones().tainted

    def can_compensate(self, step_name: str) -> bool:
        """Whether a failure may still undo the step."""
        return not self.is_tainted(step_name) and step_name not in self.completed_pivots
