"""One saga's accepted events from wherever they are kept: snapshots, archive, log.

What the store has comes first, then the tail of the log that the projector has not reached yet. A
saga that was set aside is read from the log from its first parked record on; where a fact of it is
damaged, what follows is SagaSetAside, never passed over. Where the store lacks something (it was
forgotten, or never kept), or does not answer, the whole log answers; where that is gone too, the
answer is HistoryGone, never a guess.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, advance, judge
from sagaz_es.core.state import FOLD_VERSION, SagaState, load_state
from sagaz_es.errors import HistoryGone, SagaSetAside
from sagaz_es.ports import (
    ArchivedEvent,
    EventLog,
    ProjectionStore,
    Record,
    StoredSnapshot,
    Undecodable,
)
from sagaz_es.reading.lookup import asked as asked_or_log

Opener = Callable[[str, bytes], bytes]
"""Decrypts bytes with the key of this id."""

T = TypeVar("T")
PAGE = 1000


class Placed(Struct, frozen=True, gc=False):
    """An accepted event and where it stands; `in_tail`: the store does not have it yet."""

    event: e.Event
    offset: int
    in_tail: bool


class Base(Struct, frozen=True):
    """A state to go on from, and the snapshots that were passed over: id and reason."""

    state: SagaState
    snapshot: StoredSnapshot | None = None
    passed_over: tuple[tuple[str, str], ...] = ()


class Past:
    """See the module. `log` or `store` may be missing, not both."""

    def __init__(
        self,
        saga_id: str,
        log: EventLog | None,
        store: ProjectionStore | None,
        *,
        opener: Opener | None = None,
        page: int = PAGE,
    ) -> None:
        self.saga_id, self.log, self.store = saga_id, log, store
        self.page = page
        self._opener = opener

    @property
    def partition(self) -> int | None:
        """Where the saga stands; None without a log."""
        return None if self.log is None else self.log.partition_of(self.saga_id)

    # --- where to begin

    async def base(self, *, sequence: int | None = None, at: int | None = None) -> Base:
        """The nearest good snapshot at or before the sequence or the time; else the empty state."""
        passed_over: list[tuple[str, str]] = []
        while sequence is None or sequence > 0:
            snapshot = await self._nearest(sequence, at)
            if snapshot is None:
                break
            state, reason = self._opened(snapshot)
            if state is not None and (at is None or state.updated_at <= at):
                return Base(state, snapshot, tuple(passed_over))
            if reason:
                passed_over.append((snapshot.snapshot_id, reason))
            sequence = snapshot.sequence - 1
        return Base(SagaState(), None, tuple(passed_over))

    async def _nearest(self, sequence: int | None, at: int | None) -> StoredSnapshot | None:
        return await self._asked(
            lambda store: store.nearest_snapshot(self.saga_id, sequence=sequence, at=at)
        )

    def _opened(self, snapshot: StoredSnapshot) -> tuple[SagaState | None, str]:
        """The snapshot's state, or why it is of no use."""
        if snapshot.fold_version != FOLD_VERSION:
            return None, f"it is of fold version {snapshot.fold_version}"
        data = snapshot.state
        if snapshot.key_id:
            if self._opener is None:
                return None, f"it is sealed with key {snapshot.key_id!r}"
            try:
                data = self._opener(snapshot.key_id, data)
            except Exception as error:  # whatever a key provider raises: events are there, too
                return None, f"it cannot be opened: {type(error).__name__}"
        try:
            state = load_state(data)
        except (msgspec.MsgspecError, UnicodeError) as error:
            return None, f"it cannot be read: {error}"
        if (state.saga_id, state.sequence) != (self.saga_id, snapshot.sequence):
            return None, "it holds the state of something else"
        return state, ""

    async def _asked(self, ask: Callable[[ProjectionStore], Awaitable[T]]) -> T | None:
        """What the store says; None: there is none, or the log has to answer for it."""
        log, store = self.log, self.store
        if store is None:
            return None
        if log is None:
            return await ask(store)
        return await asked_or_log(log, store, log.partition_of(self.saga_id), lambda: ask(store))

    # --- going on

    async def following(
        self, state: SagaState, asked: str, *, whole: bool = False
    ) -> AsyncGenerator[Placed, None]:
        """The accepted events after `state`, in order.

        The caller carries `state` forward by each before it takes the next: the fold decides what
        is accepted, and it needs the state for that. In a log without its beginning, an empty state
        becomes the one that the rest begins with, unless the `whole` past is wanted.

        Raises HistoryGone, naming what was `asked`; SagaSetAside, where what follows depends on a
        record that cannot be read.
        """
        place = await self._asked(self._place)
        if place is None:
            async for placed in self._in_log(state, asked, whole):
                yield placed
            return
        tail_from, head = place
        kept = 0 if head is None else head.sequence
        async for archived in self.archive(state.sequence):
            if archived.sequence != state.sequence + 1:
                break
            yield Placed(archived.event, archived.offset, False)
        # The archive does not reach as far as the head, or the store went away.
        if state.sequence < kept:
            async for placed in self._in_log(state, asked, whole):
                yield placed
            return
        async for placed in self._tail(state, tail_from, asked, whole, unknown=head is None):
            yield placed

    async def _place(self, store: ProjectionStore) -> tuple[int, SagaState | None]:
        """From where on the log has to be read, and the head that stands before that."""
        # The checkpoint first: what is committed meanwhile only makes events come twice.
        tail_from = await self._tail_from(store)
        return tail_from, (await store.heads([self.saga_id])).get(self.saga_id)

    async def _tail_from(self, store: ProjectionStore) -> int:
        partition = self.partition
        if partition is None:
            return 0
        checkpoint = await store.checkpoint(partition)
        if checkpoint is None:
            return 0
        parked = await store.parked_of(partition, self.saga_id)
        # A saga that was set aside is folded up to its first parked record, and no further.
        return min([checkpoint.next_offset, *(record.offset for record in parked)])

    async def archive(self, after: int = 0) -> AsyncIterator[ArchivedEvent]:
        """What the store keeps of the events after a sequence, page by page, while it answers."""
        while True:
            page = await self._page(after)
            for archived in page or ():
                yield archived
            if page is None or len(page) < self.page:
                return
            after = page[-1].sequence

    async def _page(self, after: int) -> tuple[ArchivedEvent, ...] | None:
        return await self._asked(
            lambda store: store.archived(self.saga_id, after=after, limit=self.page)
        )

    async def now(self) -> SagaState | None:
        """The state after the last event, from the store's head; None: there is no such saga."""
        heads = await self._asked(lambda store: store.heads([self.saga_id])) or {}
        state = heads.get(self.saga_id) or SagaState()
        async for placed in self.following(state, "its end"):
            advance(state, placed.event)
        return state if state.sequence else None

    async def _tail(
        self, state: SagaState, tail_from: int, asked: str, whole: bool, *, unknown: bool
    ) -> AsyncIterator[Placed]:
        log = self.log
        if log is None:
            return
        partition = log.partition_of(self.saga_id)
        start = (await log.bounds(partition)).start
        if tail_from < start and tail_from:
            gone = f"offset {start} of partition {partition}, but the store ends at {tail_from}"
            raise HistoryGone(f"saga {self.saga_id!r}", asked, gone)
        records = await log.read_saga(self.saga_id, max(tail_from, start))
        if unknown and tail_from > start and self._may_stand_before(records):
            records = ()
            async for placed in self._in_log(state, asked, whole):
                yield placed
        for record in self._accepted(state, records):
            yield Placed(record.entry, record.offset, True)  # type: ignore[arg-type]

    def _may_stand_before(self, tail: tuple[Record, ...]) -> bool:
        """Whether a saga that the store does not know may have a past before the tail: the store
        may have forgotten it. Without an index that is a scan, made only on a sign of it."""
        if getattr(self.log, "indexed", False):
            return True
        first = next((r.entry for r in tail if isinstance(r.entry, e.Event)), None)
        return first is not None and judge(SagaState(), first) is Verdict.GAP

    async def _in_log(self, state: SagaState, asked: str, whole: bool) -> AsyncIterator[Placed]:
        """From the log alone: fold it anew up to where `state` stands, then go on."""
        if self.log is None:
            gone = f"sequence {state.sequence + 1} is missing in {self.store and self.store.name}"
            raise HistoryGone(f"saga {self.saga_id!r}", asked, gone)
        partition = self.log.partition_of(self.saga_id)
        start = (await self.log.bounds(partition)).start
        records = await self.log.read_saga(self.saga_id, start)
        base = self._beginning(records) if start else SagaState()
        if base is None or (base.sequence > state.sequence and (state.sequence or whole)):
            begins = "" if base is None else f"sequence {base.sequence + 1}, "
            gone = f"{begins}offset {start} of partition {partition}"
            raise HistoryGone(f"saga {self.saga_id!r}", asked, gone)
        # Where nothing is known yet the caller folds; else a shadow of it comes up to its place.
        shadow = base if state.sequence else _become(state, base)
        for record in self._accepted(shadow, records):
            event: Any = record.entry
            if shadow is not state:
                advance(shadow, event)
                if shadow.sequence <= state.sequence:
                    continue
            yield Placed(event, record.offset, True)
        if shadow.sequence < state.sequence:
            gone = f"a store that knows more than the log: {state.sequence} events"
            raise HistoryGone(f"saga {self.saga_id!r}", asked, gone)

    def _beginning(self, records: tuple[Record, ...]) -> SagaState | None:
        """What the fold begins with in a log that lost its own beginning; None: it cannot begin.

        That is nothing where the saga's first fact is still there, or the whole state that a
        SagaCheckpointed carries.
        """
        events = [
            record.entry
            for record in records
            if isinstance(record.entry, e.Event) and record.entry.saga_id == self.saga_id
        ]
        if not events:
            return SagaState()
        counts: dict[bytes, int] = {}
        for event in events:
            if event.epoch == e.RECORDED_EPOCH:
                counts.setdefault(event.writer, event.sequence)
        for event in events:
            if judge(SagaState(), event) is Verdict.ACCEPTED:
                recorded = event.epoch == e.RECORDED_EPOCH
                # Of several recorders each one's first fact must be there.
                whole = not recorded or all(count == 1 for count in counts.values())
                return SagaState() if whole else None
            base = self._checkpointed(event)
            if base is not None:
                return base
        return None

    def _checkpointed(self, event: e.Event) -> SagaState | None:
        if type(event.fact) is not e.SagaCheckpointed:
            return None
        try:
            base = load_state(event.fact.state)
        except (msgspec.MsgspecError, UnicodeError):
            return None
        sound = base.saga_id == self.saga_id and judge(base, event) is Verdict.ACCEPTED
        return base if sound else None

    def _accepted(self, state: SagaState, records: Iterable[Record]) -> Iterator[Record]:
        """Those that the fold accepts, one after the other, while the caller carries `state`
        forward."""
        damaged = -1
        for record in records:
            event = record.entry
            if isinstance(event, Undecodable):
                damaged = record.offset if damaged < 0 else damaged
            elif isinstance(event, e.Event) and event.saga_id == self.saga_id:
                verdict = judge(state, event)
                if verdict is Verdict.ACCEPTED:
                    yield record
                elif verdict is Verdict.GAP and damaged >= 0:
                    raise SagaSetAside(self.saga_id, record.partition, damaged, state.sequence)

    async def offset_of(self, sequence: int) -> int | None:
        """Where the event with this sequence stands, if the archive knows it."""
        if sequence < 1:
            return None
        found = await self._asked(
            lambda store: store.archived(self.saga_id, after=sequence - 1, upto=sequence, limit=1)
        )
        return found[0].offset if found else None


def _become(state: SagaState, other: SagaState) -> SagaState:
    """Make the caller's state equal to another one, in place."""
    for name in SagaState.__struct_fields__:
        setattr(state, name, getattr(other, name))
    return state
