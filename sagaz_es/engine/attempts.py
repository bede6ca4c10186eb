"""One attempt: a step's action, its compensation, or a handler that decides about it.

Whatever the code does becomes one fact: completed with what it changed, failed with its error and
the time of the next try, or of unknown outcome. Nothing of it is in the log before the runner
appends that fact.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from sagaz_es.codec.values import from_text, to_text
from sagaz_es.core import events as e
from sagaz_es.core.decide import (
    Attempt,
    CompensationFailureStrategy,
    completed_pivots,
    failed_attempt,
    has_gone_back,
)
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import join_names, join_object, names, split_object
from sagaz_es.engine.deadline import Deadline, Deadlines
from sagaz_es.engine.saga_time import SagaTime
from sagaz_es.errors import (
    ChildSagaFailed,
    ContextMismatch,
    DefinitionError,
    MemoryFootprintError,
    SagaError,
    SagaStepError,
    SagaTimeoutError,
    UnstorableValue,
)
from sagaz_es.sagas.context import StepContext
from sagaz_es.sagas.definition import Compensation, Definition, RecoveryAction, StepDefinition
from sagaz_es.sagas.fan_out import RESULTS, child_name, starts_of
from sagaz_es.sagas.inputs import context_texts
from sagaz_es.sagas.observers import Observers, stops_the_task
from sagaz_es.sagas.result import error_of
from sagaz_es.sagas.typed import as_mapping

logger = logging.getLogger("sagaz_es.engine")

MAX_FACT_BYTES = 900_000
MAX_ERROR_CHARS = 4_000
MAX_TRACEBACK_CHARS = 16_000

_PLAIN = frozenset({dict, str, int, float, bool, list, tuple})

current_saga: ContextVar[str] = ContextVar("sagaz_es_current_saga", default="")
"""The id of the saga whose code runs, also in its threads: for log lines."""


class Blobs(Protocol):
    """Moves large values out of events and back; see `engine.blobs`."""

    async def off_load(
        self, texts: Mapping[str, str], saga_name: str = "", step: str = ""
    ) -> dict[str, str]: ...
    async def off_load_one(
        self, text: str, key: str = "result", saga_name: str = "", step: str = ""
    ) -> str: ...
    def refers(self, texts: Mapping[str, str]) -> bool: ...
    async def load(self, texts: Mapping[str, str]) -> Mapping[str, str]: ...


Outcome: TypeAlias = e.Fact | tuple[e.Fact, ...] | None
"""What an attempt becomes; None: what was asked is not known."""


class Children(Protocol):
    """The sagas that steps start; see `engine.children`."""

    def new_id(self, parent: SagaState, step: str) -> str: ...
    async def ended(self, parent: SagaState, step: str) -> SagaState | e.RequestRefused | None: ...
    async def taken_back(
        self, parent: SagaState, step: str, attempt: int
    ) -> SagaState | e.RequestRefused | None: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """What of its saga an attempt sees, in texts."""

    texts: Mapping[str, str]
    results: Mapping[str, str]  # of the steps that have one
    undone: Mapping[str, str] | None  # of a compensation: what those before it have returned
    signal: str  # the payload that the step has waited for


class Attempts:
    """Performs the attempts of one saga."""

    def __init__(
        self,
        state: SagaState,
        definition: Definition,
        *,
        time: SagaTime,
        resources: Mapping[str, Any],
        blobs: Blobs | None,
        deadlines: Deadlines,
        children: Children | None = None,
    ) -> None:
        self._children = children
        self._deadlines = deadlines
        self._loop = asyncio.get_running_loop()
        self._errors: dict[str, BaseException] = {}  # by step, of its last attempt that failed
        self.stopped: dict[str, str] = {}  # steps whose attempt is cancelled on purpose; why
        self._state = state
        self._definition = definition
        self._time = time
        self._resources = resources
        self._blobs = blobs
        self.values: dict[str, tuple[str, Any]] = {}
        """Key -> text and its value, if it is a scalar: nobody can change that in place."""
        self._observers = Observers(definition) if definition.observed else None
        self.observed = definition.observed
        self._untold: list[tuple[Any, ...]] = []  # accepted once the next append is

    @property
    def error(self) -> BaseException | None:
        """The exception that the saga fails with, or that the last handler asked raised."""
        if self._state.failed_step:
            return self._errors.get(self._state.failed_step)
        return next(reversed(self._errors.values()), None)

    def look(self, attempts: Sequence[Attempt]) -> dict[str, Seen]:
        """What each of these sees, by step; to be called before their starts are sent.

        Law (no dirty read): a step sees what stands in the log before its start, and no outcome of
        a step beside it that is still on its way there: another engine may have taken over by then.
        """
        return {attempt.step: self._look(attempt) for attempt in attempts if not attempt.ask}

    async def perform(self, attempt: Attempt, seen: Seen | None = None) -> Outcome:
        """Run it to its outcome. None: who was asked does not know, or not yet. `seen`: of what is
        not asked about, see `look`."""
        if attempt.ask == "recover":
            return await self._recover(attempt)
        if attempt.ask == "resolve":
            return await self._resolve(attempt)
        if attempt.ask:
            return await self._ask_child(attempt)
        step = self._definition.steps[attempt.step]
        plan: StepDefinition | Compensation
        if attempt.undo:
            assert step.compensation is not None, attempt.step
            plan = step.compensation
        else:
            plan = step
        context: StepContext | None = None
        returned = False
        try:
            context = await self._context(step, attempt, seen)
            if self._observers is not None:
                await self._tell_entered(attempt, context)
            task = asyncio.current_task(self._loop)
            assert task is not None
            seconds, saga_id = plan.timeout_seconds, self._state.saga_id
            limit = Deadline(self._deadlines, task, seconds, saga_id, attempt.step)
            try:
                with limit:
                    if attempt.undo and isinstance(plan, Compensation):
                        value = await _call(plan.function, *plan.arguments(attempt.step, context))
                    elif not attempt.undo and attempt.step in self._definition.coroutines:
                        value = await step.function(context)
                    else:
                        value = await _call(plan.function, context)
            except TimeoutError as error:
                if not limit.expired:
                    raise  # the step's own
                what = "compensation" if attempt.undo else "step"
                late = SagaTimeoutError(attempt.step, plan.timeout_seconds, what)
                late = late.with_traceback(error.__traceback__)
                return self._failed(attempt, step, context, late, True)
            if step.child and not attempt.undo:
                fact = await self._child_started(attempt, step, context, value)
            else:
                returned = True
                fact = await self._completed(attempt, context, value)
            self._was_stopped(attempt.step)  # the step swallowed it
            return fact
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            assert task is not None
            why = self.stopped.get(attempt.step, "")
            if not self._was_stopped(attempt.step) and task.cancelling():
                raise  # this process stops: the saga stays unfinished, and is taken over
            # Otherwise something inside the step was cancelled, not the step. Before it had its
            # context it was not called.
            return self._failed(attempt, step, context, error, context is not None, why)
        except BaseException as error:
            # SystemExit and KeyboardInterrupt, too: outside of here they would end the process,
            # and every other one that takes the saga over.
            self._was_stopped(attempt.step)
            # What has returned has had its effect, even if what it left cannot be recorded.
            return self._failed(attempt, step, context, error, returned)

    def _was_stopped(self, step: str) -> bool:
        """Whether this attempt was cancelled on purpose; its task is as new then."""
        if step not in self.stopped:
            return False
        task = asyncio.current_task()
        assert task is not None
        del self.stopped[step]
        task.uncancel()
        return True

    async def _completed(self, attempt: Attempt, context: StepContext, value: Any) -> e.Fact:
        if attempt.undo:
            result = "" if value is None else await self._undo_result(attempt.step, value)
            self._later(attempt, "on_compensation_complete", "", context)
            return e.StepCompensated(attempt.step, attempt.attempt, result)
        keys_set, deleted = context.delta()
        result = ""
        if value is not None and value is not context:
            if type(value) not in _PLAIN and (made := as_mapping(value)) is not None:
                value = made  # a Struct, a dataclass, a model
            result = to_text(value, "result")
            if isinstance(value, Mapping):
                keys_set.update({key: to_text(item, key) for key, item in value.items()})
                deleted = [key for key in deleted if key not in value]
        if self._definition.context_type is not None and (keys_set or deleted):
            self._check_left(attempt.step, context, keys_set)
        if self._blobs is not None and (keys_set or result):
            name = self._definition.name
            keys_set = await self._blobs.off_load(keys_set, name, attempt.step)
            result = await self._blobs.off_load_one(result, "result", name, attempt.step)
        fact = e.StepCompleted(
            attempt.step,
            attempt.attempt,
            result,
            join_object(keys_set) if keys_set else "",
            join_names(deleted) if deleted else "",
            join_names(context.reads()),
        )
        _check_completed(fact)
        if self._observers is not None:
            if isinstance(value, Mapping):
                dict.update(context, value)  # as those see it who come after the step
            self._later(attempt, "on_step_success", "on_success", context, value)
            self._later(attempt, "", "on_exit", context)
        return fact

    async def _undo_result(self, step: str, value: Any) -> str:
        """What a compensation returned; empty if that cannot be kept: it has undone all the same,
        and must not run again because of what it said."""
        name = self._definition.name
        try:
            result = to_text(value, "result")
            if self._blobs is not None:
                result = await self._blobs.off_load_one(result, "result", name, f"{step}, undone")
            check_size("the result", len(result))
        except Exception as error:
            logger.warning(
                "saga %s (%s): the compensation of step %r is done, but what it returned, of type "
                "%s, is not kept: %s",
                self._state.saga_id,
                name,
                step,
                type(value).__name__,
                _message(error),
            )
            return ""
        return result

    def _check_left(self, step: str, context: StepContext, keys_set: Mapping[str, str]) -> None:
        """Raises ContextMismatch where what the step leaves behind is not of the saga's type."""
        with context.unnoticed():
            left = {**context, **{key: from_text(text) for key, text in keys_set.items()}}
        kind, name = self._definition.context_type, self._definition.name
        assert kind is not None
        kind.read(left, name, f"after step {step!r}")

    def _failed(
        self,
        attempt: Attempt,
        step: StepDefinition,
        context: StepContext | None,
        error: BaseException,
        unknown: bool,
        why_stopped: str = "",
    ) -> e.Fact:
        if not attempt.undo:
            self._keep(attempt.step, error)
        plan = step.compensation if attempt.undo else step
        assert plan is not None
        stopped = isinstance(error, asyncio.CancelledError)
        message = stopped_because("the step was cancelled", why_stopped) if stopped else ""
        may_retry = attempt.undo or not stopped
        unknown &= not step.child  # it has only said what its saga starts with
        if attempt.undo:
            strategy = self._definition.rules.compensation_failure
            may_retry &= strategy is CompensationFailureStrategy.RETRY_THEN_CONTINUE
        else:
            if unknown and step.at_most_once:
                return e.StepOutcomeUnknown(
                    attempt.step, attempt.attempt, message or _message(error)
                )
            # What cannot be kept will not be kept the next time either.
            hopeless = isinstance(
                error,
                UnstorableValue | MemoryFootprintError | ContextMismatch | DefinitionError,
            )
            may_retry &= _may_retry(error, step.retry_on, step.no_retry)
            may_retry &= not (hopeless or step.at_most_once)
        fact = failed_attempt(
            self._state,
            attempt,
            self._time.now(),
            plan.retry,
            error_type="Cancelled" if stopped else type(error).__name__,
            error_message=message or _message(error),
            traceback=_traceback(error),
            unknown=unknown,
            may_retry=may_retry,
            jitter=random.uniform(1.0, 1.1),
        )
        if isinstance(fact, e.StepFailed) and not fact.retry_at:
            self._later(attempt, "on_step_failure", "on_failure", context, error)
            self._later(attempt, "", "on_exit", context)
        return fact

    def _keep(self, step: str, error: BaseException) -> None:
        """For whoever waits for the saga and may raise it; what ends a process is told in words."""
        if isinstance(error, SystemExit | KeyboardInterrupt):
            self._errors.pop(step, None)
        else:
            self._errors[step] = error

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

    async def _context(
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

    # --- children ---

    async def _child_started(
        self, attempt: Attempt, step: StepDefinition, context: StepContext, value: Any
    ) -> e.Fact:
        assert self._children is not None
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

    async def _ask_child(self, attempt: Attempt) -> Outcome:
        """Begin a child, or hear how it ended; or lead it back."""
        assert self._children is not None
        name, number = attempt.step, attempt.attempt
        if attempt.undo:
            answer = await self._children.taken_back(self._state, name, number)
        else:
            answer = await self._children.ended(self._state, name)
        if answer is None:
            if attempt.undo and self._observers is not None:  # it was asked to go back
                context = await self._context(self._definition.steps[name], attempt)
                await self._tell_entered(attempt, context)
            return None
        if isinstance(answer, e.RequestRefused):
            error = (answer.error, answer.message)
            if attempt.undo:
                return e.StepCompensationFailed(name, number, *error)
            return await self._child_failed(attempt, e.StepFailed(name, number, *error))
        if attempt.undo:
            fact = self._child_back(attempt, answer)
            if self._observers is not None and isinstance(fact, e.StepCompensated):
                context = await self._context(self._definition.steps[name], attempt)
                self._later(attempt, "on_compensation_complete", "", context)
            return fact
        ended = e.ChildEnded(name, answer.saga_id, answer.status)
        if answer.status == "completed":
            return ended, await self._child_completed(attempt, answer)
        error = _ended_badly(answer)
        stands = answer.status in ("failed", "partially_committed")
        failed = e.StepFailed(name, number, *error, unknown=stands)
        return ended, await self._child_failed(attempt, failed)

    async def _child_completed(self, attempt: Attempt, child: SagaState) -> e.Fact:
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
                self._check_left(step.name, await self._context(step, attempt), keys_set)
            text = result = texts[RESULTS] if step.for_each else join_object(texts)
            if self._blobs is not None:
                name = self._definition.name
                keys_set = await self._blobs.off_load(keys_set, name, step.name)
                result = await self._blobs.off_load_one(result, "result", name, step.name)
            fact = e.StepCompleted(
                attempt.step,
                attempt.attempt,
                result,
                join_object(keys_set) if keys_set else "",
                reads=self._state.step(attempt.step).reads,
            )
            _check_completed(fact)
        except (KeyError, SagaError) as error:
            self._errors[attempt.step] = error
            message = _message(error)
            if isinstance(error, KeyError):
                message = f"the final context of saga {child.saga_id!r} has no {error}"
            failed = e.StepFailed(
                attempt.step, attempt.attempt, type(error).__name__, message, unknown=True
            )
            return await self._child_failed(attempt, failed)
        if self._observers is not None:
            context = await self._context(step, attempt)
            value = from_text(text)
            self._later(attempt, "on_step_success", "on_success", context, value)
            self._later(attempt, "", "on_exit", context)
        return fact

    async def _child_failed(self, attempt: Attempt, fact: e.StepFailed) -> e.Fact:
        if self._observers is not None:
            context = await self._context(self._definition.steps[attempt.step], attempt)
            error = SagaStepError(attempt.step, fact.error_type, fact.error_message)
            self._later(attempt, "on_step_failure", "on_failure", context, error)
            self._later(attempt, "", "on_exit", context)
        return fact

    def _child_back(self, attempt: Attempt, head: SagaState) -> e.Fact:
        if has_gone_back(head):
            texts = {"saga_id": to_text(head.saga_id), "status": to_text(head.status)}
            return e.StepCompensated(attempt.step, attempt.attempt, join_object(texts))
        return e.StepCompensationFailed(attempt.step, attempt.attempt, *_ended_badly(head))

    # --- handlers that decide ---

    async def _recover(self, attempt: Attempt) -> e.Fact:
        """Ask a step's recovery handler; when it cannot say, a person has to."""
        step = self._definition.steps[attempt.step]
        handler = step.recovery
        assert handler is not None, attempt.step
        manual = RecoveryAction.MANUAL_INTERVENTION.value
        decided = self._state.step(attempt.step).recoveries
        if decided >= handler.max_retries:
            reason = f"its handler has decided {decided} times already"
            return e.RecoveryDecided(attempt.step, manual, reason=reason)
        try:
            context = await self._context(step, attempt)
            async with asyncio.timeout(handler.timeout_seconds):
                answer = await _call(handler.function, context, self._step_error(attempt.step))
            action = RecoveryAction(answer)
            changed, _ = context.delta()
            if changed and self._definition.context_type is not None:
                self._check_left(attempt.step, context, changed)
        except BaseException as error:
            if stops_the_task(error):
                raise
            reason = f"its handler failed with {type(error).__name__}: {_message(error)}"
            return e.RecoveryDecided(attempt.step, manual, reason=reason)
        if changed and self._blobs is not None:
            changed = await self._blobs.off_load(changed, self._definition.name, attempt.step)
        keys_set = join_object(changed) if changed else ""
        return e.RecoveryDecided(attempt.step, action.value, keys_set, "handler")

    def _step_error(self, name: str) -> BaseException:
        step = self._state.step(name)
        error = self._errors.get(name)
        if error is not None and type(error).__name__ == step.error_type:
            return error
        return SagaStepError(name, step.error_type, step.error_message)

    async def _resolve(self, attempt: Attempt) -> e.Fact:
        """Ask what became of an at-most-once step of unknown outcome; if that does not say, the
        outcome is unknown for good, and a person has to."""
        step = self._definition.steps[attempt.step]
        assert callable(step.resolve), attempt.step  # bound to the saga by now
        try:
            context = await self._context(step, attempt)
            async with asyncio.timeout(step.timeout_seconds) as limit:
                answer = await _call(step.resolve, context)
            if answer is False:
                return not_happened(attempt.step, attempt.attempt)
            if answer is not None:
                return await self._completed(attempt, context, None if answer is True else answer)
            reason = "its resolve function returned None: it does not know"
        except BaseException as error:
            if stops_the_task(error):
                raise
            self._keep(attempt.step, error)
            reason = f"its resolve function failed with {type(error).__name__}: {_message(error)}"
            if isinstance(error, TimeoutError) and limit.expired():
                reason = f"its resolve function has not answered in {step.timeout_seconds:g} s"
        return e.StepOutcomeUnknown(attempt.step, attempt.attempt, reason)

    # --- telling ---

    def _later(
        self, attempt: Attempt, event: str, hook: str, context: StepContext | None, *more: Any
    ) -> None:
        if self._observers is not None and not (attempt.undo and hook == "on_exit"):
            self._untold.append((event, hook, attempt.step, context, *more))

    async def _tell_entered(self, attempt: Attempt, context: StepContext) -> None:
        assert self._observers is not None
        event, hook = (
            ("on_compensation_start", "on_compensate")
            if attempt.undo
            else ("on_step_enter", "on_enter")
        )
        with context.unnoticed():
            await self._observers.step(event, hook, attempt.step, context)

    async def tell(self, began: bool) -> None:
        """Tell hooks and listeners of what the last append made true."""
        if self._observers is None:
            return
        state = self._state
        untold, self._untold = self._untold, []
        if began:
            await self._observers.saga("on_saga_start", state.saga_id, self._plain())
        for event, hook, step, context, *more in untold:
            await self._observers.step(event, hook, step, context, *more)
        if state.status == "completed":
            await self._observers.saga("on_saga_complete", state.saga_id, self._plain())
        elif state.ended:
            error = error_of(state, self.error if state.failed_step else None)
            await self._observers.saga("on_saga_failed", state.saga_id, self._plain(), error)

    def _plain(self) -> dict[str, Any]:
        return {key: from_text(text) for key, text in self._state.context.items()}


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


def stopped_because(what: str, why: str) -> str:
    """The message of an attempt that was stopped; `why` may be empty: somebody wanted it."""
    return f"{what}: {why}" if why else what


def not_happened(step: str, attempt: int) -> e.StepFailed:
    """An attempt of unknown outcome that turned out to have had no effect."""
    return e.StepFailed(
        step, attempt, error_type="NotHappened", error_message="its effect did not happen"
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


async def _call(function: Any, *args: Any) -> Any:
    """Call a step's function: a coroutine function here, any other one in a thread."""
    if inspect.iscoroutinefunction(function):
        return await function(*args)
    value = await asyncio.to_thread(_in_thread, function, args)
    return await value if inspect.isawaitable(value) else value


_in_threads: dict[int, str] = {}  # by the thread's identity: the saga whose code runs in it


def sagas_in_threads() -> list[str]:
    """Sagas of which a thread of this process runs code now, also code that nobody waits for any
    more: a thread cannot be stopped."""
    return sorted(set(_in_threads.copy().values()))


def _in_thread(function: Any, args: tuple[Any, ...]) -> Any:
    thread = threading.get_ident()
    _in_threads[thread] = current_saga.get()
    try:
        return function(*args)
    except StopIteration as error:  # no future can hold it: the step would never end
        raise RuntimeError("the step raised StopIteration") from error
    finally:
        del _in_threads[thread]


def _may_retry(
    error: BaseException,
    retry_on: tuple[type[BaseException], ...],
    no_retry: tuple[type[BaseException], ...],
) -> bool:
    """Whether an error's class lets it be tried again; a group's does if those of all in it do."""
    if _is_one(error, no_retry):
        return False
    if not isinstance(error, BaseExceptionGroup):
        return _is_one(error, retry_on)
    named = any(issubclass(kind, BaseExceptionGroup) for kind in retry_on)
    if named and _is_one(error, retry_on):
        return not any(_is_one(each, no_retry) for each in _leaves(error))
    return all(_may_retry(each, retry_on, no_retry) for each in error.exceptions)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _is_one(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether it is of the kinds. `sys.exit()` in a step counts as an Exception."""
    if isinstance(error, SystemExit | KeyboardInterrupt) and Exception in kinds:
        return True
    return isinstance(error, kinds)


def _message(error: BaseException) -> str:
    try:
        text = str(error) or type(error).__name__
    except BaseException:
        text = type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()[:MAX_ERROR_CHARS]


def _traceback(error: BaseException) -> str:
    lines = traceback.format_exception(error)
    return "".join(lines).encode("utf-8", "backslashreplace").decode()[-MAX_TRACEBACK_CHARS:]


_HAS_RESULT = frozenset({"completed", "stale", "compensating", "compensated"})


def check_size(what: str, size: int, why: str = "") -> None:
    """Raises MemoryFootprintError for what no record holds; `why` it may be larger than thought."""
    if size > MAX_FACT_BYTES:
        raise MemoryFootprintError(
            what,
            size,
            MAX_FACT_BYTES,
            f"{what} takes {size} bytes in the log{why}, more than the limit of {MAX_FACT_BYTES}; "
            "give the engine a store, which keeps large values beside the log, or keep them "
            "elsewhere and their address here",
        )


def _check_completed(fact: e.StepCompleted) -> None:
    twice = ""
    if len(fact.result) > 1000 and fact.keys_set:
        twice = " (a mapping that a step returns is kept twice: as its result, and in the context)"
    check_size(f"what step {fact.step!r} set", fact_size(fact), twice)


def fact_size(fact: e.Fact) -> int:
    """About how many bytes a fact's long texts take."""
    if type(fact) is e.StepStarted:
        return 0
    if type(fact) is e.StepCompleted:
        return len(fact.result) + len(fact.keys_set) + len(fact.reads)
    if type(fact) is e.ChildStarted:
        return len(fact.context) + len(fact.reads)
    if type(fact) is e.SagaStarted:
        return len(fact.context) + len(fact.graph) + len(fact.standing)
    if type(fact) is e.StepFailed:
        return len(fact.traceback) + len(fact.error_message)
    return 1000
