"""A Kafka broker: one node, broker and controller in one process."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Mapping

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import NodeNotReadyError

from tests.servers import choice, local
from tests.servers.server import Box, Server, free_port, in_own_loop

# Of ApiVersions, version 0: the first request that a client sends, and the broker answers it only
# when it serves all the others. Length, api 18, version 0, correlation id 1, no client id.
API_VERSIONS = struct.pack(">ihhih", 10, 18, 0, 1, -1)


class KafkaServer(Server):
    """`settings` are broker settings, over those that make a broker fit for tests.

    Topics are not created by themselves, sessions may be as short as 300 ms, groups form at once,
    and a broker that was killed is back in seconds. Who connects to `through_proxy` stays behind
    the proxy that listens there, one of yours: `Proxy(kafka.behind_proxy, kafka.proxy_port)`.
    """

    name = "Kafka"

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._controller_port = free_port()
        self.proxy_port, self.behind_proxy = free_port(), free_port()
        self._settings = dict(settings or {})

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def through_proxy(self) -> str:
        """Where a proxy has to listen: clients that begin there are told to go on there."""
        return f"127.0.0.1:{self.proxy_port}"

    @property
    def controller(self) -> str:
        """Where it takes part in the election of a controller."""
        return f"127.0.0.1:{self._controller_port}"

    def delete_topics(self, prefix: str) -> None:
        """Delete every topic whose name begins so."""
        until = time.monotonic() + 30
        while True:
            try:
                return in_own_loop(lambda: self._delete_topics(prefix))
            except NodeNotReadyError:  # its own controller misses it a moment longer: it was frozen
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    async def _delete_topics(self, prefix: str) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap, request_timeout_ms=10_000)
        await admin.start()
        try:
            topics = [topic for topic in await admin.list_topics() if topic.startswith(prefix)]
            if topics:
                await admin.delete_topics(topics)
            until = time.monotonic() + 30
            # The controller deletes at once; that is not yet known everywhere.
            while not set(topics).isdisjoint(await admin.list_topics()):
                if time.monotonic() > until:
                    raise TimeoutError(f"topics {topics} are still there after 30 s")
                await asyncio.sleep(0.05)
        finally:
            await admin.close()

    def prepare(self) -> None:
        if choice.docker_engine():
            from tests.servers import container

            container.pull("kafka")
        else:
            local.prepare_kafka(self._properties(bind="127.0.0.1"), self._answers)

    def _make_box(self) -> Box:
        if choice.docker_engine():
            from tests.servers import container

            # In there, too, it listens on its public port: it connects to itself, by that address.
            return container.kafka(self._properties(bind="0.0.0.0"), self.port, self.behind_proxy)
        return local.kafka(self._properties(bind="127.0.0.1"), self._answers)

    def _properties(self, bind: str) -> dict[str, str]:
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{self.controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{bind}:{self.port},PROXY://{bind}:{self.behind_proxy}"
            f",CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap},PROXY://{self.through_proxy}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXY:PLAINTEXT"
            ",CONTROLLER:PLAINTEXT",
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "300",
            # How long a killed broker is not let in again; 9 s by default.
            "broker.session.timeout.ms": "1500",
            "broker.heartbeat.interval.ms": "300",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "4",
            # A topic that a test deleted is gone from the disk soon, not a minute later.
            "log.segment.delete.delay.ms": "1000",
        } | self._settings

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2.0) as connection:
                connection.sendall(API_VERSIONS)
                return len(connection.recv(8)) == 8
        except OSError:
            return False
