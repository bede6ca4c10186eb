"""What the new owner of a partition finds there: read from the low-water mark to the end.

Law (nothing before the mark matters): no unfinished saga or unhandled request stands before it.
Law (whole folds): what looks unfinished here is returned as the whole fold has it; a late copy of a
long-ended saga's start looks like a new saga to whoever reads from the mark.
Law (others' sagas are theirs): of a saga that belongs to another group only the id is kept.
Law (memory): of a saga that was read only what the acceptance rule needs is kept; whole states are
looked up for some at a time, and packed if there are many.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, judge
from sagaz_es.core.state import SagaState
from sagaz_es.engine import groups
from sagaz_es.engine.admission import Waiting
from sagaz_es.engine.partitions.accepted import Accepted, pass_by
from sagaz_es.engine.partitions.cell import Cell
from sagaz_es.errors import LogReplaced, LogTruncated
from sagaz_es.ports import EventLog, ProjectionStore, Record
from sagaz_es.reading.lookup import asked, current_states
from sagaz_es.reading.projection import identity_of, verify_record

logger = logging.getLogger("sagaz_es.engine")

READ = 5000
"""Records that are read at a time."""

MANY = 2000
"""Unfinished sagas of a partition that are packed until they are claimed, and looked up at a time;
and records that may be read again for each time."""


@dataclass(slots=True)
class Found:
    """A partition at take-over."""

    start: int  # the mark, or further back where a class has come to the group
    position: int  # the next offset to fold
    unfinished: dict[str, Cell] = field(default_factory=dict)
    by_class: dict[str, list[str]] = field(default_factory=dict)  # their ids
    begins: dict[str, int] = field(default_factory=dict)  # first offset of each saga since the mark
    ended: dict[str, Accepted] = field(default_factory=dict)
    """Sagas since the mark that are nothing to carry on: they ended, are recorded, or are another
    group's."""
    others: set[str] = field(default_factory=set)  # ids of another group's sagas since the mark
    answered: set[str] = field(default_factory=set)  # ids of requests that were answered
    refused: dict[str, e.RequestRefused] = field(default_factory=dict)  # those that were refused
    requests: list[Record] = field(default_factory=list)
    starts: list[Waiting] = field(default_factory=list)  # requests, too: there may be very many
    branched: list[tuple[e.Event, int]] = field(default_factory=list)  # accepted, with offsets
    note: str = ""  # to commit with every mark of whoever serves the partition from here
    last: str = ""  # the last record that was read (`identity_of`), here or by who was before
    mark: int = 0  # where the log has lost its tail: the mark, which may say too much


async def read_from_mark(
    log: EventLog,
    store: ProjectionStore | None,
    index: int,
    *,
    group: str = "",
    classes: Collection[str] = (),
    serves: Callable[[str], bool] = lambda saga_name: True,
    whole: bool = False,
) -> Found:
    """Fold everything since the group's mark. `classes` are those that a named group's engine has,
    `serves` says which sagas are its own. `whole`: the log has lost its tail, and with it, maybe,
    the ends of sagas that began before the mark. Raises what the log and the store raise."""
    found = await _start(log, index, group, classes)
    bounds = await log.bounds(index)
    if found.start > bounds.end:
        logger.critical("the mark: %s", LogTruncated(index, found.start, bounds.end))
        whole = True
    elif not whole and not await _stands(log, index, found.last):
        whole = True
    if whole:
        found.mark, found.start, found.position = found.start, bounds.start, bounds.start
    read = _Read(found)
    while found.position < bounds.end:
        chunk = await log.read(index, found.position, limit=READ, wait_s=0.1)
        found.position = chunk.next_offset
        if chunk.records:
            found.last = identity_of(chunk.records[-1])
        for record in chunk.records:
            entry = record.entry
            if isinstance(entry, e.RequestRefused):
                found.answered.add(entry.request_id)
                found.refused[entry.request_id] = entry
            elif isinstance(entry, e.ReplayLogged):
                continue
            elif isinstance(entry, e.StartRequested):
                if serves(entry.saga_name):
                    found.starts.append(Waiting.of(record, entry))
            elif isinstance(entry, e.Request):
                found.requests.append(record)
            elif isinstance(entry, e.Event):
                if not serves(entry.saga_name):
                    found.others.add(entry.saga_id)
                    pass_by(found.ended, entry, record.offset)
                    continue
                if entry.epoch == e.RECORDED_EPOCH:
                    if entry.saga_id not in read.known:
                        pass_by(found.ended, entry, record.offset)
                    continue
                read.take(entry, record.offset)
        await asyncio.sleep(0)
        bounds = await log.bounds(index)
    if found.position > bounds.end:  # it was lost while it was read
        raise LogTruncated(index, found.position, bounds.end)
    doubtful = read.doubtful()
    found.ended.update((key, one) for key, one in read.known.items() if key not in doubtful)
    many = len(doubtful) > MANY
    for some in await _parts(log, store, index, doubtful, bounds.end):
        for saga_id, state in (await current_states(log, store, index, some)).items():
            if saga_id in read.older:
                found.answered.update(state.answered)
            if saga_id in read.branches:
                read.branches[saga_id] = state.branch
            _keep(found, state, many)
    found.requests = [
        record for record in found.requests if _may_be_ours(record.entry, found.others)
    ]
    for event, offset in read.branched:
        assert isinstance(event.fact, e.ReplayBranched)
        if read.branches.get(event.saga_id) == event.fact.branch_saga_id:
            found.branched.append((event, offset))
    return found


