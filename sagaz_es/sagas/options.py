"""What authors write about steps, compensations and sagas, checked where it stands.

A wrong option is told when the class is made, by the step's and the option's name, and with what is
allowed: in the middle of a saga it would be the failure of a step.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from math import isfinite
from typing import Any, TypeVar

from sagaz_es.errors import ConfigurationError, DefinitionError
from sagaz_es.sagas.inputs import check_text

MAX_SECONDS = 100 * 365.25 * 86_400
"""A hundred years: more does not fit into the times of the log."""

E = TypeVar("E", bound=StrEnum)


def seconds(whose: str, what: str, value: Any, *, zero: bool = False) -> float:
    """A time in seconds. Raises ConfigurationError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not isfinite(value) or not (0 <= value if zero else 0 < value):
        least = "0 or more" if zero else "above 0"
        raise ConfigurationError(f"{whose}: {what} is a number of seconds {least}, not {value!r}")
    if value > MAX_SECONDS:
        raise ConfigurationError(f"{whose}: {what} is at most a hundred years, not {value!r} s")
    return float(value)


def count(whose: str, what: str, value: Any) -> int:
    """How often something is tried again. Raises ConfigurationError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"{whose}: {what} is a whole number, 0 or more, not {value!r}")
    return int(value)


def one_of(whose: str, what: str, kind: type[E], value: Any) -> E:
    """A member of an enumeration, or its text. Raises ConfigurationError."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(kind)
        raise ConfigurationError(f"{whose}: {what} is one of {known}, not {value!r}") from None


def step_name(value: Any) -> str:
    """Raises DefinitionError."""
    if not isinstance(value, str) or not value:
        raise DefinitionError(f"a step's name is a text that is not empty, not {value!r}")
    try:
        return check_text("a step's name", value)
    except ConfigurationError as error:
        raise DefinitionError(str(error)) from error


