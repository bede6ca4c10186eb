"""SagaTimeTravel: time travel under the names of the original design, on the same engine.

Both spellings work, `SagaTimeTravel(saga_id, storage).get_state_at(timestamp)` and
`SagaTimeTravel.get_state_at(saga_id, timestamp, storage)`. The storage is whatever knows the saga:
an engine, a history, a log, a projection store, or a snapshot storage. Where there are events, they
answer exactly; a storage that has snapshots alone answers with those.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar, cast

from sagaz_es.codec.values import to_text
from sagaz_es.core.history import Moment
from sagaz_es.errors import ConfigurationError, SagaNotFound, StateNotFound
from sagaz_es.ports import SnapshotStorage
from sagaz_es.reading.historical import (
    HistoricalState,
    Source,
    StateChange,
    When,
    as_point,
    check_limit,
)
from sagaz_es.reading.time_travel import History, SagaHistory
from sagaz_es.sagas import standalone
from sagaz_es.snapshots import SagaSnapshot, from_us

R = TypeVar("R")
_PAGE = 100


class _Either(Generic[R]):
    """A method that can be called on an instance, or on the class with saga id and storage."""

    def __init__(self, method: Callable[..., Awaitable[R]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(
        self, instance: SagaTimeTravel | None, owner: type[SagaTimeTravel]
    ) -> Callable[..., Awaitable[R]]:
        if instance is not None:
            return partial(self._method, instance)
        return partial(self._of_class, owner)

    def _of_class(
        self,
        owner: type[SagaTimeTravel],
        saga_id: Any,
        *given: Any,
        snapshot_storage: Any = None,
        **named: Any,
    ) -> Awaitable[R]:
        # The design puts the storage last, others put it second: it is known by what it can.
        rest = list(given)
        if snapshot_storage is None:
            place = next((n for n, one in enumerate(rest) if _is_storage(one)), None)
            if place is not None:
                snapshot_storage = rest.pop(place)
        return self._method(owner(saga_id, snapshot_storage), *rest, **named)


class SagaTimeTravel:
    """The past of one saga; see the module for what `snapshot_storage` may be. Without one it is
    the default log (SAGAZ_ES_LOG, else `sagaz-es.db`)."""

    def __init__(self, saga_id: Any, snapshot_storage: Any = None) -> None:
        if snapshot_storage is not None and not _is_storage(snapshot_storage):
            raise ConfigurationError("snapshot_storage: an engine, a log, or a storage")
        self.saga_id = str(saga_id)
        self.snapshot_storage = snapshot_storage

    async def _get_state_at(self, timestamp: When) -> HistoricalState | None:
        """The saga as it was at a time (without a zone: UTC), or None: there was nothing then."""
        if self.snapshot_storage is None:
            async with standalone.engine_of().asked() as engine:
                return await SagaTimeTravel(self.saga_id, engine)._get_state_at(timestamp)
        history = await self._history()
        try:
            if history is not None:
                return await history.state_at(timestamp)
        except StateNotFound:
            return None
        except SagaNotFound:
            pass
        snapshots = self._snapshots()
        return None if snapshots is None else await self._from_snapshot(snapshots, timestamp)

    async def _list_state_changes(
        self, after: When | None = None, before: When | None = None, limit: int | None = _PAGE
    ) -> list[StateChange]:
        """What changed, oldest first: the first `limit` of the range, both bounds inclusive.

        Raises ConfigurationError for a limit below 0."""
        check_limit(limit)
        if self.snapshot_storage is None:
            async with standalone.engine_of().asked() as engine:
                here = SagaTimeTravel(self.saga_id, engine)
                return await here._list_state_changes(after, before, limit)
        history = await self._history()
        try:
            if history is not None:
                return await history.changes(after, before, limit)
        except SagaNotFound:
            pass
        snapshots = self._snapshots()
        return [] if snapshots is None else await self._between(snapshots, after, before, limit)

    async def _get_context_at(self, timestamp: When, key: str | None = None) -> Any:
        """The context at a time, or the value of a key (or path) in it; None: there was no saga.

        Raises KeyNotFound, a KeyError, where the saga had no such key.
        """
        state = await self._get_state_at(timestamp)
        if state is None:
            return None
        return state.context if key is None else state.value_at(key)

    get_state_at = _Either(_get_state_at)
    list_state_changes = _Either(_list_state_changes)
    get_context_at = _Either(_get_context_at)

    # --- where the answer comes from

    async def _history(self) -> SagaHistory | None:
        """The saga's events, wherever the storage has them."""
        storage = self.snapshot_storage
        if isinstance(storage, SagaHistory):
            return storage
        if isinstance(storage, History):
            return storage.of(self.saga_id)
        if hasattr(storage, "log") and hasattr(storage, "store"):  # an engine
            blobs = getattr(storage, "blob_store", None)
            return SagaHistory(self.saga_id, storage.log, storage.store, blobs)
        if hasattr(storage, "read_saga"):
            return SagaHistory(self.saga_id, storage)
        store = storage if hasattr(storage, "archived") else getattr(storage, "store", None)
        if store is None:
            return None
        if store is not storage:
            await storage.list_snapshots(self.saga_id, limit=1)  # it opens at the first call
        make_blobs = getattr(store, "blob_store", None)
        return SagaHistory(self.saga_id, None, store, make_blobs() if make_blobs else None)

    def _snapshots(self) -> SnapshotStorage | None:
        storage = self.snapshot_storage
        return storage if hasattr(storage, "list_snapshots") else None

    async def _from_snapshot(
        self, storage: SnapshotStorage, timestamp: When
    ) -> HistoricalState | None:
        point = as_point(timestamp)
        if not isinstance(point, Moment):
            return None  # only events have sequences that can be asked for
        found = await storage.get_latest_snapshot(self.saga_id, before=from_us(point.at))
        if found is None:
            return None
        snapshot = cast(SagaSnapshot, found)
        return HistoricalState(
            saga_id=snapshot.saga_id,
            saga_name=snapshot.saga_name,
            status=str(snapshot.status),
            sequence=snapshot.sequence,
            timestamp=snapshot.created_at,
            context=dict(snapshot.context),
            completed_steps=list(snapshot.completed_steps),
            current_step=snapshot.step_name or None,
            source=Source(snapshot.snapshot_id, snapshot.sequence),
        )

    async def _between(
        self, storage: SnapshotStorage, after: When | None, before: When | None, limit: int | None
    ) -> list[StateChange]:
        first, last = _time(after, datetime.min), _time(before, datetime.max)
        told: list[StateChange] = []
        context: dict[str, Any] = {}
        for snapshot in reversed(await self._all(storage)):
            now = dict(snapshot.context)
            if first <= snapshot.created_at.replace(tzinfo=None) <= last and (
                limit is None or len(told) < limit
            ):
                told.append(_change(snapshot, context, now))
            context = now
        return told

    async def _all(self, storage: SnapshotStorage) -> list[SagaSnapshot]:
        """Newest first."""
        found: list[SagaSnapshot] = []
        while page := await storage.list_snapshots(self.saga_id, _PAGE, len(found)):
            found += page
        return found


def _is_storage(value: Any) -> bool:
    marks = ("list_snapshots", "archived", "read_saga", "blob_store")
    return isinstance(value, SagaHistory | History) or any(hasattr(value, one) for one in marks)


def _time(when: When | None, default: datetime) -> datetime:
    if when is None:
        return default
    point = as_point(when)
    return from_us(point.at).replace(tzinfo=None) if isinstance(point, Moment) else default


def _change(snapshot: SagaSnapshot, was: dict[str, Any], now: dict[str, Any]) -> StateChange:
    return StateChange(
        sequence=snapshot.sequence,
        timestamp=snapshot.created_at,
        type="Snapshot",
        step=snapshot.step_name or None,
        status=str(snapshot.status),
        changes={
            "set": {
                key: value
                for key, value in now.items()
                if key not in was or to_text(was[key]) != to_text(value)
            },
            "deleted": [key for key in was if key not in now],
        },
    )
