"""The rest of a fetch is gone on with, and is not kept for who never comes."""

from __future__ import annotations

import weakref

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from sagaz_es.log import kafka_fetched
from sagaz_es.log.kafka_fetched import Fetched, LeftOver


def fetch(offset: int, count: int) -> Fetched:
    """As a broker answers: one batch of so many records from `offset` on."""
    batch = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    for number in range(count):
        batch.append(number, 1000, b"saga-1", b"value", [])
    data = batch.build()
    data[:8] = offset.to_bytes(8, "big")
    assert MemoryRecords(bytes(data)).has_next()
    return Fetched(offset, bytes(data))


def offsets(fetched: Fetched | None, limit: int) -> list[int]:
    return [] if fetched is None else [record.offset for record in fetched.take(limit)]


def test_a_reader_goes_on_where_it_was_or_a_little_later() -> None:
    left = LeftOver()
    first = fetch(100, 10)
    assert offsets(first, 4) == [100, 101, 102, 103]
    left.add(3, first)
    assert left.take(4, 104) is None
    assert left.take(3, 99) is None
    again = left.take(3, 106)
    assert offsets(again, 2) == [106, 107]
    assert left.take(3, 108) is None  # taken is taken
    assert again is not None
    left.add(3, again)
    assert left.take(3, 110) is None  # nothing is left there


def test_what_nobody_goes_on_with_is_dropped_also_of_partitions_that_nobody_reads() -> None:
    now = 0.0
    left = LeftOver(lambda: now)
    kept = []
    for partition in range(8):
        fetched = fetch(0, 10)
        kept.append(weakref.ref(fetched))
        left.add(partition, fetched)
        del fetched
    now += kafka_fetched.KEPT_S
    assert all(each() is not None for each in kept)
    going_on = left.take(0, 5)
    assert going_on is not None
    left.add(0, going_on)
    del going_on
    now += 0.1
    assert left.take(99, 0) is None
    assert [each() is not None for each in kept] == [True] + [False] * 7
