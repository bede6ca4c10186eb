"""Membership in the group of a namespace's engines: who serves which partition, and the marks.

The classic group protocol takes every partition from everybody at each change. Here a member keeps
what it has: it says so when it joins, and the leader gives nobody a partition that another member
has. One that gets less than it has hands the rest over and joins again, now without it; then the
leader gives it to somebody else. So a partition has one engine at a time, unless a member was out
of the group and did not know it yet: then the fold decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
from aiokafka.client import CoordinationType
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorForGroupError,
)
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.commit import OffsetCommitRequest, OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.group import (
    HeartbeatRequest,
    JoinGroupRequest,
    LeaveGroupRequest,
    SyncGroupRequest,
)
from aiokafka.protocol.transaction import InitProducerIdRequest

from sagaz_es.errors import ConfigurationError, SagaError
from sagaz_es.log.kafka_admin import session_timeouts
from sagaz_es.log.kafka_brokers import Brokers, Deadlines, KafkaAccess, check
from sagaz_es.log.kafka_shares import Claim, Holding, shares
from sagaz_es.ports import Rebalanced

_log = logging.getLogger("sagaz_es.log")

PROTOCOL = "sagaz-es-1"  # members of another version of `shares` must not mix with ours

# Error codes that are part of the protocol's normal course.
ILLEGAL_GENERATION, UNKNOWN_MEMBER, REBALANCE, ID_REQUIRED, FENCED = 22, 25, 27, 79, 82
OTHER_PROTOCOL, SESSION_TIMEOUT = 23, 26
OUTDATED = (ILLEGAL_GENERATION, UNKNOWN_MEMBER, REBALANCE)


TOLD_AGAIN_S = 1.0
"""After this pause an engine that failed to follow its share is told again."""


class Coordinator:
    """The broker that coordinates our group. Raises aiokafka's errors."""

    def __init__(self, brokers: Brokers, group: str) -> None:
        self.brokers, self.group = brokers, group
        self._node: int | None = None

    async def ask(self, request: Any, *, lane: str, within_s: float | None = None) -> Any:
        if self._node is None:
            node = self.brokers.any_node()
            find = FindCoordinatorRequest(self.group, CoordinationType.GROUP)
            answer = await self.brokers.ask(node, find)
            check(answer.error_code)
            self._node = answer.coordinator_id
        try:
            return await self.brokers.ask(self._node, request, lane=lane, within_s=within_s)
        except KafkaError:
            self._node = None
            raise

    def check(self, code: int) -> None:
        """Raises for an error code; forgets the broker if it is no longer the coordinator."""
        try:
            check(code)
        except (GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError):
            self._node = None
            raise

    async def mark(self, partition: int, until: float) -> tuple[int, str]:
        """The committed offset of a partition (-1: none), and its note."""
        request = OffsetFetchRequest(self.group, [(self.brokers.topic, [partition])])

        async def attempt() -> tuple[int, str]:
            answer = await self.ask(request, lane="marks")
            self.check(getattr(answer, "error_code", 0))
            ((_, ((_, offset, note, code),)),) = answer.topics
            self.check(code)
            return int(offset), note or ""

        return await self.brokers.retry(attempt, until, f"the mark of partition {partition}")

    async def members(self, until: float) -> int:
        """How many members the group has."""

        async def attempt() -> int:
            answer = await self.ask(DescribeGroupsRequest([self.group]), lane="marks")
            ((code, _, _, _, _, members, *_),) = answer.groups
            self.check(code)
            return len(members)

        return await self.brokers.retry(attempt, until, f"the members of group {self.group!r}")


class _Again(KafkaError):  # type: ignore[misc]
    """The group has moved on: join again."""


class _Replaced(Exception):
    """Another process is the member of our instance id now."""


