"""ProjectionStore in a SQLite file, the log's or one of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core.state import SagaState
from sagaz_es.databases.sqlite import SQLiteDatabase
from sagaz_es.errors import CheckpointMoved
from sagaz_es.ports import (
    NOT_FOLDED,
    ArchivedEvent,
    BlobStore,
    Checkpoint,
    Clock,
    DefinitionCount,
    ParkedRecord,
    Projection,
    ReplayEntry,
    SnapshotReport,
    StoredSnapshot,
    Summary,
    merge_replays,
)
from sagaz_es.snapshots import Opener
from sagaz_es.storage import sqlite_sql as sql
from sagaz_es.storage.doubts import Doubts, SnapshotRow
from sagaz_es.storage.rows import (
    EventBytes,
    dump_head,
    dump_row,
    load_head,
    load_row,
    now_of,
    summary_of,
)
from sagaz_es.storage.seed import StoreSnapshotStorage

MAX = 2**63 - 1
HEADS_AT_ONCE = 4096
"""Ids in one statement: SQLite allows 32766 parameters."""


class _Rows(NamedTuple):
    """What a commit writes, by table."""

    waiting: list[tuple[object, ...]]
    sagas: list[tuple[object, ...]]
    archive: list[tuple[object, ...]]
    snapshots: list[tuple[object, ...]]
    parked: list[tuple[object, ...]]
    rejected: list[tuple[str, int]]


class SQLiteProjectionStore:
    """ProjectionStore in a file. Several processes may use it; one at a time writes.

    `reading`: nothing will be written, and the file may be one that this process may only read.
    """

    def __init__(
        self,
        path: str,
        *,
        codec: AvroCodec | None = None,
        clock: Clock | None = None,
        report: SnapshotReport | None = None,
        wait_s: float = 5.0,
        reading: bool = False,
    ) -> None:
        self.name = f"sqlite:///{path}"
        self.path = path
        self.reading = reading
        self.doubts = Doubts(report)
        self._clock = clock
        self._events = EventBytes(codec)
        self._database = SQLiteDatabase(
            path, "store", sql.TABLES, version=sql.VERSION, wait_s=wait_s, reading=reading
        )

    @property
    def read_only(self) -> bool:
        """Whether it is open, and this process may only read its file."""
        return self._database.read_only

    async def open(self) -> None:
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    # --- what the projector does

    async def checkpoint(self, partition: int) -> Checkpoint | None:
        return await self._database.read(lambda connection: _checkpoint(connection, partition))

    async def commit(self, projection: Projection, *, expected: int) -> None:
        # The rows are made in the thread, too: the projector leaves its heads alone meanwhile.
        await self._database.write_prepared(
            lambda: self._prepared(projection),
            lambda connection, rows: self._commit(connection, projection, rows, expected),
        )

    def _prepared(self, projection: Projection) -> _Rows:
        return _Rows(
            waiting=[_saga_row(start) for start in projection.waiting],
            sagas=[_saga_row(head) for head in projection.heads],
            archive=[self._archive_row(archived) for archived in projection.archive],
            snapshots=[_snapshot_row(snapshot) for snapshot in projection.snapshots],
            parked=[_parked_row(parked) for parked in projection.parked],
            rejected=list(projection.rejected.items()),
        )

    def _commit(
        self, connection: sqlite3.Connection, projection: Projection, rows: _Rows, expected: int
    ) -> None:
        checkpoint = projection.checkpoint
        before = _checkpoint(connection, checkpoint.partition)
        found = before.next_offset if before is not None else 0
        if found != expected:
            raise CheckpointMoved(checkpoint.partition, expected, found)
        many, put = connection.executemany, connection.execute
        for saga_id, request_id in projection.refused:
            self._drop_waiting(connection, saga_id, request_id)
        many(sql.PUT_WAITING, rows.waiting)
        many(sql.PUT_SAGA, rows.sagas)
        many(sql.ARCHIVE, rows.archive)
        many(sql.CAPTURE, rows.snapshots)
        kept = projection.keep_snapshots.items()
        many(sql.KEEP, ((saga_id, saga_id, number) for saga_id, number in kept))
        for entry in projection.replays:
            _merge(connection, entry, self.name)
        for saga_id in projection.unparked:
            where = (checkpoint.partition, saga_id)
            put("DELETE FROM sagaz_parked WHERE partition = ? AND saga_id = ?", where)
        many("INSERT OR IGNORE INTO sagaz_parked VALUES (?, ?, ?, ?)", rows.parked)
        many(sql.REJECT, rows.rejected)
        put(sql.PUT_CHECKPOINT, msgspec.structs.astuple(checkpoint))

    def _drop_waiting(self, connection: sqlite3.Connection, saga_id: str, request_id: str) -> None:
        where = "WHERE saga_id = ? AND sequence = 0"
        found = connection.execute(f"SELECT head FROM sagaz_sagas {where}", (saga_id,)).fetchone()
        if found is not None and load_head(found[0], self.name).cause == request_id:
            connection.execute(f"DELETE FROM sagaz_sagas {where}", (saga_id,))

    def _archive_row(self, archived: ArchivedEvent) -> tuple[object, ...]:
        event = archived.event
        return (
            event.saga_id,
            archived.sequence,
            event.occurred_at,
            archived.offset,
            event.replay_id,
            self._events.dump(archived),
        )

    async def heads(self, saga_ids: Iterable[str]) -> dict[str, SagaState]:
        ids = list(dict.fromkeys(saga_ids))

        def read(connection: sqlite3.Connection) -> Iterator[tuple[str, bytes]]:
            for first in range(0, len(ids), HEADS_AT_ONCE):
                some = ids[first : first + HEADS_AT_ONCE]
                # Few lengths, so that SQLite meets few statements.
                marks = 1 << (len(some) - 1).bit_length()
                some += some[:1] * (marks - len(some))
                wanted = ",".join("?" * marks)
                query = f"""SELECT saga_id, head FROM sagaz_sagas
                    WHERE saga_id IN ({wanted}) AND sequence > 0"""
                yield from connection.execute(query, some)

        rows = await self._database.read(lambda connection: list(read(connection)))
        return {saga_id: load_head(head, self.name) for saga_id, head in rows}

    # --- what is read of sagas

    async def archived(
        self, saga_id: str, *, after: int = 0, upto: int | None = None, limit: int = 1000
    ) -> tuple[ArchivedEvent, ...]:
        rows = await self._rows(sql.ARCHIVED, saga_id, after, MAX if upto is None else upto, limit)
        return tuple(
            self._events.load(sequence, offset, data, replay_id, self.name)
            for sequence, offset, data, replay_id in rows
        )

    async def summaries(
        self,
        *,
        status: str | None = None,
        saga_name: str | None = None,
        limit: int = 100,
        offset: int = 0,
        after: tuple[int, str] | None = None,
    ) -> tuple[Summary, ...]:
        chosen = {"status": status, "saga_name": saga_name}
        given = {column: value for column, value in chosen.items() if value is not None}
        wanted, values = [f"{column} = ?" for column in given], list[Any](given.values())
        if after is not None:
            wanted.append(sql.BEHIND)
            values += [after[0], *after]
        where = " AND ".join(wanted) or "1"
        query = f"{sql.SUMMARY} WHERE {where} ORDER BY started_at DESC, saga_id LIMIT ? OFFSET ?"
        rows = await self._rows(query, *values, limit, offset)
        return tuple(Summary(*(*row[:-1], bool(row[-1]))) for row in rows)

    async def count_by_status(self) -> dict[str, int]:
        return dict(await self._rows("SELECT status, count(*) FROM sagaz_sagas GROUP BY status"))

    async def count_by_definition(self) -> tuple[DefinitionCount, ...]:
        # Beside min(), SQLite gives the other columns of that row.
        query = """SELECT saga_name, definition, status, count(*), head, min(saga_id)
            FROM sagaz_sagas WHERE sequence > 0 GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"""
        return tuple(
            DefinitionCount(name, definition, status, count, load_head(head, self.name).graph)
            for name, definition, status, count, head, _ in await self._rows(query)
        )

    async def parked(self, limit: int = 100) -> tuple[ParkedRecord, ...]:
        query = "SELECT row FROM sagaz_parked ORDER BY partition, log_offset LIMIT ?"
        rows = await self._rows(query, limit)
        return tuple(load_row(row, ParkedRecord, self.name) for (row,) in rows)

    async def parked_sagas(self, partition: int) -> frozenset[str]:
        query = "SELECT DISTINCT saga_id FROM sagaz_parked WHERE partition = ?"
        return frozenset(saga_id for (saga_id,) in await self._rows(query, partition))

    async def parked_of(self, partition: int, saga_id: str) -> tuple[ParkedRecord, ...]:
        query = """SELECT row FROM sagaz_parked WHERE partition = ? AND saga_id = ?
            ORDER BY log_offset"""
        rows = await self._rows(query, partition, saga_id)
        return tuple(load_row(row, ParkedRecord, self.name) for (row,) in rows)

    async def rejected(self) -> dict[str, int]:
        return dict(await self._rows("SELECT cause, count FROM sagaz_rejected"))

    async def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return await self._database.read(lambda c: c.execute(query, values).fetchall())

    async def _changed(self, statement: str, *values: object) -> int:
        return await self._database.write(lambda c: c.execute(statement, values).rowcount)

    # --- snapshots

    async def nearest_snapshot(
        self, saga_id: str, *, sequence: int | None = None, at: int | None = None
    ) -> StoredSnapshot | None:
        upto = MAX if sequence is None else sequence
        until = MAX if at is None else at

        async def page(limit: int, offset: int) -> list[SnapshotRow]:
            now = now_of(self._clock)
            found = await self._rows(sql.NEAREST, saga_id, now, upto, until, limit, offset)
            return [(snapshot_id, row) for snapshot_id, row in found]

        return await self.doubts.first_of(saga_id, page, self.doubts.first_to_fold_from)

    async def snapshot(self, snapshot_id: str) -> StoredSnapshot | None:
        rows = await self._rows(sql.SNAPSHOT, snapshot_id, now_of(self._clock))
        for saga_id, *row in rows:
            return self.doubts.first_sound(self.doubts.loaded(saga_id, [(row[0], row[1])]))
        return None

    async def snapshots(
        self,
        saga_id: str,
        *,
        before: int | None = None,
        step: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> tuple[StoredSnapshot, ...]:
        rows = await self._listed(saga_id, before, step, limit, offset)
        return self.doubts.sound(self.doubts.loaded(saga_id, rows))

    async def latest_snapshot(
        self, saga_id: str, *, before: int | None = None, step: str | None = None
    ) -> StoredSnapshot | None:
        async def page(limit: int, offset: int) -> list[SnapshotRow]:
            return await self._listed(saga_id, before, step, limit, offset)

        return await self.doubts.first_of(saga_id, page, self.doubts.first_sound)

    async def _listed(
        self, saga_id: str, before: int | None, step: str | None, limit: int, offset: int
    ) -> list[SnapshotRow]:
        until = MAX if before is None else before
        values = (saga_id, now_of(self._clock), until, step is None, step, limit, offset)
        return [(snapshot_id, row) for snapshot_id, row in await self._rows(sql.LISTED, *values)]

    async def save_snapshot(self, snapshot: StoredSnapshot) -> None:
        await self._changed(sql.SAVE, *_snapshot_row(snapshot))

    async def delete_snapshot(self, snapshot_id: str) -> bool:
        statement = f"DELETE FROM sagaz_snapshots WHERE snapshot_id = ? AND {sql.LIVE}"
        return bool(await self._changed(statement, snapshot_id, now_of(self._clock)))

    async def delete_expired_snapshots(self) -> int:
        statement = """DELETE FROM sagaz_snapshots
            WHERE retention_until > 0 AND retention_until <= ?"""
        return await self._changed(statement, now_of(self._clock))

    # --- replays

    async def replays(self, saga_id: str, limit: int = 100) -> tuple[ReplayEntry, ...]:
        query = """SELECT row FROM sagaz_replays WHERE original_saga_id = ?
            ORDER BY created_at DESC, replay_id LIMIT ?"""
        rows = await self._rows(query, saga_id, limit)
        return tuple(load_row(row, ReplayEntry, self.name) for (row,) in rows)

    async def replay(self, replay_id: str) -> ReplayEntry | None:
        return await self._database.read(lambda c: _replay(c, replay_id, self.name))

    async def save_replay(self, entry: ReplayEntry) -> None:
        await self._database.write(lambda connection: _merge(connection, entry, self.name))

    # --- cleaning

    async def forget(self, saga_id: str) -> int:
        def forget(connection: sqlite3.Connection) -> int:
            columns = {
                "sagaz_sagas": "saga_id",
                "sagaz_archive": "saga_id",
                "sagaz_snapshots": "saga_id",
                "sagaz_parked": "saga_id",
                "sagaz_replays": "original_saga_id",
            }
            return sum(
                connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (saga_id,)).rowcount
                for table, column in columns.items()
            )

        return await self._database.write(forget)

    async def reset(self) -> None:
        def reset(connection: sqlite3.Connection) -> None:
            for table in ("checkpoints", "sagas", "archive", "parked", "rejected"):
                connection.execute(f"DELETE FROM sagaz_{table}")
            connection.execute(f"DELETE FROM sagaz_snapshots WHERE fold_version <> {NOT_FOLDED}")

        await self._database.write(reset)


def _checkpoint(connection: sqlite3.Connection, partition: int) -> Checkpoint | None:
    row = connection.execute(sql.CHECKPOINT, (partition,)).fetchone()
    return Checkpoint(*row) if row is not None else None


def _saga_row(head: SagaState) -> tuple[object, ...]:
    return (*msgspec.structs.astuple(summary_of(head)), dump_head(head))


def _snapshot_row(snapshot: StoredSnapshot) -> tuple[object, ...]:
    return (
        snapshot.snapshot_id,
        snapshot.saga_id,
        snapshot.sequence,
        snapshot.occurred_at,
        snapshot.created_at,
        snapshot.step,
        snapshot.fold_version,
        snapshot.retention_until,
        dump_row(snapshot),
    )


def _parked_row(record: ParkedRecord) -> tuple[object, ...]:
    return (record.partition, record.offset, record.saga_id, dump_row(record))


def _replay(connection: sqlite3.Connection, replay_id: str, where: str) -> ReplayEntry | None:
    query = "SELECT row FROM sagaz_replays WHERE replay_id = ?"
    row = connection.execute(query, (replay_id,)).fetchone()
    return load_row(row[0], ReplayEntry, where) if row is not None else None


def _merge(connection: sqlite3.Connection, entry: ReplayEntry, where: str) -> None:
    known = _replay(connection, entry.replay_id, where)
    merged = entry if known is None else merge_replays(known, entry)
    connection.execute(
        "INSERT OR REPLACE INTO sagaz_replays VALUES (?, ?, ?, ?)",
        (merged.replay_id, merged.original_saga_id, merged.created_at, dump_row(merged)),
    )


class SQLiteSnapshotStorage(StoreSnapshotStorage[SQLiteProjectionStore]):
    """SnapshotStorage in a SQLite file: what the engine captured there, and what is saved here."""

    def __init__(
        self,
        path: str = "sagaz-es.db",
        *,
        store: SQLiteProjectionStore | None = None,
        blobs: BlobStore | None = None,
        opener: Opener | None = None,
    ) -> None:
        super().__init__(store or SQLiteProjectionStore(path), blobs=blobs, opener=opener)

    def engine_store(self) -> SQLiteProjectionStore:
        """The same file over a connection of its own: an engine closes it when it ends."""
        return SQLiteProjectionStore(self.store.path)
