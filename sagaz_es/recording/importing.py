"""Histories that other systems kept, as recorded sagas: a CSV file becomes facts.

A row is a step that was done. Rows stand in the log in the order of time, those of one time in the
order of the file. The writer id is made from the file's content and the options, and a saga's rows
are numbered in their order; so the same file again is the same facts, and an import that was killed
goes on where it stopped: what already stands is looked up first, and the fold passes over the rest.

Law (only at the end): a row becomes part of a saga only behind all that is recorded of it; an older
one is told, as a log adds nothing to the past. So the state at any time stays what it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from sagaz_es.codec.values import to_text
from sagaz_es.core import events as e
from sagaz_es.core.plan import ALL_KEYS
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import join_names, join_object
from sagaz_es.errors import ConfigurationError
from sagaz_es.ports import EventLog, ProjectionStore, Record
from sagaz_es.recording.csv_file import CsvFile, RowError, order_of
from sagaz_es.recording.recorder import append_again

BATCH_ENTRIES = 500
BATCH_BYTES = 500_000
ANY_STEP = "*"
"""Of `ends`: whatever the last step of a case is."""

LOOK_UP_COST = 20
"""Records that can be scanned in the time of one look-up by index."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is done now ("reading", "comparing", "writing"), how much of it, and of how much: bytes
of the file, records of the log, rows."""


class ImportResult(Struct, frozen=True):
    """What an import added: rows that became events, and the sagas that got any.

    `skipped`: rows that added nothing, those that stood already and the bad ones. `errors`: the bad
    rows by line, at most the first 10,000. `ended`: sagas of which it was recorded that they have
    ended, which is no row.
    """

    sagas: int
    events: int
    skipped: int
    errors: tuple[RowError, ...] = ()
    ended: int = 0

    def to_dict(self) -> dict[str, Any]:
        """A plain record."""
        return {
            "sagas": self.sagas,
            "events": self.events,
            "skipped": self.skipped,
            "ended": self.ended,
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
    ends: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    store: ProjectionStore | None = None,
    retry_seconds: float = 30.0,
) -> ImportResult:
    """Import a CSV file (UTF-8; separated by comma, semicolon, tab or bar) into an open log.

    Each other column that is not empty is a key that the step set: a text, or with `infer_types`
    the number or boolean that it spells. Times are ISO 8601, without a zone UTC. With a `store`
    that is projected from the log, less of the log has to be looked through.

    `ends`: last step of a case (or "*": any) -> how a case that ends with it has ended: completed,
    rolled_back, failed or cancelled. All others stay `executing`. A file that was imported without
    it can be imported again with it, which adds only the ends.

    Bad rows are told, the rest is imported. Raises ConfigurationError for a file without the
    columns, AppendUnknown if the log does not answer for `retry_seconds`: import it again then.
    """
    if not saga_name:
        raise ConfigurationError("saga_name: a text that is not empty")
    facts = {step: _end(status) for step, status in (ends or {}).items()}
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
        written = _Written(log, retry_seconds)
        return await _write(written, file, rows, standing, facts, tell)


_ENDS: dict[str, e.Fact] = {
    "completed": e.SagaCompleted(),
    "rolled_back": e.SagaRolledBack(),
    "failed": e.SagaFailed(),
    "cancelled": e.SagaCancelled(),
}


END_STATUSES = tuple(_ENDS)
"""How a case may have ended."""


def _end(status: str) -> e.Fact:
    if status not in _ENDS:
        raise ConfigurationError(f"ends: one of {', '.join(_ENDS)}, not {status!r}")
    return _ENDS[status]


def _writer_of(digest: bytes, options: tuple[object, ...]) -> bytes:
    # Never to be changed: the same file must give the same writer in every version.
    return hashlib.sha256(b"sagaz-es import 1\0" + digest + msgspec.json.encode(options)).digest()[
        :16
    ]


# --- rows to events -------------------------------------------------------------------------------


class _Rows:
    """Rows of a file as events of one writer."""

    def __init__(self, file: CsvFile, saga_name: str, writer: bytes, infer_types: bool) -> None:
        self._file, self.saga_name, self._writer = file, saga_name, writer
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
        keys_set = f"{{{','.join(changes)}}}" if changes else ""
        fact = e.StepCompleted(step, keys_set=keys_set, reads=self._reads)
        return self._told(saga_id, sequence, number, fact)

    def end(self, number: int, sequence: int, ends: Mapping[str, e.Fact]) -> e.Event | None:
        """The event that ends the case whose last row this is; None: it has not ended."""
        saga_id, step, _ = self._file.row(number)
        fact = ends.get(step) or ends.get(ANY_STEP)
        return None if fact is None else self._told(saga_id, sequence, number, fact)

    def _told(self, saga_id: str, sequence: int, number: int, fact: e.Fact) -> e.Event:
        at = self._file.times[number]
        name, writer = self.saga_name, self._writer
        return e.Event(saga_id, name, writer, e.RECORDED_EPOCH, sequence, at, fact)


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


class _Case:
    """What is recorded of a saga that the file has rows of.

    `same_at` and `same`: what others had recorded last before this import's first row, by time and
    content. What stands there is never a row of this import, however often it comes again.
    """

    __slots__ = ("count", "last_at", "name", "others", "owned", "same", "same_at")

    def __init__(self, name: str, owned: bool) -> None:
        self.name = name
        self.owned = owned  # an engine runs it: the fold would reject every row
        self.count = 0  # events of this import
        self.last_at = 0  # the last event, whoever wrote it
        self.others = False  # somebody else has recorded something of it
        self.same_at = _NEVER
        self.same: set[Content] = set()

    def take_others(self, event: e.Event) -> None:
        """An event of somebody else, in the order of the log."""
        at = event.occurred_at
        if not self.count and (not self.others or at >= self.same_at):
            if not self.others or at > self.same_at:
                self.same_at, self.same = at, set()
            self.same.add(content_of(event.fact))
        self.others = True


_NEVER = -(2**63)  # before all times, which may be before 1970
Content: TypeAlias = tuple[str, str]


def content_of(fact: e.Fact) -> Content:
    """What a row says beside its saga and its time."""
    return getattr(fact, "step", ""), getattr(fact, "keys_set", "")


class _Standing:
    """What the log holds of the file's cases."""

    def __init__(self, writer: bytes, cases: dict[str, int]) -> None:
        self._writer, self._numbers = writer, cases
        self.cases: dict[int, _Case] = {}
        """By the case's number; those of which nothing stands are left out."""

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
        for first in range(0, len(saga_ids), 500):
            for head in (await store.heads(saga_ids[first : first + 500])).values():
                await self._take(store, head)

    async def _take(self, store: ProjectionStore, head: SagaState) -> None:
        case = _Case(head.saga_name, not head.recorded)
        self.cases[self._numbers[head.saga_id]] = case
        writer = self._writer.hex()
        case.last_at = head.updated_at
        # Only beside others' events it matters what they are.
        if head.recorders.keys() - {writer}:
            await self._take_archive(store, head.saga_id, case)
        case.count = head.recorders.get(writer, 0)

    async def _take_archive(self, store: ProjectionStore, saga_id: str, case: _Case) -> None:
        after = 0
        while page := await store.archived(saga_id, after=after):
            after = page[-1].sequence
            for one in page:
                if one.event.writer != self._writer:
                    case.take_others(one.event)
                else:
                    case.count = 1  # from here on it is only told that there are others

    def _see(self, records: Iterable[Record]) -> None:
        for record in records:
            event = record.entry
            if type(event) is not e.Event:
                continue
            number = self._numbers.get(event.saga_id)
            if number is None:
                continue
            case = self.cases.get(number)
            if event.epoch != e.RECORDED_EPOCH:
                if case is None and type(event.fact) is e.SagaStarted:
                    self.cases[number] = _Case(event.saga_name, True)
                continue
            # The fold takes the next number of each writer, and so does this.
            if case is None:
                if event.sequence != 1:
                    continue
                case = self.cases[number] = _Case(event.saga_name, False)
                case.last_at = event.occurred_at
            elif case.owned:
                continue
            if event.writer != self._writer:
                case.take_others(event)
            elif event.sequence == case.count + 1:
                case.count += 1
            else:
                continue
            case.last_at = max(case.last_at, event.occurred_at)