class KafkaMembership:
    """Membership of one engine; `start` makes it one."""

    def __init__(
        self,
        access: KafkaAccess,
        deadlines: Deadlines,
        topic: str,
        group: str,
        partitions: int,
        on_change: Rebalanced,
        *,
        session_timeout_ms: int,
        heartbeat_ms: int,
        instance_id: str | None,
        on_end: Callable[[KafkaMembership], None],
    ) -> None:
        self._deadlines, self._on_change, self._on_end = deadlines, on_change, on_end
        self._group, self._topic, self._partitions = group, topic, partitions
        self._session_s, self._heartbeat_s = session_timeout_ms / 1000, heartbeat_ms / 1000
        self._instance_id = instance_id
        # A join is answered when every member has joined or is given up: after a session, that is.
        patient = replace(deadlines, request_s=self._session_s + deadlines.request_s)
        self._brokers = Brokers(access, patient, topic)
        self._coordinator = Coordinator(self._brokers, group)

        self._member_id, self._generation = "", -1
        self._heard_at = 0.0  # loop time of the last good answer
        self._replaced = False
        self._holding = Holding()
        self._share: frozenset[int] = frozenset()  # what the group wants us to serve
        self._told: frozenset[int] | None = frozenset()  # what the engine knows; None: who knows
        self._marks: dict[int, int] = {}  # committed, as far as known in this generation
        self._committing = asyncio.Lock()  # or the lower one of two commits could come last
        self._rejoin = asyncio.Event()  # there is something that the group must know
        self._changed = asyncio.Event()  # the share did
        self._settled = asyncio.Event()  # and the engine has followed
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving: asyncio.Task[None] | None = None

    # --- Membership --------------------------------------------------------------------------

    async def leave(self, *, for_good: bool = False) -> None:
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave(for_good))
        await asyncio.shield(self._leaving)

    async def commit_low_water_mark(self, partition: int, offset: int, note: str = "") -> None:
        until = asyncio.get_running_loop().time() + self._deadlines.read_s

        async def attempt() -> None:
            place = (self._topic, [(partition, offset, note)])
            request = OffsetCommitRequest(
                self._group, self._generation, self._member_id, -1, [place]
            )
            answer = await self._coordinator.ask(request, lane="marks")
            ((_, ((_, code),)),) = answer.topics
            if code not in OUTDATED:  # if it is, the next commit will do
                self._coordinator.check(code)
                self._marks[partition] = offset

        async with self._committing:
            if partition not in self._holding.partitions:
                return  # handed over: the mark is somebody else's now
            if partition not in self._marks:
                self._marks[partition], _ = await self._coordinator.mark(partition, until)
            if offset > self._marks[partition]:
                await self._brokers.retry(attempt, until, f"the mark of partition {partition}")

    async def predecessor_is_alive(self, partition: int) -> bool:
        # A partition comes here when its member has handed it over, or is a member no longer.
        return False

    @property
    def trouble(self) -> str:
        """Why this member may not be one any more; empty: nothing says so."""
        if self._replaced:
            return f"another process has its instance id {self._instance_id!r}"
        silent_s = asyncio.get_running_loop().time() - self._heard_at
        if silent_s > self._session_s:
            return f"group {self._group!r} has not answered for {silent_s:.0f} s"
        return ""

    # --- being a member ----------------------------------------------------------------------

    async def start(self) -> None:
        """Join, and let the engine follow. Raises Unreachable, ConfigurationError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._deadlines.open_s + self._session_s
        try:
            await self._brokers.connect(until)
            await self._brokers.follow_topic()
            await self._brokers.retry(self._may_write, until, "writing")
            await self._brokers.retry(self._join, until, f"joining group {self._group!r}")
            self._tasks = [loop.create_task(self._stay()), loop.create_task(self._follow())]
            await self._settled.wait()
        except BaseException:
            await self.end()
            raise

    async def _may_write(self) -> None:
        """An engine that may only read would take partitions, and carry nothing on. Raises
        aiokafka's errors."""
        answer = await self._brokers.ask(
            self._brokers.any_node(), InitProducerIdRequest(None, 60_000), lane="group"
        )
        check(answer.error_code)

    async def _stay(self) -> None:
        """Heartbeats; and join again whenever there is news, ours or the group's."""
        while True:
            try:
                if self._rejoin.is_set():
                    await self._join()
                await self._heartbeat()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._heartbeat_s):
                        await self._rejoin.wait()
            except _Replaced:
                _log.error(
                    "another process has joined group %s with the instance id %r; this one serves "
                    "nothing any more: give every process its own instance_id",
                    *(self._group, self._instance_id),
                )
                self._replaced = True
                self._take(frozenset())
                return
            except KafkaError:  # the engine goes on: the fold protects what it does
                await self._brokers.look_again()
            except SagaError as error:
                _log.error("cannot stay in group %s: %s", self._group, error)
                await asyncio.sleep(self._session_s)

    async def _join(self) -> None:
        """Join, or join again: say what we have, get what we shall serve."""
        self._rejoin.clear()
        try:
            answer = await self._joined()
            self._member_id, self._generation = answer.member_id, answer.generation_id
            given = self._given(answer) if answer.leader_id == answer.member_id else []
            sync = SyncGroupRequest(
                self._group, self._generation, self._member_id, self._instance_id, given
            )
            answer = await self._coordinator.ask(sync, lane="group")
            await self._check(answer.error_code)
        except BaseException:
            self._rejoin.set()
            raise
        self._heard_at = asyncio.get_running_loop().time()
        self._marks.clear()
        share: frozenset[int] = frozenset()
        if answer.member_assignment:
            assignment = ConsumerProtocolMemberAssignment.decode(answer.member_assignment)
            share = frozenset(place.partition for place in assignment.partitions())
        self._take(share)

    async def _joined(self) -> Any:
        claim = self._holding.claim(self._generation)
        metadata = ConsumerProtocolMemberMetadata(0, [self._topic], msgspec.json.encode(claim))
        session_ms = round(self._session_s * 1000)
        while True:
            request = JoinGroupRequest(
                self._group,
                session_ms,
                session_ms,  # how long the others wait for us; we are there at the next heartbeat
                self._member_id,
                self._instance_id,
                "consumer",
                [(PROTOCOL, metadata.encode())],
            )
            answer = await self._coordinator.ask(request, lane="group")
            if answer.error_code != ID_REQUIRED:
                await self._check(answer.error_code)
                return answer
            self._member_id = answer.member_id

    def _given(self, answer: Any) -> list[tuple[str, bytes]]:
        """As the group's leader: what each member gets."""
        claims = {}
        for member_id, *_, metadata in answer.members:
            user_data = ConsumerProtocolMemberMetadata.decode(metadata).user_data
            claims[member_id] = msgspec.json.decode(user_data, type=Claim)
        return [
            (
                member_id,
                ConsumerProtocolMemberAssignment(0, [(self._topic, sorted(share))], b"").encode(),
            )
            for member_id, share in shares(claims, self._partitions).items()
        ]

    async def _heartbeat(self) -> None:
        request = HeartbeatRequest(self._group, self._generation, self._member_id)
        patience_s = max(self._session_s / 3, self._heartbeat_s)
        answer = await self._coordinator.ask(request, lane="group", within_s=patience_s)
        if answer.error_code == REBALANCE:
            self._rejoin.set()
        else:
            await self._check(answer.error_code)
        self._heard_at = asyncio.get_running_loop().time()

    async def _check(self, code: int) -> None:
        """Raises for the error codes that an answer of the coordinator may hold."""
        if code == FENCED or (code == UNKNOWN_MEMBER and self._is_replaced()):
            raise _Replaced
        if code == UNKNOWN_MEMBER:
            self._member_id = ""
        if code in OUTDATED:
            self._rejoin.set()
            raise _Again(f"error {code}")
        if code == SESSION_TIMEOUT:
            limits = await session_timeouts(self._brokers)
            allowed = " to ".join(f"{limit}" for limit in limits) if limits else "other values"
            raise ConfigurationError(
                f"session_timeout_ms={round(self._session_s * 1000)} is not allowed by the "
                f"brokers: they allow {allowed} (group.min.session.timeout.ms, "
                "group.max.session.timeout.ms)"
            )
        if code == OTHER_PROTOCOL:
            raise ConfigurationError(
                f"group {self._group!r} has members that are no engines of this version; give "
                "the namespace another name, or stop them"
            )
        self._coordinator.check(code)

    def _is_replaced(self) -> bool:
        # A static member that was heard of just now is lost only if somebody took its place.
        silent_s = asyncio.get_running_loop().time() - self._heard_at
        return self._instance_id is not None and bool(self._heard_at) and silent_s < self._session_s

    # --- the engine --------------------------------------------------------------------------

    def _take(self, share: frozenset[int]) -> None:
        if self._leaving is None:
            self._share = share
            self._holding.take(share, self._generation)
        self._settled.clear()
        self._changed.set()

    async def _follow(self) -> None:
        """Tell the engine its share; tell the group what the engine has handed over."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            share = self._share
            if share != self._told:
                self._told = share
                try:
                    await self._on_change(share)
                except Exception:  # the others must get their partitions all the same
                    _log.exception("an engine failed to follow its partitions; it is told again")
                    self._told = None
                    asyncio.get_running_loop().call_later(TOLD_AGAIN_S, self._changed.set)
            keeps = share | self._share  # it may have changed again meanwhile
            if self._holding.partitions - keeps:
                self._holding.keep(keeps)
                if self._leaving is None:
                    self._rejoin.set()
            if not self._changed.is_set():
                self._settled.set()

    async def _leave(self, for_good: bool) -> None:
        # Handed over while we are still a member, so that nobody else begins too early.
        if self._tasks:
            self._share = frozenset()
            self._settled.clear()
            self._changed.set()
            await self._settled.wait()
        await self.end(for_good=for_good)

    async def _say_goodbye(self) -> None:
        request = LeaveGroupRequest(self._group, self._member_id)
        try:
            answer = await self._coordinator.ask(
                request, lane="leave", within_s=self._deadlines.close_s
            )
            self._coordinator.check(answer.error_code)
        except (KafkaError, SagaError) as error:
            if not self._replaced:
                _log.warning(
                    "group %s was not told that this engine leaves (%s): its partitions go to the "
                    "others after the session time-out, %g s",
                    *(self._group, error or type(error).__name__, self._session_s),
                )

    async def end(self, *, for_good: bool = False) -> None:
        """Leave the group at once, without asking the engine."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        # A static member stays one for a session: so a restart finds its partitions again. That is
        # so because a client says nothing when it stops (KIP-345); brokers take its word, too.
        if self._member_id and (for_good or self._instance_id is None):
            await self._say_goodbye()
            self._member_id = ""
        await self._brokers.close()
        self._on_end(self)
