"""Facts, requests and the envelope: everything that can stand in the log.

A *fact* says what happened to one saga; an `Event` is a fact in its envelope. A *request* says what
somebody wants; it carries no sequence, and the saga's writer turns it into facts. The published
form of each is `schemas/<snake_case_name>.avsc`: same names, same order, envelope first.

Times are microseconds since 1970 UTC. Texts called JSON hold typed values
(`sagaz_es.codec.values`).
Hot facts have no unions: an empty text or 0 means "none". Source: DESIGN.md §3.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

RECORDED_EPOCH = -1
"""The epoch of every fact that a recorder or an import writes: many writers, nobody owns the
saga."""

FORMAT_VERSION = 1
"""What NamespaceCreated says; raised before a new fact type is written."""


class Fact(Struct, frozen=True, gc=False):
    """What happened to one saga."""


class SagaStarted(Fact, frozen=True, gc=False):
    """A saga began; also the first event of a replay's branch."""

    definition: str = ""  # fingerprint of the step graph
    graph: str = ""  # JSON: the step graph itself, see core.graph
    context: str = "{}"  # JSON object: the data that the saga was started with
    snapshot_policy: str = ""  # JSON: what the projector keeps; empty: its default
    deadline_at: int = 0  # 0: none
    actor: str = ""
    cause: str = ""  # id of the request that asked for it, if any
    # The rest is empty except in a branch.
    replay_id: str = ""
    parent_saga_id: str = ""  # the saga that was replayed, as it was named
    head_saga_id: str = ""  # the head of the family, whose stream holds the ReplayBranched
    root_saga_id: str = ""  # the first saga of the family
    point: str = ""  # the first step that runs again
    digest: str = ""  # of the plan
    plan: str = ""  # JSON array of [step, verdict, reason]
    overrides: str = ""  # JSON object; applied last, over context and reused deltas
    standing: str = ""  # JSON array of inherited effects, see core.effects.Effect
    force_failure: bool = False  # the point fails without its action being called
    # Of a child alone.
    caller_saga_id: str = ""  # the saga whose step started it; "parent" is a branch's word here
    caller_step: str = ""
    caller_replay_id: str = ""  # the replay that the caller, and so the child, is part of


class SagaClaimed(Fact, frozen=True, gc=False):
    """Another writer took the saga over; attempts that were running are of unknown outcome."""

    cause: str = ""
    # The rest is empty unless the code's definition is another one, which it declares to carry on.
    definition: str = ""  # fingerprint of the step graph from now on
    graph: str = ""  # JSON: that graph
    keys_set: str = ""  # JSON object: what the class's `migrate` set in the context


class SagaReleased(Fact, frozen=True, gc=False):
    """The writer let go while alive: nothing of it runs any more, the next claim may be at once."""

    cause: str = ""


class SagaCheckpointed(Fact, frozen=True, gc=False):
    """The whole state, so that a take-over need not read what stands before."""

    state: str = ""  # JSON of core.state.SagaState


class StepStarted(Fact, frozen=True, gc=False):
    """An attempt may begin its effect: no writer runs a step before this is accepted."""

    step: str
    attempt: int = 1  # 1, 2, 3 …; grows also over take-overs


class StepCompleted(Fact, frozen=True, gc=False):
    """A step did its work; its result is used from now on and the step is not run again."""

    step: str
    attempt: int = 1
    result: str = ""  # JSON; empty: it returned nothing
    keys_set: str = ""  # JSON object: context keys set or changed, with their new values
    keys_deleted: str = ""  # JSON array of context keys
    reads: str = ""  # JSON array of top-level keys read; ["*"]: the whole context was taken


class StepFailed(Fact, frozen=True, gc=False):
    """An attempt failed."""

    step: str
    attempt: int = 1
    error_type: str = ""
    error_message: str = ""
    traceback: str = ""
    retry_at: int = 0  # 0: it was the last attempt
    unknown: bool = False  # the effect may have happened: timed out, cancelled, crashed
    forced: bool = False  # by a replay's force_failure; the action was not called


class StepSkipped(Fact, frozen=True, gc=False):
    """A step is counted as done although it did not run."""

    step: str
    reason: str = ""
    actor: str = ""
    request_id: str = ""  # of the request that asked for it, if any


class StepOutcomeUnknown(Fact, frozen=True, gc=False):
    """Nobody knows whether an at-most-once step had its effect; it is not run again on its own.

    Of a step that is unknown already: its `resolve` was asked, in vain; `reason` says why.
    """

    step: str
    attempt: int = 1
    reason: str = ""


class OutcomeResolved(Fact, frozen=True, gc=False):
    """Somebody said what became of a step of unknown outcome: it completed, or it had no effect."""

    step: str
    attempt: int = 1
    happened: bool = False
    result: str = ""  # JSON; of a step that happened
    keys_set: str = ""  # JSON object: context keys that the result sets
    actor: str = ""
    reason: str = ""
    request_id: str = ""


