"""Exactly once where it is possible: an effect in the user's own database, remembered there.

A step runs at least once: a crash between the commit of its work and the record of its outcome runs
it again. `once` writes the step's idempotency key into the same transaction as the work, so the
next attempt finds the first one's result there instead of doing it again.

Law (one commit): of all attempts with one key, at most one commits its work; every other one is
given that one's result. One that is still under way is waited for.
Law (all or nothing): the key is kept if and only if the work is.
Law (a key, a block): two blocks of one attempt never share a key: the second one's work would be
taken for done.
"""

from __future__ import annotations

import re
import sqlite3
from types import TracebackType
from typing import Any, Protocol, Self

from sagaz_es.codec.values import from_text, to_text
from sagaz_es.errors import ConfigurationError, DefinitionError, StorageFailed

TABLE = "sagaz_once"
_UNDO = "/compensation"
_COLUMNS = (
    "key text PRIMARY KEY, saga_id text NOT NULL, result text NOT NULL DEFAULT 'null', "
    "at {time} NOT NULL DEFAULT {now}"
)
POSTGRESQL_COLUMNS = _COLUMNS.format(time="timestamptz", now="now()")
SQLITE_COLUMNS = _COLUMNS.format(time="text", now="CURRENT_TIMESTAMP")


class Attempt(Protocol):
    """As much of a step's context as is needed."""

    saga_id: str
    idempotency_key: str


def once(ctx: Attempt, connection: Any, *, name: str = "", table: str = TABLE) -> Once:
    """Do the work of a block once for all attempts of this step (or compensation).

    `async with` on an asyncpg connection, `with` on a sqlite3 one (in a step that is a plain
    function). It begins a transaction, or a savepoint where one is open: then the key stands when
    yours commits. What the block raises rolls back. `name` tells two blocks of one step apart.
    `table` may have a schema; two namespaces of sagas in one database need two tables.

    Raises StorageFailed (no table), ConfigurationError (the key is another saga's, or this is no
    connection), DefinitionError (a second block of the step has the same name).
    """
    if not re.fullmatch(r"\w+(\.\w+)?", table):
        raise ConfigurationError(f"table: a name such as {TABLE!r} or 'shop.once', not {table!r}")
    return Once(ctx, connection, name, table)


async def create_once_table(connection: Any, *, table: str = TABLE) -> None:
    """Make the table where it is missing. In a migration of yours, write the same by hand."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({SQLITE_COLUMNS})")
        return
    _check_asyncpg(connection, "create_once_table(connection)")
    async with connection.transaction():
        # Two sessions that create it at the same moment would trip over each other.
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 7261))", table)
        await connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({POSTGRESQL_COLUMNS})")


def _check_asyncpg(connection: Any, call: str) -> None:
    """Raises ConfigurationError for a pool, and for what is no connection of asyncpg's."""
    if all(hasattr(connection, name) for name in ("transaction", "fetchval")):
        return
    kind = f"{type(connection).__module__.partition('.')[0]}.{type(connection).__name__}"
    if hasattr(connection, "acquire"):
        call = f"async with pool.acquire() as connection, then {call}"
    raise ConfigurationError(
        f"once: it takes a connection of asyncpg or sqlite3, not {kind}: write {call}"
    )


