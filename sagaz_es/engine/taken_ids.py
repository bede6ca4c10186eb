"""Whether a saga of an id was ever started: memory, the store, the log's index or a scan say."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sagaz_es import errors
from sagaz_es.core import events as e
from sagaz_es.engine.partitions.known_ids import KnownIds
from sagaz_es.ports import EventLog, ProjectionStore
from sagaz_es.reading.lookup import AT_ONCE, asked, current_state, is_indexed, known_heads

if TYPE_CHECKING:
    from sagaz_es.engine.host import Host
    from sagaz_es.engine.partitions.partition import Partition


async def exists(host: Host, partition: Partition, saga_id: str) -> bool:
    """Whether a saga of this id was ever started; since `known_from`, memory knows."""
    if saga_id in partition.cells or saga_id in partition.seen:
        return True
    if is_indexed(host.log):
        return await current_state(host.log, None, saga_id) is not None
    store = host.store
    since = 0
    if store is not None:
        answer = await asked(
            host.log, store, partition.index, lambda: _kept(host.log, store, partition, saga_id)
        )
        kept, since = answer or (False, 0)
        if kept or (answer and since >= partition.known_from):
            return kept
    if saga_id not in await _ids_between(host, partition, since):
        return False
    try:
        if await current_state(host.log, store, saga_id) is not None:
            return True
    except errors.SagaSetAside:
        return True
    # What a lost tail has left of a saga, or was still on its way then, is none; unless retention
    # took how it began.
    return not since and (await _ids_between(host, partition, since)).start > 0


async def _ids_between(host: Host, partition: Partition, since: int) -> KnownIds:
    """For what no store answers, or one that is behind: the ids of all sagas of which there is
    an event from `since` to `known_from`, and perhaps more, by one scan. One that takes too
    long is gone on with by the next call. Raises StorageFailed."""
    known = partition.older
    if known is None or known.since > since:
        known = partition.older = KnownIds(since)
    start = known.start = (await host.log.bounds(partition.index)).start
    if since and known.upto < start:  # between the store and the log something is missing
        where = f"partition {partition.index}"
        raise errors.HistoryGone(where, f"offset {known.upto}", f"offset {start}")
    offset = max(known.upto, start)
    try:
        async with asyncio.timeout(host.config.request_seconds):
            while offset < partition.known_from:
                try:
                    chunk = await host.log.read(partition.index, offset, limit=AT_ONCE, wait_s=0.1)
                except errors.HistoryGone:  # retention came between
                    offset = (await host.log.bounds(partition.index)).start
                    continue
                known.update({r.key for r in chunk.records if isinstance(r.entry, e.Event)})
                offset = chunk.next_offset
                known.upto = max(known.upto, offset)
    except TimeoutError as error:
        raise errors.StorageFailed(
            host.store.name if host.store is not None else host.log.name,
            "whether a saga of this id was there is not known: no store says it, and the log "
            f"was not searched within {host.config.request_seconds:g} s; start it again",
        ) from error
    return known


async def _kept(
    log: EventLog, store: ProjectionStore, partition: Partition, saga_id: str
) -> tuple[bool, int]:
    """Whether a store has a saga, and from which offset on it does not know."""
    heads, offset = await known_heads(store, partition.index, [saga_id])
    kept = bool(heads)
    if not kept and await store.parked_of(partition.index, saga_id):
        # Set aside there before it began, for foreign bytes under its id: the log says.
        kept = await current_state(log, store, saga_id) is not None
    return kept, offset or 0
