"""Follow a partition that another engine owns, for whoever waits for something in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sagaz_es.errors import HistoryGone, LogTruncated, SagaError
from sagaz_es.ports import EventLog, Record

logger = logging.getLogger("sagaz_es.engine")
Listener = Callable[[Record | None], None]
"""Told each record; None: some were missed, because they are not kept any more, or were lost."""


class Tail:
    """One reader a partition while anybody listens; records of other sagas are passed over."""

    def __init__(self, log: EventLog, partition: int) -> None:
        self._log = log
        self._partition = partition
        self._listeners: dict[str, list[Listener]] = {}
        self._task: asyncio.Task[None] | None = None
        self.lost_tail = False  # whether the log was seen to have lost some

    def listen(self, saga_id: str, from_offset: int, listener: Listener) -> None:
        """Tell `listener` of every record of the saga from `from_offset` on.

        A second listener may hear earlier records too: it has to look at what it hears.
        """
        self._listeners.setdefault(saga_id, []).append(listener)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._follow(from_offset), name=f"sagaz-es tail {self._partition}"
            )

    def ignore(self, saga_id: str, listener: Listener) -> None:
        """Stop telling; the reader ends with the last listener."""
        listeners = self._listeners.get(saga_id, [])
        if listener in listeners:
            listeners.remove(listener)
        if not listeners:
            self._listeners.pop(saga_id, None)
        if not self._listeners:
            self.close()

    async def _follow(self, offset: int) -> None:
        while True:
            try:
                chunk = await self._log.read(self._partition, offset, limit=1000, wait_s=1.0)
            except (SagaError, OSError) as error:
                logger.warning("following partition %d: %s", self._partition, error)
                await asyncio.sleep(0.5)
                if isinstance(error, HistoryGone):
                    offset = await self._first(offset)
                elif isinstance(error, LogTruncated):
                    self.lost_tail = True
                    offset = error.end
                    self._tell_all()
                continue
            offset = chunk.next_offset
            for record in chunk.records:
                for listener in list(self._listeners.get(record.key, ())):
                    listener(record)

    async def _first(self, offset: int) -> int:
        """The first offset that is still kept; everybody is told that some are not."""
        try:
            offset = max(offset, (await self._log.bounds(self._partition)).start)
        except (SagaError, OSError):
            return offset
        self._tell_all()
        return offset

    def _tell_all(self) -> None:
        for listeners in list(self._listeners.values()):
            for listener in list(listeners):
                listener(None)

    def close(self) -> None:
        """End the reader."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
