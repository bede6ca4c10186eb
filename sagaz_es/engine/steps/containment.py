"""Tasks of steps that would end the process.

asyncio lets a SystemExit or KeyboardInterrupt of any task out of the loop, whoever awaits the task
or not: one `sys.exit()` in a task that a step has made, with `gather` for instance, ends the
worker, and then every other one that takes the saga over. A step's own is an error like others
(`attempts.py`); for the tasks that it makes the loop has to be told, so it is done where the loop
is ours: by `sagaz-es`, and by whoever asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

from sagaz_es.engine.steps.calling import current_saga

_ENDINGS = (SystemExit, KeyboardInterrupt)


def contain_exits(loop: asyncio.AbstractEventLoop) -> None:
    """From now on a task that is made by a saga's code fails with a RuntimeError instead of ending
    the process. Signals end it as before, where they have handlers on the loop.

    What the code gives to the loop as a plain callback (`call_soon`) is not contained.
    """
    before = loop.get_task_factory()

    def make(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Future[Any]:
        if current_saga.get():
            coro = _Contained(coro, current_saga.get())
        if before is not None:
            return before(loop, coro, **options)
        return asyncio.Task(coro, loop=loop, **options)

    loop.set_task_factory(make)


class _Contained(Coroutine[Any, Any, Any]):
    """A coroutine that ends with a RuntimeError where it would end the process.

    Not an `async def` around it: a task that is cancelled before its first turn would leave the
    coroutine in it unawaited.
    """

    __slots__ = ("_coro", "_saga_id")

    def __init__(self, coro: Any, saga_id: str) -> None:
        self._coro, self._saga_id = coro, saga_id

    def send(self, value: Any) -> Any:
        try:
            return self._coro.send(value)
        except _ENDINGS as error:
            raise self._instead(error) from error

    def throw(self, *raised: Any) -> Any:
        try:
            return self._coro.throw(*raised)
        except _ENDINGS as error:
            raise self._instead(error) from error

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, None, Any]:
        return (yield from self._coro.__await__())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coro, name)  # what debuggers and reprs look at

    def _instead(self, error: BaseException) -> RuntimeError:
        what = f"{type(error).__name__}({error})" if str(error) else type(error).__name__
        return RuntimeError(f"{what} in a task of saga {self._saga_id!r}")
