"""What can be asked of a `Saga` object: its steps, a drawing, and how its last run here stands.

The log has the truth, of every run; an object remembers the last one that it was used for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload
from uuid import uuid4

from sagaz_es.core.decide import ParallelFailureStrategy
from sagaz_es.core.state import SagaState, SagaStatus
from sagaz_es.sagas import described, mermaid
from sagaz_es.sagas.context import SagaContext
from sagaz_es.sagas.options import one_of
from sagaz_es.snapshots import from_us

if TYPE_CHECKING:
    from sagaz_es.sagas.definition import Definition
    from sagaz_es.sagas.described import SagaStep, SagaStepDefinition
    from sagaz_es.sagas.result import SagaResult

T = TypeVar("T")


class shown(Generic[T]):
    """A property that gives way to an attribute: a subclass may have a `self.steps` of its own."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, saga: None, owner: type) -> shown[T]: ...
    @overload
    def __get__(self, saga: object, owner: type) -> T: ...
    def __get__(self, saga: object | None, owner: type) -> shown[T] | T:
        return self if saga is None else self._function(saga)


@dataclass(frozen=True, slots=True)
class LastRun:
    """How a run ended, or where it waits."""

    state: SagaState
    result: SagaResult


_LAST, _ID, _START, _LIVE = "_last_run", "_execute_id", "_execute_context", "_live_run"


class Inspection:
    """The part of `Saga` that tells; nothing here changes a run."""

    def definition(self) -> Definition:
        """The steps, checked."""
        raise NotImplementedError

    # --- steps ---

    def get_steps(self) -> list[SagaStepDefinition]:
        """The steps as declared, in written order."""
        return described.declared(self.definition())

    def get_step(self, name: str) -> SagaStepDefinition | None:
        """One of them; None: there is none of this name."""
        return next((step for step in self.get_steps() if step.name == name), None)

    def get_pivot_steps(self) -> list[str]:
        """Names of the pivots, in written order."""
        return [step.name for step in self.get_steps() if step.pivot]

    def get_execution_order(self) -> list[list[SagaStepDefinition]]:
        """Levels, for display: a step runs when its own dependencies are done, not its level."""
        return described.levels(self.definition())

    def set_failure_strategy(self, strategy: ParallelFailureStrategy | str) -> None:
        """For the runs from now on: what happens to running siblings when a step has failed.

        Raises ConfigurationError with the strategies that there are."""
        whose = str(getattr(self, "name", ""))
        chosen = one_of(whose, "failure_strategy", ParallelFailureStrategy, strategy)
        self.__dict__["failure_strategy"] = chosen

    # --- the last run ---

    @shown
    def saga_id(self) -> str:
        """Of the last run; before one, the id that `execute` will use."""
        last = _last(self)
        return last.state.saga_id if last is not None else own_id(self)

    @shown
    def context(self) -> SagaContext:
        """What `execute` starts with (`saga.context.set(key, value)`); then the final context."""
        last = _last(self)
        if last is None:
            return start_context(self)
        final = last.result.context
        return final if isinstance(final, SagaContext) else SagaContext(final)

    @shown
    def status(self) -> SagaStatus:
        """Where the last run stands, also while it goes on; pending before one."""
        return _status(self)

    @shown
    def current_state(self) -> str:
        """The status as a word, such as "RolledBack"."""
        return "".join(word.capitalize() for word in str(_status(self)).split("_"))

    @shown
    def steps(self) -> list[SagaStep]:
        """The steps with what became of them in the last run, in written order."""
        return _steps(self)

    @shown
    def completed_steps(self) -> list[SagaStep]:
        """Those that did their work, whether undone since or not, in written order."""
        return _completed(self)

    @shown
    def error(self) -> BaseException | None:
        """The failing step's."""
        last = _last(self)
        return last.result.error if last is not None else None

    @shown
    def compensation_errors(self) -> list[Exception]:
        """Of compensations that failed for good."""
        last = _last(self)
        return list(last.result.compensation_errors) if last is not None else []

    @shown
    def started_at(self) -> datetime | None:
        """In UTC."""
        last = _last(self)
        return _time(last.state.started_at) if last is not None else None

    @shown
    def completed_at(self) -> datetime | None:
        """When it ended, however that was; in UTC."""
        last = _last(self)
        return _time(last.state.ended_at) if last is not None else None

    def get_status(self) -> dict[str, Any]:
        """The last run as plain data; times in ISO 8601 with zone."""
        last, steps = _last(self), _steps(self)
        error = last.result.error if last is not None else None
        started = _time(last.state.started_at) if last is not None else None
        ended = _time(last.state.ended_at) if last is not None else None
        return {
            "saga_id": last.state.saga_id if last is not None else own_id(self),
            "name": getattr(self, "name", ""),
            "version": self.__dict__.get("_version", "1.0"),
            "status": str(_status(self)),
            "current_state": Inspection.current_state._function(self),
            "total_steps": len(steps),
            "completed_steps": len(_completed(self)),
            "steps": [
                {
                    "name": step.name,
                    "status": str(step.status),
                    "retry_count": step.retry_count,
                    "error": str(step.error) if step.error is not None else None,
                }
                for step in steps
            ],
            "started_at": started.isoformat() if started is not None else None,
            "completed_at": ended.isoformat() if ended is not None else None,
            "error": str(error) if error is not None else None,
            "compensation_errors": [
                str(each) for each in (last.result.compensation_errors if last is not None else ())
            ],
        }

    # --- drawing ---

    def to_mermaid(
        self,
        direction: str = "TB",
        show_compensation: bool = True,
        highlight_trail: Mapping[str, Any] | None = None,
        show_state_markers: bool = True,
    ) -> str:
        """A Mermaid flowchart. `highlight_trail`: `completed_steps`, `failed_step` and
        `compensated_steps` of a run; then only what it touched is drawn.

        Raises ConfigurationError for another direction than TB, TD, BT, LR, RL.
        """
        return mermaid.draw(
            self.definition().graph,
            direction=direction,
            show_compensation=show_compensation,
            trail=mermaid.trail_of(highlight_trail),
            show_state_markers=show_state_markers,
        )

    def to_mermaid_markdown(
        self,
        direction: str = "TB",
        show_compensation: bool = True,
        highlight_trail: Mapping[str, Any] | None = None,
        show_state_markers: bool = True,
    ) -> str:
        """The flowchart as a block of Markdown."""
        drawing = self.to_mermaid(direction, show_compensation, highlight_trail, show_state_markers)
        return f"```mermaid\n{drawing}\n```"

    async def to_mermaid_with_execution(
        self,
        saga_id: Any,
        storage: Any = None,
        direction: str = "TB",
        show_compensation: bool = True,
        show_state_markers: bool = True,
    ) -> str:
        """The flowchart of a recorded run, from its events. `storage`: an engine that is open, or
        the `InMemorySagaStorage` of its settings; anything else means the default log.

        Raises SagaNotFound."""
        from sagaz_es.sagas import standalone

        state = await standalone.state_of(saga_id, storage, self.__dict__.get("_config"))
        return mermaid.draw(
            state.step_graph,
            direction=direction,
            show_compensation=show_compensation,
            trail=mermaid.trail_of_state(state),
            show_state_markers=show_state_markers,
        )


