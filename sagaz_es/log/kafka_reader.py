"""Reading partitions: one fetch a call, from any offset, by any number of readers at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any

from aiokafka.errors import CorruptRecordException, OffsetOutOfRangeError, UnsupportedCodecError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.memory_records import MemoryRecords

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.errors import MissingDependencyError, UndecodableRecord
from sagaz_es.log.checks import check_position
from sagaz_es.log.kafka_brokers import Brokers, check
from sagaz_es.ports import Bounds, Chunk, Record, Undecodable

REPLAY_ID = "replay_id"
"""The header that marks the records of a replay's branch."""

FETCH_BYTES = 1 << 20  # more is slower; a larger batch comes whole all the same
POLL_S = 0.5  # a broker holds a fetch back for so long while there is nothing new
LEFT_OVER = 2  # fetches kept a partition, because a reader took only a part

START, END = -2, -1  # what a ListOffsets request asks for
COMMITTED_OR_NOT = 0  # isolation level: nobody writes here in transactions


class Fetched:
    """What one fetch gave: the records from `position` to `end`, still as bytes."""

    def __init__(self, offset: int, data: bytes) -> None:
        self.position = self.end = offset
        self._batches: deque[Any] = deque()
        self._records: Iterator[Any] = iter(())  # of the batch that is being read
        batches = MemoryRecords(data)
        while batches.has_next():
            batch = batches.next_batch()
            if not batch.validate_crc():
                if self._batches:
                    break  # it is fetched again when a reader gets there
                raise CorruptRecordException(f"wrong checksum at offset {batch.base_offset}")
            self._batches.append(batch)
            self.end = batch.next_offset

    @property
    def more(self) -> bool:
        return self.position < self.end

    def take(self, limit: int) -> list[Any]:
        """The next raw records, at most `limit`; none: there are no more."""
        taken: list[Any] = []
        while self.more:
            for record in self._records:
                # A batch comes whole, also if the fetch began in its middle.
                if record.offset >= self.position:
                    taken.append(record)
                    self.position = record.offset + 1
                    if len(taken) == limit:
                        return taken
            if not self._batches:
                self.position = self.end  # the last ones may be missing: control records, for one
                break
            batch = self._batches.popleft()
            self._records = iter(()) if batch.is_control_batch else _records_of(batch)
        return taken

    def skip_to(self, offset: int) -> bool:
        """Go forward to `offset`; whether there is something left then."""
        while self._batches and self._batches[0].next_offset <= offset:
            self._batches.popleft()
            self._records = iter(())
        self.position = max(self.position, offset)
        return self.more


def _records_of(batch: Any) -> Iterator[Any]:
    try:
        # A batch can be gone through once; `islice` lets us stop on the way and go on.
        return islice(iter(batch), None)
    except UnsupportedCodecError as error:
        raise MissingDependencyError("cramjam", "reading compressed records", "kafka") from error