# --- writing --------------------------------------------------------------------------------------


class _Reached:
    """How far the writing of a case is."""

    __slots__ = ("count", "last", "stopped")

    def __init__(self) -> None:
        self.count = 0  # its rows that stand now
        self.last = -1  # the row that was the last of them
        self.stopped = ""  # why no further row can stand


async def _write(
    written: _Written,
    file: CsvFile,
    rows: _Rows,
    standing: _Standing,
    ends: Mapping[str, e.Fact],
    tell: Progress,
) -> ImportResult:
    total, bad = len(file), file.errors.count
    reached: dict[int, _Reached] = {}
    grown: set[int] = set()
    events = skipped = 0
    for done, row in enumerate(order_of(file.times), 1):
        number = file.case_of[row]
        case = standing.cases.get(number)
        place = reached.get(number)
        if place is None:
            place = reached[number] = _Reached()
        why = place.stopped or _refusal(case, rows, row, file.times[row], place)
        if why:
            file.errors.add(file.lines[row], why)
            skipped += 1
        else:
            place.count += 1
            place.last = row
            if case is not None and place.count <= case.count:
                skipped += 1
            else:
                await written.add(rows.event(row, place.count))
                grown.add(number)
                events += 1
        if done % BATCH_ENTRIES == 0:
            tell("writing", done, total)
            await asyncio.sleep(0)
    ended = await _write_ends(written, rows, standing, reached, ends) if ends else 0
    await written.flush()
    tell("writing", total, total)
    errors = sorted(file.errors.told, key=lambda error: error.line)
    return ImportResult(len(grown), events, bad + skipped, tuple(errors), ended)


