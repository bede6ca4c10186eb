"""One saga in memory, with its state ahead of the log by what is under way."""

from __future__ import annotations

import sys

from sagaz_es.codec.compress import pack, unpack
from sagaz_es.core.events import Request, SignalSent
from sagaz_es.core.state import SagaState, dump_state, load_state
from sagaz_es.engine.partitions.accepted import Accepted

MAX_ASIDE_BYTES = 8 * 2**20
"""A larger state is left as it is: packing it would hold everybody else up."""

MAX_ASKED = 8
"""Requests that are remembered. Before those behind them are decided, a step may run again."""

LONG_AGO = float("-inf")


class Cell:
    """One saga in memory: unfinished, or being replayed.

    `ours`: this engine is its writer and carries `state` ahead of the log. Otherwise `state` is
    folded from the log, and another engine may still be at work on it.

    A saga that waits may be put aside: then its state is kept as packed bytes (some hundred instead
    of some thousand) until somebody looks at it.
    """

    __slots__ = (
        "_aside",
        "accepted",
        "ahead_us",
        "asked",
        "begin",
        "checkpointed_at",
        "lost",
        "ours",
        "quiet_since",
        "state",
    )

    state: SagaState

    def __init__(
        self, state: SagaState, accepted: Accepted, *, ours: bool, begin: int = -1
    ) -> None:
        self.state = state
        self.accepted = accepted
        self.ours = ours
        self.begin = begin  # offset of its first record; -1: not in the log yet
        self.lost = False
        self.quiet_since = LONG_AGO  # of one that is not ours: when something was heard of it
        self.asked: tuple[Request, ...] = ()  # of one that is not ours, in the order of coming
        self.checkpointed_at = 0  # µs
        self.ahead_us = 0  # how far the saga's own time is before this engine's clock
        self._aside: tuple[bytes, int, str, bool] | None = None  # state, start, graph, under way

    def hear(self, request: Request) -> None:
        """Something is asked of a saga that is not ours, or not yet. A signal decides nothing by
        itself, whether it comes before or behind: it need not be remembered."""
        if len(self.asked) < MAX_ASKED and not isinstance(request, SignalSent):
            self.asked += (request,)

    def put_aside(self) -> None:
        """Keep an unfinished saga's state in as few bytes as can be; nobody may hold on to it."""
        state = self.state
        # The graph is the same text for all sagas of a class.
        graph, state.graph = sys.intern(state.graph), ""
        data = dump_state(state)
        state.graph = graph
        if len(data) <= MAX_ASIDE_BYTES:
            self._aside = pack(data), state.started_at, graph, state.under_way
            del self.state

    def __getattr__(self, name: str) -> SagaState:
        # Only where the state is not there: it costs those that run nothing.
        if name != "state" or self._aside is None:
            raise AttributeError(name)
        packed, _, graph, _ = self._aside
        state = load_state(unpack(packed))
        state.graph = graph
        self.state, self._aside = state, None
        return state

    def look(self) -> SagaState:
        """The state, which stays aside if it was: for one look, not to go on from."""
        aside = self._aside is not None
        state = self.state
        if aside:
            self.put_aside()
        return state

    @property
    def ended(self) -> bool:
        """As the state has it, without taking it up again."""
        return self._aside is None and self.state.ended

    @property
    def under_way(self) -> bool:
        """As the state has it, without taking it up again."""
        return self.state.under_way if self._aside is None else self._aside[3]

    @property
    def started_at(self) -> int:
        """As the state has it, without taking it up again; µs."""
        return self.state.started_at if self._aside is None else self._aside[1]
