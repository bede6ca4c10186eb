"""Real Kafka and PostgreSQL servers, for tests, benchmarks and trying things out.

With a Docker engine they run in containers, otherwise as processes of this machine; on loopback
either way. SAGAZ_ES_SERVERS=docker or =local chooses. A server that cannot be had is an error.

    with KafkaServer() as kafka:
        kafka.bootstrap  # "127.0.0.1:23456"
        kafka.kill()  # as kill -9 does
        kafka.restart()  # same port, same data

All calls block: from a coroutine, `await asyncio.to_thread(kafka.restart)`.
"""

from tests.servers.choice import describe
from tests.servers.cluster import KafkaCluster
from tests.servers.kafka import KafkaServer
from tests.servers.postgresql import PostgreSQLServer
from tests.servers.proxy import Proxy, Way

__all__ = ["KafkaCluster", "KafkaServer", "PostgreSQLServer", "Proxy", "Way", "describe"]
