"""Steps as values to look at: what was declared of them, and what became of them in a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sagaz_es.codec.values import from_text
from sagaz_es.core.state import PENDING, SagaState, SagaStepStatus
from sagaz_es.core.zones import zones_of
from sagaz_es.errors import SagaStepError

if TYPE_CHECKING:
    from sagaz_es.sagas.definition import Definition, StepDefinition


@dataclass(frozen=True, slots=True)
class SagaStepDefinition:
    """A step as it was declared, with its compensation."""

    step_id: str
    forward_fn: Callable[..., Any]
    compensation_fn: Callable[..., Any] | None = None
    depends_on: tuple[str, ...] = ()
    compensation_type: str = "mechanical"
    timeout_seconds: float = 60.0
    compensation_timeout_seconds: float = 30.0
    max_retries: int = 3
    description: str | None = None
    on_enter: Callable[..., Any] | None = None
    on_success: Callable[..., Any] | None = None
    on_failure: Callable[..., Any] | None = None
    on_exit: Callable[..., Any] | None = None
    on_compensate: Callable[..., Any] | None = None
    pivot: bool = False
    idempotency_key: str | None = None

    @property
    def name(self) -> str:
        return self.step_id


@dataclass(frozen=True, slots=True)
class SagaStep:
    """A step in a run: pending before it."""

    name: str
    action: Callable[..., Any]
    compensation: Callable[..., Any] | None = None
    status: SagaStepStatus = SagaStepStatus.PENDING
    result: Any = None
    error: BaseException | None = None
    idempotency_key: str = ""
    max_retries: int = 3
    timeout: float = 60.0
    compensation_timeout: float = 30.0
    retry_count: int = 0  # attempts after the first
    pivot: bool = False
    tainted: bool = False  # a completed pivot depends on it: it is not undone any more
    child: str = ""  # name of the saga that it starts, and that is taken back to undo it

    def can_compensate(self) -> bool:
        """Whether a failure may still undo it."""
        return (self.compensation is not None or bool(self.child)) and not self.tainted


def declared(definition: Definition) -> list[SagaStepDefinition]:
    """The steps in written order."""
    return [
        _declared(step, definition.graph.by_name[name].depends_on)
        for name, step in definition.steps.items()
    ]


def _declared(step: StepDefinition, depends_on: tuple[str, ...]) -> SagaStepDefinition:
    undo, hooks = step.compensation, step.hooks
    return SagaStepDefinition(
        step.name,
        step.function,
        undo.function if undo is not None else None,
        depends_on,
        str(undo.type) if undo is not None else "mechanical",
        timeout_seconds=step.timeout_seconds,
        compensation_timeout_seconds=undo.timeout_seconds if undo is not None else 30.0,
        max_retries=step.retry.max_retries,
        description=step.description,
        on_enter=hooks.on_enter,
        on_success=hooks.on_success,
        on_failure=hooks.on_failure,
        on_exit=hooks.on_exit,
        on_compensate=hooks.on_compensate,
        pivot=step.pivot,
        idempotency_key=step.idempotency_key,
    )


def levels(definition: Definition) -> list[list[SagaStepDefinition]]:
    """Steps that could run side by side, level by level. A step does not wait for its level."""
    known = {step.name: step for step in declared(definition)}
    return [[known[name] for name in level] for level in definition.graph.levels]


def in_run(
    definition: Definition, state: SagaState | None, saga_id: str, error: BaseException | None
) -> list[SagaStep]:
    """The steps in written order, with what became of them."""
    tainted: frozenset[str] = frozenset()
    if state is not None:
        tainted = zones_of(definition.graph, state.completed_steps).tainted
    steps = []
    for name, step in definition.steps.items():
        now = state.step(name) if state is not None else PENDING
        undo = step.compensation
        failure: BaseException | None = None
        if now.error_type:
            own = state is not None and state.failed_step == name and not state.missed_deadline
            failure = (
                error
                if own and error is not None
                else SagaStepError(name, now.error_type, now.error_message)
            )
        steps.append(
            SagaStep(
                name,
                step.function,
                undo.function if undo is not None else None,
                SagaStepStatus(now.status),
                from_text(now.result) if now.result else None,
                failure,
                f"{saga_id}/{step.idempotency_key or name}",
                step.retry.max_retries,
                step.timeout_seconds,
                undo.timeout_seconds if undo is not None else 30.0,
                max(0, now.attempt - 1),
                step.pivot,
                name in tainted,
                step.child,
            )
        )
    return steps
