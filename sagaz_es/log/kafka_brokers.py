"""Connections to Kafka's brokers: bounded in time, tried again, closed without a rest.

The requests are aiokafka's, sent by its client; its consumer and admin client are not used, see
docs/decisions/0010-kafka-log.md. It has no types, so what it gives is `Any` here and in `kafka_*`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    LeaderNotAvailableError,
    OffsetOutOfRangeError,
    RequestTimedOutError,
    SaslAuthenticationFailed,
    StaleMetadata,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)
from aiokafka.helpers import create_ssl_context
from aiokafka.structs import TopicPartition

from sagaz_es.errors import ConfigurationError, LogGone, Unreachable
from sagaz_es.log import kafka_quiet

T = TypeVar("T")

MAIN: Any = ConnectionGroup.DEFAULT  # the lane that the client looks up leaders on

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

FORBIDDEN = (
    TopicAuthorizationFailedError,
    GroupAuthorizationFailedError,
    ClusterAuthorizationFailedError,
)
RIGHTS = (
    "an engine needs Describe, DescribeConfigs, Read and Write on the topic (Create where it is "
    "missing), and Read on the group"
)
NOT_LET_IN = (IllegalSaslStateError, SaslAuthenticationFailed, UnsupportedSaslMechanismError)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a call may take, in seconds. What outlasts it raises."""

    # `open`, `join`, and each command of kafka_admin. A person who waits is told within 10 s.
    open_s: float = 8.0
    append_s: float = 10.0  # then the outcome is unknown
    read_s: float = 10.0  # every other call; `read` after its own `wait_s`
    close_s: float = 5.0  # `close` and `leave`, each
    # One request to one broker. A frozen one holds its partitions up for once or twice as long,
    # although the others may have chosen new leaders before.
    request_s: float = 3.0
    retry_s: float = 0.05  # the pause before a request is tried again


@dataclass(frozen=True, slots=True)
class KafkaAccess:
    """Where the brokers are and who we are. `bootstrap`: "host:port", one broker is enough."""

    bootstrap: tuple[str, ...]
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = "PLAIN"
    username: str = ""
    password: str = field(default="", repr=False)
    ssl_cafile: str = ""  # empty: the system's authorities
    ssl_certfile: str = ""
    ssl_keyfile: str = ""

    def __post_init__(self) -> None:
        _one_of("security_protocol", self.security_protocol, PROTOCOLS)
        if not self.bootstrap or not all(self.bootstrap):
            raise ConfigurationError("bootstrap names no broker; give at least one 'host:port'")
        if self.security_protocol.startswith("SASL"):
            _one_of("sasl_mechanism", self.sasl_mechanism, MECHANISMS)
            if not self.username or not self.password:
                raise ConfigurationError(
                    f"security_protocol {self.security_protocol} needs a username and a password"
                )

    @property
    def address(self) -> str:
        """For people, without the password."""
        return ",".join(self.bootstrap)

    def options(self, deadlines: Deadlines) -> dict[str, Any]:
        """The arguments that every client of aiokafka takes."""
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.bootstrap),
            "client_id": "sagaz-es",
            "request_timeout_ms": round(deadlines.request_s * 1000),
            "retry_backoff_ms": round(deadlines.retry_s * 1000),
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password,
            }
        if self.security_protocol.endswith("SSL"):
            options["ssl_context"] = self._ssl_context()
        return options

    def _ssl_context(self) -> Any:
        try:
            return create_ssl_context(
                cafile=self.ssl_cafile or None,
                certfile=self.ssl_certfile or None,
                keyfile=self.ssl_keyfile or None,
            )
        except OSError as error:  # a missing file, and ssl.SSLError for one that is no certificate
            raise ConfigurationError(
                f"ssl_cafile, ssl_certfile or ssl_keyfile cannot be used: {error}"
            ) from error


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigurationError(f"{name} {value!r} is unknown; known: {', '.join(known)}")


