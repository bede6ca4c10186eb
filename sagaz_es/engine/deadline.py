"""A time limit on what the current task awaits, for a path that every step takes.

As `asyncio.timeout` in what it promises, at a third of its cost: the loop and the task are handed
in instead of looked up, and there is one limit, set once.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any


class Deadline:
    """`with Deadline(loop, task, seconds) as limit:` cancels the task's wait when they are over.

    That cancellation leaves the block as TimeoutError, and `expired` says so; one that came from
    elsewhere, before or at the same time, goes on as CancelledError.
    """

    __slots__ = ("_cancelling", "_loop", "_seconds", "_task", "_timer", "expired")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], seconds: float
    ) -> None:
        self._loop, self._task, self._seconds = loop, task, seconds
        self.expired = False

    def __enter__(self) -> Deadline:
        self._cancelling = self._task.cancelling()
        self._timer = self._loop.call_later(self._seconds, self._expire)
        return self

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if not self.expired:
            return
        # Ours is taken back; only if none of another is left, it was the time that stopped it.
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
