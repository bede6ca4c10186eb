"""The store made anew from the log."""

from __future__ import annotations

import asyncio

from sagaz_es.errors import HistoryGone
from sagaz_es.ports import EventLog, ProjectionStore
from sagaz_es.reading.projector import PartitionStatus, Projector
from sagaz_es_projections.runner import Progress


async def rebuild(
    log: EventLog,
    store: ProjectionStore,
    *,
    projector: Projector | None = None,
    on_progress: Progress | None = None,
    every_s: float = 1.0,
    lose_older: bool = False,
) -> tuple[PartitionStatus, ...]:
    """Forget what is projected and project the log as it stands now; how far it came.

    It is done in place, not in a shadow: until it is through, readers see the sagas come back one
    after another; time travel and replays answer from the log meanwhile. Snapshots saved by hand
    and the replays known so far stay. Broken off, any projector goes on where it stopped; one that
    runs at the same time is no harm.

    Raises HistoryGone if the log does not reach back to its beginning, as the store may know what
    nothing else does; `lose_older` goes on all the same.
    """
    await log.open()
    await store.open()
    ends: dict[int, int] = {}
    for partition in range(log.partitions):
        bounds = await log.bounds(partition)
        if bounds.start and not lose_older:
            raise HistoryGone(f"partition {partition}", "offset 0", f"offset {bounds.start}")
        ends[partition] = bounds.end
    await store.reset()
    projector = projector or Projector(log, store)
    work = asyncio.create_task(projector.run_until(ends))
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=every_s)
            if on_progress is not None:
                on_progress(await projector.status())
        await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    return await projector.status()
