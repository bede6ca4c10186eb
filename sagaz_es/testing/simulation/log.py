"""EventLog and Membership of one simulated process: every call passes a point where it may die."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from sagaz_es.core.events import Entry, Event, Request
from sagaz_es.errors import UndecodableRecord
from sagaz_es.log.checks import check_partition, check_position
from sagaz_es.log.partitioning import partition_of
from sagaz_es.ports import Bounds, Chunk, Membership, Rebalanced, Record
from sagaz_es.testing.simulation.broker import Broker
from sagaz_es.testing.simulation.points import caller
from sagaz_es.testing.simulation.processes import Process

T = TypeVar("T")

PATIENCE = 20
"""A read waits that much longer than it was told: asking by the second costs, and finds nothing."""


class SimulatedLog:
    """EventLog of one process on a Broker. Like Kafka's, it has no index of sagas."""

    def __init__(self, broker: Broker, process: Process) -> None:
        self.name = broker.name
        self._broker, self._process = broker, process
        self._random, self._loop = broker.random, broker.loop

    async def _past(self, point: str) -> None:
        """Come by a point; who dies there never goes on."""
        if not self._broker.points.reach(self._process, point):
            await self._loop.create_future()

    async def _call(self, point: str, work: Coroutine[Any, Any, T]) -> T:
        try:
            await self._past(f"{point}, before")
            answer = await work
        finally:
            work.close()
        await self._past(f"{point}, after")
        return answer

    async def open(self) -> None:
        await self._broker.travel(self._process, "open")

    async def close(self) -> None:
        """What is on its way may still land."""

    @property
    def partitions(self) -> int:
        return len(self._broker.partitions)

    def partition_of(self, saga_id: str) -> int:
        return partition_of(saga_id, len(self._broker.partitions))

    def append(self, partition: int, entries: Sequence[Entry]) -> Coroutine[Any, Any, int]:
        return self._append(f"{caller(2)}: log.append", partition, tuple(entries))

    async def _append(self, point: str, partition: int, entries: tuple[Entry, ...]) -> int:
        if not entries:
            raise ValueError("an append holds at least one entry")
        check_partition(partition, self.partitions)
        what = in_words(entries[-1])
        await self._past(f"{point}, before {what}")
        base = await self._broker.send(self._process, partition, entries)
        await self._past(f"{point}, after {what}")
        return base

    def append_raw(self, partition: int, key: str, value: bytes) -> Coroutine[Any, Any, int]:
        return self._call(f"{caller(2)}: log.append_raw", self._append_raw(partition, key, value))

    async def _append_raw(self, partition: int, key: str, value: bytes) -> int:
        from sagaz_es.codec.avro import AvroCodec

        check_partition(partition, self.partitions)
        await self._broker.travel(self._process, "append", partition)
        try:
            entry = AvroCodec().decode(value)
        except UndecodableRecord as error:
            self._broker.add_foreign(partition, key, value, str(error))
            return self._broker.partitions[partition].end - 1
        return self._broker.append(partition, [entry])

    def read(
        self, partition: int, offset: int, *, limit: int = 1000, wait_s: float = 0.0
    ) -> Coroutine[Any, Any, Chunk]:
        return self._call(f"{caller(2)}: log.read", self._read(partition, offset, limit, wait_s))

    async def _read(self, index: int, offset: int, limit: int, wait_s: float) -> Chunk:
        check_partition(index, self.partitions)
        broker = self._broker
        await broker.travel(self._process, "read", index)
        partition = broker.partitions[index]
        check_position(index, offset, partition.start, partition.end)
        if offset == partition.end and wait_s > 0:
            await self._wait(index, wait_s * PATIENCE)
            check_position(index, offset, partition.start, partition.end)
        if limit > 1 and broker.weather.short and self._random.random() < broker.weather.short:
            limit = self._random.randint(1, min(limit, 4))
        if self._process.cut or broker.is_down(index):
            return Chunk((), offset)
        records = tuple(partition.records[offset : offset + limit])
        return Chunk(records, offset + len(records))

    async def _wait(self, index: int, seconds: float) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        waiting = self._broker.partitions[index].waiting
        waiting[future] = None
        timer = self._loop.call_later(seconds, _done, future)
        try:
            await future
        finally:
            timer.cancel()
            self._broker.partitions[index].waiting.pop(future, None)

    def read_saga(
        self, saga_id: str, from_offset: int = 0
    ) -> Coroutine[Any, Any, tuple[Record, ...]]:
        return self._call(f"{caller(2)}: log.read_saga", self._read_saga(saga_id, from_offset))

    async def _read_saga(self, saga_id: str, from_offset: int) -> tuple[Record, ...]:
        index = self.partition_of(saga_id)
        await self._broker.travel(self._process, "read", index)
        partition = self._broker.partitions[index]
        check_position(index, max(from_offset, 0), partition.start, partition.end)
        records = partition.of_saga.get(saga_id, [])
        return tuple(record for record in records if record.offset >= from_offset)

    def bounds(self, partition: int) -> Coroutine[Any, Any, Bounds]:
        return self._call(f"{caller(2)}: log.bounds", self._bounds(partition))

    async def _bounds(self, index: int) -> Bounds:
        check_partition(index, self.partitions)
        await self._broker.travel(self._process, "bounds", index)
        partition = self._broker.partitions[index]
        return Bounds(partition.start, partition.end)

    def low_water_mark(self, partition: int, *, group: str = "") -> Coroutine[Any, Any, int]:
        return self._call(f"{caller(2)}: log.low_water_mark", self._mark(partition, group))

    async def _mark(self, index: int, group: str) -> int:
        check_partition(index, self.partitions)
        await self._broker.travel(self._process, "the mark")
        mark, _ = self._broker.group(group).marks[index]
        return max(mark, self._broker.partitions[index].start)

    def mark_note(self, partition: int, *, group: str = "") -> Coroutine[Any, Any, str]:
        return self._call(f"{caller(2)}: log.mark_note", self._note(partition, group))

    async def _note(self, index: int, group: str) -> str:
        check_partition(index, self.partitions)
        await self._broker.travel(self._process, "the mark")
        return self._broker.group(group).marks[index][1]

    def join(
        self, on_change: Rebalanced, *, instance_id: str | None = None, group: str = ""
    ) -> Coroutine[Any, Any, Membership]:
        return self._call(f"{caller(2)}: log.join", self._join(on_change, instance_id, group))

    async def _join(self, on_change: Rebalanced, instance_id: str | None, group: str) -> Membership:
        await self._broker.travel(self._process, "the group")
        joined = await self._broker.group(group).join(self._process, on_change, instance_id)
        return _Member(self, joined)

    def members(self, *, group: str = "") -> Coroutine[Any, Any, int]:
        return self._call(f"{caller(2)}: log.members", self._members(group))

    async def _members(self, group: str) -> int:
        await self._broker.travel(self._process, "the group")
        return len(self._broker.group(group))


