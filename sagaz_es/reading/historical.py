"""What time travel answers with: states, changes, differences as they are shown to people."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, TypeAlias

import msgspec

from sagaz_es.codec.values import to_text
from sagaz_es.core import history as core
from sagaz_es.core.history import MISSING, Moment, Point, Step
from sagaz_es.errors import ConfigurationError, NotFound
from sagaz_es.snapshots import from_us, to_us

When: TypeAlias = "datetime | date | str | int | Moment | Step"
"""A time (naive is UTC; ISO text), a sequence (also as digits), or a step (also "step:charge" for
just before it began, "step:charge:after" for just after it completed)."""


_WAYS = (
    "a time, such as 2026-07-01T10:30+02:00 (UTC if it has no zone), a sequence, such as 7, "
    "step:NAME or step:NAME:after"
)


def as_point(when: When) -> Point:
    """What is meant. Raises ConfigurationError for a text that is none of these, TypeError for
    anything else."""
    if isinstance(when, str):
        return _parsed(when.strip())
    if not isinstance(when, Step | Moment | int | date) or isinstance(when, bool):
        raise TypeError(
            f"a point in a saga's past is {_WAYS}, not {when!r}; `now()` gives the last state"
        )
    if isinstance(when, int):
        return _countable(when)
    if isinstance(when, Step | Moment):
        return when
    if not isinstance(when, datetime):
        when = datetime(when.year, when.month, when.day, tzinfo=UTC)
    return Moment(to_us(when))


def _parsed(text: str) -> Point:
    if text.isdecimal() and text.isascii():
        return _countable(int(text[:_DIGITS]))
    if text.startswith("step:"):
        name = text.removeprefix("step:")
        return Step(name.removesuffix(":after"), after=name.endswith(":after"))
    try:
        return Moment(to_us(datetime.fromisoformat(text)))
    except ValueError:
        raise ConfigurationError(f"{text!r} is no point in a saga's past; write {_WAYS}") from None


_LAST = 2**63 - 1  # what databases count to: no saga comes that far
_DIGITS = 20


def _countable(sequence: int) -> int:
    return min(max(sequence, -_LAST), _LAST)


def check_limit(limit: int | None) -> None:
    """Raises ConfigurationError."""
    if limit is None or (isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0):
        return
    raise ConfigurationError(f"limit: a whole number, 0 or more, or None for all, not {limit!r}")


def named(point: Point) -> str:
    """The point as messages say it."""
    if isinstance(point, Step):
        return f"the {'end' if point.after else 'beginning'} of step {point.name!r}"
    return iso(point.at) if isinstance(point, Moment) else f"sequence {point}"


def iso(at: int) -> str:
    """A time as text, with its zone."""
    return from_us(at).isoformat()


def plain(value: Any) -> Any:
    """What JSON can hold, typed values with their tags."""
    return msgspec.json.decode(to_text(value))


# --- answers --------------------------------------------------------------------------------------


class KeyNotFound(NotFound, KeyError):
    """The saga existed then, but its context had no such key."""

    def __init__(self, saga_id: str, path: str, sequence: int, known: tuple[str, ...]) -> None:
        super().__init__(saga_id, path, sequence, known)
        self.saga_id, self.path, self.sequence, self.known = saga_id, path, sequence, known

    def __str__(self) -> str:
        known = ", ".join(repr(key) for key in self.known) or "none"
        return (
            f"the context of saga {self.saga_id!r} has no {self.path!r} at sequence "
            f"{self.sequence}; its keys: {known}"
        )


@dataclass(frozen=True, slots=True)
class Source:
    """How an answer was made. `offset` is that of the last event in it; `tail_events` of the
    `events_folded` came from the log itself; `passed_over`: snapshots of no use, id and reason."""

    snapshot_id: str | None = None
    snapshot_sequence: int | None = None
    events_folded: int = 0
    tail_events: int = 0
    partition: int | None = None
    offset: int | None = None
    passed_over: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A plain record."""
        return {
            "snapshot_id": self.snapshot_id,
            "snapshot_sequence": self.snapshot_sequence,
            "events_folded": self.events_folded,
            "tail_events": self.tail_events,
            "partition": self.partition,
            "offset": self.offset,
            "passed_over": [list(one) for one in self.passed_over],
        }


@dataclass(frozen=True, slots=True)
class HistoricalStep:
    """A step as it stood; `attempt` is the last one begun, 0: none. `child` is the saga that it
    started, if it is a child step."""

    status: str
    attempt: int = 0
    error: str | None = None
    child: str | None = None


