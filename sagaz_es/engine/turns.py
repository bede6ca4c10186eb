"""Turns: how many sagas of one class run at once here, and how soon one may follow another.

A saga that has to wait for its turn stands in the log already, and is parked: it costs no task, a
crash does not lose it, and it can be cancelled. Each engine counts the sagas that it runs itself.
"""

from __future__ import annotations

from collections.abc import Callable

from sagaz_es.core.state import SagaState


class Turns:
    """Turns of one class, first come, first served.

    Law (none is lost): whoever was told to wait is woken, or waits for the time it was told.
    Law (begun is begun): a saga that has begun, as one that was taken over, waits for nothing.
    """

    def __init__(
        self,
        limit: int,
        interval_us: int,
        *,
        wake: Callable[[str], object],
        is_here: Callable[[str], bool],
    ) -> None:
        """`limit`, `interval_us`: 0 is none. `is_here`: whether this engine still runs a saga."""
        self._limit, self._interval_us = limit, interval_us
        self._wake, self._is_here = wake, is_here
        self._running: set[str] = set()
        self._waiting: dict[str, None] = {}
        self._next_at = 0  # µs

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    def ask(self, state: SagaState, now: int) -> int:
        """0: it may run. Otherwise when to ask again, in µs; -1: once it is woken."""
        saga_id = state.saga_id
        if saga_id in self._running:
            return 0
        if state.status != "executing" or state.steps:
            self._waiting.pop(saga_id, None)
            self._running.add(saga_id)
            return 0
        self._waiting.setdefault(saga_id)
        if self._first() != saga_id or not self._has_room():
            return -1
        if now < self._next_at:
            return self._next_at
        del self._waiting[saga_id]
        self._running.add(saga_id)
        if self._interval_us:
            self._next_at = now + self._interval_us
        self._call_next()
        return 0

    def done(self, saga_id: str) -> None:
        """It has ended, or does not run here any more."""
        self._running.discard(saga_id)
        self._waiting.pop(saga_id, None)
        self._call_next()

    def look_again(self) -> None:
        """Sagas may have left this engine without a word."""
        self._running = {saga_id for saga_id in self._running if self._is_here(saga_id)}
        self._call_next()

    def _first(self) -> str | None:
        """Who has waited longest, of those that are still here."""
        for saga_id in list(self._waiting):
            if self._is_here(saga_id):
                return saga_id
            del self._waiting[saga_id]
        return None

    def _has_room(self) -> bool:
        return not self._limit or len(self._running) < self._limit

    def _call_next(self) -> None:
        if self._has_room() and (first := self._first()) is not None:
            self._wake(first)
