"""The acceptance rule, and what each fact does to a state. Read this file first.

Kafka has no conditional append, so two engines can both append "number 7". The fold decides, the
same way for every reader, because a partition is totally ordered:

- A fact is accepted if `(writer, epoch) == (state.writer, state.epoch)` and
  `sequence == state.sequence + 1`.
- `SagaStarted` is accepted if the saga does not exist (sequence 1, epoch 0); `SagaClaimed` if
  `epoch == state.epoch + 1` and `sequence == state.sequence + 1`; so is `ReplayBranched` on a saga
  that has ended (a replay is its own claim). Each makes its writer the saga's writer.
- A recorded saga (epoch -1) has many writers: the next number of each is accepted, in log order,
  and the fold gives the saga's own sequence. The first fact of an unknown saga begins it.
- Everything else is rejected, counted by cause, and changes nothing.

Law (one winner): of all events of a saga with one sequence, at most one changes the state.
Law (one writer an epoch): all accepted facts of an epoch have one writer.
Law (late is harmless): an event that comes again, or from a writer that lost the saga, changes
nothing.
Law (asked once): of the decisions that answer one request, only the first changes what a saga is.
Law (total): no event raises, whatever its order.
Source: DESIGN.md §4; `tests/property/test_fold.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from sagaz_es.core import events as e
from sagaz_es.core.effects import Effect, load_effects
from sagaz_es.core.graph import parse_graph
from sagaz_es.core.state import PENDING, SagaState, StepState
from sagaz_es.core.texts import names, split_object
from sagaz_es.errors import DefinitionError

_replace = msgspec.structs.replace
_PLAN = msgspec.json.Decoder(list[tuple[str, str, str]])

MAX_ANSWERED = 256
"""Requests of one saga that the state remembers: who asks again later than that asks anew."""

NOT_HAPPENED = "NotHappened"
"""The error type of a step of unknown outcome that turned out to have had no effect."""


class Verdict(StrEnum):
    """What became of an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"  # the same event, or the same number of the same writer, again
    STALE_WRITER = "stale_writer"  # from a writer that does not own the saga (any more)
    GAP = "gap"  # a number beyond the next one
    EXISTS = "exists"  # a second start, or a claim that came too late
    UNREADABLE = "unreadable"  # it holds a text that is no JSON of the form it should have


class Judged(Protocol):
    """As much of a state as the acceptance rule looks at."""

    writer: bytes
    epoch: int
    sequence: int
    recorded: bool
    recorders: dict[str, int]

    @property
    def ended(self) -> bool: ...


def judge(state: Judged, event: e.Event) -> Verdict:
    """Whether the fold accepts `event` now, and if not, why not."""
    verdict = _judge(state, event)
    if verdict is Verdict.ACCEPTED and not _readable(event.fact):
        return Verdict.UNREADABLE
    return verdict


def _judge(state: Judged, event: e.Event) -> Verdict:
    if event.epoch == e.RECORDED_EPOCH:
        if state.sequence and not state.recorded:
            return Verdict.STALE_WRITER
        return _numbered(event.sequence, state.recorders.get(event.writer.hex(), 0) + 1)
    if event.writer == state.writer and event.epoch == state.epoch and state.sequence:
        return _numbered(event.sequence, state.sequence + 1)
    fact = type(event.fact)
    if fact is e.SagaStarted:
        if state.sequence:
            return Verdict.EXISTS
        return Verdict.ACCEPTED if (event.epoch, event.sequence) == (0, 1) else Verdict.GAP
    if not state.sequence:
        return Verdict.GAP
    claims = fact is e.SagaClaimed and not state.recorded
    if claims or (fact is e.ReplayBranched and state.ended):
        if event.epoch != state.epoch + 1:
            return Verdict.STALE_WRITER if event.epoch <= state.epoch else Verdict.GAP
        if event.sequence == state.sequence + 1:
            return Verdict.ACCEPTED
        return Verdict.EXISTS if event.sequence <= state.sequence else Verdict.GAP
    return Verdict.STALE_WRITER


def _numbered(sequence: int, expected: int) -> Verdict:
    if sequence == expected:
        return Verdict.ACCEPTED
    return Verdict.DUPLICATE if sequence < expected else Verdict.GAP


def _readable(fact: e.Fact) -> bool:
    """Whether the texts that the fold reads are what they should be: other writers write, too."""
    read = _READ.get(type(fact))
    if read is None:
        return True
    try:
        read(fact)
    except (msgspec.MsgspecError, DefinitionError, RecursionError, UnicodeError):
        return False
    return True


