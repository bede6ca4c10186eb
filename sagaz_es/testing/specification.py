"""given / when / then for sagas: a saga and what goes wrong, what is done to it, how it ends.

    given(OrderSaga, {"sku": "A1"}, resources={"shop": shop}).fails("charge", attempts=[1, 2]).when(
        signal("approved", {"by": "Ann"})
    ).then(status="completed", calls=["reserve", "charge", "charge", "charge", "ship"])

Time is virtual, so nothing is waited for: not a backoff, not a step's time limit, not a month. It
is run by `then`, in any test: with or without an event loop, no `await`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from sagaz_es.engine.registry import Registry, Source
from sagaz_es.errors import ConfigurationError, SagaError
from sagaz_es.testing.faults import Fault, Faults, attempts_of, checked
from sagaz_es.testing.runs import Action, Outcome, Run
from sagaz_es.testing.watching import all_steps

_ANY: Any = object()


def signal(name: str, payload: Any = None) -> Action:
    """The saga is sent a signal."""
    return Action("signal", name, payload)


def cancel(reason: str = "") -> Action:
    """The saga is cancelled."""
    return Action("cancel", reason)


def wait(*, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0) -> Action:
    """Time passes. Raises ConfigurationError for what is no number, or a time below 0."""
    parts = {"seconds": seconds, "minutes": minutes, "hours": hours, "days": days}
    for unit, number in parts.items():
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise ConfigurationError(f"wait: {unit} is a number, such as 1.5, not {number!r}")
    total = seconds + 60 * (minutes + 60 * (hours + 24 * days))
    if not total >= 0:
        raise ConfigurationError(f"wait: time passes forward, not by {total:g} s")
    return Action("wait", seconds=total)


def replay(
    from_step: str,
    context_override: Mapping[str, Any] | None = None,
    *,
    allow: Iterable[str] = (),
) -> Action:
    """Once it has ended, the saga is replayed from a step; `then` is about the branch."""
    return Action("replay", from_step, dict(context_override or {}) or None, allow=tuple(allow))


def crash() -> Action:
    """The process dies while nothing is under way; another one takes over."""
    return Action("crash")


def recover(step: str, decision: str, context_override: Mapping[str, Any] | None = None) -> Action:
    """A person decides how a saga in `forward_recovery` goes on, as `Engine.decide_recovery`."""
    override = dict(context_override or {}) or None
    return Action("recover", step, override, decision=str(decision))


def resolve(step: str, *, happened: bool, result: Any = None) -> Action:
    """A person says what became of a step of unknown outcome, as `Engine.resolve_outcome`."""
    return Action("resolve", step, result, happened=happened)


def pause() -> Action:
    """No further step starts."""
    return Action("pause")


def resume() -> Action:
    """A paused saga goes on."""
    return Action("resume")


class given:
    """A saga, its context, and what its steps find in `ctx.resources`.

    `sagas`: others that it needs, such as a child that it names only by text. Each of `fails`,
    `times_out` and `dies` is about one step and some of its attempts (None: all of them), the first
    of which is 1; of what is said of one attempt the first counts. What can never happen is a
    ConfigurationError: an unknown step, a compensation that there is not, no attempt.
    """

    def __init__(
        self,
        saga: Source,
        context: Mapping[str, Any] | None = None,
        *,
        resources: Mapping[str, Any] | None = None,
        sagas: Sequence[Source] = (),
    ) -> None:
        self._saga, self._context = saga, context
        self._resources = resources or {}
        self._others = sagas
        self._faults = Faults()
        self._actions: tuple[Action, ...] = ()
        self._steps = list(all_steps(Registry((saga, *sagas))))

    def fails(
        self,
        step: str,
        *,
        attempts: int | Iterable[int] | None = None,
        error: BaseException | Callable[[], BaseException] | None = None,
        after: bool = False,
        compensation: bool = False,
    ) -> Self:
        """Attempts of a step (or of its compensation) raise `error`: instead of the step's code, or
        `after` it, when its effect has happened."""
        return self._with(Fault(step, "error", attempts_of(attempts), compensation, after, error))

    def times_out(
        self,
        step: str,
        *,
        attempts: int | Iterable[int] | None = None,
        after: bool = False,
        compensation: bool = False,
    ) -> Self:
        """Attempts hang until their time limit: before the step's code, or `after` it."""
        return self._with(Fault(step, "timeout", attempts_of(attempts), compensation, after))

    def dies(
        self,
        step: str,
        *,
        attempts: int | Iterable[int] = 1,
        after: bool = True,
        compensation: bool = False,
    ) -> Self:
        """The process dies in the step, after its effect or before; another one takes over."""
        return self._with(Fault(step, "crash", attempts_of(attempts), compensation, after))

    def _with(self, fault: Fault) -> Self:
        self._faults.faults.append(checked(fault, self._steps))
        return self

    def when(self, *actions: Action) -> Self:
        """What is done to the saga, one after the other; each once nothing more happens without
        time passing. Without this it is only run."""
        for action in actions:
            if not isinstance(action, Action):
                raise ConfigurationError(
                    'when: actions such as signal("approved"), wait(days=1), cancel(), not '
                    f"{action!r}"
                )
        self._actions += actions
        return self

    def run(self) -> Outcome:
        """Run it to where nothing more happens; how it stands then."""
        run = Run(
            self._saga,
            self._context,
            lambda: self._resources,
            self._others,
            Faults(self._faults.faults),
            self._actions,
        )
        try:
            return run.play()
        finally:
            run.bury()

    def then(
        self,
        *,
        status: Any = _ANY,
        context: Mapping[str, Any] = _ANY,
        calls: Sequence[str] = _ANY,
        completed: Sequence[str] = _ANY,
        compensated: Sequence[str] = _ANY,
        failed: str = _ANY,
        error: type[BaseException] = _ANY,
        stuck: Sequence[str] = _ANY,
        unknown: Sequence[str] = _ANY,
        refused: type[SagaError] | None = _ANY,
        waits_for: str = _ANY,
    ) -> Outcome:
        """Run it, and compare what is named; AssertionError with the differences and the history.

        `context`: these keys have these values, others are not looked at. `calls`: steps in the
        order in which their code was called, `"undo charge"` for compensations, each attempt once.
        `completed`, `compensated`: steps in the order of that. `failed`, `error`: the step that the
        saga failed with, and its exception's class. `stuck`: steps whose compensation failed for
        good. `unknown`: steps of which nobody knows whether they happened. `refused`: what the last
        action was refused with. `waits_for`: words that say what an unfinished saga waits for.
        Also a difference: a fault that never happened, an action that was refused, or that it never
        came to, and a saga that has not ended, unless `refused`, `waits_for` or `status` say so.
        """
        outcome = self.run()
        found: dict[str, tuple[Any, Any]] = {
            "status": (status, outcome.status),
            "calls": (calls, [call.name for call in outcome.calls]),
            "completed": (completed, _steps_of(outcome, "StepCompleted")),
            "compensated": (compensated, _steps_of(outcome, "StepCompensated")),
            "failed": (failed, outcome.failed_step),
            "error": (error, outcome.error_type),
            "stuck": (stuck, list(outcome.stuck)),
            "unknown": (unknown, outcome.result.unknown_step_names),
        }
        differences = []
        for what, (expected, actual) in found.items():
            if expected is not _ANY:
                differences += _compare(what, _plain(expected), actual)
        if context is not _ANY:
            seen = {key: outcome.context.get(key, "(missing)") for key in context}
            differences += _compare("context", dict(context), seen)
        if waits_for is not _ANY and waits_for not in outcome.waits_for:
            differences += _compare("waits_for", waits_for, outcome.waits_for)
        differences += _compare_refused(refused, outcome)
        differences += [f"  it never came to this: {action}" for action in outcome.not_done]
        differences += [f"  this never happened: {fault}" for fault in self._missing(outcome)]
        differences += _unexpected_wait(outcome, status, waits_for)
        if differences:
            raise AssertionError(self._message(differences, outcome))
        return outcome

    def _missing(self, outcome: Outcome) -> list[Fault]:
        return [fault for fault in self._faults.faults if fault not in outcome.faults]

    def _message(self, differences: list[str], outcome: Outcome) -> str:
        name = self._saga.__name__ if isinstance(self._saga, type) else self._saga.name
        lines = [f"{name} did not end as it should:", *differences, "given:"]
        lines += [f"  {fault}" for fault in self._faults.faults]
        lines += [] if self._faults.faults else ["  no faults"]
        lines += ["when:", *(f"  {action}" for action in self._actions)] if self._actions else []
        if outcome.result.error is not None:
            error = outcome.result.error
            lines.append(f"its error: {type(error).__name__}: {error}")
        return "\n".join([*lines, "its history:", outcome.history])


