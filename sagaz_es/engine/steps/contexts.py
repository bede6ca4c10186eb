"""What a step is given: the saga as it stood before the step's start, and the key of its effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from sagaz_es.codec.values import from_text
from sagaz_es.core.decide import Attempt
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import names, split_object
from sagaz_es.sagas.context import StepContext
from sagaz_es.sagas.definition import Definition, StepDefinition

_HAS_RESULT = frozenset({"completed", "stale", "compensating", "compensated"})


class Blobs(Protocol):
    """Moves large values out of events and back; see `sagas.large_values`."""

    async def off_load(
        self, texts: Mapping[str, str], saga_name: str = "", step: str = ""
    ) -> dict[str, str]: ...
    async def off_load_completed(
        self, keys_set: Mapping[str, str], result: str, saga_name: str, step: str
    ) -> tuple[dict[str, str], str]: ...
    async def off_load_one(
        self, text: str, key: str = "result", saga_name: str = "", step: str = ""
    ) -> str: ...
    def refers(self, texts: Mapping[str, str]) -> bool: ...
    async def load(self, texts: Mapping[str, str]) -> Mapping[str, str]: ...


class Seen(NamedTuple):
    """What of its saga an attempt sees, in texts: its own, whatever the saga does meanwhile."""

    texts: Mapping[str, str]
    results: Mapping[str, str]  # of the steps that have one
    undone: Mapping[str, str] | None  # of a compensation: what those before it have returned
    signal: str  # the payload that the step has waited for


class Contexts:
    """The contexts of one saga's steps."""

    def __init__(
        self, state: SagaState, *, resources: Mapping[str, Any], blobs: Blobs | None
    ) -> None:
        self._state = state
        self._resources = resources
        self._blobs = blobs
        self.values: dict[str, tuple[str, Any]] = {}
        """Key -> text and its value, if it is a scalar: nobody can change that in place."""

    def look(self, attempts: Sequence[Attempt]) -> dict[str, Seen]:
        """What each of these sees, by step; to be called before their starts are sent, unless one
        is alone: then nothing ends beside it.

        Law (no dirty read): a step sees what stands in the log before its start, and no outcome of
        a step beside it that is still on its way there: another engine may have taken over by then.
        """
        return {attempt.step: self._look(attempt) for attempt in attempts if not attempt.ask}

    def _look(self, attempt: Attempt) -> Seen:
        state, name = self._state, attempt.step
        step = state.step(name)
        if attempt.undo and state.status == "executing":
            texts = inherited_context(state)
        elif attempt.undo and step.owner:
            # An override may stand where the step has kept what its undoing needs.
            texts = {**state.context, **split_object(step.keys_set)}
        else:
            texts = dict(state.context)
        results = {
            n: other.result for n, other in state.steps.items() if other.status in _HAS_RESULT
        }
        undone: dict[str, str] | None = None
        if attempt.undo:
            undone = {n: other.undo_result for n, other in state.steps.items() if other.undo_result}
        return Seen(texts, results, undone, step.signal)

    async def of(
        self, step: StepDefinition, attempt: Attempt, seen: Seen | None = None
    ) -> StepContext:
        """What the step is given; without `seen`, as the saga stands now."""
        state, name = self._state, step.name
        seen = seen or self._look(attempt)
        texts, results, undone, signal = seen.texts, seen.results, seen.undone, seen.signal
        if self._blobs is not None:
            if self._blobs.refers(texts):
                texts = await self._blobs.load(texts)
            if self._blobs.refers(results):
                results = await self._blobs.load(results)
            if undone is not None:
                undone = await self._blobs.load(undone)
            if signal and self._blobs.refers({name: signal}):
                signal = (await self._blobs.load({name: signal}))[name]
        return StepContext(
            texts,
            saga_id=state.saga_id,
            step=name,
            attempt=attempt.attempt,
            idempotency_key=_key(state, step, attempt),
            is_replay=bool(state.replay_id or state.caller_replay_id),
            resources=self._resources,
            results=results,
            signal=signal,
            known=self.values,
            undone=undone,
            saga_name=state.saga_name,
        )


def inherited_context(state: SagaState) -> dict[str, str]:
    """What a branch's undoing of inherited effects sees: the context in which they were made,
    without the overrides, which are meant for what comes."""
    texts = dict(state.start)
    for step in state.steps.values():
        if step.owner:
            texts.update(split_object(step.keys_set))
            for key in names(step.keys_deleted):
                texts.pop(key, None)
    return texts


def _key(state: SagaState, step: StepDefinition, attempt: Attempt) -> str:
    """The key of the effect, and of its undoing, which says whose effect it is: an inherited one
    has the key of the saga that made it, and one that was made again has another."""
    owner = (attempt.undo and state.step(step.name).owner) or state.saga_id
    key = f"{owner}/{step.idempotency_key or step.name}"
    return f"{key}/compensation" if attempt.undo else key


def check_left(
    definition: Definition, step: str, context: StepContext, keys_set: Mapping[str, str]
) -> None:
    """Raises ContextMismatch where what the step leaves behind is not of the saga's type."""
    with context.unnoticed():
        left = {**context, **{key: from_text(text) for key, text in keys_set.items()}}
    kind, name = definition.context_type, definition.name
    assert kind is not None
    kind.read(left, name, f"after step {step!r}")