def fold_into(state: SagaState, event: e.Event) -> Verdict:
    """Judge `event` and, if it is accepted, carry `state` forward in place. Raises nothing.

    For whoever owns the state (an engine, a projector, one question); `fold` is the pure form.
    """
    verdict = judge(state, event)
    if verdict is Verdict.ACCEPTED:
        advance(state, event)
    return verdict


def advance(state: SagaState, event: e.Event) -> None:
    """Carry `state` forward by an event that is accepted (its writer knows: it has just numbered
    it)."""
    fact = event.fact
    if not state.sequence:
        state.saga_id, state.saga_name = event.saga_id, event.saga_name
        state.started_at = state.updated_at = event.occurred_at  # it may be before 1970
        state.status = "executing"
        state.recorded = event.epoch == e.RECORDED_EPOCH
        state.epoch, state.writer = event.epoch, event.writer
    elif event.epoch != state.epoch and event.epoch != e.RECORDED_EPOCH:
        state.epoch, state.writer = event.epoch, event.writer
    if event.epoch == e.RECORDED_EPOCH:
        state.recorders[event.writer.hex()] = event.sequence
    state.sequence += 1
    # The clock of a writer may step back, and recorders have several; a saga's time never falls.
    if event.occurred_at > state.updated_at:
        state.updated_at = event.occurred_at
    _EVOLVE[type(fact)](state, fact)


def fold(state: SagaState, event: e.Event) -> SagaState:
    """The state after `event`; the very same state if the event is rejected."""
    if judge(state, event) is not Verdict.ACCEPTED:
        return state
    state = state.copy()
    advance(state, event)
    return state


def fold_all(events: Iterable[e.Event], state: SagaState | None = None) -> SagaState:
    """The state after all of `events`, rejected ones passed over; `state` itself stays as it is."""
    state = SagaState() if state is None else state.copy()
    for event in events:
        fold_into(state, event)
    return state


# --- what each fact does --------------------------------------------------------------------------


def _saga_started(state: SagaState, fact: e.SagaStarted) -> None:
    if state.sequence > 1:
        # Of several recorders one may be late, or start again: it takes nothing back.
        given = split_object(fact.context)
        state.start = given | state.start
        state.context = given | state.context
        return
    state.definition, state.graph = fact.definition, fact.graph
    state.snapshot_policy, state.deadline_at = fact.snapshot_policy, fact.deadline_at
    state.actor, state.cause = fact.actor, fact.cause
    state.start = split_object(fact.context)
    state.context = dict(state.start)
    if fact.caller_saga_id:
        state.caller_saga_id, state.caller_step = fact.caller_saga_id, fact.caller_step
        state.caller_replay_id = fact.caller_replay_id
    if not fact.replay_id:
        return
    state.replay_id, state.parent_saga_id = fact.replay_id, fact.parent_saga_id
    state.head_saga_id, state.root_saga_id = fact.head_saga_id, fact.root_saga_id
    state.point, state.digest, state.plan = fact.point, fact.digest, fact.plan
    state.force_failure = fact.force_failure
    state.overrides = split_object(fact.overrides)
    verdicts = {step: verdict for step, verdict, _ in _PLAN.decode(fact.plan or "[]")}
    for effect in load_effects(fact.standing):
        verdict = verdicts.get(effect.step)
        if verdict not in ("reuse", "undo_first"):
            continue  # allowed by name to happen again: the branch starts it anew
        state.steps[effect.step] = StepState(
            status="completed" if verdict == "reuse" else "stale",
            attempt=effect.attempt,
            result=effect.result,
            keys_set=effect.keys_set,
            keys_deleted=effect.keys_deleted,
            reads=effect.reads,
            owner=effect.owner,
            unknown=effect.unknown,
            child=effect.child,
        )
        if verdict == "reuse":
            _merge(state.context, effect.keys_set, effect.keys_deleted)
    state.context.update(state.overrides)


def _merge(context: dict[str, str], keys_set: str, keys_deleted: str) -> None:
    if keys_set:
        context.update(split_object(keys_set))
    if keys_deleted:
        for key in names(keys_deleted):
            context.pop(key, None)


def _saga_claimed(state: SagaState, fact: e.SagaClaimed) -> None:
    state.released = False
    if fact.definition:
        state.definition, state.graph = fact.definition, fact.graph
    _merge(state.context, fact.keys_set, "")
    for name, step in state.steps.items():
        if step.status in ("executing", "compensating"):
            state.steps[name] = _replace(step, interrupted=True)
        elif step.unresolved:  # the new owner asks again
            state.steps[name] = _replace(step, unresolved=False)


