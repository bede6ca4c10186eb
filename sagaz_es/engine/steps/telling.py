"""Tells a saga's hooks and listeners what has become true of it."""

from __future__ import annotations

from typing import Any

from sagaz_es.codec.values import from_text
from sagaz_es.core.decide import Attempt
from sagaz_es.core.state import SagaState
from sagaz_es.engine.steps.step_errors import StepErrors
from sagaz_es.sagas.context import StepContext
from sagaz_es.sagas.definition import Definition
from sagaz_es.sagas.observers import Observers
from sagaz_es.sagas.result import error_of


class Telling:
    """What the hooks and listeners of one saga are told, and when."""

    def __init__(self, state: SagaState, definition: Definition, errors: StepErrors) -> None:
        self._state = state
        self._errors = errors
        self._observers = Observers(definition)
        self._untold: list[tuple[Any, ...]] = []  # accepted once the next append is

    def later(
        self, attempt: Attempt, event: str, hook: str, context: StepContext | None, *more: Any
    ) -> None:
        """Tell it once what the attempt came to is accepted: a listener's `event`, a step's own
        `hook`; either may be empty."""
        if not (attempt.undo and hook == "on_exit"):
            self._untold.append((event, hook, attempt.step, context, *more))

    async def entered(self, attempt: Attempt, context: StepContext) -> None:
        """Tell now that an attempt begins."""
        event, hook = (
            ("on_compensation_start", "on_compensate")
            if attempt.undo
            else ("on_step_enter", "on_enter")
        )
        with context.unnoticed():
            await self._observers.step(event, hook, attempt.step, context)

    async def tell(self, began: bool) -> None:
        """Tell of what the last append made true."""
        state = self._state
        untold, self._untold = self._untold, []
        if began:
            await self._observers.saga("on_saga_start", state.saga_id, self._plain())
        for event, hook, step, context, *more in untold:
            await self._observers.step(event, hook, step, context, *more)
        if state.status == "completed":
            await self._observers.saga("on_saga_complete", state.saga_id, self._plain())
        elif state.ended:
            error = error_of(state, self._errors.last if state.failed_step else None)
            await self._observers.saga("on_saga_failed", state.saga_id, self._plain(), error)

    def _plain(self) -> dict[str, Any]:
        return {key: from_text(text) for key, text in self._state.context.items()}