class _Member:
    """Membership whose calls pass points, too."""

    def __init__(self, log: SimulatedLog, membership: Membership) -> None:
        self._log, self._membership = log, membership

    def leave(self, *, for_good: bool = False) -> Coroutine[Any, Any, None]:
        return self._log._call(f"{caller(2)}: membership.leave", self._leave(for_good))

    async def _leave(self, for_good: bool) -> None:
        await self._membership.leave(for_good=for_good)

    def commit_low_water_mark(
        self, partition: int, offset: int, note: str = ""
    ) -> Coroutine[Any, Any, None]:
        return self._log._call(
            f"{caller(2)}: membership.commit_low_water_mark", self._commit(partition, offset, note)
        )

    async def _commit(self, partition: int, offset: int, note: str) -> None:
        await self._log._broker.travel(self._log._process, "the mark")
        await self._membership.commit_low_water_mark(partition, offset, note)

    def predecessor_is_alive(self, partition: int) -> Coroutine[Any, Any, bool]:
        return self._log._call(
            f"{caller(2)}: membership.predecessor_is_alive", self._predecessor(partition)
        )

    async def _predecessor(self, partition: int) -> bool:
        return await self._membership.predecessor_is_alive(partition)


def in_words(entry: Entry) -> str:
    """`StepStarted`, `CancelRequested`: what a point calls an append."""
    return type(entry.fact if isinstance(entry, Event) else entry).__name__


def is_request(entry: Entry) -> bool:
    return isinstance(entry, Request)


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
