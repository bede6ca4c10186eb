"""How an engine is doing, for whoever watches over its process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sagaz_es.errors import SagaError

if TYPE_CHECKING:
    from sagaz_es.engine.host import Host
    from sagaz_es.reading.projector import Projector

LAG_SECONDS = 1.0
"""How long log and store may take to tell how far the projector is."""


@dataclass(frozen=True, slots=True)
class Health:
    """An engine at a moment. `serving`: joined, what was unfinished is found, not closing, and its
    group and its log, where they tell, are there; if not, `why_not` says which."""

    serving: bool
    partitions: tuple[int, ...]
    sagas_in_flight: int  # with a step that runs or is about to, here
    sagas_unfinished: int  # in the partitions served here: also those that wait for something
    oldest_pending_append_s: float  # how long it has been waiting; 0: none waits
    projector_lag: int | None  # records; None: there is no projector here, or it could not be told
    starts_waiting: int = 0  # requests in the log, until there is room (`max_in_flight`)
    why_not: str = ""
    takeovers_waiting: int = 0  # taken over or woken, with a step to run, until there is room
    sagas_waiting_for_person: int = 0  # unfinished, in the partitions served here


async def health_of(host: Host, projector: Projector | None) -> Health:
    """See Engine.health."""
    partitions = dict(host.partitions)
    why_not = _why_not(host)
    serving = not why_not
    return Health(
        serving=serving,
        why_not=why_not,
        partitions=tuple(sorted(partitions)),
        sagas_in_flight=host.admission.in_flight(),
        sagas_unfinished=sum(len(partition.cells) for partition in partitions.values()),
        oldest_pending_append_s=_oldest_append(host),
        projector_lag=await _lag(projector, partitions.keys()) if projector and serving else None,
        starts_waiting=host.admission.count(),
        takeovers_waiting=len(host.admission.backlog),
        sagas_waiting_for_person=host.parked.waiting_for_person(),
    )


def _why_not(host: Host) -> str:
    if host.closing:
        return "draining"
    if host.membership is None:
        return "starting"
    # Where a membership and a log tell.
    return str(getattr(host.membership, "trouble", "") or getattr(host.log, "trouble", ""))


def _oldest_append(host: Host) -> float:
    """A partition knows what it tries again, a log (where it tells) what it has not answered."""
    now = asyncio.get_running_loop().time()
    tried = [partition.pending_since for partition in host.partitions.values()]
    ages = [now - since for since in tried if since]
    since_us = getattr(host.log, "pending_since", None)
    if since_us is not None:
        ages.append(time.time() - since_us / 1e6)
    return max(0.0, *ages) if ages else 0.0


async def _lag(projector: Projector, partitions: Collection[int]) -> int | None:
    try:
        async with asyncio.timeout(LAG_SECONDS):
            statuses = await projector.status()
    except (SagaError, OSError):  # TimeoutError is one
        return None
    return sum(status.lag for status in statuses if status.partition in partitions)