class Reader:
    """Reads one topic."""

    def __init__(self, brokers: Brokers, codec: AvroCodec) -> None:
        self._brokers, self._codec = brokers, codec
        self._left_over: dict[int, deque[Fetched]] = {}

    async def read(self, partition: int, offset: int, limit: int, wait_s: float) -> Chunk:
        """See `EventLog.read`."""
        loop = asyncio.get_running_loop()
        wait_until = loop.time() + wait_s
        until = wait_until + self._brokers.deadlines.read_s
        while True:
            fetched = self._take_left_over(partition, offset)
            if fetched is None:
                hold_s = min(wait_until - loop.time(), POLL_S)
                fetched = await self._fetch(partition, offset, max(hold_s, 0.0), until)
            raw = fetched.take(limit)
            offset = fetched.position
            if fetched.more:
                left = self._left_over.setdefault(partition, deque(maxlen=LEFT_OVER))
                left.append(fetched)
            if raw or loop.time() >= wait_until:
                return Chunk(tuple([self._record(partition, each) for each in raw]), offset)

    async def of_key(self, partition: int, key: bytes, offset: int) -> tuple[Record, ...]:
        """All records with this key from `offset` to the end that the partition has now."""
        until = asyncio.get_running_loop().time() + self._brokers.deadlines.read_s
        end = (await self.bounds(partition, until)).end
        found: list[Record] = []
        async for raw in self._scan(partition, offset, end):
            found += [
                self._record(partition, each)
                for each in raw
                if each.key == key and each.offset < end
            ]
        return tuple(found)

    async def _scan(self, partition: int, offset: int, end: int) -> AsyncIterator[list[Any]]:
        while offset < end:
            # A scan may take long; that each fetch ends is enough.
            until = asyncio.get_running_loop().time() + self._brokers.deadlines.read_s
            fetched = await self._fetch(partition, offset, 0.0, until, lane="scan")
            while raw := fetched.take(1000):
                yield raw
            offset = fetched.position

    async def bounds(self, partition: int, until: float) -> Bounds:
        start, end = await asyncio.gather(
            self._offset(partition, START, until), self._offset(partition, END, until)
        )
        return Bounds(start, end)

    async def _offset(self, partition: int, which: int, until: float) -> int:
        topic = self._brokers.topic
        request = OffsetRequest(-1, COMMITTED_OR_NOT, [(topic, [(partition, which)])])

        async def attempt() -> int:
            answer = await self._brokers.ask(self._brokers.leader(partition), request)
            ((_, ((_, code, _, offset),)),) = answer.topics
            check(code)
            return int(offset)

        return await self._brokers.retry(attempt, until, f"partition {partition}: its bounds")

    async def _fetch(
        self, partition: int, offset: int, hold_s: float, until: float, *, lane: str = ""
    ) -> Fetched:
        """One fetch that the broker may hold back for `hold_s` until there is something.

        Raises HistoryGone, LogTruncated, Unreachable.
        """
        part = (partition, offset, FETCH_BYTES)
        hold_ms = round(hold_s * 1000)
        request = FetchRequest(
            hold_ms, 1, FETCH_BYTES, COMMITTED_OR_NOT, [(self._brokers.topic, [part])]
        )

        async def attempt() -> Fetched:
            leader = self._brokers.leader(partition)
            if hold_ms:
                answer = await self._brokers.poll(leader, request)
            else:
                answer = await self._brokers.ask(leader, request, lane=lane)
            ((_, ((_, code, *_, data),)),) = answer.topics
            check(code)
            return Fetched(offset, data or b"")

        while True:
            try:
                return await self._brokers.retry(attempt, until, f"partition {partition}: reading")
            except OffsetOutOfRangeError:
                bounds = await self.bounds(partition, until)
                check_position(partition, offset, bounds.start, bounds.end)
                # In range after all: it was just changing.
                await asyncio.sleep(self._brokers.deadlines.retry_s)

    def _take_left_over(self, partition: int, offset: int) -> Fetched | None:
        """What an earlier read at this place did not take.

        A reader that goes on a little later, because it knows what it wrote itself, skips that.
        """
        left = self._left_over.get(partition)
        if left:
            for fetched in sorted(left, key=lambda each: -each.position):
                if fetched.position <= offset:
                    left.remove(fetched)
                    return fetched if fetched.skip_to(offset) else None
        return None

    def _record(self, partition: int, raw: Any) -> Record:
        key, value = raw.key, raw.value
        replay_id = ""
        for name, text in raw.headers:
            if name == REPLAY_ID and text:
                replay_id = text.decode(errors="replace")
        entry: Any
        if value is None:
            entry, value = Undecodable("the record has no value"), b""
        else:
            try:
                entry = self._codec.decode(value, replay_id=replay_id)
            except UndecodableRecord as error:
                entry = Undecodable(str(error))
        text = key.decode(errors="replace") if key else ""
        return Record(partition, raw.offset, raw.timestamp * 1000, text, entry, value)
