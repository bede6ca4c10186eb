"""The laws of `sagaz_es.ports.SnapshotStorage` as tests. Needs pytest and pytest-asyncio.

    class TestMyStorage(SnapshotStorageContract):
        @pytest.fixture
        async def storage(self):
            async with MyStorage(...) as storage:
                yield storage

The storage is empty at the beginning of each test.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from sagaz_es.errors import UnstorableValue
from sagaz_es.ports import SnapshotStorage
from sagaz_es.snapshots import SagaSnapshot
from sagaz_es.testing.contracts.histories import ODD_IDS

AT = datetime(2026, 1, 1, 12, 0, 0, 123456, UTC)
MINUTE = timedelta(minutes=1)


def snapshot(number: int = 1, saga_id: str = "order-17", **changes: Any) -> SagaSnapshot:
    """The `number`-th snapshot of a saga, a minute after the one before."""
    return SagaSnapshot(
        **{
            "snapshot_id": f"{saga_id}#{number}",
            "saga_id": saga_id,
            "saga_name": "order",
            "step_name": f"step-{number}",
            "step_index": number - 1,
            "status": "executing",
            "context": {"sku": "A1", "n": number},
            "completed_steps": [f"step-{n}" for n in range(1, number)],
            "created_at": AT + number * MINUTE,
            "sequence": number,
            **changes,
        }
    )


def ids(found: list[Any]) -> list[str]:
    return [each.snapshot_id for each in found]


class SnapshotStorageContract:
    """What every snapshot storage promises; subclass it, and give the fixture `storage`."""

    pytestmark = pytest.mark.asyncio

    # --- saved and fetched

    async def test_a_saved_snapshot_comes_back_equal_in_every_field(
        self, storage: SnapshotStorage
    ) -> None:
        saved = snapshot(
            3,
            retention_until=datetime.now(UTC) + timedelta(days=365),
            external_refs={"scan": "sha256:00"},
            status="levitating",
        )
        await storage.save_snapshot(saved)
        found = await storage.get_snapshot(saved.snapshot_id)
        assert found == saved
        assert found is not None and found.to_dict() == saved.to_dict()
        assert await storage.get_snapshot("none") is None
        assert await storage.get_snapshot(uuid4()) is None

    async def test_ids_may_be_uuids(self, storage: SnapshotStorage) -> None:
        saga_id = uuid4()
        saved = SagaSnapshot.create(saga_id, "order", "charge", 1, "executing", {}, ["reserve"])
        await storage.save_snapshot(saved)
        assert await storage.get_snapshot(UUID(saved.snapshot_id)) == saved
        assert await storage.get_latest_snapshot(saga_id) == saved
        assert await storage.list_snapshots(saga_id) == [saved]
        assert await storage.delete_snapshot(UUID(saved.snapshot_id)) is True

    async def test_values_come_back_with_their_types(self, storage: SnapshotStorage) -> None:
        context = {
            "price": Decimal("9.90"),
            "at": AT,
            "naive": AT.replace(tzinfo=None),
            "day": date(2026, 1, 1),
            "id": UUID(int=7),
            "bytes": b"\0\xff",
            "set": {1, 2},
            "tuple": (1, ("a", None)),
            "nested": {"list": [Decimal("0.10"), {"deep": {b"x", b"y"}}]},
            "falsy": [0, False, "", None, 0.0, {}, []],
            "$decimal": {"$decimal": "not a tag"},
            "text": "ärger №\0",
        }
        await storage.save_snapshot(snapshot(context=context))
        found = await storage.get_latest_snapshot("order-17")
        assert found is not None
        assert found.context == context
        assert repr(found.context["falsy"]) == repr(context["falsy"])
        assert type(found.context["nested"]["list"][1]["deep"]) is set

    async def test_what_cannot_be_kept_is_refused_with_its_path_and_nothing_is_stored(
        self, storage: SnapshotStorage
    ) -> None:
        with pytest.raises(UnstorableValue, match=r"order\.lines\[1\]"):
            await storage.save_snapshot(snapshot(context={"order": {"lines": [1, object()]}}))
        assert await storage.list_snapshots("order-17") == []

    async def test_own_copies_of_what_was_given_and_got(self, storage: SnapshotStorage) -> None:
        context = {"lines": [1]}
        await storage.save_snapshot(snapshot(context=context))
        context["lines"].append(2)
        for _ in range(2):
            found = await storage.get_snapshot("order-17#1")
            assert found is not None and found.context == {"lines": [1]}
            found.context["lines"].append(3)
            found.completed_steps.append("x")

    # --- latest

    async def test_the_latest_is_the_one_with_the_highest_sequence(
        self, storage: SnapshotStorage
    ) -> None:
        first, second, third = snapshot(1), snapshot(2), snapshot(3)
        for each in (second, third, first):
            await storage.save_snapshot(each)
        assert await storage.get_latest_snapshot("order-17") == third
        assert await storage.get_latest_snapshot("order-17", third.created_at) == third
        just_before = third.created_at - timedelta(microseconds=1)
        assert await storage.get_latest_snapshot("order-17", before=just_before) == second
        assert await storage.get_snapshot_at_time("order-17", second.created_at) == second
        naive = second.created_at.replace(tzinfo=None)
        assert await storage.get_snapshot_at_time("order-17", naive) == second
        assert await storage.get_latest_snapshot("order-17", AT) is None
        assert await storage.get_latest_snapshot("order-18") is None
        assert await storage.get_latest_snapshot("order-17", before_step="step-2") == second
        assert await storage.get_latest_snapshot("order-17", before_step="none") is None

    async def test_of_equal_times_the_later_sequence_is_the_later_one_everywhere(
        self, storage: SnapshotStorage
    ) -> None:
        same = [snapshot(n, created_at=AT, step_name="charge") for n in (1, 2, 3)]
        for each in (same[1], same[2], same[0]):
            await storage.save_snapshot(each)
        assert await storage.list_snapshots("order-17") == same[::-1]
        assert await storage.get_latest_snapshot("order-17") == same[2]
        assert await storage.get_latest_snapshot("order-17", before=AT) == same[2]
        assert await storage.get_latest_snapshot("order-17", before_step="charge") == same[2]

    async def test_without_sequences_the_later_time_is_the_later_one(
        self, storage: SnapshotStorage
    ) -> None:
        rows = [snapshot(n, sequence=0) for n in (1, 2)]
        rows.append(snapshot(3, sequence=0, created_at=rows[1].created_at))
        for each in (rows[1], rows[2], rows[0]):
            await storage.save_snapshot(each)
        assert ids(await storage.list_snapshots("order-17")) == ids(rows[::-1])

    # --- lists

    async def test_lists_are_newest_first_in_pages(self, storage: SnapshotStorage) -> None:
        rows = [snapshot(n) for n in range(1, 11)]
        for each in rows:
            await storage.save_snapshot(each)
        newest = ids(rows[::-1])
        assert ids(await storage.list_snapshots("order-17")) == newest
        assert ids(await storage.list_snapshots("order-17", limit=3)) == newest[:3]
        assert ids(await storage.list_snapshots("order-17", limit=3, offset=3)) == newest[3:6]
        assert await storage.list_snapshots("order-17", offset=10) == []
        assert await storage.list_snapshots("order-18") == []

    async def test_pages_give_each_exactly_once(self, storage: SnapshotStorage) -> None:
        rows = [snapshot(n, context={}, completed_steps=()) for n in range(1, 251)]
        await asyncio.gather(*map(storage.save_snapshot, rows))
        found: list[str] = []
        for offset in (0, 100, 200, 300):
            found += ids(await storage.list_snapshots("order-17", limit=100, offset=offset))
        assert found == ids(rows[::-1])

    async def test_a_page_that_is_none_is_refused(self, storage: SnapshotStorage) -> None:
        await storage.save_snapshot(snapshot())
        for wrong in ({"limit": -1}, {"offset": -1}, {"limit": None}, {"offset": "1"}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                await storage.list_snapshots("order-17", **wrong)
        assert await storage.list_snapshots("order-17", limit=0) == []

    async def test_only_snapshots_are_saved(self, storage: SnapshotStorage) -> None:
        for wrong in (None, snapshot().to_dict()):
            with pytest.raises(TypeError, match="SagaSnapshot"):
                await storage.save_snapshot(wrong)
        assert await storage.list_snapshots("order-17") == []

    async def test_many_saved_at_once_are_all_there(self, storage: SnapshotStorage) -> None:
        one = [snapshot(n) for n in range(1, 51)]
        many = [snapshot(1, f"order-{n + 100}") for n in range(256)]
        await asyncio.gather(*map(storage.save_snapshot, (*one, *many)))
        assert await storage.list_snapshots("order-17") == one[::-1]
        for each in many:
            assert await storage.list_snapshots(each.saga_id) == [each]

    async def test_a_saga_may_have_more_than_a_thousand(self, storage: SnapshotStorage) -> None:
        rows = [snapshot(n, context={}, completed_steps=()) for n in range(1, 1002)]
        for first in range(0, len(rows), 100):
            await asyncio.gather(*map(storage.save_snapshot, rows[first : first + 100]))
        assert ids(await storage.list_snapshots("order-17", limit=2000)) == ids(rows[::-1])
        assert ids(await storage.list_snapshots("order-17", limit=5, offset=1000)) == ids(rows[:1])

    # --- deleted, expired, forgotten

    async def test_a_deleted_one_is_gone_and_no_other(self, storage: SnapshotStorage) -> None:
        rows = [snapshot(n) for n in (1, 2, 3)]
        for each in rows:
            await storage.save_snapshot(each)
        assert await storage.delete_snapshot("order-17#3") is True
        assert await storage.get_snapshot("order-17#3") is None
        assert await storage.list_snapshots("order-17") == [rows[1], rows[0]]
        assert await storage.get_latest_snapshot("order-17") == rows[1]
        assert await storage.delete_snapshot("order-17#3") is False
        assert await storage.delete_snapshot("none") is False

    async def test_expired_is_gone_and_cleaned_up_once(self, storage: SnapshotStorage) -> None:
        now = datetime.now(UTC)
        for_ever = snapshot(1)
        valid = snapshot(2, retention_until=now + timedelta(days=1))
        over = snapshot(3, retention_until=now - timedelta(seconds=1))
        for each in (over, for_ever, valid):
            await storage.save_snapshot(each)
        assert await storage.get_snapshot("order-17#3") is None
        assert await storage.get_latest_snapshot("order-17") == valid
        assert await storage.get_snapshot_at_time("order-17", over.created_at) == valid
        assert await storage.list_snapshots("order-17", limit=1) == [valid]
        assert await storage.list_snapshots("order-17", limit=1, offset=1) == [for_ever]
        assert await storage.delete_expired_snapshots() == 1
        assert await storage.delete_expired_snapshots() == 0
        assert await storage.list_snapshots("order-17") == [valid, for_ever]

    async def test_one_saga_forgotten_leaves_the_others(self, storage: SnapshotStorage) -> None:
        for saga_id in ("order-17", "order-18"):
            for number in (1, 2):
                await storage.save_snapshot(snapshot(number, saga_id))
        assert await storage.forget("order-17") == 2
        assert await storage.list_snapshots("order-17") == []
        assert await storage.get_snapshot("order-17#1") is None
        assert len(await storage.list_snapshots("order-18")) == 2

    async def test_no_mix_up_saga_ids_are_any_text(self, storage: SnapshotStorage) -> None:
        for saga_id in ODD_IDS:
            await storage.save_snapshot(snapshot(1, saga_id))
        for saga_id in ODD_IDS:
            assert await storage.list_snapshots(saga_id) == [snapshot(1, saga_id)]
            assert await storage.get_latest_snapshot(saga_id) == snapshot(1, saga_id)
            assert await storage.get_snapshot(f"{saga_id}#1") == snapshot(1, saga_id)
        assert await storage.delete_snapshot(f"{ODD_IDS[0]}#1") is True
        for saga_id in ODD_IDS[1:]:
            assert len(await storage.list_snapshots(saga_id)) == 1

    # --- replays

    async def test_replays_are_found_by_id_and_listed_by_original_newest_first(
        self, storage: SnapshotStorage
    ) -> None:
        for number in range(1, 4):
            await storage.save_replay_log(
                {
                    "replay_id": f"r-{number}",
                    "original_saga_id": "order-17",
                    "new_saga_id": f"order-17~{number}",
                    "checkpoint_step": "charge",
                    "replay_status": "pending",
                    "initiated_by": "ada",
                    "context_override": {"price": Decimal("1.10")},
                    "dry_run": number == 3,
                    "created_at": (AT + number * MINUTE).isoformat(),
                }
            )
        await storage.save_replay_log({"replay_id": "q-1", "original_saga_id": "order-18"})
        found = await storage.get_replay_log("r-2")
        assert found == {
            "replay_id": "r-2",
            "original_saga_id": "order-17",
            "new_saga_id": "order-17~2",
            "checkpoint_step": "charge",
            "replay_status": "pending",
            "status": "pending",
            "initiated_by": "ada",
            "reason": "",
            "context_override": {"price": Decimal("1.10")},
            "dry_run": False,
            "force_failure": False,
            "error_message": None,
            "created_at": (AT + 2 * MINUTE).isoformat(),
            "completed_at": None,
        }
        listed = await storage.list_replays("order-17")
        assert [entry["replay_id"] for entry in listed] == ["r-3", "r-2", "r-1"]
        assert [entry["dry_run"] for entry in listed] == [True, False, False]
        assert listed[1] == found
        limited = await storage.list_replays("order-17", limit=2)
        assert [entry["replay_id"] for entry in limited] == ["r-3", "r-2"]
        assert len(await storage.list_replays("order-18")) == 1
        assert await storage.get_replay_log(uuid4()) is None
        assert await storage.list_replays("order-19") == []

    async def test_a_replay_that_is_saved_again_has_its_outcome(
        self, storage: SnapshotStorage
    ) -> None:
        begun = {
            "replay_id": "r-1",
            "original_saga_id": "order-17",
            "status": "pending",
            "created_at": AT,
        }
        ended = {
            **begun,
            "status": "failed",
            "error_message": "no money",
            "completed_at": AT + MINUTE,
        }
        await storage.save_replay_log(begun)
        await storage.save_replay_log(ended)
        found = await storage.get_replay_log("r-1")
        assert found is not None
        assert (found["replay_status"], found["error_message"]) == ("failed", "no money")
        assert found["completed_at"] == (AT + MINUTE).isoformat()
        assert len(await storage.list_replays("order-17")) == 1

    # --- closing

    async def test_it_may_be_closed_twice(self, storage: SnapshotStorage) -> None:
        await storage.save_snapshot(snapshot(1))
        await storage.close()
        await storage.close()
