"""Several processes on one SQLite log, and some that are killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core.events import Event, NamespaceCreated
from sagaz_es.log.sqlite import SQLiteEventLog
from sagaz_es.testing.contracts.entries import steps
from sagaz_es.testing.contracts.membership import Member

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0


@asynccontextmanager
async def process(path: Path, *arguments: str) -> AsyncIterator[Process]:
    command = [sys.executable, str(ROOT / "tests/unit/log/process.py"), str(path), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, env=environment
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def lines(started: Process) -> list[str]:
    assert started.stdout is not None
    return (await started.stdout.read()).decode().splitlines()


async def line(started: Process) -> str:
    assert started.stdout is not None
    return (await started.stdout.readline()).decode().strip()


def go_on(started: Process) -> None:
    assert started.stdin is not None
    started.stdin.write(b"\n")


async def all_records(path: Path) -> list[list[object]]:
    """The entries of each partition, after a check that no offset is missing."""
    log = SQLiteEventLog(path, AvroCodec(), partitions=4)
    await log.open()
    found: list[list[object]] = []
    for partition in range(log.partitions):
        records = (await log.read(partition, 0, limit=10_000)).records
        assert [record.offset for record in records] == list(range(len(records)))
        found.append([record.entry for record in records])
    await log.close()
    return found


async def test_three_processes_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    names = ("one", "two", "three")

    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(process(path, "append", name, "500")) for name in names
        ]
        for each in running:
            assert await line(each) == "ready"
        for each in running:
            go_on(each)
        said = await asyncio.gather(*map(lines, running))
        assert [await each.wait() for each in running] == [0, 0, 0]
    assert [len(each) for each in said] == [250, 250, 250]
    partitions = await all_records(path)
    assert sum(map(len, partitions)) == 3 * 500 + 4
    assert all(isinstance(entries[0], NamespaceCreated) for entries in partitions)
    for name in names:
        for number in range(50):
            saga_id = f"{name}-{number}"
            assert _of(partitions[number % 4], saga_id) == steps(saga_id, 10), "in their order"


async def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    acknowledged: list[str] = []
    for n in range(3):
        async with process(path, "append", f"run{n}", "1000000") as started:
            assert await line(started) == "ready"
            go_on(started)
            acknowledged.append(await line(started))
            await asyncio.sleep(0.15 + 0.1 * n)
            started.send_signal(signal.SIGKILL)
            acknowledged += (await lines(started))[:-1]  # the last one may be cut off
    assert len(acknowledged) > 100
    partitions = await all_records(path)
    for said in acknowledged:
        saga_id, partition, base, sequence = said.split()
        appended = steps(saga_id, 2, int(sequence))
        assert partitions[int(partition)][int(base) : int(base) + 2] == appended
    for entries in partitions:  # each append is whole, whether it was acknowledged or not
        events = [entry for entry in entries if isinstance(entry, Event)]
        pairs = zip(events[::2], events[1::2], strict=True)
        assert all(a.saga_id == b.saga_id and a.sequence + 1 == b.sequence for a, b in pairs)


async def test_a_killed_process_frees_its_partitions_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    log = SQLiteEventLog(path, AvroCodec(), partitions=4)
    await log.open()
    async with process(path, "member") as other:
        assert await line(other) == "0 1 2 3"
        us = Member()
        membership = await log.join(us.on_change)
        await _until(us, 2)
        assert len((await line(other)).split()) == 2
        other.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        await _until(us, 4)
        assert time.monotonic() - killed < 5, "found out, not timed out"
    await membership.leave()
    await log.close()


async def test_a_child_does_not_keep_the_partitions_of_a_killed_parent(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    async with process(path, "parent") as parent:
        assert await line(parent) == "0 1 2 3"
        child = int(await line(parent))
        parent.send_signal(signal.SIGKILL)
        log = SQLiteEventLog(path, AvroCodec())
        await log.open()
        us = Member()
        membership = await log.join(us.on_change)
        try:
            await _until(us, 4)
            os.kill(child, 0)  # it is still there
        finally:
            os.kill(child, signal.SIGKILL)
            await membership.leave()
            await log.close()


async def test_owners_find_each_other_again_after_their_files_were_deleted(tmp_path: Path) -> None:
    log = SQLiteEventLog(tmp_path / "sagas.db", AvroCodec(), partitions=4)
    await log.open()
    one, two = Member(), Member()
    first = await log.join(one.on_change)
    second = await log.join(two.on_change)
    await _until(two, 2)
    shutil.rmtree(tmp_path / "sagas.db-owners")
    async with asyncio.timeout(PATIENCE_S):
        for member in (one, two):
            while len(member.told) < 3 or len(member.share) != 2:
                member.changed.clear()
                await member.changed.wait()
    assert one.share | two.share == set(range(4))
    assert len(os.listdir(tmp_path / "sagas.db-owners")) == 6, "four partitions, two members"
    await first.leave()
    await _until(two, 4)
    await second.leave()
    await log.close()


async def test_partitions_move_with_the_processes_that_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    log = SQLiteEventLog(path, AvroCodec(), partitions=4)
    await log.open()
    us = Member()
    membership = await log.join(us.on_change)
    assert len(us.share) == 4, "who is alone has all when join returns"
    async with process(path, "member") as one:
        theirs = await line(one)
        async with process(path, "member") as two:
            assert len((await line(two)).split()) == 1
            await _until(us, 2)
            go_on(two)  # it leaves in good order
            assert await two.wait() == 0
        await membership.leave()
        while len(theirs.split()) != 4:
            theirs = await line(one)
    assert us.share == frozenset()
    await log.close()


async def _until(member: Member, size: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(member.share) != size:
            member.changed.clear()
            await member.changed.wait()


def _of(entries: list[object], saga_id: str) -> list[object]:
    return [each for each in entries if isinstance(each, Event) and each.saga_id == saga_id]
