"""Time limits on what tasks await, for a path that every step takes.

As `asyncio.timeout` in what they promise, for less: the loop and the task are handed
in instead of looked up, a limit is set once, and all limits share one timer of the loop. Almost
every step ends in time, so what has to be cheap is to begin a limit and to drop it.
"""

from __future__ import annotations

import asyncio
import logging
from math import inf
from types import TracebackType
from typing import Any

logger = logging.getLogger("sagaz_es.engine")

RESISTS_SECONDS = 5.0  # how long behind its limit a step that was cancelled for it is not told of


def remind(
    loop: asyncio.AbstractEventLoop, saga_id: str, step: str, why: str
) -> asyncio.TimerHandle:
    """Tell the log of a step that was cancelled, unless it ends soon: then cancel this."""
    return loop.call_later(RESISTS_SECONDS, _tell, saga_id, step, why)


def _tell(saga_id: str, step: str, why: str) -> None:
    logger.warning(
        "saga %s: step %r does not end although %s: its code does not accept that it is "
        "cancelled; the saga waits for it",
        saga_id,
        step,
        why,
        extra={"saga_id": saga_id},
    )


class Deadlines:
    """The limits that are running in one event loop.

    One timer is set for the earliest that is known. When it goes off it looks through those that
    run (a hundred thousand take some milliseconds), and is set anew for the earliest of them.
    """

    __slots__ = ("_at", "_loop", "_running", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: dict[Deadline, float] = {}  # to the loop's time when it is over
        self._timer: asyncio.TimerHandle | None = None
        self._at = inf  # when the timer goes off

    def __len__(self) -> int:
        """How many run."""
        return len(self._running)

    def add(self, deadline: Deadline, seconds: float) -> None:
        at = self._loop.time() + seconds
        self._running[deadline] = at
        if at < self._at:
            self._set(at)

    def drop(self, deadline: Deadline) -> None:
        self._running.pop(deadline, None)

    def _set(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer, self._at = None, inf
        now = self._loop.time()
        for deadline in [each for each, at in self._running.items() if at <= now]:
            del self._running[deadline]
            deadline.expire(self._loop)
        if self._running:
            self._set(min(self._running.values()))


class Deadline:
    """`with Deadline(deadlines, task, seconds) as limit:` cancels the task's wait when it is over.

    That cancellation leaves the block as TimeoutError, and `expired` says so; one that came from
    elsewhere, before or at the same time, goes on as CancelledError. What does not accept it is
    waited for, and the log tells of it: beside it no other attempt may begin.

    With `waits` the time counts from `begin` on: what runs in a thread has to get one first.
    """

    __slots__ = (
        "_cancelling",
        "_deadlines",
        "_reminder",
        "_saga_id",
        "_seconds",
        "_step",
        "_task",
        "_waits",
        "expired",
    )

    def __init__(
        self,
        deadlines: Deadlines,
        task: asyncio.Task[Any],
        seconds: float,
        saga_id: str = "",
        step: str = "",
        *,
        waits: bool = False,
    ) -> None:
        self._deadlines, self._task, self._seconds = deadlines, task, seconds
        self._saga_id, self._step = saga_id, step
        self._waits = waits
        self.expired = False

    def __enter__(self) -> Deadline:
        self._cancelling = self._task.cancelling()
        if not self._waits:
            self._deadlines.add(self, self._seconds)
        return self

    def begin(self) -> None:
        """The time counts from now on, unless it did or the block has been left."""
        if self._waits:
            self._waits = False
            self._deadlines.add(self, self._seconds)

    def expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self.expired = True
        self._task.cancel()
        why = f"its time limit of {self._seconds:g} s has passed"
        self._reminder = remind(loop, self._saga_id, self._step, why)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._waits = False
        self._deadlines.drop(self)
        if not self.expired:
            return
        self._reminder.cancel()
        # Ours is taken back; only if none of another is left, it was the time that stopped it.
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
