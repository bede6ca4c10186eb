"""The SQLite store keeps the laws of a projection store, and some of its own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from sagaz_es.errors import StorageFailed, Unreachable
from sagaz_es.ports import ProjectionStore
from sagaz_es.storage.sqlite import SQLiteProjectionStore
from sagaz_es.testing.contracts.histories import SetClock, history, projected
from sagaz_es.testing.contracts.projection_store import ProjectionStoreContract
from sagaz_es.testing.contracts.stored_snapshots import Reports


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


@pytest.fixture
def no_database(tmp_path: Path) -> str:
    file = tmp_path / "story.txt"
    file.write_bytes(b"once upon a time" * 100)
    return str(file)


class TestSQLiteProjectionStore(ProjectionStoreContract):
    @pytest.fixture
    async def store(
        self, path: str, clock: SetClock, reports: Reports
    ) -> AsyncIterator[ProjectionStore]:
        store = SQLiteProjectionStore(path, clock=clock, report=lambda *told: reports.append(told))
        await store.open()
        yield store
        await store.close()

    async def another(self, store: ProjectionStore) -> ProjectionStore:
        assert isinstance(store, SQLiteProjectionStore)
        other = SQLiteProjectionStore(store.path)
        await other.open()
        return other

    async def damage(self, store: ProjectionStore, snapshot_id: str) -> None:
        assert isinstance(store, SQLiteProjectionStore)
        with closing(sqlite3.connect(store.path)) as connection, connection:
            where = "WHERE snapshot_id = ?"
            ((row,),) = connection.execute(
                f"SELECT row FROM sagaz_snapshots {where}", (snapshot_id,)
            )
            worse = row[:-20] + bytes([row[-20] ^ 1]) + row[-19:]
            connection.execute(f"UPDATE sagaz_snapshots SET row = ? {where}", (worse, snapshot_id))


async def test_many_may_make_the_tables_at_once(path: str) -> None:
    stores = [SQLiteProjectionStore(path) for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    await stores[0].commit(projected(history("order-17")), expected=0)
    assert len(await stores[7].summaries()) == 1
    for store in stores:
        await store.close()


async def test_tables_of_another_version_are_refused(path: str) -> None:
    store = SQLiteProjectionStore(path)
    await store.open()
    await store.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE sagaz_versions SET version = 99")
    with pytest.raises(StorageFailed, match="version 99"):
        await store.open()


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    store = SQLiteProjectionStore(str(tmp_path / "none" / "store.db"))
    with pytest.raises(Unreachable, match="no directory"):
        await store.open()


async def test_what_is_no_database_is_refused(no_database: str) -> None:
    with pytest.raises(StorageFailed, match="not a SQLite database"):
        await SQLiteProjectionStore(no_database).open()


async def test_a_lock_held_too_long_is_told_and_the_next_call_works(path: str) -> None:
    store = SQLiteProjectionStore(path, wait_s=0.05)
    await store.open()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unreachable, match="lock"):
            await store.commit(projected(history("order-17")), expected=0)
        other.execute("ROLLBACK")
    await store.commit(projected(history("order-17")), expected=0)
    await store.close()


async def test_a_closed_store_opens_at_the_next_call(path: str) -> None:
    store = SQLiteProjectionStore(path)
    await store.close()
    await store.commit(projected(history("order-17")), expected=0)
    await store.close()
    assert len(await store.summaries()) == 1
    await store.close()
