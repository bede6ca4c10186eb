"""The projector: folds the log into a store, a batch at a time, each with its checkpoint.

What it keeps can be dropped and made again. Nothing of it stands in the way of a saga: while the
store is down the projector waits, reads no further, and loses nothing.

Law (store = fold): after any crash, at any offset, what is kept is the fold of the log before it.
Law (one projector): of two at one partition, one commits; the other steps back, says so, reloads.
Law (a poison record parks its saga): the saga's later events are set aside too, in their order;
all other sagas go on. `drive` folds them once the cause is gone.
Source: DESIGN.md §6.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

from msgspec import Struct

from sagaz_es.core.snapshot import DEFAULT_POLICY, SnapshotPolicy
from sagaz_es.errors import (
    CheckpointMoved,
    HistoryGone,
    LogReplaced,
    LogTruncated,
    StorageFailed,
)
from sagaz_es.ports import (
    Checkpoint,
    Clock,
    EventLog,
    ParkedRecord,
    Projection,
    ProjectionStore,
    Record,
)
from sagaz_es.reading.projection import (
    BatchFold,
    Sealer,
    identity_of,
    origin_of,
    verify_checkpoint,
)

logger = logging.getLogger("sagaz_es.projector")
T = TypeVar("T")

WAIT_S = 1.0
"""One long poll. Short, so that a partition that is given up is soon left."""

AWAY_S = 1.0
"""Who has not read for longer looks whether the record before its place is still that: the log may
have lost its tail, and have grown beyond it again."""

BACKOFF_S, MAX_BACKOFF_S = 0.05, 1.0
"""The first wait for a store that failed is twice that; it doubles. Not for long: a store that was
away for a minute is not to be found back only seconds later."""

BUSY, MOST_LINGERS = 50, 5
"""A batch of so many records makes the next wait twice as long, and so on up to five times."""

MAX_BATCH_BYTES = 8_000_000
"""Of a batch's records; a larger one makes the next batch smaller."""

HANDED_OVER, HAND_OVER_S = 2, 60.0
"""So often within so many seconds a projector of a partition may step back before that is an error:
whoever hands a partition over commits the last of it beside whoever takes it."""

SLICE = 250
"""Records folded at a stretch, about a millisecond; then whatever else the loop has goes first."""


class PartitionStatus(Struct, frozen=True, gc=False):
    """How far the projector is with one partition."""

    partition: int
    next_offset: int
    log_end: int
    lag: int


class _GivenUp(TimeoutError):
    """Whoever projected a partition has stopped before the record came."""


class _Lane:
    """One partition as the projector sees it: its place, the heads it has at hand, who waits."""

    def __init__(self, partition: int, limit: int) -> None:
        self.partition = partition
        self.limit = limit
        self.lock = asyncio.Lock()  # one batch at a time
        self.loaded = False
        self.running = False
        self.origin = ""  # which log this is
        self.stored = 0  # the checkpoint that the next commit follows; 0: there is none
        self.checkpoint = Checkpoint(partition, 0)
        self.looked_at = 0.0  # when the log was last found to be what it was, by the loop's clock
        self.batch: BatchFold | None = None
        self.hurry = asyncio.Event()
        self.stepped_back: list[float] = []  # when, lately, by the loop's clock
        self.waiting: list[tuple[int, asyncio.Future[None]]] = []

    def unload(self) -> None:
        """Forget what is ahead of the store; the next batch begins at its checkpoint."""
        self.loaded = False
        self.batch = None

    def moved_to(self, checkpoint: Checkpoint, stored: int) -> None:
        self.checkpoint, self.stored = checkpoint, stored
        still: list[tuple[int, asyncio.Future[None]]] = []
        for offset, future in self.waiting:
            if offset >= checkpoint.next_offset:
                still.append((offset, future))
            elif not future.done():
                future.set_result(None)
        self.waiting = still
        if not still:
            self.hurry.clear()

    def given_up(self) -> None:
        """Nobody projects this partition any more: who waits must know."""
        for _, future in self.waiting:
            if not future.done():
                future.set_exception(_GivenUp(f"partition {self.partition} is projected no more"))
        self.waiting = []
        self.hurry.clear()


