"""The projector and the PostgreSQL store when the server dies, freezes, or was never there."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import sys
import time
from collections.abc import AsyncIterator

import asyncpg
import pytest

from sagaz_es.core.fold import fold_all
from sagaz_es.core.snapshot import SnapshotPolicy, SnapshotStrategy, dump_policy
from sagaz_es.errors import (
    AccessRefused,
    ConfigurationError,
    MissingDependencyError,
    StorageFailed,
    Unreachable,
)
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.reading.projector import Projector
from sagaz_es.storage.postgresql import PostgreSQLProjectionStore, PostgreSQLSnapshotStorage
from sagaz_es.testing.contracts.histories import history, order_facts, projected
from tests.servers import PostgreSQLServer

NOWHERE = "postgresql://ada:s3cret%40x@127.0.0.1:1/orders"
BEFORE = dump_policy(SnapshotPolicy(SnapshotStrategy.BEFORE_EACH_STEP))


@pytest.fixture
async def store(postgresql_url: str) -> AsyncIterator[PostgreSQLProjectionStore]:
    store = PostgreSQLProjectionStore(postgresql_url, deadline_s=1.0)
    await store.open()
    yield store
    await store.close()


async def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    store = PostgreSQLProjectionStore(NOWHERE)
    with pytest.raises(Unreachable) as refusal:
        await store.open()
    assert "PostgreSQL at 127.0.0.1:1/orders" in str(refusal.value)
    for told in (str(refusal.value), repr(refusal.value), store.name):
        assert "s3cret" not in told
    await store.close()


async def test_a_wrong_password_or_database_is_told_without_the_password(
    postgresql_url: str,
) -> None:
    url = postgresql_url.replace("postgres@", "nobody:s3cret@")
    with pytest.raises(AccessRefused, match=r"nobody.*; check user and password") as refusal:
        await PostgreSQLProjectionStore(url).open()
    assert "s3cret" not in str(refusal.value)
    assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)
    with pytest.raises(AccessRefused, match="does not exist; create that database, or name"):
        await PostgreSQLProjectionStore(f"{postgresql_url}-not").open()


@pytest.fixture
async def clerk(postgresql_url: str) -> AsyncIterator[tuple[asyncpg.Connection, str]]:
    """A user who may do nothing yet: who can change that, and the user's URL."""
    connection = await asyncpg.connect(postgresql_url)
    await connection.execute("CREATE ROLE clerk LOGIN")
    try:
        yield connection, postgresql_url.replace("postgres@", "clerk@")
    finally:
        await connection.execute("DROP OWNED BY clerk")
        await connection.execute("DROP ROLE clerk")
        await connection.close()


async def test_an_option_that_the_driver_does_not_know_is_wrong_configuration(
    postgresql_url: str,
) -> None:
    with pytest.raises(ConfigurationError, match=r"the URL of PostgreSQL at .*sslmode"):
        await PostgreSQLProjectionStore(f"{postgresql_url}?sslmode=nope").open()


async def test_missing_rights_are_told_with_those_that_are_needed(
    clerk: tuple[asyncpg.Connection, str], store: PostgreSQLProjectionStore
) -> None:
    owner, url = clerk
    needed = "needs SELECT, INSERT, UPDATE and DELETE on its tables"
    for schema, denied in (("", "table sagaz_versions"), ("orders", "database ")):
        with pytest.raises(StorageFailed, match=f"permission denied for {denied}.*{needed}"):
            await PostgreSQLProjectionStore(url, schema=schema).open()
    await owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO clerk")
    reading = PostgreSQLProjectionStore(url)
    assert await reading.summaries() == ()  # SELECT to look
    with pytest.raises(StorageFailed, match=f"permission denied for table .*{needed}"):
        await reading.commit(projected(history("order-17")), expected=0)
    await reading.close()


async def test_what_else_a_server_refuses_is_told_with_what_to_do(
    clerk: tuple[asyncpg.Connection, str], store: PostgreSQLProjectionStore
) -> None:
    owner, url = clerk
    await owner.execute("ALTER ROLE clerk CONNECTION LIMIT 0")
    with pytest.raises(Unreachable, match=r"too many connections.*; close some, or raise max"):
        await PostgreSQLProjectionStore(url).open()
    await owner.execute("ALTER ROLE clerk CONNECTION LIMIT -1")
    await owner.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk")
    await owner.execute("ALTER ROLE clerk SET default_transaction_read_only = on")
    with pytest.raises(StorageFailed, match=r"read-only.*; it is a copy that is only read"):
        reading = PostgreSQLProjectionStore(url)
        try:
            await reading.commit(projected(history("order-17")), expected=0)
        finally:
            await reading.close()
    await owner.execute("DROP TABLE sagaz_sagas")
    with pytest.raises(StorageFailed, match=r"sagaz_sagas.*; a table is gone: restore it"):
        await store.summaries()


