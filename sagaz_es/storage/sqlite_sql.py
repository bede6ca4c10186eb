"""Tables and statements of the SQLite store."""

from __future__ import annotations

from sagaz_es.ports import NOT_FOLDED

VERSION = 2
"""Of the tables."""

TABLES = (
    """CREATE TABLE sagaz_checkpoints (
        partition INTEGER PRIMARY KEY, next_offset INTEGER NOT NULL, last_identity TEXT NOT NULL,
        log TEXT NOT NULL
    )""",
    # The columns are a Summary; `head` is the state from which the fold goes on.
    """CREATE TABLE sagaz_sagas (
        saga_id TEXT PRIMARY KEY, saga_name TEXT NOT NULL, status TEXT NOT NULL,
        sequence INTEGER NOT NULL, started_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
        ended_at INTEGER NOT NULL, error TEXT NOT NULL, definition TEXT NOT NULL,
        parent_saga_id TEXT NOT NULL, root_saga_id TEXT NOT NULL, replay_id TEXT NOT NULL,
        recorded INTEGER NOT NULL, head BLOB NOT NULL
    )""",
    "CREATE INDEX sagaz_sagas_started ON sagaz_sagas (started_at)",
    "CREATE INDEX sagaz_sagas_status ON sagaz_sagas (status, started_at)",
    "CREATE INDEX sagaz_sagas_name ON sagaz_sagas (saga_name, started_at)",
    """CREATE TABLE sagaz_archive (
        saga_id TEXT NOT NULL, sequence INTEGER NOT NULL, occurred_at INTEGER NOT NULL,
        log_offset INTEGER NOT NULL, replay_id TEXT NOT NULL, event BLOB NOT NULL,
        PRIMARY KEY (saga_id, sequence)
    ) WITHOUT ROWID""",
    # `number`: the order of saving. `row` is the whole snapshot, the columns are what is asked for.
    """CREATE TABLE sagaz_snapshots (
        number INTEGER PRIMARY KEY AUTOINCREMENT, snapshot_id TEXT NOT NULL UNIQUE,
        saga_id TEXT NOT NULL, sequence INTEGER NOT NULL, occurred_at INTEGER NOT NULL,
        created_at INTEGER NOT NULL, step TEXT NOT NULL, fold_version INTEGER NOT NULL,
        retention_until INTEGER NOT NULL, row BLOB NOT NULL
    )""",
    """CREATE INDEX sagaz_snapshots_saga
        ON sagaz_snapshots (saga_id, sequence, created_at, number)""",
    """CREATE INDEX sagaz_snapshots_expiry ON sagaz_snapshots (retention_until)
        WHERE retention_until > 0""",
    """CREATE TABLE sagaz_replays (
        replay_id TEXT PRIMARY KEY, original_saga_id TEXT NOT NULL, created_at INTEGER NOT NULL,
        row BLOB NOT NULL
    )""",
    "CREATE INDEX sagaz_replays_original ON sagaz_replays (original_saga_id, created_at)",
    """CREATE TABLE sagaz_parked (
        partition INTEGER NOT NULL, log_offset INTEGER NOT NULL, saga_id TEXT NOT NULL,
        row BLOB NOT NULL, PRIMARY KEY (partition, log_offset)
    )""",
    "CREATE INDEX sagaz_parked_saga ON sagaz_parked (partition, saga_id)",
    "CREATE TABLE sagaz_rejected (cause TEXT PRIMARY KEY, count INTEGER NOT NULL)",
)

CHECKPOINT = """SELECT partition, next_offset, last_identity, log FROM sagaz_checkpoints
    WHERE partition = ?"""
PUT_CHECKPOINT = "INSERT OR REPLACE INTO sagaz_checkpoints VALUES (?, ?, ?, ?)"
PUT_WAITING = """INSERT OR IGNORE INTO sagaz_sagas
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
PUT_SAGA = """INSERT INTO sagaz_sagas VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (saga_id) DO UPDATE SET saga_name = excluded.saga_name, status = excluded.status,
    sequence = excluded.sequence, started_at = excluded.started_at,
    updated_at = excluded.updated_at, ended_at = excluded.ended_at, error = excluded.error,
    definition = excluded.definition, parent_saga_id = excluded.parent_saga_id,
    root_saga_id = excluded.root_saga_id, replay_id = excluded.replay_id,
    recorded = excluded.recorded, head = excluded.head"""
SUMMARY = """SELECT saga_id, saga_name, status, sequence, started_at, updated_at, ended_at, error,
    definition, parent_saga_id, root_saga_id, replay_id, recorded FROM sagaz_sagas"""
BEHIND = "started_at <= ? AND (started_at < ? OR saga_id > ?)"
ARCHIVE = "INSERT OR IGNORE INTO sagaz_archive VALUES (?, ?, ?, ?, ?, ?)"
ARCHIVED = """SELECT sequence, log_offset, event, replay_id FROM sagaz_archive
    WHERE saga_id = ? AND sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?"""
PUT_SNAPSHOT = """INSERT OR {conflict} INTO sagaz_snapshots (snapshot_id, saga_id, sequence,
    occurred_at, created_at, step, fold_version, retention_until, row)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
CAPTURE, SAVE = PUT_SNAPSHOT.format(conflict="IGNORE"), PUT_SNAPSHOT.format(conflict="REPLACE")
LIVE = "(retention_until = 0 OR retention_until > ?)"
NEWEST = "ORDER BY sequence DESC, created_at DESC, number DESC"
SNAPSHOT = f"SELECT saga_id, snapshot_id, row FROM sagaz_snapshots WHERE snapshot_id = ? AND {LIVE}"
NEAREST = f"""SELECT snapshot_id, row FROM sagaz_snapshots WHERE saga_id = ? AND {LIVE}
    AND fold_version <> {NOT_FOLDED} AND sequence <= ? AND occurred_at <= ?
    {NEWEST} LIMIT ? OFFSET ?"""
LISTED = f"""SELECT snapshot_id, row FROM sagaz_snapshots WHERE saga_id = ? AND {LIVE}
    AND created_at <= ? AND (? OR step = ?) {NEWEST} LIMIT ? OFFSET ?"""
KEEP = f"""DELETE FROM sagaz_snapshots WHERE saga_id = ? AND fold_version <> {NOT_FOLDED}
    AND number NOT IN (SELECT number FROM sagaz_snapshots
    WHERE saga_id = ? AND fold_version <> {NOT_FOLDED} {NEWEST} LIMIT ?)"""
REJECT = """INSERT INTO sagaz_rejected VALUES (?, ?)
    ON CONFLICT (cause) DO UPDATE SET count = count + excluded.count"""
