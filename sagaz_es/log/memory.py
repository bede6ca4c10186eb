"""EventLog in memory: for tests and for trying things out. What it holds ends with the process."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from sagaz_es.core.events import Entry, NamespaceCreated
from sagaz_es.errors import UndecodableRecord
from sagaz_es.log.checks import (
    MAX_VALUE_BYTES,
    check_partition,
    check_position,
    check_size,
    key_of,
)
from sagaz_es.log.memory_group import Group
from sagaz_es.log.partitioning import partition_of
from sagaz_es.log.waiting import Waiters
from sagaz_es.ports import Bounds, Chunk, Membership, Rebalanced, Record, Undecodable

if TYPE_CHECKING:
    from sagaz_es.codec.avro import AvroCodec


class MemoryEventLog:
    """EventLog on lists. Entries are kept as they are: a record has no bytes unless it was raw.

    Several engines of one process may share it, one event loop at a time.
    """

    indexed = True  # read_saga asks an index

    def __init__(self, partitions: int = 4, name: str = "memory://") -> None:
        self.name = name
        now = _now()
        self._partitions = [_Partition() for _ in range(partitions)]
        for number, partition in enumerate(self._partitions):
            first = NamespaceCreated(name.partition("://")[2], number, partitions, now)
            partition.records.append(Record(number, 0, now, "", first))
        self._marks = [(0, "")] * partitions  # of the group without a name
        self._groups = {"": Group(partitions, self._marks, name)}

    async def open(self) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """The records stay: another engine of this process may go on with them."""

    @property
    def partitions(self) -> int:
        return len(self._partitions)

    def partition_of(self, saga_id: str) -> int:
        return partition_of(saga_id, len(self._partitions))

    async def append(self, partition: int, entries: Sequence[Entry]) -> int:
        if not entries:
            raise ValueError("an append holds at least one entry")
        check_partition(partition, len(self._partitions))
        place = self._partitions[partition]
        base = len(place.records)
        now = _now()
        for offset, entry in enumerate(entries, base):
            place.add(Record(partition, offset, now, key_of(entry), entry))
        place.waiters.wake()
        return base

    async def append_raw(self, partition: int, key: str, value: bytes) -> int:
        check_partition(partition, len(self._partitions))
        check_size(partition, key, value, MAX_VALUE_BYTES)
        place = self._partitions[partition]
        offset = len(place.records)
        place.add(Record(partition, offset, _now(), key, _decoded(value), value))
        place.waiters.wake()
        return offset

    async def read(
        self, partition: int, offset: int, *, limit: int = 1000, wait_s: float = 0.0
    ) -> Chunk:
        check_partition(partition, len(self._partitions))
        place = self._partitions[partition]
        check_position(partition, offset, 0, len(place.records))
        if offset == len(place.records) and wait_s > 0:
            await place.waiters.wait(wait_s)
        records = tuple(place.records[offset : offset + limit])
        return Chunk(records, offset + len(records))

    async def read_saga(self, saga_id: str, from_offset: int = 0) -> tuple[Record, ...]:
        place = self._partitions[self.partition_of(saga_id)]
        offsets = place.of_saga.get(saga_id, [])
        return tuple(place.records[at] for at in offsets[bisect_left(offsets, from_offset) :])

    async def bounds(self, partition: int) -> Bounds:
        check_partition(partition, len(self._partitions))
        return Bounds(0, len(self._partitions[partition].records))

    async def low_water_mark(self, partition: int, *, group: str = "") -> int:
        check_partition(partition, len(self._partitions))
        return self._group(group).marks[partition][0]

    async def mark_note(self, partition: int, *, group: str = "") -> str:
        check_partition(partition, len(self._partitions))
        return self._group(group).marks[partition][1]

    async def join(
        self, on_change: Rebalanced, *, instance_id: str | None = None, group: str = ""
    ) -> Membership:
        return await self._group(group).join(on_change)

    async def members(self, *, group: str = "") -> int:
        return len(self._group(group))

    def _group(self, name: str) -> Group:
        if name not in self._groups:
            self._groups[name] = Group(
                len(self._partitions), [(0, "")] * len(self._partitions), self.name
            )
        return self._groups[name]


def _decoded(value: bytes) -> Entry | Undecodable:
    try:
        return _codec().decode(value)
    except UndecodableRecord as error:
        return Undecodable(str(error))


@cache
def _codec() -> AvroCodec:
    # Only raw bytes need it: who keeps to entries does not load it.
    from sagaz_es.codec.avro import AvroCodec

    return AvroCodec()


class _Partition:
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.of_saga: dict[str, list[int]] = {}
        self.waiters = Waiters()

    def add(self, record: Record) -> None:
        self.records.append(record)
        offsets = self.of_saga.get(record.key)
        if offsets is None:
            self.of_saga[record.key] = [record.offset]
        else:
            offsets.append(record.offset)


def _now() -> int:
    return time.time_ns() // 1000
