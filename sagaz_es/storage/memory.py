"""ProjectionStore in memory: for tests and for `memory://`; the others are held to what it does."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator

from sagaz_es.core.state import SagaState
from sagaz_es.errors import CheckpointMoved
from sagaz_es.ports import (
    NOT_FOLDED,
    ArchivedEvent,
    BlobStore,
    Checkpoint,
    Clock,
    DefinitionCount,
    ParkedRecord,
    Projection,
    ReplayEntry,
    SnapshotReport,
    StoredSnapshot,
    Summary,
    merge_replays,
)
from sagaz_es.snapshots import Opener
from sagaz_es.storage.doubts import Doubts
from sagaz_es.storage.rows import now_of, summary_of
from sagaz_es.storage.seed import StoreSnapshotStorage


class MemoryProjectionStore:
    """ProjectionStore on dicts. What it holds ends with the process."""

    def __init__(self, *, clock: Clock | None = None, report: SnapshotReport | None = None) -> None:
        self.name = "memory://"
        self.doubts = Doubts(report)
        self._clock = clock
        self._snapshots = _Snapshots()
        self._replays: dict[str, ReplayEntry] = {}
        self._clear()

    def _clear(self) -> None:
        self._checkpoints: dict[int, Checkpoint] = {}
        self._heads: dict[str, SagaState] = {}
        self._archive: dict[str, list[ArchivedEvent]] = {}
        self._parked: dict[tuple[int, int], ParkedRecord] = {}
        self._rejected: dict[str, int] = {}

    async def open(self) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """What is kept stays: another engine of this process may go on with it."""

    async def checkpoint(self, partition: int) -> Checkpoint | None:
        return self._checkpoints.get(partition)

    async def commit(self, projection: Projection, *, expected: int) -> None:
        checkpoint = projection.checkpoint
        before = self._checkpoints.get(checkpoint.partition)
        found = before.next_offset if before is not None else 0
        if found != expected:
            raise CheckpointMoved(checkpoint.partition, expected, found)
        heads = [head.copy() for head in projection.heads]
        waiting = [start.copy() for start in projection.waiting]
        rejected = dict(projection.rejected)
        # From here on nothing can fail.
        for saga_id, request_id in projection.refused:
            start = self._heads.get(saga_id)
            if start is not None and not start.sequence and start.cause == request_id:
                del self._heads[saga_id]
        for start in waiting:
            self._heads.setdefault(start.saga_id, start)
        for head in heads:
            self._heads[head.saga_id] = head
        for archived in projection.archive:
            events = self._archive.setdefault(archived.event.saga_id, [])
            if not events or archived.sequence > events[-1].sequence:
                events.append(archived)
        for snapshot in projection.snapshots:
            self._snapshots.add(snapshot, replace=False)
        for saga_id, number in projection.keep_snapshots.items():
            self._snapshots.keep(saga_id, number)
        for entry in projection.replays:
            self._merge(entry)
        for saga_id in projection.unparked:
            self._unpark(saga_id, checkpoint.partition)
        for parked in projection.parked:
            self._parked.setdefault((parked.partition, parked.offset), parked)
        for cause, count in rejected.items():
            self._rejected[cause] = self._rejected.get(cause, 0) + count
        self._checkpoints[checkpoint.partition] = checkpoint

    async def heads(self, saga_ids: Iterable[str]) -> dict[str, SagaState]:
        found = ((saga_id, self._heads.get(saga_id)) for saga_id in saga_ids)
        return {
            saga_id: head.copy() for saga_id, head in found if head is not None and head.sequence
        }

    async def archived(
        self, saga_id: str, *, after: int = 0, upto: int | None = None, limit: int = 1000
    ) -> tuple[ArchivedEvent, ...]:
        events = self._archive.get(saga_id, [])
        first = bisect_right(events, after, key=_sequence)
        last = len(events) if upto is None else bisect_right(events, upto, key=_sequence)
        return tuple(events[first : min(last, first + limit)])

    async def summaries(
        self,
        *,
        status: str | None = None,
        saga_name: str | None = None,
        limit: int = 100,
        offset: int = 0,
        after: tuple[int, str] | None = None,
    ) -> tuple[Summary, ...]:
        chosen = [
            head
            for head in self._heads.values()
            if (status is None or head.status == status)
            and (saga_name is None or head.saga_name == saga_name)
        ]
        chosen.sort(key=_place)
        if after is not None:
            behind = (-after[0], after[1])
            chosen = [head for head in chosen if _place(head) > behind]
        return tuple(summary_of(head) for head in chosen[offset : offset + limit])

    async def count_by_status(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for head in self._heads.values():
            counts[head.status] = counts.get(head.status, 0) + 1
        return counts

    async def count_by_definition(self) -> tuple[DefinitionCount, ...]:
        counts: dict[tuple[str, str, str], tuple[int, str]] = {}
        for head in filter(lambda head: head.sequence, self._heads.values()):
            group = (head.saga_name, head.definition, head.status)
            counts[group] = (counts.get(group, (0, ""))[0] + 1, head.graph)
        return tuple(
            DefinitionCount(*group, count, graph)
            for group, (count, graph) in sorted(counts.items())
        )

    async def parked(self, limit: int = 100) -> tuple[ParkedRecord, ...]:
        return tuple(self._parked[place] for place in sorted(self._parked)[:limit])

    async def parked_sagas(self, partition: int) -> frozenset[str]:
        return frozenset(p.saga_id for p in self._parked.values() if p.partition == partition)

    async def parked_of(self, partition: int, saga_id: str) -> tuple[ParkedRecord, ...]:
        return tuple(
            self._parked[place]
            for place in sorted(self._parked)
            if place[0] == partition and self._parked[place].saga_id == saga_id
        )

    async def rejected(self) -> dict[str, int]:
        return dict(self._rejected)

    # --- snapshots

    async def nearest_snapshot(
        self, saga_id: str, *, sequence: int | None = None, at: int | None = None
    ) -> StoredSnapshot | None:
        return self.doubts.first_to_fold_from(
            snapshot
            for snapshot in self._live(saga_id)
            if (sequence is None or snapshot.sequence <= sequence)
            and (at is None or snapshot.occurred_at <= at)
        )

    async def snapshot(self, snapshot_id: str) -> StoredSnapshot | None:
        snapshot = self._snapshots.get(snapshot_id)
        if snapshot is None or _expired(snapshot, now_of(self._clock)):
            return None
        return next(iter(self.doubts.sound((snapshot,))), None)

    async def snapshots(
        self,
        saga_id: str,
        *,
        before: int | None = None,
        step: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> tuple[StoredSnapshot, ...]:
        chosen = list(self._listed(saga_id, before, step))
        return self.doubts.sound(chosen[offset : offset + limit])

    async def latest_snapshot(
        self, saga_id: str, *, before: int | None = None, step: str | None = None
    ) -> StoredSnapshot | None:
        return self.doubts.first_sound(self._listed(saga_id, before, step))

    def _listed(
        self, saga_id: str, before: int | None, step: str | None
    ) -> Iterator[StoredSnapshot]:
        return (
            snapshot
            for snapshot in self._live(saga_id)
            if (before is None or snapshot.created_at <= before)
            and (step is None or snapshot.step == step)
        )

    async def save_snapshot(self, snapshot: StoredSnapshot) -> None:
        self._snapshots.add(snapshot, replace=True)

    async def delete_snapshot(self, snapshot_id: str) -> bool:
        snapshot = self._snapshots.get(snapshot_id)
        if snapshot is None or _expired(snapshot, now_of(self._clock)):
            return False
        return self._snapshots.drop(snapshot_id)

    async def delete_expired_snapshots(self) -> int:
        now = now_of(self._clock)
        expired = [s.snapshot_id for s in self._snapshots.all() if _expired(s, now)]
        return sum(self._snapshots.drop(snapshot_id) for snapshot_id in expired)

    def _live(self, saga_id: str) -> Iterator[StoredSnapshot]:
        now = now_of(self._clock)
        return (s for s in self._snapshots.newest_first(saga_id) if not _expired(s, now))

    # --- replays

    async def replays(self, saga_id: str, limit: int = 100) -> tuple[ReplayEntry, ...]:
        entries = [entry for entry in self._replays.values() if entry.original_saga_id == saga_id]
        entries.sort(key=lambda entry: (-entry.created_at, entry.replay_id))
        return tuple(entries[:limit])

    async def replay(self, replay_id: str) -> ReplayEntry | None:
        return self._replays.get(replay_id)

    async def save_replay(self, entry: ReplayEntry) -> None:
        self._merge(entry)

    def _merge(self, entry: ReplayEntry) -> None:
        known = self._replays.get(entry.replay_id)
        self._replays[entry.replay_id] = entry if known is None else merge_replays(known, entry)

    # --- cleaning

    async def forget(self, saga_id: str) -> int:
        snapshots = [s.snapshot_id for s in self._snapshots.newest_first(saga_id)]
        for snapshot_id in snapshots:
            self._snapshots.drop(snapshot_id)
        replays = [r.replay_id for r in self._replays.values() if r.original_saga_id == saga_id]
        for replay_id in replays:
            del self._replays[replay_id]
        heads = self._heads.pop(saga_id, None) is not None
        archived = self._archive.pop(saga_id, [])
        parked = self._unpark(saga_id)
        return len(snapshots) + len(replays) + heads + len(archived) + parked

    def _unpark(self, saga_id: str, partition: int | None = None) -> int:
        places = [
            place
            for place, parked in self._parked.items()
            if parked.saga_id == saga_id and partition in (None, place[0])
        ]
        for place in places:
            del self._parked[place]
        return len(places)

    async def reset(self) -> None:
        self._clear()
        for snapshot in self._snapshots.all():
            if snapshot.fold_version != NOT_FOLDED:
                self._snapshots.drop(snapshot.snapshot_id)


def _sequence(archived: ArchivedEvent) -> int:
    return archived.sequence


def _expired(snapshot: StoredSnapshot, now: int) -> bool:
    return 0 < snapshot.retention_until <= now


Place = tuple[int, int, int]
"""Sequence, time, order of saving."""


class _Snapshots:
    """Snapshots by id, and of each saga in order."""

    def __init__(self) -> None:
        self._by_id: dict[str, tuple[StoredSnapshot, Place]] = {}
        self._of_saga: dict[str, list[tuple[Place, str]]] = {}
        self._saved = 0

    def get(self, snapshot_id: str) -> StoredSnapshot | None:
        found = self._by_id.get(snapshot_id)
        return found[0] if found is not None else None

    def all(self) -> list[StoredSnapshot]:
        return [snapshot for snapshot, _ in self._by_id.values()]

    def newest_first(self, saga_id: str) -> list[StoredSnapshot]:
        return [self._by_id[key][0] for _, key in reversed(self._of_saga.get(saga_id, []))]

    def add(self, snapshot: StoredSnapshot, *, replace: bool) -> None:
        if snapshot.snapshot_id in self._by_id:
            if not replace:
                return
            self.drop(snapshot.snapshot_id)
        self._saved += 1
        place = (snapshot.sequence, snapshot.created_at, self._saved)
        self._by_id[snapshot.snapshot_id] = (snapshot, place)
        insort(self._of_saga.setdefault(snapshot.saga_id, []), (place, snapshot.snapshot_id))

    def drop(self, snapshot_id: str) -> bool:
        found = self._by_id.pop(snapshot_id, None)
        if found is None:
            return False
        snapshot, place = found
        places = self._of_saga[snapshot.saga_id]
        places.remove((place, snapshot_id))
        if not places:
            del self._of_saga[snapshot.saga_id]
        return True

    def keep(self, saga_id: str, number: int) -> None:
        captured = [s for s in self.newest_first(saga_id) if s.fold_version != NOT_FOLDED]
        for snapshot in captured[number:]:
            self.drop(snapshot.snapshot_id)


class InMemorySnapshotStorage(StoreSnapshotStorage[MemoryProjectionStore]):
    """SnapshotStorage in memory: what it holds ends with the process."""

    def __init__(
        self,
        store: MemoryProjectionStore | None = None,
        *,
        blobs: BlobStore | None = None,
        opener: Opener | None = None,
    ) -> None:
        super().__init__(store or MemoryProjectionStore(), blobs=blobs, opener=opener)


def _place(head: SagaState) -> tuple[int, str]:
    """Its place in lists."""
    return -head.started_at, head.saga_id
