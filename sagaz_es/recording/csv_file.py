"""A CSV file as rows that can be read again in any order, without holding the file.

The first reading checks every row and notes where it begins: about 80 bytes a row stay in memory,
beside one text a case. Rows are then read one by one by their place in the file.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from msgspec import Struct

from sagaz_es.errors import ConfigurationError
from sagaz_es.sagas.inputs import check_id

DELIMITERS = ",;\t|"
MAX_ROW_BYTES = 900_000
"""A record of the log takes a million bytes; the rest is for names and quoting."""

MAX_ERRORS = 10_000
"""Bad rows that are told one by one; more are only counted."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_BOM = b"\xef\xbb\xbf"
_QUOTED = re.compile(r'"[^"]*"')
_LONE_CR = re.compile(r"\r(?!\n)")


class RowError(Struct, frozen=True):
    """A row that was passed over. `line` is the one where it begins; the header is line 1."""

    line: int
    reason: str

    def to_dict(self) -> dict[str, object]:
        """A plain record."""
        return {"line": self.line, "reason": self.reason}


class RowErrors:
    """Bad rows: the first ones as they are, all of them counted."""

    def __init__(self) -> None:
        self.told: list[RowError] = []
        self.count = 0

    def add(self, line: int, reason: str) -> None:
        """One more."""
        self.count += 1
        if len(self.told) < MAX_ERRORS:
            self.told.append(RowError(line, reason))


