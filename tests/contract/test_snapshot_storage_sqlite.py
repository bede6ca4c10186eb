"""The SQLite storage keeps the laws of a snapshot storage, and shows what a projector captured."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from sagaz_es.blobs.memory import MemoryBlobStore
from sagaz_es.core import events as e
from sagaz_es.core.snapshot import SnapshotPolicy, SnapshotStrategy, dump_policy
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.reading.projector import Projector
from sagaz_es.snapshots import SnapshotSealed
from sagaz_es.storage.sqlite import SQLiteProjectionStore, SQLiteSnapshotStorage
from sagaz_es.testing.contracts.histories import history, order_facts
from sagaz_es.testing.contracts.snapshot_storage import SnapshotStorageContract, snapshot

BEFORE = SnapshotPolicy(SnapshotStrategy.BEFORE_EACH_STEP)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


class TestSQLiteSnapshotStorage(SnapshotStorageContract):
    @pytest.fixture
    async def storage(self, path: str) -> AsyncIterator[SQLiteSnapshotStorage]:
        async with SQLiteSnapshotStorage(path) as storage:
            yield storage


async def projected(path: str, *facts: e.Fact, **options: object) -> None:
    """What an engine's projector leaves of one saga in this file."""
    log, store = MemoryEventLog(1), SQLiteProjectionStore(path)
    await log.append(0, history("order-17", facts))
    await Projector(log, store, **options).run_until()  # type: ignore[arg-type]
    await store.close()


async def test_it_shows_what_the_projector_captured(path: str) -> None:
    await projected(path, *order_facts(policy=dump_policy(BEFORE)))
    async with SQLiteSnapshotStorage(path) as storage:
        ship, charge, reserve = await storage.list_snapshots("order-17")
        assert (charge.step_name, charge.step_index, charge.sequence) == ("charge", 1, 3)
        assert charge.context == {"sku": "A1", "reservation": 1}
        assert charge.completed_steps == ["reserve"]
        assert charge.status == "executing"
        assert await storage.get_snapshot(charge.snapshot_id) == charge
        assert await storage.get_snapshot_at_time("order-17", charge.created_at) == charge
        assert await storage.get_latest_snapshot("order-17", before_step="reserve") == reserve
        assert await storage.get_latest_snapshot("order-17") == ship


async def test_values_kept_as_blobs_are_read_back(path: str) -> None:
    blobs = MemoryBlobStore()
    key = await blobs.put(b'["large"]')
    begun = e.SagaStarted(
        context=f'{{"scan":{{"$blob":"sha256:{key}"}},"n":1}}',
        snapshot_policy='{"strategy":"on_completion"}',
    )
    await projected(path, begun, e.SagaCompleted())
    async with SQLiteSnapshotStorage(path, blobs=blobs) as storage:
        found = await storage.get_latest_snapshot("order-17")
    assert found is not None
    assert found.context == {"scan": ["large"], "n": 1}
    assert found.external_refs == {"scan": f"sha256:{key}"}


async def test_encrypted_snapshots_are_read_with_their_key_alone(path: str) -> None:
    policy = SnapshotPolicy(SnapshotStrategy.ON_COMPLETION, encryption_key_id="k1")

    def mask(key_id: str, data: bytes) -> bytes:
        return bytes(byte ^ 0x55 for byte in data)

    await projected(path, *order_facts(policy=dump_policy(policy)), seal=mask)
    async with SQLiteSnapshotStorage(path, opener=mask) as storage:
        found = await storage.get_latest_snapshot("order-17")
        assert found is not None and found.context["parcel"] == 3
    async with SQLiteSnapshotStorage(path) as storage:
        with pytest.raises(SnapshotSealed, match="k1"):
            await storage.get_latest_snapshot("order-17")


async def test_repetitive_data_takes_less_than_half_its_size(path: str) -> None:
    async with SQLiteSnapshotStorage(path) as storage:
        saved = snapshot(context={"text": "sagaz " * 1707})
        await storage.save_snapshot(saved)
        with closing(sqlite3.connect(path)) as connection:
            ((size,),) = connection.execute("SELECT sum(length(row)) FROM sagaz_snapshots")
        assert size < 5_000
        assert await storage.get_snapshot(saved.snapshot_id) == saved


async def test_it_opens_by_itself_and_may_be_closed_before_its_first_use(path: str) -> None:
    storage = SQLiteSnapshotStorage(path)
    await storage.close()
    await storage.save_snapshot(snapshot())
    await storage.close()
