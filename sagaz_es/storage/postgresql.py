"""ProjectionStore in a PostgreSQL database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core.state import SagaState
from sagaz_es.databases.postgresql import PostgreSQLDatabase
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
from sagaz_es.storage import postgresql_sql as sql
from sagaz_es.storage.doubts import Doubts, SnapshotRow
from sagaz_es.storage.postgresql_texts import key_of, plain_of, text_of
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

if TYPE_CHECKING:
    from asyncpg import Connection, Record

MAX = 2**63 - 1


class PostgreSQLProjectionStore:
    """ProjectionStore on tables `sagaz_…`, in `schema` if one is given.

    One namespace has one store: of two in one database each needs a schema of its own.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = "",
        codec: AvroCodec | None = None,
        clock: Clock | None = None,
        report: SnapshotReport | None = None,
        pool_min_size: int = 0,
        pool_max_size: int = 10,
        deadline_s: float = 8.0,
    ) -> None:
        self.database = PostgreSQLDatabase(
            url,
            "store",
            sql.TABLES,
            version=sql.VERSION,
            schema=schema,
            pool_min_size=pool_min_size,
            pool_max_size=pool_max_size,
            deadline_s=deadline_s,
        )
        self.name = f"postgresql://{self.database.address}"
        self.url, self.schema = url, schema  # for a blob store beside it
        self.doubts = Doubts(report)
        self._clock = clock
        self._events = EventBytes(codec)

    async def open(self) -> None:
        await self.database.open()

    async def exists(self) -> bool:
        """Whether there is a store already; `open` makes one."""
        return await self.database.exists()

    async def close(self) -> None:
        await self.database.close()

    # --- what the projector does

    async def checkpoint(self, partition: int) -> Checkpoint | None:
        rows = await self.database.rows(sql.CHECKPOINT, partition)
        return _checkpoint(rows[0]) if rows else None

    async def commit(self, projection: Projection, *, expected: int) -> None:
        # Made before anything is sent, with a breath in between: it takes some ms.
        heads = _columns(map(_saga_row, projection.heads))
        waiting = _columns(map(_saga_row, projection.waiting))
        await asyncio.sleep(0)
        archive = _columns(map(self._archive_row, projection.archive))
        snapshots = _columns(map(_snapshot_row, projection.snapshots))
        parked = _columns(map(_parked_row, projection.parked))
        rejected = _columns((text_of(cause), n) for cause, n in projection.rejected.items())
        checkpoint = projection.checkpoint
        async with self.database.transaction() as connection:
            await _move(connection, checkpoint, expected)
            if projection.refused:
                await self._drop_waiting(connection, projection.refused)
            if waiting:
                await connection.execute(sql.PUT_WAITING, *waiting)
            if heads:
                await connection.execute(sql.PUT_SAGAS, *heads)
            if archive:
                await connection.execute(sql.ARCHIVE, *archive)
            if snapshots:
                await connection.execute(sql.CAPTURE_NEW, *snapshots)
            for saga_id, number in projection.keep_snapshots.items():
                await connection.execute(sql.KEEP, key_of(saga_id), number)
            await self._merge(connection, projection.replays)
            if projection.unparked:
                await connection.execute(
                    "DELETE FROM sagaz_parked WHERE partition = $1 AND saga_id = ANY($2::text[])",
                    checkpoint.partition,
                    [key_of(saga_id) for saga_id in projection.unparked],
                )
            if parked:
                await connection.execute(sql.PARK, *parked)
            if rejected:
                await connection.execute(sql.REJECT, checkpoint.partition, *rejected)

    async def _drop_waiting(
        self, connection: Connection[Record], refused: Sequence[tuple[str, str]]
    ) -> None:
        rows = await connection.fetch(sql.WAITING, [key_of(saga_id) for saga_id, _ in refused])
        requests = {request_id for _, request_id in refused}
        gone = [key for key, head in rows if load_head(head, self.name).cause in requests]
        await connection.execute("DELETE FROM sagaz_sagas WHERE saga_id = ANY($1::text[])", gone)

    def _archive_row(self, archived: ArchivedEvent) -> tuple[object, ...]:
        event = archived.event
        return (
            key_of(event.saga_id),
            archived.sequence,
            event.occurred_at,
            archived.offset,
            text_of(event.replay_id),
            self._events.dump(archived),
        )

    async def heads(self, saga_ids: Iterable[str]) -> dict[str, SagaState]:
        keys = list({key_of(saga_id) for saga_id in saga_ids})
        if not keys:
            return {}
        query = "SELECT head FROM sagaz_sagas WHERE saga_id = ANY($1::text[]) AND sequence > 0"
        heads = [load_head(head, self.name) for (head,) in await self.database.rows(query, keys)]
        return {head.saga_id: head for head in heads}

    # --- what is read of sagas

    async def archived(
        self, saga_id: str, *, after: int = 0, upto: int | None = None, limit: int = 1000
    ) -> tuple[ArchivedEvent, ...]:
        last = MAX if upto is None else upto
        rows = await self.database.rows(sql.ARCHIVED, key_of(saga_id), after, last, limit)
        return tuple(
            self._events.load(sequence, offset, data, plain_of(replay_id), self.name)
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
        name = None if saga_name is None else key_of(saga_name)
        chosen = {"status": status, "saga_name": name}
        given = {column: value for column, value in chosen.items() if value is not None}
        wanted = [f"{column} = ${n}" for n, column in enumerate(given, 3)]
        values: list[Any] = list(given.values())
        if after is not None:
            wanted.append(sql.BEHIND.format(start=len(values) + 3, saga_id=len(values) + 4))
            values += [after[0], key_of(after[1])]
        where = " AND ".join(wanted) or "true"
        query = f"{sql.SUMMARY} WHERE {where} ORDER BY started_at DESC, saga_id LIMIT $1 OFFSET $2"
        rows = await self.database.rows(query, limit, offset, *values)
        return tuple(map(self._summary, rows))

    def _summary(self, row: Record) -> Summary:
        *columns, head = row
        if head is not None:  # an id is kept as its hash alone
            return summary_of(load_head(head, self.name))
        plain: list[Any] = [plain_of(v) if isinstance(v, str) else v for v in columns]
        return Summary(*plain)

    async def count_by_status(self) -> dict[str, int]:
        rows = await self.database.rows("SELECT status, count(*) FROM sagaz_sagas GROUP BY status")
        return {status: count for status, count in rows}

    async def count_by_definition(self) -> tuple[DefinitionCount, ...]:
        rows = await self.database.rows(sql.COUNT_BY_DEFINITION)
        found = []
        for status, count, data in rows:
            head = load_head(data, self.name)
            found.append(
                DefinitionCount(head.saga_name, head.definition, status, count, head.graph)
            )
        return tuple(sorted(found, key=lambda one: (one.saga_name, one.definition, one.status)))

    async def parked(self, limit: int = 100) -> tuple[ParkedRecord, ...]:
        query = "SELECT row FROM sagaz_parked ORDER BY partition, log_offset LIMIT $1"
        rows = await self.database.rows(query, limit)
        return tuple(load_row(row, ParkedRecord, self.name) for (row,) in rows)

    async def parked_sagas(self, partition: int) -> frozenset[str]:
        query = "SELECT DISTINCT ON (saga_id) row FROM sagaz_parked WHERE partition = $1"
        rows = await self.database.rows(query, partition)
        return frozenset(load_row(row, ParkedRecord, self.name).saga_id for (row,) in rows)

    async def parked_of(self, partition: int, saga_id: str) -> tuple[ParkedRecord, ...]:
        query = """SELECT row FROM sagaz_parked WHERE partition = $1 AND saga_id = $2
            ORDER BY log_offset"""
        rows = await self.database.rows(query, partition, key_of(saga_id))
        return tuple(load_row(row, ParkedRecord, self.name) for (row,) in rows)

    async def rejected(self) -> dict[str, int]:
        query = "SELECT cause, sum(count)::bigint FROM sagaz_rejected GROUP BY cause"
        return {plain_of(cause): count for cause, count in await self.database.rows(query)}

    # --- snapshots

    async def nearest_snapshot(
        self, saga_id: str, *, sequence: int | None = None, at: int | None = None
    ) -> StoredSnapshot | None:
        upto = MAX if sequence is None else sequence
        until = MAX if at is None else at

        async def page(limit: int, offset: int) -> list[SnapshotRow]:
            values = (key_of(saga_id), now_of(self._clock), upto, until, limit, offset)
            return _snapshot_rows(await self.database.rows(sql.NEAREST, *values))

        return await self.doubts.first_of(saga_id, page, self.doubts.first_to_fold_from)

    async def snapshot(self, snapshot_id: str) -> StoredSnapshot | None:
        rows = await self.database.rows(sql.SNAPSHOT, key_of(snapshot_id), now_of(self._clock))
        saga_id = plain_of(rows[0]["saga_id"]) if rows else ""
        return self.doubts.first_sound(self.doubts.loaded(saga_id, _snapshot_rows(rows)))

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
        wanted = None if step is None else text_of(step)
        values = (key_of(saga_id), now_of(self._clock), until, wanted, limit, offset)
        return _snapshot_rows(await self.database.rows(sql.LISTED, *values))

    async def save_snapshot(self, snapshot: StoredSnapshot) -> None:
        row = _snapshot_row(snapshot)
        async with self.database.transaction() as connection:
            # Away with the old row first: the new one is the later one, also by its number.
            await connection.execute(sql.DELETE_SNAPSHOT, row[0])
            await connection.execute(sql.CAPTURE_NEW, *_columns([row]))

    async def delete_snapshot(self, snapshot_id: str) -> bool:
        statement = f"{sql.DELETE_SNAPSHOT} AND {sql.LIVE}"
        now = now_of(self._clock)
        return bool(await self.database.execute(statement, key_of(snapshot_id), now))

    async def delete_expired_snapshots(self) -> int:
        statement = """DELETE FROM sagaz_snapshots
            WHERE retention_until > 0 AND retention_until <= $1"""
        return await self.database.execute(statement, now_of(self._clock))

    # --- replays

    async def replays(self, saga_id: str, limit: int = 100) -> tuple[ReplayEntry, ...]:
        query = """SELECT row FROM sagaz_replays WHERE original_saga_id = $1
            ORDER BY created_at DESC, replay_id LIMIT $2"""
        rows = await self.database.rows(query, key_of(saga_id), limit)
        return tuple(load_row(row, ReplayEntry, self.name) for (row,) in rows)

    async def replay(self, replay_id: str) -> ReplayEntry | None:
        rows = await self.database.rows(sql.REPLAY, key_of(replay_id))
        return load_row(rows[0]["row"], ReplayEntry, self.name) if rows else None

    async def save_replay(self, entry: ReplayEntry) -> None:
        async with self.database.transaction() as connection:
            await self._merge(connection, (entry,))

    async def _merge(self, connection: Connection[Record], entries: Sequence[ReplayEntry]) -> None:
        # Projectors of several partitions speak of one replay: each waits its turn, in one order.
        for entry in sorted(entries, key=lambda entry: entry.replay_id):
            key = key_of(entry.replay_id)
            await connection.execute(sql.LOCK_REPLAY, key)
            found = await connection.fetchval(sql.REPLAY, key)
            if found is not None:
                entry = merge_replays(load_row(found, ReplayEntry, self.name), entry)
            original = key_of(entry.original_saga_id)
            await connection.execute(
                sql.PUT_REPLAY, key, original, entry.created_at, dump_row(entry)
            )

    # --- cleaning

    async def forget(self, saga_id: str) -> int:
        columns = {
            "sagaz_sagas": "saga_id",
            "sagaz_archive": "saga_id",
            "sagaz_snapshots": "saga_id",
            "sagaz_parked": "saga_id",
            "sagaz_replays": "original_saga_id",
        }
        counted = 0
        async with self.database.transaction() as connection:
            for table, column in columns.items():
                statement = f"DELETE FROM {table} WHERE {column} = $1"
                status: str = await connection.execute(statement, key_of(saga_id))
                counted += int(status.rpartition(" ")[2])
        return counted

    async def reset(self) -> None:
        async with self.database.transaction() as connection:
            # In the order of a commit, so that neither waits for the other in a circle.
            tables = ("checkpoints", "sagas", "archive", "parked", "rejected")
            await connection.execute(f"TRUNCATE {', '.join(f'sagaz_{name}' for name in tables)}")
            await connection.execute(
                f"DELETE FROM sagaz_snapshots WHERE fold_version <> {NOT_FOLDED}"
            )


def _checkpoint(row: Record) -> Checkpoint:
    identity, log = plain_of(row["last_identity"]), plain_of(row["log"])
    return Checkpoint(row["partition"], row["next_offset"], identity, log)


async def _move(connection: Connection[Record], checkpoint: Checkpoint, expected: int) -> None:
    """The compare-and-set: its row stays locked until the end of the transaction."""
    statement = sql.NEXT_CHECKPOINT if expected else sql.FIRST_CHECKPOINT
    partition, identity = checkpoint.partition, text_of(checkpoint.last_identity)
    log = text_of(checkpoint.log)
    status: str = await connection.execute(
        statement, partition, expected, checkpoint.next_offset, identity, log
    )
    if status.endswith(" 0"):
        row = await connection.fetchrow(sql.CHECKPOINT, partition)
        raise CheckpointMoved(partition, expected, row["next_offset"] if row is not None else 0)


# --- rows and columns -----------------------------------------------------------------------------


def _columns(rows: Iterable[Sequence[object]]) -> list[tuple[object, ...]]:
    """For unnest: one array a column; nothing if there is no row."""
    return list(zip(*rows, strict=True))


def _saga_row(head: SagaState) -> tuple[object, ...]:
    saga_id, saga_name, *rest = msgspec.structs.astuple(summary_of(head))
    texts = (text_of(value) if isinstance(value, str) else value for value in rest)
    return (key_of(saga_id), key_of(saga_name), *texts, dump_head(head))


def _snapshot_row(snapshot: StoredSnapshot) -> tuple[object, ...]:
    return (
        key_of(snapshot.snapshot_id),
        key_of(snapshot.saga_id),
        snapshot.sequence,
        snapshot.occurred_at,
        snapshot.created_at,
        text_of(snapshot.step),
        snapshot.fold_version,
        snapshot.retention_until,
        dump_row(snapshot),
    )


def _snapshot_rows(rows: Iterable[Record]) -> list[SnapshotRow]:
    return [(plain_of(row["snapshot_id"]), row["row"]) for row in rows]


def _parked_row(parked: ParkedRecord) -> tuple[object, ...]:
    return (parked.partition, parked.offset, key_of(parked.saga_id), dump_row(parked))


class PostgreSQLSnapshotStorage(StoreSnapshotStorage[PostgreSQLProjectionStore]):
    """SnapshotStorage in PostgreSQL: what the engine captured there, and what is saved here."""

    def __init__(
        self,
        connection_string: str,
        pool_min_size: int = 5,
        pool_max_size: int = 20,
        *,
        schema: str = "",
        blobs: BlobStore | None = None,
        opener: Opener | None = None,
    ) -> None:
        store = PostgreSQLProjectionStore(
            connection_string,
            schema=schema,
            pool_min_size=pool_min_size,
            pool_max_size=pool_max_size,
        )
        super().__init__(store, blobs=blobs, opener=opener)

    def engine_store(self) -> PostgreSQLProjectionStore:
        """The same tables over connections of its own: an engine closes them when it ends."""
        return PostgreSQLProjectionStore(self.store.url, schema=self.store.schema)
