"""Appending to Kafka when something is wrong: the outcome is told in time, and the log works on."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core.events import Event
from sagaz_es.errors import AppendRefused, AppendUnknown, Unreachable
from sagaz_es.log.kafka import KafkaEventLog
from sagaz_es.log.kafka_brokers import Deadlines
from sagaz_es.testing.contracts.entries import new_id, steps
from tests.servers import KafkaServer

SHORT = Deadlines(append_s=1.0, read_s=2.0, close_s=1.0, request_s=1.0)


@pytest.fixture
async def log(kafka_server: KafkaServer, kafka_namespace: str) -> AsyncIterator[KafkaEventLog]:
    """Two partitions and short deadlines."""
    log = KafkaEventLog(
        [kafka_server.bootstrap], kafka_namespace, AvroCodec(), partitions=2, deadlines=SHORT
    )
    await log.open()
    yield log
    await log.close()


@pytest.fixture(autouse=True)
def nothing_is_left_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """asyncio logs errors that nobody looked at, some only when they are collected."""
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def entries(log: KafkaEventLog, partition: int) -> list[Event]:
    """All events of a partition, in the order of the log."""
    found: list[Event] = []
    offset = 1
    while True:
        chunk = await log.read(partition, offset)
        if not chunk.records:
            return found
        found += [record.entry for record in chunk.records if isinstance(record.entry, Event)]
        offset = chunk.next_offset


async def test_a_frozen_broker_makes_an_append_unknown_in_time(
    kafka_server: KafkaServer, log: KafkaEventLog
) -> None:
    (event,) = steps(new_id(), 1)
    kafka_server.pause()
    began = time.monotonic()
    with pytest.raises(AppendUnknown) as caught:
        await log.append(0, [event])
    assert caught.value.partition == 0
    assert time.monotonic() - began < 1.8
    kafka_server.resume()
    await log.append(0, [event])
    assert 1 <= (await entries(log, 0)).count(event) <= 2


async def test_an_abandoned_append_does_not_land_later(
    kafka_server: KafkaServer, log: KafkaEventLog
) -> None:
    sent, *waiting = [steps(new_id(), 3) for _ in range(6)]
    await log.append(0, steps(new_id(), 1))
    kafka_server.pause()
    appends = [asyncio.create_task(log.append(0, sent))]
    await asyncio.sleep(0.1)  # it is on its way: the others wait for it
    appends += [asyncio.create_task(log.append(0, each)) for each in waiting]
    outcomes = await asyncio.gather(*appends, return_exceptions=True)
    assert [type(each) for each in outcomes] == [AppendUnknown] * 6
    kafka_server.resume()
    await log.append(0, steps(new_id(), 1))
    await asyncio.sleep(0.5)
    landed = await entries(log, 0)
    assert len(landed) in (2, 5), "at most what was on the wire"
    assert len(landed) == 2 or landed[1:4] == sent or landed[2:5] == sent


async def test_an_append_that_found_no_broker_never_lands(
    kafka_server: KafkaServer, log: KafkaEventLog
) -> None:
    end = await log.append(0, steps(new_id(), 1)) + 1
    kafka_server.kill()
    with pytest.raises(AppendUnknown):
        await log.append(0, steps(new_id(), 1))
    await asyncio.to_thread(kafka_server.restart)
    await asyncio.sleep(2)
    assert (await log.bounds(0)).end == end


async def test_a_time_out_in_one_partition_leaves_the_others_usable(
    kafka_server: KafkaServer, log: KafkaEventLog
) -> None:
    kafka_server.pause()
    first = asyncio.create_task(log.append(0, steps(new_id(), 1)))
    await asyncio.sleep(0.7)
    second = asyncio.create_task(log.append(1, steps(new_id(), 1)))
    await asyncio.wait([first])
    kafka_server.resume()
    outcomes = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(outcomes[0], AppendUnknown)
    assert isinstance(outcomes[1], int | AppendUnknown)
    for partition in (0, 1):
        (event,) = steps(new_id(), 1)
        offset = await log.append(partition, [event])
        (record,) = (await log.read(partition, offset)).records
        assert record.entry == event


async def test_pending_since_tells_of_the_oldest_append(
    kafka_server: KafkaServer, log: KafkaEventLog
) -> None:
    assert log.pending_since is None
    before = time.time_ns() // 1000
    kafka_server.pause()
    append = asyncio.create_task(log.append(0, steps(new_id(), 1)))
    await asyncio.sleep(0.2)
    assert log.pending_since is not None
    assert before <= log.pending_since <= time.time_ns() // 1000 - 150_000
    kafka_server.resume()
    await append
    assert log.pending_since is None


async def test_what_was_acknowledged_survives_kill_9_and_appends_go_on(
    kafka_server: KafkaServer, kafka_namespace: str
) -> None:
    log = KafkaEventLog([kafka_server.bootstrap], kafka_namespace, AvroCodec(), partitions=2)
    await log.open()
    acknowledged: dict[tuple[int, int], Event] = {}
    unknown: list[Event] = []
    stop, enough, wanted = asyncio.Event(), asyncio.Event(), 0

    async def append(partition: int) -> None:
        while not stop.is_set():
            (event,) = steps(new_id(), 1)
            try:
                acknowledged[partition, await log.append(partition, [event])] = event
                if len(acknowledged) >= wanted:
                    enough.set()
            except AppendUnknown:
                unknown.append(event)

    writers = [asyncio.create_task(append(each % 2)) for each in range(20)]
    for _ in range(2):
        await asyncio.sleep(0.5)
        kafka_server.kill()
        known = len(acknowledged)
        await asyncio.to_thread(kafka_server.restart)
        enough.clear()
        wanted = known + 50
        async with asyncio.timeout(20):
            await enough.wait()
    stop.set()
    await asyncio.gather(*writers)
    for partition in (0, 1):
        found: dict[int, object] = {}
        offset, end = 1, (await log.bounds(partition)).end
        while offset < end:
            chunk = await log.read(partition, offset)
            found |= {record.offset: record.entry for record in chunk.records}
            offset = chunk.next_offset
        mine = {at: event for (where, at), event in acknowledged.items() if where == partition}
        assert {at: found[at] for at in mine} == mine
        stray = [entry for at, entry in found.items() if at not in mine]
        assert all(entry in unknown for entry in stray), "nothing stands twice"
    await log.close()


async def test_a_batch_that_the_topic_takes_no_longer_is_refused_and_the_next_one_goes(
    kafka_server: KafkaServer, log: KafkaEventLog
) -> None:
    await log.append(0, steps(new_id(), 1))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_server.bootstrap)
    await admin.start()
    limit = {"max.message.bytes": "2000"}
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, log.topic, limit)])
    await admin.close()
    end = (await log.bounds(0)).end
    async with asyncio.timeout(10):
        while True:  # the broker takes the new limit a moment later
            try:
                await log.append_raw(0, "order-17", b"x" * 3000)
            except AppendRefused as error:
                assert error.partition == 0
                break
            end += 1
    assert (await log.bounds(0)).end == end, "nothing of it stands"
    for partition in (0, 0, 1):
        await log.append(partition, steps(new_id(), 1))


async def test_more_than_one_append_may_take_is_refused_before_it_is_sent(
    log: KafkaEventLog,
) -> None:
    end = (await log.bounds(0)).end
    many = steps(new_id(), 20_000)
    with pytest.raises(AppendRefused, match=f"one append may take {log.max_append_bytes}"):
        await log.append(0, many)
    assert (await log.bounds(0)).end == end
    assert await log.append(0, many[:5000]) == end


async def test_closing_does_not_wait_for_a_frozen_broker(
    kafka_server: KafkaServer, log: KafkaEventLog
) -> None:
    reading = asyncio.create_task(log.read(1, (await log.bounds(1)).end, wait_s=30))
    kafka_server.pause()
    append = asyncio.create_task(log.append(0, steps(new_id(), 1)))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(5):
        await log.close()
        outcomes = await asyncio.gather(append, reading, return_exceptions=True)
    assert [type(each) for each in outcomes] == [AppendUnknown, Unreachable]
    kafka_server.resume()
    with pytest.raises(RuntimeError, match="not open"):
        await log.append(0, steps(new_id(), 1))


async def test_a_closed_log_leaves_nothing_behind(log: KafkaEventLog) -> None:
    await asyncio.gather(*(log.append(each % 2, steps(new_id(), 2)) for each in range(10)))
    await log.read(0, 0, wait_s=0.1)
    membership = await log.join(_follow)
    await membership.leave()
    await log.close()
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_outage_is_told_of_once_and_no_logger_is_changed(
    kafka_server: KafkaServer, log: KafkaEventLog, caplog: pytest.LogCaptureFixture
) -> None:
    kafka_server.kill()
    with pytest.raises(AppendUnknown):
        await log.append(0, steps(new_id(), 1))
    with pytest.raises(Unreachable, match="Kafka at 127"):
        await log.bounds(0)
    lines = [record.getMessage() for record in caplog.records if "aiokafka" in record.name]
    assert len(lines) < 12, lines
    await asyncio.to_thread(kafka_server.restart)
    await log.close()
    for name in ("aiokafka", "aiokafka.conn", "aiokafka.producer.sender"):
        logger = logging.getLogger(name)
        assert (logger.level, logger.handlers, logger.filters) == (logging.NOTSET, [], [])


async def _follow(share: frozenset[int]) -> None:
    """An engine that serves nothing."""
