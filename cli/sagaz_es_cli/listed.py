"""Sagas in a list, with what a list of the store does not say: which are paused, or wait."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sagaz_es.core.state import SagaStatus
from sagaz_es.core.stuck import waits_for_person
from sagaz_es.ports import ProjectionStore, Summary

PAGE = 500
"""Sagas asked of the store at a time."""

MAY_WAIT = (
    SagaStatus.EXECUTING,
    SagaStatus.COMPENSATING,
    SagaStatus.FORWARD_RECOVERY,
    SagaStatus.FAILED,
)
"""A saga of another status has ended well, or waits for room."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A saga in a list."""

    summary: Summary
    paused: bool = False
    waits_for: str = ""  # a person to decide or repair that

    @property
    def shown(self) -> str:
        """What it waits for, for people."""
        return "; ".join(part for part in ("paused" * self.paused, self.waits_for) if part)


async def listed(store: ProjectionStore, summaries: Iterable[Summary]) -> list[Listed]:
    """These sagas, in their order; the heads of those that may wait are asked for."""
    summaries = list(summaries)
    ids = [one.saga_id for one in summaries if one.status in MAY_WAIT]
    found = {}
    for first in range(0, len(ids), PAGE):
        for saga_id, state in (await store.heads(ids[first : first + PAGE])).items():
            found[saga_id] = state.paused and not state.ended, waits_for_person(state)
    return [Listed(one, *found.get(one.saga_id, (False, ""))) for one in summaries]


async def waiting_sagas(
    store: ProjectionStore, status: str | None, name: str | None, limit: int
) -> list[Listed]:
    """The newest sagas that are paused or wait for a person."""
    found: list[Listed] = []
    for each in MAY_WAIT:
        if status not in (None, each):
            continue
        offset, ours = 0, 0
        while ours < limit:
            page = await store.summaries(status=each, saga_name=name, limit=PAGE, offset=offset)
            offset += len(page)
            waiting = [one for one in await listed(store, page) if one.shown]
            found, ours = found + waiting, ours + len(waiting)
            if len(page) < PAGE:
                break
    found.sort(key=lambda one: (-one.summary.started_at, one.summary.saga_id))
    return found[:limit]
