"""Histories that other systems kept, as recorded sagas: a CSV file becomes facts.

A row is a step that was done. Rows stand in the log in the order of time, those of one time in the
order of the file. The writer id is made from the file's content and the options, and a saga's rows
are numbered in their order; so the same file again is the same facts, and an import that was killed
goes on where it stopped: what already stands is looked up first, and the fold passes over the rest.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from sagaz_es.codec.values import to_text
from sagaz_es.core import events as e
from sagaz_es.core.plan import ALL_KEYS
from sagaz_es.core.texts import join_names, join_object
from sagaz_es.engine.csv_file import CsvFile, RowError, order_of
from sagaz_es.engine.recorder import append_again
from sagaz_es.errors import ConfigurationError
from sagaz_es.ports import EventLog, ProjectionStore, Record

BATCH_ENTRIES = 500
BATCH_BYTES = 500_000
LOOK_UP_COST = 20
"""Records that can be scanned in the time of one look-up by index."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is done now ("reading", "comparing", "writing"), how much of it, and of how much: bytes
of the file, records of the log, rows."""


class ImportResult(Struct, frozen=True):
    """What an import added: rows that became events, and the sagas that got any.

    `skipped`: rows that added nothing, those that stood already and the bad ones. `errors`: the bad
    rows by line, at most the first 10,000.
    """

    sagas: int
    events: int
    skipped: int
    errors: tuple[RowError, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A plain record."""
        return {
            "sagas": self.sagas,
            "events": self.events,
            "skipped": self.skipped,
            "errors": [error.to_dict() for error in self.errors],
        }


async def import_csv(
    log: EventLog,
    path: str | os.PathLike[str],
    *,
    saga_name: str,
    saga_id_column: str,
    step_column: str,
    time_column: str,
    infer_types: bool = False,
    progress: Progress | None = None,
    store: ProjectionStore | None = None,
    retry_seconds: float = 30.0,
) -> ImportResult:
    """Import a CSV file (UTF-8; separated by comma, semicolon, tab or bar) into an open log.

    Each other column that is not empty is a key that the step set: a text, or with `infer_types`
    the number or boolean that it spells. Times are ISO 8601, without a zone UTC. With a `store`
    that is projected from the log, less of the log has to be looked through.

    Bad rows are told, the rest is imported. Raises ConfigurationError for a file without the
    columns, AppendUnknown if the log does not answer for `retry_seconds`: import it again then.
    """
    if not saga_name:
        raise ConfigurationError("saga_name: a text that is not empty")
    tell = progress or (lambda doing, done, total: None)
    with CsvFile(path, saga_id_column, step_column, time_column) as file:
        for done in file.index():
            tell("reading", done, file.size)
            await asyncio.sleep(0)
        tell("reading", file.size, file.size)
        options = (saga_name, *file.columns, file.delimiter, infer_types)
        writer = _writer_of(file.digest, options)
        standing = await _Standing.of(log, store, writer, file.cases, tell)
        rows = _Rows(file, saga_name, writer, infer_types)
        return await _write(log, file, rows, standing, tell, retry_seconds)


def _writer_of(digest: bytes, options: tuple[object, ...]) -> bytes:
    # Never to be changed: the same file must give the same writer in every version.
    return hashlib.sha256(b"sagaz-es import 1\0" + digest + msgspec.json.encode(options)).digest()[
        :16
    ]


# --- rows to events -------------------------------------------------------------------------------


class _Rows:
    """Rows of a file as events of one writer."""

    def __init__(self, file: CsvFile, saga_name: str, writer: bytes, infer_types: bool) -> None:
        self._file, self._saga_name, self._writer = file, saga_name, writer
        self._text_of = _inferred if infer_types else _as_text
        # `"amount":`, written as the context writes it
        self._keys = [(at, join_object({name: "0"})[1:-2]) for at, name in file.data_columns]
        self._reads = join_names([ALL_KEYS])  # nobody knows what it read

    def event(self, number: int, sequence: int) -> e.Event:
        """The event of a row, which is its case's with this number."""
        saga_id, step, cells = self._file.row(number)
        width = len(cells)
        changes = [
            key + self._text_of(cells[at]) for at, key in self._keys if at < width and cells[at]
        ]
        return e.Event(
            saga_id,
            self._saga_name,
            self._writer,
            e.RECORDED_EPOCH,
            sequence,
            self._file.times[number],
            e.StepCompleted(
                step, keys_set=f"{{{','.join(changes)}}}" if changes else "", reads=self._reads
            ),
        )


def _as_text(cell: str) -> str:
    return msgspec.json.encode(cell).decode()


_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,99}")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_BOOLEANS = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}


def _inferred(cell: str) -> str:
    """The JSON text of the number or boolean that a cell spells; of a text for all else.

    `007` and `+49` stay texts: they are names of something, and a number would lose digits.
    """
    if cell in _BOOLEANS:
        return to_text(_BOOLEANS[cell])
    if _INTEGER.fullmatch(cell):
        return to_text(int(cell))
    if len(cell) < 100 and _NUMBER.fullmatch(cell) and isfinite(number := float(cell)):
        return to_text(number)
    return _as_text(cell)