def _saga_released(state: SagaState, fact: e.SagaReleased) -> None:
    state.released = True


def _saga_checkpointed(state: SagaState, fact: e.SagaCheckpointed) -> None:
    """The state is the one that the fold has; only a reader that begins here takes it."""


def _step_started(state: SagaState, fact: e.StepStarted) -> None:
    step = state.steps.get(fact.step, PENDING)
    state.steps[fact.step] = StepState(
        status="executing",
        attempt=fact.attempt,
        failures=step.failures,
        recoveries=step.recoveries,
        waits_for=step.waits_for,
        signal=_taken_signal(state, step),
        child=step.child,
        # What this attempt finds out says nothing about an earlier one.
        unknown=step.unknown or (step.interrupted and not _is_child(state, fact.step)),
    )
    state.current = fact.step
    if state.failed_step == fact.step:
        _forget_failure(state)


def _is_child(state: SagaState, step: str) -> bool:
    """Whether the step is a saga: its method says what that starts with, and does nothing."""
    node = state.step_graph.by_name.get(step)
    return node is not None and bool(node.child)


def _forget_failure(state: SagaState) -> None:
    """The step that had failed goes on after all, or was dealt with: the saga's error is the next
    one's, if any."""
    state.failed_step = state.error_type = state.error_message = ""
    for name, step in state.steps.items():
        if step.status in ("failed", "compensation_failed"):
            state.failed_step = name
            state.error_type, state.error_message = step.error_type, step.error_message
            return
    state.failed_at = 0


def _step_completed(state: SagaState, fact: e.StepCompleted) -> None:
    before = state.steps.get(fact.step)
    # A recorded saga may do a step again: it keeps its place in the order of completion.
    again = before is not None and before.status == "completed" and before.done_at
    state.steps[fact.step] = StepState(
        status="completed",
        attempt=fact.attempt,
        failures=before.failures if before is not None else 0,
        done_at=again or state.sequence,
        result=fact.result,
        keys_set=fact.keys_set,
        keys_deleted=fact.keys_deleted,
        reads=fact.reads,
        child=before.child if before is not None else "",
    )
    _merge(state.context, fact.keys_set, fact.keys_deleted)
    if state.current == fact.step:
        state.current = ""
    if state.failed_step == fact.step:
        _forget_failure(state)


def _step_failed(state: SagaState, fact: e.StepFailed) -> None:
    step = state.steps.get(fact.step, PENDING)
    final = not fact.retry_at
    state.steps[fact.step] = StepState(
        status="failed" if final else "pending",
        attempt=fact.attempt,
        failures=step.failures + 1,
        recoveries=step.recoveries,
        waits_for=step.waits_for,
        signal=step.signal,
        retry_at=fact.retry_at,
        unknown=fact.unknown or (step.unknown and step.status == "executing"),
        error_type=fact.error_type,
        error_message=fact.error_message,
        done_at=state.sequence if final else 0,
        child=step.child,
    )
    state.current = fact.step
    if final and not state.failed_step:
        state.failed_step = fact.step
        state.failed_at = state.updated_at
        state.error_type, state.error_message = fact.error_type, fact.error_message


def _answers(state: SagaState, request_id: str) -> bool:
    """Whether a fact is the first answer to its request, or answers none."""
    if not request_id:
        return True
    if request_id in state.answered:
        return False
    state.answered = (*state.answered[1 - MAX_ANSWERED :], request_id)
    return True


def _step_skipped(state: SagaState, fact: e.StepSkipped) -> None:
    if not _answers(state, fact.request_id):
        return
    step = state.steps.get(fact.step, PENDING)
    if state.status == "compensating" or step.status == "compensation_failed":
        state.steps[fact.step] = _replace(step, undo_skipped=fact.reason or "skipped")
        return
    state.steps[fact.step] = _replace(step, status="skipped", retry_at=0, interrupted=False)
    if state.current == fact.step:
        state.current = ""
    if state.failed_step == fact.step:
        _forget_failure(state)


def _step_outcome_unknown(state: SagaState, fact: e.StepOutcomeUnknown) -> None:
    """The second time: nobody could say what happened, so a person has to."""
    step = state.steps.get(fact.step, PENDING)
    state.steps[fact.step] = _replace(
        step,
        status="outcome_unknown",
        attempt=fact.attempt,
        interrupted=False,
        unknown=True,
        unresolved=step.status == "outcome_unknown",
    )


