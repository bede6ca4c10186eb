"""What a saga is declared to be, as values: its steps, how each is tried, undone and told of."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from sagaz_es.core.decide import Retry, Rules, Wait
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.errors import DefinitionError
from sagaz_es.sagas.typed import ContextType
from sagaz_es.sagas.typed import context_type as typed_as

if TYPE_CHECKING:
    from sagaz_es.sagas.context import StepContext
    from sagaz_es.sagas.saga import Saga

_DEFAULT_RETRY = Retry()


class Hooks(Struct, frozen=True):
    """Functions told of one step: `(ctx, step)`, with a result or an error as third. What they
    raise is logged, and changes nothing."""

    on_enter: Callable[..., Any] | None = None  # before each attempt
    on_success: Callable[..., Any] | None = None  # (ctx, step, result)
    on_failure: Callable[..., Any] | None = None  # (ctx, step, error), when it failed for good
    on_exit: Callable[..., Any] | None = None  # last, after either
    on_compensate: Callable[..., Any] | None = None  # before its compensation


_NO_HOOKS = Hooks()


class CompensationType(StrEnum):
    """How a step is undone."""

    MECHANICAL = "mechanical"  # what was done is taken back
    SEMANTIC = "semantic"  # something else makes up for it
    MANUAL = "manual"  # a person sees to it, and retries or skips the stuck compensation


@dataclass(frozen=True, slots=True)
class Compensation:
    """How one step is undone. `passes_result`: the function takes (result, ctx) instead of
    (ctx); `passes_undone`: and behind that what the compensations before it returned, by step."""

    function: Callable[..., Any]
    passes_result: bool
    retry: Retry
    timeout_seconds: float
    on_unknown: bool = False
    type: CompensationType = CompensationType.MECHANICAL
    passes_undone: bool = False

    @property
    def takes(self) -> tuple[str, ...]:
        """What the function is called with, by name."""
        result = ("result",) if self.passes_result else ()
        return (*result, "ctx", *(("compensation_results",) if self.passes_undone else ()))

    def arguments(self, step: str, context: StepContext) -> tuple[Any, ...]:
        """What the function is called with."""
        given: tuple[Any, ...] = (context,)
        if self.passes_result:
            given = (context.result_of(step), context)
        return (*given, context.compensation_results) if self.passes_undone else given


class RecoveryAction(StrEnum):
    """What a forward recovery handler, or a person, decides about a step behind a pivot."""

    RETRY = "retry"
    RETRY_WITH_ALTERNATE = "retry_with_alternate"  # with what the handler changed in the context
    SKIP = "skip"  # it counts as done; what depends on it runs
    MANUAL_INTERVENTION = "manual_intervention"  # the saga waits for a person
    COMPENSATE_PIVOT = "compensate_pivot"  # everything is undone, the pivots too

    @classmethod
    def _missing_(cls, value: object) -> RecoveryAction | None:
        return _RECOVERY_IN_SAGAZ.get(value)


_RECOVERY_IN_SAGAZ: dict[object, RecoveryAction] = {
    "retry_alt": RecoveryAction.RETRY_WITH_ALTERNATE,
    "manual": RecoveryAction.MANUAL_INTERVENTION,
    "compensate": RecoveryAction.COMPENSATE_PIVOT,
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """The handler of a step's failure behind a pivot: `(ctx, error) -> RecoveryAction`."""

    function: Callable[..., Any]
    max_retries: int = 3  # how often it may decide
    timeout_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """One step: its place in the graph, its code, and how it is tried."""

    name: str
    function: Callable[..., Any]
    depends_on: tuple[str, ...] | None = None  # None: not named; written order may decide
    retry: Retry = _DEFAULT_RETRY
    timeout_seconds: float = 60.0
    pivot: bool = False
    at_most_once: bool = False
    effects: bool = True
    compensation: Compensation | None = None
    recovery: Recovery | None = None
    resolve: Callable[..., Any] | str | None = None  # (ctx) -> did an at-most-once step happen?
    hooks: Hooks = _NO_HOOKS
    wait: Wait | None = None
    idempotency_key: str | None = None
    description: str | None = None
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    no_retry: tuple[type[BaseException], ...] = ()
    left: frozenset[str] = frozenset()  # options that nobody gave
    child: str = ""  # name of the saga that it starts; its function says with what
    child_saga: type[Saga] | Saga | None = None  # None: only the name is known
    result_keys: tuple[str, ...] | None = None  # of the child's context; None: all, not merged
    for_each: bool = False  # it starts a saga for each item that its function returns

    def node(self, depends_on: tuple[str, ...]) -> StepNode:
        """The step as the recorded graph has it."""
        undo = self.compensation
        return StepNode(
            self.name,
            depends_on,
            pivot=self.pivot,
            at_most_once=self.at_most_once,
            effects=self.effects,
            compensable=undo is not None or bool(self.child),
            on_unknown=bool(self.child) or (undo is not None and undo.on_unknown),
            child=f"{self.child}*" if self.for_each else self.child,
        )


