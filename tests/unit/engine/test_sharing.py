"""`shared` keeps what asyncio.shield keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sagaz_es.engine.sharing import shared

Wait = Callable[["asyncio.Future[int]"], Awaitable[int]]


@pytest.fixture(params=[asyncio.shield, shared])
def wait(request: pytest.FixtureRequest) -> Wait:
    found: Wait = request.param
    return found


async def waiting(wait: Wait, future: asyncio.Future[int]) -> asyncio.Task[int]:
    async def work() -> int:
        return await wait(future)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    return task


async def test_all_who_wait_get_the_result_also_who_comes_later(wait: Wait) -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    tasks = [await waiting(wait, future) for _ in range(3)]
    future.set_result(7)
    assert await asyncio.gather(*tasks) == [7, 7, 7]
    assert await wait(future) == 7


async def test_who_is_cancelled_cancels_nobody_else(wait: Wait) -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    first, second = await waiting(wait, future), await waiting(wait, future)
    first.cancel()
    assert (await asyncio.gather(first, return_exceptions=True))[0].__class__ is (
        asyncio.CancelledError
    )
    assert not future.done()
    future.set_result(7)
    assert await second == 7


@pytest.mark.parametrize("error", [KeyError("gone"), asyncio.CancelledError()])
async def test_what_goes_wrong_is_raised_for_all(wait: Wait, error: BaseException) -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    tasks: list[asyncio.Task[Any]] = [await waiting(wait, future) for _ in range(2)]
    if isinstance(error, asyncio.CancelledError):
        future.cancel()
    else:
        future.set_exception(error)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(error)] * 2
