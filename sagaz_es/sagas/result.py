"""What callers get: a saga's result, and a handle on one that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sagaz_es.codec.values import from_text
from sagaz_es.core.decide import completed_pivots
from sagaz_es.core.effects import standing_steps
from sagaz_es.core.graph import Graph
from sagaz_es.core.state import SagaState, SagaStatus
from sagaz_es.core.zones import zones_of
from sagaz_es.errors import (
    SagaCompensationError,
    SagaExecutionError,
    SagaStepError,
    SagaTimeoutError,
    StepNotFound,
)
from sagaz_es.snapshots import from_us

HAS_RESULT = frozenset({"completed", "stale", "compensating", "compensated", "compensation_failed"})
"""Statuses of steps that have done their work."""


@dataclass(slots=True)
class SagaResult:
    """How a saga ended. `context` is the final one; `error` the failing step's exception (its own
    where this process ran it, else a SagaStepError); `steps` maps step to status."""

    success: bool  # every step is done
    saga_name: str
    status: SagaStatus
    completed_steps: int  # those that did their work, whether undone since or not
    total_steps: int
    error: BaseException | None = None
    execution_time: float = 0.0  # seconds, from its first to its last event
    context: dict[str, Any] = field(default_factory=dict)
    compensation_errors: list[SagaCompensationError] = field(default_factory=list)
    pivot_reached: bool = False
    committed_step_names: list[str] = field(default_factory=list)  # effects that stand
    tainted_step_names: list[str] = field(default_factory=list)  # locked by a completed pivot
    forward_recovery_needed: bool = False  # it waits for a decision (`Engine.decide_recovery`)
    rollback_boundary: str | None = None  # the last completed pivot
    saga_id: str = ""
    steps: dict[str, str] = field(default_factory=dict)
    unknown_step_names: list[str] = field(default_factory=list)  # nobody knows whether they stand
    children: dict[str, str] = field(default_factory=dict)  # step -> the saga that it started
    compensation_results: dict[str, Any] = field(
        default_factory=dict
    )  # by step; what they returned
    started_at: datetime | None = None  # UTC
    completed_at: datetime | None = None  # when it ended, however that was; None: it has not
    result_texts: Mapping[str, str] = field(default_factory=dict, repr=False)  # see result_of

    def result_of(self, step: str) -> Any:
        """What a step returned, whether it was undone since or not; None: nothing.

        Raises StepNotFound for a step that did not complete, with those that did.
        """
        text = self.result_texts.get(step)
        if text is None:
            known = tuple(self.result_texts)
            raise StepNotFound(self.saga_id, step, known, "has no completed step", "completed are")
        return from_text(text) if text else None

    @property
    def is_completed(self) -> bool:
        return self.status is SagaStatus.COMPLETED

    @property
    def is_rolled_back(self) -> bool:
        return self.status is SagaStatus.ROLLED_BACK

    @property
    def is_partially_committed(self) -> bool:
        return self.status is SagaStatus.PARTIALLY_COMMITTED

    @property
    def needs_intervention(self) -> bool:
        """A person has to look at it."""
        if self.forward_recovery_needed:
            return True
        unfinished = self.status is SagaStatus.EXECUTING  # parked by a step of unknown outcome
        waits = self.status in (SagaStatus.FAILED, SagaStatus.FORWARD_RECOVERY)
        return unfinished or waits


def result_of(
    state: SagaState,
    context: dict[str, Any],
    error: BaseException | None = None,
    undone: Mapping[str, str] | None = None,
    results: Mapping[str, str] | None = None,
) -> SagaResult:
    """The result of a saga that has ended. `undone`: what compensations returned, as JSON;
    `results`: what steps did."""
    graph = state.step_graph
    certain, maybe = standing_steps(state)
    # A step that only computes leaves nothing in doubt. (Recorded sagas have no graph.)
    maybe = [name for name in maybe if name not in graph.by_name or graph.by_name[name].effects]
    pivots = completed_pivots(state, graph)
    error = None if state.status == "completed" else error_of(state, error)
    steps = {name: "pending" for name in graph.order}
    steps.update({name: str(step.status) for name, step in state.steps.items()})
    status = SagaStatus(state.status)
    return SagaResult(
        success=status is SagaStatus.COMPLETED,
        saga_name=state.saga_name,
        status=status,
        # As sagaz counts: undone steps did their work, too.
        completed_steps=sum(
            1
            for step in state.steps.values()
            if step.status in ("completed", "compensating", "compensated", "compensation_failed")
        ),
        total_steps=len(steps),
        error=error,
        execution_time=((state.ended_at or state.updated_at) - state.started_at) / 1e6,
        context=context,
        compensation_errors=[
            SagaCompensationError(name, step.error_type, step.error_message)
            for name, step in state.steps.items()
            if step.status == "compensation_failed"
        ],
        pivot_reached=bool(pivots),
        committed_step_names=certain,
        tainted_step_names=_tainted(graph, pivots),
        forward_recovery_needed=status is SagaStatus.FORWARD_RECOVERY,
        rollback_boundary=pivots[-1] if pivots else None,
        saga_id=state.saga_id,
        steps=steps,
        unknown_step_names=maybe,
        children={n: state.step(n).child for n in graph.child_steps if state.step(n).child},
        compensation_results={step: from_text(text) for step, text in (undone or {}).items()},
        started_at=from_us(state.started_at) if state.started_at else None,
        completed_at=from_us(state.ended_at) if state.ended_at else None,
        result_texts=results or {},
    )


def error_of(state: SagaState, own: BaseException | None = None) -> BaseException | None:
    """What a saga failed with, as the log has it: its step's error (`own`, where that is the one
    that the step raised here), or that its deadline passed, with the step's error as its cause."""
    if state.missed_deadline:
        late = SagaTimeoutError(state.failure[1])
        late.__cause__ = _step_error(state, own) if state.failed_step else _last_tried(state)
        return late
    if not state.error_type:
        return own
    if state.failed_step:
        return _step_error(state, own)
    if state.error_type == SagaTimeoutError.__name__:
        return SagaTimeoutError(state.error_message)
    return SagaExecutionError(f"{state.error_type}: {state.error_message}")


