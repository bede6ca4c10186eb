"""Tables and statements of the PostgreSQL store."""

from __future__ import annotations

from sagaz_es.ports import NOT_FOLDED

VERSION = 2
"""Of the tables."""

# Texts are kept as `text_of` and `key_of` write them. Compared byte by byte, as ids are.
TABLES = (
    """CREATE TABLE sagaz_checkpoints (
        partition int PRIMARY KEY, next_offset bigint NOT NULL, last_identity text NOT NULL,
        log text NOT NULL
    )""",
    # The columns are a Summary; `head` is the state from which the fold goes on.
    """CREATE TABLE sagaz_sagas (
        saga_id text COLLATE "C" PRIMARY KEY, saga_name text COLLATE "C" NOT NULL,
        status text NOT NULL, sequence bigint NOT NULL, started_at bigint NOT NULL,
        updated_at bigint NOT NULL, ended_at bigint NOT NULL, error text NOT NULL,
        definition text NOT NULL, parent_saga_id text NOT NULL, root_saga_id text NOT NULL,
        replay_id text NOT NULL, recorded boolean NOT NULL, head bytea NOT NULL
    )""",
    "CREATE INDEX sagaz_sagas_started ON sagaz_sagas (started_at)",
    "CREATE INDEX sagaz_sagas_status ON sagaz_sagas (status, started_at)",
    "CREATE INDEX sagaz_sagas_name ON sagaz_sagas (saga_name, started_at)",
    """CREATE TABLE sagaz_archive (
        saga_id text COLLATE "C" NOT NULL, sequence bigint NOT NULL, occurred_at bigint NOT NULL,
        log_offset bigint NOT NULL, replay_id text NOT NULL, event bytea NOT NULL,
        PRIMARY KEY (saga_id, sequence)
    )""",
    # `number`: the order of saving. `row` is the whole snapshot, the columns are what is asked for.
    """CREATE TABLE sagaz_snapshots (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        snapshot_id text COLLATE "C" NOT NULL UNIQUE, saga_id text COLLATE "C" NOT NULL,
        sequence bigint NOT NULL, occurred_at bigint NOT NULL, created_at bigint NOT NULL,
        step text NOT NULL, fold_version int NOT NULL, retention_until bigint NOT NULL,
        row bytea NOT NULL
    )""",
    """CREATE INDEX sagaz_snapshots_saga
        ON sagaz_snapshots (saga_id, sequence, created_at, number)""",
    """CREATE INDEX sagaz_snapshots_expiry ON sagaz_snapshots (retention_until)
        WHERE retention_until > 0""",
    """CREATE TABLE sagaz_replays (
        replay_id text COLLATE "C" PRIMARY KEY, original_saga_id text COLLATE "C" NOT NULL,
        created_at bigint NOT NULL, row bytea NOT NULL
    )""",
    "CREATE INDEX sagaz_replays_original ON sagaz_replays (original_saga_id, created_at)",
    """CREATE TABLE sagaz_parked (
        partition int NOT NULL, log_offset bigint NOT NULL, saga_id text COLLATE "C" NOT NULL,
        row bytea NOT NULL, PRIMARY KEY (partition, log_offset)
    )""",
    "CREATE INDEX sagaz_parked_saga ON sagaz_parked (partition, saga_id)",
    # By partition: projectors of several would wait for each other at one row.
    """CREATE TABLE sagaz_rejected (
        partition int NOT NULL, cause text NOT NULL, count bigint NOT NULL,
        PRIMARY KEY (partition, cause)
    )""",
)

CHECKPOINT = (
    "SELECT partition, next_offset, last_identity, log FROM sagaz_checkpoints WHERE partition=$1"
)
FIRST_CHECKPOINT = """INSERT INTO sagaz_checkpoints VALUES ($1, $3, $4, $5)
    ON CONFLICT (partition) DO UPDATE
    SET next_offset = excluded.next_offset, last_identity = excluded.last_identity,
        log = excluded.log
    WHERE sagaz_checkpoints.next_offset = $2"""
NEXT_CHECKPOINT = """UPDATE sagaz_checkpoints SET next_offset = $3, last_identity = $4, log = $5
    WHERE partition = $1 AND next_offset = $2"""
_SAGAS = """INSERT INTO sagaz_sagas SELECT * FROM unnest($1::text[], $2::text[], $3::text[],
    $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[], $9::text[], $10::text[],
    $11::text[], $12::text[], $13::boolean[], $14::bytea[])"""
