"""The PostgreSQL blob store keeps the laws of a blob store, also beside a projection store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from sagaz_es.blobs.postgresql import PostgreSQLBlobStore
from sagaz_es.errors import Unreachable
from sagaz_es.ports import BlobStore
from sagaz_es.storage.postgresql import PostgreSQLProjectionStore
from sagaz_es.testing.contracts.blob_store import BlobStoreContract
from tests.servers import PostgreSQLServer


class TestPostgreSQLBlobStore(BlobStoreContract):
    @pytest.fixture
    async def store(self, postgresql_url: str) -> AsyncIterator[PostgreSQLBlobStore]:
        self.url = postgresql_url
        store = PostgreSQLBlobStore(postgresql_url)
        yield store
        await store.close()

    async def damage(self, store: BlobStore, key: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            statement = "UPDATE sagaz_blobs SET data = set_byte(data, 0, 0) WHERE key = $1"
            await connection.execute(statement, key)
        finally:
            await connection.close()


async def test_blobs_and_projections_may_share_a_database(postgresql_url: str) -> None:
    blobs, store = PostgreSQLBlobStore(postgresql_url), PostgreSQLProjectionStore(postgresql_url)
    _, key = await asyncio.gather(store.open(), blobs.put(b"order-17"))
    assert await blobs.get(key) == b"order-17"
    assert await store.summaries() == ()
    await store.close()
    await blobs.close()


async def test_a_call_ends_by_the_deadline(
    postgresql_url: str, postgresql_server: PostgreSQLServer
) -> None:
    blobs = PostgreSQLBlobStore(postgresql_url, deadline_s=0.3)
    key = await blobs.put(b"order-17")
    postgresql_server.pause()
    try:
        with pytest.raises(Unreachable, match="no answer within"):
            await blobs.get(key)
    finally:
        postgresql_server.resume()
    assert await blobs.get(key) == b"order-17"
    await blobs.close()