class CsvFile:
    """See the module. Open until left; `cases`, `times` and the like after `index`.

    Raises ConfigurationError for a file without a header, or without one of the columns.
    """

    def __init__(
        self, path: str | os.PathLike[str], saga_id_column: str, step_column: str, time_column: str
    ) -> None:
        self.path = Path(path)
        self.columns = (saga_id_column, step_column, time_column)
        self.errors = RowErrors()
        self.cases: dict[str, int] = {}  # saga id -> its number, in the order of the file
        self.case_of = array("q")  # of each good row, as all of these
        self.times = array("q")  # µs since 1970 UTC
        self.lines = array("q")
        self._begins = array("q")
        self._lengths = array("q")
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        self._file = self.path.open("rb")
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self.times)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def digest(self) -> bytes:
        """Of everything that `index` read."""
        return self._digest.digest()

    # --- the header

    def _read_header(self) -> None:
        start, data, lines = 0, b"", 0
        if self._file.read(3) == _BOM:
            start = 3
        self._file.seek(start)
        # A quoted name may have line ends in it.
        for line in self._file:
            data, lines = data + line, lines + 1
            if data.strip() and data.count(b'"') % 2 == 0:
                break
            if len(data) > MAX_ROW_BYTES:
                break
        if not data.strip():
            raise ConfigurationError(f"{self.path}: the file is empty; its first row names columns")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise ConfigurationError(
                f"{self.path}: line 1 is not UTF-8; save it as UTF-8"
            ) from None
        if _LONE_CR.search(_QUOTED.sub("", text)):
            raise ConfigurationError(
                f"{self.path}: its lines end in CR alone; save it with LF or CRLF line ends"
            )
        self.delimiter, self.names = self._choose(text.strip("\r\n"))
        self._body = start + len(data)
        self._header_lines = lines
        self._id_at, self._step_at, self._time_at = map(self.names.index, self.columns)
        chosen = {self._id_at, self._step_at, self._time_at}
        self.data_columns = [(at, name) for at, name in enumerate(self.names) if at not in chosen]

    def _choose(self, header: str) -> tuple[str, list[str]]:
        """The delimiter that shows all three columns, and the names of all columns."""
        read = {delimiter: _names(header, delimiter) for delimiter in DELIMITERS}
        for delimiter, names in read.items():
            if all(column in names for column in self.columns):
                twice = sorted({name for name in names if names.count(name) > 1})
                if twice:
                    raise ConfigurationError(
                        f"{self.path}: column {twice[0]!r} is there more than once; rename one"
                    )
                return delimiter, names
        names = max(read.values(), key=len)
        missing = next(column for column in self.columns if column not in names)
        known = ", ".join(repr(name) for name in names)
        raise ConfigurationError(f"{self.path}: there is no column {missing!r}; columns: {known}")

    # --- the first reading

    def index(self) -> Iterator[int]:
        """Read the whole file once; now and then yields how many bytes that were so far."""
        self._file.seek(0)
        self._digest.update(self._file.read(self._body))
        lines = _Lines(self._file, self._body, self._digest.update)
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        begin, line = self._body, self._header_lines
        looked = 0
        while True:
            try:
                with _LargeFields():
                    row = next(reader, None)
            except csv.Error as error:
                self.errors.add(line + 1, f"it is no CSV: {error}")
                row = []
            if row is None:
                return
            if row:
                self._take(row, line + 1, begin, lines.place - begin)
            begin, line = lines.place, self._header_lines + reader.line_num
            looked += 1
            if looked % 1000 == 0:
                yield begin

    def _take(self, row: list[str], line: int, begin: int, length: int) -> None:
        try:
            saga_id, at = self._checked(row, length)
        except (ValueError, IndexError) as error:
            self.errors.add(line, str(error))
            return
        self.case_of.append(self.cases.setdefault(saga_id, len(self.cases)))
        self.times.append(at)
        self.lines.append(line)
        self._begins.append(begin)
        self._lengths.append(length)

    def _checked(self, row: list[str], length: int) -> tuple[str, int]:
        """Saga id and time of a good row. Raises ValueError with the reason why it is none."""
        width = len(self.names)
        if len(row) > width and any(row[width:]):
            raise ValueError(f"it has {len(row)} cells, the header has {width}")
        row += [""] * (width - len(row))
        saga_id, step, time = row[self._id_at], row[self._step_at], row[self._time_at]
        for cell, column, what in zip(
            (saga_id, step, time), self.columns, ("saga id", "step", "time"), strict=True
        ):
            if not cell or cell.isspace():
                raise ValueError(f"it has no {what} in column {column!r}")
        try:
            "".join(row).encode()
        except UnicodeEncodeError:
            raise ValueError("it is not UTF-8") from None
        if length > MAX_ROW_BYTES:
            raise ValueError(f"it takes {length} bytes, more than {MAX_ROW_BYTES}")
        check_id(saga_id)
        return saga_id, time_of(time)

    # --- rows again

    def row(self, number: int) -> tuple[str, str, list[str]]:
        """Saga id, step, and all cells of a good row."""
        # No memory map: if somebody cuts the file meanwhile, that would end the process.
        self._file.seek(self._begins[number])
        data = self._file.read(self._lengths[number])
        with _LargeFields():
            row = next(csv.reader([data.decode()], delimiter=self.delimiter, strict=True), [])
        if len(row) <= max(self._id_at, self._step_at):
            raise ConfigurationError(f"{self.path}: the file was changed while it was read")
        return row[self._id_at], row[self._step_at], row


class _Lines:
    """The lines of a file as text; `place` is the byte behind the last one given."""

    def __init__(self, file: Iterator[bytes], place: int, see: Callable[[bytes], None]) -> None:
        self._file, self.place, self._see = file, place, see

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.place += len(line)
        self._see(line)
        return line.decode("utf-8", "surrogateescape")


class _LargeFields:
    """The csv module's limit for a cell is the process': raised for a moment, then as it was."""

    def __enter__(self) -> None:
        self._limit = csv.field_size_limit(MAX_ROW_BYTES)

    def __exit__(self, *_: object) -> None:
        csv.field_size_limit(self._limit)


def _names(header: str, delimiter: str) -> list[str]:
    try:
        names = next(csv.reader([header], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []
    return [name or f"column {at}" for at, name in enumerate(names, 1)]


def time_of(text: str) -> int:
    """µs since 1970 UTC of an ISO 8601 time; without a zone it is UTC. Raises ValueError."""
    text = text.strip()
    try:
        if text.isdecimal() and len(text) != 8:
            raise ValueError("a number")
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"its time {text[:40]!r} is not in ISO 8601") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return (when - _EPOCH) // _US


def order_of(times: Sequence[int]) -> list[int]:
    """Row numbers in the order of time; equal times keep the order of the file."""
    return sorted(range(len(times)), key=times.__getitem__)
