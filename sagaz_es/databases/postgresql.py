"""A PostgreSQL database: a pool, deadlines that hold, errors that name the server."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sagaz_es.databases.versions import other_version
from sagaz_es.errors import (
    AccessRefused,
    ConfigurationError,
    MissingDependencyError,
    SagaError,
    StorageFailed,
    Unreachable,
)

if TYPE_CHECKING:
    from asyncpg import Connection, Pool, Record

# How the codes of errors begin that say: not now, or not you; and what to do about it.
_UNREACHABLE = {
    "08": "is it running?",
    "53300": "close some, or raise max_connections, or the limit of the user or the database",
    "57P03": "it is just starting or stopping",
    "57": "is it running?",
}
_REFUSED = {
    "28": "check user and password in its URL",
    "3D": "create that database, or name another one in its URL",
}
_FAILED = {
    "42501": "the user of the store needs SELECT, INSERT, UPDATE and DELETE on its tables (to "
    "look, SELECT); who opens it first makes them: CREATE on the schema, or, where that is not "
    "there, on the database",
    "42P01": "a table is gone: restore it from a backup, or name a new schema (?schema=name), copy "
    "sagaz_blobs there, and make the store anew with `sagaz-es projector rebuild`",
    "25006": "it is a copy that is only read: name the server that takes writes",
    "53100": "free some space there",
}


class PostgreSQLDatabase:
    """Statements on a pool. It connects at the first call, and again after a lost connection.

    Every call ends by `deadline_s`, the wait for a free connection included. `tables` are made
    where they are missing, in `schema` if one is given; `component` names them in the table of
    versions.

    Law (whole): what a `transaction` does stands whole or not at all; after Unreachable it may.
    Raises Unreachable if the server does not answer in time, or the connection is lost;
    StorageFailed if it answers with an error. Neither shows a password.
    """

    def __init__(
        self,
        url: str,
        component: str,
        tables: tuple[str, ...],
        *,
        version: int = 1,
        schema: str = "",
        pool_min_size: int = 0,
        pool_max_size: int = 10,
        deadline_s: float = 8.0,
    ) -> None:
        self._asyncpg = _driver()
        # asyncpg's own confusion is one of them: it meets a connection that the server gave up.
        self._lost = (OSError, self._asyncpg.InterfaceError, self._asyncpg.InternalClientError)
        self.address = address_of(url)
        self._url = url
        self._component, self._tables, self._version = component, tables, version
        self._schema = schema
        self._sizes = (min(pool_min_size, pool_max_size), pool_max_size)
        self._deadline_s = deadline_s
        self._opening = asyncio.Lock()
        self._pool: Pool[Record] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # whose the pool is

    async def open(self) -> None:
        """Connect, and make what is missing; again, if it was closed."""
        async with self._answered():
            await self._ready()

    async def exists(self) -> bool:
        """Whether the tables are there. Nothing is made."""
        async with self._answered():
            connection = await self._asyncpg.connect(
                self._url, timeout=self._deadline_s, server_settings=self._settings()
            )
            try:
                return await self._version_found(connection) is not None
            finally:
                await connection.close(timeout=1)

    async def close(self) -> None:
        """Close the connections; twice is harmless. What they do is broken off after a moment."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                async with asyncio.timeout(2):
                    await pool.close()
            except TimeoutError:
                pool.terminate()

    async def rows(self, query: str, *values: object) -> list[Record]:
        """What a query gives."""
        async with self.connection() as connection:
            return await connection.fetch(query, *values)

    async def execute(self, statement: str, *values: object) -> int:
        """How many rows a statement changed."""
        async with self.connection() as connection:
            status: str = await connection.execute(statement, *values)
            return int(status.rpartition(" ")[2])

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection[Record]]:
        """A connection in a transaction, which is committed unless the block raises.

        Whoever freezes inside keeps its locks no longer than the deadline: then the server takes
        it back, and the connection with it.
        """
        async with self.connection() as connection:
            # In one round trip, and no setting of the connection: not every pooler takes those.
            idle_ms = int(self._deadline_s * 1000)
            await connection.execute(f"{_BEGIN}; SET LOCAL {_IDLE} = {idle_ms}")
            yield connection  # if the block raises, the connection ends, and with it this
            await connection.execute("COMMIT")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection[Record]]:
        """A connection; the deadline holds for the whole block."""
        async with self._answered():
            pool = await self._ready()
            connection: Any = await pool.acquire()
            try:
                yield connection
            except BaseException:
                # Whatever it was, who knows what state it is in; and given back after a time-out
                # it would first wait for the server to confirm. A new one costs some ms.
                connection.terminate()
                raise
            finally:
                # What was to be done is done, or has failed already.
                with suppress(*self._lost, self._asyncpg.PostgresError):
                    await pool.release(connection, timeout=1)

    async def _ready(self) -> Pool[Record]:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # the first call, or the first one of another loop
            self._loop, self._pool, self._opening = loop, None, asyncio.Lock()
        if self._pool is None:
            async with self._opening:
                if self._pool is None:
                    self._pool = await self._connect()
        return self._pool

    async def _connect(self) -> Pool[Record]:
        pool = self._asyncpg.create_pool(
            self._url,
            min_size=self._sizes[0],
            max_size=self._sizes[1],
            timeout=self._deadline_s,
            server_settings=self._settings(),
        )
        try:
            await pool
            async with pool.acquire() as connection:
                await self._make_tables(connection)
        except BaseException:
            pool.terminate()
            raise
        return pool  # type: ignore[no-any-return]  # asyncpg is imported as Any

    def _settings(self) -> dict[str, str]:
        settings = {"application_name": "sagaz-es"}
        if self._schema:
            settings["search_path"] = f'"{self._schema}"'
        return settings

    async def _make_tables(self, connection: Connection[Record]) -> None:
        # Where all is there already, no right to create anything is needed.
        found = await self._version_found(connection)
        if found is None:
            # So that what is committed during the wait for the lock is seen.
            async with connection.transaction(isolation="read_committed"):
                found = await self._made_by_one(connection)
        if found != self._version:
            raise other_version(self.address, self._component, found, self._version)

    async def _made_by_one(self, connection: Connection[Record]) -> int:
        """Of all that come at once one makes the tables; the version that stands then."""
        # IF NOT EXISTS alone fails when two try at once.
        await connection.execute("SELECT pg_advisory_xact_lock($1)", TABLES_LOCK)
        if self._schema and not await connection.fetchval(_SCHEMA_THERE, self._schema):
            await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{self._schema}"')
        # First, and also after another has made it: a session that has once looked for a table in
        # vain goes on not to find it, until a statement such as this locks the schema. The wait for
        # the lock above does not tell it.
        await connection.execute(VERSIONS)
        found: int | None = await connection.fetchval(_VERSION, self._component)
        if found is not None:
            return found
        for table in self._tables:
            await connection.execute(table)
        statement = "INSERT INTO sagaz_versions VALUES ($1, $2)"
        await connection.execute(statement, self._component, self._version)
        return self._version

    async def _version_found(self, connection: Connection[Record]) -> int | None:
        if await connection.fetchval("SELECT to_regclass('sagaz_versions')") is None:
            return None
        version: int | None = await connection.fetchval(_VERSION, self._component)
        return version

    # --- deadline and errors

    @asynccontextmanager
    async def _answered(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._deadline_s) as deadline:
                yield
        except TimeoutError as error:
            if not deadline.expired():
                raise self._unreachable(str(error)) from error
            raise self._unreachable(f"no answer within {self._deadline_s:g} s") from error
        except self._asyncpg.PostgresError as error:
            raise self._explained(error) from error
        except self._asyncpg.ClientConfigurationError as error:
            raise ConfigurationError(
                f"the URL of PostgreSQL at {self.address}: {self._short(error)}"
            ) from error
        except self._lost as error:
            if isinstance(error, SagaError):
                raise
            raise self._unreachable(self._short(error)) from error

    def _explained(self, error: Any) -> SagaError:
        code = error.sqlstate or ""
        # The message alone: what else PostgreSQL says may quote the row.
        message = str(error.args[0]) if error.args else type(error).__name__
        message = self._without_password(message)
        if hint := _hint(_REFUSED, code):
            return AccessRefused("PostgreSQL", self.address, message, hint)
        if hint := _hint(_UNREACHABLE, code):
            return Unreachable("PostgreSQL", self.address, message, hint)
        hint = _hint(_FAILED, code)
        detail = f"{message}; {hint}" if hint else message
        return StorageFailed(f"PostgreSQL at {self.address}", detail)

    def _short(self, error: Exception) -> str:
        if (
            isinstance(error, OSError) and (error.errno or 0) > 0
        ):  # of names that are not known: < 0
            return os.strerror(error.errno or 0)
        text = self._without_password(str(error)) or type(error).__name__
        return text.splitlines()[0]

    def _without_password(self, text: str) -> str:
        password = unquote(urlsplit(self._url).password or "")
        return text.replace(password, "***") if password else text

    def _unreachable(self, detail: str) -> Unreachable:
        return Unreachable("PostgreSQL", self.address, detail)


