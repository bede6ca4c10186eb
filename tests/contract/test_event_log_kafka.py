"""The Kafka log keeps the laws of a log, on a real broker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.log.kafka import KafkaEventLog
from sagaz_es.ports import EventLog
from sagaz_es.testing.contracts.event_log import EventLogContract


class TestKafkaEventLog(EventLogContract):
    @pytest.fixture
    async def log(self, kafka_bootstrap: str, kafka_namespace: str) -> AsyncIterator[EventLog]:
        log = log_on(kafka_bootstrap, kafka_namespace)
        await log.open()
        yield log
        await log.close()

    async def another(self, log: EventLog) -> EventLog:
        assert isinstance(log, KafkaEventLog)
        other = log_on(log.access.address, log.namespace)
        await other.open()
        return other


def log_on(bootstrap: str, namespace: str) -> KafkaEventLog:
    return KafkaEventLog(
        [bootstrap],
        namespace,
        AvroCodec(),
        partitions=4,
        session_timeout_ms=2000,
        heartbeat_ms=200,
    )
