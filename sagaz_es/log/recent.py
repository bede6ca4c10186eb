"""What this process has just appended, as records: who follows its own log needs no file for it.

The process that runs sagas also projects them where the log is embedded. Without this, each event
would be fetched and decoded once more just after it was encoded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

from sagaz_es.core.events import Entry
from sagaz_es.ports import Record

Row = tuple[str, str, bytes]
"""Key, replay id, value."""

MAX_BYTES = 12 * 2**20
"""Of memory, in all partitions, roughly: a second of a busy engine."""

KEPT_S = 5.0
"""Who follows has read it long before; else an engine with little to do fills the bound, too, and
grows for an hour."""

_ENTRY_COST_BYTES = 600  # what an entry takes besides its value, roughly: measured for sagas


class Append(Struct, frozen=True):
    """One append that stands: its entries, and the same as rows."""

    offset: int
    appended_at: int
    entries: Sequence[Entry]
    rows: Sequence[Row]
    size: int  # of the values

    @property
    def cost(self) -> int:
        """Bytes of memory, roughly."""
        return self.size + _ENTRY_COST_BYTES * len(self.entries)


class Recent:
    """The newest appends of this process, by partition; the oldest are dropped first.

    `now` gives seconds of a clock that never goes back.

    Law (as the log has it): what is read here is what a read of the log would give.
    Law (level): what was added more than KEPT_S ago is dropped by the next call, as is what is too
    much. So an engine whose log is followed keeps five seconds of its work, and nothing when idle.
    """

    def __init__(self, partitions: int, now: Callable[[], float] = time.monotonic) -> None:
        # By offset: who reads on from where he stopped begins where an append begins.
        self._appends: list[dict[int, Append]] = [{} for _ in range(partitions)]
        # When it was added, partition and offset, the oldest first.
        self._order: deque[tuple[float, int, int]] = deque()
        self._bytes = 0
        self._now = now

    def add(self, partition: int, append: Append) -> None:
        """Keep an append that stands."""
        self._appends[partition][append.offset] = append
        self._order.append((self._now(), partition, append.offset))
        self._bytes += append.cost
        self._drop()

    def _drop(self) -> None:
        order, since = self._order, self._now() - KEPT_S
        while order and (order[0][0] < since or self._bytes > MAX_BYTES):
            _, partition, offset = order.popleft()
            self._bytes -= self._appends[partition].pop(offset).cost

    def read(self, partition: int, offset: int, limit: int) -> tuple[Record, ...]:
        """Records from `offset` on, up to the first that is not kept; none: ask the file."""
        self._drop()
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