def check(code: int) -> None:
    """Raises aiokafka's error for an error code in an answer; 0 is none."""
    if code:
        raise kafka_errors.for_code(code)(f"error {code}")


class Brokers:
    """Requests to the cluster that has `topic`."""

    def __init__(self, access: KafkaAccess, deadlines: Deadlines, topic: str) -> None:
        self.access, self.deadlines, self.topic = access, deadlines, topic
        self._client: Any = AIOKafkaClient(**access.options(deadlines))
        self._followed = False  # the topic's leaders are known
        self._asking = 0  # requests under way
        self._closed = False
        self._polls: set[asyncio.Task[Any]] = set()
        self._new_lane = count(1)
        self._idle_lanes: list[str] = []

    async def connect(self, until: float) -> None:
        """Find the cluster. Raises Unreachable at `until`, ConfigurationError if we are refused."""
        why = ""
        with kafka_quiet.connecting():
            try:
                async with asyncio.timeout_at(until):
                    while True:
                        try:
                            await self._client.bootstrap()
                        except KafkaError:
                            # It does not tell why, so look for ourselves.
                            why = await self._why_not()
                        else:
                            return
                        await asyncio.sleep(self.deadlines.retry_s)
            except TimeoutError:
                raise self._unreachable(why) from None

    async def _why_not(self) -> str:
        """The reason that the first broker gives; empty: it has none (any more)."""
        options = self.access.options(self.deadlines)
        del options["bootstrap_servers"], options["retry_backoff_ms"]
        for host, port, _ in collect_hosts(list(self.access.bootstrap)):
            try:
                connection = await create_conn(host, port, **options)
            except NOT_LET_IN as error:
                raise ConfigurationError(
                    f"Kafka at {host}:{port} refuses user {self.access.username!r}: {error}; "
                    "check username, password and sasl_mechanism"
                ) from None
            except ssl.SSLCertVerificationError as error:
                raise ConfigurationError(
                    f"the certificate of Kafka at {host}:{port} is not trusted: "
                    f"{error.verify_message}; name its authority's file as ssl_cafile"
                ) from None
            except ssl.SSLError as error:
                return f"TLS: {error.reason}"
            except OSError as error:
                known = error.errno is not None and error.errno > 0
                return os.strerror(error.errno) if known else str(error)  # type: ignore[arg-type]
            except KafkaError as error:
                return str(error)
            connection.close()
        return ""

    def _check_open(self) -> None:
        if self._closed:
            raise self._unreachable("the log was closed")

    def _unreachable(self, detail: str) -> Unreachable:
        return Unreachable("Kafka", self.access.address, detail)

    # --- whom to ask -------------------------------------------------------------------------

    def any_node(self) -> int:
        node: int | None = self._client.get_random_node()
        if node is None:
            raise StaleMetadata("no broker is known")
        return node

    def controller(self) -> int:
        controller = self._client.cluster.controller
        return self.any_node() if controller is None else int(controller.nodeId)

    def leader(self, partition: int) -> int:
        """The broker that leads a partition of the topic."""
        leader = self._client.cluster.leader_for_partition(TopicPartition(self.topic, partition))
        if leader is None:
            raise StaleMetadata(f"no broker knows topic {self.topic!r}")
        if leader < 0:
            raise LeaderNotAvailableError(f"partition {partition} has no leader")
        return int(leader)

    async def follow_topic(self) -> None:
        """Keep the leaders of the topic known. Not before it exists: asking may create it."""
        self._client.set_topics([self.topic])
        self._followed = bool(await self._client.force_metadata_update())

    @property
    def topic_is_gone(self) -> bool:
        """Whether the brokers, as far as they answer, do not know the topic any more."""
        return self._followed and self._client.cluster.partitions_for_topic(self.topic) is None

    # --- asking ------------------------------------------------------------------------------

    async def ask(
        self, node: int, request: Any, *, lane: str = "", within_s: float | None = None
    ) -> Any:
        """One answer. Each lane is a connection: a broker answers a connection's requests in turn.

        Raises aiokafka's errors.
        """
        self._check_open()
        self._asking += 1
        try:
            async with asyncio.timeout(within_s):
                return await self._client.send(node, request, group=lane or MAIN)
        except TimeoutError:
            # What was asked for may still be answered: the next answer would wait behind it.
            connection = self._client._conns.pop((node, lane or MAIN), None)
            if connection is not None:
                connection.close()
            raise RequestTimedOutError(f"node {node} did not answer in {within_s} s") from None
        except KeyError:  # somebody else took the broken connection away meanwhile
            raise KafkaConnectionError(f"the connection to node {node} broke") from None
        finally:
            self._asking -= 1

    async def poll(self, node: int, request: Any) -> Any:
        """One answer to a request that the broker may hold back: it gets a lane for itself."""
        lane = self._idle_lanes.pop() if self._idle_lanes else f"poll-{next(self._new_lane)}"
        task = asyncio.get_running_loop().create_task(self.ask(node, request, lane=lane))
        self._polls.add(task)

        def done(task: asyncio.Task[Any]) -> None:
            self._polls.discard(task)
            self._idle_lanes.append(lane)
            if not task.cancelled():
                task.exception()  # whoever asked may have gone: then nobody else looks at it

        task.add_done_callback(done)
        # A caller that is cancelled leaves the lane busy until the broker has answered.
        return await asyncio.shield(task)

    async def retry(self, attempt: Callable[[], Awaitable[T]], until: float, what: str) -> T:
        """What `attempt` gives in the end; between two attempts the leaders are looked up anew.

        Raises Unreachable at `until`, LogGone if the topic is; at once OffsetOutOfRangeError, and
        ConfigurationError for what we have no right to.
        """
        why = "no answer"
        try:
            async with asyncio.timeout_at(until):
                while True:
                    try:
                        return await attempt()
                    except OffsetOutOfRangeError:
                        raise
                    except FORBIDDEN as error:
                        raise ConfigurationError(
                            f"{what} is not allowed: {type(error).__name__} on {self.topic!r}; "
                            f"{RIGHTS}"
                        ) from error
                    except KafkaError as error:
                        why = str(error)
                    await self.look_again()
        except TimeoutError:
            if self.topic_is_gone:
                raise LogGone(self.topic, self.access.address) from None
            raise self._unreachable(f"{what}: {why}") from None

    async def look_again(self) -> None:
        """After a pause, ask who leads what now."""
        await asyncio.sleep(self.deadlines.retry_s)
        self._check_open()
        await self._client.force_metadata_update()

    async def close(self) -> None:
        """Close every connection. Requests under way fail."""
        self._closed = True
        until = asyncio.get_running_loop().time() + self.deadlines.close_s
        await shut(self._client, within_s=self.deadlines.close_s)
        # A request that was just connecting has made one more.
        while self._asking and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)
            await shut(self._client, within_s=self.deadlines.close_s)
        if self._polls:
            await asyncio.wait(self._polls, timeout=self.deadlines.close_s)


async def shut(client: Any, *, within_s: float, reset: bool = False) -> None:
    """Close a client's connections; `reset`: and throw away what they have not sent.

    Without it a kernel goes on sending for minutes after its program has ended.
    """
    # Taken now: a connection that is being closed no longer tells.
    transports = [each._writer.transport for each in client._conns.values() if each._writer]
    if reset:
        _reset(transports)
    try:
        async with asyncio.timeout(within_s):
            await client.close()
    except TimeoutError:  # a frozen broker takes nothing and says nothing, not even good-bye
        _reset(transports)
        await asyncio.sleep(0)  # an aborted connection is closed in the loop's next round
    looking = client._md_update_fut
    if looking is not None and not looking.done():
        looking.set_result(False)  # nobody else will: it waits for the task that has just ended


def _reset(transports: list[Any]) -> None:
    for transport in transports:
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.fileno() >= 0:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
