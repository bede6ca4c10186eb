"""Time that passes without anybody waiting for it.

`VirtualClock` is a Clock for an engine on any event loop: the engine's own waits (backoffs, delays,
deadlines, limits of signals) go by it. `VirtualTimeLoop` is an event loop on which every wait takes
no time, also those of a step's code and its time limit.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sagaz_es.errors import ConfigurationError

NOON = 1_767_268_800_000_000
"""µs; 2026-01-01 12:00 UTC, when virtual time begins."""

FOR_EVER_SECONDS = 1e9
"""Thirty years: who waits longer waits for ever. (A limit of a step is a hundred at most.)"""

LONGEST_SELECT_SECONDS = 86_400.0
THREAD_SECONDS = 120.0
TURNS = 50


class VirtualClock:
    """A clock that stands still until `elapse` or `advance`, or until somebody is `skipping`.

    While anybody skips, time jumps to the next wait's end whenever nothing else goes on.
    """

    def __init__(self, start: int = NOON) -> None:
        self._now = start
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._skippers = 0
        self.at_work = 0  # steps of all its engines: no time is skipped then
        self.in_threads = 0  # those of them that are plain functions, and end by themselves

    def now(self) -> int:
        """µs since 1970 UTC."""
        return self._now

    async def sleep_until(self, when: int) -> None:
        """Until the clock was moved there."""
        while self._now < when:
            moved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[moved] = when
            try:
                await moved
            finally:
                self._waiting.pop(moved, None)

    async def elapse(self, seconds: float) -> None:
        """Let time pass, from wait to wait, until nobody can go on without more of it.

        A step's own wait is not for this clock and is not waited for; a step that is a plain
        function is. Raises ConfigurationError for what is no number, or below 0.
        """
        until = self._now + _microseconds("elapse", seconds)
        if until < self._now:
            raise ConfigurationError(f"elapse: time passes forward, not by {seconds:g} s")
        await self._settled()
        while (soonest := min(self._waiting.values(), default=until)) < until:
            self.set(max(self._now, soonest))
            await self._settled()
        self.set(max(self._now, until))
        await self._settled()

    async def _settled(self) -> None:
        """Until nobody is ready any more."""
        while True:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if not self.in_threads:
                return
            await asyncio.sleep(0.001)

    def advance(self, seconds: float) -> None:
        """Move it at once, below 0 back; whoever waited that long goes on when the event loop comes
        to it, so await something before you look: `elapse` does.

        Raises ConfigurationError for what is no number.
        """
        self.set(self._now + _microseconds("advance", seconds))

    def set(self, now: int) -> None:
        """Move it to a time (µs), also back."""
        self._now = now
        for moved, when in list(self._waiting.items()):
            if when <= now and not moved.done():
                moved.set_result(None)

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Within it time passes by itself."""
        self._skippers += 1
        task = asyncio.get_running_loop().create_task(self._skip(), name="sagaz-es virtual clock")
        try:
            yield
        finally:
            self._skippers -= 1
            task.cancel()

    async def _skip(self) -> None:
        while True:
            # Who is ready goes first: a wait may be given up, a shorter one may begin.
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if self.at_work or not self._waiting:
                await asyncio.sleep(0.001)
                continue
            self.set(max(self._now, min(self._waiting.values())))


def _microseconds(what: str, seconds: float) -> int:
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise ConfigurationError(f"{what}: seconds are a number, such as 1.5, not {seconds!r}")
    return round(seconds * 1e6)


class NothingLeft(Exception):
    """On a virtual loop nothing is ready and nobody waits for a time: nothing will ever happen."""


class WaitsForReality(RuntimeError):
    """On a virtual loop somebody waits for a socket or another process."""

    def __str__(self) -> str:
        return (
            "a step waits for a socket or a process, and time is virtual: it would be over at "
            "once; give the steps a stand-in by `resources`, or use memory_engine()"
        )


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer as soon as nothing is ready.

    Law (same again): what runs on it depends on no real time and on no scheduling of threads; a
    function that is sent to a thread is waited for at once.
    Raises NothingLeft out of `run_until_complete` where another loop would block for ever, and
    WaitsForReality where it would wait for a socket.
    """

    def __init__(
        self, start: float = 0.0, *, selector: selectors.BaseSelector | None = None
    ) -> None:
        self._virtual = start
        self._scheduled: list[asyncio.TimerHandle]  # the base class's, soonest first
        self._quiet: list[asyncio.Future[None]] = []
        self._threads: ThreadPoolExecutor | None = None
        self._selector: selectors.BaseSelector = selector or _Selector(self)
        super().__init__(self._selector)
        # In virtual years a finer one is lost in rounding, and a timer would never be due.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual

    def now(self) -> int:
        """µs since 1970 UTC: the loop is a Clock, too."""
        return NOON + round(self._virtual * 1e6)

    async def sleep_until(self, when: int) -> None:
        """Until `now()` is at least `when`."""
        while (left := when - self.now()) > 0:  # noqa: ASYNC110 - rounding
            await asyncio.sleep(left / 1e6)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        if when - self._virtual > FOR_EVER_SECONDS:
            return asyncio.TimerHandle(when, callback, args, self, context)  # never comes
        return super().call_at(when, callback, *args, context=context)

    async def quiet(self) -> None:
        """Until nothing is ready; no time passes meanwhile."""
        waiter: asyncio.Future[None] = self.create_future()
        self._quiet.append(waiter)
        await waiter

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, thread_name_prefix="sagaz-es step")
        future: asyncio.Future[Any] = self.create_future()
        try:
            result = self._threads.submit(func, *args).result(THREAD_SECONDS)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)
        return future

    def thread_idents(self) -> list[int]:
        """Of the thread that functions are sent to."""
        threads = self._threads._threads if self._threads is not None else ()
        return [thread.ident for thread in threads if thread.ident is not None]

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        super().close()

    def advance(self, timeout: float | None) -> None:
        """Called by its selector when nothing is ready."""
        quiet, self._quiet = self._quiet, []
        waiting = [waiter for waiter in quiet if not waiter.done()]
        for waiter in waiting:
            waiter.set_result(None)
        if waiting:
            return
        if len(self._selector.get_map()) > 1:  # one is the loop's own, to be woken by
            raise WaitsForReality
        if timeout is None:
            raise NothingLeft
        if timeout >= LONGEST_SELECT_SECONDS:  # asyncio would look again every day
            timeout = max(timeout, self._scheduled[0].when() - self._virtual)
        self._virtual += timeout


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout != 0:
            self._loop.advance(timeout)
        return ready
