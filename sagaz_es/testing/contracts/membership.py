"""The laws of `sagaz_es.ports.Membership` as tests; part of EventLogContract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from sagaz_es.ports import EventLog, Membership


class Member:
    """An engine that only follows its partitions; `gate` closed, it takes its time to let go."""

    def __init__(self) -> None:
        self.share: frozenset[int] = frozenset()
        self.told: list[frozenset[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.changed = asyncio.Event()

    async def on_change(self, share: frozenset[int]) -> None:
        self.told.append(share)
        self.changed.set()
        if self.share - share:
            await self.gate.wait()
        self.share = share
        self.changed.set()


class MembershipContract:
    """How the members of a namespace share its partitions."""

    pytestmark = pytest.mark.asyncio
    DEADLINE_S = 20.0
    """How long anything may take before it counts as lost. A group of a broker takes its time."""

    async def another(self, log: EventLog) -> EventLog:
        """The same namespace, opened once more as another process would; the test closes it."""
        raise NotImplementedError

    @asynccontextmanager
    async def other(self, log: EventLog) -> AsyncIterator[EventLog]:
        other = await self.another(log)
        try:
            yield other
        finally:
            await other.close()

    @asynccontextmanager
    async def joined(
        self, log: EventLog, member: Member, group: str = ""
    ) -> AsyncIterator[Membership]:
        async with asyncio.timeout(self.DEADLINE_S):
            membership = await log.join(member.on_change, group=group)
        try:
            yield membership
        finally:
            member.gate.set()
            async with asyncio.timeout(self.DEADLINE_S):
                await membership.leave()

    async def until(self, condition: Callable[[], bool], *members: Member) -> None:
        """Wait for a condition on the members' shares."""
        async with asyncio.timeout(self.DEADLINE_S):
            while not condition():
                news = [asyncio.create_task(member.changed.wait()) for member in members]
                await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)
                for member, change in zip(members, news, strict=True):
                    change.cancel()
                    member.changed.clear()

    async def test_one_member_gets_all_partitions(self, log: EventLog) -> None:
        every = frozenset(range(log.partitions))
        one = Member()
        async with self.joined(log, one) as membership:
            await self.until(lambda: one.share == every, one)
            await membership.leave()
            await membership.leave()  # twice is harmless
        assert one.share == frozenset(), "leaving is a hand-over too"

    async def test_members_share_the_partitions(self, log: EventLog) -> None:
        every = frozenset(range(log.partitions))
        one, two = Member(), Member()
        async with self.other(log) as other, self.joined(log, one):
            await self.until(lambda: one.share == every, one)
            async with self.joined(other, two) as second:
                await self.until(lambda: {*one.share, *two.share} == every > one.share, one, two)
                assert not one.share & two.share
                assert abs(len(one.share) - len(two.share)) <= 1
                await second.leave()
                await self.until(lambda: one.share == every, one)

    async def test_a_partition_is_handed_over_before_another_gets_it(self, log: EventLog) -> None:
        every = frozenset(range(log.partitions))
        one, two = Member(), Member()
        async with self.other(log) as other, self.joined(log, one):
            await self.until(lambda: one.share == every, one)
            one.gate.clear()
            joining = asyncio.create_task(other.join(two.on_change))
            try:
                await self.until(lambda: one.told[-1] < every, one)
                await asyncio.sleep(0.3)  # time enough for a log that does not wait
                assert (one.share, two.share) == (every, frozenset())
                one.gate.set()
                await self.until(lambda: one.share | two.share == every, one, two)
                await self.until(lambda: not one.share & two.share, one, two)
            finally:
                one.gate.set()
                async with asyncio.timeout(self.DEADLINE_S):
                    await (await joining).leave()

    async def test_a_low_water_mark_never_falls(self, log: EventLog) -> None:
        every = frozenset(range(log.partitions))
        one = Member()
        async with self.joined(log, one) as membership:
            await self.until(lambda: one.share == every, one)
            bounds = await log.bounds(0)
            assert bounds.start <= await log.low_water_mark(0) <= bounds.end
            await membership.commit_low_water_mark(0, bounds.end)
            assert await log.low_water_mark(0) == bounds.end
            await membership.commit_low_water_mark(0, bounds.start)
            assert await log.low_water_mark(0) == bounds.end
            async with self.other(log) as other:
                assert await other.low_water_mark(0) == bounds.end
        assert await log.low_water_mark(0) == bounds.end, "it outlives the member"

    async def test_a_mark_that_is_not_raised_keeps_its_note(self, log: EventLog) -> None:
        every = frozenset(range(log.partitions))
        one = Member()
        assert await log.mark_note(0) == ""
        async with self.joined(log, one) as membership:
            await self.until(lambda: one.share == every, one)
            end = (await log.bounds(0)).end
            await membership.commit_low_water_mark(0, end, "a")
            await membership.commit_low_water_mark(0, end, "b")
            await membership.commit_low_water_mark(0, end - 1, "c")
            async with self.other(log) as other:
                assert await other.mark_note(0) == "a"

    async def test_groups_have_all_partitions_and_their_own_marks(self, log: EventLog) -> None:
        every = frozenset(range(log.partitions))
        one, two, three = Member(), Member(), Member()
        async with (
            self.other(log) as other,
            self.joined(log, one) as first,
            self.joined(other, two, "billing") as second,
        ):
            await self.until(lambda: one.share == two.share == every, one, two)
            start, end = (await log.bounds(1)).start, (await log.bounds(1)).end
            await first.commit_low_water_mark(0, (await log.bounds(0)).end, "ours")
            await second.commit_low_water_mark(1, end, "theirs")
            assert await log.low_water_mark(0, group="billing") == (await log.bounds(0)).start
            assert await log.low_water_mark(1) == start
            assert await other.low_water_mark(1, group="billing") == end
            assert await log.mark_note(1, group="billing") == "theirs"
            assert await other.mark_note(0) == "ours"
            async with self.joined(log, three, "billing"):
                await self.until(lambda: {*two.share, *three.share} == every, two, three)
                assert one.share == every, "who shares with whom is a group's own affair"

    async def test_a_groups_members_are_counted(self, log: EventLog) -> None:
        one, two = Member(), Member()
        async with self.other(log) as other:
            assert await other.members() == await other.members(group="billing") == 0
            async with self.joined(log, one):
                assert (await other.members(), await log.members(group="billing")) == (1, 0)
                async with self.joined(other, two):
                    assert await log.members() == await other.members() == 2
            assert await other.members() == 0
