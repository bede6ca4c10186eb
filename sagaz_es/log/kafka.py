"""EventLog on a Kafka topic, `<namespace>.saga-events`: key = saga id, one partition a saga."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core.events import Entry, Event, NamespaceCreated
from sagaz_es.errors import AppendUnknown, ConfigurationError, Unreachable, UnsuitableTopic
from sagaz_es.log import kafka_quiet
from sagaz_es.log.checks import MAX_VALUE_BYTES, check_partition, check_size, key_of
from sagaz_es.log.kafka_admin import TopicFacts, facts_of, make_topic, problems_of
from sagaz_es.log.kafka_brokers import Brokers, Deadlines, KafkaAccess
from sagaz_es.log.kafka_group import Coordinator, KafkaMembership
from sagaz_es.log.kafka_producer import NO_HEADERS, Appender, Encoded
from sagaz_es.log.kafka_reader import REPLAY_ID, Reader
from sagaz_es.log.partitioning import partition_of
from sagaz_es.ports import Bounds, Chunk, Membership, Rebalanced, Record, Undecodable

logger = logging.getLogger("sagaz_es.log")

DEFAULT_PARTITIONS = 8
COMPRESSIONS = ("", "gzip", "lz4", "snappy", "zstd")
MAX_APPEND_BYTES = 1_048_588
"""The most that one append takes, unless the topic takes less; Kafka's own default for a batch."""


