"""What a process has just appended is read from memory, and is what the file has."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core import events as e
from sagaz_es.log import recent
from sagaz_es.log.recent import Append, Recent
from sagaz_es.log.sqlite import SQLiteEventLog
from sagaz_es.ports import Record


def event(number: int, text: str = "") -> e.Event:
    fact = e.StepCompleted("charge", 1, f'{{"text":"{text}"}}')
    return e.Event("saga-1", "order", b"w" * 16, 0, number, 10**15 + number, fact)


@pytest.fixture
async def logs(tmp_path: Path) -> AsyncIterator[tuple[SQLiteEventLog, SQLiteEventLog]]:
    """Two on one file, as two processes have them."""
    async with AsyncExitStack() as stack:
        both = [SQLiteEventLog(tmp_path / "log.db", AvroCodec(), 1) for _ in range(2)]
        for log in both:
            await log.open()
            stack.push_async_callback(log.close)
        yield both[0], both[1]


async def whole(log: SQLiteEventLog, limit: int = 1000) -> list[Record]:
    found: list[Record] = []
    offset, end = 0, (await log.bounds(0)).end
    while offset < end:
        chunk = await log.read(0, offset, limit=limit)
        found += chunk.records
        assert chunk.next_offset == found[-1].offset + 1
        offset = chunk.next_offset
    return found


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
async def test_who_wrote_and_who_did_not_read_the_same(
    logs: tuple[SQLiteEventLog, SQLiteEventLog], limit: int
) -> None:
    mine, other = logs
    for number in range(1, 40, 3):
        await (mine if number % 2 else other).append(0, [event(number), event(number + 1)])
        await mine.append(0, [event(number + 2)])
        await other.append_raw(0, "saga-1", b"foreign")
    request = e.SignalSent("r-1", "saga-1", 1, name="approved")
    await mine.append(0, [request])
    assert await whole(mine, limit) == await whole(other, limit)
    assert [record.offset for record in await whole(mine)] == list(range(1 + 13 * 4 + 1))


async def test_what_was_just_written_needs_no_file(
    logs: tuple[SQLiteEventLog, SQLiteEventLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, _ = logs
    base = await mine.append(0, [event(1), event(2)])
    monkeypatch.setattr(AvroCodec, "decode", None)  # whatever comes from the file is decoded
    chunk = await mine.read(0, base)
    assert [record.entry for record in chunk.records] == [event(1), event(2)]


def test_what_is_kept_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_BYTES", 10 * Append(0, 5, [event(0)], [], 100).cost)
    kept = Recent(2)
    for offset in range(100):
        entry = event(offset)
        for partition in range(2):
            row = ("saga-1", "", b"x" * 100)
            kept.add(partition, Append(offset, 5, [entry], [row], 100))
    assert [len(kept.read(0, offset, 1000)) for offset in (0, 94, 95, 99)] == [0, 0, 5, 1]
    assert kept.read(1, 95, 2) == tuple(
        Record(1, offset, 5, "saga-1", event(offset), b"x" * 100) for offset in (95, 96)
    )


class Entries(list[e.Event]):
    """Entries that a weak reference can name."""


def test_an_engine_with_little_to_do_keeps_its_last_seconds_and_nothing_when_idle() -> None:
    now = 0.0
    kept, added = Recent(2, lambda: now), []
    for offset in range(100):
        now += 0.5
        entries = Entries([event(offset)])
        kept.add(offset % 2, Append(offset, 5, entries, [("saga-1", "", b"x" * 100)], 100))
        added.append(weakref.ref(entries))
        del entries
    alive = [entries() is not None for entries in added]
    assert alive == [99 - offset <= recent.KEPT_S / 0.5 for offset in range(100)]
    now += recent.KEPT_S
    kept.read(0, 100, 1000)  # whoever follows asks for more, of whichever partition
    assert [entries() for entries in added if entries()] == [[event(99)]]
    now += 0.1
    kept.read(0, 100, 1000)
    assert not any(entries() for entries in added)
