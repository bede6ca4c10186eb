"""Turns: how many sagas of one class run at once here, and how soon one may follow another.

A saga that has to wait for its turn stands in the log already, and is parked: it costs no task, a
crash does not lose it, and it can be cancelled. Each engine counts the sagas that it runs itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sagaz_es.core.state import SagaState

if TYPE_CHECKING:
    from sagaz_es.engine.host import Host
    from sagaz_es.engine.partitions.partition import Partition
    from sagaz_es.sagas.definition import Definition


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


class TurnsByClass:
    """The turns of all classes of a host that have a limit."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._turns: dict[str, Turns] = {}

    def of(self, partition: Partition, state: SagaState, definition: Definition) -> Turns | None:
        """What a saga takes its turn from. None: its class has no limit, or a saga of its class
        waits for it, as its parent or a parent's parent, and has the turn."""
        if not (definition.max_concurrent or definition.start_interval_us):
            return None
        caller = state.caller_saga_id
        while caller and (cell := partition.cells.get(caller)) is not None:
            if cell.state.saga_name == definition.name:
                return None
            caller = cell.state.caller_saga_id
        turns = self._turns.get(definition.name)
        if turns is None:
            turns = self._turns[definition.name] = Turns(
                definition.max_concurrent,
                definition.start_interval_us,
                wake=self._wake,
                is_here=self._host.runs_here,
            )
        return turns

    def _wake(self, saga_id: str) -> None:
        runner = self._host.awake(saga_id)
        if runner is not None:
            runner.look_again()

    def waiting(self, saga_name: str) -> int:
        """How many sagas of a class have begun and wait for their turn."""
        turns = self._turns.get(saga_name)
        return turns.waiting if turns is not None else 0

    def done(self, saga_name: str, saga_id: str) -> None:
        """A saga of this class has ended, or does not run here any more."""
        turns = self._turns.get(saga_name)
        if turns is not None and not self._host.closing:
            turns.done(saga_id)

    def look_again(self) -> None:
        """A partition was let go: its sagas take no turn here any more."""
        for turns in self._turns.values():
            turns.look_again()
