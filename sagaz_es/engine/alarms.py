"""When to wake sagas that wait: one timer for all of them, so that a waiting saga costs no task."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from sagaz_es.ports import Clock


class Alarms:
    """Calls `wake(saga_id)` at or after the time that was set; waking one too often is harmless."""

    def __init__(self, clock: Clock, wake: Callable[[str], object]) -> None:
        self._clock = clock
        self._wake = wake
        self._heap: list[tuple[int, str]] = []
        self._earlier = asyncio.Event()

    def set(self, at: int, saga_id: str) -> None:
        """Wake the saga at `at` (µs)."""
        heapq.heappush(self._heap, (at, saga_id))
        if self._heap[0] == (at, saga_id):
            self._earlier.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._earlier.clear()
            now = self._clock.now()
            while self._heap and self._heap[0][0] <= now:
                self._wake(heapq.heappop(self._heap)[1])
            if not self._heap:
                await self._earlier.wait()
                continue
            timer = asyncio.ensure_future(self._clock.sleep_until(self._heap[0][0]))
            changed = asyncio.ensure_future(self._earlier.wait())
            try:
                await asyncio.wait((timer, changed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                timer.cancel()
                changed.cancel()
