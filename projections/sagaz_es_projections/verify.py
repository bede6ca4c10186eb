"""The store compared with a fresh fold of the log."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from sagaz_es.core.events import Event
from sagaz_es.core.fold import Verdict, fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.errors import SagaSetAside
from sagaz_es.ports import ArchivedEvent, EventLog, ProjectionStore, Record
from sagaz_es.reading.lookup import current_state

PAGE = 1000


class Difference(Struct, frozen=True):
    """Something of one saga that the store has otherwise than the log says."""

    saga_id: str
    what: str  # head, archive, summary, set aside, or the saga itself
    detail: str


class Verified(Struct, frozen=True):
    """What was compared. `unknown_beginning`: sagas whose first events the log keeps no more;
    `set_aside`: those that are kept only up to a record that could not be read."""

    sagas: int
    events: int
    differences: tuple[Difference, ...]
    unknown_beginning: int = 0
    set_aside: int = 0

    @property
    def ok(self) -> bool:
        """Nothing differs."""
        return not self.differences


class _Fresh(Struct):
    """A saga folded from the log: its state, and a checksum of its accepted events."""

    state: SagaState
    checksum: int = 0
    whole: bool = True  # its first event stands in the log


async def verify(
    log: EventLog,
    store: ProjectionStore,
    *,
    partitions: Iterable[int] | None = None,
    max_differences: int = 100,
) -> Verified:
    """Compare each saga's head, archive and summary with the log, as far as it is projected.

    A projector may go on meanwhile. It holds one state of each saga of a partition in memory.
    """
    await log.open()
    await store.open()
    chosen = range(log.partitions) if partitions is None else tuple(partitions)
    check = _Check(log, store, max_differences)
    for partition in chosen:
        await check.partition(partition)
    await check.foreign(frozenset(chosen))
    return Verified(
        check.sagas,
        check.events,
        tuple(check.differences),
        check.unknown_beginning,
        check.set_aside,
    )


class _Check:
    def __init__(self, log: EventLog, store: ProjectionStore, max_differences: int) -> None:
        self._log, self._store, self._max = log, store, max_differences
        self.sagas = self.events = self.unknown_beginning = self.set_aside = 0
        self.differences: list[Difference] = []
        self._seen: set[str] = set()

    async def partition(self, partition: int) -> None:
        """Compare the sagas of one partition."""
        checkpoint = await self._store.checkpoint(partition)
        upto = checkpoint.next_offset if checkpoint is not None else 0
        start = (await self._log.bounds(partition)).start
        aside = await self._aside(partition)
        for saga_id in sorted(await self._store.parked_sagas(partition)):
            self.set_aside += 1
            await self._set_aside(saga_id, partition)
        fresh: dict[str, _Fresh] = {}
        offset = start
        while offset < upto:
            chunk = await self._log.read(partition, offset, limit=min(PAGE, upto - offset))
            for record in chunk.records:
                if record.offset < upto and record.offset not in aside:
                    self._fold(fresh, record, start)
            if chunk.next_offset == offset:
                break
            offset = chunk.next_offset
        known = [saga_id for saga_id, saga in fresh.items() if saga.state.sequence]
        for first in range(0, len(known), PAGE):
            some = known[first : first + PAGE]
            heads = await self._store.heads(some)
            for saga_id in some:
                await self._compare(saga_id, fresh[saga_id], heads.get(saga_id))

    async def _aside(self, partition: int) -> frozenset[int]:
        """Offsets of records that the projector has set aside: they are in no state."""
        offsets: set[int] = set()
        for saga_id in await self._store.parked_sagas(partition):
            offsets |= {p.offset for p in await self._store.parked_of(partition, saga_id)}
        return frozenset(offsets)

    async def _set_aside(self, saga_id: str, partition: int) -> None:
        try:
            await current_state(self._log, self._store, saga_id)
        except SagaSetAside as error:
            detail = (
                f"the record at offset {error.offset} of partition {partition} cannot be read, and "
                f"later events depend on it: nothing is known beyond sequence {error.sequence}"
            )
            self._differs(saga_id, "set aside", detail)

    def _fold(self, fresh: dict[str, _Fresh], record: Record, start: int) -> None:
        event = record.entry
        if not isinstance(event, Event):
            return
        saga = fresh.get(event.saga_id)
        if saga is None:
            saga = fresh[event.saga_id] = _Fresh(SagaState())
            self._seen.add(event.saga_id)
        if fold_into(saga.state, event) is Verdict.ACCEPTED:
            self.events += 1
            row = ArchivedEvent(saga.state.sequence, record.offset, event)
            saga.checksum = _checksum(row, saga.checksum)
        elif start and not saga.state.sequence and saga.whole:
            saga.whole = False
            self.unknown_beginning += 1

    async def _compare(self, saga_id: str, saga: _Fresh, head: SagaState | None) -> None:
        self.sagas += 1
        if head is not None and head.sequence > saga.state.sequence:
            # A projector has gone on since: compare with what the log says up to there.
            saga = await self._up_to(saga_id, head.sequence)
        if head is None:
            self._differs(saga_id, "head", "it is missing")
            return
        for field in head.__struct_fields__:
            expected, found = getattr(saga.state, field), getattr(head, field)
            if expected != found:
                # Without the values: they may be personal.
                self._differs(saga_id, "head", f"{field} is not what the log says")
        await self._compare_archive(saga_id, saga)

    async def _up_to(self, saga_id: str, sequence: int) -> _Fresh:
        saga = _Fresh(SagaState())
        for record in await self._log.read_saga(saga_id):
            event = record.entry
            if saga.state.sequence >= sequence:
                break
            if isinstance(event, Event) and fold_into(saga.state, event) is Verdict.ACCEPTED:
                row = ArchivedEvent(saga.state.sequence, record.offset, event)
                saga.checksum = _checksum(row, saga.checksum)
        return saga

    async def _compare_archive(self, saga_id: str, saga: _Fresh) -> None:
        checksum = after = 0
        while True:
            page = await self._store.archived(
                saga_id, after=after, upto=saga.state.sequence, limit=PAGE
            )
            for archived in page:
                after += 1
                if archived.sequence != after:
                    self._differs(saga_id, "archive", f"event {after} is missing")
                    return
                checksum = _checksum(archived, checksum)
            if len(page) < PAGE:
                break
        if after < saga.state.sequence:
            self._differs(saga_id, "archive", f"event {after + 1} is missing")
        elif checksum != saga.checksum:
            self._differs(saga_id, "archive", "an event is not what the log says")

    async def foreign(self, partitions: frozenset[int]) -> None:
        """Compare the list of sagas: what it says of each, and that the log knows them."""
        last: tuple[int, str] | None = None
        while True:
            page = await self._store.summaries(limit=PAGE, after=last)
            heads = await self._store.heads([summary.saga_id for summary in page])
            for summary in page:
                if self._log.partition_of(summary.saga_id) not in partitions:
                    continue
                if summary.saga_id not in self._seen and not await self._log.read_saga(
                    summary.saga_id
                ):
                    self._differs(summary.saga_id, "saga", "the log does not know it")
                head = heads.get(summary.saga_id)
                if head is not None and head.sequence == summary.sequence:
                    stated = (summary.saga_name, summary.status, summary.started_at)
                    if stated != (head.saga_name, head.status, head.started_at):
                        self._differs(summary.saga_id, "summary", "it is not what the head says")
            if len(page) < PAGE:
                return
            last = page[-1].place

    def _differs(self, saga_id: str, what: str, detail: str) -> None:
        if len(self.differences) < self._max:
            self.differences.append(Difference(saga_id, what, detail))


def _checksum(archived: ArchivedEvent, before: int) -> int:
    event = archived.event
    told = (archived.sequence, archived.offset, type(event.fact).__name__, event)
    return zlib.crc32(msgspec.msgpack.encode(told), before)
