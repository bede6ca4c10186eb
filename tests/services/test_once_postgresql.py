"""An effect in a PostgreSQL of the user's, once for all attempts of a step, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

import asyncpg
import pytest

from sagaz_es import Saga, action
from sagaz_es.errors import ConfigurationError, DefinitionError, StorageFailed, UnstorableValue
from sagaz_es.exactly_once import Once, create_once_table, once
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.sagas.context import StepContext
from tests.helpers import Gate, engine_on

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@dataclass
class Context:
    saga_id: str = "order-1"
    idempotency_key: str = "order-1/charge"


CTX = Context()
PAID = {"paid": Decimal("9.90")}


class Shop:
    """A database with the table of keys and one of payments."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connections: list[Connection] = []

    async def connect(self) -> Connection:
        self.connections.append(await asyncpg.connect(self.url))
        return self.connections[-1]

    async def payments(self) -> int:
        found: int = await (await self.connect()).fetchval("SELECT count(*) FROM payments")
        return found

    async def waiting(self) -> None:
        """Until some session waits for a lock."""
        db = await self.connect()
        query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while not await db.fetchval(query):  # noqa: ASYNC110 - the server has nothing to wait on
            await asyncio.sleep(0.01)


@pytest.fixture
async def shop(postgresql_url: str) -> AsyncIterator[Shop]:
    shop = Shop(postgresql_url)
    db = await shop.connect()
    await create_once_table(db)
    await db.execute("CREATE TABLE payments (amount numeric)")
    yield shop
    for connection in shop.connections:
        connection.terminate()


async def insert(db: Connection, done: Once) -> None:
    await db.execute("INSERT INTO payments VALUES (9.90)")
    done.result = PAID


async def pay(
    db: Connection, gate: Gate | None = None, ctx: Context | StepContext = CTX
) -> tuple[bool, object]:
    async with once(ctx, db) as done:
        if done.first:
            await insert(db, done)
            if gate is not None:
                await gate.pass_through()
    return done.first, done.result


async def test_a_second_attempt_is_given_the_first_ones_result(shop: Shop) -> None:
    assert await pay(await shop.connect()) == (True, PAID)
    assert await pay(await shop.connect()) == (False, PAID)
    assert await shop.payments() == 1


async def test_what_the_block_raises_keeps_neither_work_nor_key(shop: Shop) -> None:
    db = await shop.connect()
    with pytest.raises(RuntimeError):
        async with once(CTX, db) as done:
            await insert(db, done)
            raise RuntimeError
    assert await shop.payments() == 0
    assert await pay(db) == (True, PAID)


async def test_a_result_that_cannot_be_kept_keeps_neither_work_nor_key(shop: Shop) -> None:
    db = await shop.connect()
    with pytest.raises(UnstorableValue):
        async with once(CTX, db) as done:
            await insert(db, done)
            done.result = object()
    assert (await shop.payments(), await pay(db)) == (0, (True, PAID))


async def test_a_second_attempt_waits_for_the_first_ones_commit(shop: Shop) -> None:
    gate = Gate()
    first = asyncio.create_task(pay(await shop.connect(), gate))
    await gate.entered()
    second = asyncio.create_task(pay(await shop.connect()))
    await shop.waiting()
    gate.open()
    assert await first == (True, PAID)
    assert await second == (False, PAID)
    assert await shop.payments() == 1


async def test_if_the_first_attempt_is_killed_before_its_commit_the_second_does_it(
    shop: Shop,
) -> None:
    killed, watch, gate = await shop.connect(), await shop.connect(), Gate()
    first = asyncio.create_task(pay(killed, gate))
    await gate.entered()
    second = asyncio.create_task(pay(await shop.connect()))
    await shop.waiting()
    await watch.execute("SELECT pg_terminate_backend($1)", killed.get_server_pid())
    assert await second == (True, PAID)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await shop.payments() == 1


async def test_if_the_connection_is_killed_inside_the_block_its_own_error_is_raised(
    shop: Shop,
) -> None:
    db, killer = await shop.connect(), await shop.connect()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        async with once(CTX, db) as done:
            await insert(db, done)
            await killer.execute("SELECT pg_terminate_backend($1)", db.get_server_pid())
            # In the moment of dying the driver has an error of its inner state instead.
            async with asyncio.timeout(10):
                while not db.is_closed():  # noqa: ASYNC110 - the driver tells nobody
                    await asyncio.sleep(0.01)
            await db.execute("SELECT 1")
    assert (await shop.payments(), await pay(killer)) == (0, (True, PAID))


