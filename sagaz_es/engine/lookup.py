"""The whole fold of one saga now: what the store has, and the tail of the log behind it."""

from __future__ import annotations

from sagaz_es.core.events import Event
from sagaz_es.core.fold import fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.ports import EventLog, ProjectionStore


async def current_state(
    log: EventLog, store: ProjectionStore | None, saga_id: str
) -> SagaState | None:
    """The saga's state at the end of the log as it is at the call; None: there is no such saga."""
    state: SagaState | None = None
    offset = 0
    if store is not None:
        # The checkpoint first: a head that is newer than it only makes events come twice.
        checkpoint = await store.checkpoint(log.partition_of(saga_id))
        if checkpoint is not None:
            state = (await store.heads([saga_id])).get(saga_id)
            offset = checkpoint.next_offset
    state = SagaState() if state is None else state.copy()
    for record in await log.read_saga(saga_id, offset):
        if isinstance(record.entry, Event) and record.entry.saga_id == saga_id:
            fold_into(state, record.entry)
    return state if state.sequence else None


async def head_of_family(
    log: EventLog, store: ProjectionStore | None, state: SagaState
) -> SagaState | None:
    """The newest branch of a saga's family, or the saga itself; None: a branch not begun yet."""
    head: SagaState | None = state
    while head is not None and head.branch:
        head = await current_state(log, store, head.branch)
    return head
