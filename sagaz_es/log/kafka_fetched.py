"""What one fetch gave, and the rest of it until its reader goes on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.memory_records import MemoryRecords

from sagaz_es.errors import MissingDependencyError

LEFT_OVER = 2  # fetches kept a partition, because a reader took only a part
KEPT_S = 5.0  # each is up to a MiB; with many partitions that adds up


class Fetched:
    """What one fetch gave: the records from `position` to `end`, still as bytes."""

    def __init__(self, offset: int, data: bytes) -> None:
        self.position = self.end = offset
        self._batches: deque[Any] = deque()
        self._records: Iterator[Any] = iter(())  # of the batch that is being read
        batches = MemoryRecords(data)
        while batches.has_next():
            batch = batches.next_batch()
            if not batch.validate_crc():
                if self._batches:
                    break  # it is fetched again when a reader gets there
                raise CorruptRecordException(f"wrong checksum at offset {batch.base_offset}")
            self._batches.append(batch)
            self.end = batch.next_offset

    @property
    def more(self) -> bool:
        return self.position < self.end

    def take(self, limit: int) -> list[Any]:
        """The next raw records, at most `limit`; none: there are no more."""
        taken: list[Any] = []
        while self.more:
            for record in self._records:
                # A batch comes whole, also if the fetch began in its middle.
                if record.offset >= self.position:
                    taken.append(record)
                    self.position = record.offset + 1
                    if len(taken) == limit:
                        return taken
            if not self._batches:
                self.position = self.end  # the last ones may be missing: control records, for one
                break
            batch = self._batches.popleft()
            self._records = iter(()) if batch.is_control_batch else _records_of(batch)
        return taken

    def skip_to(self, offset: int) -> bool:
        """Go forward to `offset`; whether there is something left then."""
        while self._batches and self._batches[0].next_offset <= offset:
            self._batches.popleft()
            self._records = iter(())
        self.position = max(self.position, offset)
        return self.more


class LeftOver:
    """What readers have not taken yet of their last fetches: they go on there without the broker.

    Law (level): what nobody has gone on with for KEPT_S is dropped by the next call, whatever
    partition that is about: a reader may have given up, or know the rest from elsewhere.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._kept: dict[int, deque[tuple[float, Fetched]]] = {}
        self._now = now

    def add(self, partition: int, fetched: Fetched) -> None:
        """Keep the rest of a fetch; the oldest gives way."""
        self._drop()
        left = self._kept.setdefault(partition, deque(maxlen=LEFT_OVER))
        left.append((self._now(), fetched))

    def take(self, partition: int, offset: int) -> Fetched | None:
        """What an earlier read at this place did not take.

        A reader that goes on a little later, because it knows what it wrote itself, skips that.
        """
        self._drop()
        left = self._kept.get(partition, ())
        for kept in sorted(left, key=lambda each: -each[1].position):
            fetched = kept[1]
            if fetched.position <= offset:
                self._kept[partition].remove(kept)
                return fetched if fetched.skip_to(offset) else None
        return None

    def _drop(self) -> None:
        since = self._now() - KEPT_S
        for left in self._kept.values():
            while left and left[0][0] < since:
                left.popleft()


def _records_of(batch: Any) -> Iterator[Any]:
    try:
        # A batch can be gone through once; `islice` lets us stop on the way and go on.
        return islice(iter(batch), None)
    except UnsupportedCodecError as error:
        raise MissingDependencyError("cramjam", "reading compressed records", "kafka") from error