@dataclass(frozen=True, slots=True)
class HistoricalState:
    """A saga as it was. `timestamp` is when it became so: that of the last event in it.

    `completed_steps` are in the order of completion; `steps` has those that were never reached,
    too. `branch` is the replay's branch that took its place, empty: it is its family's head.
    `caller_saga_id` and `caller_step`: of a child, what started it. `paused`: no step starts until
    it is resumed. `waits_for_person`: what somebody has to decide or repair, as far as the state
    says.
    """

    saga_id: str
    saga_name: str
    status: str
    sequence: int
    timestamp: datetime
    context: dict[str, Any]
    completed_steps: list[str]
    current_step: str | None
    source: Source
    steps: dict[str, HistoricalStep] = field(default_factory=dict)
    error: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    recorded: bool = False
    replay_id: str | None = None
    parent_saga_id: str | None = None
    root_saga_id: str | None = None
    branch: str | None = None
    caller_saga_id: str | None = None
    caller_step: str | None = None
    paused: bool = False
    waits_for_person: str | None = None

    @property
    def children(self) -> dict[str, str]:
        """The sagas that its steps had started, by step; of each the last one."""
        return {name: step.child for name, step in self.steps.items() if step.child}

    @property
    def step_index(self) -> int:
        """The current step's place among the steps; without one, how many are completed."""
        if self.current_step in self.steps:
            return list(self.steps).index(self.current_step)
        return len(self.completed_steps)

    def value_at(self, path: str) -> Any:
        """The value at a path such as `order.items[3].price`. Raises KeyNotFound."""
        value = core.value_at(self.context, path)
        if value is MISSING:
            raise KeyNotFound(self.saga_id, path, self.sequence, tuple(self.context))
        return value

    def to_dict(self) -> dict[str, Any]:
        """A plain record for JSON: times as ISO texts with a zone, typed values with their tags."""
        return {
            "saga_id": self.saga_id,
            "saga_name": self.saga_name,
            "status": self.status,
            "sequence": self.sequence,
            "timestamp": self.timestamp.isoformat(),
            "context": plain(self.context),
            "completed_steps": list(self.completed_steps),
            "current_step": self.current_step,
            "step_index": self.step_index,
            "steps": {
                name: {"status": step.status, "attempt": step.attempt, "error": step.error}
                for name, step in self.steps.items()
            },
            "error": self.error,
            "started_at": self.started_at and self.started_at.isoformat(),
            "ended_at": self.ended_at and self.ended_at.isoformat(),
            "recorded": self.recorded,
            "replay_id": self.replay_id,
            "parent_saga_id": self.parent_saga_id,
            "root_saga_id": self.root_saga_id,
            "branch": self.branch,
            "caller_saga_id": self.caller_saga_id,
            "caller_step": self.caller_step,
            "paused": self.paused,
            "waits_for_person": self.waits_for_person,
            "children": self.children,
            "source": self.source.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class StateChange:
    """What one event did. `changes` has `set` (key to value) and `deleted` (keys) of the context;
    `timestamp` is the saga's time, which never falls. `actor` and `reason`: of whoever asked for
    it, or why the saga itself did; `action`: what was decided about a step (as in RecoveryDecided,
    or happened, not_happened)."""

    sequence: int
    timestamp: datetime
    type: str
    step: str | None
    status: str
    changes: dict[str, Any]
    error: str | None = None
    actor: str | None = None
    reason: str | None = None
    action: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain record for JSON."""
        return {
            "sequence": self.sequence,
            "timestamp": self.timestamp.isoformat(),
            "type": self.type,
            "step": self.step,
            "status": self.status,
            "changes": {
                "set": plain(self.changes["set"]),
                "deleted": list(self.changes["deleted"]),
            },
            "error": self.error,
            "actor": self.actor,
            "reason": self.reason,
            "action": self.action,
        }


@dataclass(frozen=True, slots=True)
class StateDiff:
    """What is otherwise at one point than at another: pairs are (before, after).

    `set`: keys that are new or have another value, `before` what those had that existed; `deleted`:
    keys that are gone, with the value that they had.
    """

    sequences: tuple[int, int]
    statuses: tuple[str, str]
    set: dict[str, Any]
    before: dict[str, Any]
    deleted: dict[str, Any]
    steps: dict[str, tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """A plain record for JSON."""
        return {
            "sequences": list(self.sequences),
            "statuses": list(self.statuses),
            "set": plain(self.set),
            "before": plain(self.before),
            "deleted": plain(self.deleted),
            "steps": {name: list(pair) for name, pair in self.steps.items()},
        }


@dataclass(frozen=True, slots=True)
class ReachedStep:
    """A step that began, where a replay can start; `sequence` is that of the state just before."""

    step: str
    index: int
    status: str
    timestamp: datetime
    sequence: int

    def to_dict(self) -> dict[str, Any]:
        """A plain record for JSON."""
        return {
            "step": self.step,
            "index": self.index,
            "status": self.status,
            "timestamp": self.timestamp.isoformat(),
            "sequence": self.sequence,
        }


@dataclass(frozen=True, slots=True)
class FamilyMember:
    """A saga and its place among the replays; status `pending`: its branch has not begun yet."""

    saga_id: str
    status: str
    parent_saga_id: str | None = None
    replay_id: str | None = None
    point: str | None = None


@dataclass(frozen=True, slots=True)
class Lineage:
    """A saga's family. `members` from the root to the head, each the branch that took the one
    before's place; `ancestors` from the parent to the root; `branches`: those replayed from it."""

    saga_id: str
    members: tuple[FamilyMember, ...]
    ancestors: tuple[str, ...]
    branches: tuple[str, ...]

    @property
    def root(self) -> str:
        """The saga that all began with."""
        return self.members[0].saga_id

    @property
    def head(self) -> str:
        """The newest branch: what stands in the world belongs to it."""
        return self.members[-1].saga_id