def own_id(saga: Inspection) -> str:
    """The id that `execute` uses: one object is one saga."""
    given: str = saga.__dict__.setdefault(_ID, str(uuid4()))
    return given


def start_context(saga: Inspection) -> SagaContext:
    """What `execute` starts with."""
    given: SagaContext = saga.__dict__.setdefault(_START, SagaContext())
    return given


def remember(saga: Inspection, state: SagaState, result: SagaResult) -> None:
    """After a run: what the object tells from now on."""
    saga.__dict__[_LAST] = LastRun(state, result)


@contextmanager
def showing(saga: Inspection, now: Callable[[], SagaState | None]) -> Iterator[None]:
    """While a run goes on: what the object tells is the state that this gives (None: none yet)."""
    saga.__dict__[_LIVE] = now
    try:
        yield
    finally:
        if saga.__dict__.get(_LIVE) is now:
            del saga.__dict__[_LIVE]


def _live(saga: Inspection) -> SagaState | None:
    now = saga.__dict__.get(_LIVE)
    return None if now is None else now()


def _last(saga: Inspection) -> LastRun | None:
    return saga.__dict__.get(_LAST)


def _status(saga: Inspection) -> SagaStatus:
    live = _live(saga)
    if live is not None:
        return SagaStatus(live.status)
    last = _last(saga)
    return SagaStatus(last.state.status) if last is not None else SagaStatus.PENDING


def _steps(saga: Inspection) -> list[SagaStep]:
    live = _live(saga)
    if live is not None:
        return described.in_run(saga.definition(), live, live.saga_id, None)
    last = _last(saga)
    if last is None:
        return described.in_run(saga.definition(), None, own_id(saga), None)
    return described.in_run(saga.definition(), last.state, last.state.saga_id, last.result.error)


def _completed(saga: Inspection) -> list[SagaStep]:
    done = ("completed", "compensating", "compensated", "compensation_failed")
    return [step for step in _steps(saga) if step.status in done]


def _time(us: int) -> datetime | None:
    return from_us(us) if us else None
