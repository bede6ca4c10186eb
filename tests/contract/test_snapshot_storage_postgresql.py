"""The seed's PostgreSQL storage keeps the laws of a snapshot storage, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sagaz_es.errors import Unreachable
from sagaz_es.storage.postgresql import PostgreSQLSnapshotStorage
from sagaz_es.testing.contracts.snapshot_storage import SnapshotStorageContract, snapshot


class TestPostgreSQLSnapshotStorage(SnapshotStorageContract):
    @pytest.fixture
    async def storage(self, postgresql_url: str) -> AsyncIterator[PostgreSQLSnapshotStorage]:
        async with PostgreSQLSnapshotStorage(postgresql_url, 1, 5) as storage:
            yield storage


async def test_repetitive_data_takes_less_than_half_its_size(postgresql_url: str) -> None:
    async with PostgreSQLSnapshotStorage(postgresql_url) as storage:
        saved = snapshot(context={"text": "sagaz " * 1707})
        await storage.save_snapshot(saved)
        rows = await storage.store.database.rows("SELECT sum(length(row)) FROM sagaz_snapshots")
        assert rows[0][0] < 5_000
        assert await storage.get_snapshot(saved.snapshot_id) == saved


async def test_leaving_it_closes_its_connections(postgresql_url: str) -> None:
    async with PostgreSQLSnapshotStorage(postgresql_url) as storage:
        await storage.save_snapshot(snapshot())
    async with PostgreSQLSnapshotStorage(postgresql_url) as other:
        query = """SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()"""
        counted = await other.store.database.rows(query)
        assert counted[0][0] <= 4, "its own five, without the one that asks"


async def test_a_server_that_is_not_there_is_named_and_closing_is_no_error() -> None:
    storage = PostgreSQLSnapshotStorage("postgresql://ada:s3cret@127.0.0.1:1/orders")
    await storage.close()
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1/orders") as refusal:
        await storage.list_snapshots("order-17")
    assert "s3cret" not in str(refusal.value)
    await storage.close()
