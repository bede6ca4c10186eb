"""What this process has just appended, as records: who follows its own log needs no file for it.

The process that runs sagas also projects them where the log is embedded. Without this, each event
would be fetched and decoded once more just after it was encoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from sagaz_es.core.events import Entry
from sagaz_es.ports import Record

Row = tuple[str, str, bytes]
"""Key, replay id, value."""

MAX_BYTES = 4 * 2**20
"""Of the values that are kept, in all partitions: some tenths of a second of a busy engine."""


class Append(Struct, frozen=True):
    """One append that stands: its entries, and the same as rows."""

    offset: int
    appended_at: int
    entries: Sequence[Entry]
    rows: Sequence[Row]
    size: int  # of the values


class Recent:
    """The newest appends of this process, by partition; the oldest are dropped first.

    Law (as the log has it): what is read here is what a read of the log would give.
    """

    def __init__(self, partitions: int) -> None:
        # By offset: who reads on from where he stopped begins where an append begins.
        self._appends: list[dict[int, Append]] = [{} for _ in range(partitions)]
        self._order: deque[tuple[int, int]] = deque()  # partition and offset, the oldest first
        self._bytes = 0

    def add(self, partition: int, append: Append) -> None:
        """Keep an append that stands."""
        self._appends[partition][append.offset] = append
        self._order.append((partition, append.offset))
        self._bytes += append.size
        while self._bytes > MAX_BYTES:
            old_partition, offset = self._order.popleft()
            self._bytes -= self._appends[old_partition].pop(offset).size

    def read(self, partition: int, offset: int, limit: int) -> tuple[Record, ...]:
        """Records from `offset` on, up to the first that is not kept; none: ask the file."""
        appends = self._appends[partition]
        found: list[Record] = []
        append = appends.get(offset)
        while append is not None and len(found) + len(append.rows) <= limit:
            at = append.appended_at
            for entry, (key, _, value) in zip(append.entries, append.rows, strict=True):
                found.append(Record(partition, offset, at, key, entry, value))
                offset += 1
            append = appends.get(offset)
        return tuple(found)
