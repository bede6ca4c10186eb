"""The whole fold of a saga now: what the store or the log's index has, and the tail behind it.

Law (every fold is the whole fold): an engine begins to read at the low-water mark, so it has not
seen what ended before. Whatever it accepts of a saga that may have begun there rests on these
answers.
Law (a store changes no answer): where it does not answer, the log does, from its beginning; where
that is gone, what the store raised goes on to the caller. Source: behaviours B69.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TypeVar
from weakref import WeakKeyDictionary

from sagaz_es.core.events import Event, ReplayBranched, RequestRefused, StartRequested
from sagaz_es.core.fold import Verdict, fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.errors import SagaSetAside, StorageFailed
from sagaz_es.ports import EventLog, ParkedRecord, ProjectionStore, Undecodable

logger = logging.getLogger("sagaz_es.engine")
T = TypeVar("T")

STORE_DOWN = (StorageFailed, OSError)
"""What a store raises that does not answer, or answers with an error."""

AT_ONCE = 1000
"""Records of one read of a scan. More are no faster, and of what they take together, some ten
megabytes, the allocator keeps a part: an engine grew with each outage of its store."""

REST_S = 2.0
"""How long a store that did not answer is left alone: each call may wait out a deadline."""

FEW = 50
"""So many sagas are looked up one by one where the log has an index; more are asked of the store at
once, and the tail behind its checkpoint is read."""

WORTH_A_LOOK = 100
"""A look into the index takes as long as reading so many records in a row."""

TELL_S = 30.0
_failed_at: WeakKeyDictionary[ProjectionStore, float] = WeakKeyDictionary()
_told_at: WeakKeyDictionary[ProjectionStore, float] = WeakKeyDictionary()


async def current_state(
    log: EventLog, store: ProjectionStore | None, saga_id: str
) -> SagaState | None:
    """The saga's state at the end of the log as it is at the call; None: there is no such saga.

    Foreign bytes under its id are passed over. Raises SagaSetAside where a fact of the saga itself
    is damaged: what follows cannot be known, and nobody may decide on a guess.
    """
    partition = log.partition_of(saga_id)

    async def ask(
        store: ProjectionStore,
    ) -> tuple[dict[str, SagaState], int, tuple[ParkedRecord, ...]]:
        state, offset = await _base(log, store, partition, [saga_id])
        return state, offset, await store.parked_of(partition, saga_id)

    answer = None if store is None else await asked(log, store, partition, lambda: ask(store))
    if answer is None:
        answer = ({}, await _beginning(log, partition), ())
    state, offset, parked = answer
    # The store's head of a saga that was set aside stands before what was parked.
    offset = min([offset, *(record.offset for record in parked)])
    damaged = parked[0].offset if parked else -1
    found = state.get(saga_id) or SagaState()
    for record in await log.read_saga(saga_id, offset):
        if isinstance(record.entry, Event) and record.entry.saga_id == saga_id:
            verdict = fold_into(found, record.entry)
            if damaged >= 0 and verdict is Verdict.GAP:
                raise SagaSetAside(saga_id, partition, damaged, found.sequence)
        elif isinstance(record.entry, Undecodable) and damaged < 0:
            damaged = record.offset
    return found if found.sequence else None


async def waiting_start(log: EventLog, saga_id: str, group: str | None) -> StartRequested | None:
    """The request to start a saga that has not begun, if one stands and was not refused.

    `group`: whose mark to look from; None: from the beginning, which takes longer.
    """
    if group is None:
        offset = (await log.bounds(log.partition_of(saga_id))).start
    else:
        offset = await _mark(log, saga_id, group)
    found, _ = await _start_of(log, saga_id, offset)
    return found


async def refused_start(log: EventLog, saga_id: str, group: str) -> RequestRefused | None:
    """What the start of a saga that has not begun was refused with, if nobody has asked again."""
    found, refused = await _start_of(log, saga_id, await _mark(log, saga_id, group))
    if found is None and refused is None:  # the mark may have passed both
        start = (await log.bounds(log.partition_of(saga_id))).start
        found, refused = await _start_of(log, saga_id, start)
    return refused if found is None else None


async def _mark(log: EventLog, saga_id: str, group: str) -> int:
    return await log.low_water_mark(log.partition_of(saga_id), group=group)


async def _start_of(
    log: EventLog, saga_id: str, offset: int
) -> tuple[StartRequested | None, RequestRefused | None]:
    starts: dict[str, StartRequested] = {}
    refused: RequestRefused | None = None
    for record in await log.read_saga(saga_id, offset):
        entry = record.entry
        if isinstance(entry, StartRequested):
            starts[entry.request_id] = entry
        elif isinstance(entry, RequestRefused) and starts.pop(entry.request_id, None) is not None:
            refused = entry
    return next(iter(starts.values()), None), refused


async def current_states(
    log: EventLog, store: ProjectionStore | None, partition: int, saga_ids: Collection[str]
) -> dict[str, SagaState]:
    """The same for many sagas of one partition, in one pass; what does not exist is left out."""
    aside: frozenset[str] | None = frozenset()
    if store is not None:
        aside = await asked(log, store, partition, lambda: store.parked_sagas(partition))
    answer = None
    one_by_one = aside is not None and not aside.isdisjoint(saga_ids)
    if store is not None and not one_by_one and (not is_indexed(log) or len(saga_ids) > FEW):
        answer = await asked(log, store, partition, lambda: _base(log, store, partition, saga_ids))
    if not one_by_one and is_indexed(log) and (answer is None or not answer[1]):
        records = (await log.bounds(partition)).end
        one_by_one = len(saga_ids) <= FEW or records > WORTH_A_LOOK * len(saga_ids)
    if one_by_one:
        found: dict[str, SagaState] = {}
        for saga_id in saga_ids:
            try:
                state = await current_state(log, store, saga_id)
            except SagaSetAside as error:
                logger.error("%s", error)  # nobody carries it on; the others go on
            else:
                if state is not None:
                    found[saga_id] = state
        return found
    states, offset = answer or ({}, await _beginning(log, partition))
    wanted, damaged = frozenset(saga_ids), dict[str, int]()
    end = (await log.bounds(partition)).end
    while offset < end:
        chunk = await log.read(partition, offset, limit=AT_ONCE, wait_s=0.1)
        for record in chunk.records:
            entry = record.entry
            if isinstance(entry, Event) and entry.saga_id in wanted:
                verdict = fold_into(states.setdefault(entry.saga_id, SagaState()), entry)
                if verdict is Verdict.GAP and entry.saga_id in damaged:
                    place = damaged[entry.saga_id]
                    logger.error("%s", SagaSetAside(entry.saga_id, partition, place))
                    wanted -= {entry.saga_id}
                    del states[entry.saga_id]
            elif isinstance(entry, Undecodable) and record.key in wanted:
                damaged.setdefault(record.key, record.offset)
        offset = chunk.next_offset
    return {saga_id: state for saga_id, state in states.items() if state.sequence}


async def _base(
    log: EventLog, store: ProjectionStore, partition: int, saga_ids: Collection[str]
) -> tuple[dict[str, SagaState], int]:
    """What the store has, and the offset from which the log goes on from there."""
    heads, offset = await known_heads(store, partition, saga_ids)
    if offset is None:
        offset = await _beginning(log, partition)
    return {key: state.copy() for key, state in heads.items()}, offset


async def known_heads(
    store: ProjectionStore, partition: int, saga_ids: Collection[str]
) -> tuple[Mapping[str, SagaState], int | None]:
    """Heads of a store, and the offset from which on it knows nothing; None: it knows nothing at
    all of the partition."""
    # The checkpoint first: a head that is newer than it only makes events come twice.
    checkpoint = await store.checkpoint(partition)
    while checkpoint is not None:
        heads = await store.heads(saga_ids)
        now = await store.checkpoint(partition)
        if now is not None and now.next_offset >= checkpoint.next_offset:
            return heads, checkpoint.next_offset
        checkpoint = now  # it is being made anew, and those heads may have been dropped before
    return {}, None


async def _beginning(log: EventLog, partition: int) -> int:
    return 0 if is_indexed(log) else (await log.bounds(partition)).start


async def asked(
    log: EventLog, store: ProjectionStore, partition: int, ask: Callable[[], Awaitable[T]]
) -> T | None:
    """What a store says; None: it does not answer, and the log has everything itself.

    Raises what the store raised, where the beginning of the partition is gone: only the store knows
    what stood there.
    """
    now = time.monotonic()
    if now - _failed_at.get(store, -REST_S) < REST_S and await _has_all(log, partition):
        return None
    try:
        answer = await ask()
    except STORE_DOWN as error:
        _failed_at[store] = time.monotonic()
        if not await _has_all(log, partition):
            raise
        if now - _told_at.get(store, -TELL_S) >= TELL_S:
            _told_at[store] = now
            logger.warning("the store does not answer, the log is read instead: %s", error)
        return None
    _failed_at.pop(store, None)
    return answer


async def _has_all(log: EventLog, partition: int) -> bool:
    return (await log.bounds(partition)).start == 0


def is_indexed(log: EventLog) -> bool:
    """Whether the log finds a saga's records without a scan (the embedded ones do)."""
    return bool(getattr(log, "indexed", False))


