"""Awaiting what others await, too."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def shared(future: asyncio.Future[T]) -> T:
    """The future's outcome; who is cancelled while waiting cancels nobody else's wait.

    As `await asyncio.shield(future)`, at half its cost: every saga pays for it twice.
    """
    if not future.done():
        done: asyncio.Future[None] = future.get_loop().create_future()

        def tell(_: object) -> None:
            if not done.done():
                done.set_result(None)

        future.add_done_callback(tell)
        try:
            await done
        except asyncio.CancelledError:
            future.remove_done_callback(tell)
            raise
    return future.result()
