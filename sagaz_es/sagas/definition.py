"""How a saga is declared: `Saga`, `@action`, `@compensate`, and the definition they are collected
into.

A definition is checked when the class is made: a duplicate name, a circle, an unknown dependency or
a compensation for an unknown step never reaches a run.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from msgspec import Struct, structs

from sagaz_es.core.decide import (
    CompensationFailureStrategy,
    ParallelFailureStrategy,
    Retry,
    Rules,
    Wait,
)
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.errors import ConfigurationError, DefinitionError
from sagaz_es.sagas import options as check
from sagaz_es.sagas.config import SagaConfig, checked, settings_of
from sagaz_es.sagas.inspection import Inspection, start_context
from sagaz_es.sagas.triggers import limits_of, register
from sagaz_es.sagas.typed import Contents, ContextType
from sagaz_es.sagas.typed import context_type as typed_as

if TYPE_CHECKING:
    from sagaz_es.sagas.context import StepContext
    from sagaz_es.sagas.result import SagaResult

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__sagaz_es_step__"
_US = 1_000_000
_DEFAULT_RETRY = Retry()


class _LeftInt(int):
    """A default: what the saga or its configuration says goes before it."""


class _LeftFloat(float):
    """As _LeftInt."""


_RETRIES, _TIMEOUT, _DELAY = _LeftInt(3), _LeftFloat(60), _LeftFloat(0.1)
_LEAVABLE = ("max_retries", "timeout_seconds", "retry_delay_seconds")


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
    resolve: Callable[..., Any] | None = None  # (ctx) -> did an at-most-once step happen?
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


def _hooks(options: Mapping[str, Any]) -> Hooks:
    return Hooks(*(options.get(name) for name in Hooks.__struct_fields__))


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
        self.observed = bool(self.listeners) or any(s.hooks != _NO_HOOKS for s in listed)
        keys: dict[str, str] = {}
        for step in listed:
            key = step.idempotency_key
            if key is not None and keys.setdefault(key, step.name) != step.name:
                raise DefinitionError(
                    f"saga {name!r}: steps {keys[key]!r} and {step.name!r} have the same "
                    f"idempotency key {key!r}"
                )


def _nodes(steps: Sequence[StepDefinition]) -> Iterable[StepNode]:
    """Steps that name no dependency anywhere run in written order; else an unnamed one is a
    root."""
    in_order = all(step.depends_on is None for step in steps)
    before: tuple[str, ...] = ()
    for step in steps:
        yield step.node(before if in_order else step.depends_on or ())
        before = (step.name,)


# --- decorators ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _CompensationMark:
    step: str
    compensation: Compensation
    on_compensate: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class _RecoveryMark:
    step: str
    recovery: Recovery


_Mark = StepDefinition | _CompensationMark | _RecoveryMark


def _refuse_bare(decorator: str, name: Any, more: str = "") -> None:
    if callable(name):
        called = getattr(name, "__name__", "charge")
        raise DefinitionError(
            f"@{decorator} takes the name of a step: write "
            f'@{decorator}("charge"{more}) above {called}'
        )


def _marked(function: F, mark: _Mark) -> F:
    known = getattr(function, _MARK, None)
    if known is not None:
        raise DefinitionError(
            f"{getattr(function, '__name__', function)} is {_spelled(mark)} and {_spelled(known)}: "
            "a method is one of them; write two methods"
        )
    setattr(function, _MARK, mark)
    return function


def _spelled(mark: _Mark) -> str:
    """The decorator that made it."""
    if isinstance(mark, StepDefinition):
        return f"@{'child' if mark.child else 'action'}({mark.name!r})"
    kind = "compensate" if isinstance(mark, _CompensationMark) else "forward_recovery"
    return f"@{kind}({mark.step!r})"


def _wait(name: str, options: Mapping[str, Any]) -> Wait | None:
    whose = f"step {name!r}"
    signal, limit = options["wait_for"], options["wait_seconds"]
    delay = options["delay_seconds"]
    if signal is None and limit is not None:
        raise ConfigurationError(f"{whose}: wait_seconds goes with wait_for, a signal's name")
    if signal is not None and delay is not None:
        raise ConfigurationError(f"{whose}: either wait_for or delay_seconds, not both")
    if signal is not None:
        if limit is None:
            return Wait(signal)
        return Wait(signal, int(check.seconds(whose, "wait_seconds", limit) * _US))
    if delay is not None:
        delay = check.seconds(whose, "delay_seconds", delay, zero=True)
        return Wait(delay_us=max(1, int(delay * _US)))
    return None


def _step(name: str, function: Callable[..., Any], options: dict[str, Any]) -> StepDefinition:
    """A definition from the options of `@action` and `add_step`, which share their meaning."""
    check.step_name(name)
    whose = f"step {name!r}"
    depends_on = options["depends_on"]
    if depends_on is not None:
        depends_on = check.names(whose, "depends_on", depends_on, "step names")
    check.flags(whose, options, "pivot", "at_most_once", "effects")
    if "for_each" in options:  # an @action has no child
        check.flags(whose, options, "for_each")
    check.texts(whose, options, "idempotency_key", "wait_for")
    check.functions(whose, options, "resolve", *Hooks.__struct_fields__)
    return StepDefinition(
        name=name,
        function=function,
        depends_on=None if depends_on is None else tuple(dict.fromkeys(depends_on)),
        retry=_retry(
            whose,
            options["max_retries"],
            options["retry_delay_seconds"],
            options["max_retry_delay_seconds"],
        ),
        timeout_seconds=check.seconds(whose, "timeout_seconds", options["timeout_seconds"]),
        pivot=options["pivot"],
        at_most_once=options["at_most_once"],
        effects=options["effects"],
        idempotency_key=options["idempotency_key"],
        description=options["description"],
        retry_on=check.errors(whose, "retry_on", options["retry_on"]),
        no_retry=check.errors(whose, "no_retry", options["no_retry"]),
        resolve=options.get("resolve"),
        wait=_wait(name, options),
        hooks=_hooks(options),
        left=frozenset(key for key in _LEAVABLE if isinstance(options[key], _LeftInt | _LeftFloat)),
        **_child_of(name, options),
    )


def _retry(whose: str, most: Any, delay: Any, cap: Any, of: str = "") -> Retry:
    return Retry(
        check.count(whose, f"max_retries{of}", most),
        int(check.seconds(whose, f"retry_delay_seconds{of}", delay, zero=True) * _US),
        int(check.seconds(whose, f"max_retry_delay_seconds{of}", cap) * _US),
    )


def _child_of(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a step a child step."""
    saga, result_keys = options.get("child"), options.get("result_keys")
    for_each = options.get("for_each", False)
    if saga is None:
        if result_keys is not None or for_each:
            what = "for_each" if for_each else "result_keys"
            raise ConfigurationError(f"step {name!r}: {what} goes with child, a saga")
        return {}
    if for_each and result_keys is not None:
        raise ConfigurationError(
            f"step {name!r}: with for_each nothing is merged into the context, so it takes no "
            f"result_keys; read ctx.result_of({name!r}), a list"
        )
    if isinstance(result_keys, str):
        raise ConfigurationError(
            f"step {name!r}: result_keys is a list of keys, such as [{result_keys!r}]"
        )
    given = isinstance(saga, Saga) or (isinstance(saga, type) and issubclass(saga, Saga))
    if not given and not (isinstance(saga, str) and saga):
        raise ConfigurationError(
            f"step {name!r}: a child is a Saga class, a Saga object, or a saga's name, not {saga!r}"
        )
    called = saga if isinstance(saga, str) else saga_name_of(saga)
    keys = None if result_keys is None else tuple(result_keys)
    return {
        "child": called,
        "child_saga": saga if given else None,
        "result_keys": keys,
        "for_each": for_each,
    }