class StepWaiting(Fact, frozen=True, gc=False):
    """A step whose dependencies are done waits, for a signal or for a time, before it runs."""

    step: str
    signal: str = ""  # empty: only for the time
    until: int = 0  # when it runs, or, with a signal, when it gives up; 0: never


class SagaPaused(Fact, frozen=True, gc=False):
    """No further step starts until the saga is resumed."""

    reason: str = ""
    actor: str = ""
    request_id: str = ""


class SagaResumed(Fact, frozen=True, gc=False):
    """A paused saga goes on."""

    reason: str = ""
    actor: str = ""
    request_id: str = ""


class SignalReceived(Fact, frozen=True, gc=False):
    """A signal reached the saga."""

    name: str
    payload: str = ""  # JSON
    request_id: str = ""
    actor: str = ""


class CompensationStarted(Fact, frozen=True, gc=False):
    """The saga goes back: the steps named are undone, then it ends with `goal`."""

    steps: str = "[]"  # JSON array: what is undone, in an order that undoes dependents first
    goal: str = (
        "rolled_back"  # rolled_back, cancelled, partially_committed or undone (a replay's undo)
    )
    reason: str = ""
    actor: str = ""
    cause: str = ""  # id of the request, if any


class StepCompensationStarted(Fact, frozen=True, gc=False):
    """A compensation may begin its effect."""

    step: str
    attempt: int = 1


class StepCompensated(Fact, frozen=True, gc=False):
    """A step's effect is undone."""

    step: str
    attempt: int = 1
    result: str = ""  # JSON: what the compensation returned


class StepCompensationFailed(Fact, frozen=True, gc=False):
    """An attempt to undo failed; with `retry_at` 0 the effect still stands."""

    step: str
    attempt: int = 1
    error_type: str = ""
    error_message: str = ""
    traceback: str = ""
    retry_at: int = 0


class RecoveryDecided(Fact, frozen=True, gc=False):
    """How a saga goes forward after a failure behind its pivot, or who decided on a stuck step."""

    step: str
    action: str = ""  # retry, retry_with_alternate, skip, manual_intervention, compensate_pivot
    keys_set: str = ""  # JSON object: what the handler changed in the context
    actor: str = ""
    reason: str = ""
    request_id: str = ""  # empty: a handler decided


class SagaCompleted(Fact, frozen=True, gc=False):
    """Every step is done."""


class SagaRolledBack(Fact, frozen=True, gc=False):
    """Everything that was done and may be undone is undone."""

    error_type: str = ""
    error_message: str = ""
    step: str = ""  # whose failure began it


class SagaFailed(Fact, frozen=True, gc=False):
    """The saga ended with effects that nobody wanted to stand: a compensation failed, for
    instance."""

    error_type: str = ""
    error_message: str = ""
    step: str = ""
    standing: str = "[]"  # JSON array: steps whose effects still stand


class SagaPartiallyCommitted(Fact, frozen=True, gc=False):
    """A step behind a completed pivot failed; what the pivot locks stands, the rest is undone."""

    error_type: str = ""
    error_message: str = ""
    step: str = ""
    boundary: str = "[]"  # JSON array: the completed pivots
    standing: str = "[]"  # JSON array: steps whose effects stand


class SagaCancelled(Fact, frozen=True, gc=False):
    """Somebody cancelled the saga; what it did is undone."""

    reason: str = ""
    actor: str = ""


class ReplayBranched(Fact, frozen=True, gc=False):
    """A replay made `branch_saga_id` the head of this saga's family.

    Written into the stream of the head so far. On a saga that has ended it is its own claim. It
    holds the whole first fact of the branch, so that whoever reads it can start the branch.
    """

    replay_id: str
    branch_saga_id: str
    start: str = ""  # JSON of the branch's SagaStarted
    parent_saga_id: str = ""
    point: str = ""
    digest: str = ""
    actor: str = ""
    reason: str = ""
    request_id: str = ""


class ReplayUndone(Fact, frozen=True, gc=False):
    """The effects that this branch executed are compensated."""

    replay_id: str
    steps: str = "[]"  # JSON array, in the order of undoing
    actor: str = ""
    reason: str = ""


class ChildStarted(Fact, frozen=True, gc=False):
    """A step starts a saga of its own and waits for its end.

    What decides about the child: it is begun under this id, with this context, again and again
    until ChildEnded is accepted.
    """

    step: str
    child_saga_id: str = ""
    child_saga_name: str = ""
    attempt: int = 1
    context: str = "{}"  # JSON object: the data that the child is started with
    reads: str = ""  # JSON array: as in StepCompleted


class ChildEnded(Fact, frozen=True, gc=False):
    """A child saga ended; what becomes of its step follows as a fact of its own."""

    step: str
    child_saga_id: str = ""
    status: str = ""
    result: str = ""  # JSON; empty: it stands in StepCompleted


class SubjectErased(Fact, frozen=True, gc=False):
    """The key of a data subject is gone; what it sealed cannot be read any more."""

    subject: str
    actor: str = ""


