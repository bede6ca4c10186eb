"""The laws of `sagaz_es.ports.ProjectionStore` as tests. Needs pytest and pytest-asyncio.

    class TestMyStore(ProjectionStoreContract):
        @pytest.fixture
        async def store(self, clock, reports):
            store = MyStore(..., clock=clock, report=lambda *told: reports.append(told))
            await store.open()
            yield store
            await store.close()

        async def another(self, store):
            again = MyStore(...)  # the same data, as another process sees it
            await again.open()
            return again

        async def damage(self, store, snapshot_id):
            ...  # change one byte of what is stored of this snapshot

The store is empty at the beginning of each test.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping

import msgspec
import pytest

from sagaz_es.core.events import Event
from sagaz_es.core.state import SagaState
from sagaz_es.errors import CheckpointMoved
from sagaz_es.ports import (
    ArchivedEvent,
    Checkpoint,
    DefinitionCount,
    ParkedRecord,
    Projection,
    ProjectionStore,
    merge_replays,
)
from sagaz_es.testing.contracts.captured_snapshots import CapturedSnapshotsContract
from sagaz_es.testing.contracts.histories import (
    NOON,
    ODD_IDS,
    SECOND,
    declined_facts,
    head_of,
    history,
    projected,
    replay_entry,
    snapshot_row,
)
from sagaz_es.testing.contracts.stored_snapshots import StoredSnapshotsContract

EMPTY = Checkpoint(0, 0)


def asked_for(saga_id: str, began: int = NOON) -> SagaState:
    """A start that waits, as a projector tells of it."""
    return SagaState(
        saga_id=saga_id,
        saga_name="order",
        started_at=began,
        updated_at=began,
        cause=f"asks for {saga_id}",
    )


class Explosive(Mapping[str, int]):
    """Counts that nobody can read: a commit breaks when it comes to them."""

    def __getitem__(self, key: str) -> int:
        raise ZeroDivisionError

    def __iter__(self) -> Iterator[str]:
        raise ZeroDivisionError

    def __len__(self) -> int:
        return 1


def parked(offset: int, saga_id: str = "order-17", partition: int = 0) -> ParkedRecord:
    return ParkedRecord(partition, offset, saga_id, "damaged\0", b"\xff\0", NOON)


class ProjectionStoreContract(StoredSnapshotsContract, CapturedSnapshotsContract):
    """What every store promises; subclass it, give the fixture `store` and the two helpers."""

    pytestmark = pytest.mark.asyncio

    async def another(self, store: ProjectionStore) -> ProjectionStore:
        """The same data, as another process sees it."""
        raise NotImplementedError

    # --- atomic

    async def test_a_new_store_is_empty(self, store: ProjectionStore) -> None:
        assert await store.checkpoint(0) is None
        assert await store.heads(["order-17"]) == {}
        assert await store.archived("order-17") == ()
        assert await store.summaries() == ()
        assert await store.count_by_status() == {}
        assert await store.parked() == ()
        assert await store.parked_sagas(0) == frozenset()
        assert await store.rejected() == {}
        assert await store.replays("order-17") == ()
        assert await store.replay("r-1") is None

    async def test_atomic_a_commit_keeps_all_of_a_projection_with_its_checkpoint(
        self, store: ProjectionStore
    ) -> None:
        events = history("order-17")
        batch = msgspec.structs.replace(
            projected(events),
            snapshots=(snapshot_row("s-1"),),
            replays=(replay_entry("r-1"),),
            parked=(parked(40), parked(41, "order-18")),
            rejected={"gap": 2, "duplicate": 1},
        )
        await store.commit(batch, expected=0)
        other = await self.another(store)
        try:
            assert await other.checkpoint(0) == batch.checkpoint
            assert await other.checkpoint(1) is None
            assert await other.heads(["order-17", "order-18"]) == {"order-17": head_of(events)}
            assert [a.event for a in await other.archived("order-17")] == list(events)
            assert await other.snapshot("s-1") == batch.snapshots[0]
            assert await other.replay("r-1") == batch.replays[0]
            assert await other.parked() == batch.parked
            assert await other.parked_sagas(0) == {"order-17", "order-18"}
            assert await other.rejected() == {"gap": 2, "duplicate": 1}
        finally:
            if other is not store:
                await other.close()

    async def test_atomic_a_commit_that_breaks_keeps_nothing(self, store: ProjectionStore) -> None:
        await store.commit(projected(history("order-16")), expected=0)
        batch = msgspec.structs.replace(
            projected(history("order-17"), first_offset=8),
            snapshots=(snapshot_row("s-1"),),
            replays=(replay_entry("r-1"),),
            parked=(parked(40),),
            rejected=Explosive(),
        )
        with pytest.raises(ZeroDivisionError):
            await store.commit(batch, expected=8)
        await self.nothing_of(batch, store)
        await store.commit(msgspec.structs.replace(batch, rejected={}), expected=8)
        assert await store.snapshot("s-1") == batch.snapshots[0]

    async def nothing_of(self, batch: Projection, store: ProjectionStore) -> None:
        checkpoint = await store.checkpoint(0)
        assert checkpoint is not None and checkpoint.next_offset == 8
        assert await store.heads(["order-17"]) == {}
        assert await store.archived("order-17") == ()
        assert await store.snapshot("s-1") is None
        assert await store.replay("r-1") is None
        assert await store.parked() == ()
        assert await store.rejected() == {}

    # --- one projector

    async def test_one_projector_a_commit_follows_the_checkpoint_it_expects(
        self, store: ProjectionStore
    ) -> None:
        await store.commit(projected(history("order-16")), expected=0)
        batch = msgspec.structs.replace(
            projected(history("order-17")),
            snapshots=(snapshot_row("s-1"),),
            replays=(replay_entry("r-1"),),
            parked=(parked(40),),
            rejected={"gap": 1},
        )
        for expected in (0, 7, 9):
            with pytest.raises(CheckpointMoved) as moved:
                await store.commit(batch, expected=expected)
            assert (moved.value.partition, moved.value.found) == (0, 8)
            await self.nothing_of(batch, store)

    async def test_one_projector_of_many_commits_at_once_one_is_kept(
        self, store: ProjectionStore
    ) -> None:
        other = await self.another(store)
        try:
            outcomes = await asyncio.gather(
                *(
                    chosen.commit(projected(history(f"order-{number}")), expected=0)
                    for number, chosen in enumerate([store, other] * 4)
                ),
                return_exceptions=True,
            )
        finally:
            if other is not store:
                await other.close()
        assert [type(outcome) for outcome in outcomes].count(CheckpointMoved) == 7
        assert outcomes.count(None) == 1
        assert len(await store.summaries()) == 1

    async def test_one_projector_partitions_do_not_disturb_each_other(
        self, store: ProjectionStore
    ) -> None:
        batches = [projected(history(f"order-{number}"), partition=number) for number in range(8)]
        counted = [msgspec.structs.replace(batch, rejected={"gap": 1}) for batch in batches]
        await asyncio.gather(*(store.commit(batch, expected=0) for batch in counted))
        assert await store.rejected() == {"gap": 8}
        assert len(await store.summaries()) == 8
        for number in range(8):
            assert await store.checkpoint(number) == batches[number].checkpoint

    # --- twice is once, order

    async def test_twice_is_once_for_archive_snapshots_replays_and_parked(
        self, store: ProjectionStore
    ) -> None:
        events = history("order-17")
        batch = msgspec.structs.replace(
            projected(events),
            snapshots=(snapshot_row("s-1"),),
            replays=(replay_entry("r-1"),),
            parked=(parked(40),),
        )
        await store.commit(batch, expected=0)
        await store.commit(batch, expected=8)
        assert [a.event for a in await store.archived("order-17")] == list(events)
        assert await store.snapshots("order-17") == batch.snapshots
        assert await store.replays("order-17") == batch.replays
        assert await store.parked() == batch.parked

    async def test_a_head_is_replaced_by_a_newer_one(self, store: ProjectionStore) -> None:
        events = history("order-17")
        await store.commit(projected(events[:4]), expected=0)
        rest = Projection(
            Checkpoint(0, 8),
            (head_of(events),),
            tuple(ArchivedEvent(n + 1, n, events[n]) for n in range(4, 8)),
        )
        await store.commit(rest, expected=4)
        assert await store.heads(["order-17"]) == {"order-17": head_of(events)}
        (summary,) = await store.summaries()
        assert (summary.status, summary.sequence) == ("completed", 8)

    async def test_order_archived_events_come_by_sequence_in_pages(
        self, store: ProjectionStore
    ) -> None:
        events = history("order-17")
        await store.commit(projected(events), expected=0)
        archived = await store.archived("order-17")
        assert [(a.sequence, a.offset, a.event) for a in archived] == [
            (place, place - 1, event) for place, event in enumerate(events, 1)
        ]

        async def page(after: int = 0, upto: int | None = None, limit: int = 1000) -> list[int]:
            found = await store.archived("order-17", after=after, upto=upto, limit=limit)
            return [a.sequence for a in found]

        assert await page(limit=3) == [1, 2, 3]
        assert await page(after=3, limit=3) == [4, 5, 6]
        assert await page(after=2, upto=4) == [3, 4]
        assert await page(after=8) == []
        assert await page(upto=0) == []

    async def test_archived_events_keep_what_they_say(self, store: ProjectionStore) -> None:
        events = (
            *history("order-17", declined_facts(policy='{"strategy":"manual"}'), replay_id="r-1"),
            *history("ärger №\0", replay_id="")[1:],
        )
        for number, event in enumerate(events):
            batch = Projection(
                Checkpoint(0, number + 1),
                archive=(ArchivedEvent(event.sequence, number, event),),
            )
            await store.commit(batch, expected=number)
        kept = [*await store.archived("order-17"), *await store.archived("ärger №\0")]
        assert [a.event for a in kept] == list(events)

    async def test_archived_events_may_be_large(self, store: ProjectionStore) -> None:
        event = history("order-17")[2]
        fact = msgspec.structs.replace(event.fact, result='"' + "ä" * 400_000 + '"')
        large = msgspec.structs.replace(event, fact=fact)
        batch = Projection(Checkpoint(0, 1), archive=(ArchivedEvent(3, 0, large),))
        await store.commit(batch, expected=0)
        assert (await store.archived("order-17"))[0].event == large

    # --- no mix-up

    async def test_no_mix_up_saga_ids_are_any_text(self, store: ProjectionStore) -> None:
        heads, archive = [], []
        for number, saga_id in enumerate(ODD_IDS):
            events = history(saga_id, began=NOON + number * SECOND)[: number % 7 + 1]
            heads.append(head_of(events))
            archive += [ArchivedEvent(n, 10 * number + n, ev) for n, ev in enumerate(events, 1)]
        snapshots = tuple(snapshot_row(f"s-{n}", saga_id) for n, saga_id in enumerate(ODD_IDS))
        batch = Projection(
            Checkpoint(0, 999),
            tuple(heads),
            tuple(archive),
            snapshots,
            replays=tuple(replay_entry(f"r-{n}", sid) for n, sid in enumerate(ODD_IDS)),
            parked=tuple(parked(n, saga_id) for n, saga_id in enumerate(ODD_IDS)),
        )
        await store.commit(batch, expected=0)
        assert await store.heads(ODD_IDS) == {head.saga_id: head for head in heads}
        assert await store.parked_sagas(0) == set(ODD_IDS)
        listed = [summary.saga_id for summary in await store.summaries()]
        assert listed == list(ODD_IDS[::-1])
        for number, saga_id in enumerate(ODD_IDS):
            assert await store.heads([saga_id]) == {saga_id: heads[number]}
            kept = await store.archived(saga_id)
            assert [a.event.saga_id for a in kept] == [saga_id] * (number % 7 + 1)
            assert await store.snapshots(saga_id) == (snapshots[number],)
            assert await store.nearest_snapshot(saga_id) == snapshots[number]
            assert await store.replays(saga_id) == (batch.replays[number],)
            assert await store.parked_of(0, saga_id) == (batch.parked[number],)

    async def test_one_saga_forgotten_leaves_the_others(self, store: ProjectionStore) -> None:
        batch = Projection(
            Checkpoint(0, 999),
            tuple(head_of(history(saga_id)) for saga_id in ODD_IDS),
            tuple(ArchivedEvent(1, 0, history(saga_id)[0]) for saga_id in ODD_IDS),
            tuple(snapshot_row(f"s-{n}", saga_id) for n, saga_id in enumerate(ODD_IDS)),
            replays=tuple(replay_entry(f"r-{n}", sid) for n, sid in enumerate(ODD_IDS)),
            parked=tuple(parked(n, saga_id) for n, saga_id in enumerate(ODD_IDS)),
        )
        await store.commit(batch, expected=0)
        assert await store.forget(ODD_IDS[0]) == 5
        assert await store.forget(ODD_IDS[0]) == 0
        assert await store.heads(ODD_IDS[:1]) == {}
        assert await store.archived(ODD_IDS[0]) == ()
        assert await store.snapshots(ODD_IDS[0]) == ()
        assert await store.snapshot("s-0") is None
        assert await store.replays(ODD_IDS[0]) == ()
        assert await store.parked_sagas(0) == set(ODD_IDS[1:])
        for number, saga_id in enumerate(ODD_IDS[1:], 1):
            assert saga_id in await store.heads([saga_id])
            assert len(await store.archived(saga_id)) == 1
            assert [s.snapshot_id for s in await store.snapshots(saga_id)] == [f"s-{number}"]
            assert len(await store.replays(saga_id)) == 1

    async def test_heads_of_many_sagas_come_at_once(self, store: ProjectionStore) -> None:
        ids = [f"order-{number}" for number in range(2500)]
        heads = tuple(head_of(history(saga_id)[:2]) for saga_id in ids)
        await store.commit(Projection(Checkpoint(0, 1), heads), expected=0)
        assert await store.heads([*ids, *ids[:3], "none"]) == {h.saga_id: h for h in heads}
        assert await store.heads([]) == {}

    async def test_own_copies_of_heads(self, store: ProjectionStore) -> None:
        head = head_of(history("order-17"))
        await store.commit(Projection(Checkpoint(0, 1), (head,)), expected=0)
        head.context["sku"] = '"changed"'
        given = (await store.heads(["order-17"]))["order-17"]
        given.context["sku"] = '"changed"'
        given.steps.clear()
        assert await store.heads(["order-17"]) == {"order-17": head_of(history("order-17"))}

    # --- lists

    async def test_summaries_come_newest_start_first_by_status_and_name(
        self, store: ProjectionStore
    ) -> None:
        heads = [
            head_of(history("b", began=NOON + 2)),
            head_of(history("a", began=NOON + 2)),
            head_of(history("c", declined_facts(), began=NOON + 1)),
            head_of(history("d", saga_name="trip\0", began=NOON)[:3]),
        ]
        await store.commit(Projection(Checkpoint(0, 1), tuple(heads)), expected=0)

        async def ids(**asked: object) -> list[str]:
            found = await store.summaries(**asked)  # type: ignore[arg-type]
            return [summary.saga_id for summary in found]

        assert await ids() == ["a", "b", "c", "d"]
        assert await ids(limit=2) == ["a", "b"]
        assert await ids(limit=2, offset=2) == ["c", "d"]
        assert await ids(offset=9) == []
        assert await ids(after=(NOON + 2, "a")) == ["b", "c", "d"]
        assert await ids(after=(NOON + 2, "b"), limit=1) == ["c"]
        assert await ids(after=(NOON + 2, "a"), limit=1, offset=1) == ["c"]
        assert await ids(after=(NOON + 1, "c"), status="completed") == []
        assert await ids(after=(NOON + 2, "a"), status="executing", saga_name="trip\0") == ["d"]
        assert await ids(after=(NOON + 1, "gone")) == ["d"], "whether it is there or not"
        assert await ids(after=(NOON, "d")) == []
        assert await ids(status="completed") == ["a", "b"]
        assert await ids(status="executing", saga_name="trip\0") == ["d"]
        assert await ids(status="completed", saga_name="trip\0") == []
        assert await ids(saga_name="order", limit=1, offset=1) == ["b"]
        assert await store.count_by_status() == {"completed": 2, "rolled_back": 1, "executing": 1}

    # --- starts that wait

    async def test_a_start_that_waits_is_in_lists_and_counts_and_is_no_saga_yet(
        self, store: ProjectionStore
    ) -> None:
        waiting = tuple(asked_for(saga_id, began=NOON + n) for n, saga_id in enumerate(ODD_IDS))
        await store.commit(Projection(Checkpoint(0, 1), waiting=waiting), expected=0)
        listed = await store.summaries(status="pending")
        assert [summary.saga_id for summary in listed] == list(reversed(ODD_IDS))
        behind = await store.summaries(after=listed[0].place)
        assert [summary.saga_id for summary in behind] == list(reversed(ODD_IDS))[1:]
        assert {(summary.saga_name, summary.sequence) for summary in listed} == {("order", 0)}
        assert await store.count_by_status() == {"pending": len(ODD_IDS)}
        assert await store.heads(ODD_IDS) == {}
        assert await store.count_by_definition() == ()
        assert await store.forget(ODD_IDS[0]) == 1
        assert await store.count_by_status() == {"pending": len(ODD_IDS) - 1}

    async def test_once_it_has_begun_it_is_the_saga(self, store: ProjectionStore) -> None:
        heads = [head_of(history("a")), head_of(history("b"))]
        first = Projection(Checkpoint(0, 1), (heads[0],), waiting=(asked_for("a"), asked_for("b")))
        await store.commit(first, expected=0)
        await store.commit(Projection(Checkpoint(0, 2), (heads[1],)), expected=1)
        again = Projection(Checkpoint(0, 3), waiting=(asked_for("a"), asked_for("b")))
        await store.commit(again, expected=2)
        assert await store.heads(["a", "b"]) == {"a": heads[0], "b": heads[1]}
        assert await store.count_by_status() == {"completed": 2}

    async def test_a_refused_start_goes_out_of_the_lists_and_nothing_else_does(
        self, store: ProjectionStore
    ) -> None:
        begun = head_of(history("d"))
        begun.cause = "asks for d"
        waiting = tuple(map(asked_for, ("a", "b\0", "c")))
        await store.commit(Projection(Checkpoint(0, 1), (begun,), waiting=waiting), expected=0)
        refused = (
            ("a", "asks for something else"),
            ("b\0", "asks for b\0"),
            ("d", "asks for d"),
            ("nobody", "asks for nobody"),
        )
        await store.commit(Projection(Checkpoint(0, 2), refused=refused), expected=1)
        assert [summary.saga_id for summary in await store.summaries()] == ["a", "c", "d"]
        # Refused, and asked for again by somebody else.
        other = asked_for("a")
        other.cause = "asks again"
        both = Projection(Checkpoint(0, 3), refused=(("a", "asks for a"),), waiting=(other,))
        await store.commit(both, expected=2)
        await store.commit(Projection(Checkpoint(0, 4), refused=refused[:1]), expected=3)
        assert await store.count_by_status() == {"pending": 2, "completed": 1}

    async def test_sagas_are_counted_by_definition(self, store: ProjectionStore) -> None:
        heads = [head_of(history(saga_id)) for saga_id in ("a", "b", "c", "d")]
        heads[2].saga_name = heads[3].saga_name = "trip\0" * 300
        heads[3].definition, heads[3].graph = "f00", '{"steps":[]}'
        await store.commit(Projection(Checkpoint(0, 1), tuple(heads)), expected=0)
        order = heads[0]
        assert await store.count_by_definition() == (
            DefinitionCount("order", order.definition, "completed", 2, order.graph),
            DefinitionCount("trip\0" * 300, order.definition, "completed", 1, order.graph),
            DefinitionCount("trip\0" * 300, "f00", "completed", 1, '{"steps":[]}'),
        )

    async def test_a_checkpoint_is_kept_whole(self, store: ProjectionStore) -> None:
        first = Checkpoint(0, 3, "2/order-17\0/\\", "orders\0/1767261600000000")
        await store.commit(Projection(first), expected=0)
        assert await store.checkpoint(0) == first
        second = Checkpoint(0, 4, "3/x", "trips/1767261600000001")
        await store.commit(Projection(second), expected=3)
        other = await self.another(store)
        assert await other.checkpoint(0) == second
        await other.close()

    async def test_a_summary_says_what_the_head_says(self, store: ProjectionStore) -> None:
        head = head_of(history("order-17", declined_facts()))
        head.definition, head.parent_saga_id = "f00", "order-16"
        head.root_saga_id, head.replay_id, head.recorded = "order-15", "r-1", True
        head.error_message = "no money\0"
        await store.commit(Projection(Checkpoint(0, 1), (head,)), expected=0)
        (summary,) = await store.summaries()
        assert msgspec.structs.asdict(summary) == {
            "saga_id": "order-17",
            "saga_name": "order",
            "status": "rolled_back",
            "sequence": 9,
            "started_at": NOON,
            "updated_at": NOON + 8 * SECOND,
            "ended_at": NOON + 8 * SECOND,
            "error": "Declined: no money\0",
            "definition": "f00",
            "parent_saga_id": "order-16",
            "root_saga_id": "order-15",
            "replay_id": "r-1",
            "recorded": True,
        }

    # --- parked and rejected

    async def test_parked_records_come_by_place_until_they_are_taken_back(
        self, store: ProjectionStore
    ) -> None:
        aside = (parked(2), parked(10), parked(11, "order-18"), parked(1, "order-19", 1))
        await store.commit(Projection(Checkpoint(0, 12), parked=aside[:3]), expected=0)
        await store.commit(Projection(Checkpoint(1, 2), parked=aside[3:]), expected=0)
        assert await store.parked() == aside
        assert await store.parked(limit=2) == aside[:2]
        assert await store.parked_of(0, "order-17") == aside[:2]
        assert await store.parked_of(1, "order-17") == ()
        assert await store.parked_sagas(1) == {"order-19"}
        again = Projection(Checkpoint(0, 12), unparked=("order-17",), parked=(parked(10),))
        await store.commit(again, expected=12)
        assert await store.parked() == aside[1:]

    async def test_rejected_events_are_added_up_by_cause(self, store: ProjectionStore) -> None:
        await store.commit(Projection(Checkpoint(0, 1), rejected={"gap": 2}), expected=0)
        counts = {"gap": 3, "duplicate": 1}
        await store.commit(Projection(Checkpoint(0, 2), rejected=counts), expected=1)
        assert await store.rejected() == {"gap": 5, "duplicate": 1}

    # --- replays

    async def test_replays_come_by_original_newest_first(self, store: ProjectionStore) -> None:
        entries = [replay_entry(f"r-{n}", created_at=NOON + n) for n in range(5)]
        await store.commit(Projection(Checkpoint(0, 1), replays=tuple(entries)), expected=0)
        await store.save_replay(replay_entry("q-1", "order-18"))
        assert await store.replays("order-17") == tuple(entries[::-1])
        assert await store.replays("order-17", limit=2) == (entries[4], entries[3])
        assert await store.replays("order-18") == (replay_entry("q-1", "order-18"),)
        assert await store.replay("r-3") == entries[3]

    async def test_what_partitions_say_of_one_replay_is_merged_in_any_order(
        self, store: ProjectionStore
    ) -> None:
        for name in ("forth", "back"):
            begun = replay_entry(name, created_at=NOON)
            ended = replay_entry(
                name,
                overrides="",
                reason="",
                status="failed",
                created_at=NOON + 5,
                completed_at=NOON + 9,
                error_message="no money\0",
            )
            parts = [begun, ended] if name == "forth" else [ended, begun]
            for part in parts:
                await store.save_replay(part)
            merged = await store.replay(name)
            assert merged == merge_replays(begun, ended)
            assert merged is not None
            assert (merged.status, merged.created_at, merged.reason) == ("failed", NOON, "mended")

    async def test_many_projectors_may_speak_of_one_replay_at_once(
        self, store: ProjectionStore
    ) -> None:
        ends = [replay_entry("r-1", status="success", completed_at=NOON + 50 - n) for n in range(8)]
        batches = [Projection(Checkpoint(n, 1), replays=(end,)) for n, end in enumerate(ends)]
        await asyncio.gather(*(store.commit(batch, expected=0) for batch in batches))
        assert await store.replay("r-1") == ends[-1]

    # --- store = fold

    @pytest.mark.parametrize("seed", range(5))
    async def test_in_any_batches_the_store_is_the_fold(
        self, store: ProjectionStore, seed: int
    ) -> None:
        chosen = random.Random(seed)
        queues = {f"order-{n}": list(history(f"order-{n}")) for n in range(7)}
        log: list[Event] = []
        while queues:
            saga_id = chosen.choice(list(queues))
            log.append(queues[saga_id].pop(0))
            if not queues[saga_id]:
                del queues[saga_id]
        place = 0
        while place < len(log):
            upto = min(len(log), place + chosen.randint(1, 9))
            batch = log[place:upto]
            ids = dict.fromkeys(event.saga_id for event in batch)
            heads = tuple(head_of(ev for ev in log[:upto] if ev.saga_id == sid) for sid in ids)
            rows = tuple(ArchivedEvent(ev.sequence, place + n, ev) for n, ev in enumerate(batch))
            await store.commit(Projection(Checkpoint(0, upto), heads, rows), expected=place)
            place = upto
        for n in range(7):
            events = history(f"order-{n}")
            assert await store.heads([f"order-{n}"]) == {f"order-{n}": head_of(events)}
            assert tuple(a.event for a in await store.archived(f"order-{n}")) == events

    # --- opening, closing, forgetting

    async def test_a_store_may_be_opened_and_closed_twice(self, store: ProjectionStore) -> None:
        other = await self.another(store)
        await other.open()
        await other.close()
        await other.close()

    async def test_reset_forgets_what_a_rebuild_makes_anew(self, store: ProjectionStore) -> None:
        batch = msgspec.structs.replace(
            projected(history("order-17")),
            snapshots=(snapshot_row("s-1"),),
            parked=(parked(40),),
            rejected={"gap": 1},
        )
        await store.commit(batch, expected=0)
        by_hand = snapshot_row("s-2", fold_version=0)
        await store.save_snapshot(by_hand)
        await store.reset()
        assert await store.checkpoint(0) is None
        assert await store.heads(["order-17"]) == {}
        assert await store.archived("order-17") == ()
        assert await store.summaries() == ()
        assert await store.parked() == ()
        assert await store.rejected() == {}
        assert await store.snapshots("order-17") == (by_hand,)
        await store.commit(batch, expected=0)
        assert await store.snapshots("order-17") == (*batch.snapshots, by_hand)
