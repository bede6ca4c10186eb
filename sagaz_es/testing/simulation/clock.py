"""A process' clock: virtual time, and whatever is wrong with it."""

from __future__ import annotations

import asyncio

from sagaz_es.testing.simulation.processes import SimulatedLoop


class SimulatedClock:
    """Clock of one process; `jump` moves it, forward or back, as a time server would."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self.skew_us = 0

    def now(self) -> int:
        """µs since 1970 UTC, as this process believes."""
        return self._loop.now() + self.skew_us

    def jump(self, us: int) -> None:
        self.skew_us += us

    async def sleep_until(self, when: int) -> None:
        """Until `now()` is at least `when`; who sleeps does not notice a jump before it wakes."""
        while (left := when - self.now()) > 0:  # noqa: ASYNC110 - the clock may step
            await asyncio.sleep(left / 1e6)
