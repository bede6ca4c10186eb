"""One saga, one loop: ask the core what follows, append it, run what may run, tell the outcome.

The loop numbers facts and carries its state forward by them at once (a prediction); it runs an
attempt only after the append with its start is confirmed. The outcome of a step and the start of
the next ones travel in one append.

Killed anywhere, the saga stays as the log has it, and the next owner goes on from there: an attempt
that was under way is of unknown outcome, and runs again with the same idempotency key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from sagaz_es.core import events as e
from sagaz_es.core.decide import (
    Attempt,
    Decision,
    Rules,
    cancel,
    decide,
    is_too_late,
    open_pivots,
    settle_pivots,
)
from sagaz_es.core.fold import advance
from sagaz_es.core.graph import Graph
from sagaz_es.core.state import DEADLINE, SagaState, dump_state
from sagaz_es.engine.partitions.cell import Cell
from sagaz_es.engine.partitions.partition import Partition
from sagaz_es.engine.steps.attempts import Attempts
from sagaz_es.engine.steps.child_attempts import Children, Outcome
from sagaz_es.engine.steps.contexts import Blobs, Seen
from sagaz_es.engine.steps.deadline import Deadlines, remind
from sagaz_es.engine.steps.fact_sizes import fact_size
from sagaz_es.engine.steps.saga_time import SagaTime
from sagaz_es.engine.steps.step_errors import stopped_because
from sagaz_es.engine.turns import Turns
from sagaz_es.errors import LostOwnership, PivotUndecided, RequestRefusedError, SagaEnded
from sagaz_es.ports import Clock
from sagaz_es.sagas.definition import Definition

logger = logging.getLogger("sagaz_es.engine")

PARK_US = 1_000_000  # a shorter wait is waited out by the loop itself

Todo: TypeAlias = tuple[list[Attempt], int, bool]
"""Attempts that may run now, when to decide again at the latest (µs; 0: when something happens),
whether what runs is to be stopped."""


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
        deadlines: Deadlines,
        turns: Turns | None = None,
        children: Children | None = None,
    ) -> None:
        self.cell = cell
        self.definition = definition
        self._partition = partition
        self._graph: Graph = definition.graph
        self._writer = writer
        self._clock = clock
        self._time = SagaTime(clock, cell)
        self._attempts = Attempts(
            cell.state,
            definition,
            time=self._time,
            resources=resources,
            blobs=blobs,
            deadlines=deadlines,
            children=children,
        )
        self._out: list[e.Event] = []
        self._out_size = 0
        self._woken: asyncio.Event | None = None
        self._running: dict[str, asyncio.Task[Outcome]] = {}
        self._task: asyncio.Task[Any] | None = None  # this loop's own
        self._inline: asyncio.Task[Any] | None = None  # the same, while it runs a step
        self._inline_step = ""
        self._reminders: dict[str, asyncio.TimerHandle] = {}  # of steps that were told to stop
        self._asked: set[tuple[str, str]] = set()  # what was asked about steps, in vain
        self.in_vain: dict[str, str] = {}  # why `resolve` could not say what became of a step
        self._asking: dict[str, str] = {}  # what is asked now: step -> ask
        self._news_of: set[str] = set()  # steps that there was news of since they were asked about
        self._posting = 0  # facts from outside that are on their way
        self._posted: dict[str, asyncio.Future[Any]] = {}  # those that are sent, by request
        self._news = False  # something was posted since the last decision
        self._cancel_request: e.CancelRequested | None = None
        self._cancelled: asyncio.Future[None] | None = None
        self._cancel_decided: asyncio.Future[None] | None = None  # told once that stands
        self._draining = False
        self._turns = turns  # until it has its turn
        self.lets_in: Callable[[SagaState], bool] | None = None
        """Of one that was taken over or woken: asked before it runs anything, until it says yes."""
        self._no_room = False  # it was not let in, the last time it was asked
        self.ready: asyncio.Future[None] | None = None
        self.starting = False  # its task is made; until it runs, nothing else may be numbered
        self.parked = False  # ended with nothing to run until somebody, or `wake_at`, wakes it
        self.wake_at = 0  # µs of the engine's clock; 0: only somebody

    @property
    def error(self) -> BaseException | None:
        """The failing step's own exception, while it is at hand."""
        return self._attempts.errors.last

    @property
    def scalars(self) -> dict[str, tuple[str, Any]]:
        """What its steps have read: key -> text and value; see `values_of`."""
        return self._attempts.contexts.values

    @property
    def state(self) -> SagaState:
        """The saga as this runner predicts it."""
        return self.cell.state

    @property
    def what_runs(self) -> str:
        """Its steps that run now, in words."""
        steps = [name for name, task in self._running.items() if not task.done()]
        if self._inline is not None:
            steps.append(self._inline_step)
        return ", ".join(f"step {name!r}" for name in steps) or "a hook or listener"

    # --- asked from outside ---

    def request_cancel(self, request: e.CancelRequested) -> asyncio.Future[None]:
        """Stop what runs and go back. Raises PivotPassed, SagaEnded before anything is stopped.

        While a pivot's outcome is open, nothing is stopped and nothing new begins until it is
        known; then the answer is PivotPassed, or PivotUndecided if only a person can find it out.
        """
        try:
            cancel(self.state, self._graph, request)
        except PivotUndecided:
            pass
        else:
            self._stop_attempts()
        if self._cancelled is None:
            self._cancelled = asyncio.get_running_loop().create_future()
        self._cancel_request = request
        self.look_again()
        return self._cancelled

    @property
    def awaits_pivot(self) -> bool:
        """Whether a cancel is decided only once the outcome of a pivot is known."""
        return bool(open_pivots(self.state, self._graph))

    def cancel_first(self, request: e.CancelRequested) -> None:
        """Go back before anything has run; for a saga that is about to begin."""
        self._cancel_request = request

    async def post(self, request_id: str, fact_of: Callable[[SagaState], e.Fact]) -> None:
        """Write a fact that comes from outside (a signal, a decision), whatever runs meanwhile;
        returns once it stands, whoever asked for it first. Raises SagaEnded, LostOwnership, and
        what `fact_of` refuses.

        Safe between any two awaits of the loop: what it has numbered is in the queue by then.
        """
        self._posting += 1  # the loop must not park on what it decided without the fact
        try:
            await self._begun()
            if request_id not in self.state.answered:
                if self.state.ended:
                    raise SagaEnded(self.state.saga_id, self.state.status, "changed")
                self._number(fact_of(self.state))
                sent = self._posted[request_id] = self._send()
                sent.add_done_callback(lambda _: self._posted.pop(request_id, None))
            if request_id in self._posted:
                await asyncio.shield(self._posted[request_id])
        finally:
            self._posting -= 1
            self._news = True
            self._wake()

    def posted_first(self, request_id: str) -> None:
        """A fact for this request is among the first, and stands with them."""
        assert self.ready is not None
        self._posted[request_id] = self.ready
        self.ready.add_done_callback(lambda _: self._posted.pop(request_id, None))

    def look_again(self) -> None:
        """Decide anew, also if the loop is about to park: something outside has changed."""
        self._news = True
        self._wake()

    def ask_again(self, step: str) -> None:
        """There is news of the child of this step."""
        self._asked = {asked for asked in self._asked if asked[0] != step}
        self._news_of.add(step)
        self.look_again()

    def abandon(self, error: Exception) -> None:
        """The loop has ended: tell whoever still waits for a cancel."""
        for answer in (self._cancelled, self._cancel_decided):
            if answer is not None and not answer.done():
                answer.set_exception(error)
                answer.exception()

    def leave_behind(self) -> None:
        """What still runs here does not accept that it is cancelled: the event loop does not wait
        for it when it ends, as `asyncio.run` would, without end."""
        for task in (self._task, *self._running.values()):
            if task is not None and not task.done():
                asyncio.tasks._unregister_task(task)

    def drain(self) -> None:
        """Start nothing new; end when the running attempts have ended and are recorded."""
        self._draining = True
        self._wake()

    async def checkpoint(self) -> int:
        """Write the whole state down; the offset of that. From there a take-over finds the saga."""
        await self._begun()
        text = dump_state(self.state).decode()
        self._number(e.SagaCheckpointed(text))
        events, size = self._out, self._out_size
        self._out, self._out_size = [], 0
        base = await self._partition.queue.put(self.cell, events, size)
        return base + len(events) - 1

    def release(self) -> asyncio.Future[int]:
        """Say in the log that nothing of the saga runs here any more; once nothing does."""
        self._number(e.SagaReleased("hand-over"))
        events, self._out = self._out, []
        return self._partition.queue.put(self.cell, events)

    async def _begun(self) -> None:
        """Wait until the loop has numbered its first facts: nothing may stand before the claim."""
        while self.starting:  # its task has not had its first turn
            if self.cell.lost or self._partition.closed:
                raise LostOwnership(self.state.saga_id)
            await asyncio.sleep(0)

    def _wake(self) -> None:
        if self._woken is not None:
            self._woken.set()

    # --- the loop ---

    async def run(self, first: Sequence[e.Fact] = ()) -> None:
        """To the end. Raises LostOwnership; leaves the saga unfinished when cancelled."""
        for fact in first:
            self._number(fact)
        self.starting = False
        state = self.state
        self._task = asyncio.current_task()
        try:
            while True:
                attempts, wake_at, stop = self._decide()
                seen: Mapping[str, Seen] = {}
                if self._running or wake_at or len(attempts) > 1:
                    # Beside others; one that is alone looks when it begins, nothing ends till then.
                    seen = self._attempts.contexts.look(attempts)
                if self._out:
                    began = type(self._out[0].fact) is e.SagaStarted
                    await self._send()
                    if self._attempts.telling is not None:
                        await self._attempts.telling.tell(began)
                if self._cancel_decided is not None:
                    if not self._cancel_decided.done():
                        self._cancel_decided.set_result(None)
                    self._cancel_decided = None
                if self.ready is not None and not self.ready.done():
                    self.ready.set_result(None)
                if state.ended:
                    return
                if self._draining and not self._running and not attempts:
                    return
                if stop:
                    late = is_too_late(state, self._graph, self._time.now())
                    self._stop_attempts(DEADLINE if late else "")
                if self._cancel_request is not None and attempts:
                    attempts = self._withdraw(attempts)
                    if not attempts:
                        continue
                if len(attempts) == 1 and not self._running and not wake_at:
                    self._take(attempts[0].step, await self._alone(attempts[0], seen))
                    continue
                for attempt in attempts:
                    task = asyncio.create_task(
                        self._attempts.perform(attempt, seen.get(attempt.step)),
                        name=f"sagaz-es {attempt.step}",
                    )
                    self._running[attempt.step] = task
                    task.add_done_callback(lambda _: self._wake())
                if not self._running and self._may_park(wake_at):
                    self.parked = True
                    self.wake_at = self._time.by_clock(wake_at) if wake_at else 0
                    return
                await self._wait(wake_at)
        except BaseException:
            # Wherever it was stopped, or lost: nothing runs on of a saga that goes on elsewhere.
            for reminder in self._reminders.values():
                reminder.cancel()
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
            raise

    def _may_park(self, wake_at: int) -> bool:
        """Whether nothing will happen for long: then the saga costs no task while it waits."""
        if self._cancel_request is not None or self._news or self._posting:
            return False
        return not wake_at or wake_at - self._time.now() > PARK_US

    def _decide(self) -> Todo:
        """Number every fact that follows now, and what may run once they are accepted."""
        if self._running:
            for step in [name for name, task in self._running.items() if task.done()]:
                task = self._running.pop(step)
                self._take(step, self._never_began(step) if task.cancelled() else task.result())
        self._news = False
        if self._cancel_request is not None:
            first = self._decide_cancel(self._cancel_request)
            if first is not None:
                return first
        if self._draining:
            return [], 0, False
        if self._turns is not None and (wake_at := self._wait_for_turn(self._turns)):
            return [], max(0, wake_at), False
        return self._follow(decide)

    def _follow(self, decide: Callable[[SagaState, Graph, int, Rules], Decision]) -> Todo:
        attempts: list[Attempt] = []
        state = self.state
        self._no_room = False
        while True:
            now = self._time.now()
            decision = decide(state, self._graph, now, self.definition.rules)
            if self.lets_in is not None and _runs_something(decision.run):
                if not self.lets_in(state):
                    self._no_room = True
                    return [], decision.wake_at, False
                self.lets_in = None
            for fact in decision.facts:
                self._number(fact, now)
            run = [each for each in decision.run if not each.ask or self._may_ask(each)]
            if self._asking:
                for each in run:
                    if not each.ask:  # whatever was asked about it is asked no more
                        self._asking.pop(each.step, None)
            attempts += run
            if not decision.facts or run:
                # With attempts to run, whatever else can start is among them already.
                return attempts, decision.wake_at, decision.stop_running
            if state.ended:
                return attempts, 0, False

    def _wait_for_turn(self, turns: Turns) -> int:
        """0: it may go on. Otherwise when to ask again; -1: when woken."""
        state, now = self.state, self._time.now()
        if not state.ended:
            wake_at = turns.ask(state, self._time.by_clock(now))  # the engine's, not the saga's
            wake_at = self._time.by_saga(wake_at) if wake_at > 0 else wake_at
            deadline = state.deadline_at
            if wake_at and not 0 < deadline <= now:
                return min(wake_at, deadline) if deadline and wake_at > 0 else deadline or wake_at
        self._turns = None
        return 0

    def _may_ask(self, attempt: Attempt) -> bool:
        """Whether this is not asked now, nor was in vain; what is told from now on is news."""
        step = attempt.step
        if (step, attempt.ask) in self._asked or step in self._running:
            return False
        self._asking[step] = attempt.ask
        self._news_of.discard(step)
        return True

    def _take(self, step: str, outcome: Outcome) -> None:
        """The outcome of an attempt."""
        if self._reminders and step in self._reminders:
            self._reminders.pop(step).cancel()
        asked = self._asking.pop(step, "")
        if outcome is None:
            if step not in self._news_of:
                self._asked.add((step, asked))
        elif asked == "resolve" and self.state.step(step).status != "outcome_unknown":
            pass  # a person has said meanwhile what became of it
        elif asked == "resolve" and type(outcome) is e.StepOutcomeUnknown:
            self._asked.add((step, asked))
            self.in_vain[step] = outcome.reason
            if not self.state.step(step).unresolved:  # asked again, it has the same to say
                self._number(outcome)
        elif self._is_overtaken(step, outcome):
            pass  # asked how its child ends, and goes back by now: it is asked for that
        elif type(outcome) is tuple:
            for fact in outcome:
                self._number(fact)
        else:
            assert isinstance(outcome, e.Fact)
            self._number(outcome)

    def _is_overtaken(self, step: str, outcome: Outcome) -> bool:
        """Whether this is how a child has ended, and its step is being undone already."""
        first = outcome[0] if type(outcome) is tuple else outcome
        forward = isinstance(first, e.ChildEnded | e.StepFailed)
        return forward and self.state.step(step).status == "compensating"

    def _never_began(self, step: str) -> e.Fact:
        """Its task was stopped before its first turn: the action was not called."""
        why = self._attempts.stopped.pop(step, "")
        return e.StepFailed(
            step,
            self.state.step(step).attempt,
            error_type="Cancelled",
            error_message=stopped_because("it was stopped before it ran", why),
        )

    def _withdraw(self, attempts: list[Attempt]) -> list[Attempt]:
        """A cancel came while their start was on its way: they never ran. What is left of them:
        what undoes, and what finds out about a pivot that may have happened before, or runs."""
        left = []
        for attempt in attempts:
            if attempt.undo or (attempt.step in self._graph.pivots and self._in_doubt(attempt)):
                left.append(attempt)
            elif not attempt.ask:
                self._number(
                    e.StepFailed(
                        attempt.step,
                        attempt.attempt,
                        error_type="Cancelled",
                        error_message="the saga was cancelled before the step ran",
                    )
                )
        return left

    def _in_doubt(self, attempt: Attempt) -> bool:
        return bool(attempt.ask) or self.state.step(attempt.step).unknown

    def _decide_cancel(self, request: e.CancelRequested) -> Todo | None:
        """What comes before the answer to a cancel; None: it is answered, and the saga goes on,
        back or, if that was refused, forward."""
        try:
            back = cancel(self.state, self._graph, request)
        except PivotUndecided as undecided:
            first = ([], 0, False) if self._draining else self._follow(settle_pivots)
            attempts, wake_at, _ = first
            pivots = open_pivots(self.state, self._graph)
            waits = any(n in self._running or self.state.step(n).child_start for n in pivots)
            if attempts or wake_at or waits or self._no_room or self._draining:
                return first
            self._refuse_cancel(undecided)
            return None
        except RequestRefusedError as refused:
            self._refuse_cancel(refused)
            return None
        if self._running:
            self._stop_attempts()
            return [], 0, False
        for fact in back:
            self._number(fact)
        self._cancel_request, self._cancel_decided = None, self._cancelled
        self._cancelled = None
        return None

    def _refuse_cancel(self, error: RequestRefusedError) -> None:
        self._cancel_request = None
        if self._cancelled is not None and not self._cancelled.done():
            self._cancelled.set_exception(error)
        self._cancelled = None

    def _number(self, fact: e.Fact, now: int = 0) -> None:
        """Give the fact its number, once and for all, and go on from it."""
        state = self.cell.state
        epoch = state.epoch + 1 if type(fact) is e.SagaClaimed else state.epoch
        event = e.Event(
            state.saga_id,
            state.saga_name,
            self._writer,
            epoch,
            state.sequence + 1,
            now or self._time.now(),
            fact,
            state.replay_id or state.caller_replay_id,
        )
        advance(state, event)
        self._out.append(event)
        self._out_size += 300
        if type(fact) is not e.StepStarted:
            self._out_size += fact_size(fact)

    def _send(self) -> asyncio.Future[int]:
        events, size = self._out, self._out_size
        self._out, self._out_size = [], 0
        return self._partition.queue.put(self.cell, events, size)

    async def _wait(self, wake_at: int) -> None:
        if self._woken is None:
            self._woken = asyncio.Event()
        woken = self._woken
        # Who called before the event existed has left a mark instead of setting it.
        if not self._news and not any(task.done() for task in self._running.values()):
            timer = None
            if wake_at:
                timer = asyncio.create_task(self._clock.sleep_until(self._time.by_clock(wake_at)))
                timer.add_done_callback(lambda done: None if done.cancelled() else woken.set())
            try:
                if not (self._draining and not self._running):
                    await woken.wait()
            finally:
                if timer is not None:
                    timer.cancel()
        woken.clear()

    # --- attempts ---

    async def _alone(self, attempt: Attempt, seen: Mapping[str, Seen]) -> Outcome:
        """Run the only attempt in this task: most sagas never need another one."""
        self._inline, self._inline_step = self._task, attempt.step
        try:
            return await self._attempts.perform(attempt, seen.get(attempt.step))
        finally:
            self._inline = None

    def _stop_attempts(self, why: str = "") -> None:
        """Cancel forward attempts under way, each once; compensations and pivots are left to
        finish."""
        left = open_pivots(self.state, self._graph)
        for step, task in self._running.items():
            if self._may_stop(step, left) and not task.done():
                self._stop(step, task, why)
        if self._inline is not None and self._may_stop(self._inline_step, left):
            self._stop(self._inline_step, self._inline, why)

    def _stop(self, step: str, task: asyncio.Task[Any], why: str) -> None:
        self._attempts.stopped[step] = why
        task.cancel()
        loop, told = asyncio.get_running_loop(), why or "the saga goes back"
        self._reminders[step] = remind(loop, self.state.saga_id, step, told)

    def _may_stop(self, step: str, left: frozenset[str]) -> bool:
        runs = self.state.step(step).status == "executing"
        return runs and step not in left and step not in self._attempts.stopped


def _runs_something(attempts: Sequence[Attempt]) -> bool:
    """Whether anything of the saga's own runs: asking about a child is none of that."""
    return any(attempt.ask not in ("child", "take_back") for attempt in attempts)
