"""The servers that all other tests rely on: they are real, and they break and come back as told."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.servers import KafkaServer, PostgreSQLServer

ROOT = Path(__file__).parents[2]


async def create_topic(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        response = await admin.create_topics([NewTopic(topic, 1, 1)])
        assert [code for _, code, _ in response.topic_errors] == [0]
    finally:
        await admin.close()


@asynccontextmanager
async def producing(bootstrap: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    """The first `count` values of the topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="none")
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek(partition, 0)
        async with asyncio.timeout(30):
            return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_kafka_keeps_what_is_produced(kafka_bootstrap: str, kafka_namespace: str) -> None:
    topic = f"{kafka_namespace}.events"
    await create_topic(kafka_bootstrap, topic)
    async with producing(kafka_bootstrap) as producer:
        offsets = [(await producer.send_and_wait(topic, value)).offset for value in (b"a", b"b")]
    assert offsets == [0, 1]
    assert await consume(kafka_bootstrap, topic, 2) == [b"a", b"b"]


async def test_a_killed_kafka_comes_back_with_its_data(
    kafka_server: KafkaServer, kafka_namespace: str
) -> None:
    topic = f"{kafka_namespace}.events"
    await create_topic(kafka_server.bootstrap, topic)
    async with producing(kafka_server.bootstrap) as producer:
        await producer.send_and_wait(topic, b"before")
        await asyncio.to_thread(kafka_server.kill)
        late = asyncio.create_task(producer.send_and_wait(topic, b"during"))
        await asyncio.to_thread(kafka_server.restart)
        async with asyncio.timeout(30):
            await late
    assert await consume(kafka_server.bootstrap, topic, 2) == [b"before", b"during"]


async def test_a_paused_kafka_answers_nothing_until_it_is_resumed(
    kafka_server: KafkaServer, kafka_namespace: str
) -> None:
    topic = f"{kafka_namespace}.events"
    await create_topic(kafka_server.bootstrap, topic)
    async with producing(kafka_server.bootstrap) as producer:
        await producer.send_and_wait(topic, b"before")
        kafka_server.pause()
        late = asyncio.create_task(producer.send_and_wait(topic, b"during"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(late), timeout=1)
        kafka_server.resume()
        async with asyncio.timeout(30):
            assert (await late).offset == 1


def test_a_topic_is_gone_when_its_namespace_is(kafka_server: KafkaServer) -> None:
    asyncio.run(create_topic(kafka_server.bootstrap, "passing.events"))
    kafka_server.delete_topics("passing")
    asyncio.run(create_topic(kafka_server.bootstrap, "passing.events"))
    kafka_server.delete_topics("passing")


async def test_postgresql_gives_each_test_an_empty_database(postgresql_url: str) -> None:
    connection = await asyncpg.connect(postgresql_url)
    try:
        assert await connection.fetchval("SELECT 1") == 1
        tables = await connection.fetchval(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        )
        assert tables == 0
    finally:
        await connection.close()


async def test_a_killed_postgresql_comes_back_with_its_data(
    postgresql_server: PostgreSQLServer, postgresql_url: str
) -> None:
    connection = await asyncpg.connect(postgresql_url)
    await connection.execute("CREATE TABLE kept (value text)")
    await connection.execute("INSERT INTO kept VALUES ('before')")
    postgresql_server.kill()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("SELECT value FROM kept")
    connection.terminate()
    await asyncio.to_thread(postgresql_server.restart)
    connection = await asyncpg.connect(postgresql_url)
    try:
        assert await connection.fetchval("SELECT value FROM kept") == "before"
    finally:
        await connection.close()


@pytest.mark.services
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_server_outlives_the_program_that_started_it(end: signal.Signals) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.servers"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert program.stdout is not None
        log, store = program.stdout.readline(), program.stdout.readline()
        printed = r"export SAGAZ_ES_{}={}127\.0\.0\.1:(\d+)/demo\n"
        ports = [
            re.fullmatch(printed.format("LOG", "kafka://"), log),
            re.fullmatch(printed.format("STORE", "postgresql://postgres@"), store),
        ]
        servers = [("127.0.0.1", int(port[1])) for port in ports if port]
        assert [listens(server) for server in servers] == [True, True]
        program.send_signal(end)
        program.wait(timeout=60)
        deadline = time.monotonic() + 30  # containers are removed within 10 s of a SIGKILL
        while any(map(listens, servers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [listens(server) for server in servers] == [False, False]
    finally:
        program.kill()
        program.communicate()


def listens(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0
