"""The PostgreSQL store keeps the laws of a projection store, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from sagaz_es.databases.postgresql import TABLES_LOCK
from sagaz_es.errors import StorageFailed
from sagaz_es.ports import ProjectionStore
from sagaz_es.storage.postgresql import PostgreSQLProjectionStore
from sagaz_es.testing.contracts.histories import SetClock, history, projected
from sagaz_es.testing.contracts.projection_store import ProjectionStoreContract
from sagaz_es.testing.contracts.stored_snapshots import Reports


class TestPostgreSQLProjectionStore(ProjectionStoreContract):
    @pytest.fixture
    async def store(
        self, postgresql_url: str, clock: SetClock, reports: Reports
    ) -> AsyncIterator[ProjectionStore]:
        self.url = postgresql_url
        store = PostgreSQLProjectionStore(
            postgresql_url, clock=clock, report=lambda *told: reports.append(told)
        )
        await store.open()
        yield store
        await store.close()

    async def another(self, store: ProjectionStore) -> ProjectionStore:
        other = PostgreSQLProjectionStore(self.url)
        await other.open()
        return other

    async def damage(self, store: ProjectionStore, snapshot_id: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(
                """UPDATE sagaz_snapshots SET row = set_byte(row, length(row) - 20,
                get_byte(row, length(row) - 20) # 1) WHERE snapshot_id = $1""",
                snapshot_id,
            )
        finally:
            await connection.close()


async def test_many_may_make_the_tables_at_once(postgresql_url: str) -> None:
    stores = [PostgreSQLProjectionStore(postgresql_url, schema="orders") for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    await stores[0].commit(projected(history("order-17")), expected=0)
    assert len(await stores[7].summaries()) == 1
    for store in stores:
        await store.close()


@pytest.mark.parametrize("schema", ["", "orders"])
@pytest.mark.parametrize("level", ["read committed", "serializable"])
async def test_who_waited_for_another_to_make_the_tables_uses_those(
    postgresql_url: str, schema: str, level: str
) -> None:
    stores = [PostgreSQLProjectionStore(postgresql_url, schema=schema) for _ in range(3)]
    connection = await asyncpg.connect(postgresql_url)
    try:
        database = await connection.fetchval("SELECT current_database()")
        change = f"ALTER DATABASE \"{database}\" SET default_transaction_isolation = '{level}'"
        await connection.execute(change)
        held = connection.transaction(isolation="read_committed")
        await held.start()
        await connection.execute("SELECT pg_advisory_xact_lock($1)", TABLES_LOCK)
        opening = [asyncio.create_task(store.open()) for store in stores]
        waiting = """SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
            WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted"""
        while await connection.fetchval(waiting) < len(stores):  # none has found a table
            assert not any(task.done() for task in opening)
        await held.commit()
        await asyncio.gather(*opening)
    finally:
        await connection.close()
    await stores[0].commit(projected(history("order-17")), expected=0)
    assert len(await stores[2].summaries()) == 1
    for store in stores:
        await store.close()


async def test_in_a_schema_of_its_own_it_needs_no_right_to_make_schemas(
    postgresql_url: str,
) -> None:
    connection = await asyncpg.connect(postgresql_url)
    await connection.execute("CREATE ROLE clerk LOGIN")
    try:
        await connection.execute("CREATE SCHEMA orders AUTHORIZATION clerk")
        url = postgresql_url.replace("postgres@", "clerk@")
        clerk = PostgreSQLProjectionStore(url, schema="orders")
        await clerk.commit(projected(history("order-17")), expected=0)
        await clerk.close()
    finally:
        await connection.execute("DROP OWNED BY clerk")
        await connection.execute("DROP ROLE clerk")
        await connection.close()


async def test_schemas_keep_namespaces_apart(postgresql_url: str) -> None:
    orders = PostgreSQLProjectionStore(postgresql_url, schema="orders")
    trips = PostgreSQLProjectionStore(postgresql_url, schema="trips")
    await orders.commit(projected(history("order-17")), expected=0)
    await trips.commit(projected(history("trip-1")), expected=0)
    assert [s.saga_id for s in await orders.summaries()] == ["order-17"]
    assert [s.saga_id for s in await trips.summaries()] == ["trip-1"]
    await orders.close()
    await trips.close()


async def test_tables_of_another_version_are_refused(postgresql_url: str) -> None:
    store = PostgreSQLProjectionStore(postgresql_url)
    await store.open()
    await store.database.execute("UPDATE sagaz_versions SET version = 99")
    await store.close()
    with pytest.raises(StorageFailed, match="version 99"):
        await store.open()


async def test_who_may_only_read_and_write_needs_no_right_to_create(postgresql_url: str) -> None:
    owner = PostgreSQLProjectionStore(postgresql_url)
    await owner.open()
    await owner.database.rows("CREATE ROLE clerk LOGIN")
    try:
        await owner.database.rows("REVOKE CREATE ON SCHEMA public FROM PUBLIC, clerk")
        await owner.database.rows("GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk")
        clerk = PostgreSQLProjectionStore(postgresql_url.replace("postgres@", "clerk@"))
        await clerk.commit(projected(history("order-17")), expected=0)
        await clerk.close()
    finally:
        await owner.database.rows("DROP OWNED BY clerk")
        await owner.database.rows("DROP ROLE clerk")
        await owner.close()