# --- what already stands --------------------------------------------------------------------------


class _Standing:
    """What the log holds of the file's cases: how many rows of each, and which are not ours."""

    def __init__(self, writer: bytes, cases: dict[str, int]) -> None:
        self._writer, self._cases = writer, cases
        self.counts = [0] * len(cases)
        self._recorded: set[int] = set()
        self.owned: set[int] = set()
        """Sagas that an engine runs: the fold would reject every row."""

    @classmethod
    async def of(
        cls,
        log: EventLog,
        store: ProjectionStore | None,
        writer: bytes,
        cases: dict[str, int],
        tell: Progress,
    ) -> _Standing:
        """Look it up: in the store as far as it goes, then in the log."""
        standing = cls(writer, cases)
        names: dict[int, list[str]] = {}
        for saga_id in cases:
            names.setdefault(log.partition_of(saga_id), []).append(saga_id)
        spans: dict[int, tuple[int, int]] = {}
        for partition, saga_ids in names.items():
            bounds = await log.bounds(partition)
            start = bounds.start
            if store is not None and (checkpoint := await store.checkpoint(partition)) is not None:
                await standing._ask(store, saga_ids)
                start = max(start, checkpoint.next_offset)
            spans[partition] = (start, bounds.end)
        total = sum(end - start for start, end in spans.values())
        done = 0
        for partition, (start, end) in spans.items():
            few = len(names[partition]) * LOOK_UP_COST < end - start
            if few and getattr(log, "indexed", False):
                for saga_id in names[partition]:
                    standing._see(await log.read_saga(saga_id, start))
            else:
                offset = start
                while offset < end:
                    chunk = await log.read(partition, offset, wait_s=1.0)
                    standing._see(chunk.records)
                    offset = chunk.next_offset
                    tell("comparing", done + offset - start, total)
            done += end - start
        return standing

    async def _ask(self, store: ProjectionStore, saga_ids: list[str]) -> None:
        writer = self._writer.hex()
        for first in range(0, len(saga_ids), 500):
            for saga_id, head in (await store.heads(saga_ids[first : first + 500])).items():
                case = self._cases[saga_id]
                self.counts[case] = head.recorders.get(writer, 0)
                (self._recorded if head.recorded else self.owned).add(case)

    def _see(self, records: Iterable[Record]) -> None:
        for record in records:
            event = record.entry
            if type(event) is not e.Event:
                continue
            case = self._cases.get(event.saga_id)
            if case is None:
                continue
            if event.epoch != e.RECORDED_EPOCH:
                if case not in self._recorded and type(event.fact) is e.SagaStarted:
                    self.owned.add(case)
            elif case not in self.owned:
                # The fold takes the next number of each writer, and so does this.
                if event.sequence == 1 or case in self._recorded:
                    self._recorded.add(case)
                if event.writer == self._writer and event.sequence == self.counts[case] + 1:
                    self.counts[case] += 1


# --- writing --------------------------------------------------------------------------------------


async def _write(
    log: EventLog,
    file: CsvFile,
    rows: _Rows,
    standing: _Standing,
    tell: Progress,
    retry_seconds: float,
) -> ImportResult:
    total = len(file)
    bad = file.errors.count
    counts = [0] * len(file.cases)
    grown: set[int] = set()
    batches: dict[int, _Batch] = {}
    events = skipped = 0
    for done, number in enumerate(order_of(file.times), 1):
        case = file.case_of[number]
        counts[case] += 1
        if case in standing.owned:
            file.errors.add(
                file.lines[number], "its saga is run by an engine, which alone adds to it"
            )
            skipped += 1
        elif counts[case] <= standing.counts[case]:
            skipped += 1
        else:
            event = rows.event(number, counts[case])
            partition = log.partition_of(event.saga_id)
            batch = batches.get(partition)
            if batch is None:
                batch = batches[partition] = _Batch(log, partition, retry_seconds)
            await batch.add(event)
            grown.add(case)
            events += 1
        if done % BATCH_ENTRIES == 0:
            tell("writing", done, total)
            await asyncio.sleep(0)
    for batch in batches.values():
        await batch.flush()
    tell("writing", total, total)
    errors = sorted(file.errors.told, key=lambda error: error.line)
    return ImportResult(len(grown), events, bad + skipped, tuple(errors))


class _Batch:
    """Events on their way to one partition, appended one batch after the other."""

    def __init__(self, log: EventLog, partition: int, retry_seconds: float) -> None:
        self._log, self._partition, self._retry_seconds = log, partition, retry_seconds
        self._events: list[e.Event] = []
        self._size = 0

    async def add(self, event: e.Event) -> None:
        size = 200 + 3 * len(event.fact.keys_set)  # type: ignore[attr-defined]  # StepCompleted
        if self._events and (len(self._events) >= BATCH_ENTRIES or self._size + size > BATCH_BYTES):
            await self.flush()
        self._events.append(event)
        self._size += size

    async def flush(self) -> None:
        """Append what gathered."""
        if self._events:
            await append_again(self._log, self._partition, self._events, self._retry_seconds)
        self._events, self._size = [], 0
