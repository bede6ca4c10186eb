"""Hooks of steps and listeners of sagas: told in order, never able to change an outcome.

They are told of what is accepted: a success after its StepCompleted stands in the log, and never
of a step that a replay reuses. What one raises is logged; the others still hear.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagaz_es.sagas.definition import Definition

logger = logging.getLogger("sagaz_es.engine")


class SagaListener:
    """A base for listeners: override what is of interest; each method may be sync or async.

    These here, and those of our listeners, can be awaited: `await super().on_saga_start(…)`.
    """

    async def on_saga_start(self, saga_name: str, saga_id: str, ctx: Any) -> Any:
        """Its start stands in the log."""

    async def on_saga_complete(self, saga_name: str, saga_id: str, ctx: Any) -> Any:
        """Every step is done."""

    async def on_saga_failed(self, saga_name: str, saga_id: str, ctx: Any, error: Any) -> Any:
        """It ended in any other way; `error`: the failing step's, or what else ended it."""

    async def on_step_enter(self, saga_name: str, step_name: str, ctx: Any) -> Any:
        """Before each attempt, whose number is `ctx.attempt`."""

    async def on_step_success(self, saga_name: str, step_name: str, ctx: Any, result: Any) -> Any:
        """It is done; `result` is what the step returned."""

    async def on_step_failure(self, saga_name: str, step_name: str, ctx: Any, error: Any) -> Any:
        """It failed for good, after its last attempt."""

    async def on_compensation_start(self, saga_name: str, step_name: str, ctx: Any) -> Any:
        """Before each attempt to undo the step."""

    async def on_compensation_complete(self, saga_name: str, step_name: str, ctx: Any) -> Any:
        """The step is undone."""


class Observers:
    """The hooks and listeners of one definition."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition

    async def saga(self, event: str, saga_id: str, ctx: Any, *more: Any) -> None:
        """Tell every listener of the saga as a whole."""
        for listener in self._definition.listeners:
            await _tell(getattr(listener, event, None), self._definition.name, saga_id, ctx, *more)

    async def step(self, event: str, hook: str, step: str, ctx: Any, *more: Any) -> None:
        """Tell the step's hook, then every listener."""
        function = getattr(self._definition.steps[step].hooks, hook, None)
        await _tell(function, ctx, step, *more)
        if event:
            for listener in self._definition.listeners:
                await _tell(getattr(listener, event, None), self._definition.name, step, ctx, *more)


def stops_the_task(error: BaseException) -> bool:
    """Whether an error that the user's code has let out means that this task is to end.

    A CancelledError also comes from waiting for something else that was cancelled: then it is an
    error like any other.
    """
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and bool(task and task.cancelling())


async def _tell(function: Any, *args: Any) -> None:
    if function is None:
        return
    try:
        answer = function(*args)
        if inspect.isawaitable(answer):
            await answer
    except (Exception, SystemExit, KeyboardInterrupt, asyncio.CancelledError) as error:
        # Neither does sys.exit() end anything here.
        if stops_the_task(error):
            raise
        logger.exception("a hook or listener failed; the saga goes on")
