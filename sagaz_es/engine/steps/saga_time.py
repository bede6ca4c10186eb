"""A saga's own time, which this engine's clock drives."""

from __future__ import annotations

from typing import Protocol

from sagaz_es.core.state import SagaState
from sagaz_es.ports import Clock


class Timed(Protocol):
    """A saga in memory (`Cell`)."""

    state: SagaState
    ahead_us: int  # how far its time is before this engine's clock


class SagaTime:
    """The time of one saga: it never falls and never stands still.

    Where the last event is of a later time than the clock has (its writer's clock was ahead, or
    this one was set back), it goes on from there. So no retry, wait or deadline takes longer than
    it was meant to, from the moment on that this engine has the saga. Source: docs/decisions/0054.
    """

    __slots__ = ("_clock", "_saga")

    def __init__(self, clock: Clock, saga: Timed) -> None:
        self._clock, self._saga = clock, saga

    def now(self) -> int:
        """µs."""
        saga = self._saga
        now = self._clock.now() + saga.ahead_us
        behind = saga.state.updated_at - now
        if behind > 0:
            saga.ahead_us += behind
            now += behind
        return now

    def by_clock(self, at: int) -> int:
        """When the engine's clock has it."""
        return max(1, at - self._saga.ahead_us)

    def by_saga(self, at: int) -> int:
        """The reverse of `by_clock`."""
        return at + self._saga.ahead_us
