"""Deadline keeps what asyncio.timeout keeps: each case runs on both."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from sagaz_es.engine.steps.deadline import Deadline, Deadlines

Limit = Callable[[float], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def deadline(seconds: float) -> Any:
    task = asyncio.current_task()
    assert task is not None
    with Deadline(_of_this_loop(), task, seconds):
        yield


_deadlines: WeakKeyDictionary[asyncio.AbstractEventLoop, Deadlines] = WeakKeyDictionary()


def _of_this_loop() -> Deadlines:
    """One for all limits of a test, as an engine has it."""
    loop = asyncio.get_running_loop()
    return _deadlines.setdefault(loop, Deadlines(loop))


LIMITS = [asyncio.timeout, deadline]


async def outcome(work: Callable[[], Any]) -> tuple[str, int]:
    """How a task that does the work ends, and how many cancellations are left on it."""
    left = 0

    async def run() -> None:
        nonlocal left
        try:
            await work()
        finally:
            task = asyncio.current_task()
            assert task is not None
            left = task.cancelling()

    task = asyncio.create_task(run())
    done, _ = await asyncio.wait({task}, timeout=5)
    assert done
    if task.cancelled():
        return "cancelled", left
    error = task.exception()
    return ("done" if error is None else type(error).__name__), left


@pytest.mark.parametrize("limit", LIMITS)
async def test_what_ends_in_time_ends_as_it_does(limit: Limit) -> None:
    async def work() -> None:
        async with limit(5):
            await asyncio.sleep(0)

    assert await outcome(work) == ("done", 0)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_what_is_late_ends_as_a_timeout(limit: Limit, seconds: float) -> None:
    async def work() -> None:
        async with limit(seconds):
            await asyncio.sleep(60)

    assert await outcome(work) == ("TimeoutError", 0)


@pytest.mark.parametrize("limit", LIMITS)
async def test_an_error_of_its_own_goes_through(limit: Limit) -> None:
    async def work() -> None:
        async with limit(0.01):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise KeyError("own") from None

    assert await outcome(work) == ("KeyError", 0)


@pytest.mark.parametrize("limit", LIMITS)
async def test_a_cancellation_from_outside_stays_one(limit: Limit) -> None:
    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.01, task.cancel)
        async with limit(5):
            await asyncio.sleep(60)

    assert await outcome(work) == ("cancelled", 1)


@pytest.mark.parametrize("limit", LIMITS)
async def test_a_cancellation_from_outside_counts_more_than_the_time(limit: Limit) -> None:
    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with limit(0.01):
            task.cancel()
            task.cancel()
            try:
                await asyncio.sleep(60)
            finally:
                # Until the time is over, too.
                await asyncio.sleep(0.03)

    assert (await outcome(work))[0] == "cancelled"


@pytest.mark.parametrize("limit", LIMITS)
async def test_the_inner_of_two_limits_is_the_one_that_is_over(limit: Limit) -> None:
    seen: list[str] = []

    async def work() -> None:
        async with limit(5):
            try:
                async with limit(0.01):
                    await asyncio.sleep(60)
            except TimeoutError:
                seen.append("inner")
                await asyncio.sleep(0.01)

    assert await outcome(work) == ("done", 0)
    assert seen == ["inner"]


@pytest.mark.parametrize("limit", LIMITS)
async def test_the_outer_of_two_limits_ends_both(limit: Limit) -> None:
    seen: list[str] = []

    async def work() -> None:
        async with limit(0.01):
            try:
                async with limit(5):
                    await asyncio.sleep(60)
            except TimeoutError:
                seen.append("inner")

    assert await outcome(work) == ("TimeoutError", 0)
    assert seen == []


async def test_of_many_limits_those_that_are_over_end_and_no_other() -> None:
    """One timer serves them all: whatever is begun and dropped meanwhile, in any order."""
    deadlines = Deadlines(asyncio.get_running_loop())
    ended: dict[int, str] = {}
    chance = random.Random(7)

    async def step(number: int, limit: float, takes: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            with Deadline(deadlines, task, limit):
                await asyncio.sleep(takes)
            ended[number] = "done"
        except TimeoutError:
            ended[number] = "late"

    plans = [(0.02, 30.0) if chance.random() < 0.5 else (30.0, 0.02) for _ in range(200)]
    plans += [(0.0, 30.0), (30.0, 0.0), (0.01, 0.0)]
    async with asyncio.timeout(10):
        await asyncio.gather(*(step(number, *plan) for number, plan in enumerate(plans)))
    expected = ["late" if limit < takes else "done" for limit, takes in plans]
    assert ended == dict(enumerate(expected))
    assert len(deadlines) == 0
