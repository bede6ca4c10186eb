"""Whatever the bytes of records, rows, snapshots and files have become: they are what they were, or
refused as damaged. Nothing else is raised, nothing hangs, nothing takes memory without end."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.codec.compress import LIMIT, ZSTD, unpack
from sagaz_es.core import events as e
from sagaz_es.core.fold import fold_all
from sagaz_es.core.state import dump_state
from sagaz_es.errors import CorruptData, SagaError, StorageFailed, UndecodableRecord
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.log.sqlite import SQLiteEventLog
from sagaz_es.ports import ArchivedEvent, ReplayEntry, StoredSnapshot
from sagaz_es.reading.projector import Projector
from sagaz_es.reading.time_travel import SagaHistory
from sagaz_es.storage.doubts import Doubts
from sagaz_es.storage.memory import MemoryProjectionStore
from sagaz_es.storage.rows import EventBytes, dump_head, dump_row, load_head, load_row
from sagaz_es.storage.sqlite import SQLiteProjectionStore
from sagaz_es.testing.contracts.histories import declined_facts, history, order_facts
from sagaz_es_cli.times import age, iso
from tests.property.mutation import fuzzed, mutated_bytes, slowly

CODEC = AvroCodec()
ARCHIVE = EventBytes(CODEC)
ORDER, DECLINED = history("order-17"), history("declined-4", declined_facts())
EVENTS = st.sampled_from((*ORDER, *DECLINED))
STATES = st.integers(1, len(ORDER)).map(lambda count: fold_all(ORDER[:count]))
ROW = ReplayEntry("r", "a", "b", "ship", "{}", "ann", "why", False, "success", 1)
BIG = 20_000_000
"""Bytes that reading a damaged record of some hundred bytes never takes."""


def snapshot(**changes: Any) -> StoredSnapshot:
    state = dump_state(fold_all(ORDER))
    given = StoredSnapshot(
        "id", "order-17", "order", 8, 1, 1, "ship", 2, "completed", (), state, 1, "hash"
    )
    return msgspec.structs.replace(given, **changes)


@fuzzed
@given(mutated_bytes(EVENTS.map(CODEC.encode)))
def test_a_damaged_record_is_an_entry_or_undecodable(value: bytes) -> None:
    try:
        CODEC.decode(value)
    except UndecodableRecord:
        pass


@pytest.mark.parametrize("length", [2**31, 2**40, 2**62, -1, -(2**62)])
def test_a_record_that_claims_a_giant_text_takes_no_memory(length: int) -> None:
    whole = CODEC.encode(ORDER[0])
    claim, left = bytearray(), (length << 1) ^ (length >> 63)
    while left > 127:
        claim.append(left & 127 | 128)
        left >>= 7
    claim.append(left)
    tracemalloc.start()
    try:
        with pytest.raises(UndecodableRecord):
            CODEC.decode(whole[:10] + bytes(claim) + whole[11:])
        assert tracemalloc.get_traced_memory()[1] < BIG
    finally:
        tracemalloc.stop()


@fuzzed
@given(st.lists(EVENTS.map(CODEC.encode) | mutated_bytes(EVENTS.map(CODEC.encode)), max_size=12))
def test_a_log_of_damaged_records_has_a_past_that_can_be_told(
    values: list[bytes],
) -> None:
    asyncio.run(_projected(values))


async def _projected(values: list[bytes]) -> None:
    log, store = MemoryEventLog(1), MemoryProjectionStore()
    await log.open()
    await store.open()
    for value in values:
        await log.append_raw(0, "order-17", value)
    await Projector(log, store).run_until(timeout_s=30)
    for summary in await store.summaries():
        assert iso(summary.started_at or 1) and age(summary.updated_at)
        kept = SagaHistory(summary.saga_id, log, store, None)
        told = SagaHistory(summary.saga_id, log, None, None)
        try:
            for sequence in range(1, summary.sequence + 1):
                ours, whole = await kept.state_at(sequence), await told.state_at(sequence)
                assert (ours.status, ours.context) == (whole.status, whole.context)
            await kept.changes()
        except SagaError:
            pass  # what a record's text holds is no value, say


@pytest.mark.parametrize("when", [2**62, -(2**62), 2**63 - 1, -(2**63)])
async def test_a_time_beyond_the_calendar_is_shown_as_its_end(when: int) -> None:
    log = MemoryEventLog(1)
    await log.open()
    await log.append(0, [msgspec.structs.replace(event, occurred_at=when) for event in ORDER])
    past = SagaHistory("order-17", log, None, None)
    state = await past.state_at(len(ORDER))
    assert state.timestamp.year == (9999 if when > 0 else 1)
    assert (await past.changes())[0].timestamp == state.timestamp
    assert str(state.timestamp.year) in str(iso(when))
    assert age(when)


@fuzzed
@given(mutated_bytes(STATES.map(dump_head)) | st.binary(max_size=40))
def test_a_damaged_head_is_a_state_or_refused(data: bytes) -> None:
    try:
        load_head(data, "here")
    except StorageFailed:
        pass


@fuzzed
@given(mutated_bytes(st.just(dump_row(ROW))) | st.binary(max_size=40))
def test_a_damaged_row_is_refused(data: bytes) -> None:
    try:
        load_row(data, ReplayEntry, "here")
    except StorageFailed:
        pass


@fuzzed
@given(mutated_bytes(EVENTS.map(CODEC.encode)) | st.binary(max_size=40))
def test_a_damaged_archived_event_is_an_event_or_refused(data: bytes) -> None:
    try:
        loaded = ARCHIVE.load(1, 1, data, "", "here")
    except StorageFailed:
        return
    assert isinstance(loaded, ArchivedEvent)


@fuzzed
@given(mutated_bytes(st.just(dump_row(snapshot()))) | st.binary(max_size=40))
@example(dump_row(snapshot(state=b"[" * 10_000)))
def test_a_damaged_snapshot_is_passed_over(data: bytes) -> None:
    told: list[str] = []
    doubts = Doubts(lambda saga_id, snapshot_id, reason: told.append(reason))
    assert doubts.first_to_fold_from(doubts.loaded("order-17", [("id", data)])) is None
    assert told


@pytest.mark.parametrize("claimed", [True, False])
def test_a_few_bytes_that_unpack_to_gigabytes_are_refused(claimed: bool) -> None:
    compressor = zstandard.ZstdCompressor(level=3, write_content_size=claimed)
    packing = compressor.compressobj(size=2 * LIMIT if claimed else -1)
    bomb = b"".join([packing.compress(bytes(1 << 20)) for _ in range(2 * LIMIT >> 20)])
    bomb += packing.flush()
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(CorruptData):
            unpack(ZSTD + bomb)
        assert tracemalloc.get_traced_memory()[1] < BIG
    finally:
        tracemalloc.stop()


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with a log, and a store projected from it."""
    path = tmp_path_factory.mktemp("sound") / "sagas.db"

    async def fill() -> None:
        log, store = SQLiteEventLog(path, CODEC, partitions=1), SQLiteProjectionStore(str(path))
        await log.open()
        await store.open()
        for number in range(20):
            await log.append(0, history(f"order-{number}", order_facts()))
        await Projector(log, store).run_until(timeout_s=30)
        await store.close()
        await log.close()

    asyncio.run(fill())
    return path


