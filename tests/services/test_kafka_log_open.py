"""Opening a namespace on Kafka: what is made, what is refused, what is said when nobody answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.protocol.admin import CreateAclsRequest

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core.events import NamespaceCreated
from sagaz_es.errors import ConfigurationError, LogForbidden, Unreachable, UnsuitableTopic
from sagaz_es.log.kafka import KafkaEventLog
from sagaz_es.log.kafka_admin import create_topic, inspect_topic
from sagaz_es.log.kafka_brokers import Deadlines
from sagaz_es.testing.contracts.entries import new_id, steps
from tests.servers import KafkaServer
from tests.servers.server import free_port


@pytest.fixture
async def admin(kafka_bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    yield admin
    await admin.close()


def a_log(bootstrap: str, namespace: str, **options: object) -> KafkaEventLog:
    return KafkaEventLog([bootstrap], namespace, AvroCodec(), **options)  # type: ignore[arg-type]


async def make(admin: AIOKafkaAdminClient, topic: str, config: Mapping[str, str]) -> None:
    answer = await admin.create_topics([NewTopic(topic, 2, 1, topic_configs=dict(config))])
    assert [code for _, code, _ in answer.topic_errors] == [0]


async def test_a_missing_topic_is_made_as_a_history_needs_it(
    kafka_bootstrap: str, kafka_namespace: str
) -> None:
    log = a_log(kafka_bootstrap, kafka_namespace, partitions=3)
    await log.open()
    await log.open()  # twice is harmless
    assert log.partitions == 3
    assert log.name == f"kafka://{kafka_bootstrap}/{kafka_namespace}"
    await log.close()
    problems, facts = await inspect_topic(log.access, log.topic)
    assert problems == ()
    assert (facts.partitions, facts.replication, facts.brokers) == (3, 1, 1)
    assert facts.session_timeout_ms == (300, 1_800_000)
    assert facts.config is not None
    assert {name: facts.config[name] for name in facts.config if name.startswith("retention")} == {
        "retention.ms": "-1",
        "retention.bytes": "-1",
    }
    assert facts.config["message.timestamp.type"] == "LogAppendTime"


async def test_a_number_of_partitions_that_the_topic_does_not_have_is_told(
    kafka_bootstrap: str, kafka_namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    for asked_for in (3, 3, None, 8):
        log = a_log(kafka_bootstrap, kafka_namespace, partitions=asked_for)
        await log.open()
        assert log.partitions == 3
        await log.close()
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"topic {kafka_namespace}.saga-events has 3 partitions, not 8" in told


async def test_of_many_processes_that_open_at_once_one_creates_the_namespace(
    kafka_bootstrap: str, kafka_namespace: str
) -> None:
    logs = [a_log(kafka_bootstrap, kafka_namespace, partitions=n) for n in (2, 3, 2, 4, 5, 3)]
    outcomes = await asyncio.gather(*(log.open() for log in logs), return_exceptions=True)
    assert outcomes == [None] * 6, "they take the topic as the first one made it"
    assert len({log.partitions for log in logs}) == 1
    for log in logs:
        for partition in range(log.partitions):
            first = (await log.read(partition, 0, limit=1)).records[0].entry
            assert isinstance(first, NamespaceCreated)
            assert (first.partition, first.partitions) == (partition, log.partitions)
        await log.close()


async def test_an_unsuitable_topic_is_refused_with_every_reason(
    kafka_bootstrap: str, kafka_namespace: str, admin: AIOKafkaAdminClient
) -> None:
    log = a_log(kafka_bootstrap, kafka_namespace)
    config = {"cleanup.policy": "compact", "max.message.bytes": "5000", "retention.ms": "86400000"}
    await make(admin, log.topic, config)
    problems = (
        "cleanup.policy is compact, not delete",
        "retention.ms is 86400000, not -1",
        "message.timestamp.type is CreateTime, not LogAppendTime",
        "max.message.bytes is 5000, below 1004096",
    )
    with pytest.raises(UnsuitableTopic) as caught:
        await log.open()
    assert caught.value.problems == problems
    assert (await inspect_topic(log.access, log.topic))[0] == problems
    lenient = a_log(kafka_bootstrap, kafka_namespace, allow_unsuitable=True)
    await lenient.open()
    assert lenient.partitions == 2
    await lenient.close()


async def test_more_partitions_than_at_the_beginning_are_refused(
    kafka_bootstrap: str, kafka_namespace: str, admin: AIOKafkaAdminClient
) -> None:
    log = a_log(kafka_bootstrap, kafka_namespace, partitions=2)
    await log.open()
    await log.close()
    await admin.create_partitions({log.topic: NewPartitions(total_count=4)})
    with pytest.raises(UnsuitableTopic, match="made with 2 partitions and has 4"):
        await log.open()


async def test_a_topic_of_somebody_else_is_refused(
    kafka_bootstrap: str, kafka_namespace: str
) -> None:
    log = a_log(kafka_bootstrap, kafka_namespace, partitions=1)
    assert await create_topic(log.access, log.topic, partitions=1)
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
        await producer.send_and_wait(log.topic, b'{"order": 17}', partition=0)
    with pytest.raises(UnsuitableTopic, match="partition 0 does not begin with NamespaceCreated"):
        await log.open()


async def test_a_topic_is_created_once(kafka_bootstrap: str, kafka_namespace: str) -> None:
    log = a_log(kafka_bootstrap, kafka_namespace)
    assert (await inspect_topic(log.access, log.topic))[0] == ("it does not exist",)
    with pytest.raises(UnsuitableTopic, match="it does not exist"):
        await a_log(kafka_bootstrap, kafka_namespace, allow_unsuitable=True).open()
    made = [create_topic(log.access, log.topic, partitions=5) for _ in range(2)]
    assert await asyncio.gather(*made)
    assert not await create_topic(log.access, log.topic, partitions=7)
    problems, facts = await inspect_topic(log.access, log.topic)
    assert (problems, facts.partitions) == ((), 5)


async def test_nobody_there_is_told_in_time_and_without_noise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    log = a_log(f"127.0.0.1:{port}", "orders", password="hunter2", deadlines=Deadlines(open_s=0.5))
    began = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        await log.open()
    assert time.monotonic() - began < 2
    assert f"Kafka at 127.0.0.1:{port} cannot be reached" in str(caught.value)
    assert caught.value.detail == "Connection refused"
    assert "hunter2" not in f"{caught.value} {caught.value!r} {log.access!r} {log.name}"
    assert caplog.records == []
    assert logging.getLogger("aiokafka").filters == []
    await log.close()


async def test_a_broker_that_comes_up_meanwhile_is_waited_for(
    kafka_server: KafkaServer, kafka_namespace: str
) -> None:
    kafka_server.kill()
    log = a_log(kafka_server.bootstrap, kafka_namespace, deadlines=Deadlines(open_s=20))
    opening = asyncio.create_task(log.open())
    await asyncio.to_thread(kafka_server.restart)
    await opening
    await log.append(0, steps(new_id(), 1))
    await log.close()


async def test_a_cluster_that_is_not_complete_yet_gets_no_topic_with_too_few_replicas() -> None:
    server = KafkaServer({"offsets.topic.replication.factor": "3"})
    await asyncio.to_thread(server.start)
    try:
        log = a_log(server.bootstrap, "orders", deadlines=Deadlines(open_s=1))
        with pytest.raises(Unreachable, match=r"making topic .*replica"):
            await log.open()
        assert (await inspect_topic(log.access, log.topic))[0] == ("it does not exist",)
    finally:
        await asyncio.to_thread(server.stop)


async def test_a_password_is_asked_for_and_checked() -> None:
    settings = {
        "listener.security.protocol.map": (
            "PLAINTEXT:SASL_PLAINTEXT,PROXY:PLAINTEXT,CONTROLLER:PLAINTEXT"
        ),
        "inter.broker.listener.name": "PLAINTEXT",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.plaintext.plain.sasl.jaas.config": (
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            'username="broker" password="b" user_broker="b" user_engine="secret-1";'
        ),
    }
    server = KafkaServer(settings)
    await asyncio.to_thread(server.start)
    try:
        sasl = {"security_protocol": "SASL_PLAINTEXT", "username": "engine"}
        log = a_log(server.bootstrap, "orders", password="secret-1", partitions=1, **sasl)
        await log.open()
        await log.append(0, steps(new_id(), 1))
        membership = await log.join(_follow)
        await membership.leave()
        await log.close()
        wrong = a_log(server.bootstrap, "orders", password="secret-2", **sasl)
        with pytest.raises(ConfigurationError, match="refuses user 'engine'") as caught:
            await wrong.open()
        assert "secret" not in str(caught.value)
    finally:
        await asyncio.to_thread(server.stop)


SASL = {"security_protocol": "SASL_PLAINTEXT", "partitions": 1}
READS = [
    (kind, name, 3, "User:reader", "*", operation, 3)  # 3: as it is written; it is allowed
    for kind, name, operations in (
        (2, "orders.saga-events", (3, 8, 10)),  # a topic: read, describe, describe its settings
        (3, "orders.engines", (3, 8)),  # a group
    )
    for operation in operations
]


async def test_a_user_who_may_only_read_serves_nothing_and_is_told_so() -> None:
    server = KafkaServer(
        {
            "listener.security.protocol.map": (
                "PLAINTEXT:SASL_PLAINTEXT,PROXY:PLAINTEXT,CONTROLLER:PLAINTEXT"
            ),
            "inter.broker.listener.name": "PLAINTEXT",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.plaintext.plain.sasl.jaas.config": (
                "org.apache.kafka.common.security.plain.PlainLoginModule required "
                'username="broker" password="b" user_broker="b" user_engine="e" user_reader="r";'
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:broker;User:engine;User:ANONYMOUS",
        }
    )
    await asyncio.to_thread(server.start)
    try:
        log = a_log(server.bootstrap, "orders", username="engine", password="e", **SASL)
        await log.open()
        await log.append(0, steps(new_id(), 1))
        admin = AIOKafkaAdminClient(
            bootstrap_servers=server.bootstrap,
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_plain_username="engine",
            sasl_plain_password="e",
        )
        await admin.start()
        for right in READS:
            node = admin._client.get_random_node()
            await admin._client.send(node, CreateAclsRequest(*right))
        await admin.close()
        reader = a_log(server.bootstrap, "orders", username="reader", password="r", **SASL)
        await reader.open()
        assert (await reader.bounds(0)).end == 2
        with pytest.raises(ConfigurationError, match="Read and Write on the topic"):
            await reader.join(_follow)
        with pytest.raises(LogForbidden, match="does not let user 'reader' write to topic"):
            await reader.append(0, steps(new_id(), 1))
        await reader.close()
        await log.close()
    finally:
        await asyncio.to_thread(server.stop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"security_protocol": "TLS"}, "security_protocol 'TLS' is unknown; known: PLAINTEXT"),
        ({"security_protocol": "SASL_SSL"}, "needs a username and a password"),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "MAGIC"},
            "sasl_mechanism 'MAGIC' is unknown",
        ),
        ({"partitions": 0}, "partitions must be at least 1"),
        ({"session_timeout_ms": 1000, "heartbeat_ms": 600}, "at most half of session_timeout_ms"),
        ({"compression": "rar"}, "compression 'rar' is unknown; known: gzip"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        a_log("127.0.0.1:9092", "orders", **options)


@pytest.mark.parametrize("namespace", ["", "a b", "..", "x" * 300, "orders/1"])
def test_a_namespace_must_be_able_to_name_a_topic(namespace: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot name a topic"):
        a_log("127.0.0.1:9092", namespace)


async def test_a_file_that_is_missing_is_named() -> None:
    log = a_log("127.0.0.1:9092", "orders", security_protocol="SSL", ssl_cafile="/no/ca.pem")
    with pytest.raises(ConfigurationError, match="ssl_cafile"):
        await log.open()


async def _follow(share: frozenset[int]) -> None:
    """An engine that serves nothing."""