def saga_name_of(saga: type[Saga] | Saga) -> str:
    """The name of a class' or an object's sagas in the log."""
    return saga.name if isinstance(saga, Saga) else saga.registered_name()


def action(
    name: str,
    depends_on: Iterable[str] | None = None,
    *,
    max_retries: int = _RETRIES,
    retry_delay_seconds: float = _DELAY,
    max_retry_delay_seconds: float = 30.0,
    timeout_seconds: float = _TIMEOUT,
    pivot: bool = False,
    at_most_once: bool = False,
    effects: bool = True,
    idempotency_key: str | None = None,
    description: str | None = None,
    retry_on: tuple[type[BaseException], ...] = (Exception,),
    no_retry: tuple[type[BaseException], ...] = (),
    resolve: Callable[..., Any] | None = None,
    wait_for: str | None = None,
    wait_seconds: float | None = None,
    delay_seconds: float | None = None,
    on_enter: Callable[..., Any] | None = None,
    on_success: Callable[..., Any] | None = None,
    on_failure: Callable[..., Any] | None = None,
    on_exit: Callable[..., Any] | None = None,
    aggregate_type: str | None = None,
    event_type: str | None = None,
) -> Callable[[F], F]:
    """Declare a method `(self, ctx)` as a step.

    `max_retries=n` means n + 1 attempts, with waits of base, 2·base, 4·base … seconds, capped.
    `timeout_seconds` is for each attempt. `depends_on=[]` makes a root. `pivot`: no way back after
    it. `at_most_once`: never run again after an attempt of unknown outcome; then `resolve(ctx)` is
    asked whether it happened (its result, or True; False; None: a person has to say).
    `wait_for`: it starts when its dependencies are done and this signal has come (`ctx.signal` is
    its payload), and fails after `wait_seconds` without one (None: it waits for ever).
    `delay_seconds`: it starts that long after its dependencies are done. Both survive restarts.
    `effects=False`: it only computes. `on_…`: told of the step, see Hooks. `aggregate_type` and
    `event_type` are accepted for sagaz and unused.
    """
    options = dict(locals())
    _refuse_bare("action", name)

    def mark(function: F) -> F:
        return _marked(function, _step(name, function, options))

    return mark


