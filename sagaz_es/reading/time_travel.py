"""Any past state of a saga, and how it came to be.

`SagaHistory` answers for one saga, `History` for all of a log and for families of replays. Answers
are exact: the nearest good snapshot, the archived events after it, and the tail of the log that the
projector has not reached; without a store, or without snapshots, the same answer from events alone.
Source: DESIGN.md §7; behaviours B59, B61 to B71.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any, TypeAlias

from sagaz_es.codec.values import from_text, to_text
from sagaz_es.core import history as core
from sagaz_es.core.fold import advance
from sagaz_es.core.history import MISSING, Change, Moment, Point, Step
from sagaz_es.core.state import SagaState, StepState
from sagaz_es.core.stuck import waits_for_person
from sagaz_es.core.texts import split_object
from sagaz_es.errors import (
    ConfigurationError,
    HistoryGone,
    SagaNotFound,
    StateNotFound,
    StepNotFound,
)
from sagaz_es.ports import ArchivedEvent, BlobStore, EventLog, ProjectionStore
from sagaz_es.reading.historical import (
    FamilyMember,
    HistoricalState,
    HistoricalStep,
    KeyNotFound,
    Lineage,
    ReachedStep,
    Source,
    StateChange,
    StateDiff,
    When,
    as_point,
    check_limit,
    iso,
    named,
)
from sagaz_es.reading.lookup import waiting_start
from sagaz_es.reading.past import PAGE, Base, Opener, Past
from sagaz_es.sagas.large_values import LargeValues
from sagaz_es.snapshots import from_us, to_us

__all__ = [
    "FamilyMember",
    "HistoricalState",
    "HistoricalStep",
    "History",
    "KeyNotFound",
    "Lineage",
    "ReachedStep",
    "SagaHistory",
    "Source",
    "StateChange",
    "StateDiff",
    "Step",
    "When",
]

Predicate: TypeAlias = "Callable[[HistoricalState], bool | Awaitable[bool]]"

_END = Moment(to_us(datetime.max))
_BEGINNING = "its beginning"


class SagaHistory:
    """The past of one saga. Every call reads anew: a saga that runs has a longer past each time.

    `when` is a time, a sequence or a step, see `When`. Raises SagaNotFound, StateNotFound (the
    saga had not begun), StepNotFound (with its steps), HistoryGone (from where it exists).
    """

    def __init__(
        self,
        saga_id: str,
        log: EventLog | None,
        store: ProjectionStore | None = None,
        blobs: BlobStore | None = None,
        *,
        opener: Opener | None = None,
        page: int = PAGE,
    ) -> None:
        self.saga_id = str(saga_id)
        self._past = Past(self.saga_id, log, store, opener=opener, page=page)
        self._large = LargeValues(blobs) if blobs is not None else None

    # --- states

    def __await__(self) -> Generator[Any, Any, SagaHistory]:
        """`await engine.history(…)` checks that the saga exists. Raises SagaNotFound."""
        yield from self.now().__await__()
        return self

    async def state_at(self, when: When) -> HistoricalState:
        """The saga as it was: after the last event at or before a time, after the event with a
        sequence, just before a step first began or just after it first completed."""
        return await self._shown(*await self._fold_to(as_point(when)))

    async def now(self) -> HistoricalState:
        """The saga after its last event."""
        return await self._shown(*await self._fold_to(_END))

    async def waiting(self) -> HistoricalState | None:
        """A saga that has not begun, because its start waits in the log; None: none does."""
        log = self._past.log
        start = await waiting_start(log, self._past.saga_id, "") if log is not None else None
        if start is None:
            return None
        return HistoricalState(
            saga_id=start.saga_id,
            saga_name=start.saga_name,
            status="pending",
            sequence=0,
            timestamp=from_us(start.requested_at),
            context=await self._decoded(split_object(start.context)),
            completed_steps=[],
            current_step=None,
            source=Source(),
            caller_saga_id=start.caller_saga_id or None,
            caller_step=start.caller_step or None,
        )

    async def diff(self, a: When, b: When) -> StateDiff:
        """What is otherwise at `b` than at `a`."""
        old, _ = await self._fold_to(as_point(a))
        new, _ = await self._fold_to(as_point(b))
        told = core.diff(old, new)
        before = {key: text for key, (text, _) in told.set.items() if text is not None}
        return StateDiff(
            sequences=told.sequences,
            statuses=told.statuses,
            set=await self._decoded({key: text for key, (_, text) in told.set.items()}),
            before=await self._decoded(before),
            deleted=await self._decoded(told.deleted),
            steps=told.steps,
        )

    async def bisect(self, predicate: Predicate) -> HistoricalState | None:
        """The first state for which the predicate holds, if it holds from some event on; None: it
        never does. It is asked about as many states as the past's length has binary digits."""
        events = None if self._past.store is not None else await self.events()
        last = len(events) if events else (await self._fold_to(_END))[0].sequence
        low, found = SagaState(), 0
        search = core.bisection(1, last)
        try:
            middle = next(search)
            while True:
                state = await self._up_to(middle, low, events)
                holds = predicate(await self._shown(state, Source()))
                if inspect.isawaitable(holds):
                    holds = await holds
                if holds:
                    found = middle
                else:
                    low = state
                middle = search.send(bool(holds))
        except StopIteration:
            return await self.state_at(found) if found else None

    async def _up_to(
        self, sequence: int, low: SagaState, events: list[ArchivedEvent] | None
    ) -> SagaState:
        """The state at a sequence after `low`; each bisection folds no event more than twice."""
        if events is not None:
            state = low.copy()
            for archived in events[low.sequence : sequence]:
                advance(state, archived.event)
            return state
        base = (await self._past.base(sequence=sequence)).state
        state = base if base.sequence > low.sequence else low.copy()
        async with aclosing(self._past.following(state, named(sequence))) as following:
            async for placed in following:
                if state.sequence >= sequence:
                    break
                advance(state, placed.event)
        return state

    # --- changes

    async def changes(
        self, after: When | None = None, before: When | None = None, limit: int | None = 100
    ) -> list[StateChange]:
        """What changed, oldest first: the first `limit` (None: all) of the range.

        Times and sequences are inclusive bounds; the next page begins one sequence further. A step
        means the state that it names: what follows it, what led to it.
        """
        check_limit(limit)
        state = SagaState()
        last = None if before is None else await self._bound(before)
        if after is not None:
            state, _, _ = await self._walk(await self._bound(after, just_before=True))
        whole = state.sequence == 0
        told: list[Change] = []
        async with aclosing(self._past.following(state, _BEGINNING, whole=whole)) as following:
            async for placed in following:
                full = limit is not None and len(told) >= limit
                if full or (last is not None and core.is_behind(last, state, placed.event)):
                    break
                told.append(core.take(state, placed.event))
                if isinstance(last, int) and state.sequence >= last:
                    break  # without a look at what follows: it may not be readable
        if not state.sequence:
            await self._began()
        return [await self._told(change) for change in told]

    async def _bound(self, when: When, *, just_before: bool = False) -> int | Moment:
        """A point without steps; for the lower bound, the one whose state the range begins at."""
        point = as_point(when)
        if isinstance(point, Step):
            return (await self._fold_to(point))[0].sequence
        if isinstance(point, Moment):
            return Moment(point.at - just_before)
        return point - just_before

    async def events(self) -> list[ArchivedEvent]:
        """All accepted events, each with its sequence in the saga and its offset in the log."""
        found = [event async for event in self.stream()]
        if not found:
            raise self._not_found()
        return found

    async def stream(self) -> AsyncIterator[ArchivedEvent]:
        """The accepted events one by one, for a past that is too long to hold."""
        state = SagaState()
        async with aclosing(self._past.following(state, _BEGINNING, whole=True)) as following:
            async for placed in following:
                advance(state, placed.event)
                yield ArchivedEvent(state.sequence, placed.offset, placed.event)

    async def blame(self, path: str) -> StateChange | None:
        """The last event that set or deleted a key; for a path into a value, the last one that
        changed what is there. None: no event ever did."""
        if not isinstance(path, str):
            raise ConfigurationError(f"path: a text, such as items[0].price, not {path!r}")
        head = _first_part(path)
        state = SagaState()
        last: Change | None = None
        value = ""  # the text of what is at the path; empty: nothing
        async with aclosing(self._past.following(state, _BEGINNING, whole=True)) as following:
            async for placed in following:
                change = core.take(state, placed.event)
                if path in change.set or path in change.deleted:
                    last = change
                elif head in change.set or head in change.deleted:
                    found = await self._text_at(state, head, path)
                    last, value = (last, value) if found == value else (change, found)
        if not state.sequence:
            raise self._not_found()
        return None if last is None else await self._told(last)

    async def _text_at(self, state: SagaState, key: str, path: str) -> str:
        text = state.context.get(key)
        if text is None:
            return ""
        value = core.value_at(await self._decoded({key: text}), path)
        return "" if value is MISSING else to_text(value)

    async def checkpoints(self) -> list[ReachedStep]:
        """Every step that began, once, in the order of their beginnings, with its status now."""
        events = [archived.event for archived in await self.events()]
        return [
            ReachedStep(one.step, one.index, one.status, from_us(one.at), one.sequence)
            for one in core.reached(events)
        ]

    # --- folding

    async def lineage(self) -> Lineage:
        """The saga's family: who was replayed from whom, from the first saga to the newest branch.

        Raises SagaNotFound.
        """
        log = self._past.log
        if log is None:
            raise self._not_found()
        return await History(log, self._past.store, page=self._past.page).lineage(self.saga_id)

    async def _fold_to(self, point: Point) -> tuple[SagaState, Source]:
        state, source, reached = await self._walk(point)
        if not state.sequence:
            raise StateNotFound(self.saga_id, named(point), await self._began())
        if isinstance(point, Step):
            if not reached:
                raise _step_not_found(point, state)
            return state, source
        if isinstance(point, Moment):
            begins_later = state.updated_at > point.at
        else:
            begins_later = state.sequence > point
            if state.sequence < point:
                began = iso(state.started_at)
                raise StateNotFound(self.saga_id, named(point), began, state.sequence)
        if begins_later:  # what was before is in no log and no store any more
            exists_from = f"sequence {state.sequence}, {iso(state.updated_at)}"
            raise HistoryGone(f"saga {self.saga_id!r}", named(point), exists_from)
        return state, source

    async def _walk(self, point: Point) -> tuple[SagaState, Source, bool]:
        """The fold up to the point, or to the end where that comes first, how it was made, and
        whether a step that is the point was found."""
        asked, located = named(point), False
        if isinstance(point, Step):
            point, base = await self._locate(point)
            located = isinstance(point, int)
        elif isinstance(point, Moment):
            base = await self._past.base(at=None if point == _END else point.at)
        else:
            base = await self._past.base(sequence=point)
        state, folded, tail = base.state, 0, 0
        offset: int | None = None
        # A sequence that is reached needs no look at what follows: that may not be readable.
        arrived = isinstance(point, int) and state.sequence >= point
        async with aclosing(self._past.following(state, asked)) as following:
            while not arrived and (placed := await anext(following, None)) is not None:
                if core.is_behind(point, state, placed.event):
                    located = True
                    break
                advance(state, placed.event)
                folded, tail, offset = folded + 1, tail + placed.in_tail, placed.offset
                if core.is_reached(point, placed.event):
                    located = True
                    break
                arrived = isinstance(point, int) and state.sequence >= point
        snapshot = base.snapshot
        source = Source(
            snapshot_id=None if snapshot is None else snapshot.snapshot_id,
            snapshot_sequence=None if snapshot is None else snapshot.sequence,
            events_folded=folded,
            tail_events=tail,
            partition=self._past.partition,
            offset=await self._past.offset_of(state.sequence) if offset is None else offset,
            passed_over=base.passed_over,
        )
        return state, source, located

    async def _locate(self, step: Step) -> tuple[Point, Base]:
        """The step's sequence, if it is in the archive; and where to go on from. To find it the
        events are only looked at, not folded."""
        if self._past.store is None:
            return step, Base(SagaState())
        last = 0
        async for archived in self._past.archive():
            if archived.sequence != last + 1:
                return step, Base(SagaState())  # the archive has a gap: the log will tell
            fact = archived.event.fact
            if core.completes(fact, step.name) if step.after else core.begins(fact, step.name):
                sequence = archived.sequence if step.after else last
                return sequence, await self._past.base(sequence=sequence)
            last = archived.sequence
        return step, await self._past.base(sequence=last)

    async def _began(self) -> str:
        """When the saga began. Raises SagaNotFound."""
        async with aclosing(self._past.following(SagaState(), _BEGINNING)) as following:
            async for placed in following:
                return iso(placed.event.occurred_at)
        raise self._not_found()

    def _not_found(self) -> SagaNotFound:
        place = self._past.log or self._past.store
        return SagaNotFound(self.saga_id, "" if place is None else place.name)

    # --- showing

    async def _decoded(self, texts: Mapping[str, str]) -> dict[str, Any]:
        if self._large is not None:
            texts = await self._large.load(texts)
        return {key: from_text(text) for key, text in texts.items()}

    async def _told(self, change: Change) -> StateChange:
        return StateChange(
            sequence=change.sequence,
            timestamp=from_us(change.at),
            type=change.type,
            step=change.step or None,
            status=change.status,
            changes={
                "set": await self._decoded(change.set),
                "deleted": list(change.deleted),
            },
            error=_error(change.error_type, change.error_message),
            actor=change.actor or None,
            reason=change.reason or None,
            action=change.action or None,
        )

    async def _shown(self, state: SagaState, source: Source) -> HistoricalState:
        return HistoricalState(
            saga_id=state.saga_id,
            saga_name=state.saga_name,
            status=state.status,
            sequence=state.sequence,
            timestamp=from_us(state.updated_at),
            context=await self._decoded(state.context),
            completed_steps=state.completed_steps,
            current_step=state.current or None,
            source=source,
            steps={name: _shown_step(state.step(name)) for name in _all_steps(state)},
            error=state.error_text or None,
            started_at=from_us(state.started_at),
            ended_at=from_us(state.ended_at) if state.ended_at else None,
            recorded=state.recorded,
            replay_id=state.replay_id or None,
            parent_saga_id=state.parent_saga_id or None,
            root_saga_id=state.root_saga_id or None,
            branch=state.branch or None,
            caller_saga_id=state.caller_saga_id or None,
            caller_step=state.caller_step or None,
            paused=state.paused and not state.ended,
            waits_for_person=waits_for_person(state) or None,
        )