@slowly
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=64))),
    st.none() | st.floats(0, 1),
)
def test_a_damaged_file_gives_what_was_kept_or_says_that_it_is_damaged(
    sound: Path, damage: list[tuple[float, bytes]], cut: float | None
) -> None:
    data = bytearray(sound.read_bytes())
    for place, noise in damage:
        start = int(place * len(data))
        data[start : start + len(noise)] = noise
    if cut is not None:
        del data[int(cut * len(data)) :]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "sagas.db"
        path.write_bytes(data)
        asyncio.run(_looked_at(path))
        shutil.copy(sound, path)
        asyncio.run(_looked_at(path))


async def _looked_at(path: Path) -> None:
    """Read and write what is there; whatever is wrong is told as an error of ours."""
    log, store = SQLiteEventLog(path, CODEC), SQLiteProjectionStore(str(path))
    try:
        await log.open()
        await store.open()
        offset = 0
        while (chunk := await log.read(0, offset)).records:
            for record in chunk.records:
                if isinstance(record.entry, e.Event):
                    assert record.entry.saga_id.startswith("order-") or record.entry
            offset = chunk.next_offset
        for number in range(20):
            await log.read_saga(f"order-{number}")
            await store.archived(f"order-{number}")
            await SagaHistory(f"order-{number}", log, store, None).state_at(5)
        await store.heads([f"order-{number}" for number in range(20)])
        await store.summaries()
        await store.checkpoint(0)
        await log.append(0, history("order-new"))
    except SagaError:
        pass
    finally:
        await store.close()
        await log.close()