class KafkaEventLog:
    """EventLog on Kafka. For one event loop, from `open` to `close`.

    `max_append_bytes`, known after `open`, is the most that one append may take: all its records
    with up to 36 bytes more each. `access` and `topic` are for the commands of `kafka_admin`.
    """

    def __init__(
        self,
        bootstrap: Sequence[str],
        namespace: str,
        codec: AvroCodec,
        *,
        security_protocol: str = "PLAINTEXT",
        sasl_mechanism: str = "PLAIN",
        username: str = "",
        password: str = "",
        ssl_cafile: str = "",
        ssl_certfile: str = "",
        ssl_keyfile: str = "",
        partitions: int | None = None,  # if the topic is made here; 8
        session_timeout_ms: int = 6000,  # after this silence, others take an engine's partitions
        heartbeat_ms: int | None = None,  # how soon it hears of a change; None: session / 6
        compression: str = "",
        allow_unsuitable: bool = False,  # for looking at a topic that an engine refuses
        deadlines: Deadlines | None = None,
    ) -> None:
        self.access = KafkaAccess(
            tuple(bootstrap),
            security_protocol=security_protocol,
            sasl_mechanism=sasl_mechanism,
            username=username,
            password=password,
            ssl_cafile=ssl_cafile,
            ssl_certfile=ssl_certfile,
            ssl_keyfile=ssl_keyfile,
        )
        if not re.fullmatch(r"[a-zA-Z0-9._-]{1,200}", namespace) or namespace in (".", ".."):
            raise ConfigurationError(
                f"namespace {namespace!r} cannot name a topic: up to 200 letters, digits, "
                "'.', '_' and '-'"
            )
        if partitions is not None and partitions < 1:
            raise ConfigurationError(f"partitions must be at least 1, not {partitions}")
        heartbeat_ms = heartbeat_ms or session_timeout_ms // 6
        if not 0 < heartbeat_ms * 2 <= session_timeout_ms:
            raise ConfigurationError(
                f"heartbeat_ms={heartbeat_ms} must be at most half of session_timeout_ms="
                f"{session_timeout_ms}"
            )
        if compression not in COMPRESSIONS:
            known = ", ".join(COMPRESSIONS[1:])
            raise ConfigurationError(f"compression {compression!r} is unknown; known: {known}")
        self.namespace = namespace
        self.topic = f"{namespace}.saga-events"
        self.group = f"{namespace}.engines"
        self.name = f"kafka://{self.access.address}/{namespace}"
        self.max_append_bytes = MAX_APPEND_BYTES
        self._codec, self._deadlines = codec, deadlines or Deadlines()
        self._session_timeout_ms, self._heartbeat_ms = session_timeout_ms, heartbeat_ms
        self._compression, self._allow_unsuitable = compression, allow_unsuitable
        self._asked_for, self._partitions = partitions, partitions or DEFAULT_PARTITIONS
        self._parts: _Parts | None = None
        self._members: set[KafkaMembership] = set()

    # --- opening and closing -----------------------------------------------------------------

    async def open(self) -> None:
        if self._parts is not None:
            return
        until = _in(self._deadlines.open_s)
        brokers = Brokers(self.access, self._deadlines, self.topic)
        kafka_quiet.begin()
        try:
            await brokers.connect(until)
            facts = await self._suitable(brokers, until)
            self._partitions = facts.partitions
            if self._asked_for not in (None, facts.partitions):
                logger.warning(
                    "topic %s has %d partitions, not %d: a number in the URL counts when the topic "
                    "is made, and cannot be changed later",
                    self.topic,
                    facts.partitions,
                    self._asked_for,
                )
            self.max_append_bytes = min(facts.max_message_bytes, MAX_APPEND_BYTES)
            await brokers.follow_topic()
            appender = Appender(
                self.access, self._deadlines, self.topic, self.max_append_bytes, self._compression
            )
            reader = Reader(brokers, self._codec)
            self._parts = _Parts(brokers, appender, reader, {})
            if not self._allow_unsuitable:
                await self._settle(until)
        except BaseException:
            if self._parts is None:
                await brokers.close()
                kafka_quiet.end()
            else:
                await self.close()
            raise

    async def close(self) -> None:
        parts, self._parts = self._parts, None
        if parts is None:
            return
        try:
            for member in tuple(self._members):
                await member.end()
            await asyncio.gather(parts.appender.close(), parts.brokers.close())
        finally:
            kafka_quiet.end()

    async def _suitable(self, brokers: Brokers, until: float) -> TopicFacts:
        """The topic, made if it is missing. Raises UnsuitableTopic."""
        facts = await facts_of(brokers, until)
        if not facts.partitions and not self._allow_unsuitable:
            facts = await make_topic(brokers, self._partitions, until)
        problems = problems_of(facts)
        if problems and not (self._allow_unsuitable and facts.partitions):
            raise UnsuitableTopic(self.topic, problems)
        return facts

    async def _settle(self, until: float) -> None:
        """See to it that each partition begins with NamespaceCreated, and that it is ours.

        Of several processes that do so at once, the one whose record comes first has done it; a
        later NamespaceCreated means nothing to a reader.
        """
        firsts = await asyncio.gather(*(self._first(n, until) for n in range(self._partitions)))
        problems = []
        for number, first in enumerate(firsts):
            if first is None:
                continue  # the beginning is deleted: nobody can tell any more
            if not isinstance(first, NamespaceCreated):
                problems.append(f"partition {number} does not begin with NamespaceCreated")
            elif first.namespace != self.namespace:
                problems.append(f"partition {number} is of namespace {first.namespace!r}")
            elif first.partitions != self._partitions:
                problems.append(
                    f"it was made with {first.partitions} partitions and has {self._partitions}: "
                    "sagas would be looked for in the wrong one"
                )
        if problems:
            raise UnsuitableTopic(self.topic, tuple(dict.fromkeys(problems)))

    async def _first(self, partition: int, until: float) -> Entry | Undecodable | None:
        reader = self._opened.reader
        bounds = await reader.bounds(partition, until)
        if bounds.start:
            return None
        if not bounds.end:
            now = time.time_ns() // 1000
            first = NamespaceCreated(self.namespace, partition, self._partitions, now)
            try:
                await self.append(partition, [first])
            except AppendUnknown as error:
                raise Unreachable("Kafka", self.access.address, str(error)) from error
        chunk = await reader.read(partition, 0, limit=1, wait_s=self._deadlines.read_s)
        return chunk.records[0].entry if chunk.records else None

    @property
    def _opened(self) -> _Parts:
        if self._parts is None:
            raise RuntimeError(f"{self.name} is not open")
        return self._parts

    # --- EventLog ----------------------------------------------------------------------------

    @property
    def partitions(self) -> int:
        return self._partitions

    @property
    def pending_since(self) -> int | None:
        """Since when the oldest append waits for Kafka, in µs since 1970; None: none does."""
        return self._parts.appender.pending_since if self._parts else None

    @property
    def trouble(self) -> str:
        """Why nothing can be read or appended now; empty: nothing says so."""
        if self._parts is None or not self._parts.brokers.topic_is_gone:
            return ""
        return f"no broker knows topic {self.topic!r} any more: was it deleted?"

    def partition_of(self, saga_id: str) -> int:
        return partition_of(saga_id, self._partitions)

    async def append(self, partition: int, entries: Sequence[Entry]) -> int:
        if not entries:
            raise ValueError("an append holds at least one entry")
        encode = self._codec.encode
        records = []
        for entry in entries:
            replay_id = entry.replay_id if type(entry) is Event else ""
            records.append(_encoded(partition, key_of(entry), encode(entry), replay_id))
        return await self._append(partition, records)

    async def append_raw(self, partition: int, key: str, value: bytes) -> int:
        return await self._append(partition, [_encoded(partition, key, value)])

    async def _append(self, partition: int, records: Sequence[Encoded]) -> int:
        check_partition(partition, self._partitions)
        try:
            return await self._opened.appender.append(partition, records)
        except AppendUnknown as error:
            if self.trouble:
                raise AppendUnknown(partition, self.trouble) from error
            raise

    async def read(
        self, partition: int, offset: int, *, limit: int = 1000, wait_s: float = 0.0
    ) -> Chunk:
        check_partition(partition, self._partitions)
        return await self._opened.reader.read(partition, offset, limit, wait_s)

    async def read_saga(self, saga_id: str, from_offset: int = 0) -> tuple[Record, ...]:
        partition = self.partition_of(saga_id)
        return await self._opened.reader.of_key(partition, saga_id.encode(), from_offset)

    async def bounds(self, partition: int) -> Bounds:
        check_partition(partition, self._partitions)
        return await self._opened.reader.bounds(partition, _in(self._deadlines.read_s))

    async def low_water_mark(self, partition: int, *, group: str = "") -> int:
        check_partition(partition, self._partitions)
        coordinator, until = self._coordinator(group), _in(self._deadlines.read_s)
        (mark, _), bounds = await asyncio.gather(
            coordinator.mark(partition, until), self._opened.reader.bounds(partition, until)
        )
        return max(mark, bounds.start)

    async def mark_note(self, partition: int, *, group: str = "") -> str:
        check_partition(partition, self._partitions)
        _, note = await self._coordinator(group).mark(partition, _in(self._deadlines.read_s))
        return note

    async def members(self, *, group: str = "") -> int:
        return await self._coordinator(group).members(_in(self._deadlines.read_s))

    def _coordinator(self, group: str) -> Coordinator:
        parts = self._opened
        if group not in parts.coordinators:
            parts.coordinators[group] = Coordinator(parts.brokers, self.group_id(group))
        return parts.coordinators[group]

    def group_id(self, group: str) -> str:
        """The consumer group's id. No namespace has a colon: two never share one."""
        return f"{self.group}:{group}" if group else self.group

    async def join(
        self, on_change: Rebalanced, *, instance_id: str | None = None, group: str = ""
    ) -> Membership:
        self._opened  # noqa: B018 - raises if it is not open
        member = KafkaMembership(
            self.access,
            self._deadlines,
            self.topic,
            self.group_id(group),
            self._partitions,
            on_change,
            session_timeout_ms=self._session_timeout_ms,
            heartbeat_ms=self._heartbeat_ms,
            instance_id=instance_id,
            on_end=self._members.discard,
        )
        self._members.add(member)
        await member.start()
        return member


class _Parts(NamedTuple):
    """What an open log consists of."""

    brokers: Brokers
    appender: Appender
    reader: Reader
    coordinators: dict[str, Coordinator]  # by group, once it was asked


def _in(seconds: float) -> float:
    """The loop's time then."""
    return asyncio.get_running_loop().time() + seconds


def _encoded(partition: int, key: str, value: bytes, replay_id: str = "") -> Encoded:
    check_size(partition, key, value, MAX_VALUE_BYTES)
    headers = [(REPLAY_ID, replay_id.encode())] if replay_id else NO_HEADERS
    return key.encode() or None, value, headers
