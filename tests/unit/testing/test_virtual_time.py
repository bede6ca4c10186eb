"""A loop and a clock whose time passes without anybody waiting for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sagaz_es.errors import ConfigurationError
from sagaz_es.testing.virtual_time import (
    FOR_EVER_SECONDS,
    NOON,
    NothingLeft,
    VirtualClock,
    VirtualTimeLoop,
)


@pytest.fixture
def loop() -> Iterator[VirtualTimeLoop]:
    loop = VirtualTimeLoop()
    yield loop
    loop.close()


def test_timers_come_in_their_order_and_take_no_time(loop: VirtualTimeLoop) -> None:
    told = []

    async def after(seconds: float) -> None:
        await asyncio.sleep(seconds)
        told.append((seconds, loop.time()))

    async def all_of_them() -> None:
        await asyncio.gather(*map(after, (3600, 0, 60)))

    began = time.monotonic()
    loop.run_until_complete(all_of_them())
    assert told == [(0, 0), (60, 60), (3600, 3600)]
    assert time.monotonic() - began < 3600


def test_the_loop_is_a_clock(loop: VirtualTimeLoop) -> None:
    assert loop.now() == NOON
    loop.run_until_complete(loop.sleep_until(NOON + 7_000_001))
    assert loop.now() >= NOON + 7_000_001


def test_a_limit_passes_by_virtual_time(loop: VirtualTimeLoop) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        loop.run_until_complete(limited())
    assert loop.time() == 30


def test_where_nothing_will_ever_happen_it_says_so(loop: VirtualTimeLoop) -> None:
    waits = loop.create_task(asyncio.Event().wait())
    with pytest.raises(NothingLeft):
        loop.run_until_complete(waits)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(waits)


def test_who_waits_a_hundred_years_waits_for_ever(loop: VirtualTimeLoop) -> None:
    waits = loop.create_task(asyncio.sleep(2 * FOR_EVER_SECONDS))
    with pytest.raises(NothingLeft):
        loop.run_until_complete(waits)
    assert loop.time() == 0
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(waits)


def test_it_is_quiet_when_nobody_can_go_on_without_time(loop: VirtualTimeLoop) -> None:
    told = []

    async def busy() -> None:
        for number in range(100):
            await asyncio.sleep(0)
            told.append(number)
        await asyncio.sleep(60)
        told.append(60)

    async def watch() -> int:
        task = loop.create_task(busy())
        await loop.quiet()
        seen = len(told)
        await task
        return seen

    assert loop.run_until_complete(watch()) == 100
    assert told[-1] == 60


def test_functions_in_threads_are_waited_for_at_once(loop: VirtualTimeLoop) -> None:
    def fails() -> None:
        raise OSError("no")

    async def ask() -> tuple[Any, ...]:
        other = await asyncio.to_thread(threading.get_ident)
        with pytest.raises(OSError, match="no"):
            await asyncio.to_thread(fails)
        return other, await asyncio.to_thread(threading.get_ident)

    first, second = loop.run_until_complete(ask())
    assert first == second != threading.get_ident()
    assert loop.time() == 0


async def test_a_clock_stands_still_until_it_is_moved() -> None:
    clock = VirtualClock(start=0)
    waits = [asyncio.create_task(clock.sleep_until(seconds * 1_000_000)) for seconds in (1, 2)]
    await asyncio.sleep(0.01)
    clock.advance(1)
    await asyncio.sleep(0)
    await waits[0]
    assert (clock.now(), waits[1].done()) == (1_000_000, False)
    clock.set(500_000)
    clock.set(2_000_000)
    await waits[1]


@pytest.mark.parametrize("seconds", ["1", float("nan"), float("inf"), None])
async def test_a_time_that_is_no_number_is_refused(seconds: Any) -> None:
    clock = VirtualClock(start=0)
    with pytest.raises(ConfigurationError, match=r"^advance: seconds are a number, such as 1\.5"):
        clock.advance(seconds)
    with pytest.raises(ConfigurationError, match=r"^elapse: seconds are a number, such as 1\.5"):
        await clock.elapse(seconds)
    with pytest.raises(ConfigurationError, match=r"^elapse: time passes forward"):
        await clock.elapse(-1)
    assert clock.now() == 0


async def test_while_somebody_skips_a_clock_jumps_from_wait_to_wait() -> None:
    clock = VirtualClock(start=0)
    with clock.skipping():
        async with asyncio.timeout(30):
            await asyncio.gather(clock.sleep_until(3_600_000_000), clock.sleep_until(60_000_000))
    assert clock.now() == 3_600_000_000


async def test_a_clock_that_nobody_skips_any_more_stands_still() -> None:
    clock = VirtualClock(start=0)
    with clock.skipping():
        await clock.sleep_until(1)
    waits = asyncio.create_task(clock.sleep_until(2))
    await asyncio.sleep(0.01)
    assert (clock.now(), waits.done()) == (1, False)
    waits.cancel()