def _outcome_resolved(state: SagaState, fact: e.OutcomeResolved) -> None:
    if not _answers(state, fact.request_id):
        return
    if fact.happened:
        _step_completed(state, e.StepCompleted(fact.step, fact.attempt, fact.result, fact.keys_set))
    else:
        why = (NOT_HAPPENED, "its effect did not happen")
        _step_failed(state, e.StepFailed(fact.step, fact.attempt, *why))


def _step_waiting(state: SagaState, fact: e.StepWaiting) -> None:
    state.steps[fact.step] = StepState(
        status="waiting", waits_for=fact.signal, wait_until=fact.until
    )
    state.current = fact.step


def _child_started(state: SagaState, fact: e.ChildStarted) -> None:
    step = state.steps.get(fact.step, PENDING)
    state.steps[fact.step] = StepState(
        status="waiting",
        attempt=fact.attempt,
        failures=step.failures,
        recoveries=step.recoveries,
        reads=fact.reads,
        child=fact.child_saga_id,
        child_start=fact.context,
    )
    state.current = fact.step


def _signal_received(state: SagaState, fact: e.SignalReceived) -> None:
    if not _answers(state, fact.request_id):
        return
    state.signals[fact.name] = (*state.signals.get(fact.name, ()), fact.payload or "null")


def _taken_signal(state: SagaState, step: StepState) -> str:
    """The payload with which a waiting step starts; taken, so that no other step gets it."""
    if step.status != "waiting" or not step.waits_for:
        return step.signal
    first, *rest = state.signals.get(step.waits_for, ("",))
    if rest:
        state.signals[step.waits_for] = tuple(rest)
    else:
        state.signals.pop(step.waits_for, None)
    return first


def _saga_paused(state: SagaState, fact: e.SagaPaused) -> None:
    if _answers(state, fact.request_id):
        state.paused = True


def _saga_resumed(state: SagaState, fact: e.SagaResumed) -> None:
    if _answers(state, fact.request_id):
        state.paused = False


def _compensation_started(state: SagaState, fact: e.CompensationStarted) -> None:
    _answers(state, fact.cause)
    state.status = "compensating"
    state.ended_at = 0
    state.goal = fact.goal
    state.undo = tuple(names(fact.steps))
    state.undo_reason, state.undo_actor = fact.reason, fact.actor
    for name in state.undo:  # a step that is tried again after it had failed
        step = state.steps.get(name)
        if step is not None and step.status == "compensation_failed":
            state.steps[name] = _replace(step, status="completed", undo_failures=0)


def _recorded_going_back(state: SagaState) -> None:
    """Who records says that a step is undone, not that the saga goes back."""
    if state.recorded and state.status == "executing":
        state.status, state.goal = "compensating", "rolled_back"


def _step_compensation_started(state: SagaState, fact: e.StepCompensationStarted) -> None:
    _recorded_going_back(state)
    step = state.steps.get(fact.step, PENDING)
    state.steps[fact.step] = _replace(
        step, status="compensating", undo_attempt=fact.attempt, retry_at=0, interrupted=False
    )
    state.current = fact.step


def _step_compensated(state: SagaState, fact: e.StepCompensated) -> None:
    _recorded_going_back(state)
    step = state.steps.get(fact.step, PENDING)
    if state.status == "compensating" or state.recorded:
        state.steps[fact.step] = _replace(
            step,
            status="compensated",
            undo_result=fact.result,
            unknown=False,
            retry_at=0,
            child_start="",
        )
    else:  # a branch undid what it inherited: the step can run now
        state.steps[fact.step] = PENDING
    if state.current == fact.step:
        state.current = ""


def _step_compensation_failed(state: SagaState, fact: e.StepCompensationFailed) -> None:
    _recorded_going_back(state)
    step = state.steps.get(fact.step, PENDING)
    final = not fact.retry_at
    state.steps[fact.step] = _replace(
        step,
        # Until it is tried again it is where it was before its compensation began.
        status="compensation_failed" if final else "compensating",
        interrupted=not final,
        undo_failures=step.undo_failures + 1,
        retry_at=fact.retry_at,
        error_type=fact.error_type,
        error_message=fact.error_message,
    )
    if final and not state.failed_step:  # while a branch undid what it inherited
        state.failed_step, state.failed_at = fact.step, state.updated_at
        state.error_type, state.error_message = fact.error_type, fact.error_message


