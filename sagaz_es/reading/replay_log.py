"""The audit trail of replays: every replay, dry run and refused attempt of a saga.

The store has what its projector has reached; the tail of the log behind that is folded here, so an
answer holds what was written a moment ago, too.
"""

from __future__ import annotations

from sagaz_es.core.snapshot import OFF
from sagaz_es.ports import Checkpoint, EventLog, ProjectionStore, ReplayEntry, merge_replays
from sagaz_es.reading.lookup import asked
from sagaz_es.reading.projection import BatchFold

_CHUNK = 5000
_HEADS = 10_000


async def replays_of(
    log: EventLog, store: ProjectionStore | None, saga_id: str, limit: int = 100
) -> list[ReplayEntry]:
    """What is recorded of one saga's replays, newest first. A family shares a partition."""
    partition = log.partition_of(saga_id)
    found: dict[str, ReplayEntry] = {}
    for entry in await _entries(log, store, partition, saga_id, limit):
        known = found.get(entry.replay_id)
        found[entry.replay_id] = entry if known is None else merge_replays(known, entry)
    newest = sorted(found.values(), key=lambda entry: entry.created_at, reverse=True)
    return newest[:limit]


async def _entries(
    log: EventLog, store: ProjectionStore | None, partition: int, saga_id: str, limit: int
) -> list[ReplayEntry]:
    async def ask(store: ProjectionStore) -> list[ReplayEntry]:
        # The checkpoint first, the rows last: what is projected meanwhile only comes twice.
        checkpoint = await store.checkpoint(partition)
        reached = 0 if checkpoint is None else checkpoint.next_offset
        tail = await _tail(log, store, partition, reached)
        return [*tail, *await store.replays(saga_id, limit)]

    said = None if store is None else await asked(log, store, partition, lambda: ask(store))
    if said is None:
        said = await _tail(log, None, partition, 0)
    return [entry for entry in said if entry.original_saga_id == saga_id]


async def _tail(
    log: EventLog, store: ProjectionStore | None, partition: int, offset: int
) -> list[ReplayEntry]:
    """What the partition says of replays from an offset to its end."""
    batch = BatchFold(partition, set(), lambda: 0, default_policy=OFF)
    said: list[ReplayEntry] = []
    bounds = await log.bounds(partition)
    offset = max(offset, bounds.start)
    while offset < bounds.end:
        chunk = await log.read(partition, offset, limit=_CHUNK, wait_s=0.1)
        if store is not None and (missing := batch.missing(chunk.records)):
            heads = await store.heads(missing)
            batch.heads.update({saga_id: state.copy() for saga_id, state in heads.items()})
        batch.take(chunk.records, pass_over_undecodable=True)
        said += batch.projection(Checkpoint(partition, chunk.next_offset)).replays
        batch.settle(_HEADS)
        offset = chunk.next_offset
    return said
