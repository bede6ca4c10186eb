"""Reading partitions: one fetch a call, from any offset, by any number of readers at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.errors import UndecodableRecord
from sagaz_es.log.checks import check_position
from sagaz_es.log.kafka_brokers import Brokers, check
from sagaz_es.log.kafka_fetched import Fetched, LeftOver
from sagaz_es.ports import Bounds, Chunk, Record, Undecodable

REPLAY_ID = "replay_id"
"""The header that marks the records of a replay's branch."""

FETCH_BYTES = 1 << 20  # more is slower; a larger batch comes whole all the same
POLL_S = 0.5  # a broker holds a fetch back for so long while there is nothing new

START, END = -2, -1  # what a ListOffsets request asks for
COMMITTED_OR_NOT = 0  # isolation level: nobody writes here in transactions


class Reader:
    """Reads one topic."""

    def __init__(self, brokers: Brokers, codec: AvroCodec) -> None:
        self._brokers, self._codec = brokers, codec
        self._left_over = LeftOver()

    async def read(self, partition: int, offset: int, limit: int, wait_s: float) -> Chunk:
        """See `EventLog.read`."""
        loop = asyncio.get_running_loop()
        wait_until = loop.time() + wait_s
        until = wait_until + self._brokers.deadlines.read_s
        while True:
            fetched = self._left_over.take(partition, offset)
            if fetched is None:
                hold_s = min(wait_until - loop.time(), POLL_S)
                fetched = await self._fetch(partition, offset, max(hold_s, 0.0), until)
            raw = fetched.take(limit)
            offset = fetched.position
            if fetched.more:
                self._left_over.add(partition, fetched)
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