async def test_many_attempts_at_once_do_it_once(shop: Shop) -> None:
    connections = [await shop.connect() for _ in range(8)]
    told = await asyncio.gather(*(pay(db) for db in connections))
    assert sorted(first for first, _ in told) == [False] * 7 + [True]
    assert all(result == PAID for _, result in told)
    assert await shop.payments() == 1


async def test_inside_a_transaction_of_yours_the_key_stands_when_that_commits(shop: Shop) -> None:
    db = await shop.connect()
    outer = db.transaction()
    await outer.start()
    assert await pay(db) == (True, PAID)
    await outer.rollback()
    assert await pay(db) == (True, PAID)
    assert await shop.payments() == 1


async def test_a_connection_of_a_pool_will_do(shop: Shop) -> None:
    async with asyncpg.create_pool(shop.url, min_size=1, max_size=1) as pool:
        for first in (True, False):
            async with pool.acquire() as db, once(CTX, db) as done:
                done.result = 17 if done.first else done.result
            assert (done.first, done.result) == (first, 17)


async def test_a_pool_is_no_connection(postgresql_url: str) -> None:
    async with asyncpg.create_pool(postgresql_url, min_size=1, max_size=1) as pool:
        with pytest.raises(ConfigurationError, match=r"not asyncpg\.Pool: .*pool\.acquire\(\)"):
            async with once(CTX, pool):
                pass
        with pytest.raises(ConfigurationError, match=r"pool\.acquire\(\)"):
            await create_once_table(pool)


@pytest.mark.parametrize("together", [False, True])
async def test_a_second_block_of_the_same_name_is_an_error(shop: Shop, together: bool) -> None:
    for _ in range(2):  # the step, and its next attempt
        ctx = StepContext({}, saga_id="order-1", step="charge", idempotency_key="order-1/charge")
        blocks = [pay(await shop.connect(), ctx=ctx) for _ in range(2)]
        if together:
            outcomes = await asyncio.gather(*blocks, return_exceptions=True)
        else:
            outcomes = [(await asyncio.gather(b, return_exceptions=True))[0] for b in blocks]
        assert sorted(isinstance(outcome, DefinitionError) for outcome in outcomes) == [False, True]
    assert await shop.payments() == 1


async def test_a_block_that_was_rolled_back_may_come_again(shop: Shop) -> None:
    db = await shop.connect()
    ctx = StepContext({}, saga_id="order-1", step="charge", idempotency_key="order-1/charge")
    with pytest.raises(RuntimeError):
        async with db.transaction():
            assert await pay(db, ctx=ctx) == (True, PAID)
            raise RuntimeError
    with pytest.raises(RuntimeError):
        async with once(ctx, db):
            raise RuntimeError
    assert await pay(db, ctx=ctx) == (True, PAID)
    assert await shop.payments() == 1


async def test_a_missing_table_is_said_with_what_makes_it(postgresql_url: str) -> None:
    db = await asyncpg.connect(postgresql_url)
    with pytest.raises(StorageFailed, match=r"await create_once_table\(connection\)"):
        await pay(db)
    assert not db.is_in_transaction()
    await db.close()


async def test_the_table_can_be_made_by_many_at_once(postgresql_url: str) -> None:
    connections = [await asyncpg.connect(postgresql_url) for _ in range(5)]
    await asyncio.gather(*(create_once_table(db, table="public.keys") for db in connections))
    for db in connections:
        await db.close()


async def test_a_step_that_dies_after_its_commit_has_paid_once(shop: Shop) -> None:
    """The whole way: the attempt commits and fails before its outcome is recorded."""

    class Paying(Saga):
        saga_name = "paying"

        @action("charge")
        async def charge(self, ctx: Any) -> Any:
            async with once(ctx, ctx.resources["db"]) as done:
                if done.first:
                    await insert(ctx.resources["db"], done)
            if done.first:
                raise ConnectionError("gone between the commit and the record")
            return done.result

    async with engine_on(
        MemoryEventLog(1), Paying, resources={"db": await shop.connect()}
    ) as engine:
        result = await engine.run(Paying, saga_id="order-1")
    assert (result.success, result.context["paid"]) == (True, Decimal("9.90"))
    assert await shop.payments() == 1