class Event(Struct, frozen=True, gc=False):
    """A fact in its envelope. `(saga_id, writer, epoch, sequence)` is its identity.

    `sequence` is the place in the saga (1, 2, 3 … without a gap), or, with `epoch` RECORDED_EPOCH,
    the recorder's own count for this saga. `replay_id` is not part of the record's value: it
    travels as a header, so that a plain consumer can leave replays out.
    """

    saga_id: str
    saga_name: str
    writer: bytes  # 16 bytes, new for every incarnation of an engine or recorder
    epoch: int
    sequence: int
    occurred_at: int  # never falls within a saga
    fact: Fact
    replay_id: str = ""


class Request(Struct, frozen=True, gc=False):
    """What somebody wants of one saga. `request_id` makes asking twice the same as asking once."""

    request_id: str
    saga_id: str
    requested_at: int = 0
    actor: str = ""
    reason: str = ""


class StartRequested(Request, frozen=True, gc=False):
    """Start a saga with an id whose partition another engine owns."""

    saga_name: str = ""
    context: str = "{}"  # JSON object
    caller_saga_id: str = ""  # of a child: the saga whose step starts it
    caller_step: str = ""
    caller_replay_id: str = ""


class CancelRequested(Request, frozen=True, gc=False):
    """Stop the saga and undo what it did."""


class SignalSent(Request, frozen=True, gc=False):
    """Tell the saga something it may be waiting for."""

    name: str = ""
    payload: str = ""  # JSON


class PauseRequested(Request, frozen=True, gc=False):
    """Start no further step of this saga."""


class ResumeRequested(Request, frozen=True, gc=False):
    """Let a paused saga go on."""


class ReplayRequested(Request, frozen=True, gc=False):
    """Replay a saga as planned; `saga_id` is the family's head, whose writer decides."""

    replay_id: str = ""
    parent_saga_id: str = ""
    point: str = ""
    overrides: str = ""  # JSON object
    allow: str = "[]"  # JSON array of steps
    force_failure: bool = False
    digest: str = ""  # of the plan that was shown


class UndoRequested(Request, frozen=True, gc=False):
    """Undo a replay; `saga_id` is its branch. Or take a child back; `saga_id` is the child."""

    replay_id: str = ""
    caller_saga_id: str = ""  # the saga whose step started the child


class CompensationRetryRequested(Request, frozen=True, gc=False):
    """Try a stuck compensation again."""

    step: str = ""


class CompensationSkipRequested(Request, frozen=True, gc=False):
    """Let a stuck compensation be; `reason` says why."""

    step: str = ""


class RecoveryRequested(Request, frozen=True, gc=False):
    """A person decides how a saga goes forward that waits for one."""

    step: str = ""
    action: str = ""  # as in RecoveryDecided
    keys_set: str = ""  # JSON object: what the person changes in the context


class OutcomeReported(Request, frozen=True, gc=False):
    """A person says what became of an at-most-once step of unknown outcome."""

    step: str = ""
    happened: bool = False
    result: str = ""  # JSON; of a step that happened


class RequestRefused(Request, frozen=True, gc=False):
    """The answer to a request that led to no fact. `request_id` is that of the request."""

    error: str = ""  # class name in sagaz_es.errors
    message: str = ""


class ReplayLogged(Request, frozen=True, gc=False):
    """An audit note: a replay was tried, run dry, or refused. It asks for nothing."""

    replay_id: str = ""
    point: str = ""
    overrides: str = ""  # JSON object
    dry_run: bool = False
    status: str = ""  # pending, success, failed, refused
    branch_saga_id: str = ""
    error_message: str = ""


def request_of(fact: Fact) -> str:
    """The id of the request that a fact answers; empty: nobody asked for it."""
    return getattr(fact, "request_id", "") or getattr(fact, "cause", "")


class NamespaceCreated(Struct, frozen=True, gc=False):
    """The first record of each partition."""

    namespace: str
    partition: int
    partitions: int
    created_at: int = 0
    format_version: int = 1


Entry: TypeAlias = Event | Request | NamespaceCreated
"""Whatever can be appended."""

FACTS: tuple[type[Fact], ...] = (
    SagaStarted,
    SagaClaimed,
    SagaReleased,
    SagaCheckpointed,
    StepStarted,
    StepCompleted,
    StepFailed,
    StepSkipped,
    StepOutcomeUnknown,
    OutcomeResolved,
    StepWaiting,
    SagaPaused,
    SagaResumed,
    SignalReceived,
    CompensationStarted,
    StepCompensationStarted,
    StepCompensated,
    StepCompensationFailed,
    RecoveryDecided,
    SagaCompleted,
    SagaRolledBack,
    SagaFailed,
    SagaPartiallyCommitted,
    SagaCancelled,
    ReplayBranched,
    ReplayUndone,
    ChildStarted,
    ChildEnded,
    SubjectErased,
)

REQUESTS: tuple[type[Request], ...] = (
    StartRequested,
    CancelRequested,
    SignalSent,
    PauseRequested,
    ResumeRequested,
    ReplayRequested,
    UndoRequested,
    CompensationRetryRequested,
    CompensationSkipRequested,
    RecoveryRequested,
    OutcomeReported,
    RequestRefused,
    ReplayLogged,
)