async def head_of_family(
    log: EventLog, store: ProjectionStore | None, state: SagaState
) -> SagaState | None:
    """The newest branch of a saga's family, or the saga itself; None: a branch not begun yet."""
    head: SagaState | None = state
    while head is not None and head.branch:
        head = await current_state(log, store, head.branch)
    return head


async def find_branch(
    log: EventLog, store: ProjectionStore | None, replay_id: str
) -> SagaState | None:
    """The branch of a replay, by the replay's id or by its own; None: no branch has begun.

    A store follows the log: an id that was just given out is looked for behind its checkpoints.
    """
    if not replay_id:  # what every event has that is of no replay
        return None
    entry = None
    if store is not None:
        place = log.partition_of(replay_id)
        entry = await asked(log, store, place, lambda: store.replay(replay_id))
    saga_id = entry.new_saga_id if entry is not None else None
    branch = await current_state(log, store, saga_id or replay_id)
    if branch is not None and branch.replay_id:
        return branch
    for partition in range(log.partitions):
        for saga_id in await _branches_behind(log, store, partition, replay_id):
            branch = await current_state(log, store, saga_id)
            if branch is not None and branch.replay_id == replay_id:
                return branch
    return None


async def _branches_behind(
    log: EventLog, store: ProjectionStore | None, partition: int, replay_id: str
) -> set[str]:
    """Ids that the part of a partition that a store does not have yet gives the replay's branch."""
    answer = None
    if store is not None:
        answer = await asked(log, store, partition, lambda: _base(log, store, partition, ()))
    bounds, found = await log.bounds(partition), set[str]()
    offset = max(answer[1] if answer is not None else 0, bounds.start)
    while offset < bounds.end:
        chunk = await log.read(partition, offset, limit=AT_ONCE, wait_s=0.1)
        for record in chunk.records:
            entry = record.entry
            if not isinstance(entry, Event):
                continue
            if isinstance(entry.fact, ReplayBranched) and entry.fact.replay_id == replay_id:
                found.add(entry.fact.branch_saga_id)
            elif entry.replay_id == replay_id:
                found.add(entry.saga_id)
        offset = chunk.next_offset
    return found
