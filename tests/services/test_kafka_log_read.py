"""Reading a Kafka partition: what others wrote into it, what is gone, and what waits for whom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.errors import HistoryGone, LogTruncated, Unreachable
from sagaz_es.log.kafka import KafkaEventLog
from sagaz_es.log.kafka_brokers import Deadlines
from sagaz_es.ports import Record, Undecodable
from sagaz_es.testing.contracts.entries import new_id, steps
from tests.servers import KafkaServer

MakeLog = Callable[[], KafkaEventLog]


@pytest.fixture
def make(kafka_bootstrap: str, kafka_namespace: str) -> MakeLog:
    return lambda: KafkaEventLog([kafka_bootstrap], kafka_namespace, AvroCodec(), partitions=3)


@pytest.fixture
async def log(make: MakeLog) -> AsyncIterator[KafkaEventLog]:
    log = make()
    await log.open()
    yield log
    await log.close()


async def read_all(log: KafkaEventLog, partition: int, limit: int = 1000) -> list[Record]:
    """All records of a partition but the first."""
    found: list[Record] = []
    offset, end = 1, (await log.bounds(partition)).end
    while offset < end:
        chunk = await log.read(partition, offset, limit=limit)
        found += chunk.records
        assert chunk.next_offset > offset
        offset = chunk.next_offset
    return found


async def test_history_that_was_deleted_is_gone_loudly(
    log: KafkaEventLog, kafka_bootstrap: str
) -> None:
    saga_id = new_id()
    partition = log.partition_of(saga_id)
    await log.append(partition, steps(saga_id, 10))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    before = RecordsToDelete(before_offset=5)
    await admin.delete_records({TopicPartition(log.topic, partition): before})
    await admin.close()
    assert (await log.bounds(partition)).start == 5
    for read in (log.read(partition, 4), log.read_saga(saga_id)):
        with pytest.raises(HistoryGone) as caught:
            await read
        assert caught.value.exists_from == "offset 5"
    assert await log.low_water_mark(partition) == 5
    assert len(await log.read_saga(saga_id, 5)) == 6
    await log.close()
    await log.open()  # the beginning being gone is no reason to refuse
    assert len((await log.read(partition, 5)).records) == 6


async def test_a_topic_that_was_deleted_and_made_anew_is_noticed(
    log: KafkaEventLog, kafka_bootstrap: str
) -> None:
    await log.append(0, steps(new_id(), 10))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    await admin.delete_topics([log.topic])
    await admin.close()
    await log.close()
    await log.open()
    with pytest.raises(LogTruncated) as caught:
        await log.read(0, 11, wait_s=1)
    assert (caught.value.position, caught.value.end) == (11, 1)


async def test_foreign_records_are_shown(log: KafkaEventLog, kafka_bootstrap: str) -> None:
    (event,) = steps(new_id(), 1)
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
        await producer.send_and_wait(log.topic, b"{}", key=b"\xff", partition=0)
        await producer.send_and_wait(log.topic, None, key=b"order-17", partition=0)
        await producer.send_and_wait(log.topic, b"", partition=0)
    await log.append(0, [event])
    records = await read_all(log, 0)
    assert [record.offset for record in records] == [1, 2, 3, 4]
    assert [record.key for record in records[:3]] == ["\ufffd", "order-17", ""]
    assert all(isinstance(record.entry, Undecodable) for record in records[:3])
    assert [record.value for record in records[:3]] == [b"{}", b"", b""]
    assert records[3].entry == event


@pytest.mark.parametrize("limit", [1, 3, 1000])
async def test_batches_of_any_make_are_read_from_any_place(
    log: KafkaEventLog, kafka_bootstrap: str, limit: int
) -> None:
    events = steps(new_id(), 40)
    values = [AvroCodec().encode(event) for event in events]
    key = events[0].saga_id.encode()
    for number, compression in enumerate(("gzip", None)):
        producer = AIOKafkaProducer(
            bootstrap_servers=kafka_bootstrap, compression_type=compression, linger_ms=20
        )
        async with producer:
            mine = values[number * 20 : number * 20 + 20]
            sent = [await producer.send(log.topic, v, key=key, partition=0) for v in mine]
            await asyncio.gather(*sent)
    records = await read_all(log, 0, limit)
    assert [record.entry for record in records] == events
    for offset in (1, 7, 20, 21, 40):
        (first, *_) = (await log.read(0, offset, limit=limit)).records
        assert (first.offset, first.entry) == (offset, events[offset - 1])


async def test_the_marks_of_a_transaction_are_passed_over(
    log: KafkaEventLog, kafka_bootstrap: str, kafka_namespace: str
) -> None:
    before, inside, after = steps(new_id(), 3)
    await log.append(0, [before])
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, transactional_id=kafka_namespace)
    async with producer, producer.transaction():
        value = AvroCodec().encode(inside)
        await producer.send_and_wait(log.topic, value, key=b"x", partition=0)
    while (await log.bounds(0)).end == 3:
        """The broker writes the mark a moment later."""
    chunk = await log.read(0, 3)
    assert (chunk.records, chunk.next_offset) == ((), 4), "the mark"
    assert await log.append(0, [after]) == 4
    assert [record.entry for record in await read_all(log, 0)] == [before, inside, after]


async def test_a_reader_that_knows_its_own_records_goes_on_behind_them(log: KafkaEventLog) -> None:
    events = steps(new_id(), 30)
    base = await log.append(0, events)
    await log.read(0, base, limit=2)
    for offset in (base + 2, base + 7, base + 7, base + 3, base + 29):
        (record,) = (await log.read(0, offset, limit=1)).records
        assert (record.offset, record.entry) == (offset, events[offset - base])
    assert (await log.read(0, base + 30)).records == ()


async def test_readers_that_wait_do_not_wait_for_each_other(
    log: KafkaEventLog, make: MakeLog
) -> None:
    """Of 30 readers, those of one partition get its record while the others go on waiting."""
    ends = [(await log.bounds(partition)).end for partition in range(3)]
    reads = [asyncio.create_task(log.read(n % 3, ends[n % 3], wait_s=30)) for n in range(30)]
    await asyncio.sleep(0.2)
    for done, partition in enumerate((1, 0, 2), 1):
        (event,) = steps(new_id(), 1)
        await log.append(partition, [event])
        async with asyncio.timeout(10):
            chunks = await asyncio.gather(*reads[partition::3])
        assert {chunk.records[0].entry for chunk in chunks} == {event}
        assert sum(read.done() for read in reads) == done * 10
        assert (await log.bounds(partition)).end == ends[partition] + 1


async def test_a_reader_that_is_given_up_disturbs_nobody(log: KafkaEventLog) -> None:
    end = (await log.bounds(0)).end
    for _ in range(50):
        read = asyncio.create_task(log.read(0, end, wait_s=30))
        await asyncio.sleep(0.002)
        read.cancel()
    assert (await log.bounds(0)).end == end
    reading = asyncio.create_task(log.read(0, end, wait_s=30))
    (event,) = steps(new_id(), 1)
    await log.append(0, [event])
    assert [record.entry for record in (await reading).records] == [event]


async def test_a_read_lives_through_a_crash_of_the_broker(
    log: KafkaEventLog, kafka_server: KafkaServer
) -> None:
    end = (await log.bounds(0)).end
    reading = asyncio.create_task(log.read(0, end, wait_s=60))
    await asyncio.sleep(0.1)
    kafka_server.kill()
    await asyncio.to_thread(kafka_server.restart)
    (event,) = steps(new_id(), 1)
    assert await log.append(0, [event]) == end
    assert [record.entry for record in (await reading).records] == [event]


async def test_no_call_outlasts_its_deadline(
    kafka_server: KafkaServer, kafka_namespace: str
) -> None:
    deadlines = Deadlines(read_s=0.5, close_s=0.5, request_s=0.3)
    log = KafkaEventLog(
        [kafka_server.bootstrap], kafka_namespace, AvroCodec(), partitions=1, deadlines=deadlines
    )
    await log.open()
    await log.low_water_mark(0)
    end = (await log.bounds(0)).end
    kafka_server.pause()
    for call in (
        log.bounds(0),
        log.read(0, end),
        log.read(0, end, wait_s=0.2),
        log.read_saga("order-17"),
        log.low_water_mark(0),
    ):
        began = time.monotonic()
        with pytest.raises(Unreachable, match="Kafka at 127"):
            await call
        assert time.monotonic() - began < 2
    await log.close()
