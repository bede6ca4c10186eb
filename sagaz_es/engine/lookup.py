"""The whole fold of a saga now: what the store or the log's index has, and the tail behind it.

Law (every fold is the whole fold): an engine begins to read at the low-water mark, so it has not
seen what ended before. Whatever it accepts of a saga that may have begun there rests on these
answers.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from sagaz_es.core.events import Event
from sagaz_es.core.fold import Verdict, fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.errors import SagaSetAside
from sagaz_es.ports import EventLog, ProjectionStore

logger = logging.getLogger("sagaz_es.engine")


async def current_state(
    log: EventLog, store: ProjectionStore | None, saga_id: str
) -> SagaState | None:
    """The saga's state at the end of the log as it is at the call; None: there is no such saga.

    Foreign bytes under its id are passed over. Raises SagaSetAside where a fact of the saga itself
    is damaged: what follows cannot be known, and nobody may decide on a guess.
    """
    partition = log.partition_of(saga_id)
    state, offset = await _base(log, store, partition, [saga_id])
    parked = [] if store is None else await store.parked_of(partition, saga_id)
    # The store's head of a saga that was set aside stands before what was parked.
    offset = min([offset, *(record.offset for record in parked)])
    found = state.get(saga_id) or SagaState()
    for record in await log.read_saga(saga_id, offset):
        if isinstance(record.entry, Event) and record.entry.saga_id == saga_id:
            verdict = fold_into(found, record.entry)
            if parked and verdict is Verdict.GAP:
                raise SagaSetAside(saga_id, parked[0].partition, parked[0].offset)
    return found if found.sequence else None


async def current_states(
    log: EventLog, store: ProjectionStore | None, partition: int, saga_ids: Collection[str]
) -> dict[str, SagaState]:
    """The same for many sagas of one partition, in one pass; what does not exist is left out."""
    aside = frozenset() if store is None else await store.parked_sagas(partition)
    if is_indexed(log) or not aside.isdisjoint(saga_ids):
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
    states, offset = await _base(log, store, partition, saga_ids)
    wanted = frozenset(saga_ids)
    end = (await log.bounds(partition)).end
    while offset < end:
        chunk = await log.read(partition, offset, limit=5000, wait_s=0.1)
        for record in chunk.records:
            entry = record.entry
            if isinstance(entry, Event) and entry.saga_id in wanted:
                fold_into(states.setdefault(entry.saga_id, SagaState()), entry)
        offset = chunk.next_offset
    return {saga_id: state for saga_id, state in states.items() if state.sequence}


async def _base(
    log: EventLog, store: ProjectionStore | None, partition: int, saga_ids: Collection[str]
) -> tuple[dict[str, SagaState], int]:
    """What the store has, and the offset from which the log goes on from there."""
    if store is not None:
        # The checkpoint first: a head that is newer than it only makes events come twice.
        checkpoint = await store.checkpoint(partition)
        if checkpoint is not None:
            heads = await store.heads(saga_ids)
            return {key: state.copy() for key, state in heads.items()}, checkpoint.next_offset
    return {}, 0 if is_indexed(log) else (await log.bounds(partition)).start


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