class Projector:
    """Projects partitions of a log into a store, in this process or in one of its own.

    `linger_s`: how long records may gather after a batch that was not full; `wait_for` ends it.
    `on_parked` is told each record that is set aside, `on_failure` each failure of the store.
    `cached_heads`: unfinished sagas that are kept at hand, in all partitions.
    `seal(key_id, data)` encrypts snapshots whose policy names a key; without it they are not kept.
    `counters`: records, accepted, rejected, snapshots, parked, not_captured, store_failures,
    stepped_back.
    """

    def __init__(
        self,
        log: EventLog,
        store: ProjectionStore,
        *,
        clock: Clock | None = None,
        batch: int = 1000,
        cached_heads: int = 2_000,
        linger_s: float = 0.1,
        default_policy: SnapshotPolicy = DEFAULT_POLICY,
        on_parked: Callable[[ParkedRecord], None] | None = None,
        on_failure: Callable[[Exception], None] | None = None,
        seal: Sealer | None = None,
    ) -> None:
        self._log, self._store, self._clock = log, store, clock
        self._batch, self._cached_heads, self._linger_s = batch, cached_heads, linger_s
        self._default_policy, self._seal = default_policy, seal
        self._on_parked, self._on_failure = on_parked, on_failure
        self._lanes: dict[int, _Lane] = {}
        self.counters: Counter[str] = Counter()

    # --- running

    async def run(self, partitions: Iterable[int] | None = None) -> None:
        """Project these partitions, or all, until cancelled.

        Raises LogTruncated, LogReplaced, HistoryGone: what it went on to keep would be no fold.
        """
        chosen = range(self._log.partitions) if partitions is None else partitions
        async with asyncio.TaskGroup() as group:
            for partition in chosen:
                group.create_task(self.run_partition(partition), name=f"projector {partition}")

    async def run_partition(self, partition: int) -> None:
        """Project one partition until cancelled; cancelling is safe at any moment."""
        lane = self._lane(partition)
        lane.running = True
        try:
            async with lane.lock:
                lane.unload()  # somebody else may have projected it since it was ours
            while True:
                try:
                    taken = await self._patiently(lambda: self._step(lane, WAIT_S))
                except CheckpointMoved as moved:
                    self._step_back(lane, moved)
                    await asyncio.sleep(1.0)
                    continue
                if taken < lane.limit and not lane.waiting:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._linger(taken)):
                            await lane.hurry.wait()
        except (LogTruncated, LogReplaced, HistoryGone) as error:
            logger.critical("partition %d is not projected any more: %s", partition, error)
            lane.unload()  # whoever projects it again begins at the store's checkpoint
            raise
        finally:
            lane.running = False
            lane.given_up()

    def _linger(self, taken: int) -> float:
        """How long records may gather: the busier it is the longer, so that a saga's events come
        together and its head is written once instead of with each of its steps."""
        return min(self._linger_s * (1 + taken / BUSY), self._linger_s * MOST_LINGERS)

    async def run_until(
        self, ends: Mapping[int, int] | None = None, *, timeout_s: float | None = None
    ) -> None:
        """Project up to these offsets (not including them), or to where the log ends now.

        Raises TimeoutError. Works beside `run` as well as without it.
        """
        async with asyncio.timeout(timeout_s):
            if ends is None:
                bounds = {p: await self._log.bounds(p) for p in range(self._log.partitions)}
                ends = {partition: bound.end for partition, bound in bounds.items()}
            await asyncio.gather(*(self._run_until(p, end) for p, end in ends.items()))

    async def catch_up(self) -> None:
        """Project what stands in the log now."""
        await self.run_until()

    async def _run_until(self, partition: int, end: int) -> None:
        lane = self._lane(partition)
        while True:
            async with lane.lock:
                await self._patiently(lambda: self._load(lane))
            if lane.checkpoint.next_offset >= end:
                return
            if lane.running:
                with contextlib.suppress(_GivenUp):
                    await self.wait_for(partition, end - 1)
                continue
            try:
                await self._patiently(lambda: self._step(lane, 0.1))
            except CheckpointMoved as moved:
                self._step_back(lane, moved)

    async def wait_for(self, partition: int, offset: int, timeout_s: float | None = None) -> None:
        """Until the record at `offset` is projected by whoever runs this partition here.

        Raises TimeoutError, also when that one stops.
        """
        lane = self._lane(partition)
        if lane.loaded and lane.checkpoint.next_offset > offset:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane.waiting.append((offset, future))
        lane.hurry.set()
        try:
            async with asyncio.timeout(timeout_s):
                await future
        finally:
            with contextlib.suppress(ValueError):  # resolved: no longer in the list
                lane.waiting.remove((offset, future))

    async def status(self) -> tuple[PartitionStatus, ...]:
        """How far each partition is; asks the store for those that are not projected here."""
        found = []
        for partition in range(self._log.partitions):
            lane = self._lanes.get(partition)
            if lane is not None and lane.loaded:
                next_offset = lane.checkpoint.next_offset
            else:
                checkpoint = await self._store.checkpoint(partition)
                next_offset = checkpoint.next_offset if checkpoint is not None else 0
            bounds = await self._log.bounds(partition)
            next_offset = max(next_offset, bounds.start)
            lag = max(0, bounds.end - next_offset)
            found.append(PartitionStatus(partition, next_offset, bounds.end, lag))
        return tuple(found)

    async def drive(self, saga_id: str, *, pass_over_undecodable: bool = False) -> int:
        """Fold what was set aside of one saga; how many records that were.

        What cannot be folded yet stays aside, with all that follows it. `pass_over_undecodable` is
        for bytes that were never ours: if they were, the fold rejects what follows as a gap.
        """
        partition = self._log.partition_of(saga_id)
        lane = self._lane(partition)
        async with lane.lock:
            if not lane.loaded:
                await self._load(lane)
            aside = {p.offset: p for p in await self._store.parked_of(partition, saga_id)}
            if not aside:
                return 0
            found = await self._log.read_saga(saga_id, min(aside))
            records = [record for record in found if record.offset in aside]
            if len(records) < len(aside):
                missing = min(aside.keys() - {record.offset for record in records})
                raise HistoryGone(f"saga {saga_id!r}", f"offset {missing}", "later offsets")
            batch = self._batch_of(lane)
            batch.parked_sagas.discard(saga_id)
            try:
                await self._know_heads(batch, records)
                batch.take(records, pass_over_undecodable=pass_over_undecodable)
                await self._repair(batch)
                projection = batch.projection(lane.checkpoint, unparked=(saga_id,))
                await self._store.commit(projection, expected=lane.stored)
            except BaseException:
                lane.unload()
                raise
            self._committed(lane, batch, projection, len(records))
            return len(records) - len(projection.parked)

    # --- one batch

    def _lane(self, partition: int) -> _Lane:
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane(partition, self._batch)
        return lane

    async def _load(self, lane: _Lane) -> None:
        """Begin at the store's checkpoint, once the log is seen to be the one it was made from."""
        if lane.loaded:
            return
        partition = lane.partition
        checkpoint = await self._store.checkpoint(partition)
        stored = checkpoint.next_offset if checkpoint is not None else 0
        if checkpoint is None:
            start = (await self._log.bounds(partition)).start
            if start:
                logger.warning("partition %d begins at %d: older sagas are gone", partition, start)
            checkpoint = Checkpoint(partition, start)
        await verify_checkpoint(self._log, checkpoint, self._store.name)
        lane.origin = checkpoint.log or await origin_of(self._log, partition)
        parked = await self._store.parked_sagas(partition)
        lane.batch = BatchFold(
            partition, set(parked), self._now, default_policy=self._default_policy, seal=self._seal
        )
        lane.loaded, lane.looked_at = True, asyncio.get_running_loop().time()
        lane.moved_to(checkpoint, stored)

    async def _step(self, lane: _Lane, wait_s: float) -> int:
        """Project one batch; how many records it had."""
        if not lane.loaded:
            async with lane.lock:
                await self._load(lane)
        offset, clock = lane.checkpoint.next_offset, asyncio.get_running_loop().time
        if clock() - lane.looked_at > AWAY_S:
            await verify_checkpoint(self._log, lane.checkpoint, self._store.name)
        chunk = await self._log.read(lane.partition, offset, limit=lane.limit, wait_s=wait_s)
        lane.looked_at = clock()
        if chunk.next_offset == offset:
            return 0
        async with lane.lock:
            if not lane.loaded or lane.checkpoint.next_offset != offset:
                return 0  # somebody else projected it in the meantime
            await self._project(lane, chunk.records, chunk.next_offset)
        self._adapt(lane, chunk.records)
        return len(chunk.records)

    async def _project(self, lane: _Lane, records: tuple[Record, ...], next_offset: int) -> None:
        batch = self._batch_of(lane)
        last = identity_of(records[-1]) if records else lane.checkpoint.last_identity
        checkpoint = Checkpoint(lane.partition, next_offset, last, lane.origin)
        try:
            await self._know_heads(batch, records)
            for first in range(0, len(records), SLICE):
                if first:
                    await asyncio.sleep(0)
                batch.take(records[first : first + SLICE])
            await self._repair(batch)
            projection = batch.projection(checkpoint)
            await self._commit(lane, projection)
        except BaseException:
            lane.unload()  # the heads at hand are ahead of the store
            raise
        self._committed(lane, batch, projection, len(records))

    def _batch_of(self, lane: _Lane) -> BatchFold:
        assert lane.batch is not None, "loaded"
        return lane.batch

    async def _know_heads(self, batch: BatchFold, records: Iterable[Record]) -> None:
        missing = batch.missing(records)
        if missing:
            batch.heads.update(await self._patiently(lambda: self._store.heads(missing)))

    async def _repair(self, batch: BatchFold) -> None:
        """A fold that broke off left a head half way: make it anew from the store's."""
        if batch.broken:
            broken = tuple(batch.broken)
            batch.repair(await self._patiently(lambda: self._store.heads(broken)))

    async def _commit(self, lane: _Lane, projection: Projection) -> None:
        failures = 0
        while True:
            try:
                await self._store.commit(projection, expected=lane.stored)
                return
            except CheckpointMoved:
                # After a failure of unknown outcome it may be our own commit that stands.
                stands = failures and await self._store.checkpoint(lane.partition)
                if stands and stands == projection.checkpoint:
                    return
                raise
            except (StorageFailed, OSError) as error:
                failures += 1
                await self._wait_for_store(error, failures)

    def _committed(
        self, lane: _Lane, batch: BatchFold, projection: Projection, records: int
    ) -> None:
        self.counters["records"] += records
        self.counters["accepted"] += len(projection.archive)
        self.counters["rejected"] += sum(projection.rejected.values())
        self.counters["snapshots"] += len(projection.snapshots)
        self.counters["parked"] += len(projection.parked)
        self.counters["not_captured"] += batch.not_captured
        for parked in projection.parked:
            logger.error(
                "saga %r is set aside at offset %d of partition %d: %s",
                parked.saga_id,
                parked.offset,
                parked.partition,
                parked.reason,
            )
            if self._on_parked is not None:
                self._on_parked(parked)
        batch.settle(self._cached_heads // len(self._lanes))
        lane.moved_to(projection.checkpoint, projection.checkpoint.next_offset)

    def _adapt(self, lane: _Lane, records: tuple[Record, ...]) -> None:
        size = sum(len(record.value) for record in records)
        if size > MAX_BATCH_BYTES:
            lane.limit = max(16, len(records) * MAX_BATCH_BYTES // size)
        else:
            lane.limit = min(self._batch, lane.limit * 2)

    # --- trouble

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` gives, tried again until the store and the log answer."""
        failures = 0
        while True:
            try:
                return await call()
            except (StorageFailed, OSError) as error:
                failures += 1
                await self._wait_for_store(error, failures)

    async def _wait_for_store(self, error: Exception, failures: int) -> None:
        self.counters["store_failures"] += 1
        if failures == 1:
            logger.warning("the projector waits: %s", error)
        if self._on_failure is not None:
            self._on_failure(error)
        # Partitions that failed together do not all come back at one moment: each waits for
        # between half and all of it. (By a count and not by chance: a simulation is repeatable.)
        part = 0.5 + self.counters["store_failures"] * 0.618 % 0.5
        await asyncio.sleep(min(BACKOFF_S * 2 ** min(failures, 10), MAX_BACKOFF_S) * part)

    def _step_back(self, lane: _Lane, moved: CheckpointMoved) -> None:
        self.counters["stepped_back"] += 1
        now = asyncio.get_running_loop().time()
        lane.stepped_back = [at for at in lane.stepped_back if now - at < HAND_OVER_S]
        lane.stepped_back.append(now)
        often = len(lane.stepped_back) > HANDED_OVER
        logger.log(logging.ERROR if often else logging.INFO, "%s", moved)
        del lane.stepped_back[:-HANDED_OVER]

    def _now(self) -> int:
        return self._clock.now() if self._clock is not None else time.time_ns() // 1000