def _step_error(state: SagaState, own: BaseException | None) -> BaseException:
    if own is not None and type(own).__name__ == state.error_type:
        return own
    return SagaStepError(state.failed_step, state.error_type, state.error_message)


def _last_tried(state: SagaState) -> BaseException | None:
    """The error of a step that was to be tried again."""
    for name, step in state.steps.items():
        if step.status == "pending" and step.error_type:
            return SagaStepError(name, step.error_type, step.error_message)
    return None


def _tainted(graph: Graph, pivots: tuple[str, ...]) -> list[str]:
    if not pivots:
        return []
    tainted = zones_of(graph, pivots).tainted
    return [name for name in graph.order if name in tainted]


class SagaHandle:
    """A saga that was started here, or by somebody else under the same id."""

    def __init__(
        self,
        saga_id: str,
        outcome: Callable[[], Awaitable[SagaResult]],
        waits_for: Callable[[], str] = str,
    ) -> None:
        """`waits_for`: what the start of a saga that has not begun waits for; empty if it has."""
        self.saga_id = saga_id
        self._outcome = outcome
        self.waits_for = waits_for

    async def result(self, timeout: float | None = None) -> SagaResult:  # noqa: ASYNC109 - the public name
        """Wait for the end. Raises TimeoutError after `timeout` seconds (the saga goes on; of one
        that nobody has begun it says so), EngineClosed if this engine stops first; and what its
        start was refused with, if that was later than `start` returned."""
        if timeout is None:
            return await self._outcome()
        try:
            async with asyncio.timeout(timeout) as limit:
                return await self._outcome()
        except TimeoutError:
            if not limit.expired():
                raise
            if why := self.waits_for():
                begins = f"saga {self.saga_id!r} has not begun within {timeout:g} s: {why}"
                raise TimeoutError(begins) from None
            waits = f"saga {self.saga_id!r} has not ended within {timeout:g} s"
            raise TimeoutError(f"{waits}; it goes on, and can be waited for again") from None
