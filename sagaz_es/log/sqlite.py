"""EventLog on one SQLite file: the embedded default. Several processes may share the file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core.events import Entry, Event
from sagaz_es.databases.sqlite_read_only import ReadOnlyFile, cannot_write, may_only_read
from sagaz_es.errors import ConfigurationError, SagaError, UndecodableRecord
from sagaz_es.log.checks import (
    MAX_VALUE_BYTES,
    check_partition,
    check_position,
    check_size,
    key_of,
)
from sagaz_es.log.partitioning import partition_of
from sagaz_es.log.recent import Append, Recent
from sagaz_es.log.sqlite_file import LogFileUnusable, connect, look_at, prepare
from sagaz_es.log.sqlite_reader import Connections, Reader, Row, Source
from sagaz_es.log.sqlite_writer import GroupCommit
from sagaz_es.log.waiting import Waiters
from sagaz_es.ports import Bounds, Chunk, Membership, Rebalanced, Record, Undecodable

if TYPE_CHECKING:
    from sagaz_es.log.sqlite_membership import FileMembership

_LOOK_OUT_S = 0.02  # how long a record of another process may go unnoticed
_SLICE = 128  # records decoded in one turn of the event loop: about a millisecond
_NOT_OPEN = "the log is not open: it was not opened yet, or closed already"


class SQLiteEventLog:
    """EventLog on the table `sagaz_log` of a SQLite file in WAL mode, synced at each commit.

    What waits to be appended goes into one transaction (group commit). A file that is a log keeps
    its partition count whatever `partitions` says. For local disks: a network file system has
    neither the locks nor the shared memory that SQLite needs. `reading`: nothing will be appended,
    and the file may be one that this process may only read.
    """

    indexed = True  # read_saga asks an index

    def __init__(
        self,
        path: str | os.PathLike[str],
        codec: AvroCodec,
        partitions: int = 8,
        *,
        max_value_bytes: int = MAX_VALUE_BYTES,
        lock_wait_s: float = 5.0,
        deadline_s: float = 20.0,
        reading: bool = False,
    ) -> None:
        if os.fspath(path) in ("", ":memory:"):
            raise ConfigurationError(f"a log needs a file, not {path!r}; see memory:// for tests")
        self.name = f"sqlite:///{os.fspath(path)}"
        # Under one name whatever the way to it: who shares the file must share the owners' locks.
        self.path = self._path = os.path.realpath(path)
        self._codec, self._partitions = codec, partitions
        self._reading = reading
        self._max_value_bytes = max_value_bytes
        self._lock_wait_s, self._deadline_s = lock_wait_s, deadline_s
        self._open_reader: Reader | None = None
        self._open_writer: GroupCommit | None = None
        self._ends: dict[int, int] = {}  # as far as this process has heard
        self._waiters: list[Waiters] = []
        self._recent = Recent(0)
        self._look_out: asyncio.Task[None] | None = None
        self._members: list[FileMembership] = []

    async def open(self) -> None:
        """Raises LogFileUnusable (an Unreachable), UnsuitableTopic."""
        if self._open_reader is not None:
            return
        self._partitions, source, writing = await asyncio.to_thread(self._connect)
        self._waiters = [Waiters() for _ in range(self._partitions)]
        self._recent = Recent(self._partitions)
        self._open_reader = Reader(self._path, source, deadline_s=self._deadline_s)
        self._open_writer = None
        if writing is not None:
            self._open_writer = GroupCommit(
                self._path,
                writing,
                self._committed,
                lock_wait_s=self._lock_wait_s,
                deadline_s=self._deadline_s,
            )

    def _connect(self) -> tuple[int, Source, sqlite3.Connection | None]:
        if self._reading and may_only_read(self._path):
            return self._looked_at()
        try:
            partitions = prepare(self._path, self._codec, self._partitions, self._lock_wait_s)
        except LogFileUnusable as error:
            if self._reading and cannot_write(error.__cause__) and os.path.isfile(self._path):
                return self._looked_at()
            raise
        # For the writing thread, the reading one, and a look-out of the event loop.
        writing, reading, look_out = (connect(self._path, self._lock_wait_s) for _ in range(3))
        return partitions, Connections(reading, look_out, self._deadline_s / 2), writing

    def _looked_at(self) -> tuple[int, Source, None]:
        file = ReadOnlyFile(self._path, self._lock_wait_s)
        return look_at(self._path, self._codec, file), file, None

    async def close(self) -> None:
        reader, self._open_reader = self._open_reader, None
        if reader is None:
            return
        for member in self._members:
            await member.abandon()
        self._members.clear()
        self._wake_all()
        if self._look_out is not None:
            self._look_out.cancel()
            await asyncio.wait([self._look_out])
        if self._open_writer is not None:
            await self._open_writer.close()
        await reader.close()

    @property
    def partitions(self) -> int:
        return self._partitions

    @property
    def read_only(self) -> bool:
        """Whether it is open, and this process may only read its file."""
        return self._open_reader is not None and self._open_writer is None

    def partition_of(self, saga_id: str) -> int:
        return partition_of(saga_id, self._partitions)

    async def append(self, partition: int, entries: Sequence[Entry]) -> int:
        if not entries:
            raise ValueError("an append holds at least one entry")
        check_partition(partition, self._partitions)
        encode, limit = self._codec.encode, self._max_value_bytes
        rows, size = [], 0
        for entry in entries:
            key, value = key_of(entry), encode(entry)
            if len(value) > limit:
                check_size(partition, key, value, limit)
            size += len(value)
            rows.append((key, entry.replay_id if type(entry) is Event else "", value))

        def on_disk(offset: int, appended_at: int) -> None:
            self._recent.add(partition, Append(offset, appended_at, entries, rows, size))

        return await self._writer.append(partition, rows, size, on_disk)

    async def append_raw(self, partition: int, key: str, value: bytes) -> int:
        check_partition(partition, self._partitions)
        check_size(partition, key, value, self._max_value_bytes)
        return await self._writer.append(partition, [(key, "", value)], len(value))

    async def read(
        self, partition: int, offset: int, *, limit: int = 1000, wait_s: float = 0.0
    ) -> Chunk:
        check_partition(partition, self._partitions)
        until = asyncio.get_running_loop().time() + wait_s
        while True:
            reader = self._reader
            if own := self._recent.read(partition, offset, limit):
                return Chunk(own, offset + len(own))
            rows = await reader.rows(partition, offset, limit)
            if rows and rows[0][0] == offset:
                records = await self._records(partition, rows)
                return Chunk(records, offset + len(records))
            bounds = await self._reader.bounds(partition)
            check_position(partition, offset, bounds.start, bounds.end)
            left_s = until - asyncio.get_running_loop().time()
            if left_s <= 0 or limit <= 0:
                return Chunk((), offset)
            if self._ends.get(partition, 0) <= offset:
                self._watch()
                await self._waiters[partition].wait(left_s)
            else:  # appended since the question was answered
                await asyncio.sleep(0.001)

    async def read_saga(self, saga_id: str, from_offset: int = 0) -> tuple[Record, ...]:
        partition = self.partition_of(saga_id)
        return await self._records(
            partition, await self._reader.saga(saga_id, partition, from_offset)
        )

    async def bounds(self, partition: int) -> Bounds:
        check_partition(partition, self._partitions)
        return await self._reader.bounds(partition)

    async def low_water_mark(self, partition: int, *, group: str = "") -> int:
        check_partition(partition, self._partitions)
        mark = await self._reader.mark(group, partition)
        return (await self._reader.bounds(partition)).start if mark is None else mark[0]

    async def mark_note(self, partition: int, *, group: str = "") -> str:
        check_partition(partition, self._partitions)
        mark = await self._reader.mark(group, partition)
        return "" if mark is None else mark[1]

    async def join(
        self, on_change: Rebalanced, *, instance_id: str | None = None, group: str = ""
    ) -> Membership:
        # Not at the top: file locks are POSIX's, and reading a log needs none.
        from sagaz_es.log.sqlite_membership import FileMembership
        from sagaz_es.log.sqlite_owners import Owners, directory_of

        owners = Owners(directory_of(self._path, group), self._partitions)
        member = FileMembership(owners, on_change, partial(self._writer.raise_mark, group))
        try:
            await member.start()
        except OSError as error:
            raise LogFileUnusable(self._path, f"no locks beside it: {error}") from error
        self._members.append(member)
        return member

    async def members(self, *, group: str = "") -> int:
        from sagaz_es.log.sqlite_owners import alive_in, directory_of

        try:
            return alive_in(directory_of(self._path, group))
        except OSError as error:
            raise LogFileUnusable(self._path, f"no locks beside it: {error}") from error

    # --- inside -----------------------------------------------------------------------------------

    @property
    def _reader(self) -> Reader:
        if self._open_reader is None:
            raise RuntimeError(_NOT_OPEN)
        return self._open_reader

    @property
    def _writer(self) -> GroupCommit:
        if self._open_writer is None:
            if self._open_reader is not None:
                raise LogFileUnusable(self._path, "it was opened to be read only")
            raise RuntimeError(_NOT_OPEN)
        return self._open_writer

    def _committed(self, partition: int, end: int) -> None:
        if end > self._ends.get(partition, 0):
            self._ends[partition] = end
            self._waiters[partition].wake()

    def _watch(self) -> None:
        if self._look_out is None or self._look_out.done():
            self._look_out = asyncio.get_running_loop().create_task(self._watch_others())

    async def _watch_others(self) -> None:
        """Wake readers for what other processes append, as long as somebody waits."""
        while waited := [number for number, waiters in enumerate(self._waiters) if waiters]:
            try:
                if self._reader.others_wrote():
                    for partition, end in (await self._reader.ends(waited)).items():
                        self._committed(partition, end)
            except SagaError:  # the readers ask the same file, and say what is wrong
                self._wake_all()
            await asyncio.sleep(_LOOK_OUT_S)

    def _wake_all(self) -> None:
        for waiters in self._waiters:
            waiters.wake()

    async def _records(self, partition: int, rows: list[Row]) -> tuple[Record, ...]:
        records: list[Record] = []
        for start in range(0, len(rows), _SLICE):
            if start:
                await asyncio.sleep(0)  # the sagas of this process go on meanwhile
            for offset, key, appended_at, replay_id, value in rows[start : start + _SLICE]:
                entry = self._decoded(value, replay_id)
                records.append(Record(partition, offset, appended_at, key, entry, value))
        return tuple(records)

    def _decoded(self, value: bytes, replay_id: str) -> Entry | Undecodable:
        try:
            return self._codec.decode(value, replay_id=replay_id)
        except UndecodableRecord as error:
            return Undecodable(str(error))
