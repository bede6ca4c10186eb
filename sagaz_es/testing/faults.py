"""How the steps of a saga under test go wrong: by step and attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from sagaz_es.errors import ConfigurationError
from sagaz_es.sagas.definition import StepDefinition
from sagaz_es.testing.watching import Call

Kind = Literal["error", "timeout", "crash"]


ATTEMPTS_AFTER_THE_FIRST = frozenset(range(2, 1000))


class InjectedFailure(Exception):
    """A step failed because its test said so."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to some attempts of one step, or (`undo`) of its compensation."""

    step: str
    kind: Kind = "error"
    attempts: frozenset[int] | None = None  # None: every one
    undo: bool = False
    after: bool = False  # behind the step's own code: its effect has happened
    error: BaseException | Callable[[], BaseException] | None = None

    def raised(self) -> BaseException:
        """The error to raise."""
        if isinstance(self.error, BaseException):
            return self.error
        if self.error is not None:
            made = self.error()
            if not isinstance(made, BaseException):
                raise ConfigurationError(f"error: {self.error!r} gave {made!r}, not an exception")
            return made
        return InjectedFailure(f"{self.step} fails in this test")

    def __str__(self) -> str:
        name = f"undo {self.step}" if self.undo else self.step
        which = ""
        if self.attempts == ATTEMPTS_AFTER_THE_FIRST:
            which = " in every attempt but the first"
        elif self.attempts is not None:
            which = f" in attempt {', '.join(map(str, sorted(self.attempts)))}"
        verb = {"error": "fails", "timeout": "times out", "crash": "dies with its process"}
        return f"{name} {verb[self.kind]}{' after its effect' if self.after else ''}{which}"


@dataclass(slots=True)
class Faults:
    """The faults of one run."""

    faults: list[Fault] = field(default_factory=list)
    happened: list[Fault] = field(default_factory=list)

    def of(self, call: Call) -> Fault | None:
        """What goes wrong with this call; of several that fit, what was said first."""
        for fault in self.faults:
            if (fault.step, fault.undo) == (call.step, call.undo) and (
                fault.attempts is None or call.attempt in fault.attempts
            ):
                self.happened.append(fault)
                return fault
        return None


def checked(fault: Fault, steps: Iterable[StepDefinition]) -> Fault:
    """The fault, if it can strike. Raises ConfigurationError for a step that is not there, a
    compensation that it has not, and an error that is none."""
    known = list(steps)
    named = [step for step in known if step.name == fault.step]
    if not named:
        names = ", ".join(sorted({repr(step.name) for step in known}))
        raise ConfigurationError(f"no step {fault.step!r}; there are {names}")
    if fault.undo and not any(step.compensation for step in named):
        raise ConfigurationError(f"step {fault.step!r} has no compensation that could go wrong")
    if not (fault.error is None or isinstance(fault.error, BaseException) or callable(fault.error)):
        raise ConfigurationError(
            f"error: an exception, its class or a function that makes one, not {fault.error!r}"
        )
    return fault


def attempts_of(attempts: int | Iterable[int] | None) -> frozenset[int] | None:
    """1, [1, 2] or None (every one), as users write it; the first attempt is 1."""
    if attempts is None:
        return None
    chosen = frozenset(attempts) if isinstance(attempts, Iterable) else frozenset([attempts])
    if not chosen or not all(isinstance(number, int) and number >= 1 for number in chosen):
        raise ConfigurationError(f"attempts: numbers from 1, such as [1, 2], not {attempts!r}")
    return chosen