def test_a_missing_driver_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(MissingDependencyError) as refusal:
        PostgreSQLSnapshotStorage(NOWHERE)
    assert "asyncpg" in str(refusal.value)
    assert "sagaz-es[postgresql]" in str(refusal.value)


async def test_a_frozen_server_is_given_up_within_the_deadline(
    store: PostgreSQLProjectionStore, postgresql_server: PostgreSQLServer
) -> None:
    await store.commit(projected(history("order-17")), expected=0)
    postgresql_server.pause()
    try:
        began = time.monotonic()
        calls = (
            store.commit(projected(history("order-18"), first_offset=8), expected=8),
            store.heads(["order-17"]),
            *(store.archived("order-17") for _ in range(20)),  # more than there are connections
        )
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {Unreachable}
        assert "no answer within 1 s" in str(outcomes[0])
        await store.close()
        assert time.monotonic() - began < 5
    finally:
        postgresql_server.resume()
    assert len(await store.archived("order-17")) == 8


async def test_a_lost_connection_is_unreachable_and_the_next_call_works(
    store: PostgreSQLProjectionStore, postgresql_server: PostgreSQLServer
) -> None:
    await store.commit(projected(history("order-17")), expected=0)
    postgresql_server.kill()
    with pytest.raises(Unreachable):
        await store.commit(projected(history("order-18"), first_offset=8), expected=8)
    postgresql_server.restart()
    await store.commit(projected(history("order-18"), first_offset=8), expected=8)
    assert len(await store.summaries()) == 2


async def test_a_connection_cut_by_the_server_is_replaced(
    store: PostgreSQLProjectionStore,
) -> None:
    await store.commit(projected(history("order-17")), expected=0)
    with contextlib.suppress(Unreachable):
        await store.database.rows("SELECT pg_terminate_backend(pg_backend_pid())")
    assert len(await store.summaries()) == 1


async def test_nothing_is_lost_while_the_server_dies_and_comes_back_again_and_again(
    store: PostgreSQLProjectionStore, postgresql_server: PostgreSQLServer
) -> None:
    log = MemoryEventLog(4)
    sagas = {f"order-{n}": history(f"order-{n}", order_facts(policy=BEFORE)) for n in range(200)}
    projector, kills = Projector(log, store, batch=50), 3
    running = asyncio.create_task(projector.run())
    try:
        for number, (saga_id, events) in enumerate(sagas.items()):
            await log.append(log.partition_of(saga_id), events)
            if number % 50 == 25 and kills:
                kills -= 1
                postgresql_server.kill()
                await asyncio.sleep(1)
                if kills:
                    postgresql_server.restart()
            await asyncio.sleep(0.001)
        postgresql_server.restart()
        await projector.run_until(timeout_s=60)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert projector.counters["store_failures"] > 0
    heads = await store.heads(sagas)
    assert heads == {saga_id: fold_all(events) for saga_id, events in sagas.items()}
    for saga_id, events in sagas.items():
        assert tuple(a.event for a in await store.archived(saga_id)) == events
        assert len(await store.snapshots(saga_id)) == 3


async def test_two_projectors_that_race_keep_what_one_would(postgresql_url: str) -> None:
    log = MemoryEventLog(2)
    sagas = {f"order-{n}": history(f"order-{n}") for n in range(60)}
    for place in range(8):
        for saga_id, events in sagas.items():
            await log.append(log.partition_of(saga_id), [events[place]])
    stores = [PostgreSQLProjectionStore(postgresql_url) for _ in range(3)]
    projectors = [Projector(log, store, batch=20 + n) for n, store in enumerate(stores)]
    await asyncio.gather(*(projector.run_until(timeout_s=60) for projector in projectors))
    assert sum(projector.counters["stepped_back"] for projector in projectors) > 0
    assert await stores[0].heads(sagas) == {sid: fold_all(evs) for sid, evs in sagas.items()}
    for saga_id, events in sagas.items():
        assert tuple(a.event for a in await stores[1].archived(saga_id)) == events
    assert await stores[2].rejected() == {}
    for store in stores:
        await store.close()
