"""When a snapshot of a saga is due, and what identifies one.

A snapshot is a state at a sequence, kept so that a fold need not start at the beginning; always
disposable. What is due follows from the events alone: no clock, no memory of earlier snapshots. So
every projector and every rebuild makes the same ones, under the same ids.

The policy travels in `SagaStarted.snapshot_policy`; an empty text leaves it to the projector.
Source: DESIGN.md §6; behaviours B8 to B16.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import StrEnum
from uuid import UUID, uuid5

import msgspec
from msgspec import Struct

from sagaz_es.core import events as e
from sagaz_es.core.state import SagaState

DAY_US = 86_400_000_000
FOR_EVER = -1


class SnapshotStrategy(StrEnum):
    """At which events a snapshot is taken."""

    BEFORE_EACH_STEP = "before_each_step"  # as the first attempt of a step or compensation begins
    AFTER_EACH_STEP = "after_each_step"  # once it is done, skipped or compensated
    ON_FAILURE = "on_failure"  # one, just before the saga goes back
    ON_COMPLETION = "on_completion"  # one, of the completed saga
    MANUAL = "manual"  # only where somebody asks for one
    EVERY_N_EVENTS = "every_n_events"
    EVERY_INTERVAL = "every_interval"  # at the first event in each interval since the start
    OFF = "off"


class SnapshotPolicy(Struct, frozen=True, gc=False, omit_defaults=True):
    """What is kept of one saga, and for how long."""

    strategy: SnapshotStrategy
    every_events: int = 0
    every_us: int = 0
    retention_days: int = FOR_EVER  # counted from the event that made the state
    max_snapshots: int = 0  # of one saga, the newest stay; 0: any number
    compression: str = ""  # zstd; stores compress what is large anyway
    encryption_key_id: str = ""

    def retention_until(self, created_at: int) -> int:
        """When a snapshot made at `created_at` expires, µs; 0: never."""
        if self.retention_days < 0:
            return 0
        # At least 1, as 0 means never: a retention of 0 days is over when it begins.
        return max(1, created_at + self.retention_days * DAY_US)


DEFAULT_POLICY = SnapshotPolicy(SnapshotStrategy.EVERY_N_EVENTS, every_events=100)
"""The projector's, for sagas that bring none: an answer folds at most 100 events."""

OFF = SnapshotPolicy(SnapshotStrategy.OFF)


def dump_policy(policy: SnapshotPolicy) -> str:
    """The JSON text for `SagaStarted.snapshot_policy`."""
    if policy.strategy is SnapshotStrategy.OFF:
        return '"off"'
    return msgspec.json.encode(policy).decode()


def parse_policy(text: str, default: SnapshotPolicy = DEFAULT_POLICY) -> SnapshotPolicy:
    """The policy of a text that `dump_policy` made. `default` for an empty text, and for one that a
    newer version wrote: snapshots are disposable, a saga is not held up by them."""
    if not text:
        return default
    if text in ('"off"', "off"):
        return OFF
    try:
        return _DECODER.decode(text)
    except msgspec.MsgspecError:
        return default


_DECODER = msgspec.json.Decoder(SnapshotPolicy)


# --- what is due ----------------------------------------------------------------------------------


class Due(Struct, frozen=True, gc=False):
    """A snapshot to take of a state, and the step it is taken before, after or because of."""

    step: str
    step_index: int


def due(
    policy: SnapshotPolicy, before: SagaState, event: e.Event, after: SagaState
) -> list[tuple[SagaState, Due]]:
    """The states to keep as `event`, which is accepted, carries `before` to `after`."""
    first = due_before(policy, before, event)
    then = due_after(policy, after, event, before.updated_at)
    found = [] if first is None else [(before, first)]
    return found if then is None else [*found, (after, then)]


def due_before(policy: SnapshotPolicy, state: SagaState, event: e.Event) -> Due | None:
    """What to keep of `state` before it is carried on by `event`, which is accepted."""
    rule = _BEFORE.get(policy.strategy)
    return None if rule is None else rule(state, event.fact)