PUT_SAGAS = f"""{_SAGAS}
    ON CONFLICT (saga_id) DO UPDATE SET saga_name = excluded.saga_name, status = excluded.status,
    sequence = excluded.sequence, started_at = excluded.started_at,
    updated_at = excluded.updated_at, ended_at = excluded.ended_at, error = excluded.error,
    definition = excluded.definition, parent_saga_id = excluded.parent_saga_id,
    root_saga_id = excluded.root_saga_id, replay_id = excluded.replay_id,
    recorded = excluded.recorded, head = excluded.head"""
PUT_WAITING = f"{_SAGAS} ON CONFLICT DO NOTHING"
WAITING = """SELECT saga_id, head FROM sagaz_sagas
    WHERE saga_id = ANY($1::text[]) AND sequence = 0 FOR UPDATE"""
HASHED = "starts_with({column}, '\\h')"
SUMMARY = f"""SELECT saga_id, saga_name, status, sequence, started_at, updated_at, ended_at, error,
    definition, parent_saga_id, root_saga_id, replay_id, recorded,
    CASE WHEN {HASHED.format(column="saga_id")} OR {HASHED.format(column="saga_name")}
    THEN head END AS head FROM sagaz_sagas"""
BEHIND = "started_at <= ${start} AND (started_at < ${start} OR saga_id > ${saga_id})"
COUNT_BY_DEFINITION = """SELECT counted.status, counted.count, one.head FROM (
    SELECT status, count(*) AS count, min(saga_id) AS saga_id FROM sagaz_sagas
    WHERE sequence > 0 GROUP BY saga_name, definition, status) AS counted
    JOIN sagaz_sagas AS one USING (saga_id)"""
ARCHIVE = """INSERT INTO sagaz_archive SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[],
    $4::bigint[], $5::text[], $6::bytea[]) ON CONFLICT DO NOTHING"""
ARCHIVED = """SELECT sequence, log_offset, event, replay_id FROM sagaz_archive
    WHERE saga_id = $1 AND sequence > $2 AND sequence <= $3 ORDER BY sequence LIMIT $4"""
CAPTURE = """INSERT INTO sagaz_snapshots (snapshot_id, saga_id, sequence, occurred_at, created_at,
    step, fold_version, retention_until, row)
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[],
    $6::text[], $7::int[], $8::bigint[], $9::bytea[])"""
CAPTURE_NEW = f"{CAPTURE} ON CONFLICT DO NOTHING"
DELETE_SNAPSHOT = "DELETE FROM sagaz_snapshots WHERE snapshot_id = $1"
LIVE = "(retention_until = 0 OR retention_until > $2)"
NEWEST = "ORDER BY sequence DESC, created_at DESC, number DESC"
SNAPSHOT = (
    f"SELECT saga_id, snapshot_id, row FROM sagaz_snapshots WHERE snapshot_id = $1 AND {LIVE}"
)
NEAREST = f"""SELECT snapshot_id, row FROM sagaz_snapshots WHERE saga_id = $1 AND {LIVE}
    AND fold_version <> {NOT_FOLDED} AND sequence <= $3 AND occurred_at <= $4
    {NEWEST} LIMIT $5 OFFSET $6"""
LISTED = f"""SELECT snapshot_id, row FROM sagaz_snapshots WHERE saga_id = $1 AND {LIVE}
    AND created_at <= $3 AND ($4::text IS NULL OR step = $4) {NEWEST} LIMIT $5 OFFSET $6"""
KEEP = f"""DELETE FROM sagaz_snapshots WHERE saga_id = $1 AND fold_version <> {NOT_FOLDED}
    AND number NOT IN (SELECT number FROM sagaz_snapshots
    WHERE saga_id = $1 AND fold_version <> {NOT_FOLDED} {NEWEST} LIMIT $2)"""
LOCK_REPLAY = "SELECT pg_advisory_xact_lock(hashtextextended($1, 7261))"
REPLAY = "SELECT row FROM sagaz_replays WHERE replay_id = $1"
PUT_REPLAY = """INSERT INTO sagaz_replays VALUES ($1, $2, $3, $4) ON CONFLICT (replay_id)
    DO UPDATE SET original_saga_id = excluded.original_saga_id, created_at = excluded.created_at,
    row = excluded.row"""
PARK = """INSERT INTO sagaz_parked SELECT * FROM unnest($1::int[], $2::bigint[], $3::text[],
    $4::bytea[]) ON CONFLICT DO NOTHING"""
REJECT = """INSERT INTO sagaz_rejected SELECT $1, * FROM unnest($2::text[], $3::bigint[])
    ON CONFLICT (partition, cause) DO UPDATE SET count = sagaz_rejected.count + excluded.count"""
