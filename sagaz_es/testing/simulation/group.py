"""The group of a simulation's engines: who serves what, who has been silent for too long.

As the Kafka adapter's: a partition goes to another member once its member has handed it over, or
has been silent for a session. Who was paused or cut off meanwhile learns of it only afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from random import Random

from sagaz_es.log.assignment import assign
from sagaz_es.ports import Membership, Rebalanced
from sagaz_es.testing.simulation.processes import Process, SimulatedLoop

logger = logging.getLogger("sagaz_es.log")

SESSION_S = 3.0
HEARTBEAT_S = 0.5
TOLD_AGAIN_S = 1.0


class SimulatedGroup:
    """All members, and the marks."""

    def __init__(self, loop: SimulatedLoop, random: Random, partitions: int) -> None:
        self.loop, self.random, self.partitions = loop, random, partitions
        self.marks = [(0, "")] * partitions
        self.members: dict[str, SimulatedMembership] = {}
        self._joined = 0

    def __len__(self) -> int:
        return len(self.members)

    async def join(
        self, process: Process, on_change: Rebalanced, instance_id: str | None
    ) -> Membership:
        self._joined += 1
        name = instance_id or f"member-{self._joined}"
        before = self.members.pop(name, None)
        member = SimulatedMembership(self, process, name, on_change)
        member.static = instance_id is not None
        self.members[name] = member
        if before is not None:
            before.is_replaced()
        process.spawn(member.follow())
        self.rebalance()
        await member.settled.wait()
        return member

    def rebalance(self) -> None:
        """Give every member what it has, or what nobody has."""
        owners: dict[int, str] = {}
        for name, member in self.members.items():
            owners |= dict.fromkeys(sorted(member.has), name)
        staying = [name for name, member in self.members.items() if not member.leaving]
        wanted = assign(staying, owners, self.partitions)
        for name, member in self.members.items():
            share = wanted.get(name, frozenset())
            member.take(frozenset(each for each in share if owners.get(each, name) == name))

    def look_at(self, member: SimulatedMembership) -> None:
        """A member's process died, was paused, was cut off, or came back."""
        if member.reachable:
            # It finds out with its next heartbeat.
            delay = self.random.random() * HEARTBEAT_S
            self.loop.in_world(delay, self._heard, member)
        else:
            member.silent_since = self.loop.time()
            self.loop.in_world(SESSION_S, self._expire, member, member.silent_since)

    def _heard(self, member: SimulatedMembership) -> None:
        if not member.reachable or member.gone:
            return
        if member.replaced:
            member.take(frozenset())
            return
        if self.members.get(member.name) is not member:  # it was given up: it joins again
            member.has = frozenset(p for p in member.has if not self._has_owner(p))
            self.members[member.name] = member
            self.rebalance()

    def _has_owner(self, partition: int) -> bool:
        return any(partition in member.has for member in self.members.values())

    def _expire(self, member: SimulatedMembership, silent_since: float) -> None:
        silent = not member.reachable and member.silent_since == silent_since
        if silent and self.members.get(member.name) is member:
            del self.members[member.name]
            self.rebalance()


class SimulatedMembership:
    """Membership of one engine."""

    def __init__(
        self, group: SimulatedGroup, process: Process, name: str, on_change: Rebalanced
    ) -> None:
        self.name, self.process = name, process
        self.has: frozenset[int] = frozenset()  # given to it and not handed over yet
        self.static = self.leaving = self.gone = self.replaced = False
        self.silent_since = 0.0
        self.settled = asyncio.Event()
        self._share: frozenset[int] = frozenset()
        self._told: frozenset[int] | None = frozenset()
        self._changed = asyncio.Event()
        self._group, self._on_change = group, on_change
        process.on_change.append(lambda: group.look_at(self))

    @property
    def reachable(self) -> bool:
        return self.process.runs and not self.process.cut

    def is_replaced(self) -> None:
        """Another process has joined under the same name."""
        self.replaced = True
        self._group.look_at(self)

    def take(self, share: frozenset[int]) -> None:
        """What the group gives it from now on."""
        self.has |= share
        if share != self._share or not self.settled.is_set():
            self._share = share
            self._changed.set()

    def believe(self, partition: int) -> None:
        """Serve a partition, whoever has it, until the group speaks again: it is no fence."""
        self._share |= {partition}
        self._changed.set()

    async def follow(self) -> None:
        """Of its process: tell the engine its share; hand over what it lost."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await asyncio.sleep(self._group.random.random() * HEARTBEAT_S)
            share = self._share
            if share != self._told:
                self._told = share
                try:
                    await self._on_change(share)
                except Exception:
                    logger.exception("an engine failed to follow its partitions; told again")
                    self._told = None
                    asyncio.get_running_loop().call_later(TOLD_AGAIN_S, self._changed.set)
            keeps = share | self._share
            if self.has - keeps:
                self.has &= keeps
                if not self.replaced and self._group.members.get(self.name) is self:
                    self._group.rebalance()
            if not self._changed.is_set():
                self.settled.set()

    async def leave(self, *, for_good: bool = False) -> None:
        if self.gone:
            return
        if not self.leaving:
            self.leaving = True
            self.settled.clear()
            self._share = frozenset()
            self._changed.set()
            if not self.replaced:
                self._group.rebalance()
        await self.settled.wait()
        self.gone = True
        if self._group.members.get(self.name) is self and (for_good or not self.static):
            del self._group.members[self.name]
            self._group.rebalance()

    async def commit_low_water_mark(self, partition: int, offset: int, note: str = "") -> None:
        group = self._group
        known = group.members.get(self.name) is self and not self.replaced
        if not known or partition not in self.has:
            return  # handed over, or given to somebody else: the mark is theirs now
        if offset > group.marks[partition][0]:
            group.marks[partition] = offset, note

    async def predecessor_is_alive(self, partition: int) -> bool:
        return False  # a partition comes here only after it was handed over, or given up
