"""Readers that wait for the next record of a partition."""

from __future__ import annotations

import asyncio


class Waiters:
    """Those who wait for one thing; `wake` lets all of them go. For one event loop at a time."""

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._futures)

    async def wait(self, wait_s: float) -> bool:
        """Until woken: True; after `wait_s` seconds: False."""
        future = asyncio.get_running_loop().create_future()
        self._futures.add(future)
        try:
            async with asyncio.timeout(wait_s):
                await future
        except TimeoutError:
            return False
        finally:
            self._futures.discard(future)
        return True

    def wake(self) -> None:
        """Let everybody go who waits now. Costs next to nothing if nobody does."""
        if self._futures:
            futures, self._futures = self._futures, set()
            for future in futures:
                if not future.done():
                    future.set_result(None)
