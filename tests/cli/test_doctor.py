"""`sagaz-es doctor`."""

from __future__ import annotations

import sqlite3
from typing import Any

from .conftest import APP, Output, Project, Shop


def check(given: Output, name: str) -> dict[str, Any]:
    (found,) = [one for one in given.json if one["check"] == name]
    assert isinstance(found, dict)
    return found


def test_a_healthy_log_is_status_0(project: Project) -> None:
    start = ("saga", "start", "order", "--app", "shop", "--context", '{"token": "good"}')
    project.run(*start)
    given = project.run("doctor", "--app", "shop")
    assert given.status == 0
    assert [list(one) for one in given.json] == [["check", "result", "found", "advice"]] * 6
    assert [(one["check"], one["result"]) for one in given.json] == [
        ("app", "ok"),
        ("log", "ok"),
        ("store", "ok"),
        ("projector", "ok"),
        ("parked records", "ok"),
        ("sagas", "ok"),
    ]
    assert check(given, "app")["found"] == "sagas: order, gift, sleepy"
    assert check(given, "log")["found"].startswith("sqlite:///sagaz-es.db: 8 partitions, 16 rec")


def test_a_missing_log_is_wrong_and_not_made(project: Project) -> None:
    given = project.run("doctor")
    assert given.status == 1
    assert (check(given, "log")["result"], len(given.json)) == ("wrong", 1)
    assert "there is no log file" in check(given, "log")["found"]
    assert not (project.path / "sagaz-es.db").exists()


def test_a_file_that_is_no_log_is_wrong(project: Project) -> None:
    (project.path / "sagaz-es.db").write_text("Dear diary, today I am no database at all.\n" * 50)
    given = project.run("doctor")
    assert (given.status, check(given, "log")["result"]) == (1, "wrong")


def test_code_that_cannot_be_loaded_is_wrong_and_the_rest_is_checked(shop: Shop) -> None:
    shop.order("o-1")
    given = shop.run("doctor", "--app", "no_such_module")
    assert given.status == 1
    assert check(given, "app")["result"] == "wrong"
    assert check(given, "log")["result"] == "ok"
    assert shop.run("doctor", "--app", APP).status == 0


def test_a_store_of_another_log_is_wrong(project: Project) -> None:
    start = ("saga", "start", "order", "--app", "shop", "--context", '{"token": "good"}')
    for _ in range(3):
        project.run(*start)
    first = ("--log", "sqlite:///sagaz-es.db", "--store", "sqlite:///sagaz-es.db")
    assert project.run("doctor", *first).status == 0
    with sqlite3.connect(project.path / "sagaz-es.db") as connection:
        connection.execute("UPDATE sagaz_checkpoints SET next_offset = 1000 WHERE partition = 0")
    connection.close()
    given = project.run("doctor", *first)
    assert given.status == 1
    assert check(given, "projector")["result"] == "wrong"
    assert "the store is at 1000, the log ends at " in check(given, "projector")["found"]


def test_a_log_that_cannot_be_reached_is_wrong_without_its_password(shop: Shop) -> None:
    given = shop.run("doctor", "--store", "postgresql://me:secret@127.0.0.1:1/sagas")
    assert (given.status, check(given, "log")["result"]) == (1, "ok")
    assert check(given, "store")["result"] == "wrong"
    assert "secret" not in given.stdout + given.stderr


def test_sagas_that_wait_for_a_person_are_told(shop: Shop) -> None:
    app = ("--app", "tests.cli.shop:GiftSaga")
    context = '{"torn": true, "late": true}'
    failed = shop.run("saga", "start", "gift", "--saga-id", "g-1", "--context", context, *app)
    assert failed.json["status"] == "failed"
    given = shop.run("doctor")
    assert given.status == 0  # the installation is well
    assert check(given, "sagas") == {
        "check": "sagas",
        "result": "look",
        "found": "1 failed",
        "advice": "sagaz-es saga list --status failed",
    }
