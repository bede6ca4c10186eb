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
from collections.abc import Mapping
from typing import Any

from sagaz_es.codec.values import to_text
from sagaz_es.core import events as e
from sagaz_es.core.decide import Attempt, CompensationFailureStrategy, failed_attempt
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import join_names, join_object
from sagaz_es.engine.steps.calling import call
from sagaz_es.engine.steps.child_attempts import ChildAttempts, Children, Outcome
from sagaz_es.engine.steps.contexts import Blobs, Contexts, Seen, check_left
from sagaz_es.engine.steps.deadline import Deadline, Deadlines
from sagaz_es.engine.steps.fact_sizes import check_completed, check_size
from sagaz_es.engine.steps.saga_time import SagaTime
from sagaz_es.engine.steps.step_errors import (
    StepErrors,
    is_retried,
    message_of,
    not_happened,
    stopped_because,
    traceback_of,
)
from sagaz_es.engine.steps.telling import Telling
from sagaz_es.errors import (
    ContextMismatch,
    DefinitionError,
    MemoryFootprintError,
    SagaTimeoutError,
    UnstorableValue,
)
from sagaz_es.sagas.context import StepContext
from sagaz_es.sagas.definition import Compensation, Definition, RecoveryAction, StepDefinition
from sagaz_es.sagas.observers import stops_the_task
from sagaz_es.sagas.typed import as_mapping

logger = logging.getLogger("sagaz_es.engine")

