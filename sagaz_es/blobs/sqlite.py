"""BlobStore in a SQLite file, the log's or one of its own."""

from __future__ import annotations

import sqlite3

from sagaz_es.blobs.hashing import checked, key_of
from sagaz_es.databases.sqlite import SQLiteDatabase

TABLES = ("CREATE TABLE sagaz_blobs (key TEXT PRIMARY KEY, data BLOB NOT NULL)",)
PUT = "INSERT OR IGNORE INTO sagaz_blobs VALUES (?, ?)"
GET = "SELECT data FROM sagaz_blobs WHERE key = ?"


class SQLiteBlobStore:
    """BlobStore on a table `sagaz_blobs`. It opens the file at the first call.

    `reading`: nothing will be put, and the file may be one that this process may only read.
    """

    def __init__(self, path: str, *, wait_s: float = 5.0, reading: bool = False) -> None:
        self.name = f"sqlite:///{path}"
        # An event that stands in the log must find its values after a crash of the machine, too.
        self._database = SQLiteDatabase(
            path, "blobs", TABLES, wait_s=wait_s, durable=True, reading=reading
        )

    async def put(self, data: bytes) -> str:
        def put(connection: sqlite3.Connection) -> str:
            key = key_of(data)
            connection.execute(PUT, (key, data))
            return key

        return await self._database.write(put)

    async def get(self, key: str) -> bytes | None:
        def get(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute(GET, (key,)).fetchone()
            return None if row is None else checked(key, row[0], self.name)

        return await self._database.read(get)

    async def close(self) -> None:
        """Twice, or before first use, is harmless; the next call opens again."""
        await self._database.close()
