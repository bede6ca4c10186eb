"""The plan of going back as a value, under sagaz's names: which steps are undone after which.

For programs that undo by hand, in one process and without a log (`execute_compensations`). An
engine goes by the recorded graph (`core.graph`, `core.decide`), with the same order and strategies.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sagaz_es.core.decide import CompensationFailureStrategy
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.errors import CircularDependencyError, SagaDependencyError
from sagaz_es.sagas.decorators import takes_undone
from sagaz_es.sagas.definition import CompensationType


@dataclass(frozen=True, slots=True)
class CompensationNode:
    """How one step is undone, and what it depends on."""

    step_id: str
    compensation_fn: Callable[..., Any] | None = None
    depends_on: list[str] = field(default_factory=list)
    compensation_type: CompensationType = CompensationType.MECHANICAL
    description: str | None = None
    max_retries: int = 3
    timeout_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class CompensationResult:
    """How going back went."""

    success: bool
    executed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
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

    def set_result(self, step_id: str, result: Any) -> None:
        self.compensation_results[step_id] = result

    def to_dict(self) -> dict[str, Any]:
        """A plain record; the time as text."""
        return {
            "saga_id": self.saga_id,
            "step_id": self.step_id,
            "original_context": self.original_context,
            "compensation_results": self.compensation_results,
            "metadata": self.metadata,
            "created_at": self.created_at.isoformat(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SagaCompensationContext:
        """The reverse of `to_dict`."""
        fields = dict(data)
        at = fields.pop("created_at", None)
        created_at = datetime.fromisoformat(at) if at else datetime.now(UTC)
        return cls(**fields, created_at=created_at)


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
            list(depends_on or ()),
            kind,
            description,
            max_retries,
            timeout_seconds,
        )

    def mark_step_executed(self, step_id: str) -> None:
        self._executed[step_id] = None

    def unmark_step_executed(self, step_id: str) -> None:
        self._executed.pop(step_id, None)

    @property
    def executed_steps(self) -> list[str]:
        """As `get_executed_steps`."""
        return self.get_executed_steps()

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

    async def execute_compensations(
        self,
        context: dict[str, Any] | SagaCompensationContext,
        failure_strategy: CompensationFailureStrategy | str = (
            CompensationFailureStrategy.CONTINUE_ON_ERROR
        ),
        saga_id: str | None = None,
    ) -> CompensationResult:
        """Undo the steps that ran, each once its dependents are done with; a failure is a result.

        A function takes the context, and as a second argument what those before it returned, if it
        is called `compensation_results` or `comp_results`. With RETRY_THEN_CONTINUE a node is tried
        `max_retries` + 1 times, else once.
        """
        if isinstance(context, dict):
            context = SagaCompensationContext(saga_id or "", "", context)
        started = time.monotonic()
        try:
            graph = self._graph()
        except (CircularDependencyError, SagaDependencyError) as error:
            return CompensationResult(False, errors={"_graph": error})
        undoing = _Undoing(self, graph, context, CompensationFailureStrategy(failure_strategy))
        return await undoing.run(started)

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
        return Graph(StepNode(name, tuple(node.depends_on)) for name, node in self.nodes.items())


class _Undoing:
    """One run of compensations."""

    def __init__(
        self,
        plan: SagaExecutionGraph,
        graph: Graph,
        context: SagaCompensationContext,
        strategy: CompensationFailureStrategy,
    ) -> None:
        self._plan, self._graph, self._context, self._strategy = plan, graph, context, strategy
        self._order = [name for level in plan.get_compensation_order() for name in level]
        self._done = {name: asyncio.Event() for name in self._order}
        self._executed: list[str] = []
        self._skipped: list[str] = []
        self._errors: dict[str, BaseException] = {}

    async def run(self, started: float) -> CompensationResult:
        await asyncio.gather(*(self._undo(name) for name in self._order))
        return CompensationResult(
            not self._errors,
            self._executed,
            list(self._errors),
            self._skipped,
            dict(self._context.compensation_results),
            self._errors,
            (time.monotonic() - started) * 1000,
        )

    async def _undo(self, name: str) -> None:
        before = self._graph.dependents[name] & self._done.keys()
        for other in before:
            await self._done[other].wait()
        try:
            if self._is_skipped(before):
                self._skipped.append(name)
            else:
                await self._try(self._plan.nodes[name])
                self._executed.append(name)
        except Exception as error:
            self._errors[name] = error
        finally:
            self._done[name].set()

    def _is_skipped(self, before: frozenset[str]) -> bool:
        if self._strategy is CompensationFailureStrategy.FAIL_FAST:
            return bool(self._errors)
        if self._strategy is CompensationFailureStrategy.SKIP_DEPENDENTS:
            return any(other in self._errors or other in self._skipped for other in before)
        return False

    async def _try(self, node: CompensationNode) -> None:
        function = node.compensation_fn
        assert function is not None
        arguments: tuple[Any, ...] = (self._context.original_context,)
        if takes_undone(function):
            arguments += (self._context.compensation_results,)
        retries = node.max_retries
        if self._strategy is not CompensationFailureStrategy.RETRY_THEN_CONTINUE:
            retries = 0
        for attempt in range(retries + 1):
            try:
                async with asyncio.timeout(node.timeout_seconds):
                    result = function(*arguments)
                    if inspect.isawaitable(result):
                        result = await result
            except Exception:
                if attempt == retries:
                    raise
                await asyncio.sleep(min(30.0, 0.1 * 2**attempt))
            else:
                if result is not None:
                    self._context.set_result(node.step_id, result)
                return
