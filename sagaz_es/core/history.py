"""The past of one saga as questions about its events: the state at a point, what changed between.

A saga's time is the running maximum of its events' times: it never falls, so a clock that steps
back changes no order, and of several events with one time the state at that time is the one after
the last of them. Order is the sequence, never the clock.

Law (exact): the state at a point is the fold of exactly the accepted events up to it.
Law (any base): from a state kept before the point, the rest gives the same answer.
Source: DESIGN.md §7; `tests/property/test_history.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from msgspec import Struct

from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, advance, judge
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import names, split_object


class Moment(Struct, frozen=True):
    """A point in time, µs since 1970 UTC: the state after all events up to and including it."""

    at: int


class Step(Struct, frozen=True):
    """A point at a step: just before it first began, or just after it first completed."""

    name: str
    after: bool = False


Point: TypeAlias = int | Moment | Step
"""A sequence, a time, or a step."""

_BEGINS = (e.StepStarted, e.StepCompleted, e.StepFailed, e.StepSkipped, e.StepOutcomeUnknown)


def effective_time(state: SagaState, event: e.Event) -> int:
    """The saga's time once `event` carries `state` on."""
    return max(state.updated_at, event.occurred_at) if state.sequence else event.occurred_at


def begins(fact: e.Fact, step: str) -> bool:
    """Whether the step began with this fact, if it had not begun before.

    Recorded sagas may leave StepStarted out: then it is the first fact about the step.
    """
    return isinstance(fact, _BEGINS) and fact.step == step


def completes(fact: e.Fact, step: str) -> bool:
    """Whether the step is done with this fact."""
    if type(fact) is e.OutcomeResolved:
        return fact.happened and fact.step == step
    return type(fact) is e.StepCompleted and fact.step == step


def is_behind(point: Point, state: SagaState, event: e.Event) -> bool:
    """Whether `event`, the next one accepted after `state`, lies behind the point."""
    if type(point) is int:
        return state.sequence >= point
    if type(point) is Moment:
        return effective_time(state, event) > point.at
    assert type(point) is Step, point
    return not point.after and begins(event.fact, point.name)


def is_reached(point: Point, event: e.Event) -> bool:
    """Whether the state just after `event` is the one at the point, whatever follows."""
    return type(point) is Step and point.after and completes(event.fact, point.name)


def state_at(events: Iterable[e.Event], point: Point, base: SagaState | None = None) -> SagaState:
    """The fold up to the point, from a base that is not behind it; sequence 0: nothing was yet.

    A step that was not reached gives the state after the last event.
    """
    state = SagaState() if base is None else base.copy()
    if type(point) is Step and point.after:
        step = state.step(point.name)
        # Its completion is the base's last event: nothing that follows can say so.
        if step.status == "completed" and 0 < step.done_at == state.sequence:
            return state
    for event in events:
        if judge(state, event) is not Verdict.ACCEPTED:
            continue
        if is_behind(point, state, event):
            break
        advance(state, event)
        if is_reached(point, event):
            break
    return state


# --- what changed ---------------------------------------------------------------------------------


class Change(Struct, frozen=True):
    """What one accepted event did. Texts are JSON; `at` is the saga's time after it."""

    sequence: int
    at: int
    type: str  # of the fact
    step: str  # empty: it is about the saga
    status: str  # of the saga after it
    set: dict[str, str]
    deleted: tuple[str, ...]
    error_type: str = ""
    error_message: str = ""
    actor: str = ""  # who asked for it; empty: nobody did
    reason: str = ""
    action: str = ""  # what was decided, where the type does not say so


def take(state: SagaState, event: e.Event) -> Change:
    """Carry `state` forward by an accepted event, and say what that changed."""
    fact = event.fact
    before = state.context
    deleted: tuple[str, ...] = ()
    if type(fact) is e.SagaStarted:  # also what a branch inherits, and what overrides it
        before = dict(before)
        advance(state, event)
        given = {key: text for key, text in state.context.items() if before.get(key) != text}
    else:
        given = split_object(getattr(fact, "keys_set", ""))
        if type(fact) is e.StepCompleted and fact.keys_deleted:
            gone = names(fact.keys_deleted)
            deleted = tuple(key for key in gone if key in before)
            for key in gone:
                given.pop(key, None)
        advance(state, event)
    return Change(
        sequence=state.sequence,
        at=state.updated_at,
        type=type(fact).__name__,
        step=getattr(fact, "step", ""),
        status=state.status,
        set=given,
        deleted=deleted,
        error_type=getattr(fact, "error_type", ""),
        error_message=getattr(fact, "error_message", ""),
        actor=getattr(fact, "actor", ""),
        reason=getattr(fact, "reason", ""),
        action=_decided(fact),
    )


