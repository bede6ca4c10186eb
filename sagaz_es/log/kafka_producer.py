"""Appending: one batch a partition on its way, what comes meanwhile is gathered into the next.

The producer is idempotent, so it never gives up by itself: every append has a deadline of our own.
A producer with an append that passed it is thrown away whole, and so is one of which the broker has
refused a batch: it would refuse every later one of that partition, too, for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from aiokafka import AIOKafkaProducer, codec
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidTimestampError,
    InvalidTopicError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from sagaz_es.errors import AppendRefused, AppendUnknown, LogForbidden, MissingDependencyError
from sagaz_es.log import kafka_quiet
from sagaz_es.log.kafka_brokers import RIGHTS, Deadlines, KafkaAccess, shut

# The most that a batch's header and a record's header take; the real ones are smaller.
BATCH_BYTES, RECORD_BYTES, HEADER_BYTES = 61, 36, 10

# The broker took nothing of the batch and would not take it the next time either.
REFUSED = (
    InvalidTimestampError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)

# Nor this one, but that is no matter of the batch, and may be over soon.
FORBIDDEN = (ClusterAuthorizationFailedError, TopicAuthorizationFailedError)


NO_HEADERS: list[tuple[str, bytes]] = []  # aiokafka asks for a list; nobody writes into it


Encoded: TypeAlias = tuple[bytes | None, bytes, list[tuple[str, bytes]]]
"""A record as it goes out: its key, value and headers."""


def batch_size(records: Sequence[Encoded]) -> int:
    """What they take as a batch of their own, at most; bytes."""
    size = BATCH_BYTES + RECORD_BYTES * len(records)
    for key, value, headers in records:
        size += len(value) + (len(key) if key else 0)
        for name, text in headers:
            size += HEADER_BYTES + len(name) + len(text)
    return size


class _Append(NamedTuple):
    records: Sequence[Encoded]
    size: int
    offset: asyncio.Future[int]  # of the first record, in the end
    until: float  # loop time
    since: int  # µs since 1970


class _Lane:
    """One partition's appends."""

    def __init__(self) -> None:
        self.waiting: deque[_Append] = deque()
        self.sent: list[_Append] = []  # those in the batch on its way
        self.task: asyncio.Task[None] | None = None


class _Abandoned(KafkaError):  # type: ignore[misc]
    """The producer was thrown away."""