def child(
    name: str,
    saga: type[Saga] | Saga | str = "",
    depends_on: Iterable[str] | None = None,
    *,
    result_keys: Iterable[str] | None = None,
    for_each: bool = False,
    max_retries: int = _RETRIES,
    retry_delay_seconds: float = _DELAY,
    max_retry_delay_seconds: float = 30.0,
    timeout_seconds: float = _TIMEOUT,
    pivot: bool = False,
    description: str | None = None,
    retry_on: tuple[type[BaseException], ...] = (Exception,),
    no_retry: tuple[type[BaseException], ...] = (),
    wait_for: str | None = None,
    wait_seconds: float | None = None,
    delay_seconds: float | None = None,
    on_enter: Callable[..., Any] | None = None,
    on_success: Callable[..., Any] | None = None,
    on_failure: Callable[..., Any] | None = None,
    on_exit: Callable[..., Any] | None = None,
) -> Callable[[F], F]:
    """Declare a method `(self, ctx)` as a step that is a saga of its own, a child.

    The method returns what the child starts with (a mapping; None: nothing) and does nothing else:
    retries and `timeout_seconds` are about it alone. The step is done when the child has completed,
    fails when the child ended otherwise, and is undone by taking the child back.
    `saga`: its class; or only its name, when engines elsewhere have the class.
    `result_keys`: these keys of the child's final context are the step's result and are merged into
    the context; None: all of it is the result (`ctx.result_of`), and nothing is merged.
    `for_each`: the method returns a list, and a child is started for each item, side by side (at
    most 1,000). The result is the list of what they ended with; if one fails, all are taken back.
    """
    options: dict[str, Any] = {**locals(), "child": "" if saga is None else saga}
    options.update(at_most_once=False, effects=True, idempotency_key=None)
    _refuse_bare("child", name, ", PaymentSaga")

    def mark(function: F) -> F:
        return _marked(function, _step(name, function, options))

    return mark


