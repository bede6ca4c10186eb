"""The memory store keeps the laws of a projection store."""

from __future__ import annotations

import msgspec
import pytest

from sagaz_es.ports import ProjectionStore
from sagaz_es.storage.memory import MemoryProjectionStore
from sagaz_es.testing.contracts.histories import SetClock
from sagaz_es.testing.contracts.projection_store import ProjectionStoreContract
from sagaz_es.testing.contracts.stored_snapshots import Reports


class TestMemoryProjectionStore(ProjectionStoreContract):
    @pytest.fixture
    def store(self, clock: SetClock, reports: Reports) -> MemoryProjectionStore:
        return MemoryProjectionStore(clock=clock, report=lambda *told: reports.append(told))

    async def another(self, store: ProjectionStore) -> ProjectionStore:
        return store

    async def damage(self, store: ProjectionStore, snapshot_id: str) -> None:
        assert isinstance(store, MemoryProjectionStore)
        row, place = store._snapshots._by_id[snapshot_id]
        worse = msgspec.structs.replace(row, state=row.state[:-1] + b"?")
        store._snapshots._by_id[snapshot_id] = (worse, place)
