"""Membership in a namespace's group when members crash, freeze, are slow, or two have one name.

Run as a program it is a member: `python -m tests.services.test_kafka_log_group BOOTSTRAP NAMESPACE
INSTANCE_ID SESSION_MS`; it prints each share that it is told, and lives until it is killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.errors import ConfigurationError
from sagaz_es.log.kafka import KafkaEventLog
from sagaz_es.log.kafka_shares import Claim, shares
from sagaz_es.ports import Membership
from tests.servers import KafkaServer

ALL = frozenset(range(4))
SESSION_MS = 1500
PATIENT_MS = 60_000
DEADLINE_S = 20


def log_on(bootstrap: str, namespace: str, session_ms: int = SESSION_MS) -> KafkaEventLog:
    return KafkaEventLog(
        [bootstrap],
        namespace,
        AvroCodec(),
        partitions=4,
        session_timeout_ms=session_ms,
        heartbeat_ms=session_ms // 10,
    )


class Engine:
    """Follows its share; `on_loss` is awaited when it loses something."""

    def __init__(self) -> None:
        self.share: frozenset[int] = frozenset()
        self.told: list[frozenset[int]] = []
        self.on_loss: Callable[[], Awaitable[None]] | None = None
        self._changed = asyncio.Event()

    async def on_change(self, share: frozenset[int]) -> None:
        self.told.append(share)
        if self.on_loss is not None and self.share - share:
            await self.on_loss()
        self.share = share
        self._changed.set()

    async def until(self, condition: Callable[[frozenset[int]], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition(self.share):
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def log(kafka_bootstrap: str, kafka_namespace: str) -> AsyncIterator[KafkaEventLog]:
    log = log_on(kafka_bootstrap, kafka_namespace)
    await log.open()
    yield log
    await log.close()


@asynccontextmanager
async def joined(
    log: KafkaEventLog, engine: Engine, instance_id: str | None = None
) -> AsyncIterator[Membership]:
    membership = await log.join(engine.on_change, instance_id=instance_id)
    yield membership
    await membership.leave()


class Worker:
    """A member that is another process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.share: frozenset[int] = frozenset()

    async def until(self, condition: Callable[[frozenset[int]], bool]) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            while not condition(self.share):
                line = (await self._process.stdout.readline()).decode()
                assert line, "the worker ended"
                self.share = frozenset(map(int, line.split()))

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def worker(
    log: KafkaEventLog, instance_id: str = "", session_ms: int = SESSION_MS
) -> AsyncIterator[Worker]:
    place = (log.access.address, log.namespace)
    command = [sys.executable, "-m", __name__, *place, instance_id, str(session_ms)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, env=environment)
    worker = Worker(process)
    try:
        yield worker
    finally:
        await worker.kill()


async def main(bootstrap: str, namespace: str, instance_id: str, session_ms: str) -> None:
    async def on_change(share: frozenset[int]) -> None:
        print(*sorted(share))

    log = log_on(bootstrap, namespace, int(session_ms))
    await log.open()
    await log.join(on_change, instance_id=instance_id or None)
    await asyncio.Event().wait()


# --- crashes -------------------------------------------------------------------------------------


async def test_partitions_of_a_killed_process_are_taken_over(log: KafkaEventLog) -> None:
    engine = Engine()
    async with joined(log, engine), worker(log) as other:
        await engine.until(lambda share: len(share) == 2)
        await other.until(lambda share: len(share) == 2)
        assert engine.share | other.share == ALL
        await other.kill()
        await engine.until(lambda share: share == ALL)


async def test_a_frozen_process_loses_its_partitions_and_is_told_when_it_wakes(
    log: KafkaEventLog,
) -> None:
    engine = Engine()
    async with worker(log) as other:
        await other.until(lambda share: share == ALL)
        async with joined(log, engine):
            await engine.until(lambda share: len(share) == 2)
            await other.until(lambda share: len(share) == 2)
            kept = other.share
            other.signal(signal.SIGSTOP)
            await engine.until(lambda share: share == ALL)
            other.signal(signal.SIGCONT)
            await other.until(lambda share: not share & kept)
            await other.until(lambda share: len(share) == 2)
            await engine.until(lambda share: len(share) == 2)
            assert engine.share | other.share == ALL