def due_after(
    policy: SnapshotPolicy, state: SagaState, event: e.Event, updated_before: int = 0
) -> Due | None:
    """What to keep of `state`, which `event` has just made.

    `updated_before`: the state's `updated_at` before it; only `every_interval` looks at it.
    """
    strategy = policy.strategy
    if strategy is SnapshotStrategy.EVERY_N_EVENTS:
        if policy.every_events <= 0 or state.sequence % policy.every_events:
            return None
        return _due(state, getattr(event.fact, "step", "") or state.current)
    if strategy is SnapshotStrategy.EVERY_INTERVAL:
        return _at_interval(policy.every_us, state, event, updated_before)
    rule = _AFTER.get(strategy)
    return None if rule is None else rule(state, event.fact)


def _due(state: SagaState, step: str) -> Due:
    order = state.step_graph.order
    if step in order:
        return Due(step, order.index(step))
    # A recorded saga may have no graph: steps count in the order of their first event.
    seen = list(state.steps)
    return Due(step, seen.index(step) if step in state.steps else len(seen))


def _before_step(state: SagaState, fact: e.Fact) -> Due | None:
    # Only before the first attempt: a retry, or a take-over, begins the same step again.
    if type(fact) is e.StepStarted and not state.step(fact.step).attempt:
        return _due(state, fact.step)
    # A branch that undoes what it inherited still goes forward: the step's own snapshot follows.
    if type(fact) is e.StepCompensationStarted and state.status == "compensating":
        return None if state.step(fact.step).undo_attempt else _due(state, fact.step)
    return None


def _before_going_back(state: SagaState, fact: e.Fact) -> Due | None:
    if state.status not in ("executing", "forward_recovery"):
        return None  # a compensation that is tried again, or the end of one
    if type(fact) is e.CompensationStarted:
        # A cancelled saga goes back, too, but nothing has failed.
        failed = state.step(state.failed_step).status
        gone = failed in ("failed", "compensation_failed", "outcome_unknown")
        return _due(state, state.failed_step) if gone else None
    if isinstance(fact, (e.SagaFailed, e.SagaRolledBack, e.SagaPartiallyCommitted)):
        return _due(state, state.failed_step or fact.step)  # recorded, without compensation
    return None


def _after_step(state: SagaState, fact: e.Fact) -> Due | None:
    if isinstance(fact, (e.StepCompleted, e.StepSkipped)):
        return _due(state, fact.step)
    if type(fact) is e.OutcomeResolved and fact.happened:
        return _due(state, fact.step)
    if type(fact) is e.StepCompensated and state.status == "compensating":
        return _due(state, fact.step)
    return None


def _on_completion(state: SagaState, fact: e.Fact) -> Due | None:
    return Due("", len(state.completed_steps)) if type(fact) is e.SagaCompleted else None


def _at_interval(
    every_us: int, state: SagaState, event: e.Event, updated_before: int
) -> Due | None:
    if every_us <= 0 or state.sequence == 1:
        return None
    began = state.started_at
    if (state.updated_at - began) // every_us == (updated_before - began) // every_us:
        return None
    return _due(state, getattr(event.fact, "step", "") or state.current)


Rule = Callable[[SagaState, e.Fact], Due | None]

_BEFORE: dict[SnapshotStrategy, Rule] = {
    SnapshotStrategy.BEFORE_EACH_STEP: _before_step,
    SnapshotStrategy.ON_FAILURE: _before_going_back,
}
_AFTER: dict[SnapshotStrategy, Rule] = {
    SnapshotStrategy.AFTER_EACH_STEP: _after_step,
    SnapshotStrategy.ON_COMPLETION: _on_completion,
}


# --- what identifies one --------------------------------------------------------------------------

_NAMESPACE = UUID("7d0e4a3c-8b52-5f0e-9a57-5a6761702d65")


def snapshot_id(saga_id: str, sequence: int) -> str:
    """The id of the snapshot that a projector takes of this saga at this sequence."""
    return str(uuid5(_NAMESPACE, f"{sequence}/{saga_id}"))


def state_hash(saga_id: str, sequence: int, fold_version: int, state: bytes) -> str:
    """SHA-256, hex, of a snapshot's state and of what says which state it is."""
    head = f"{sequence}/{fold_version}/{len(saga_id)}/{saga_id}/".encode(errors="surrogatepass")
    return hashlib.sha256(head + state).hexdigest()
