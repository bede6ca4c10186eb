"""Deadline keeps what asyncio.timeout keeps: each case runs on both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from sagaz_es.engine.deadline import Deadline

Limit = Callable[[float], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def deadline(seconds: float) -> Any:
    task = asyncio.current_task()
    assert task is not None
    with Deadline(asyncio.get_running_loop(), task, seconds):
        yield


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
