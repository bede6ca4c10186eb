"""The topic of a namespace: made as a history needs it, looked at, and judged.

`create_topic` and `inspect_topic` are for programs; they connect for themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.errors import KafkaError, LeaderNotAvailableError
from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest
from aiokafka.protocol.metadata import MetadataRequest
from msgspec import Struct

from sagaz_es.errors import UnsuitableTopic
from sagaz_es.log import kafka_quiet
from sagaz_es.log.checks import MAX_VALUE_BYTES
from sagaz_es.log.kafka_brokers import Brokers, Deadlines, KafkaAccess, check

# What Kafka calls them.
TOPIC, BROKER = 2, 4
TOPIC_EXISTS, UNKNOWN_TOPIC = 36, 3
FORBIDDEN_CODES = (29, 31)
RETRIABLE = (7, 38, 41)  # it timed out; too few brokers are up; it was not the controller

WANTED = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    # The broker's own clock: a writer's wrong one can then neither disturb searches by time nor
    # have its records refused.
    "message.timestamp.type": "LogAppendTime",
}
MAX_MESSAGE_BYTES = 2 * 1024 * 1024
LEAST_MESSAGE_BYTES = MAX_VALUE_BYTES + 4096  # the largest record, with its key and headers
REPLICAS = 3
IN_SYNC = 2


class TopicFacts(Struct, frozen=True):
    """A topic as it is, and what its cluster allows. None: we were not told."""

    topic: str
    brokers: int
    partitions: int = 0  # 0: there is no such topic
    replication: int = 0  # of the partition that has fewest replicas
    without_leader: tuple[int, ...] = ()  # partitions
    config: Mapping[str, str | None] | None = None
    session_timeout_ms: tuple[int, int] | None = None  # what the brokers allow: from, to

    @property
    def max_message_bytes(self) -> int:
        return int((self.config or {}).get("max.message.bytes") or LEAST_MESSAGE_BYTES)


async def create_topic(
    access: KafkaAccess,
    topic: str,
    *,
    partitions: int = 8,
    deadlines: Deadlines | None = None,
) -> bool:
    """Make the topic; False: it exists, and is left as it is."""
    async with _connected(access, topic, deadlines) as (brokers, until):
        if (await facts_of(brokers, until)).partitions:
            return False
        await make_topic(brokers, partitions, until)
        return True


async def inspect_topic(
    access: KafkaAccess, topic: str, *, deadlines: Deadlines | None = None
) -> tuple[tuple[str, ...], TopicFacts]:
    """What makes the topic unsuitable (empty: nothing), and what it is like."""
    async with _connected(access, topic, deadlines) as (brokers, until):
        facts = await facts_of(brokers, until)
        return problems_of(facts), facts


@asynccontextmanager
async def _connected(
    access: KafkaAccess, topic: str, deadlines: Deadlines | None
) -> AsyncIterator[tuple[Brokers, float]]:
    deadlines = deadlines or Deadlines()
    brokers = Brokers(access, deadlines, topic)
    until = asyncio.get_running_loop().time() + deadlines.open_s
    kafka_quiet.begin()
    try:
        await brokers.connect(until)
        yield brokers, until
    finally:
        await brokers.close()
        kafka_quiet.end()


def problems_of(facts: TopicFacts) -> tuple[str, ...]:
    """Whatever would lose history, or refuse records that another log takes."""
    if not facts.partitions:
        return ("it does not exist",)
    if facts.config is None:
        return ("its configuration cannot be checked: the right DescribeConfigs is missing",)
    problems = [
        f"{name} is {facts.config.get(name)}, not {wanted}"
        for name, wanted in WANTED.items()
        if facts.config.get(name) != wanted
    ]
    if facts.max_message_bytes < LEAST_MESSAGE_BYTES:
        problems.append(
            f"max.message.bytes is {facts.max_message_bytes}, below {LEAST_MESSAGE_BYTES}"
        )
    if facts.brokers >= REPLICAS:
        if facts.replication < REPLICAS:
            problems.append(
                f"it has {facts.replication} replica(s) on {facts.brokers} brokers, not {REPLICAS}"
            )
        in_sync = int(facts.config.get("min.insync.replicas") or 1)
        if in_sync < IN_SYNC:
            problems.append(f"min.insync.replicas is {in_sync}, not {IN_SYNC}")
    return tuple(problems)


async def make_topic(brokers: Brokers, partitions: int, until: float) -> TopicFacts:
    """The topic, created, each partition with a leader; fine if another process was first."""

    async def attempt() -> None:
        replication = await _replication(brokers, (await facts_of(brokers, until)).brokers)
        config = WANTED | {
            "min.insync.replicas": str(IN_SYNC if replication >= REPLICAS else 1),
            "max.message.bytes": str(MAX_MESSAGE_BYTES),
        }
        new: Any = (brokers.topic, partitions, replication, [], list(config.items()))
        request = CreateTopicsRequest([new], round(brokers.deadlines.request_s * 1000), False)
        answer = await brokers.ask(brokers.controller(), request)
        ((_, code, *message),) = answer.topic_errors
        reason = (message and message[0]) or f"error {code}"
        if code in RETRIABLE:
            raise KafkaError(reason)
        if code not in (0, TOPIC_EXISTS):
            raise UnsuitableTopic(brokers.topic, (f"it cannot be created: {reason}",))

    async def led() -> TopicFacts:
        facts = await facts_of(brokers, until)
        if not facts.partitions or facts.without_leader:
            raise LeaderNotAvailableError("the topic is being made")
        return facts

    await brokers.retry(attempt, until, f"making topic {brokers.topic!r}")
    return await brokers.retry(led, until, f"topic {brokers.topic!r}: its leaders")


async def _replication(brokers: Brokers, up: int) -> int:
    """How many replicas the topic gets: three, or as many as the cluster has brokers.

    While a cluster starts, not all of them are up yet. How many there will be shows in how it keeps
    the offsets of groups; with fewer brokers no group works.
    """
    config = await _broker_config(brokers)
    made_for = int((config or {}).get("offsets.topic.replication.factor") or 1)
    return min(REPLICAS, max(up, made_for))


async def facts_of(brokers: Brokers, until: float) -> TopicFacts:
    """What the cluster says of the topic."""

    async def attempt() -> TopicFacts:
        request = MetadataRequest([brokers.topic], allow_auto_topic_creation=False)
        answer = await brokers.ask(brokers.any_node(), request)
        ((code, _, _, partitions),) = answer.topics
        if code == UNKNOWN_TOPIC:
            return TopicFacts(brokers.topic, len(answer.brokers))
        check(code)
        return TopicFacts(
            topic=brokers.topic,
            brokers=len(answer.brokers),
            partitions=len(partitions),
            replication=min(len(replicas) for _, _, _, replicas, *_ in partitions),
            without_leader=tuple(number for _, number, leader, *_ in partitions if leader < 0),
            config=await _config(brokers, brokers.any_node(), TOPIC, brokers.topic),
            session_timeout_ms=await session_timeouts(brokers),
        )

    return await brokers.retry(attempt, until, f"looking at topic {brokers.topic!r}")


async def session_timeouts(brokers: Brokers) -> tuple[int, int] | None:
    """The shortest and the longest session that the brokers let a group's member have, in ms."""
    config = await _broker_config(brokers)
    names = ("group.min.session.timeout.ms", "group.max.session.timeout.ms")
    shortest, longest = ((config or {}).get(name) for name in names)
    return (int(shortest), int(longest)) if shortest and longest else None


async def _broker_config(brokers: Brokers) -> Mapping[str, str | None] | None:
    node = brokers.any_node()
    return await _config(brokers, node, BROKER, str(node))


async def _config(
    brokers: Brokers, node: int, kind: int, name: str
) -> Mapping[str, str | None] | None:
    """None: we have no right to see it."""
    answer = await brokers.ask(node, DescribeConfigsRequest([(kind, name, None)]))
    ((code, _, _, _, entries),) = answer.resources
    if code in FORBIDDEN_CODES:
        return None
    check(code)
    return {entry[0]: entry[1] for entry in entries}