@dataclass(frozen=True, slots=True)
class RecordedSaga:
    """What `Saga.migrate` is shown of a saga that other code has begun."""

    saga_id: str
    definition: str  # its fingerprint
    status: str
    context: dict[str, Any]
    completed_steps: tuple[str, ...]


class Definition:
    """A saga's steps, checked. Raises DefinitionError and its kin when they do not fit together."""

    def __init__(
        self,
        name: str,
        steps: Iterable[StepDefinition],
        *,
        rules: Rules,
        snapshot_policy: str = "",
        listeners: Iterable[Any] = (),
        deadline_us: int = 0,
        compatible_with: Iterable[str] = (),
        migrate: Callable[[RecordedSaga], Mapping[str, Any] | None] | None = None,
        max_concurrent: int = 0,
        start_interval_us: int = 0,
        context_type: Any = None,
    ) -> None:
        self.name = name
        self.context_type: ContextType | None = None  # what its context holds
        if context_type is not None:
            self.context_type = typed_as(context_type)
        self.max_concurrent = max_concurrent  # sagas that one engine runs at once; 0: any number
        self.start_interval_us = start_interval_us  # between two that begin; 0: none
        self.listeners = tuple(listeners)
        self.deadline_us = deadline_us  # after its start; 0: none
        self.snapshot_policy = snapshot_policy
        self.compatible_with = frozenset(compatible_with)
        self.migrate = migrate
        listed = tuple(steps)
        self.graph = Graph(_nodes(listed))
        self.steps = {step.name: step for step in listed}
        self.coroutines = frozenset(  # looked at once: every attempt asks
            step.name for step in listed if inspect.iscoroutinefunction(step.function)
        )
        self.rules = structs.replace(
            rules,
            recoverable=frozenset(step.name for step in listed if step.recovery is not None),
            waits={step.name: step.wait for step in listed if step.wait is not None},
            resolvable=frozenset(step.name for step in listed if step.resolve is not None),
            manual=frozenset(
                step.name
                for step in listed
                if step.compensation is not None
                and step.compensation.type is CompensationType.MANUAL
            ),
        )
        for step in listed:
            if step.child_saga is not None:
                check_child(name, step, known_steps(step.child_saga))
        self.observed = bool(self.listeners) or any(s.hooks != _NO_HOOKS for s in listed)
        keys: dict[str, str] = {}
        for step in listed:
            key = step.idempotency_key or step.name
            if keys.setdefault(key, step.name) != step.name:
                raise DefinitionError(
                    f"saga {name!r}: steps {keys[key]!r} and {step.name!r} have the same "
                    f"idempotency key {key!r}: give one of them another idempotency_key"
                )


def known_steps(saga: type[Saga] | Saga) -> Iterable[StepDefinition]:
    """What is known of a saga's steps without making one."""
    if isinstance(saga, type):
        return saga._collected
    return saga.__dict__.get("_added", ()) or type(saga)._collected


def check_child(parent: str, step: StepDefinition, of_child: Iterable[StepDefinition]) -> None:
    """Raises DefinitionError where nobody said whether there is a way back behind a step whose saga
    has a pivot: once that has passed, the step cannot be undone any more, and what its own saga did
    before it would be undone beside it."""
    pivots = [each.name for each in of_child if each.pivot]
    if pivots and "pivot" in step.left:
        raise DefinitionError(
            f"saga {parent!r}: step {step.name!r} starts sagas of {step.child!r}, which have a "
            f"pivot, {pivots[0]!r}: once that has completed, the step cannot be undone. Write "
            "pivot=True at the step, and it is a pivot here, too; or pivot=False, if what comes "
            "before the step may be undone while the child's effects stand"
        )


def _nodes(steps: Sequence[StepDefinition]) -> Iterable[StepNode]:
    """Steps that name no dependency anywhere run in written order; else an unnamed one is a
    root."""
    in_order = all(step.depends_on is None for step in steps)
    before: tuple[str, ...] = ()
    for step in steps:
        yield step.node(before if in_order else step.depends_on or ())
        before = (step.name,)