async def test_a_crash_of_the_broker_takes_nothing_from_anybody(
    log: KafkaEventLog, kafka_server: KafkaServer
) -> None:
    one, two = Engine(), Engine()
    async with joined(log, one) as membership, joined(log, two):
        await two.until(lambda share: len(share) == 2)
        await one.until(lambda share: len(share) == 2)
        told = len(one.told), len(two.told)
        kafka_server.kill()
        await asyncio.to_thread(kafka_server.restart)
        partition = min(one.share)
        end = (await log.bounds(partition)).end
        await membership.commit_low_water_mark(partition, end)
        assert await log.low_water_mark(partition) == end
        await asyncio.sleep(2 * SESSION_MS / 1000)
        assert (len(one.told), len(two.told)) == told


# --- hand-over -----------------------------------------------------------------------------------


async def test_a_hand_over_may_take_longer_than_a_session(log: KafkaEventLog) -> None:
    one, two = Engine(), Engine()
    asked, release = asyncio.Event(), asyncio.Event()

    async def slowly() -> None:
        asked.set()
        await release.wait()

    one.on_loss = slowly
    async with joined(log, one), joined(log, two):
        async with asyncio.timeout(DEADLINE_S):
            await asked.wait()
        await asyncio.sleep(2.5 * SESSION_MS / 1000)
        assert (one.share, two.share) == (ALL, frozenset())
        release.set()
        await two.until(lambda share: len(share) == 2)
        assert one.share | two.share == ALL
        assert not one.share & two.share


async def test_an_undisturbed_member_keeps_what_it_has_while_others_come_and_go(
    log: KafkaEventLog,
) -> None:
    first = Engine()
    async with joined(log, first):
        await first.until(lambda share: share == ALL)
        second = Engine()
        async with joined(log, second):
            await second.until(lambda share: len(share) == 2)
            third, fourth = Engine(), Engine()
            async with joined(log, third), joined(log, fourth):
                await third.until(bool)
                await fourth.until(bool)
                await first.until(lambda share: len(share) == 1)
        await first.until(lambda share: share == ALL)
    losses = [before - after for before, after in zip(first.told, first.told[1:], strict=False)]
    assert frozenset() not in first.told[:-1], "a rebalance is not a stop"
    assert sum(map(bool, losses)) <= 3 + 1, "at most one each time somebody came, and the end"