class Once:
    """`first`: do the work now, and set `result`. Otherwise it was done: `result` is the first
    one's. A result is what a step may return: plain data, Decimal, datetime …"""

    def __init__(self, ctx: Attempt, connection: Any, name: str, table: str) -> None:
        self.first = False
        self.result: Any = None
        self._saga_id = ctx.saga_id
        self._key = f"{ctx.idempotency_key}/{name}" if name else ctx.idempotency_key
        # The undoing of an inherited effect has the key of the saga that made it.
        self._own = not ctx.idempotency_key.endswith(_UNDO)
        self._connection, self._table = connection, table
        self._transaction: Any = None
        self._step, self._name = getattr(ctx, "step", ""), name
        self._marked = False  # the key as used, by this block
        self._used: dict[tuple[str, str], bool] = getattr(ctx, "once_keys", {})
        """Keys that this attempt has used; whether in a transaction of the step's own."""

    def _use(self, nested: bool) -> None:
        """Raises DefinitionError where another block of this attempt has used the key."""
        used = (self._table, self._key)
        # The step may roll its own transaction back and begin again: the key is gone then.
        if used in self._used and not (self.first and self._used[used]):
            blocks = f"named {self._name!r}" if self._name else "without a name"
            raise DefinitionError(
                f"step {self._step!r}: it has two once blocks {blocks}, and the second one's work "
                'would be taken for done: give each block a name, such as once(…, name="fee")'
            )
        self._used[used] = nested
        self._marked = True

    def _unused(self) -> None:
        """What the block did is rolled back."""
        if self._marked:
            self._used.pop((self._table, self._key), None)

    def _found(self, saga_id: str, text: str) -> None:
        if self._own and saga_id != self._saga_id:
            raise ConfigurationError(
                f"idempotency key {self._key!r} was used by saga {saga_id!r}, now by "
                f"{self._saga_id!r}: a step's own idempotency_key must name one effect, for "
                "instance by the order's number; left out, it is made of saga and step"
            )
        self.result = from_text(text)

    def _no_table(self, error: Exception) -> StorageFailed:
        return StorageFailed(
            f"table {self._table}",
            f"it is missing ({error}); make it once with `await create_once_table(connection)`",
        )

    # --- asyncpg ---

    async def __aenter__(self) -> Self:
        if isinstance(self._connection, sqlite3.Connection):
            raise ConfigurationError("once: use `with`, not `async with`, on a sqlite3 connection")
        _check_asyncpg(self._connection, "once(ctx, connection)")
        nested = self._connection.is_in_transaction()
        self._transaction = self._connection.transaction()
        await self._transaction.start()
        try:
            await self._look()
            self._use(nested)
        except BaseException as error:
            await self._roll_back()
            if getattr(error, "sqlstate", None) == "42P01" and isinstance(error, Exception):
                raise self._no_table(error) from error
            raise
        return self

    async def _look(self) -> None:
        insert = (
            f"INSERT INTO {self._table} (key, saga_id) VALUES ($1, $2) "
            "ON CONFLICT (key) DO NOTHING RETURNING true"
        )
        while True:
            # Waits for a transaction that has inserted the key and is not at its end.
            self.first = bool(await self._connection.fetchval(insert, self._key, self._saga_id))
            if self.first:
                return
            select = f"SELECT saga_id, result FROM {self._table} WHERE key = $1"
            row = await self._connection.fetchrow(select, self._key)
            if row is not None:  # else it was cleaned away in between
                self._found(*row)
                return

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            await self._roll_back()
            return
        try:
            if self.first:
                update = f"UPDATE {self._table} SET result = $2 WHERE key = $1"
                text = to_text(self.result, "result")
                await self._connection.execute(update, self._key, text)
        except BaseException:
            await self._roll_back()
            raise
        try:
            await self._transaction.commit()
        except BaseException:
            self._unused()
            raise

    async def _roll_back(self) -> None:
        self._unused()
        try:
            await self._transaction.rollback()
        except Exception:
            # The connection is lost, and the server rolls back by itself: the first error counts.
            return

    # --- sqlite3 ---

    def __enter__(self) -> Self:
        if not isinstance(self._connection, sqlite3.Connection):
            raise ConfigurationError("once: `with` is for sqlite3; elsewhere use `async with`")
        nested = self._connection.in_transaction
        self._transaction = _SAVEPOINT if nested else _TRANSACTION
        # IMMEDIATE: whoever reads the key first and writes later could not wait for another.
        self._connection.execute(self._transaction.begin)
        try:
            insert = f"INSERT OR IGNORE INTO {self._table} (key, saga_id) VALUES (?, ?)"
            done = self._connection.execute(insert, (self._key, self._saga_id))
            self.first = done.rowcount == 1
            if not self.first:
                select = f"SELECT saga_id, result FROM {self._table} WHERE key = ?"
                self._found(*self._connection.execute(select, (self._key,)).fetchone())
            self._use(nested)
        except BaseException as error:
            self._undo()
            if isinstance(error, sqlite3.OperationalError) and "no such table" in str(error):
                raise self._no_table(error) from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._undo()
            return
        try:
            if self.first:
                update = f"UPDATE {self._table} SET result = ? WHERE key = ?"
                self._connection.execute(update, (to_text(self.result, "result"), self._key))
            self._connection.execute(self._transaction.commit)
        except BaseException:
            self._undo()
            raise

    def _undo(self) -> None:
        self._unused()
        if self._connection.in_transaction:  # the block may have ended it, against the rules
            for statement in self._transaction.rollback:
                self._connection.execute(statement)


class _Statements:
    def __init__(self, begin: str, commit: str, *rollback: str) -> None:
        self.begin, self.commit, self.rollback = begin, commit, rollback


_TRANSACTION = _Statements("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK")
_SAVEPOINT = _Statements(
    f"SAVEPOINT {TABLE}", f"RELEASE {TABLE}", f"ROLLBACK TO {TABLE}", f"RELEASE {TABLE}"
)
