"""A PostgreSQL server."""

from __future__ import annotations

import asyncpg

from tests.servers import choice, local
from tests.servers.server import Box, Server, in_own_loop


class PostgreSQLServer(Server):
    """`fsync=False` is fine for tests, `kill` included: it only fears a crash of the machine."""

    name = "PostgreSQL"

    def __init__(self, *, fsync: bool = False) -> None:
        super().__init__()
        self._fsync = fsync

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """A new, empty database; gives its URL."""
        self._execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop it, even if somebody is still connected."""
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _execute(self, sql: str) -> None:
        async def execute() -> None:
            connection = await asyncpg.connect(self.url(), timeout=10)
            try:
                await connection.execute(sql, timeout=30)
            finally:
                await connection.close(timeout=5)

        in_own_loop(execute)

    def prepare(self) -> None:
        if choice.docker_engine():
            from tests.servers import container

            container.pull("postgresql")
        else:
            local.prepare_postgresql()

    def _make_box(self) -> Box:
        settings = {
            "fsync": "on" if self._fsync else "off",
            "max_connections": "200",
        }
        if choice.docker_engine():
            from tests.servers import container

            return container.postgresql(settings, self.port)
        return local.postgresql(settings, self.port)

    def _answers(self) -> bool:
        try:
            self._execute("SELECT 1")
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True
