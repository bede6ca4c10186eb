"""An effect in a SQLite database of the user's, once for all attempts of a step."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from sagaz_es.errors import ConfigurationError, DefinitionError, StorageFailed, UnstorableValue
from sagaz_es.exactly_once import create_once_table, once
from sagaz_es.sagas.context import StepContext


@dataclass
class Context:
    saga_id: str = "order-1"
    idempotency_key: str = "order-1/charge"


CTX = Context()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
async def db(path: Path) -> AsyncIterator[sqlite3.Connection]:
    connection = sqlite3.connect(path)
    await create_once_table(connection)
    connection.execute("CREATE TABLE payments (amount text)")
    connection.commit()
    yield connection
    connection.close()


def pay(
    db: sqlite3.Connection, ctx: Context | StepContext = CTX, name: str = ""
) -> tuple[bool, object]:
    with once(ctx, db, name=name) as done:
        if done.first:
            db.execute("INSERT INTO payments VALUES ('9.90')")
            done.result = {"paid": Decimal("9.90")}
    return done.first, done.result


def payments(db: sqlite3.Connection) -> int:
    found: int = db.execute("SELECT count(*) FROM payments").fetchone()[0]
    return found


def test_a_second_attempt_is_given_the_first_ones_result(db: sqlite3.Connection) -> None:
    assert pay(db) == (True, {"paid": Decimal("9.90")})
    assert pay(db) == (False, {"paid": Decimal("9.90")})
    assert payments(db) == 1


def test_two_blocks_of_one_step_are_told_apart_by_name(db: sqlite3.Connection) -> None:
    assert [pay(db)[0], pay(db, name="fee")[0], pay(db, name="fee")[0]] == [True, True, False]


@pytest.mark.parametrize("name", ["", "fee"])
def test_a_second_block_of_the_same_name_is_an_error_in_each_attempt(
    db: sqlite3.Connection, name: str
) -> None:
    for first in (True, False):  # the step, and its next attempt
        ctx = StepContext({}, saga_id="order-1", step="charge", idempotency_key="order-1/charge")
        assert pay(db, ctx, name)[0] is first
        with pytest.raises(DefinitionError, match="step 'charge': it has two once blocks"):
            pay(db, ctx, name)
        assert pay(db, ctx, name="other")[0] is first
    assert payments(db) == 2


def test_a_block_that_was_rolled_back_may_come_again(db: sqlite3.Connection) -> None:
    ctx = StepContext({}, saga_id="order-1", step="charge", idempotency_key="order-1/charge")
    with pytest.raises(RuntimeError), once(ctx, db):
        raise RuntimeError
    db.execute("INSERT INTO payments VALUES ('0')")  # begins a transaction of the step's own
    assert pay(db, ctx)[0]
    db.rollback()
    assert pay(db, ctx)[0]
    assert payments(db) == 1


def test_what_the_block_raises_keeps_neither_work_nor_key(db: sqlite3.Connection) -> None:
    with pytest.raises(RuntimeError), once(CTX, db) as done:
        assert done.first
        db.execute("INSERT INTO payments VALUES ('1')")
        raise RuntimeError
    assert payments(db) == 0
    assert pay(db)[0]


def test_a_result_that_cannot_be_kept_keeps_neither_work_nor_key(db: sqlite3.Connection) -> None:
    with pytest.raises(UnstorableValue), once(CTX, db) as done:
        db.execute("INSERT INTO payments VALUES ('1')")
        done.result = object()
    assert (payments(db), pay(db)[0]) == (0, True)


def test_inside_a_transaction_of_yours_the_key_stands_when_that_commits(
    db: sqlite3.Connection,
) -> None:
    db.execute("INSERT INTO payments VALUES ('0')")
    assert pay(db)[0]
    db.rollback()
    assert (payments(db), pay(db)[0]) == (0, True)


def test_of_two_attempts_at_once_one_waits_for_the_other(
    db: sqlite3.Connection, path: Path
) -> None:
    told: list[tuple[bool, object]] = []

    def second() -> None:
        other = sqlite3.connect(path)
        told.append(pay(other))
        other.close()

    with once(CTX, db) as done:
        thread = threading.Thread(target=second)
        thread.start()
        done.result = {"paid": Decimal("9.90")}
    thread.join()
    assert told == [(False, {"paid": Decimal("9.90")})]


def test_a_key_of_another_saga_is_an_error_not_a_payment_that_never_happens(
    db: sqlite3.Connection,
) -> None:
    pay(db, Context("order-1", "charge-it"))
    with pytest.raises(ConfigurationError, match="'charge-it' was used by saga 'order-1'"):
        pay(db, Context("order-2", "charge-it"))


def test_an_inherited_effect_is_undone_once_by_whichever_branch(db: sqlite3.Connection) -> None:
    assert pay(db, Context("branch-1", "order-1/charge/compensation"))[0]
    assert not pay(db, Context("branch-2", "order-1/charge/compensation"))[0]


def test_a_missing_table_is_said_with_what_makes_it() -> None:
    db = sqlite3.connect(":memory:")
    with pytest.raises(StorageFailed, match=r"await create_once_table\(connection\)"):
        pay(db)
    assert not db.in_transaction
    db.close()


async def test_the_wrong_kind_of_with_is_said(db: sqlite3.Connection) -> None:
    with pytest.raises(ConfigurationError, match="use `with`"):
        async with once(CTX, db):
            pass


def test_a_table_name_is_a_name(db: sqlite3.Connection) -> None:
    with pytest.raises(ConfigurationError, match="table"):
        once(CTX, db, table="x; DROP TABLE payments")