class Appender:
    """Appends to the partitions of one topic. `limit`: the most bytes that one append may take."""

    def __init__(
        self, access: KafkaAccess, deadlines: Deadlines, topic: str, limit: int, compression: str
    ) -> None:
        if compression and not getattr(codec, f"has_{compression}")():
            raise MissingDependencyError("cramjam", f"compression {compression}")
        self.limit = limit
        self._topic, self._deadlines = topic, deadlines
        self._who = f"user {access.username!r}" if access.username else "this process"
        self._options = access.options(deadlines) | {
            "enable_idempotence": True,
            "acks": "all",
            "linger_ms": 0,
            "max_batch_size": limit,
            "compression_type": compression or None,
        }
        self._lanes: dict[int, _Lane] = {}
        self._producer: _Producer | None = None
        self._starting = asyncio.Lock()
        self._closed = False

    @property
    def pending_since(self) -> int | None:
        """Since when the oldest append waits for its answer, in µs since 1970; None: none does."""
        times = [
            each.since for lane in self._lanes.values() for each in (*lane.sent, *lane.waiting)
        ]
        return min(times, default=None)

    async def append(self, partition: int, records: Sequence[Encoded]) -> int:
        """See `EventLog.append`."""
        size = batch_size(records)
        if size > self.limit:
            raise AppendRefused(
                partition,
                f"{len(records)} records take {size} bytes, and one append may take {self.limit} "
                "(the topic's max.message.bytes); append fewer at a time",
            )
        if self._closed:
            raise AppendUnknown(partition, "the log was closed; nothing was sent")
        loop = asyncio.get_running_loop()
        offset: asyncio.Future[int] = loop.create_future()
        until = loop.time() + self._deadlines.append_s
        lane = self._lanes.setdefault(partition, _Lane())
        lane.waiting.append(_Append(records, size, offset, until, time.time_ns() // 1000))
        if lane.task is None:
            lane.task = loop.create_task(self._work_off(partition, lane))
        return await offset

    async def _work_off(self, partition: int, lane: _Lane) -> None:
        """Send until nothing waits. One batch at a time: so the partition's order is ours."""
        try:
            while lane.waiting:
                lane.sent = self._gathered(lane)
                if lane.sent:
                    await self._send(partition, lane.sent)
        finally:
            for append in (*lane.sent, *lane.waiting):
                if not append.offset.done():  # we were cancelled
                    append.offset.set_exception(AppendUnknown(partition, "the log was closed"))
            lane.waiting.clear()
            lane.sent, lane.task = [], None

    def _gathered(self, lane: _Lane) -> list[_Append]:
        """What waits, as far as one batch holds it; without what its caller has given up."""
        gathered: list[_Append] = []
        size = 0
        while lane.waiting and size + lane.waiting[0].size <= self.limit:
            append = lane.waiting.popleft()
            if not append.offset.done():
                gathered.append(append)
                size += append.size
        return gathered

    async def _send(self, partition: int, appends: list[_Append]) -> None:
        """Send one batch and tell each append how it ended."""
        try:
            offset = await self._offset_of(partition, appends)
        except (AppendUnknown, AppendRefused) as error:  # LogForbidden is one
            for append in appends:
                if not append.offset.done():
                    append.offset.set_exception(type(error)(*error.args))
            return
        for append in appends:
            if not append.offset.done():
                append.offset.set_result(offset)
            offset += len(append.records)

    async def _offset_of(self, partition: int, appends: list[_Append]) -> int:
        """The offset of the first record of the batch that these appends make."""
        producer: _Producer | None = None
        try:
            async with asyncio.timeout_at(appends[0].until):
                producer = await self._started()
                records = [record for append in appends for record in append.records]
                offset = await producer.send(self._topic, partition, records)
        except TimeoutError:
            await self._throw_away(producer)
            seconds = f"{self._deadlines.append_s:g} s"
            raise AppendUnknown(partition, f"Kafka did not confirm it within {seconds}") from None
        except FORBIDDEN as error:
            await self._throw_away(producer)
            raise LogForbidden(
                partition,
                f"Kafka does not let {self._who} write to topic {self._topic!r} "
                f"({type(error).__name__}): {RIGHTS}",
            ) from error
        except REFUSED as error:
            await self._throw_away(producer)
            raise AppendRefused(partition, str(error)) from error
        except Exception as error:  # whatever it was: the records may have landed
            await self._throw_away(producer)
            raise AppendUnknown(partition, f"{type(error).__name__}: {error}") from error
        if offset < 0:
            # The batch landed at an earlier attempt, but the broker no longer knows where.
            raise AppendUnknown(partition, "Kafka has it, and does not know at which offset")
        return offset

    async def _started(self) -> _Producer:
        if self._producer is not None:
            return self._producer
        async with self._starting:
            while self._producer is None:
                producer = _Producer(self._options)
                try:
                    with kafka_quiet.connecting():
                        await producer.start()
                except (*REFUSED, *FORBIDDEN):
                    await producer.abandon()
                    raise
                except KafkaError:
                    await producer.abandon()
                    await asyncio.sleep(self._deadlines.retry_s)
                except BaseException:  # cancelled: the time is up
                    await producer.abandon()
                    raise
                else:
                    self._producer = producer
            return self._producer

    async def _throw_away(self, producer: _Producer | None) -> None:
        """A partition that failed takes the others' appends under way with it: unknown, too."""
        if producer is not None:
            if self._producer is producer:
                self._producer = None
            await producer.abandon()

    async def close(self) -> None:
        """Give appends under way a last chance; what is not confirmed by then is unknown."""
        self._closed = True
        tasks = {lane.task for lane in self._lanes.values() if lane.task is not None}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._deadlines.close_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.abandon()


class _Producer:
    """An aiokafka producer that can be thrown away: nothing that it still holds is sent later.

    Its own `stop` waits for what it holds, and goes on sending when that wait is given up.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._producer: Any = AIOKafkaProducer(**options)
        # The sender does not tell which requests it has under way; it is asked to.
        self._requests: set[asyncio.Task[Any]] = set()
        self._send_request = self._producer._sender._send_produce_req
        self._producer._sender._send_produce_req = self._noted_request

    async def start(self) -> None:
        await self._producer.start()

    async def send(self, topic: str, partition: int, records: Sequence[Encoded]) -> int:
        """The offset of the first record; -1: it stands somewhere."""
        now = time.time_ns() // 1_000_000
        batch = self._producer.create_batch()
        for key, value, headers in records:
            if batch.append(timestamp=now, key=key, value=value, headers=headers) is None:
                raise MessageSizeTooLargeError("the records do not fit into one batch")
        batch.close()
        confirmed = await self._producer.send_batch(batch, topic, partition=partition)
        return int((await confirmed).offset)

    async def _noted_request(self, node: int, batches: Any) -> None:
        task: Any = asyncio.current_task()
        self._requests.add(task)
        try:
            await self._send_request(node, batches)
        finally:
            self._requests.discard(task)

    async def abandon(self) -> None:
        """Stop at once; only what is on the wire already can still land."""
        producer, sender = self._producer, self._producer._sender
        if producer._closed:
            return
        producer._closed = True
        tasks = {*self._requests, sender.sender_task} - {None}
        for task in tasks:
            task.cancel()
        await shut(producer.client, within_s=1.0, reset=True)
        self._fail_all(_Abandoned("the producer was thrown away"))
        # Their errors are of no interest: they stumble over the batches that were just taken away.
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fail_all(self, error: Exception) -> None:
        """As aiokafka's `fail_all`, which leaves errors behind that nobody can look at."""
        accumulator = self._producer._message_accumulator
        accumulator._exception = error
        waiting = [batch for batches in accumulator._batches.values() for batch in batches]
        # A batch that waits to be sent again is in neither set; it removes itself from this one.
        accumulator._pending_batches.update(waiting)
        for batch in accumulator._pending_batches:
            batch._drain_waiter.cancel()
            if not batch.future.done():
                batch.future.set_exception(error)
                batch.future.exception()