def compensate(
    for_step: str,
    compensation_type: CompensationType | str = CompensationType.MECHANICAL,
    *,
    max_retries: int = 2,
    retry_delay_seconds: float = 0.1,
    max_retry_delay_seconds: float = 30.0,
    timeout_seconds: float = 30,
    on_unknown: bool = False,
    description: str | None = None,
    on_compensate: Callable[..., Any] | None = None,
) -> Callable[[F], F]:
    """Declare a method `(self, ctx)` or `(self, result, ctx)` as the undoing of a step.

    What it returns is in the outcome (`SagaResult.compensation_results`), and later compensations
    read it: `ctx.compensation_results[step]`, or a last parameter `compensation_results`.
    `on_unknown`: also called for a step whose outcome is unknown (timed out, cancelled, crashed).
    `compensation_type=MANUAL`: it is not called by itself; the saga ends `failed` with a stuck
    compensation, and a person retries it (then it is called) or skips it, see `Engine`.
    """
    _refuse_bare("compensate", for_step)

    def mark(function: F) -> F:
        undo = _compensation(
            for_step,
            function,
            method=True,
            max_retries=max_retries,
            timeout_seconds=timeout_seconds,
            on_unknown=on_unknown,
            delay=retry_delay_seconds,
            cap=max_retry_delay_seconds,
            kind=compensation_type,
        )
        return _marked(function, _CompensationMark(for_step, undo, on_compensate))

    return mark


def forward_recovery(
    for_step: str, max_retries: int = 3, timeout_seconds: float = 30
) -> Callable[[F], F]:
    """Declare a method `(self, ctx, error) -> RecoveryAction` for a step's failure behind a pivot.

    Its decision is recorded. If it raises, hangs, or has decided `max_retries` times already, the
    saga waits for a person (`Engine.decide_recovery`).
    """
    _refuse_bare("forward_recovery", for_step)

    def mark(function: F) -> F:
        whose, of = f"step {for_step!r}", " of its recovery"
        recovery = Recovery(
            function,
            check.count(whose, f"max_retries{of}", max_retries),
            check.seconds(whose, f"timeout_seconds{of}", timeout_seconds),
        )
        return _marked(function, _RecoveryMark(for_step, recovery))

    return mark


def _compensation(
    step: str,
    function: Callable[..., Any],
    *,
    method: bool,
    max_retries: int = 2,
    timeout_seconds: float = 30,
    on_unknown: bool = False,
    delay: float = 0.1,
    cap: float = 30.0,
    kind: CompensationType | str = CompensationType.MECHANICAL,
) -> Compensation:
    whose, of = f"step {step!r}", " of its compensation"
    if not callable(function):
        raise DefinitionError(f"the compensation of {whose}: {function!r} is no function")
    taken = _positional(function)[method:]
    passes_undone = takes_undone(function)
    check.flags(whose, {"on_unknown": on_unknown}, "on_unknown")
    return Compensation(
        function,
        passes_result=len(taken) - passes_undone >= 2,
        retry=_retry(whose, max_retries, delay, cap, of),
        timeout_seconds=check.seconds(whose, f"timeout_seconds{of}", timeout_seconds),
        on_unknown=on_unknown,
        type=check.one_of(whose, "compensation_type", CompensationType, kind),
        passes_undone=passes_undone,
    )


_UNDONE = ("compensation_results", "comp_results")


def takes_undone(function: Callable[..., Any]) -> bool:
    """Whether a compensation's last parameter is for what those before it returned."""
    taken = _positional(function)
    return len(taken) > 1 and taken[-1] in _UNDONE