_PLAIN = frozenset({dict, str, int, float, bool, list, tuple})


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
        self.stopped: dict[str, str] = {}  # steps whose attempt is cancelled on purpose; why
        self._state = state
        self._definition = definition
        self._time = time
        self._blobs = blobs
        self.contexts = Contexts(state, resources=resources, blobs=blobs)
        self.errors = StepErrors(state)
        self.telling = Telling(state, definition, self.errors) if definition.observed else None

    async def perform(self, attempt: Attempt, seen: Seen | None = None) -> Outcome:
        """Run it to its outcome. None: who was asked does not know, or not yet. `seen`: of what is
        not asked about, see `Contexts.look`."""
        if attempt.ask == "recover":
            return await self._recover(attempt)
        if attempt.ask == "resolve":
            return await self._resolve(attempt)
        if attempt.ask:
            return await self._of_child().ask(attempt)
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
            context = await self.contexts.of(step, attempt, seen)
            if self.telling is not None:
                await self.telling.entered(attempt, context)
            args: tuple[Any, ...] = (context,)
            if isinstance(plan, Compensation):
                args = plan.arguments(attempt.step, context)
                here = inspect.iscoroutinefunction(plan.function)
            else:
                here = attempt.step in self._definition.coroutines
            limit = self._limit(attempt.step, plan.timeout_seconds, here=here)
            try:
                with limit:
                    if here:
                        value = await plan.function(*args)
                    else:
                        value = await call(plan.function, *args, begins=limit.begin)
            except TimeoutError as error:
                if not limit.expired:
                    raise  # the step's own
                what = "compensation" if attempt.undo else "step"
                late = SagaTimeoutError(attempt.step, plan.timeout_seconds, what)
                late = late.with_traceback(error.__traceback__)
                return self._failed(attempt, step, context, late, True)
            if step.child and not attempt.undo:
                fact = await self._of_child().started(attempt, step, context, value)
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

    def _of_child(self) -> ChildAttempts:
        assert self._children is not None
        return ChildAttempts(
            self._state,
            self._definition,
            children=self._children,
            blobs=self._blobs,
            contexts=self.contexts,
            errors=self.errors,
            telling=self.telling,
        )

    def _limit(self, step: str, seconds: float, *, here: bool) -> Deadline:
        """Of code that is about to be called; it counts from then on, unless that is not `here` but
        in a thread, which has to be had first."""
        task = asyncio.current_task(self._loop)
        assert task is not None
        return Deadline(self._deadlines, task, seconds, self._state.saga_id, step, waits=not here)

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
            if self.telling is not None:
                self.telling.later(attempt, "on_compensation_complete", "", context)
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
            check_left(self._definition, attempt.step, context, keys_set)
        if self._blobs is not None and (keys_set or result):
            keys_set, result = await self._blobs.off_load_completed(
                keys_set, result, self._definition.name, attempt.step
            )
        fact = e.StepCompleted(
            attempt.step,
            attempt.attempt,
            result,
            join_object(keys_set) if keys_set else "",
            join_names(deleted) if deleted else "",
            join_names(context.reads()),
        )
        check_completed(fact)
        if self.telling is not None:
            if isinstance(value, Mapping):
                dict.update(context, value)  # as those see it who come after the step
            self.telling.later(attempt, "on_step_success", "on_success", context, value)
            self.telling.later(attempt, "", "on_exit", context)
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
                message_of(error),
            )
            return ""
        return result

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
            self.errors.keep(attempt.step, error)
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
                    attempt.step, attempt.attempt, message or message_of(error)
                )
            # What cannot be kept will not be kept the next time either.
            hopeless = isinstance(
                error,
                UnstorableValue | MemoryFootprintError | ContextMismatch | DefinitionError,
            )
            may_retry &= is_retried(error, step.retry_on, step.no_retry)
            may_retry &= not (hopeless or step.at_most_once)
        fact = failed_attempt(
            self._state,
            attempt,
            self._time.now(),
            plan.retry,
            error_type="Cancelled" if stopped else type(error).__name__,
            error_message=message or message_of(error),
            traceback=traceback_of(error),
            unknown=unknown,
            may_retry=may_retry,
            jitter=random.uniform(1.0, 1.1),
        )
        final = isinstance(fact, e.StepFailed) and not fact.retry_at
        if final and self.telling is not None:
            self.telling.later(attempt, "on_step_failure", "on_failure", context, error)
            self.telling.later(attempt, "", "on_exit", context)
        return fact

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
            context = await self.contexts.of(step, attempt)
            failure = self.errors.of(attempt.step)
            here = inspect.iscoroutinefunction(handler.function)
            with self._limit(attempt.step, handler.timeout_seconds, here=here) as limit:
                answer = await call(handler.function, context, failure, begins=limit.begin)
            action = RecoveryAction(answer)
            changed, _ = context.delta()
            if changed and self._definition.context_type is not None:
                check_left(self._definition, attempt.step, context, changed)
        except BaseException as error:
            if stops_the_task(error):
                raise
            reason = f"its handler failed with {type(error).__name__}: {message_of(error)}"
            return e.RecoveryDecided(attempt.step, manual, reason=reason)
        if changed and self._blobs is not None:
            changed = await self._blobs.off_load(changed, self._definition.name, attempt.step)
        keys_set = join_object(changed) if changed else ""
        return e.RecoveryDecided(attempt.step, action.value, keys_set, "handler")

    async def _resolve(self, attempt: Attempt) -> e.Fact:
        """Ask what became of an at-most-once step of unknown outcome; if that does not say, the
        outcome is unknown for good, and a person has to."""
        step = self._definition.steps[attempt.step]
        assert callable(step.resolve), attempt.step  # bound to the saga by now
        here = inspect.iscoroutinefunction(step.resolve)
        limit = self._limit(attempt.step, step.timeout_seconds, here=here)
        try:
            context = await self.contexts.of(step, attempt)
            with limit:
                answer = await call(step.resolve, context, begins=limit.begin)
            if answer is False:
                return not_happened(attempt.step, attempt.attempt)
            if answer is not None:
                return await self._completed(attempt, context, None if answer is True else answer)
            reason = "its resolve function returned None: it does not know"
        except BaseException as error:
            if stops_the_task(error):
                raise
            self.errors.keep(attempt.step, error)
            reason = f"its resolve function failed with {type(error).__name__}: {message_of(error)}"
            if isinstance(error, TimeoutError) and limit.expired:
                reason = f"its resolve function has not answered in {step.timeout_seconds:g} s"
        return e.StepOutcomeUnknown(attempt.step, attempt.attempt, reason)
