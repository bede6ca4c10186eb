"""The SQLite blob store keeps the laws of a blob store, also beside a projection store."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from sagaz_es.blobs.sqlite import SQLiteBlobStore
from sagaz_es.ports import BlobStore
from sagaz_es.storage.sqlite import SQLiteProjectionStore
from sagaz_es.testing.contracts.blob_store import BlobStoreContract


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


class TestSQLiteBlobStore(BlobStoreContract):
    @pytest.fixture
    async def store(self, path: str) -> AsyncIterator[SQLiteBlobStore]:
        self.path = path
        store = SQLiteBlobStore(path)
        yield store
        await store.close()

    async def damage(self, store: BlobStore, key: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            statement = """UPDATE sagaz_blobs
                SET data = CAST(x'00' || substr(data, 2) AS BLOB) WHERE key = ?"""
            connection.execute(statement, (key,))


async def test_blobs_and_projections_may_share_a_file(path: str) -> None:
    blobs, store = SQLiteBlobStore(path), SQLiteProjectionStore(path)
    _, key = await asyncio.gather(store.open(), blobs.put(b"order-17"))
    assert await blobs.get(key) == b"order-17"
    assert await store.summaries() == ()
    await store.close()
    await blobs.close()
