"""Reading a SQLite log: one thread with its own connection, and a look-out for other writers."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from sagaz_es.errors import StorageFailed, Unreachable
from sagaz_es.log.sqlite_file import explain
from sagaz_es.ports import Bounds

Row = tuple[int, str, int, str, bytes]
"""Offset, key, time of the append, replay id, value."""

CHUNK_BYTES = 8 * 2**20
"""A chunk takes no further record beyond these, whatever its limit: values may be large."""

_READ = """SELECT offset, saga_id, appended_at, replay_id, value FROM sagaz_log
    WHERE partition = ? AND offset >= ? ORDER BY offset LIMIT ?"""
_SAGA = """SELECT offset, saga_id, appended_at, replay_id, value FROM sagaz_log
    WHERE saga_id = ? AND partition = ? AND offset >= ? ORDER BY offset"""
_BOUNDS = """SELECT (SELECT min(offset) FROM sagaz_log WHERE partition = ?1),
    (SELECT max(offset) FROM sagaz_log WHERE partition = ?1)"""
_MARK = "SELECT low_water_mark, note FROM sagaz_marks WHERE group_name = ? AND partition = ?"

_A = TypeVar("_A")


class Reader:
    """Questions to the file, answered outside the event loop, one after the other."""

    def __init__(
        self,
        path: str,
        connection: sqlite3.Connection,
        look_out: sqlite3.Connection,
        *,
        deadline_s: float,
    ) -> None:
        self._path, self._deadline_s = path, deadline_s
        self._connection, self._look_out = connection, look_out
        # In WAL mode a reader meets a lock only where the file is being repaired or closed.
        connection.execute(f"PRAGMA busy_timeout = {int(deadline_s * 500)}")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sagaz-log-reader")
        self._seen = -1

    def others_wrote(self) -> bool:
        """Whether anybody (this process' own writer too) has committed since the last time.

        For the event loop: it takes some µs and waits for nothing. The number is the connection's
        own, so it has one to itself.
        """
        try:
            seen: int = self._look_out.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.OperationalError:  # busy: somebody repairs the file; the next look will tell
            return False
        changed, self._seen = seen != self._seen, seen
        return changed

    async def rows(self, partition: int, offset: int, limit: int) -> list[Row]:
        """Up to `limit` records of a partition from an offset on."""
        return await self.run(self._rows, partition, offset, limit)

    async def saga(self, saga_id: str, partition: int, offset: int) -> list[Row]:
        """All records of a saga from an offset on."""
        return await self.run(self._all, _SAGA, (saga_id, partition, offset))

    async def bounds(self, partition: int) -> Bounds:
        return await self.run(self._bounds, partition)

    async def ends(self, partitions: Sequence[int]) -> dict[int, int]:
        """Where each of these partitions ends now."""
        return await self.run(lambda: {p: self._bounds(p).end for p in partitions})

    async def mark(self, group: str, partition: int) -> tuple[int, str] | None:
        """A group's low-water mark and its note, if one is kept."""
        rows: list[tuple[int, str]] = await self.run(self._all, _MARK, (group, partition))
        return rows[0] if rows else None

    async def run(self, call: Callable[..., _A], *arguments: object) -> _A:
        """What `call` gives in the reading thread. Raises Unreachable, StorageFailed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._deadline_s):
                return await loop.run_in_executor(self._thread, call, *arguments)
        except TimeoutError:
            detail = f"no answer in {self._deadline_s:g} s"
            raise Unreachable("the log", self._path, detail) from None
        except sqlite3.Error as error:
            raise StorageFailed(self._path, explain(error)) from error

    async def close(self) -> None:
        self._look_out.close()
        with suppress(Unreachable):
            await self.run(self._connection.close)
        self._thread.shutdown(wait=False, cancel_futures=True)

    # --- in the thread ----------------------------------------------------------------------------

    def _all(self, sql: str, arguments: tuple[object, ...]) -> list[Any]:
        return self._connection.execute(sql, arguments).fetchall()

    def _rows(self, partition: int, offset: int, limit: int) -> list[Row]:
        rows: list[Row] = []
        size = 0
        cursor = self._connection.execute(_READ, (partition, offset, limit))
        for row in cursor:
            rows.append(row)
            size += len(row[4])
            if size > CHUNK_BYTES:
                break
        cursor.close()  # an open one would keep the WAL from being cleaned up
        return rows

    def _bounds(self, partition: int) -> Bounds:
        first, last = self._connection.execute(_BOUNDS, (partition,)).fetchone()
        return Bounds(0, 0) if first is None else Bounds(first, last + 1)
