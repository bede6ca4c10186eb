"""What steps raised: as the log has it, and as whoever waits for the saga may raise it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from sagaz_es.core import events as e
from sagaz_es.core.state import SagaState
from sagaz_es.errors import SagaStepError

MAX_ERROR_CHARS = 4_000
MAX_TRACEBACK_CHARS = 16_000


class StepErrors:
    """The exceptions of a saga's steps, while it runs here."""

    def __init__(self, state: SagaState) -> None:
        self._state = state
        self._errors: dict[str, BaseException] = {}  # by step, of its last attempt that failed

    @property
    def last(self) -> BaseException | None:
        """The exception that the saga fails with, or that the last handler asked raised."""
        if self._state.failed_step:
            return self._errors.get(self._state.failed_step)
        return next(reversed(self._errors.values()), None)

    def keep(self, step: str, error: BaseException) -> None:
        """For whoever waits for the saga and may raise it; what ends a process is told in words."""
        if isinstance(error, SystemExit | KeyboardInterrupt):
            self._errors.pop(step, None)
        else:
            self._errors[step] = error

    def of(self, name: str) -> BaseException:
        """The exception of a step that failed, here or where the saga ran before."""
        step = self._state.step(name)
        error = self._errors.get(name)
        if error is not None and type(error).__name__ == step.error_type:
            return error
        return SagaStepError(name, step.error_type, step.error_message)


def stopped_because(what: str, why: str) -> str:
    """The message of an attempt that was stopped; `why` may be empty: somebody wanted it."""
    return f"{what}: {why}" if why else what


def not_happened(step: str, attempt: int) -> e.StepFailed:
    """An attempt of unknown outcome that turned out to have had no effect."""
    return e.StepFailed(
        step, attempt, error_type="NotHappened", error_message="its effect did not happen"
    )


def is_retried(
    error: BaseException,
    retry_on: tuple[type[BaseException], ...],
    no_retry: tuple[type[BaseException], ...],
) -> bool:
    """Whether an error's class lets it be tried again; a group's does if those of all in it do."""
    if _is_one(error, no_retry):
        return False
    if not isinstance(error, BaseExceptionGroup):
        return _is_one(error, retry_on)
    named = any(issubclass(kind, BaseExceptionGroup) for kind in retry_on)
    if named and _is_one(error, retry_on):
        return not any(_is_one(each, no_retry) for each in _leaves(error))
    return all(is_retried(each, retry_on, no_retry) for each in error.exceptions)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _is_one(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether it is of the kinds. `sys.exit()` in a step counts as an Exception."""
    if isinstance(error, SystemExit | KeyboardInterrupt) and Exception in kinds:
        return True
    return isinstance(error, kinds)


def message_of(error: BaseException) -> str:
    """Its sentence, as long as a record takes; its class's name where it has none."""
    try:
        text = str(error) or type(error).__name__
    except BaseException:
        text = type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()[:MAX_ERROR_CHARS]


def traceback_of(error: BaseException) -> str:
    """The end of its traceback, as long as a record takes."""
    lines = traceback.format_exception(error)
    return "".join(lines).encode("utf-8", "backslashreplace").decode()[-MAX_TRACEBACK_CHARS:]
