"""Membership inside one process: the partitions of a memory log, dealt out over its members."""

from __future__ import annotations

import asyncio
import logging

from sagaz_es.errors import ConfigurationError
from sagaz_es.log.assignment import assign
from sagaz_es.ports import Rebalanced

_log = logging.getLogger("sagaz_es.log")


class Group:
    """Who serves what. Whoever loses partitions has handed them over before another gets them."""

    def __init__(
        self, partitions: int, marks: list[tuple[int, str]], name: str = "memory://"
    ) -> None:
        self._partitions, self._name = partitions, name
        self._loop: asyncio.AbstractEventLoop | None = None  # of its members
        self.marks = marks  # with their notes
        self._members: dict[str, MemoryMembership] = {}  # in the order of joining
        self._joined = 0
        self._rebalancing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._members)

    async def join(self, on_change: Rebalanced) -> MemoryMembership:
        self._enter(asyncio.get_running_loop())
        self._joined += 1
        member = MemoryMembership(self, str(self._joined), on_change)
        self._members[member.name] = member
        try:
            await self._rebalanced()
        except BaseException:  # cancelled: nobody has the membership to leave with
            del self._members[member.name]
            self._rebalance_soon(member)
            raise
        return member

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is self._loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            if self._members or self._rebalancing.locked():
                raise ConfigurationError(
                    f"log {self._name}: it is in use in another event loop, and a memory log is "
                    "for one at a time; for several threads use a file, sqlite:///sagas.db"
                )
        # A lock belongs to one loop; members that did not leave ended with theirs.
        self._loop, self._rebalancing = loop, asyncio.Lock()
        self._members.clear()

    async def leave(self, member: MemoryMembership) -> None:
        if self._members.pop(member.name, None) is not None:
            await self._rebalanced(left=member)

    async def _rebalanced(self, left: MemoryMembership | None = None) -> None:
        # A hand-over goes on if the one who caused it is cancelled.
        await asyncio.shield(self._rebalance_soon(left))

    def _rebalance_soon(self, left: MemoryMembership | None) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._rebalance(left))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _rebalance(self, left: MemoryMembership | None) -> None:
        """Bring every member to its share: first those who lose something, then those who gain."""
        async with self._rebalancing:
            members = dict(self._members)
            owners = {p: member.name for member in members.values() for p in member.share}
            shares = assign(list(members), owners, self._partitions)
            losers = [
                member.change(member.share & shares[name]) for name, member in members.items()
            ]
            if left is not None:
                losers.append(left.change(frozenset()))
            await asyncio.gather(*losers)
            await asyncio.gather(*(member.change(shares[name]) for name, member in members.items()))


class MemoryMembership:
    """Membership of one engine in its process' group."""

    def __init__(self, group: Group, name: str, on_change: Rebalanced) -> None:
        self.name, self.share = name, frozenset[int]()
        self._group, self._on_change = group, on_change

    async def change(self, share: frozenset[int]) -> None:
        """Tell the engine its new share, unless it is the one it has."""
        if share == self.share:
            return
        self.share = share
        try:
            await self._on_change(share)
        except Exception:  # the others must get their partitions whatever happens in this one
            _log.exception("an engine failed to follow the change of its partitions")

    async def leave(self, *, for_good: bool = False) -> None:
        await self._group.leave(self)

    async def commit_low_water_mark(self, partition: int, offset: int, note: str = "") -> None:
        if offset > self._group.marks[partition][0]:
            self._group.marks[partition] = offset, note

    async def predecessor_is_alive(self, partition: int) -> bool:
        return False  # a partition comes here only after it was handed over
