"""The laws of `sagaz_es.ports.EventLog` as tests. Needs pytest and pytest-asyncio.

    class TestMyLog(EventLogContract):
        @pytest_asyncio.fixture
        async def log(self):
            log = MyLog(...)
            await log.open()
            yield log
            await log.close()

        async def another(self, log):
            again = MyLog(...)  # the same namespace, as another process sees it
            await again.open()
            return again

The namespace may be shared by the tests: each uses sagas of its own, and assumes only that nobody
else appends to its log meanwhile, and that no member is left of an earlier test.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core.events import (
    RECORDED_EPOCH,
    Entry,
    Event,
    NamespaceCreated,
    SagaStarted,
    StepCompleted,
)
from sagaz_es.errors import AppendRefused, HistoryGone, LogTruncated
from sagaz_es.ports import EventLog, Record, Undecodable
from sagaz_es.testing.contracts.entries import (
    WRITER,
    event,
    every_fact,
    every_request,
    new_id,
    steps,
)
from sagaz_es.testing.contracts.membership import MembershipContract

# From Kafka's own tests (UtilsTest.testMurmur2).
MURMUR2 = {
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}
ODD_IDS = (
    "order/2026-07 №5",
    "order/2026-07 №6",
    " ",
    "  ",
    "a",
    "A",
    "a\0b",
    "a%",
    "a_",
    "O'Brien; DROP TABLE sagaz_log --",
    "é",
    "e\u0301",  # looks the same, is another id
    "🛒🧾",
    "../up",
    "x" * 500,
    "x" * 499 + "y",
)


class EventLogContract(MembershipContract):
    """Subclass it, give it the fixture `log` (an opened log) and the method `another`."""

    pytestmark = pytest.mark.asyncio
    checks_entry_size = True
    """Whether a too large entry is refused; False for a log that makes no bytes of entries."""

    # --- order ------------------------------------------------------------------------------------

    async def test_order(self, log: EventLog) -> None:
        """A partition's records are read in the order of their offsets, the same for all."""
        partition, start = await self.at_end(log)
        ids = [new_id() for _ in range(20)]

        async def run(saga_id: str) -> dict[int, Entry]:
            return {await log.append(partition, [e]): e for e in steps(saga_id, 10)}

        kept = {}
        for appended in await asyncio.gather(*map(run, ids)):
            kept.update(appended)
        records = await self.read_all(log, partition, start, 200)
        assert {record.offset: record.entry for record in records} == kept
        assert [record.offset for record in records] == sorted(kept)
        for saga_id in ids:
            assert [r.entry for r in records if r.key == saga_id] == steps(saga_id, 10)
        async with self.other(log) as other:
            again = await self.read_all(other, partition, start, 200, limit=7)
            assert [(r.offset, r.key, r.entry) for r in again] == [
                (r.offset, r.key, r.entry) for r in records
            ]

    async def test_the_first_record_says_how_many_partitions(self, log: EventLog) -> None:
        for partition in range(log.partitions):
            bounds = await log.bounds(partition)
            chunk = await log.read(partition, bounds.start, limit=1)
            (first,) = chunk.records
            assert isinstance(first.entry, NamespaceCreated)
            assert (first.entry.partition, first.entry.partitions) == (partition, log.partitions)
            assert first.key == ""

    # --- one append is whole ----------------------------------------------------------------------

    async def test_one_append_is_whole(self, log: EventLog) -> None:
        """The entries of one append stand next to each other, whoever else appends."""
        partition, start = await self.at_end(log)

        async def run() -> None:
            sequence = 1
            saga_id = new_id()
            for count in (1, 7, 2, 5):
                entries = steps(saga_id, count, sequence)
                base = await log.append(partition, entries)
                appended.append((base, entries))
                sequence += count

        appended: list[tuple[int, list[Event]]] = []
        await asyncio.gather(*(run() for _ in range(10)))
        records = await self.read_all(log, partition, start, 150)
        at = {record.offset: record.entry for record in records}
        for base, entries in appended:
            assert [at[base + place] for place in range(len(entries))] == entries

    async def test_a_big_append_is_whole(self, log: EventLog) -> None:
        partition, start = await self.at_end(log)
        saga_id = new_id()
        base = await log.append(partition, steps(saga_id, 300))
        records = await self.read_all(log, partition, base, 300)
        assert [record.entry for record in records] == steps(saga_id, 300)
        assert (await log.bounds(partition)).end == start + 300

    # --- acknowledged is kept ---------------------------------------------------------------------

    async def test_acknowledged_is_kept(self, log: EventLog) -> None:
        """What an append returned for is there for whoever opens the log later."""
        saga_id = new_id()
        partition = log.partition_of(saga_id)
        base = await log.append(partition, steps(saga_id, 3))
        await log.close()
        await log.close()  # twice is harmless
        async with self.other(log) as other:
            records = await self.read_all(other, partition, base, 3)
            assert [record.entry for record in records] == steps(saga_id, 3)
            assert [record.offset for record in records] == [base, base + 1, base + 2]

    async def test_what_is_read_is_what_was_appended(self, log: EventLog) -> None:
        saga_id = new_id()
        partition = log.partition_of(saga_id)
        fact = StepCompleted("charge")
        entries: list[Entry] = [event(saga_id, each) for each in every_fact()]
        entries += [event(saga_id, fact, 99, replay_id="replay-№1"), event(saga_id, SagaStarted())]
        entries.append(Event(saga_id, "Käse", WRITER, RECORDED_EPOCH, 1, 0, fact))
        entries += every_request(saga_id)
        base = await log.append(partition, entries)
        records = await self.read_all(log, partition, base, len(entries))
        assert [record.entry for record in records] == entries
        assert {record.key for record in records} == {saga_id}

    async def test_records_say_when_they_were_appended(self, log: EventLog) -> None:
        partition, _ = await self.at_end(log)
        base = await log.append(partition, steps(new_id(), 1))
        (record,) = await self.read_all(log, partition, base, 1)
        assert abs(record.appended_at - time.time() * 1e6) < 600e6, "µs since 1970, by any clock"

    async def test_an_append_that_is_cancelled_harms_no_other(self, log: EventLog) -> None:
        partition, start = await self.at_end(log)
        given_up = asyncio.create_task(log.append(partition, steps(new_id(), 2)))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        saga_id = new_id()
        base = await log.append(partition, steps(saga_id, 2))
        assert base in (start, start + 2), "the cancelled one stands whole, or not at all"
        records = await self.read_all(log, partition, base, 2)
        assert [record.entry for record in records] == steps(saga_id, 2)

    # --- foreign bytes are shown ------------------------------------------------------------------

    async def test_foreign_bytes_are_shown(self, log: EventLog) -> None:
        """What cannot be decoded is read as Undecodable with its bytes; nothing is skipped."""
        saga_id = new_id()
        partition = log.partition_of(saga_id)
        before, after = steps(saga_id, 2)
        good = AvroCodec().encode(before)
        damaged = [b"not one of ours", b"\0", good[:-3], good + b"x", b"\xc3\x01" + bytes(20)]
        base = await log.append(partition, [before])
        for value in damaged:
            await log.append_raw(partition, saga_id, value)
        await log.append_raw(partition, saga_id, good)
        await log.append(partition, [after])
        records = await self.read_all(log, partition, base, len(damaged) + 3)
        assert [record.offset for record in records] == list(range(base, base + len(damaged) + 3))
        assert {record.key for record in records} == {saga_id}
        for record, value in zip(records[1:], damaged, strict=False):
            assert isinstance(record.entry, Undecodable)
            assert record.entry.reason
            assert record.value == value
        assert [records[0].entry, records[-2].entry, records[-1].entry] == [before, before, after]
        assert await self.of_saga(log, saga_id) == records

    # --- keys stay --------------------------------------------------------------------------------

    async def test_keys_stay(self, log: EventLog) -> None:
        """`partition_of` is murmur2 of the UTF-8 saga id, as every Kafka client does it."""
        for saga_id, signed in MURMUR2.items():
            assert log.partition_of(saga_id) == (signed & 0x7FFFFFFF) % log.partitions

    async def test_saga_ids_are_any_text(self, log: EventLog) -> None:
        prefix = new_id()
        for odd in ODD_IDS:
            saga_id = odd + prefix[:8]
            await log.append(log.partition_of(saga_id), steps(saga_id, 2))
            saga_id = prefix[:8] + odd
            await log.append(log.partition_of(saga_id), steps(saga_id, 1))
        for odd in ODD_IDS:
            for saga_id, count in ((odd + prefix[:8], 2), (prefix[:8] + odd, 1)):
                records = await self.of_saga(log, saga_id)
                assert [record.entry for record in records] == steps(saga_id, count)
                assert {record.key for record in records} == {saga_id}

    # --- reading ----------------------------------------------------------------------------------

    async def test_a_read_outside_of_what_is_kept_is_loud(self, log: EventLog) -> None:
        for partition in range(log.partitions):
            bounds = await log.bounds(partition)
            with pytest.raises(HistoryGone):
                await log.read(partition, bounds.start - 1)
            with pytest.raises(LogTruncated) as caught:
                await log.read(partition, bounds.end + 5)
            assert caught.value.partition == partition
            assert (caught.value.position, caught.value.end) == (bounds.end + 5, bounds.end)

    async def test_a_read_gives_up_to_its_limit(self, log: EventLog) -> None:
        partition, start = await self.at_end(log)
        saga_id = new_id()
        await log.append(partition, steps(saga_id, 5))
        chunk = await log.read(partition, start, limit=2, wait_s=self.DEADLINE_S)
        assert 1 <= len(chunk.records) <= 2
        assert chunk.next_offset == start + len(chunk.records)
        rest = await self.read_all(log, partition, chunk.next_offset, 5 - len(chunk.records))
        assert [r.entry for r in (*chunk.records, *rest)] == steps(saga_id, 5)

    async def test_a_read_at_the_end_gives_nothing(self, log: EventLog) -> None:
        partition, end = await self.at_end(log)
        for wait_s in (0.0, 0.05):
            chunk = await log.read(partition, end, wait_s=wait_s)
            assert (chunk.records, chunk.next_offset) == ((), end)

    async def test_a_read_waits_for_the_next_record(self, log: EventLog) -> None:
        partition, end = await self.at_end(log)
        reads = [self.read_soon(log, partition, end) for _ in range(2)]
        async with self.other(log) as other:
            reads.append(self.read_soon(other, partition, end))
            await asyncio.sleep(0.05)  # they wait by now; if not, nothing is lost
            (next_one,) = steps(new_id(), 1)
            await log.append(partition, [next_one])
            for read in reads:
                (record,) = await read
                assert (record.offset, record.entry) == (end, next_one)

    async def test_what_another_process_appends_wakes_a_reader(self, log: EventLog) -> None:
        partition, end = await self.at_end(log)
        async with self.other(log) as other:
            for sequence in range(1, 4):
                read = self.read_soon(log, partition, end)
                await asyncio.sleep(0.03)
                (next_one,) = steps(new_id(), 1, sequence)
                await other.append(partition, [next_one])
                (record,) = await read
                assert record.entry == next_one
                end += 1

    async def test_bounds_grow_with_each_append(self, log: EventLog) -> None:
        partition, end = await self.at_end(log)
        start = (await log.bounds(partition)).start
        assert await log.append(partition, steps(new_id(), 3)) == end
        bounds = await log.bounds(partition)
        assert (bounds.start, bounds.end) == (start, end + 3)

    async def test_a_saga_is_read_as_a_scan_finds_it(self, log: EventLog) -> None:
        saga_id = new_id()
        partition = log.partition_of(saga_id)
        _, start = await self.at_end(log, partition)
        appended = 0
        for sequence in range(1, 30, 3):
            await log.append(partition, steps(new_id(), 2))
            await log.append(partition, [*steps(saga_id, 2, sequence), *every_request(saga_id)[:1]])
            appended += 5
        scan = await self.read_all(log, partition, start, appended)
        expected = [record for record in scan if record.key == saga_id]
        assert len(expected) == 30
        assert await self.of_saga(log, saga_id) == expected
        middle = expected[11].offset
        assert await self.of_saga(log, saga_id, middle) == expected[11:]
        assert await self.of_saga(log, saga_id, middle + 1) == expected[12:]
        assert await self.of_saga(log, new_id()) == []

    # --- size -------------------------------------------------------------------------------------

    async def test_large_values_are_kept(self, log: EventLog) -> None:
        saga_id = new_id()
        partition = log.partition_of(saga_id)
        large = [event(saga_id, StepCompleted("x", result=c * 900_000), 1) for c in "abc"]
        base = await log.append(partition, large[:1])
        await log.append(partition, large[1:2])
        await log.append(partition, large[2:])
        assert [r.entry for r in await self.read_all(log, partition, base, 3)] == large

    async def test_a_value_that_is_too_large_is_refused(self, log: EventLog) -> None:
        partition, start = await self.at_end(log)
        with pytest.raises(AppendRefused) as caught:
            await log.append_raw(partition, "order-17", b"x" * 30_000_000)
        assert caught.value.partition == partition
        if self.checks_entry_size:
            small, *_ = steps("order-17", 1)
            large = event("order-17", StepCompleted("charge", result="x" * 30_000_000))
            with pytest.raises(AppendRefused):
                await log.append(partition, [small, large])
        assert (await log.bounds(partition)).end == start, "nothing of it stands"
        assert await log.append(partition, steps(new_id(), 1)) == start, "the log goes on working"

    # --- for the tests ----------------------------------------------------------------------------

    @staticmethod
    async def at_end(log: EventLog, partition: int = 0) -> tuple[int, int]:
        """A partition and where it ends now."""
        return partition, (await log.bounds(partition)).end

    async def read_all(
        self, log: EventLog, partition: int, offset: int, count: int, limit: int = 1000
    ) -> list[Record]:
        """So many records from an offset on."""
        records: list[Record] = []
        async with asyncio.timeout(self.DEADLINE_S):
            while len(records) < count:
                chunk = await log.read(partition, offset, limit=limit, wait_s=self.DEADLINE_S)
                records += chunk.records
                offset = chunk.next_offset
        assert len(records) == count
        return records

    async def of_saga(self, log: EventLog, saga_id: str, from_offset: int = 0) -> list[Record]:
        async with asyncio.timeout(self.DEADLINE_S):
            return list(await log.read_saga(saga_id, from_offset))

    def read_soon(
        self, log: EventLog, partition: int, offset: int
    ) -> asyncio.Task[tuple[Record, ...]]:
        async def read() -> tuple[Record, ...]:
            return (await log.read(partition, offset, wait_s=self.DEADLINE_S)).records

        return asyncio.create_task(read())
