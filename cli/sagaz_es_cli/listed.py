"""Sagas in a list, with what a list of the store does not say: which are paused, or wait."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from shlex import quote

from sagaz_es.core.state import SagaStatus
from sagaz_es.core.stuck import waits_for_person
from sagaz_es.errors import SagaNotFound
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


async def place_of(store: ProjectionStore, saga_id: str | None) -> tuple[int, str] | None:
    """Where a saga stands in lists. Raises SagaNotFound."""
    if saga_id is None:
        return None
    if saga_id in (heads := await store.heads([saga_id])):
        return heads[saga_id].started_at, saga_id
    last: tuple[int, str] | None = None  # a start that waits has no head
    while page := await store.summaries(status=SagaStatus.PENDING, limit=PAGE, after=last):
        for one in page:
            if one.saga_id == saga_id:
                return one.place
        last = page[-1].place
    raise SagaNotFound(saga_id)


def go_on(limit: int, last: str, more: str) -> str:
    """That a list is longer than this page, and how to see the next one."""
    return f"there are more than these {limit}; go on with --after {quote(last)}, or see {more}"


async def waiting_sagas(
    store: ProjectionStore,
    status: str | None,
    name: str | None,
    limit: int,
    after: tuple[int, str] | None,
) -> list[Listed]:
    """The newest sagas, behind a place, that are paused or wait for a person."""
    found: list[Listed] = []
    for each in MAY_WAIT:
        if status not in (None, each):
            continue
        last, ours = after, 0
        while ours < limit:
            page = await store.summaries(status=each, saga_name=name, limit=PAGE, after=last)
            waiting = [one for one in await listed(store, page) if one.shown]
            found, ours = found + waiting, ours + len(waiting)
            if len(page) < PAGE:
                break
            last = page[-1].place
    found.sort(key=lambda one: (-one.summary.started_at, one.summary.saga_id))
    return found[:limit]
