"""BlobStore in a PostgreSQL database."""

from __future__ import annotations

from sagaz_es.blobs.hashing import checked, key_of
from sagaz_es.databases.postgresql import PostgreSQLDatabase

TABLES = ('CREATE TABLE sagaz_blobs (key text COLLATE "C" PRIMARY KEY, data bytea NOT NULL)',)
PUT = "INSERT INTO sagaz_blobs VALUES ($1, $2) ON CONFLICT DO NOTHING"
GET = "SELECT data FROM sagaz_blobs WHERE key = $1"


class PostgreSQLBlobStore:
    """BlobStore on a table `sagaz_blobs`. It connects at the first call."""

    def __init__(
        self, url: str, *, schema: str = "", pool_max_size: int = 4, deadline_s: float = 8.0
    ) -> None:
        self._database = PostgreSQLDatabase(
            url,
            "blobs",
            TABLES,
            schema=schema,
            pool_max_size=pool_max_size,
            deadline_s=deadline_s,
        )
        self.name = f"postgresql://{self._database.address}"

    async def put(self, data: bytes) -> str:
        key = key_of(data)
        await self._database.execute(PUT, key, data)
        return key

    async def get(self, key: str) -> bytes | None:
        rows = await self._database.rows(GET, key)
        return checked(key, rows[0]["data"], self.name) if rows else None

    async def close(self) -> None:
        """Twice, or before first use, is harmless; the next call connects again."""
        await self._database.close()
