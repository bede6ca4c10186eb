"""Three Kafka brokers, each a controller, too, that keep every record on all of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Self

from aiokafka.admin import AIOKafkaAdminClient

from tests.servers import local
from tests.servers.kafka import KafkaServer
from tests.servers.server import Box, in_own_loop

SETTINGS = {
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    # A dead node is missed within seconds: by default it takes ten.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "400",
    "controller.quorum.election.timeout.ms": "400",
    "controller.quorum.fetch.timeout.ms": "800",
}


class KafkaNode(KafkaServer):
    """One of the three. A process of this machine, also where there is a Docker engine: nodes in
    containers would not find each other on loopback."""

    def __init__(self, number: int) -> None:
        super().__init__(SETTINGS)
        self.number = number
        self.voters = ""

    def _make_box(self) -> Box:
        properties = self._properties(bind="127.0.0.1")
        properties |= {"node.id": str(self.number), "controller.quorum.voters": self.voters}
        return local.kafka(properties, self._answers)


class KafkaCluster:
    """About 0.9 GB of memory. `nodes` can be killed, paused and started again one by one."""

    def __init__(self) -> None:
        self.nodes = tuple(KafkaNode(number) for number in (1, 2, 3))
        voters = ",".join(f"{node.number}@{node.controller}" for node in self.nodes)
        for node in self.nodes:
            node.voters = voters

    @property
    def bootstrap(self) -> str:
        return ",".join(node.bootstrap for node in self.nodes)

    def leader(self, topic: str, partition: int) -> KafkaNode:
        """The node that leads a partition now."""
        return in_own_loop(lambda: self._leader(topic, partition))

    async def _leader(self, topic: str, partition: int) -> KafkaNode:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap, request_timeout_ms=10_000)
        await admin.start()
        try:
            (described,) = await admin.describe_topics([topic])
        finally:
            await admin.close()
        (led_by,) = (p["leader"] for p in described["partitions"] if p["partition"] == partition)
        return next(node for node in self.nodes if node.number == led_by)

    def start(self) -> Self:
        KafkaServer().prepare()  # by a node that answers alone
        # None of them answers before two are there.
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            for started in [threads.submit(node.start, timeout_s=100) for node in self.nodes]:
                started.result()
        return self

    def stop(self) -> None:
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            for node in self.nodes:
                threads.submit(self._end, node)

    @staticmethod
    def _end(node: KafkaNode) -> None:
        if node._box is not None:
            node.kill()  # in order each would wait for the others
            node.stop()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()