_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"  # whatever the database's default is
_IDLE = "idle_in_transaction_session_timeout"
TABLES_LOCK = zlib.crc32(b"sagaz-es tables")
"""The advisory lock of whoever makes tables, in all schemas: two names may mean the same one."""
_SCHEMA_THERE = "SELECT 1 FROM pg_namespace WHERE nspname = $1"
_VERSION = "SELECT version FROM sagaz_versions WHERE component = $1"

VERSIONS = """CREATE TABLE IF NOT EXISTS sagaz_versions (
    component text PRIMARY KEY, version integer NOT NULL
)"""


def _hint(hints: dict[str, str], code: str) -> str:
    return next((hint for begin, hint in hints.items() if code.startswith(begin)), "")


def address_of(url: str) -> str:
    """host:port/database of a URL, for people. Raises ConfigurationError."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"the PostgreSQL URL cannot be read: {error}") from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise ConfigurationError(
            "a PostgreSQL URL is written postgresql://user:password@host:port/database"
        )
    hosts = parts.netloc.rpartition("@")[2] or "localhost"
    named = ",".join(host if _has_port(host) else f"{host}:5432" for host in hosts.split(","))
    return f"{named}/{parts.path.lstrip('/')}"


def _has_port(host: str) -> bool:
    return host.rpartition("]")[2].rpartition(":")[2].isdigit() and ":" in host.rpartition("]")[2]


def _driver() -> Any:
    try:
        import asyncpg
    except ImportError as error:
        raise MissingDependencyError("asyncpg", "the PostgreSQL store", "postgresql") from error
    return asyncpg
