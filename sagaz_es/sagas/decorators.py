"""`@action`, `@child`, `@compensate`, `@forward_recovery`: each leaves a mark on its method.

The marks of a class become its definition (`collecting.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sagaz_es.core.decide import Retry, Wait
from sagaz_es.errors import ConfigurationError, DefinitionError
from sagaz_es.sagas import options as check
from sagaz_es.sagas.definition import (
    Compensation,
    CompensationType,
    Hooks,
    Recovery,
    StepDefinition,
)
from sagaz_es.sagas.inspection import Inspection

if TYPE_CHECKING:
    from sagaz_es.sagas.saga import Saga

F = TypeVar("F", bound=Callable[..., Any])
MARK = "__sagaz_es_step__"
US = 1_000_000


class LeftInt(int):
    """A default: what the saga or its configuration says goes before it."""


class LeftFloat(float):
    """As LeftInt."""


RETRIES, TIMEOUT, DELAY = LeftInt(3), LeftFloat(60), LeftFloat(0.1)
LEAVABLE = ("max_retries", "timeout_seconds", "retry_delay_seconds")


def _hooks(options: Mapping[str, Any]) -> Hooks:
    return Hooks(*(options.get(name) for name in Hooks.__struct_fields__))


@dataclass(frozen=True, slots=True)
class CompensationMark:
    step: str
    compensation: Compensation
    on_compensate: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class RecoveryMark:
    step: str
    recovery: Recovery


Mark = StepDefinition | CompensationMark | RecoveryMark


def _refuse_bare(decorator: str, name: Any, more: str = "") -> None:
    if callable(name):
        called = getattr(name, "__name__", "charge")
        raise DefinitionError(
            f"@{decorator} takes the name of a step: write "
            f'@{decorator}("charge"{more}) above {called}'
        )


def _marked(function: F, mark: Mark) -> F:
    known = getattr(function, MARK, None)
    if known is not None:
        raise DefinitionError(
            f"{getattr(function, '__name__', function)} is {spelled(mark)} and {spelled(known)}: "
            "a method is one of them; write two methods"
        )
    setattr(function, MARK, mark)
    return function


def spelled(mark: Mark) -> str:
    """The decorator that made it."""
    if isinstance(mark, StepDefinition):
        return f"@{'child' if mark.child else 'action'}({mark.name!r})"
    kind = "compensate" if isinstance(mark, CompensationMark) else "forward_recovery"
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
        return Wait(signal, int(check.seconds(whose, "wait_seconds", limit) * US))
    if delay is not None:
        delay = check.seconds(whose, "delay_seconds", delay, zero=True)
        return Wait(delay_us=max(1, int(delay * US)))
    return None


def step_of(
    name: str, function: Callable[..., Any], options: dict[str, Any], *, method: bool = True
) -> StepDefinition:
    """A definition from the options of `@action` (a `method`) and `add_step`, which share their
    meaning."""
    check.step_name(name)
    whose = f"step {name!r}"
    depends_on = options["depends_on"]
    if depends_on is not None:
        depends_on = check.names(whose, "depends_on", depends_on, "step names")
    pivot = options["pivot"]
    if pivot is None and "child" in options:  # nobody said; an @action has no child
        options = {**options, "pivot": False}
    check.flags(whose, options, "pivot", "at_most_once", "effects")
    if "for_each" in options:  # an @action has no child
        check.flags(whose, options, "for_each")
    check.texts(whose, options, "idempotency_key", "wait_for")
    check.functions(whose, options, *Hooks.__struct_fields__)
    check.check_resolve(whose, options, method)
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
        left=_left(options, pivot),
        **_child_of(name, options),
    )


def _left(options: Mapping[str, Any], pivot: Any) -> frozenset[str]:
    """The options that nobody gave, of those that somebody else may have a word about."""
    numbers = {key for key in LEAVABLE if isinstance(options[key], LeftInt | LeftFloat)}
    return frozenset(numbers | {"pivot"} if pivot is None else numbers)


def _retry(whose: str, most: Any, delay: Any, cap: Any, of: str = "") -> Retry:
    return Retry(
        check.count(whose, f"max_retries{of}", most),
        int(check.seconds(whose, f"retry_delay_seconds{of}", delay, zero=True) * US),
        int(check.seconds(whose, f"max_retry_delay_seconds{of}", cap) * US),
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
    given = isinstance(saga, Inspection) or (
        isinstance(saga, type) and issubclass(saga, Inspection)
    )
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
    return saga.registered_name() if isinstance(saga, type) else saga.name


def action(
    name: str,
    depends_on: Iterable[str] | None = None,
    *,
    max_retries: int = RETRIES,
    retry_delay_seconds: float = DELAY,
    max_retry_delay_seconds: float = 30.0,
    timeout_seconds: float = TIMEOUT,
    pivot: bool = False,
    at_most_once: bool = False,
    effects: bool = True,
    idempotency_key: str | None = None,
    description: str | None = None,
    retry_on: tuple[type[BaseException], ...] = (Exception,),
    no_retry: tuple[type[BaseException], ...] = (),
    resolve: Callable[..., Any] | str | None = None,
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
    it. `at_most_once`: never run again after an attempt of unknown outcome; then `resolve` (a
    function `(ctx)` or `(self, ctx)`, or a method's name) is asked whether it happened (its result,
    or True; False; None: a person has to say).
    `wait_for`: it starts when its dependencies are done and this signal has come (`ctx.signal` is
    its payload), and fails after `wait_seconds` without one (None: it waits for ever).
    `delay_seconds`: it starts that long after its dependencies are done. Both survive restarts.
    `effects=False`: it only computes. `on_…`: told of the step, see Hooks. `aggregate_type` and
    `event_type` are accepted for sagaz and unused.
    """
    options = dict(locals())
    _refuse_bare("action", name)

    def mark(function: F) -> F:
        return _marked(function, step_of(name, function, options))

    return mark


def child(
    name: str,
    saga: type[Saga] | Saga | str = "",
    depends_on: Iterable[str] | None = None,
    *,
    result_keys: Iterable[str] | None = None,
    for_each: bool = False,
    max_retries: int = RETRIES,
    retry_delay_seconds: float = DELAY,
    max_retry_delay_seconds: float = 30.0,
    timeout_seconds: float = TIMEOUT,
    pivot: bool | None = None,
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
    `pivot`: no way back after it; has to be said, True or False, of a child that has a pivot.
    `for_each`: the method returns a list, and a child is started for each item, side by side (at
    most 1,000). The result is the list of what they ended with; if one fails, all are taken back.
    """
    options: dict[str, Any] = {**locals(), "child": "" if saga is None else saga}
    options.update(at_most_once=False, effects=True, idempotency_key=None)
    _refuse_bare("child", name, ", PaymentSaga")

    def mark(function: F) -> F:
        return _marked(function, step_of(name, function, options))

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
        undo = compensation_of(
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
        return _marked(function, CompensationMark(for_step, undo, on_compensate))

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
        return _marked(function, RecoveryMark(for_step, recovery))

    return mark


def compensation_of(
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
