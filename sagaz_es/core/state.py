"""What a saga is now: the value that the fold makes of its events."""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import Struct

from sagaz_es.core.graph import Graph, parse_graph

FOLD_VERSION = 3
"""Raised whenever the same events fold to another state: older snapshots are then passed over."""


class SagaStatus(StrEnum):
    """Where a saga stands. The last five of the first line's successors are final."""

    PENDING = "pending"
    EXECUTING = "executing"
    COMPENSATING = "compensating"
    FORWARD_RECOVERY = "forward_recovery"
    COMPLETED = "completed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PARTIALLY_COMMITTED = "partially_committed"


ENDED = frozenset({"completed", "rolled_back", "failed", "cancelled", "partially_committed"})
"""Final statuses."""


class SagaStepStatus(StrEnum):
    """Where a step stands."""

    PENDING = "pending"
    EXECUTING = "executing"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    WAITING = "waiting"  # for a signal, a time or a child saga
    OUTCOME_UNKNOWN = "outcome_unknown"  # at-most-once; a policy or a person decides
    STALE = "stale"  # inherited by a branch: stands, must be undone before the branch goes forward
    COMPENSATING = "compensating"
    COMPENSATED = "compensated"
    COMPENSATION_FAILED = "compensation_failed"
    TAINTED = "tainted"  # locked by a pivot; only shown, never folded


class StepState(Struct, frozen=True, gc=False, omit_defaults=True):
    """A step of one saga now. Texts are JSON, as in the facts."""

    status: str = "pending"
    attempt: int = 0  # of the action, the last one begun
    failures: int = 0  # attempts that failed; an interrupted one does not count
    retry_at: int = 0  # µs; of the action or of the compensation
    interrupted: bool = False  # its writer changed while it ran: of unknown outcome
    done_at: int = 0  # the sequence of its completion; 0: not completed, or inherited
    result: str = ""
    keys_set: str = ""
    keys_deleted: str = ""
    reads: str = ""
    owner: str = ""  # the saga that executed the effect; empty: this one
    unknown: bool = False  # an attempt's effect may have happened, and none completed since
    unresolved: bool = False  # its `resolve` was asked what happened, in vain, by this owner
    error_type: str = ""
    error_message: str = ""
    waits_for: str = ""  # the signal that it waits for, or that it has got
    wait_until: int = 0  # µs; 0: for ever
    signal: str = ""  # JSON: payload of the signal that let it start
    recoveries: int = 0  # how often its recovery handler has decided
    undo_attempt: int = 0
    undo_failures: int = 0
    undo_result: str = ""
    undo_skipped: str = ""  # the reason, where a person let a compensation be
    child: str = ""  # id of the saga that it started, the last one
    child_start: str = ""  # JSON object: what that is started with; empty: nobody waits for it


PENDING = StepState()


DEADLINE = "the saga's deadline has passed"
"""The reason of a saga's going back that its deadline asks for."""


