"""The laws of `sagaz_es.ports.ProjectionStore` about snapshots; see projection_store.py."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from sagaz_es.ports import Checkpoint, Projection, ProjectionStore, StoredSnapshot
from sagaz_es.testing.contracts.histories import NOON, SECOND, SetClock, snapshot_row

Reports = list[tuple[str, str, str]]


async def capture(store: ProjectionStore, *snapshots: StoredSnapshot, keep: int = 0) -> None:
    """As a projector does it."""
    checkpoint = await store.checkpoint(0)
    expected = 0 if checkpoint is None else checkpoint.next_offset
    kept = {snapshot.saga_id: keep for snapshot in snapshots} if keep else {}
    batch = Projection(Checkpoint(0, expected + 1), snapshots=snapshots, keep_snapshots=kept)
    await store.commit(batch, expected=expected)


class StoredSnapshotsContract:
    """What every store promises of snapshots."""

    @pytest.fixture
    def clock(self) -> SetClock:
        return SetClock(NOON)

    @pytest.fixture
    def reports(self) -> Reports:
        """What the store told of snapshots that it passed over."""
        return []

    async def damage(self, store: ProjectionStore, snapshot_id: str) -> None:
        """Change one byte of what is stored of this snapshot."""
        raise NotImplementedError

    async def test_a_snapshot_comes_back_in_every_field(self, store: ProjectionStore) -> None:
        row = snapshot_row(
            "s/1 №",
            saga_name="order\0",
            step="charge\0",
            status="levitating",
            completed_steps=("a\0", "b,c"),
            retention_until=NOON + 1,
            external_refs='{"scan":"sha256:00"}',
            key_id="k1",
            occurred_at=NOON - 5,
        )
        await capture(store, row)
        assert await store.snapshot("s/1 №") == row
        assert await store.snapshots("order-17") == (row,)
        assert await store.latest_snapshot("order-17") == row
        assert await store.nearest_snapshot("order-17") == row
        assert await store.snapshot("none") is None

    async def test_the_nearest_is_the_newest_at_or_before_the_point(
        self, store: ProjectionStore
    ) -> None:
        rows = {n: snapshot_row(f"s-{n}", sequence=n) for n in (2, 4, 6)}
        await capture(store, *rows.values())
        for sequence, expected in ((1, None), (2, 2), (3, 2), (4, 4), (5, 4), (99, 6)):
            found = await store.nearest_snapshot("order-17", sequence=sequence)
            assert found == (rows[expected] if expected else None)
        for at, expected in ((0, None), (1, 2), (2, 2), (3, 4), (4, 4), (5, 6)):
            found = await store.nearest_snapshot("order-17", at=NOON + at * SECOND)
            assert found == (rows[expected] if expected else None)
        both = await store.nearest_snapshot("order-17", sequence=5, at=NOON + 2 * SECOND)
        assert both == rows[2]
        assert await store.nearest_snapshot("order-17") == rows[6]
        assert await store.nearest_snapshot("order-18") is None

    async def test_of_equal_times_the_later_sequence_is_the_later_one(
        self, store: ProjectionStore
    ) -> None:
        rows = [
            snapshot_row(f"s-{n}", sequence=n, occurred_at=NOON, created_at=NOON) for n in (1, 2, 3)
        ]
        await capture(store, rows[1], rows[2], rows[0])
        assert await store.snapshots("order-17") == tuple(rows[::-1])
        assert await store.latest_snapshot("order-17", before=NOON) == rows[2]
        assert await store.nearest_snapshot("order-17", at=NOON) == rows[2]

    async def test_of_equal_sequences_the_later_time_is_the_later_one_then_the_later_saved(
        self, store: ProjectionStore
    ) -> None:
        rows = [snapshot_row(f"s-{n}", sequence=3, created_at=NOON + n // 2) for n in range(4)]
        for row in (rows[2], rows[3], rows[0], rows[1]):
            await store.save_snapshot(row)
        assert await store.snapshots("order-17") == tuple(rows[::-1])

    async def test_pages_are_newest_first_and_give_each_once(self, store: ProjectionStore) -> None:
        rows = [snapshot_row(f"s-{n}", sequence=n, data=b"{}") for n in range(1, 251)]
        await capture(store, *rows)
        found: list[StoredSnapshot] = []
        for offset in range(0, 300, 100):
            found += await store.snapshots("order-17", limit=100, offset=offset)
        assert found == rows[::-1]
        assert await store.snapshots("order-17", limit=3, offset=3) == tuple(rows[246:243:-1])
        assert await store.snapshots("order-17", offset=250) == ()

    async def test_lists_may_be_asked_by_time_and_step(self, store: ProjectionStore) -> None:
        rows = [snapshot_row(f"s-{n}", sequence=n, step="ab"[n % 2]) for n in range(1, 7)]
        await capture(store, *rows)
        before = NOON + 3 * SECOND
        assert await store.snapshots("order-17", before=before) == tuple(rows[3::-1])
        assert await store.snapshots("order-17", step="a") == (rows[5], rows[3], rows[1])
        assert await store.latest_snapshot("order-17", before=before, step="b") == rows[2]
        assert await store.latest_snapshot("order-17", before=NOON - 1) is None
        assert await store.latest_snapshot("order-17", step="c") is None

    async def test_a_saga_may_have_more_than_a_thousand(self, store: ProjectionStore) -> None:
        rows = [snapshot_row(f"s-{n}", sequence=n, data=b"{}") for n in range(1, 1201)]
        await capture(store, *rows)
        assert await store.snapshots("order-17", limit=5000) == tuple(rows[::-1])

    async def test_many_saved_at_once_are_all_there(self, store: ProjectionStore) -> None:
        one = [snapshot_row(f"s-{n}", sequence=n + 1) for n in range(50)]
        many = [snapshot_row(f"m-{n}", f"order-{n + 100}") for n in range(256)]
        await asyncio.gather(*(store.save_snapshot(row) for row in (*one, *many)))
        assert await store.snapshots("order-17") == tuple(one[::-1])
        for row in many:
            assert await store.snapshots(row.saga_id) == (row,)

    async def test_the_newest_few_are_kept_where_a_policy_says_so(
        self, store: ProjectionStore
    ) -> None:
        rows = [snapshot_row(f"s-{n}", sequence=n) for n in range(1, 8)]
        others = [snapshot_row(f"o-{n}", "order-18", sequence=n) for n in range(1, 4)]
        by_hand = snapshot_row("h-1", sequence=1, fold_version=0)
        await store.save_snapshot(by_hand)
        await capture(store, *others)
        for row in rows:
            await capture(store, row, keep=2)
        assert await store.snapshots("order-17") == (rows[6], rows[5], by_hand)
        assert len(await store.snapshots("order-18")) == 3

    async def test_twice_is_once_a_captured_one_is_not_replaced_a_saved_one_is(
        self, store: ProjectionStore
    ) -> None:
        first, second = snapshot_row("s-1", sequence=3), snapshot_row("s-1", sequence=4)
        await capture(store, first)
        await capture(store, second)
        assert await store.snapshots("order-17") == (first,)
        await store.save_snapshot(second)
        assert await store.snapshots("order-17") == (second,)

    # --- deleted, expired

    async def test_a_deleted_one_is_gone_and_no_other(self, store: ProjectionStore) -> None:
        rows = [snapshot_row(f"s-{n}", sequence=n) for n in (1, 2, 3)]
        await capture(store, *rows)
        assert await store.delete_snapshot("s-3") is True
        assert await store.delete_snapshot("s-3") is False
        assert await store.delete_snapshot("none") is False
        assert await store.snapshot("s-3") is None
        assert await store.snapshots("order-17") == (rows[1], rows[0])
        assert await store.latest_snapshot("order-17") == rows[1]
        assert await store.nearest_snapshot("order-17") == rows[1]

    async def test_expired_is_gone_from_every_answer(
        self, store: ProjectionStore, clock: SetClock
    ) -> None:
        live = snapshot_row("live", sequence=1, retention_until=NOON + 100)
        for_ever = snapshot_row("for-ever", sequence=2)
        ending = snapshot_row("ending", sequence=3, retention_until=NOON + 10)
        over = snapshot_row("over", sequence=4, retention_until=NOON)
        await capture(store, live, for_ever, ending)
        await store.save_snapshot(over)
        assert await store.snapshots("order-17") == (ending, for_ever, live)
        clock.at = NOON + 10
        assert await store.snapshot("ending") is None
        assert await store.snapshots("order-17", limit=1) == (for_ever,)
        assert await store.snapshots("order-17", limit=1, offset=1) == (live,)
        assert await store.latest_snapshot("order-17") == for_ever
        assert await store.nearest_snapshot("order-17") == for_ever
        assert await store.delete_snapshot("ending") is False
        assert await store.delete_expired_snapshots() == 2
        assert await store.delete_expired_snapshots() == 0
        clock.at = NOON + 9
        assert await store.snapshots("order-17") == (for_ever, live)

    # --- damaged, outdated

    async def test_passed_over_told_a_damaged_one(
        self, store: ProjectionStore, reports: Reports
    ) -> None:
        rows = [snapshot_row(f"s-{n}", sequence=n) for n in range(1, 8)]
        await capture(store, *rows)
        for number in (3, 4, 5, 6, 7):
            await self.damage(store, f"s-{number}")
        assert await store.nearest_snapshot("order-17") == rows[1]
        assert [(saga_id, snapshot_id) for saga_id, snapshot_id, _ in reports] == [
            ("order-17", f"s-{number}") for number in (7, 6, 5, 4, 3)
        ]
        assert all(reason for _, _, reason in reports)
        assert await store.latest_snapshot("order-17") == rows[1]
        assert await store.snapshot("s-7") is None
        assert await store.snapshots("order-17") == (rows[1], rows[0])
        assert await store.delete_snapshot("s-7") is True

    async def test_passed_over_told_one_of_another_fold_version(
        self, store: ProjectionStore, reports: Reports
    ) -> None:
        usable = snapshot_row("s-1", sequence=1)
        old = snapshot_row("s-2", sequence=2, fold_version=999)
        by_hand = snapshot_row("s-3", sequence=3, fold_version=0)
        await capture(store, usable, old)
        await store.save_snapshot(by_hand)
        assert await store.nearest_snapshot("order-17") == usable
        assert [(saga_id, snapshot_id) for saga_id, snapshot_id, _ in reports] == [
            ("order-17", "s-2")
        ]
        assert await store.snapshots("order-17") == (by_hand, old, usable)
        assert await store.latest_snapshot("order-17") == by_hand

    async def test_passed_over_told_one_that_says_it_is_another(
        self, store: ProjectionStore, reports: Reports
    ) -> None:
        row = snapshot_row("s-1", sequence=2)
        moved = msgspec.structs.replace(snapshot_row("s-2", sequence=3), sequence=4)
        await capture(store, row, moved)
        assert await store.nearest_snapshot("order-17") == row
        assert [snapshot_id for _, snapshot_id, _ in reports] == ["s-2"]

    async def test_clean_up_goes_on_past_a_damaged_one(
        self, store: ProjectionStore, clock: SetClock
    ) -> None:
        rows = [snapshot_row(f"s-{n}", sequence=n, retention_until=NOON + 1) for n in (1, 2)]
        await capture(store, *rows)
        await self.damage(store, "s-1")
        clock.at = NOON + 1
        assert await store.delete_expired_snapshots() == 2
