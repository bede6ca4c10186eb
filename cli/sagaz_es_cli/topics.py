"""`sagaz-es topics …`: the Kafka topic that holds the sagas of a namespace."""

from __future__ import annotations

from typing import Any

import click

from sagaz_es.connect import open_log
from sagaz_es.errors import ConfigurationError, UnsuitableTopic
from sagaz_es_cli.opening import inspect, run
from sagaz_es_cli.options import Group, Settings, command
from sagaz_es_cli.render import Block, Fields, emit


@click.group(cls=Group)
def topics() -> None:
    """The Kafka topic that holds the sagas of a namespace."""


@command(
    topics,
    "create",
    keys="topic, created, partitions, replication_factor",
    examples="""
        sagaz-es topics create --log kafka://broker:9092/orders --partitions 12
        """,
)
@click.option(
    "--partitions",
    type=click.IntRange(1, 10_000),
    help="How many; final, as a saga's partition follows from it. Default: 8.",
)
@click.option(
    "--replication-factor",
    "replicas",
    type=click.IntRange(1, 100),
    help="How many brokers keep each record. Default: 3, or as many as there are.",
)
def create(settings: Settings, partitions: int | None, replicas: int | None) -> None:
    """Make the topic of a Kafka log, so that it keeps history for ever.

    A topic that exists is left as it is. Status 1: sagas cannot live in it, or it has not as many
    partitions or replicas as were asked for.
    """

    async def work() -> dict[str, Any]:
        from sagaz_es.log.kafka_admin import REPLICAS, create_topic

        log = kafka_log(settings)
        _, facts = await inspect(log)
        given = min(REPLICAS, facts.brokers)
        if replicas and not facts.partitions and replicas != given:
            raise UnsuitableTopic(
                log.topic,
                (f"on {facts.brokers} broker(s) it gets {given} replicas, not {replicas}",),
            )
        created = await create_topic(log.access, log.topic, partitions=partitions or 8)
        problems, facts = await inspect(log)
        if partitions and facts.partitions != partitions:
            problems = (*problems, f"it has {facts.partitions} partitions, and that stays so")
        if replicas and facts.replication != replicas:
            problems = (*problems, f"it has {facts.replication} replicas, not {replicas}")
        if problems:
            raise UnsuitableTopic(log.topic, problems)
        return {
            "topic": log.topic,
            "created": created,
            "partitions": facts.partitions,
            "replication_factor": facts.replication,
        }

    record = run(work())

    def view() -> list[Block]:
        return [Fields(list(record.items()))]

    emit(settings.format, record, view)


def kafka_log(settings: Settings) -> Any:
    """The log as a KafkaEventLog, not opened. Raises ConfigurationError for another one."""
    log = open_log(settings.log)
    if not hasattr(log, "topic"):
        raise ConfigurationError(
            f"{log.name} has no topic; name a Kafka log: --log kafka://host:port/namespace"
        )
    return log