def _steps_of(outcome: Outcome, fact: str) -> list[str]:
    return [step for kind, step in outcome.facts if kind == fact]


def _plain(expected: Any) -> Any:
    if isinstance(expected, type):
        return expected.__name__
    if isinstance(expected, str) or expected is None:
        return str(expected) if expected is not None else None
    return list(expected)


def _compare(what: str, expected: Any, actual: Any) -> list[str]:
    if expected == actual:
        return []
    if isinstance(expected, list) and isinstance(actual, list):
        diff = difflib.ndiff([str(item) for item in expected], [str(item) for item in actual])
        shown = [f"    {line}" for line in diff if not line.startswith("?")]
        return [f"  {what}: (- expected, + found)", *shown]
    if isinstance(expected, dict):
        wrong = [key for key in expected if expected[key] != actual[key]]
        return [f"  {what}[{k!r}]: expected {expected[k]!r}, found {actual[k]!r}" for k in wrong]
    return [f"  {what}: expected {expected!r}, found {actual!r}"]


def _compare_refused(expected: Any, outcome: Outcome) -> list[str]:
    """One refusal may be expected, that of the last action which was refused."""
    refused = list(outcome.refused)
    if isinstance(expected, type):
        found = type(refused[-1][1]).__name__ if refused else None
        if differences := _compare("refused", expected.__name__, found):
            return differences
        refused.pop()
    return [f"  refused: {action}: {error}" for action, error in refused]


def _unexpected_wait(outcome: Outcome, status: Any, waits_for: Any) -> list[str]:
    """A saga that waits for something nobody sends is a mistake of the test, unless it says so."""
    if not outcome.waits_for or waits_for is not _ANY:
        return []
    if status is not _ANY and str(status) == outcome.status:
        return []
    return [f"  it has not ended: {outcome.waits_for}"]
