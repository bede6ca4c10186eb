"""What all sagas of a partition want to append, in the order of coming, a batch at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from sagaz_es.core import events as e
from sagaz_es.engine.partitions.cell import Cell
from sagaz_es.errors import LostOwnership

MAX_BATCH_ENTRIES = 400
MAX_BATCH_BYTES = 600_000
MAX_QUEUED_ENTRIES = 100_000


class Append:
    """Entries that go into the log together; `cell`: of the saga whose events they are."""

    __slots__ = ("cell", "entries", "future", "size")

    def __init__(
        self, cell: Cell | None, entries: Sequence[e.Entry], size: int, future: asyncio.Future[int]
    ) -> None:
        self.cell, self.entries, self.size, self.future = cell, entries, size, future

    @property
    def begins(self) -> bool:
        """Whether it starts a saga, or asks for that."""
        first = self.entries[0]
        if isinstance(first, e.Event):
            return type(first.fact) is e.SagaStarted
        return isinstance(first, e.StartRequested)

    def fail(self, error: Exception) -> None:
        """Tell who waits for it, unless that is told already."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # whoever waited may be gone: no "never retrieved" noise


class AppendQueue:
    """The appends of a partition that nobody has sent yet."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.items: deque[Append] = deque()  # the one that has waited longest is first
        self._queued = 0  # entries
        self._filled: asyncio.Future[None] | None = None  # what the write loop waits for
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False

    def filled(self) -> asyncio.Future[None]:
        """Of an empty queue: done once there is something to send."""
        # A bare future: an Event costs three times as much, and this is once an append.
        self._filled = self._loop.create_future()
        return self._filled

    def put(
        self, cell: Cell | None, entries: Sequence[e.Entry], size: int = 400
    ) -> asyncio.Future[int]:
        """Append the entries as one; resolves to the first one's offset once they are accepted.

        Fails with LostOwnership if another engine won the saga, AppendRefused if they cannot stand.
        """
        future: asyncio.Future[int] = self._loop.create_future()
        if self._closed or (cell is not None and cell.lost):
            future.set_exception(LostOwnership(cell.state.saga_id if cell is not None else ""))
            return future
        self.items.append(Append(cell, entries, size, future))
        self._queued += len(entries)
        if self._queued > MAX_QUEUED_ENTRIES:
            self._room.clear()
        filled = self._filled
        if filled is not None and not filled.done():
            filled.set_result(None)
        return future

    async def room(self) -> None:
        """Wait while the queue is full: back-pressure for whoever starts sagas."""
        while not self._room.is_set():  # of many that were woken the first may fill it again
            await self._room.wait()

    def take(self) -> list[Append]:
        """The next batch: what has waited longest, as much as one append takes."""
        batch: list[Append] = []
        entries = size = 0
        while self.items:
            item = self.items[0]
            if batch and (
                entries + len(item.entries) > MAX_BATCH_ENTRIES
                or size + item.size > MAX_BATCH_BYTES
            ):
                break
            self.items.popleft()
            entries += len(item.entries)
            size += item.size
            if item.cell is not None and item.cell.lost:
                item.fail(LostOwnership(item.cell.state.saga_id))
                continue
            batch.append(item)
        self._queued -= entries
        if self._queued <= MAX_QUEUED_ENTRIES // 2:
            self._room.set()
        return batch

    def close(self) -> None:
        """Nobody sends what is queued, nor what comes: who waits for it is told."""
        for item in self.items:
            item.fail(LostOwnership(item.cell.state.saga_id if item.cell else ""))
        self.items.clear()
        self._closed = True