def _recovery_decided(state: SagaState, fact: e.RecoveryDecided) -> None:
    if not _answers(state, fact.request_id):
        return
    _merge(state.context, fact.keys_set, "")
    step = state.steps.get(fact.step, PENDING)
    decided = step.recoveries + 1
    state.current = fact.step
    if fact.action == "manual_intervention":
        state.status = "forward_recovery"
        state.steps[fact.step] = _replace(step, recoveries=decided)
        return
    state.status = "executing"
    if fact.action == "compensate_pivot":
        state.pivots_released = True
        return
    if fact.action == "skip":
        state.steps[fact.step] = _replace(step, status="skipped", recoveries=decided)
        state.current = ""
    else:
        state.steps[fact.step] = StepState(
            attempt=step.attempt, recoveries=decided, child=step.child, unknown=step.unknown
        )
    _forget_failure(state)


def _end(status: str) -> Callable[[SagaState, Any], None]:
    def evolve(state: SagaState, fact: Any) -> None:
        state.status = status
        state.ended_at = state.updated_at
        if status == "completed":
            state.current = ""
        # What a recorder or a skip by hand says of the error counts where no step said it.
        error = getattr(fact, "error_type", "") or getattr(fact, "error_message", "")
        if error and not state.error_type:
            state.error_type, state.error_message = fact.error_type, fact.error_message
            state.failed_step = fact.step

    return evolve


def _replay_branched(state: SagaState, fact: e.ReplayBranched) -> None:
    _answers(state, fact.request_id)
    state.branch = fact.branch_saga_id


def _replay_undone(state: SagaState, fact: e.ReplayUndone) -> None:
    state.undone = True
    state.status = "rolled_back"
    state.ended_at = state.updated_at


def _nothing(state: SagaState, fact: e.Fact) -> None:
    """The fact is kept in the history and changes no state."""


def _read_start(fact: e.SagaStarted) -> None:
    parse_graph(fact.graph)
    split_object(fact.context)
    split_object(fact.overrides)
    _PLAN.decode(fact.plan or "[]")
    for effect in load_effects(fact.standing):
        _read_changes(effect)


def _read_claim(fact: e.SagaClaimed) -> None:
    parse_graph(fact.graph)
    split_object(fact.keys_set)


def _read_changes(fact: e.StepCompleted | Effect) -> None:
    split_object(fact.keys_set)
    names(fact.keys_deleted)


_READ: dict[type[e.Fact], Callable[[Any], object]] = {
    e.SagaStarted: _read_start,
    e.SagaClaimed: _read_claim,
    e.StepCompleted: _read_changes,
    e.CompensationStarted: lambda fact: names(fact.steps),
    e.OutcomeResolved: lambda fact: split_object(fact.keys_set),
    e.RecoveryDecided: lambda fact: split_object(fact.keys_set),
    e.ChildStarted: lambda fact: split_object(fact.context),
}
"""The facts whose texts the fold reads."""

_EVOLVE: dict[type[e.Fact], Callable[[SagaState, Any], None]] = {
    e.SagaStarted: _saga_started,
    e.SagaClaimed: _saga_claimed,
    e.SagaReleased: _saga_released,
    e.SagaCheckpointed: _saga_checkpointed,
    e.StepStarted: _step_started,
    e.StepCompleted: _step_completed,
    e.StepFailed: _step_failed,
    e.StepSkipped: _step_skipped,
    e.StepOutcomeUnknown: _step_outcome_unknown,
    e.OutcomeResolved: _outcome_resolved,
    e.StepWaiting: _step_waiting,
    e.SagaPaused: _saga_paused,
    e.SagaResumed: _saga_resumed,
    e.SignalReceived: _signal_received,
    e.CompensationStarted: _compensation_started,
    e.StepCompensationStarted: _step_compensation_started,
    e.StepCompensated: _step_compensated,
    e.StepCompensationFailed: _step_compensation_failed,
    e.RecoveryDecided: _recovery_decided,
    e.SagaCompleted: _end("completed"),
    e.SagaRolledBack: _end("rolled_back"),
    e.SagaFailed: _end("failed"),
    e.SagaPartiallyCommitted: _end("partially_committed"),
    e.SagaCancelled: _end("cancelled"),
    e.ReplayBranched: _replay_branched,
    e.ReplayUndone: _replay_undone,
    e.ChildStarted: _child_started,
    e.ChildEnded: _nothing,
    e.SubjectErased: _nothing,
}
