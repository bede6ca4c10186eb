"""The memory blob store keeps the laws of a blob store."""

from __future__ import annotations

import pytest

from sagaz_es.blobs.memory import MemoryBlobStore
from sagaz_es.ports import BlobStore
from sagaz_es.testing.contracts.blob_store import BlobStoreContract


class TestMemoryBlobStore(BlobStoreContract):
    @pytest.fixture
    def store(self) -> MemoryBlobStore:
        return MemoryBlobStore()

    async def damage(self, store: BlobStore, key: str) -> None:
        assert isinstance(store, MemoryBlobStore)
        store._blobs[key] = b"?" + store._blobs[key][1:]
