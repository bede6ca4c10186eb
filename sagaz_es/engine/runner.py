"""One saga, one loop: ask the core what follows, append it, run what may run, tell the outcome.

The loop numbers facts and carries its state forward by them at once (a prediction); it runs an
attempt only after the append with its start is confirmed. The outcome of a step and the start of
the next ones travel in one append.

Killed anywhere, the saga stays as the log has it, and the next owner goes on from there: an attempt
that was under way is of unknown outcome, and runs again with the same idempotency key.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sagaz_es.codec.values import to_text
from sagaz_es.core import events as e
from sagaz_es.core.decide import Attempt, Decision, cancel, decide, failed_attempt
from sagaz_es.core.fold import advance
from sagaz_es.core.graph import Graph
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import join_names, join_object, names, split_object
from sagaz_es.engine.context import StepContext
from sagaz_es.engine.definition import Compensation, Definition, StepDefinition
from sagaz_es.engine.partition import Cell, Partition
from sagaz_es.errors import (
    MemoryFootprintError,
    RequestRefusedError,
    SagaTimeoutError,
    UnstorableValue,
)
from sagaz_es.ports import Clock

logger = logging.getLogger("sagaz_es.engine")

MAX_FACT_BYTES = 900_000
MAX_ERROR_CHARS = 4_000
MAX_TRACEBACK_CHARS = 16_000


class Blobs(Protocol):
    """Moves large values out of events and back; see `engine.blobs`."""

    async def off_load(self, texts: Mapping[str, str]) -> dict[str, str]: ...
    async def off_load_one(self, text: str, key: str = "result") -> str: ...
    async def load(self, texts: Mapping[str, str]) -> Mapping[str, str]: ...


class SagaRunner:
    """Runs one saga of this engine to its end, or until it is stopped or lost."""

    def __init__(
        self,
        cell: Cell,
        partition: Partition,
        definition: Definition,
        *,
        writer: bytes,
        clock: Clock,
        resources: Mapping[str, Any],
        blobs: Blobs | None,
    ) -> None:
        self.cell = cell
        self.definition = definition
        self.error: BaseException | None = None  # the step's own exception, while it is at hand
        self._partition = partition
        self._graph: Graph = definition.graph
        self._writer = writer
        self._clock = clock
        self._resources = resources
        self._blobs = blobs
        self._out: list[e.Event] = []
        self._out_size = 0
        self._woken: asyncio.Event | None = None
        self._running: dict[str, asyncio.Task[e.Fact]] = {}
        self._inline: asyncio.Task[Any] | None = None  # this loop's own task while it runs a step
        self._inline_step = ""
        self._stopped: set[str] = set()  # attempts that were cancelled on purpose
        self._cancel_request: e.CancelRequested | None = None
        self._cancelled: asyncio.Future[None] | None = None
        self._draining = False
        self.ready: asyncio.Future[None] | None = None

    @property
    def state(self) -> SagaState:
        """The saga as this runner predicts it."""
        return self.cell.state

    # --- asked from outside ---

    def request_cancel(self, request: e.CancelRequested) -> asyncio.Future[None]:
        """Stop what runs and go back. Raises PivotPassed, SagaEnded before anything is stopped."""
        cancel(self.state, self._graph, request)
        if self._cancelled is None:
            self._cancelled = asyncio.get_running_loop().create_future()
        self._cancel_request = request
        self._stop_attempts()
        self._wake()
        return self._cancelled

    def drain(self) -> None:
        """Start nothing new; end when the running attempts have ended and are recorded."""
        self._draining = True
        self._wake()

    def release(self) -> asyncio.Future[int]:
        """Say in the log that nothing of the saga runs here any more; once nothing does."""
        self._number(e.SagaReleased("hand-over"))
        events, self._out = self._out, []
        return self._partition.enqueue(self.cell, events)

    def _wake(self) -> None:
        if self._woken is not None:
            self._woken.set()

    # --- the loop ---

    async def run(self, first: Sequence[e.Fact] = ()) -> None:
        """To the end. Raises LostOwnership; leaves the saga unfinished when cancelled."""
        for fact in first:
            self._number(fact)
        state = self.state
        while True:
            attempts, wake_at, stop = self._decide()
            if self._out:
                await self._flush()
            if self.ready is not None and not self.ready.done():
                self.ready.set_result(None)
            if state.ended:
                return
            if self._draining and not self._running and not attempts:
                return
            if stop:
                self._stop_attempts()
            if self._cancel_request is not None and attempts:
                self._withdraw(attempts)
                continue
            if len(attempts) == 1 and not self._running and not wake_at:
                self._number(await self._alone(attempts[0]))
                continue
            for attempt in attempts:
                task = asyncio.create_task(self._attempt(attempt), name=f"sagaz-es {attempt.step}")
                self._running[attempt.step] = task
                task.add_done_callback(lambda _: self._wake())
            try:
                await self._wait(wake_at)
            except asyncio.CancelledError:
                for task in self._running.values():
                    task.cancel()
                await asyncio.gather(*self._running.values(), return_exceptions=True)
                raise

    def _decide(self) -> tuple[list[Attempt], int, bool]:
        """Number every fact that follows now, and what may run once they are accepted."""
        for step in [name for name, task in self._running.items() if task.done()]:
            self._number(self._running.pop(step).result())
        if self._cancel_request is not None and not self._running:
            self._answer_cancel(self._cancel_request)
        if self._draining or self._cancel_request is not None:
            return [], 0, False
        attempts: list[Attempt] = []
        while True:
            now = self._now()
            decision: Decision = decide(self.state, self._graph, now, self.definition.rules)
            for fact in decision.facts:
                self._number(fact)
            attempts += decision.run
            if not decision.facts or decision.run:
                # With attempts to run, whatever else can start is among them already.
                return attempts, decision.wake_at, decision.stop_running
            if self.state.ended:
                return attempts, 0, False

    def _withdraw(self, attempts: list[Attempt]) -> None:
        """A cancel came while their start was on its way: they never ran."""
        for attempt in attempts:
            self._number(
                e.StepFailed(
                    attempt.step,
                    attempt.attempt,
                    error_type="Cancelled",
                    error_message="the saga was cancelled before the step ran",
                )
            )

    def _answer_cancel(self, request: e.CancelRequested) -> None:
        self._cancel_request = None
        answer = self._cancelled
        try:
            for fact in cancel(self.state, self._graph, request):
                self._number(fact)
        except RequestRefusedError as error:
            if answer is not None and not answer.done():
                answer.set_exception(error)
        else:
            if answer is not None and not answer.done():
                answer.set_result(None)
        self._cancelled = None

    def _now(self) -> int:
        # A clock that steps back must not make a saga's times fall.
        return max(self._clock.now(), self.state.updated_at)

    def _number(self, fact: e.Fact) -> None:
        """Give the fact its number, once and for all, and go on from it."""
        state = self.state
        epoch = state.epoch + 1 if type(fact) is e.SagaClaimed else state.epoch
        event = e.Event(
            state.saga_id,
            state.saga_name,
            self._writer,
            epoch,
            state.sequence + 1,
            self._now(),
            fact,
            state.replay_id,
        )
        advance(state, event)
        self._out.append(event)
        self._out_size += 300 + _size(fact)

    async def _flush(self) -> None:
        events, size = self._out, self._out_size
        self._out, self._out_size = [], 0
        await self._partition.enqueue(self.cell, events, size)

    async def _wait(self, wake_at: int) -> None:
        if self._woken is None:
            self._woken = asyncio.Event()
        woken = self._woken
        if not any(task.done() for task in self._running.values()):
            timer = None
            if wake_at:
                timer = asyncio.create_task(self._clock.sleep_until(wake_at))
                timer.add_done_callback(lambda done: None if done.cancelled() else woken.set())
            try:
                if self._cancel_request is None or self._running:
                    if not (self._draining and not self._running):
                        await woken.wait()
            finally:
                if timer is not None:
                    timer.cancel()
        woken.clear()

    # --- attempts ---

    async def _alone(self, attempt: Attempt) -> e.Fact:
        """Run the only attempt in this task: most sagas never need another one."""
        self._inline, self._inline_step = asyncio.current_task(), attempt.step
        try:
            return await self._attempt(attempt)
        finally:
            self._inline = None

    def _stop_attempts(self) -> None:
        """Cancel forward attempts under way; compensations are left to finish."""
        for step, task in self._running.items():
            if self.state.step(step).status == "executing" and not task.done():
                self._stopped.add(step)
                task.cancel()
        if self._inline is not None and self.state.step(self._inline_step).status == "executing":
            self._stopped.add(self._inline_step)
            self._inline.cancel()

    async def _attempt(self, attempt: Attempt) -> e.Fact:
        """Run one attempt to its outcome."""
        step = self.definition.steps[attempt.step]
        plan: StepDefinition | Compensation
        if attempt.undo:
            assert step.compensation is not None, attempt.step
            plan = step.compensation
        else:
            plan = step
        try:
            context = await self._context(step, attempt)
            timeout = asyncio.timeout(plan.timeout_seconds)
            try:
                async with timeout:
                    if attempt.undo and isinstance(plan, Compensation) and plan.passes_result:
                        result = context.result_of(attempt.step)
                        value = await _call(plan.function, result, context)
                    else:
                        value = await _call(plan.function, context)
            except TimeoutError as error:
                if not timeout.expired():
                    raise  # the step's own
                what = "compensation" if attempt.undo else "step"
                late = SagaTimeoutError(attempt.step, plan.timeout_seconds, what)
                return self._failed(attempt, step, late.with_traceback(error.__traceback__), True)
            return await self._completed(attempt, context, value)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            assert task is not None
            if attempt.step in self._stopped:
                self._stopped.discard(attempt.step)
                task.uncancel()
            elif task.cancelling():
                raise  # this process stops: the saga stays unfinished, and is taken over
            # Otherwise something inside the step was cancelled, not the step.
            return self._failed(attempt, step, error, True)
        except Exception as error:
            return self._failed(attempt, step, error, False)

    async def _completed(self, attempt: Attempt, context: StepContext, value: Any) -> e.Fact:
        if attempt.undo:
            result = to_text(value, "result") if value is not None else ""
            return e.StepCompensated(attempt.step, attempt.attempt, result)
        keys_set, deleted = context.delta()
        result = ""
        if value is not None and value is not context:
            result = to_text(value, "result")
            if isinstance(value, Mapping):
                keys_set.update({key: to_text(item, key) for key, item in value.items()})
                deleted = [key for key in deleted if key not in value]
        if self._blobs is not None:
            keys_set = await self._blobs.off_load(keys_set)
            result = await self._blobs.off_load_one(result)
        fact = e.StepCompleted(
            attempt.step,
            attempt.attempt,
            result,
            join_object(keys_set) if keys_set else "",
            join_names(deleted),
            join_names(context.reads()),
        )
        size = _size(fact)
        if size > MAX_FACT_BYTES:
            raise MemoryFootprintError(f"what step {attempt.step!r} set", size, MAX_FACT_BYTES)
        return fact

    def _failed(
        self, attempt: Attempt, step: StepDefinition, error: BaseException, unknown: bool
    ) -> e.Fact:
        if not attempt.undo:
            self.error = error
        plan = step.compensation if attempt.undo else step
        assert plan is not None
        stopped = isinstance(error, asyncio.CancelledError)
        may_retry = not stopped
        if not attempt.undo:
            if unknown and step.at_most_once:
                return e.StepOutcomeUnknown(attempt.step, attempt.attempt, _message(error))
            # What cannot be kept will not be kept the next time either.
            hopeless = isinstance(error, UnstorableValue | MemoryFootprintError)
            may_retry &= isinstance(error, step.retry_on) and not isinstance(error, step.no_retry)
            may_retry &= not (hopeless or step.at_most_once)
        return failed_attempt(
            self.state,
            attempt,
            self._now(),
            plan.retry,
            error_type="Cancelled" if stopped else type(error).__name__,
            error_message="the step was cancelled" if stopped else _message(error),
            traceback=_traceback(error),
            unknown=unknown,
            may_retry=may_retry,
            jitter=random.uniform(0.9, 1.0),
        )

    async def _context(self, step: StepDefinition, attempt: Attempt) -> StepContext:
        state = self.state
        texts: Mapping[str, str] = state.context
        if attempt.undo and state.status == "executing":
            texts = inherited_context(state)
        elif attempt.undo and state.step(step.name).owner:
            # An override may stand where the step has kept what its undoing needs.
            texts = {**texts, **split_object(state.step(step.name).keys_set)}
        results = {
            name: other.result
            for name, other in state.steps.items()
            if other.status in ("completed", "stale", "compensating", "compensated")
        }
        if self._blobs is not None:
            texts = await self._blobs.load(texts)
            results = dict(await self._blobs.load(results))
        name = step.name
        return StepContext(
            texts,
            saga_id=state.saga_id,
            step=name,
            attempt=attempt.attempt,
            idempotency_key=_key(state, step, attempt),
            is_replay=bool(state.replay_id),
            resources=self._resources,
            results=results,
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
    key = f"{owner}/{step.name}"
    if step.idempotency_key:
        first = owner == (state.root_saga_id or state.saga_id)
        key = step.idempotency_key if first else f"{step.idempotency_key}/{owner}"
    return f"{key}/compensation" if attempt.undo else key


async def _call(function: Any, *args: Any) -> Any:
    """Call a step's function: a coroutine function here, any other one in a thread."""
    if inspect.iscoroutinefunction(function):
        return await function(*args)
    value = await asyncio.to_thread(function, *args)
    return await value if inspect.isawaitable(value) else value


def _message(error: BaseException) -> str:
    try:
        text = str(error) or type(error).__name__
    except Exception:
        text = type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()[:MAX_ERROR_CHARS]


def _traceback(error: BaseException) -> str:
    lines = traceback.format_exception(error)
    return "".join(lines).encode("utf-8", "backslashreplace").decode()[-MAX_TRACEBACK_CHARS:]


def _size(fact: e.Fact) -> int:
    """About how many bytes a fact's long texts take."""
    if isinstance(fact, e.StepStarted):
        return 0
    if isinstance(fact, e.StepCompleted):
        return len(fact.result) + len(fact.keys_set) + len(fact.reads)
    if isinstance(fact, e.SagaStarted):
        return len(fact.context) + len(fact.graph) + len(fact.standing)
    if isinstance(fact, e.StepFailed):
        return len(fact.traceback) + len(fact.error_message)
    return 1000
