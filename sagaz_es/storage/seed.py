"""The seed's snapshot storages: its calls, on the tables of a projection store.

What the projector captures is found here, and what is saved here stands beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Generic, TypeVar
from uuid import UUID

from sagaz_es.codec.values import from_text, to_text
from sagaz_es.core.texts import join_object
from sagaz_es.errors import ConfigurationError
from sagaz_es.ports import BlobStore, ProjectionStore, ReplayEntry, StoredSnapshot
from sagaz_es.snapshots import (
    BLOB_PREFIX,
    Opener,
    SagaSnapshot,
    from_stored,
    shown_replay,
    state_of,
    to_stored,
    to_us,
)

S = TypeVar("S", bound=ProjectionStore)
Id = str | UUID


class StoreSnapshotStorage(Generic[S]):
    """SnapshotStorage on a projection store, `store`. It opens by itself, at the first call.

    `blobs` resolves the references of large values, `opener` opens encrypted snapshots; without it
    reading one raises SnapshotSealed.
    """

    def __init__(
        self,
        store: S,
        *,
        blobs: BlobStore | None = None,
        opener: Opener | None = None,
    ) -> None:
        self.store = store
        self.log_url = ""  # of the sagas that were given this storage; empty: none yet
        self.place: tuple[str | None, str | None] | None = None  # log and store as they were given
        self._blobs, self._opener = blobs, opener
        self._opening = asyncio.Lock()
        self._opened = False

    async def __aenter__(self) -> Any:
        await self._ready()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close connections; twice, or before first use, is no error. The next call opens again."""
        self._opened = False
        await self.store.close()

    async def _ready(self) -> S:
        if not self._opened:
            async with self._opening:
                if not self._opened:
                    await self.store.open()
                    self._opened = True
        return self.store

    def engine_store(self) -> ProjectionStore:
        """The store that an engine is given, so that what its projector captures is found here; one
        of its own, where it closes it when it ends."""
        return self.store

    # --- snapshots

    async def save_snapshot(self, snapshot: SagaSnapshot) -> None:
        """Keep it; one of the same id is replaced. Raises TypeError for what is no SagaSnapshot."""
        if not isinstance(snapshot, SagaSnapshot):
            raise TypeError(
                f"a SagaSnapshot is saved, not a {type(snapshot).__name__}: SagaSnapshot.create(…) "
                "makes one, SagaSnapshot.from_dict(…) reads one"
            )
        await (await self._ready()).save_snapshot(to_stored(snapshot))

    async def get_snapshot(self, snapshot_id: Id) -> SagaSnapshot | None:
        """The snapshot of this id; None if there is none, or if it has expired."""
        store = await self._ready()
        stored = await store.snapshot(str(snapshot_id))
        return None if stored is None else await self._shown(stored)

    async def get_latest_snapshot(
        self,
        saga_id: Id,
        before: datetime | str | None = None,
        *,
        before_step: str | None = None,
    ) -> SagaSnapshot | None:
        """The one with the highest sequence; `before` counts, too, `before_step` names its step."""
        if isinstance(before, str):  # sagaz's second argument
            before, before_step = None, before
        if not isinstance(before, datetime | None):
            raise TypeError(f"before: a datetime, or None, not {before!r}")
        store = await self._ready()
        at = None if before is None else to_us(before)
        stored = await store.latest_snapshot(str(saga_id), before=at, step=before_step)
        return None if stored is None else await self._shown(stored)

    async def get_snapshot_at_time(self, saga_id: Id, timestamp: datetime) -> SagaSnapshot | None:
        """The one with the highest sequence at or before `timestamp`."""
        return await self.get_latest_snapshot(saga_id, timestamp)

    async def list_snapshots(
        self, saga_id: Id, limit: int = 100, offset: int = 0
    ) -> list[SagaSnapshot]:
        """Newest first. Raises ConfigurationError for a limit or offset below 0."""
        _check_page(limit=limit, offset=offset)
        store = await self._ready()
        page = await store.snapshots(str(saga_id), limit=limit, offset=offset)
        return [await self._shown(stored) for stored in page]

    async def delete_snapshot(self, snapshot_id: Id) -> bool:
        """Whether there was one."""
        return await (await self._ready()).delete_snapshot(str(snapshot_id))

    async def delete_expired_snapshots(self) -> int:
        """How many there were."""
        return await (await self._ready()).delete_expired_snapshots()

    async def forget(self, saga_id: Id) -> int:
        """Drop all that is kept of one saga; how many rows that were."""
        return await (await self._ready()).forget(str(saga_id))

    async def _shown(self, stored: StoredSnapshot) -> SagaSnapshot:
        loaded: dict[str, str] = {}
        if self._blobs is not None:
            for key, text in state_of(stored, self._opener).context.items():
                if text.startswith(BLOB_PREFIX):
                    data = await self._blobs.get(from_text(text).key)
                    if data is not None:
                        loaded[key] = data.decode()
        return from_stored(stored, self._opener, loaded)

    # --- replays

    async def save_replay_log(self, entry: Any) -> None:
        """Keep a replay's result: a ReplayResult, or a mapping with its fields."""
        known = entry if isinstance(entry, ReplayEntry) else _entry_of(_record_of(entry))
        await (await self._ready()).save_replay(known)

    async def get_replay_log(self, replay_id: Id) -> dict[str, Any] | None:
        """What is known of one replay."""
        entry = await (await self._ready()).replay(str(replay_id))
        return None if entry is None else shown_replay(entry)

    async def list_replays(self, original_saga_id: Id, limit: int = 100) -> list[dict[str, Any]]:
        """Of one original, newest first. Raises ConfigurationError for a limit below 0."""
        _check_page(limit=limit)
        entries = await (await self._ready()).replays(str(original_saga_id), limit)
        return [shown_replay(entry) for entry in entries]


def _check_page(**numbers: Any) -> None:
    """Databases read numbers below 0 each in a way of its own."""
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ConfigurationError(f"{name}: a whole number, 0 or more, not {number!r}")


def _record_of(entry: Any) -> Mapping[str, Any]:
    if isinstance(entry, Mapping):
        return entry
    record: Mapping[str, Any] = entry.to_dict()
    return record


def _entry_of(record: Mapping[str, Any]) -> ReplayEntry:
    override = record.get("context_override") or {}
    return ReplayEntry(
        replay_id=str(record["replay_id"]),
        original_saga_id=str(record["original_saga_id"]),
        new_saga_id=str(record.get("new_saga_id") or ""),
        point=str(record.get("checkpoint_step") or ""),
        overrides=join_object({key: to_text(value, key) for key, value in override.items()}),
        actor=str(record.get("initiated_by") or ""),
        reason=str(record.get("reason") or ""),
        dry_run=bool(record.get("dry_run", False)),
        status=str(record.get("replay_status") or record.get("status") or "pending"),
        created_at=_us_of(record.get("created_at")),
        completed_at=_us_of(record.get("completed_at")),
        error_message=str(record.get("error_message") or ""),
        force_failure=bool(record.get("force_failure", False)),
    )


def _us_of(value: str | datetime | None) -> int:
    if value is None:
        return 0
    return to_us(value if isinstance(value, datetime) else datetime.fromisoformat(value))
