"""What the new owner of a partition finds there: read from the low-water mark to the end.

Law (nothing before the mark matters): no unfinished saga or unhandled request stands before it.
Law (whole folds): what looks unfinished here is returned as the whole fold has it; a late copy of a
long-ended saga's start looks like a new saga to whoever reads from the mark.
Law (others' sagas are theirs): of a saga that belongs to another group only the id is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.engine import groups
from sagaz_es.engine.accepted import Accepted, pass_by
from sagaz_es.engine.admission import Waiting
from sagaz_es.errors import LogReplaced, LogTruncated
from sagaz_es.ports import EventLog, ProjectionStore, Record
from sagaz_es.reading.lookup import current_states
from sagaz_es.reading.projection import identity_of, verify_record

logger = logging.getLogger("sagaz_es.engine")


@dataclass(slots=True)
class Found:
    """A partition at take-over."""

    start: int  # the mark, or further back where a class has come to the group
    position: int  # the next offset to fold
    unfinished: dict[str, SagaState] = field(default_factory=dict)
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
    states: dict[str, SagaState] = {}
    older: set[str] = set()  # began before the mark: their base comes later, for all at once
    branched: list[tuple[e.Event, int]] = []
    while found.position < bounds.end:
        chunk = await log.read(index, found.position, limit=5000, wait_s=0.1)
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
                    if entry.saga_id not in states:
                        pass_by(found.ended, entry, record.offset)
                    continue
                _fold(found, entry, record.offset, states, older)
                if isinstance(entry.fact, e.ReplayBranched):
                    branched.append((entry, record.offset))
        await asyncio.sleep(0)
        bounds = await log.bounds(index)
    if found.position > bounds.end:  # it was lost while it was read
        raise LogTruncated(index, found.position, bounds.end)
    doubtful = older | {saga_id for saga_id, state in states.items() if not state.ended}
    for saga_id in doubtful:
        states.pop(saga_id, None)  # of very many, not two states each at a time
    folded = await current_states(log, store, index, doubtful)
    states.update(folded)
    for saga_id in older & states.keys():
        found.answered.update(states[saga_id].answered)
    for saga_id, state in folded.items():
        if state.ended or state.recorded:
            found.ended[saga_id] = Accepted.of(state)
            found.ended[saga_id].end_offset = found.position
        else:
            found.unfinished[saga_id] = state
            found.ended.pop(saga_id, None)
    found.requests = [
        record for record in found.requests if _may_be_ours(record.entry, found.others)
    ]
    for event, offset in branched:
        head = states.get(event.saga_id)
        assert isinstance(event.fact, e.ReplayBranched)
        if head is not None and head.branch == event.fact.branch_saga_id:
            found.branched.append((event, offset))
    return found


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


def _fold(
    found: Found, event: e.Event, offset: int, states: dict[str, SagaState], older: set[str]
) -> None:
    saga_id, fact = event.saga_id, event.fact
    found.begins.setdefault(saga_id, offset)
    if isinstance(fact, e.SagaCheckpointed):
        found.begins[saga_id] = offset  # whatever stands before it is carried by it
    if saga_id in older:
        return
    state = states.get(saga_id)
    if state is None:
        if type(fact) is not e.SagaStarted:
            older.add(saga_id)
            return
        state = states[saga_id] = SagaState()
    # What the fold rejects answers nothing: its writer had lost the saga.
    if fold_into(state, event) is Verdict.ACCEPTED and (request_id := e.request_of(fact)):
        found.answered.add(request_id)
    if state.ended:
        accepted = found.ended[saga_id] = Accepted.of(state)
        accepted.end_offset = offset
    else:
        found.ended.pop(saga_id, None)