async def _parts(
    log: EventLog, store: ProjectionStore | None, index: int, saga_ids: set[str], end: int
) -> list[list[str]]:
    """The sagas to look up at a time: some, where that means to read little of the log again."""
    ids = list(saga_ids)
    if store is None or len(ids) <= MANY:
        return [ids] if ids else []
    checkpoint = await asked(log, store, index, lambda: store.checkpoint(index))
    if checkpoint is None or end - checkpoint.next_offset > MANY:
        return [ids]
    return [ids[first : first + MANY] for first in range(0, len(ids), MANY)]


def _keep(found: Found, state: SagaState, many: bool) -> None:
    """What was looked up of a saga."""
    saga_id, accepted = state.saga_id, Accepted.of(state)
    if state.ended or state.recorded:
        found.ended[saga_id] = accepted
        accepted.end_offset = found.position
        return
    cell = Cell(state, accepted, ours=False, begin=found.begins[saga_id])
    found.by_class.setdefault(state.saga_name, []).append(saga_id)
    if many:
        cell.put_aside()
    found.unfinished[saga_id] = cell


async def _start(log: EventLog, index: int, group: str, classes: Collection[str]) -> Found:
    # The mark first: a note that is newer than it says no less.
    mark = await log.low_water_mark(index, group=group)
    note = groups.read_note(await log.mark_note(index, group=group))
    if not group:
        return Found(mark, mark, last=note.last)
    start = groups.start_of(mark, note, classes, (await log.bounds(index)).start)
    return Found(start, start, note=groups.next_note(mark, note, classes), last=note.last)


async def _stands(log: EventLog, index: int, last: str) -> bool:
    """Whether the log still has the record that was the last one read when the mark was committed.
    If not, it lost its tail, and may have grown past the mark again, which then says too much."""
    try:
        await verify_record(log, index, last)
    except (LogTruncated, LogReplaced) as error:
        logger.critical(
            "partition %d lost its tail since its mark was committed, and is read from its "
            "start: %s",
            index,
            error,
        )
        return False
    return True


def _may_be_ours(request: object, others: Collection[str]) -> bool:
    return not (isinstance(request, e.Request) and request.saga_id in others)


class _Read:
    """What the events since the mark say, as much as the acceptance rule tells from them alone."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self.known: dict[str, Accepted] = {}  # sagas that began since the mark
        self.older: set[str] = set()  # began before it
        self._again: set[str] = set()  # they branched, or went on behind their end
        self.branched: list[tuple[e.Event, int]] = []
        self.branches: dict[str, str] = {}  # of those that branched: the last branch

    def take(self, event: e.Event, offset: int) -> None:
        """The next event of a saga that has an engine."""
        saga_id, fact = event.saga_id, event.fact
        self._found.begins.setdefault(saga_id, offset)
        if isinstance(fact, e.SagaCheckpointed):
            self._found.begins[saga_id] = offset  # whatever stands before it is carried by it
        if isinstance(fact, e.ReplayBranched):
            self.branched.append((event, offset))
            self.branches.setdefault(saga_id, "")
        if saga_id not in self.older:
            self._judge(event, offset)

    def _judge(self, event: e.Event, offset: int) -> None:
        saga_id, fact = event.saga_id, event.fact
        accepted = self.known.get(saga_id)
        if accepted is None:
            if type(fact) is not e.SagaStarted:
                self.older.add(saga_id)
                return
            accepted = self.known[saga_id] = Accepted()
        # What the fold rejects answers nothing: its writer had lost the saga.
        if judge(accepted, event) is Verdict.ACCEPTED:
            if accepted.ended or isinstance(fact, e.ReplayBranched):
                self._again.add(saga_id)
            accepted.take(event, offset)
            if request_id := e.request_of(fact):
                self._found.answered.add(request_id)
        if accepted.ended:
            accepted.end_offset = offset

    def doubtful(self) -> set[str]:
        """Sagas of which only the whole fold says what they are."""
        unfinished = {saga_id for saga_id, accepted in self.known.items() if not accepted.ended}
        return self.older | self._again | unfinished
