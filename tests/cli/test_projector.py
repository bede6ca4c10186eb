"""`sagaz-es projector …`."""

from __future__ import annotations

import asyncio
import signal
import sqlite3

import pytest

from sagaz_es.connect import open_log

from .conftest import Project, Shop


def test_status_has_each_partition(shop: Shop) -> None:
    shop.order("o-1")
    given = shop.run("projector", "status")
    assert given.status == 0
    assert [list(one) for one in given.json] == [
        ["partition", "next_offset", "log_end", "lag"]
    ] * len(given.json)
    assert [one["partition"] for one in given.json] == [0, 1, 2, 3]
    assert sum(one["log_end"] for one in given.json) == 4 + 8  # a first record each, and the order
    assert sum(one["lag"] for one in given.json) == 0


def test_status_shows_how_far_a_store_is_behind(shop: Shop) -> None:
    shop.order("o-1")
    given = shop.run("projector", "status", "--store", "memory://")
    assert sum(one["lag"] for one in given.json) == 4 + 8
    table = shop.run("projector", "status", "--store", "memory://", "--format", "table")
    assert table.stdout.endswith("12 records behind\n")


def test_status_of_a_log_that_is_not_there_makes_none(project: Project) -> None:
    given = project.run("projector", "status")
    assert (given.status, given.json) == (0, [])
    assert "there is no log file" in given.stderr
    assert not (project.path / "sagaz-es.db").exists()


@pytest.mark.parametrize("command", ["status", "verify"])
def test_a_log_without_a_store_is_wrong_usage(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("sagaz_es_cli.opening.open_store", lambda *_, **options: None)
    given = shop.run("projector", command)
    assert given.status == 2
    assert "name one with --store postgresql://… or in SAGAZ_ES_STORE" in given.stderr


def test_verify_finds_nothing_where_the_store_is_the_fold(shop: Shop) -> None:
    shop.order("o-1")
    shop.order("o-2", token="bad")
    given = shop.run("projector", "verify")
    assert given.status == 0
    assert given.json == {
        "ok": True,
        "sagas": 2,
        "events": 8 + 9,
        "unknown_beginning": 0,
        "set_aside": 0,
        "differences": [],
    }


def test_verify_names_what_differs_and_rebuild_mends_it(project: Project) -> None:
    start = ("saga", "start", "order", "--app", "shop", "--context", '{"token": "good"}')
    for saga_id in ("o-1", "o-2"):
        project.run(*start, "--saga-id", saga_id)
    with sqlite3.connect(project.path / "sagaz-es.db") as connection:
        connection.execute("DELETE FROM sagaz_archive WHERE saga_id = 'o-1' AND sequence = 3")
    connection.close()
    wrong = project.run("projector", "verify")
    assert (wrong.status, wrong.json["ok"]) == (1, False)
    assert wrong.json["differences"] == [
        {"saga_id": "o-1", "what": "archive", "detail": "event 3 is missing"}
    ]
    table = project.run("projector", "verify", "--format", "table")
    assert table.status == 1
    assert "sagaz-es projector rebuild" in table.stdout
    rebuilt = project.run("projector", "rebuild")
    assert rebuilt.status == 0
    assert sum(one["lag"] for one in rebuilt.json) == 0
    assert project.run("projector", "verify").json["ok"] is True
    assert [saga["saga_id"] for saga in project.run("saga", "list").json] == ["o-2", "o-1"]


def test_a_saga_that_is_set_aside_is_told(shop: Shop) -> None:
    async def poison() -> None:
        log = open_log(shop.log)
        await log.open()
        await log.append_raw(log.partition_of("o-1"), "o-1", b"no record of ours")
        await log.close()

    asyncio.run(poison())
    assert shop.run("saga", "list").status == 0  # it projects
    given = shop.run("doctor")
    assert given.status == 1
    (parked,) = [check for check in given.json if check["check"] == "parked records"]
    assert parked["result"] == "wrong"
    assert parked["found"].startswith("1, the first of saga 'o-1' in partition ")
    assert "sagaz-es projector drive o-1" in parked["advice"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_run_projects_until_it_is_told_to_stop(
    project: Project, number: signal.Signals, status: int
) -> None:
    start = ("saga", "start", "order", "--app", "shop", "--context", '{"token": "good"}')
    project.run(*start)
    both = ("--log", "sqlite:///sagaz-es.db", "--store", "sqlite:///views.db")
    with project.start("projector", "run", *both) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("projecting sqlite:///sagaz-es.db into ")
        while sum(one["lag"] for one in project.run("projector", "status", *both).json):
            assert process.poll() is None
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (status, "")
    assert stderr == ("stopped; the next one goes on from here\n" if status == 0 else "")