class SagaState(Struct, omit_defaults=True):
    """A saga at a sequence. Owned by whoever folds into it; `copy()` to keep one.

    `steps` holds the steps that anything happened to, in the order of their first event. A state of
    sequence 0 is a saga that does not exist.
    """

    saga_id: str = ""
    saga_name: str = ""
    status: str = "pending"
    writer: bytes = b""
    epoch: int = 0
    sequence: int = 0
    started_at: int = 0
    updated_at: int = 0
    ended_at: int = 0

    definition: str = ""
    graph: str = ""
    snapshot_policy: str = ""
    deadline_at: int = 0
    actor: str = ""
    cause: str = ""

    start: dict[str, str] = {}  # key -> JSON; the data it was started with
    context: dict[str, str] = {}  # key -> JSON; now
    steps: dict[str, StepState] = {}
    current: str = ""  # the step that runs, or that the last event was about while none completed
    released: bool = False

    failed_step: str = ""
    error_type: str = ""
    error_message: str = ""
    failed_at: int = 0  # µs

    paused: bool = False
    signals: dict[str, tuple[str, ...]] = {}  # name -> payloads (JSON) that no step has taken yet
    pivots_released: bool = False  # somebody decided to compensate the pivots, too
    goal: str = ""  # of the compensation under way or done
    undo: tuple[str, ...] = ()
    undo_reason: str = ""
    undo_actor: str = ""

    answered: tuple[str, ...] = ()  # ids of the requests that became facts, the last ones

    recorded: bool = False
    recorders: dict[str, int] = {}  # writer (hex) -> its count for this saga

    replay_id: str = ""
    parent_saga_id: str = ""
    head_saga_id: str = ""
    root_saga_id: str = ""
    point: str = ""
    digest: str = ""
    plan: str = ""
    overrides: dict[str, str] = {}
    force_failure: bool = False
    branch: str = ""  # the branch that is the head instead of this saga; empty: this one is
    undone: bool = False  # this branch's replay was undone

    caller_saga_id: str = ""  # of a child: the saga whose step started it
    caller_step: str = ""
    caller_replay_id: str = ""  # the replay that it is part of because its caller is

    @property
    def ended(self) -> bool:
        """No further step will run."""
        return self.status in ENDED

    @property
    def under_way(self) -> bool:
        """Whether its writer may be at work on an attempt: the log has its start and not its end.

        Where nothing is, a claim takes nothing away from anybody: what the writer begins after it
        is rejected before it runs, and what it began before it makes the claim be rejected.
        """
        return any(
            step.status in ("executing", "compensating") and not step.interrupted
            for step in self.steps.values()
        )

    @property
    def missed_deadline(self) -> bool:
        """Whether it goes back, or went, because its deadline passed: in a step or between two; not
        if a step had failed for good before that."""
        if self.undo_reason != DEADLINE:
            return False
        return not self.failed_step or self.failed_at >= self.deadline_at

    @property
    def failure(self) -> tuple[str, str]:
        """Class and sentence of what it failed with; both empty: nothing. Law (one error for a
        deadline): wherever it struck, it is this one, and what became of the step is its cause."""
        if not self.missed_deadline:
            return self.error_type, self.error_message
        where = f", in step {self.failed_step!r}" if self.failed_step else ""
        return "SagaTimeoutError", f"{DEADLINE}{where}"

    @property
    def error_text(self) -> str:
        """What it failed with, its class first: "ValueError: no"; empty: nothing."""
        return ": ".join(part for part in self.failure if part)

    @property
    def step_graph(self) -> Graph:
        """The recorded definition."""
        return parse_graph(self.graph)

    @property
    def completed_steps(self) -> list[str]:
        """Names of the steps that stand completed, in the order of their completion."""
        done = [
            (step.done_at, name) for name, step in self.steps.items() if step.status == "completed"
        ]
        done.sort(key=lambda item: item[0])
        return [name for _, name in done]

    def step(self, name: str) -> StepState:
        """A step's state; pending where nothing happened yet."""
        return self.steps.get(name, PENDING)

    def copy(self) -> SagaState:
        """A state that shares nothing that changes with this one."""
        other = msgspec.structs.replace(self)
        other.start = dict(self.start)
        other.context = dict(self.context)
        other.steps = dict(self.steps)
        other.recorders = dict(self.recorders)
        other.signals = dict(self.signals)
        other.overrides = dict(self.overrides)
        return other


_DECODER = msgspec.json.Decoder(SagaState)


def dump_state(state: SagaState) -> bytes:
    """JSON, for snapshots, checkpoints and stores; equal states give equal bytes."""
    return msgspec.json.encode(state)


def load_state(data: bytes | str) -> SagaState:
    """The reverse of `dump_state`. Raises msgspec.DecodeError for other bytes."""
    try:
        return _DECODER.decode(data)
    except (UnicodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None