def _refusal(case: _Case | None, rows: _Rows, row: int, at: int, place: _Reached) -> str:
    """Why a row cannot stand; empty: it can, or does."""
    if case is None:
        return ""
    if case.owned:
        place.stopped = "its saga is run by an engine, which alone adds to it"
    elif case.name != rows.saga_name:
        place.stopped = f"its saga is there with another name, {case.name!r}"
    elif case.others and at < case.same_at:
        return _OLDER
    elif case.others and at == case.same_at and content_of(rows.event(row, 0).fact) in case.same:
        return "it is recorded: its saga has this step with these values at this time"
    elif place.count >= case.count and case.others and at < case.last_at:
        if case.count:  # nothing may come between an import's rows, or their numbers would move
            place.stopped = _OLDER
        return _OLDER
    return place.stopped


_OLDER = "it is older than what is recorded of its saga, and a log adds nothing to the past"


async def _write_ends(
    written: _Written,
    rows: _Rows,
    standing: _Standing,
    reached: Mapping[int, _Reached],
    ends: Mapping[str, e.Fact],
) -> int:
    """Record of the cases that have ended that they have; of how many that was."""
    ended = 0
    for number, place in reached.items():
        case = standing.cases.get(number)
        stands = case is not None and case.count > place.count
        if place.last < 0 or place.stopped or stands:
            continue
        event = rows.end(place.last, place.count + 1, ends)
        if event is not None and (case is None or event.occurred_at >= case.last_at):
            await written.add(event)
            ended += 1
    return ended


class _Written:
    """Events on their way to the log, gathered by partition."""

    def __init__(self, log: EventLog, retry_seconds: float) -> None:
        self._log, self._retry_seconds = log, retry_seconds
        self._batches: dict[int, _Batch] = {}

    async def add(self, event: e.Event) -> None:
        partition = self._log.partition_of(event.saga_id)
        batch = self._batches.get(partition)
        if batch is None:
            batch = self._batches[partition] = _Batch(self._log, partition, self._retry_seconds)
        await batch.add(event)

    async def flush(self) -> None:
        for batch in self._batches.values():
            await batch.flush()


class _Batch:
    """Events on their way to one partition, appended one batch after the other."""

    def __init__(self, log: EventLog, partition: int, retry_seconds: float) -> None:
        self._log, self._partition, self._retry_seconds = log, partition, retry_seconds
        self._events: list[e.Event] = []
        self._size = 0

    async def add(self, event: e.Event) -> None:
        fact = event.fact
        size = 200 + (3 * len(fact.keys_set) if type(fact) is e.StepCompleted else 0)
        if self._events and (len(self._events) >= BATCH_ENTRIES or self._size + size > BATCH_BYTES):
            await self.flush()
        self._events.append(event)
        self._size += size

    async def flush(self) -> None:
        """Append what gathered."""
        if self._events:
            await append_again(self._log, self._partition, self._events, self._retry_seconds)
        self._events, self._size = [], 0
