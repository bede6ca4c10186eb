"""Attempts of a step that is a saga: the child is begun, heard of, and led back.

What makes and finds children is `children.py`; here what they come to becomes their parent's facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from sagaz_es.codec.values import from_text, to_text
from sagaz_es.core import events as e
from sagaz_es.core.decide import Attempt, completed_pivots, has_gone_back
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import join_names, join_object
from sagaz_es.engine.steps.contexts import Blobs, Contexts, check_left
from sagaz_es.engine.steps.fact_sizes import check_completed, check_size
from sagaz_es.engine.steps.step_errors import StepErrors, message_of
from sagaz_es.engine.steps.telling import Telling
from sagaz_es.errors import ChildSagaFailed, DefinitionError, SagaError, SagaStepError
from sagaz_es.sagas.context import StepContext
from sagaz_es.sagas.definition import Definition, StepDefinition
from sagaz_es.sagas.fan_out import RESULTS, child_name, starts_of
from sagaz_es.sagas.inputs import context_texts

Outcome: TypeAlias = e.Fact | tuple[e.Fact, ...] | None
"""What an attempt becomes; None: what was asked is not known."""


class Children(Protocol):
    """The sagas that steps start; see `engine.children`."""

    def new_id(self, parent: SagaState, step: str) -> str: ...
    async def ended(self, parent: SagaState, step: str) -> SagaState | e.RequestRefused | None: ...
    async def taken_back(
        self, parent: SagaState, step: str, attempt: int
    ) -> SagaState | e.RequestRefused | None: ...


class ChildAttempts:
    """Performs those of one saga."""

    def __init__(
        self,
        state: SagaState,
        definition: Definition,
        *,
        children: Children,
        blobs: Blobs | None,
        contexts: Contexts,
        errors: StepErrors,
        telling: Telling | None,
    ) -> None:
        self._state = state
        self._definition = definition
        self._children = children
        self._blobs = blobs
        self._contexts = contexts
        self._errors = errors
        self._telling = telling

    async def started(
        self, attempt: Attempt, step: StepDefinition, context: StepContext, value: Any
    ) -> e.Fact:
        """What a step returned becomes what its saga, or each of several, starts with."""
        changed, deleted = context.delta()
        if changed or deleted:
            key = next(iter((*changed, *deleted)))
            raise DefinitionError(
                f"step {step.name!r} changes {key!r} of its context; a child step only returns "
                "what its saga starts with"
            )
        texts = starts_of(step.name, value) if step.for_each else context_texts(value)
        if self._blobs is not None:
            texts = await self._blobs.off_load(texts, self._definition.name, step.name)
        text = join_object(texts)
        check_size(f"what the saga of step {step.name!r} starts with", len(text))
        return e.ChildStarted(
            step.name,
            self._children.new_id(self._state, step.name),
            child_name(self._definition.graph.by_name[step.name].child, texts),
            attempt.attempt,
            text,
            join_names(context.reads()),
        )

    async def ask(self, attempt: Attempt) -> Outcome:
        """Begin a child, or hear how it ended; or lead it back."""
        name, number = attempt.step, attempt.attempt
        if attempt.undo:
            answer = await self._children.taken_back(self._state, name, number)
        else:
            answer = await self._children.ended(self._state, name)
        if answer is None:
            if attempt.undo and self._telling is not None:  # it was asked to go back
                context = await self._contexts.of(self._definition.steps[name], attempt)
                await self._telling.entered(attempt, context)
            return None
        if isinstance(answer, e.RequestRefused):
            error = (answer.error, answer.message)
            if attempt.undo:
                return e.StepCompensationFailed(name, number, *error)
            return await self._failed(attempt, e.StepFailed(name, number, *error))
        if attempt.undo:
            fact = self._gone_back(attempt, answer)
            if self._telling is not None and isinstance(fact, e.StepCompensated):
                context = await self._contexts.of(self._definition.steps[name], attempt)
                self._telling.later(attempt, "on_compensation_complete", "", context)
            return fact
        ended = e.ChildEnded(name, answer.saga_id, answer.status)
        if answer.status == "completed":
            return ended, await self._completed(attempt, answer)
        error = _ended_badly(answer)
        stands = answer.status in ("failed", "partially_committed")
        failed = e.StepFailed(name, number, *error, unknown=stands)
        return ended, await self._failed(attempt, failed)

    async def _completed(self, attempt: Attempt, child: SagaState) -> e.Fact:
        """Of a result that cannot be kept the step fails, and the child is taken back."""
        step = self._definition.steps[attempt.step]
        try:
            texts: Mapping[str, str] = child.context
            if self._blobs is not None:
                texts = await self._blobs.load(texts)
            if step.result_keys is not None:
                texts = {key: texts[key] for key in step.result_keys}
            keys_set = dict(texts) if step.result_keys is not None else {}
            if keys_set and self._definition.context_type is not None:
                check_left(
                    self._definition, step.name, await self._contexts.of(step, attempt), keys_set
                )
            text = result = texts[RESULTS] if step.for_each else join_object(texts)
            if self._blobs is not None:
                keys_set, result = await self._blobs.off_load_completed(
                    keys_set, result, self._definition.name, step.name
                )
            fact = e.StepCompleted(
                attempt.step,
                attempt.attempt,
                result,
                join_object(keys_set) if keys_set else "",
                reads=self._state.step(attempt.step).reads,
            )
            check_completed(fact)
        except (KeyError, SagaError) as error:
            self._errors.keep(attempt.step, error)
            message = message_of(error)
            if isinstance(error, KeyError):
                message = f"the final context of saga {child.saga_id!r} has no {error}"
            failed = e.StepFailed(
                attempt.step, attempt.attempt, type(error).__name__, message, unknown=True
            )
            return await self._failed(attempt, failed)
        if self._telling is not None:
            context = await self._contexts.of(step, attempt)
            value = from_text(text)
            self._telling.later(attempt, "on_step_success", "on_success", context, value)
            self._telling.later(attempt, "", "on_exit", context)
        return fact

    async def _failed(self, attempt: Attempt, fact: e.StepFailed) -> e.Fact:
        if self._telling is not None:
            context = await self._contexts.of(self._definition.steps[attempt.step], attempt)
            error = SagaStepError(attempt.step, fact.error_type, fact.error_message)
            self._telling.later(attempt, "on_step_failure", "on_failure", context, error)
            self._telling.later(attempt, "", "on_exit", context)
        return fact

    def _gone_back(self, attempt: Attempt, head: SagaState) -> e.Fact:
        if has_gone_back(head):
            texts = {"saga_id": to_text(head.saga_id), "status": to_text(head.status)}
            return e.StepCompensated(attempt.step, attempt.attempt, join_object(texts))
        return e.StepCompensationFailed(attempt.step, attempt.attempt, *_ended_badly(head))


def _ended_badly(child: SagaState) -> tuple[str, str]:
    """Class and sentence of the error that a child's end, or its staying as it is, means."""
    why = ""
    if pivots := () if child.pivots_released else completed_pivots(child, child.step_graph):
        why = f"there is no way back behind its pivot {pivots[-1]!r}"
    elif child.error_text:
        by_step = child.failed_step and not child.missed_deadline
        about = f"step {child.failed_step!r} failed with " if by_step else ""
        why = f"{about}{child.error_text}"
    stuck = [n for n, s in child.steps.items() if s.status == "compensation_failed"]
    if stuck:
        why = "; ".join(filter(None, (why, f"not undone: {', '.join(map(repr, stuck))}")))
    return "ChildSagaFailed", str(ChildSagaFailed(child.saga_id, child.status, why))
