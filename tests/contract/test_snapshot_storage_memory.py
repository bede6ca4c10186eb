"""The seed's memory storage keeps the laws of a snapshot storage."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sagaz_es.storage.memory import InMemorySnapshotStorage
from sagaz_es.testing.contracts.snapshot_storage import SnapshotStorageContract


class TestInMemorySnapshotStorage(SnapshotStorageContract):
    @pytest.fixture
    async def storage(self) -> AsyncIterator[InMemorySnapshotStorage]:
        async with InMemorySnapshotStorage() as storage:
            yield storage


async def test_it_may_be_closed_before_its_first_use() -> None:
    await InMemorySnapshotStorage().close()