def names(whose: str, what: str, value: Any, of: str) -> tuple[str, ...]:
    """A list of texts; a single one is a mistake. Raises ConfigurationError."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(value)
    such_as = value if isinstance(value, str) else "reserve"
    raise ConfigurationError(
        f"{whose}: {what} is a list of {of}, such as [{such_as!r}], not {value!r}"
    )


def flags(whose: str, options: Mapping[str, Any], *which: str) -> None:
    """Raises ConfigurationError."""
    for what in which:
        if not isinstance(options[what], bool):
            raise ConfigurationError(f"{whose}: {what} is True or False, not {options[what]!r}")


def texts(whose: str, options: Mapping[str, Any], *which: str) -> None:
    """Texts that may be left out. Raises ConfigurationError."""
    for what in which:
        if options[what] is not None:
            check_text(f"{whose}: {what}", options[what])


def functions(whose: str, options: Mapping[str, Any], *which: str) -> None:
    """What may be left out, and is called. Raises ConfigurationError."""
    for what in which:
        function = options.get(what)
        if function is not None and not callable(function):
            raise ConfigurationError(f"{whose}: {what} is a function, not {function!r}")


def errors(whose: str, what: str, value: Any) -> tuple[type[BaseException], ...]:
    """Classes of exceptions. Raises ConfigurationError."""
    kinds = tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise ConfigurationError(
            f"{whose}: {what} is a tuple of exception classes, such as (TimeoutError,), not "
            f"{value!r}"
        )
    return kinds


def check_call(whose: str, function: Any, *arguments: str) -> None:
    """Raises DefinitionError where a plain function cannot be called with so many arguments, or
    does nothing when it is."""
    if not callable(function):
        raise DefinitionError(f"{whose}: {function!r} is no function")
    if not inspect.isfunction(function) and not inspect.ismethod(function):
        return
    if _yields(function):
        raise DefinitionError(
            f"{whose}: {function.__name__} yields, so a call of it does nothing: return instead"
        )
    # Of a wrapper its own parameters count, not those of what it wraps and may give more to.
    signature = inspect.signature(function, follow_wrapped=False)
    try:
        signature.bind(*arguments)
    except TypeError:
        raise DefinitionError(
            f"{whose}: {function.__name__}{signature} is called with ({', '.join(arguments)}): "
            f"write def {_name(function)}({', '.join(arguments)})"
        ) from None


def fits(function: Any, *arguments: str) -> bool:
    """Whether it can be called with so many arguments; of what is no plain function: yes."""
    try:
        check_call("", function, *arguments)
    except DefinitionError:
        return False
    return True


def check_resolve(whose: str, options: Mapping[str, Any], method: bool) -> None:
    """`resolve` of a step: a function `(ctx)`; of a `method` also `(self, ctx)`, or the name of
    one. Raises ConfigurationError, DefinitionError."""
    resolve = options.get("resolve")
    if resolve is None:
        return
    if not options["at_most_once"]:
        raise ConfigurationError(
            f"{whose}: resolve is asked about a step with at_most_once=True only: any other one "
            "runs again instead; add that, or leave resolve out"
        )
    if method and (isinstance(resolve, str) or fits(resolve, "self", "ctx")):
        return
    functions(whose, options, "resolve")
    check_call(f"{whose}: resolve", resolve, "ctx")


def _yields(function: Any) -> bool:
    if inspect.isasyncgenfunction(function):
        return True
    coroutine = inspect.CO_ITERABLE_COROUTINE  # @types.coroutine
    return inspect.isgeneratorfunction(function) and not function.__code__.co_flags & coroutine


def _name(function: Callable[..., Any]) -> str:
    return function.__name__ if function.__name__.isidentifier() else "step"


# --- the class ------------------------------------------------------------------------------------


def check_saga(whose: str, said: Mapping[str, Any]) -> None:
    """What a class or an object says about its sagas, by attribute. Raises ConfigurationError."""
    for attribute, value in said.items():
        _CHECKS[attribute](whose, attribute, value)


def check_compatible_with(whose: str, value: Any) -> None:
    """Fingerprints of other definitions; one that is none fits no saga, ever. Raises
    DefinitionError."""
    such_as = f"({value!r},)" if isinstance(value, str) else '("4a0e64f1b0cf3c0b",)'
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise DefinitionError(
            f"{whose}: compatible_with is a tuple of fingerprints, such as {such_as}"
        )
    for one in value:
        if not isinstance(one, str) or not _FINGERPRINT.fullmatch(one):
            raise DefinitionError(
                f"{whose}: compatible_with names fingerprints, 16 hex digits as `sagaz-es "
                f"versions` and Saga.fingerprint() show them, not {one!r}"
            )


_FINGERPRINT = re.compile("[0-9a-f]{16}")


def said_by(cls: type) -> dict[str, Any]:
    """What a class says itself; properties are asked later, of its objects."""
    return {
        attribute: value
        for attribute in _CHECKS
        if attribute in vars(cls) and not hasattr(value := vars(cls)[attribute], "__get__")
    }


def _saga_name(whose: str, what: str, value: Any) -> None:
    if value is not None and value != "":  # unset: the class' own name
        check_text(f"{whose}: {what}", value)


def _strategy(whose: str, what: str, value: Any) -> None:
    from sagaz_es.core.decide import ParallelFailureStrategy

    one_of(whose, what, ParallelFailureStrategy, value)


def _undoing(whose: str, what: str, value: Any) -> None:
    from sagaz_es.core.decide import CompensationFailureStrategy

    one_of(whose, what, CompensationFailureStrategy, value)


def _grace(whose: str, what: str, value: Any) -> None:
    seconds(whose, what, value, zero=True)


def _deadline(whose: str, what: str, value: Any) -> None:
    if value is not None:
        seconds(whose, what, value)


def _listeners(whose: str, what: str, value: Any) -> None:
    if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
        raise ConfigurationError(f"{whose}: {what} is a list of listeners, not {value!r}")


def _replay_config(whose: str, what: str, value: Any) -> None:
    if value is not None and not hasattr(value, "policy_text"):
        raise ConfigurationError(
            f"{whose}: {what} is a ReplayConfig, such as ReplayConfig(enable_snapshots=True), not "
            f"{value!r}"
        )


_CHECKS: dict[str, Callable[[str, str, Any], None]] = {
    "saga_name": _saga_name,
    "failure_strategy": _strategy,
    "compensation_failure_strategy": _undoing,
    "grace_seconds": _grace,
    "deadline_seconds": _deadline,
    "listeners": _listeners,
    "replay_config": _replay_config,
}