def _decided(fact: e.Fact) -> str:
    if type(fact) is e.OutcomeResolved:
        return "happened" if fact.happened else "not_happened"
    return fact.action if type(fact) is e.RecoveryDecided else ""


def changes(events: Iterable[e.Event], base: SagaState | None = None) -> Iterator[Change]:
    """What each accepted event changed, in order."""
    state = SagaState() if base is None else base.copy()
    for event in events:
        if judge(state, event) is Verdict.ACCEPTED:
            yield take(state, event)


class Diff(Struct, frozen=True):
    """What is otherwise in one state than in another. Texts are JSON; steps map to status."""

    sequences: tuple[int, int]
    statuses: tuple[str, str]
    set: dict[str, tuple[str | None, str]]  # key -> before (None: it did not exist) and after
    deleted: dict[str, str]  # key -> before
    steps: dict[str, tuple[str, str]]


def diff(a: SagaState, b: SagaState) -> Diff:
    """What changed from `a` to `b`; the two may stand in any order, or in different sagas."""
    return Diff(
        sequences=(a.sequence, b.sequence),
        statuses=(a.status, b.status),
        set={
            key: (a.context.get(key), text)
            for key, text in b.context.items()
            if a.context.get(key) != text
        },
        deleted={key: text for key, text in a.context.items() if key not in b.context},
        steps={
            name: (a.step(name).status, b.step(name).status)
            for name in a.steps | b.steps
            if a.step(name).status != b.step(name).status
        },
    )


def bisection(first: int, last: int) -> Generator[int, bool, int | None]:
    """Yields the sequences to look at, is sent whether it holds there; returns the first where it
    does, None where it never does. It must hold from some sequence on (as `git bisect` needs it).
    """
    found = None
    while first <= last:
        middle = (first + last) // 2
        if (yield middle):
            found, last = middle, middle - 1
        else:
            first = middle + 1
    return found


# --- the steps that were reached ------------------------------------------------------------------


class Reached(Struct, frozen=True):
    """A step that began: where a replay can start. `sequence`: of the state just before."""

    step: str
    index: int  # 0, 1, 2 … in the order in which they were reached
    status: str  # of the step now
    at: int
    sequence: int


def reached(events: Iterable[e.Event], base: SagaState | None = None) -> list[Reached]:
    """Every step that began since `base`, once, in the order of their beginnings."""
    state = SagaState() if base is None else base.copy()
    found: dict[str, tuple[int, int]] = {}
    for event in events:
        if judge(state, event) is not Verdict.ACCEPTED:
            continue
        if isinstance(event.fact, _BEGINS):
            found.setdefault(event.fact.step, (effective_time(state, event), state.sequence))
        advance(state, event)
    return [
        Reached(name, index, state.step(name).status, at, sequence)
        for index, (name, (at, sequence)) in enumerate(found.items())
    ]


# --- paths ----------------------------------------------------------------------------------------


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""There is nothing at this path; None is a value."""


def parse_path(path: str) -> list[str | int]:
    """`order.items[3].price` as ["order", "items", 3, "price"]; `['a.b']` quotes a key.

    Raises ValueError for brackets that are not closed or hold neither a number nor a quoted key.
    """
    parts: list[str | int] = []
    rest = path
    while rest:
        if rest[0] == "[":
            if rest[1:2] in ("'", '"'):
                inside, closed, rest = rest[2:].partition(f"{rest[1]}]")
                parts.append(inside)
            else:
                inside, closed, rest = rest[1:].partition("]")
                parts.append(int(inside))
            if not closed:
                raise ValueError(f"{path!r}: a bracket is not closed")
            rest = rest.removeprefix(".")
            continue
        end = min((at for at in (rest.find("."), rest.find("[")) if at >= 0), default=len(rest))
        parts.append(rest[:end])
        rest = rest[end:].removeprefix(".")
    return parts


def value_at(context: Mapping[str, Any], path: str) -> Any:
    """The value at a path, or MISSING. A key that is spelt exactly like the path comes first."""
    if path in context:
        return context[path]
    try:
        parts = parse_path(path)
    except ValueError:
        return MISSING
    value: Any = context
    for part in parts:
        if isinstance(value, Mapping):
            value = value.get(str(part), MISSING)
        elif isinstance(value, list | tuple) and _is_index(part, len(value)):
            value = value[int(part)]
        else:
            return MISSING
        if value is MISSING:
            return MISSING
    return value if parts else MISSING


def _is_index(part: str | int, length: int) -> bool:
    try:
        return -length <= int(part) < length
    except ValueError:
        return False
