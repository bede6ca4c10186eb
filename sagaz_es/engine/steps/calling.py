"""Calls what an author wrote: a coroutine function here, any other function in a thread."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

current_saga: ContextVar[str] = ContextVar("sagaz_es_current_saga", default="")
"""The id of the saga whose code runs, also in its threads: for log lines."""


async def call(function: Any, *args: Any, begins: Callable[[], object] | None = None) -> Any:
    """Call a step's function: a coroutine function here, any other one in a thread.

    `begins` is called here when the function is: there may be no thread to be had for a while.
    """
    if inspect.iscoroutinefunction(function):
        if begins is not None:
            begins()
        return await function(*args)
    loop = asyncio.get_running_loop()
    told = None if begins is None else partial(loop.call_soon_threadsafe, begins)
    value = await asyncio.to_thread(_in_thread, function, args, told)
    return await value if inspect.isawaitable(value) else value


# By the thread's identity: the saga whose code runs in it, and the function.
_in_threads: dict[int, tuple[str, str]] = {}


def calls_in_threads() -> list[tuple[str, str]]:
    """Sagas of which a thread of this process runs a function now, and its name; also where nobody
    waits for it any more: a thread cannot be stopped."""
    return sorted(set(_in_threads.copy().values()))


def sagas_in_threads() -> list[str]:
    """The sagas of `calls_in_threads`."""
    return sorted({saga_id for saga_id, _ in calls_in_threads()})


def _in_thread(
    function: Any, args: tuple[Any, ...], begins: Callable[[], object] | None = None
) -> Any:
    if begins is not None:
        begins()  # raises where the loop is closed: nobody would hear of what is done here
    thread = threading.get_ident()
    name = getattr(function, "__qualname__", None) or repr(function)
    _in_threads[thread] = current_saga.get(), name
    try:
        return function(*args)
    except StopIteration as error:  # no future can hold it: the step would never end
        raise RuntimeError("the step raised StopIteration") from error
    finally:
        del _in_threads[thread]