async def test_an_engine_that_fails_to_follow_still_lets_go(
    log: KafkaEventLog, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = Engine(), Engine()

    async def badly() -> None:
        raise RuntimeError("out of luck")

    one.on_loss = badly
    async with joined(log, one), joined(log, two):
        await two.until(lambda share: len(share) == 2)
    assert "failed to follow" in caplog.text


async def test_an_engine_that_could_not_follow_is_told_again(
    log: KafkaEventLog, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine()
    failures = [OSError("no route"), OSError("no route")]

    async def on_change(share: frozenset[int]) -> None:
        if failures:
            raise failures.pop()
        await engine.on_change(share)

    membership = await log.join(on_change)
    await engine.until(lambda share: share == ALL)
    await membership.leave()
    assert engine.told == [ALL, frozenset()]
    assert caplog.text.count("it is told again") == 2


async def test_a_mark_is_the_affair_of_who_has_the_partition(log: KafkaEventLog) -> None:
    one, two = Engine(), Engine()
    async with joined(log, one) as first, joined(log, two) as second:
        await two.until(lambda share: len(share) == 2)
        (mine, *_), (others, *_) = sorted(one.share), sorted(two.share)
        for partition in (mine, others):
            await first.commit_low_water_mark(partition, 1)
        assert (await log.low_water_mark(mine), await log.low_water_mark(others)) == (1, 0)
        await second.commit_low_water_mark(others, 1)
        marks = [second.commit_low_water_mark(others, mark) for mark in (1, 0)]
        await asyncio.gather(*marks)
        assert await log.low_water_mark(others) == 1
        assert not await first.predecessor_is_alive(mine)


# --- static members ------------------------------------------------------------------------------


async def test_a_static_member_that_restarts_has_its_partitions_back_and_nobody_notices(
    log: KafkaEventLog,
) -> None:
    engine = Engine()
    async with joined(log, engine, "engine-1"):
        # However long the machine takes to start it again, its session lasts.
        async with worker(log, "engine-2", PATIENT_MS) as other:
            await other.until(lambda share: len(share) == 2)
            await engine.until(lambda share: len(share) == 2)
            before, told = other.share, len(engine.told)
        async with worker(log, "engine-2", PATIENT_MS) as again:
            await again.until(bool)
            assert again.share == before
            assert len(engine.told) == told


async def test_a_static_member_that_leaves_in_order_keeps_its_place_for_a_session(
    log: KafkaEventLog,
) -> None:
    engine, other, again = Engine(), Engine(), Engine()
    patient = log_on(log.access.address, log.namespace, PATIENT_MS)
    await patient.open()
    async with joined(log, engine, "engine-1"):
        async with joined(patient, other, "engine-2"):
            await other.until(lambda share: len(share) == 2)
            await engine.until(lambda share: len(share) == 2)
            before, told = other.share, len(engine.told)
        async with joined(patient, again, "engine-2"):
            await again.until(bool)
            assert (again.share, len(engine.told)) == (before, told)
    await patient.close()


async def test_when_the_session_of_a_static_member_that_left_is_over_others_have_its_partitions(
    log: KafkaEventLog,
) -> None:
    engine, other = Engine(), Engine()
    async with joined(log, engine, "engine-1"):
        async with joined(log, other, "engine-2"):
            await other.until(lambda share: len(share) == 2)
            await engine.until(lambda share: len(share) == 2)
        await engine.until(lambda share: share == ALL)


async def test_when_a_static_member_leaves_for_good_others_have_its_partitions_at_once(
    log: KafkaEventLog,
) -> None:
    engine, other = Engine(), Engine()
    patient = log_on(log.access.address, log.namespace, PATIENT_MS)
    await patient.open()
    async with joined(log, engine, "engine-1"):
        leaving = await patient.join(other.on_change, instance_id="engine-2")
        await other.until(lambda share: len(share) == 2)
        await engine.until(lambda share: len(share) == 2)
        await leaving.leave(for_good=True)
        await engine.until(lambda share: share == ALL)  # long before the session is over
        assert other.share == frozenset()
    await patient.close()


async def test_of_two_processes_with_one_instance_id_the_older_stops_loudly(
    log: KafkaEventLog, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = Engine(), Engine()
    async with joined(log, older, "engine-1") as replaced:
        await older.until(lambda share: share == ALL)
        async with joined(log, newer, "engine-1") as replacing:
            await newer.until(lambda share: share == ALL)
            await older.until(lambda share: not share)
            await asyncio.sleep(2 * SESSION_MS / 1000)
            trouble = [getattr(member, "trouble", None) for member in (replaced, replacing)]
            assert trouble == ["another process has its instance id 'engine-1'", ""]
            assert (older.share, newer.share, len(newer.told)) == (frozenset(), ALL, 1)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert ["'engine-1'" in record.getMessage() for record in errors] == [True]


# --- settings ------------------------------------------------------------------------------------


async def test_a_session_that_the_brokers_do_not_allow_is_named(
    kafka_bootstrap: str, kafka_namespace: str
) -> None:
    log = log_on(kafka_bootstrap, kafka_namespace, session_ms=200)
    await log.open()
    with pytest.raises(ConfigurationError) as caught:
        await log.join(Engine().on_change)
    assert "session_timeout_ms=200" in str(caught.value)
    assert "group.min.session.timeout.ms" in str(caught.value)
    assert "300 to 1800000" in str(caught.value)
    await log.close()


# --- the shares ----------------------------------------------------------------------------------

CLAIMS = st.dictionaries(
    st.sampled_from("abcde"),
    st.builds(Claim, st.lists(st.integers(0, 12), max_size=8).map(tuple), st.integers(-1, 3)),
    min_size=1,
)


@given(CLAIMS, st.integers(1, 10))
def test_a_member_gets_what_it_has_or_what_nobody_has(
    claims: dict[str, Claim], partitions: int
) -> None:
    given_out = shares(claims, partitions)
    assert given_out.keys() == claims.keys()
    for member, share in given_out.items():
        others = {p for other in claims if other != member for p in claims[other].has}
        assert share <= frozenset(range(partitions))
        assert not (share - set(claims[member].has)) & others
    assert sum(map(len, given_out.values())) == len(frozenset().union(*given_out.values()))


@given(CLAIMS, st.integers(1, 10))
def test_when_all_have_let_go_everything_is_given_out_fairly(
    claims: dict[str, Claim], partitions: int
) -> None:
    first = shares(claims, partitions)
    settled = {member: Claim(tuple(share), 9) for member, share in first.items()}
    second = shares(settled, partitions)
    assert frozenset().union(*second.values()) == frozenset(range(partitions))
    assert max(map(len, second.values())) - min(map(len, second.values())) <= 1
    for member, share in first.items():
        assert share <= second[member], "nothing is given and taken back"


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