def _positional(function: Callable[..., Any]) -> list[str]:
    """The positional parameters that a function needs, and what it may be told of as the last."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return ["ctx"]
    return [
        p.name
        for p in parameters
        if p.kind in kinds and (p.default is p.empty or p.name in _UNDONE)
    ]


# --- the class ----------------------------------------------------------------------------------


class Saga(Inspection):
    """A saga: decorated methods in a subclass, or steps added by hand; not both.

    `saga_name` names it in the log; unset, it is the class name. A subclass is constructible
    without arguments, so that any process can carry it on after a crash.

    `compatible_with`: fingerprints of older definitions whose sagas this code may carry on and
    replay, as long as nothing has changed about the steps that have begun.

    `context_type`: a msgspec.Struct, dataclass, TypedDict or pydantic model. A context is checked
    against it before the saga starts, after an override, and after each step; steps read it by
    `ctx.typed(Class)`. ContextMismatch says where, what was found and what expected.
    """

    saga_name: ClassVar[str | None] = None
    failure_strategy: ClassVar[ParallelFailureStrategy | str] = (
        ParallelFailureStrategy.FAIL_FAST_WITH_GRACE
    )
    compensation_failure_strategy: ClassVar[CompensationFailureStrategy | str] = (
        CompensationFailureStrategy.RETRY_THEN_CONTINUE
    )
    grace_seconds: ClassVar[float] = 5.0
    listeners: ClassVar[Sequence[Any] | None] = ()  # unset or None: the configuration's
    deadline_seconds: ClassVar[float | None] = None
    replay_config: Any = None
    compatible_with: ClassVar[tuple[str, ...]] = ()
    context_type: Any = None
    _collected: ClassVar[tuple[StepDefinition, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._collected = _collect(cls)
        if isinstance(cls.compatible_with, str):
            raise DefinitionError(
                f"{cls.__name__}: compatible_with is a tuple of fingerprints, such as "
                f"({cls.compatible_with!r},)"
            )
        check.check_saga(cls.__name__, check.said_by(cls))
        if cls._collected:  # a base for others may have none
            Definition(cls.__name__, cls._collected, rules=Rules())
        if cls.context_type is not None:
            typed_as(cls.context_type)
        if cls._collected or cls.build is not Saga.build:
            register(cls)

    def __init__(
        self,
        name: str | None = None,
        config: Any = None,
        failure_strategy: ParallelFailureStrategy | str | None = None,
        retry_backoff_base: float | None = None,
        replay_config: Any = None,
        snapshot_storage: Any = None,
        *,
        version: str = "1.0",
        grace_seconds: float | None = None,
        compensation_failure_strategy: CompensationFailureStrategy | str | None = None,
        context: Mapping[str, Any] | None = None,
        context_type: Any = None,
    ) -> None:
        """`retry_backoff_base`: seconds, for steps that name no delay of their own. `version` is
        only shown. `snapshot_storage` holds the snapshots that `run` and `execute` leave, where the
        log is an embedded one. `context`: what `execute` starts with."""
        if isinstance(config, str):  # one of sagaz's two classes has the version here
            config, version = None, config
        if config is not None:
            checked(config)
        check.check_saga("Saga", {"saga_name": name})
        self._name = name
        if name is not None and self.saga_name is None:
            self.__dict__["saga_name"] = name
        self._config = config
        self._version = version
        self._added: list[StepDefinition] = []
        self._backoff = retry_backoff_base
        self.snapshot_storage = snapshot_storage
        if context_type is not None:
            self.context_type = context_type
        if context is not None:
            start_context(self).update(context)
        if failure_strategy is not None:
            self.set_failure_strategy(failure_strategy)
        if compensation_failure_strategy is not None:
            self.__dict__["compensation_failure_strategy"] = check.one_of(
                self.name,
                "compensation_failure_strategy",
                CompensationFailureStrategy,
                compensation_failure_strategy,
            )
        if grace_seconds is not None:
            seconds = check.seconds(self.name, "grace_seconds", grace_seconds, zero=True)
            self.__dict__["grace_seconds"] = seconds
        if replay_config is not None:
            check.check_saga(self.name, {"replay_config": replay_config})
            self.replay_config = replay_config

    @property
    def name(self) -> str:
        """Its name in the log."""
        # A subclass whose __init__ does not call ours still has a name and no added steps.
        return self.__dict__.get("_name") or self.saga_name or type(self).__name__

    @name.setter
    def name(self, name: str) -> None:
        self.__dict__["_name"] = name

    @property
    def version(self) -> str:
        """As given to the constructor; what decides about code is the fingerprint."""
        return str(self.__dict__.get("_version", "1.0"))

    @classmethod
    def registered_name(cls) -> str:
        """The name that sagas of this class have in the log."""
        return cls.saga_name or cls.__name__

    @classmethod
    def fingerprint(cls) -> str:
        """16 hex digits that change with the step graph: what a log knows this definition by.

        Of a saga built by hand ask the object: `saga.definition().graph.fingerprint`.
        """
        return Definition(cls.__name__, cls._collected, rules=Rules()).graph.fingerprint

    def migrate(self, saga: RecordedSaga) -> Mapping[str, Any] | None:
        """What to set in the context of a saga of a `compatible_with` definition before this code
        goes on with it. It only computes, as it may be called again; raising refuses the saga.
        """
        return None

    def add_step(
        self,
        name: str,
        action: Callable[..., Any],
        compensation: Callable[..., Any] | None = None,
        depends_on: Iterable[str] | None = None,
        timeout_seconds: float | None = None,
        compensation_timeout_seconds: float | None = None,
        max_retries: int = _RETRIES,
        description: str | None = None,
        *,
        timeout: float | None = None,
        compensation_timeout: float | None = None,
        dependencies: Iterable[str] | None = None,
        idempotency_key: str | None = None,
        pivot: bool = False,
        at_most_once: bool = False,
        effects: bool = True,
        on_unknown: bool = False,
        compensation_type: CompensationType | str = CompensationType.MECHANICAL,
        retry_delay_seconds: float = _DELAY,
        max_retry_delay_seconds: float = 30.0,
        retry_on: tuple[type[BaseException], ...] = (Exception,),
        no_retry: tuple[type[BaseException], ...] = (),
        resolve: Callable[..., Any] | None = None,
        wait_for: str | None = None,
        wait_seconds: float | None = None,
        delay_seconds: float | None = None,
        child: type[Saga] | Saga | str | None = None,
        result_keys: Iterable[str] | None = None,
        for_each: bool = False,
        on_enter: Callable[..., Any] | None = None,
        on_success: Callable[..., Any] | None = None,
        on_failure: Callable[..., Any] | None = None,
        on_exit: Callable[..., Any] | None = None,
        on_compensate: Callable[..., Any] | None = None,
    ) -> Self:
        """Add a step `action(ctx)`; the result can be chained, and awaited. With `child`, a saga,
        `action` says what that starts with (see `child`).

        Raises TypeError on a decorated saga, DefinitionError (a ValueError) on a duplicate name.
        """
        if type(self)._collected:
            raise TypeError(
                f"{type(self).__name__} declares its steps with @action; steps are added by hand "
                "only to a saga without decorated ones"
            )
        added = self.__dict__.setdefault("_added", [])
        if any(step.name == name for step in added):
            raise DefinitionError(f"step {name!r} is declared twice")
        options = {
            "depends_on": depends_on if depends_on is not None else dependencies,
            "max_retries": max_retries,
            "retry_delay_seconds": retry_delay_seconds,
            "max_retry_delay_seconds": max_retry_delay_seconds,
            "timeout_seconds": _first(timeout_seconds, timeout, _TIMEOUT),
            "pivot": pivot,
            "at_most_once": at_most_once,
            "effects": effects,
            "idempotency_key": idempotency_key,
            "description": description,
            "retry_on": retry_on,
            "no_retry": no_retry,
            "resolve": resolve,
            "wait_for": wait_for,
            "wait_seconds": wait_seconds,
            "delay_seconds": delay_seconds,
            "child": child,
            "result_keys": result_keys,
            "for_each": for_each,
            "on_enter": on_enter,
            "on_success": on_success,
            "on_failure": on_failure,
            "on_exit": on_exit,
            "on_compensate": on_compensate,
        }
        step = _step(name, action, options)
        check.check_call(f"step {name!r}", action, "ctx")
        if step.child and (at_most_once or not effects):
            raise ConfigurationError(
                f"step {name!r} is a saga of its own: at_most_once and effects are said of that "
                "saga's steps"
            )
        if compensation is not None:
            if step.child:
                raise DefinitionError(_own_undoing("", step))
            undo = _compensation(
                name,
                compensation,
                method=False,
                timeout_seconds=_first(compensation_timeout_seconds, compensation_timeout, 30.0),
                on_unknown=on_unknown,
                kind=compensation_type,
            )
            check.check_call(f"the compensation of step {name!r}", compensation, *undo.takes)
            step = replace(step, compensation=undo)
        added.append(step)
        return self

    def __await__(self) -> Any:
        """`await saga.add_step(…)`, as sagaz spells it, gives the saga."""
        return self
        yield

    async def build(self) -> Any:
        """To be overridden: adds the steps. Awaited by `execute` and `run`, and whenever the steps
        are asked for, while there are none; it must not wait for anything but `add_step`."""

    async def run(
        self, initial_context: Contents | None = None, saga_id: Any = None
    ) -> dict[str, Any]:
        """Run on the default log (SAGAZ_ES_LOG, else `sagaz-es.db`), as sagaz spells it.

        Gives the final context with "saga_id" in it, and raises the step's error: `Engine.run`
        gives a result instead. The same id twice is the same saga.
        """
        from sagaz_es.sagas import standalone

        return await standalone.run(self, initial_context, saga_id)

    async def execute(self) -> SagaResult:
        """Run on the default log with what `saga.context` holds; a failure is a result.

        The id is the object's (`saga.saga_id`): executed twice, it is one saga.
        """
        from sagaz_es.sagas import standalone

        return await standalone.execute(self)

    def definition(self) -> Definition:
        """Its steps, checked and bound to this object. Raises DefinitionError."""
        steps = type(self)._collected
        bound = tuple(_bind(step, self) for step in steps) if steps else _added(self)
        settings = settings_of(self.__dict__.get("_config"))
        if settings is not None:
            bound = tuple(_with_defaults(step, settings) for step in bound)
        strategy, listeners = self.failure_strategy, self.listeners or ()
        if settings is not None and not _says(self, "failure_strategy"):
            strategy = settings.failure_strategy
        if settings is not None and (self.listeners is None or not _says(self, "listeners")):
            listeners = settings.listeners
        backoff = self.__dict__.get("_backoff")
        if backoff is not None:
            bound = tuple(_backed_off(step, backoff) for step in bound)
        most, interval_us = limits_of(type(self))
        rules = Rules(
            ParallelFailureStrategy(strategy),
            int(self.grace_seconds * _US),
            compensation_failure=CompensationFailureStrategy(self.compensation_failure_strategy),
        )
        return Definition(
            self.name,
            bound,
            rules=rules,
            snapshot_policy=self._snapshot_policy(),
            listeners=listeners,
            deadline_us=int((self.deadline_seconds or 0) * _US),
            compatible_with=self.compatible_with,
            migrate=self.migrate,
            max_concurrent=most,
            start_interval_us=interval_us,
            context_type=self.context_type,
        )

    def _snapshot_policy(self) -> str:
        config = self.replay_config
        if config is None:
            config = getattr(settings_of(self.__dict__.get("_config")), "replay_config", None)
        return config.policy_text() if config is not None else ""


def _added(saga: Saga) -> tuple[StepDefinition, ...]:
    """Steps added by hand, by `build` if nobody has asked it yet."""
    if not saga.__dict__.get("_added") and type(saga).build is not Saga.build:
        building = saga.build()
        try:
            building.send(None)
        except StopIteration:
            pass
        else:
            building.close()
            raise ConfigurationError(
                f"saga {saga.name!r}: its build() waits for something; it may only add steps, as "
                "any process that carries the saga on has to build it"
            )
    return tuple(saga.__dict__.get("_added", ()))


def _says(saga: Saga, attribute: str) -> bool:
    """Whether the object or its class says something of its own here."""
    own = (kind for kind in type(saga).__mro__ if kind is not Saga)
    return attribute in saga.__dict__ or any(attribute in vars(kind) for kind in own)


def _with_defaults(step: StepDefinition, settings: SagaConfig) -> StepDefinition:
    if "max_retries" in step.left:
        retry = structs.replace(step.retry, max_retries=settings.default_max_retries)
        step = replace(step, retry=retry)
    if "timeout_seconds" in step.left:
        step = replace(step, timeout_seconds=float(settings.default_timeout))
    return step


def _backed_off(step: StepDefinition, seconds: float) -> StepDefinition:
    if "retry_delay_seconds" not in step.left:
        return step
    base = check.seconds(f"step {step.name!r}", "retry_backoff_base", seconds, zero=True)
    return replace(step, retry=structs.replace(step.retry, base_us=int(base * _US)))


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _bind(step: StepDefinition, saga: Saga) -> StepDefinition:
    undo = step.compensation
    if undo is not None:
        undo = replace(undo, function=_method(undo.function, saga))
    recovery = step.recovery
    if recovery is not None:
        recovery = replace(recovery, function=_method(recovery.function, saga))
    bound = _method(step.function, saga)
    return replace(step, function=bound, compensation=undo, recovery=recovery)


def _method(function: Any, saga: Saga) -> Callable[..., Any]:
    """Bound to the object, also where a wrapper is an object that can be called."""
    if hasattr(function, "__get__"):
        bound: Callable[..., Any] = function.__get__(saga)
        return bound
    return partial(function, saga)


def _collect(cls: type) -> tuple[StepDefinition, ...]:
    """Marked methods in written order, base classes first; an override replaces its base's step,
    and None drops it."""
    methods: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for attribute, value in vars(base).items():
            if hasattr(value, _MARK):
                methods[attribute] = value
            elif hasattr(getattr(value, "__func__", None), _MARK):  # static and class methods
                raise DefinitionError(
                    f"{cls.__name__}: {attribute} is a {type(value).__name__}, and no step or "
                    "compensation then: write it as a method, (self, ctx)"
                )
            elif attribute in methods:
                inherited = methods.pop(attribute)
                if value is not None:  # else a step would be gone, or not undone, without a word
                    raise DefinitionError(_undecorated(cls, base, attribute, inherited))
    steps: dict[str, StepDefinition] = {}
    marks: list[_CompensationMark | _RecoveryMark] = []
    for value in methods.values():
        mark = _running(value)
        _check_method(cls, mark)
        if not isinstance(mark, StepDefinition):
            marks.append(mark)
        elif mark.name in steps:
            raise DefinitionError(f"{cls.__name__}: step {mark.name!r} is declared twice")
        else:
            steps[mark.name] = mark
    for mark in marks:
        what = "compensation" if isinstance(mark, _CompensationMark) else "recovery handler"
        step = steps.get(mark.step)
        if step is None:
            known = ", ".join(repr(name) for name in steps) or "none"
            raise DefinitionError(
                f"{cls.__name__}: there is a {what} for {mark.step!r}, which is no step; "
                f"steps: {known}"
            )
        if isinstance(mark, _CompensationMark):
            if step.child:
                raise DefinitionError(_own_undoing(f"{cls.__name__}: ", step))
            twice = step.compensation is not None
            hooks = structs.replace(step.hooks, on_compensate=mark.on_compensate)
            steps[mark.step] = replace(step, compensation=mark.compensation, hooks=hooks)
        else:
            twice = step.recovery is not None
            steps[mark.step] = replace(step, recovery=mark.recovery)
        if twice:
            raise DefinitionError(f"{cls.__name__}: step {mark.step!r} has two {what}s")
    return tuple(steps.values())


def _running(value: Any) -> _Mark:
    """The mark of a class attribute. A decorator above ours copies the mark to its wrapper
    (functools.wraps), and the wrapper is what has to run."""
    mark: _Mark = getattr(value, _MARK)
    if isinstance(mark, StepDefinition):
        return mark if mark.function is value else replace(mark, function=value)
    if isinstance(mark, _CompensationMark):
        return replace(mark, compensation=replace(mark.compensation, function=value))
    return replace(mark, recovery=replace(mark.recovery, function=value))


def _check_method(cls: type, mark: _Mark) -> None:
    """Raises DefinitionError where it cannot be called as it will be."""
    takes: tuple[str, ...] = ("ctx",)
    if isinstance(mark, StepDefinition):
        what, function = f"step {mark.name!r}", mark.function
    elif isinstance(mark, _CompensationMark):
        what, function = f"the compensation of step {mark.step!r}", mark.compensation.function
        takes = mark.compensation.takes
    else:
        what, function = f"the recovery of step {mark.step!r}", mark.recovery.function
        takes = ("ctx", "error")
    check.check_call(f"{cls.__name__}: {what}", function, "self", *takes)


def _undecorated(cls: type, base: type, attribute: str, inherited: Any) -> str:
    mark: _Mark = getattr(inherited, _MARK)
    if isinstance(mark, StepDefinition):
        what = f"step {mark.name!r}"
    else:
        kind = "compensation" if isinstance(mark, _CompensationMark) else "recovery handler"
        what = f"{kind} of step {mark.step!r}"
    whose = "" if base is cls else f"{base.__name__}."
    return (
        f"{cls.__name__}: {whose}{attribute} overrides the {what} without its decorator: "
        f"repeat {_spelled(mark)[:-1]}, …) above it, or write {attribute} = None to drop it"
    )


def _own_undoing(where: str, step: StepDefinition) -> str:
    return (
        f"{where}step {step.name!r} is undone by taking its saga {step.child!r} back; "
        "what else undoes it belongs into a compensation of that saga"
    )


Factory = Callable[[str], Saga | Awaitable[Saga]]
"""Makes a saga by its name; sync or async."""
