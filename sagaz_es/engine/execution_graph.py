"""The plan of going back as a value, under sagaz's names: which steps are undone after which.

Nothing here runs anything. An engine goes by the recorded graph (`core.graph`, `core.decide`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.engine.definition import CompensationType


@dataclass(frozen=True, slots=True)
class CompensationNode:
    """How one step is undone, and what it depends on."""

    step_id: str
    compensation_fn: Callable[..., Any] | None = None
    depends_on: tuple[str, ...] = ()
    compensation_type: CompensationType = CompensationType.MECHANICAL
    description: str | None = None
    max_retries: int = 3
    timeout_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class CompensationResult:
    """How going back went."""

    success: bool
    executed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    results: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, BaseException] = field(default_factory=dict)
    execution_time_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class SagaCompensationContext:
    """What a compensation knows: the context, and what those before it returned."""

    saga_id: str
    step_id: str
    original_context: dict[str, Any] = field(default_factory=dict)
    compensation_results: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def get_result(self, step_id: str, default: Any = None) -> Any:
        """What the compensation of a step returned."""
        return self.compensation_results.get(step_id, default)


class SagaExecutionGraph:
    """Steps with dependencies, and the order in which those that ran are undone."""

    def __init__(self) -> None:
        self.nodes: dict[str, CompensationNode] = {}
        self._executed: dict[str, None] = {}

    def register_compensation(
        self,
        step_id: str,
        compensation_fn: Callable[..., Any] | None = None,
        depends_on: Iterable[str] | None = None,
        compensation_type: CompensationType | str = CompensationType.MECHANICAL,
        description: str | None = None,
        max_retries: int = 3,
        timeout_seconds: float = 30.0,
    ) -> None:
        """Add a step; without a function it has no compensation, and still orders the others."""
        kind = CompensationType(compensation_type)
        self.nodes[step_id] = CompensationNode(
            step_id,
            compensation_fn,
            tuple(depends_on or ()),
            kind,
            description,
            max_retries,
            timeout_seconds,
        )

    def mark_step_executed(self, step_id: str) -> None:
        self._executed[step_id] = None

    def unmark_step_executed(self, step_id: str) -> None:
        self._executed.pop(step_id, None)

    def get_executed_steps(self) -> list[str]:
        """In the order in which they were marked."""
        return list(self._executed)

    def get_compensation_order(self) -> list[list[str]]:
        """Levels of steps that could be undone side by side, dependents first; of steps that ran
        and have a compensation. Raises CircularDependencyError, SagaDependencyError."""
        graph = self._graph()
        wanted = {
            name
            for name in self._executed
            if name in self.nodes and self.nodes[name].compensation_fn is not None
        }
        return graph.undo_levels(wanted)

    def validate(self) -> None:
        """Raises CircularDependencyError, SagaDependencyError."""
        self._graph()

    def get_compensation_info(self, step_id: str) -> CompensationNode | None:
        return self.nodes.get(step_id)

    def clear(self) -> None:
        self.nodes.clear()
        self._executed.clear()

    def reset_execution(self) -> None:
        """Forget which steps ran; the steps stay."""
        self._executed.clear()

    def _graph(self) -> Graph:
        return Graph(StepNode(name, node.depends_on) for name, node in self.nodes.items())