def _first_part(path: str) -> str:
    """The key of the context that a path leads into."""
    try:
        return str(next(iter(core.parse_path(path)), path))
    except ValueError:
        return path


def _error(error_type: str, message: str) -> str | None:
    return ": ".join(part for part in (error_type, message) if part) or None


def _all_steps(state: SagaState) -> dict[str, None]:
    return dict.fromkeys([*state.step_graph.order, *state.steps])


def _shown_step(step: StepState) -> HistoricalStep:
    error = _error(step.error_type, step.error_message)
    return HistoricalStep(step.status, step.attempt, error, step.child or None)


def _step_not_found(step: Step, state: SagaState) -> StepNotFound:
    known = tuple(_all_steps(state))
    why = ""
    if step.name in known:
        began = state.step(step.name).attempt > 0
        why = "has not completed step" if step.after and began else "has not reached step"
    return StepNotFound(state.saga_id, step.name, known, why)


class History:
    """The pasts of all sagas of a log, and their families."""

    def __init__(
        self,
        log: EventLog,
        store: ProjectionStore | None = None,
        blobs: BlobStore | None = None,
        *,
        opener: Opener | None = None,
        page: int = PAGE,
    ) -> None:
        self._log, self._store, self._blobs = log, store, blobs
        self._opener, self._page = opener, page

    def of(self, saga_id: str) -> SagaHistory:
        """The past of one saga; whether it exists shows when it is asked."""
        return SagaHistory(
            saga_id, self._log, self._store, self._blobs, opener=self._opener, page=self._page
        )

    async def state_at(self, saga_id: str, when: When) -> HistoricalState:
        """See SagaHistory.state_at."""
        return await self.of(saga_id).state_at(when)

    async def current(self, saga_id: str) -> SagaState:
        """The fold of the whole log so far: the store's head, and the tail. Raises SagaNotFound."""
        state = await Past(str(saga_id), self._log, self._store, page=self._page).now()
        if state is None:
            raise SagaNotFound(str(saga_id), self._log.name)
        return state

    async def head_of_family(self, saga_id: str) -> str:
        """The id of the family's newest branch, the saga's own if it was never replayed.

        A branch that has not begun yet counts: it has been decided. Raises SagaNotFound.
        """
        state = await self.current(saga_id)
        seen = {state.saga_id}
        while state.branch and state.branch not in seen:
            seen.add(state.branch)
            try:
                state = await self.current(state.branch)
            except SagaNotFound:
                return state.branch
        return state.saga_id

    async def lineage(self, saga_id: str) -> Lineage:
        """The saga's family, both ways. Raises SagaNotFound."""
        asked = await self.current(saga_id)
        members = await self._chain(asked.root_saga_id or asked.saga_id)
        if asked.saga_id not in members:  # the root's past is gone
            members |= await self._chain(asked.saga_id)
        return Lineage(
            asked.saga_id,
            tuple(members.values()),
            ancestors=await self._ancestors(asked, members),
            branches=tuple(
                member.saga_id
                for member in members.values()
                if member.parent_saga_id == asked.saga_id
            ),
        )

    async def _chain(self, first: str) -> dict[str, FamilyMember]:
        """From one member to the head: each stream names the branch that took its place."""
        members: dict[str, FamilyMember] = {}
        name = first
        while name and name not in members:
            try:
                state = await self.current(name)
            except SagaNotFound:
                if members:
                    members[name] = FamilyMember(name, "pending")
                break
            members[name] = FamilyMember(
                name,
                state.status,
                state.parent_saga_id or None,
                state.replay_id or None,
                state.point or None,
            )
            name = state.branch
        return members

    async def _ancestors(
        self, state: SagaState, members: Mapping[str, FamilyMember]
    ) -> tuple[str, ...]:
        found: dict[str, None] = {}
        parent: str | None = state.parent_saga_id
        while parent and parent not in found:
            found[parent] = None
            member = members.get(parent)
            parent = None if member is None else member.parent_saga_id
        return tuple(found)
