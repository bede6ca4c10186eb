"""Commands on a real Kafka and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import asyncpg
import pytest

from sagaz_es.log.kafka_brokers import Deadlines
from tests.servers import KafkaServer, PostgreSQLServer
from tests.servers.server import free_port

from .conftest import Project

HASTY = """
import sagaz_es_cli.projector
from sagaz_es_cli.main import main

sagaz_es_cli.projector.STOP_SECONDS = 0.1
main()
"""

START = ("saga", "start", "order", "--app", "shop")


@pytest.fixture
def on_kafka(project: Project, kafka_bootstrap: str, kafka_namespace: str) -> Project:
    """A project whose log is a namespace of its own, without a store."""
    url = f"kafka://{kafka_bootstrap}/{kafka_namespace}"
    return replace(project, env=dict(project.env) | {"SAGAZ_ES_LOG": url})


@pytest.fixture
def on_servers(on_kafka: Project, postgresql_url: str) -> Project:
    """The same with an empty database."""
    return replace(on_kafka, env=dict(on_kafka.env) | {"SAGAZ_ES_STORE": postgresql_url})


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to that"


def test_looking_makes_no_topic(on_kafka: Project) -> None:
    listed = on_kafka.run("saga", "list")
    assert (listed.status, listed.json) == (0, [])
    assert "there is no topic " in listed.stderr
    assert on_kafka.run("saga", "show", "o-1").status == 4
    doctor = on_kafka.run("doctor")
    assert (doctor.status, doctor.json[0]["result"]) == (1, "wrong")
    assert on_kafka.run("topics", "create").json["created"] is True  # nothing had made it


def test_a_topic_is_made_once_and_kept(on_kafka: Project) -> None:
    create = ("topics", "create", "--partitions", "3", "--replication-factor", "1")
    made = on_kafka.run(*create)
    assert made.status == 0
    topic = made.json["topic"]
    assert topic.endswith(".saga-events")
    assert made.json == {
        "topic": topic,
        "created": True,
        "partitions": 3,
        "replication_factor": 1,
    }
    again = on_kafka.run(*create)
    assert (again.status, again.json) == (0, made.json | {"created": False})
    other = on_kafka.run("topics", "create", "--partitions", "4")
    assert (other.status, other.stdout) == (1, "")
    assert "it has 3 partitions, and that stays so" in other.error


def test_a_topic_with_more_replicas_than_brokers_is_not_made(on_kafka: Project) -> None:
    given = on_kafka.run("topics", "create", "--replication-factor", "3")
    assert (given.status, given.stdout) == (1, "")
    assert "on 1 broker(s) it gets 1 replicas, not 3" in given.error
    assert on_kafka.run("topics", "create").json["created"] is True


def test_everything_works_without_a_store(on_kafka: Project) -> None:
    assert on_kafka.run(*START, "--saga-id", "o-1", "--context", '{"token": "bad"}').status == 1
    assert [saga["status"] for saga in on_kafka.run("saga", "list").json] == ["rolled_back"]
    at = ("replay", "time-travel", "o-1", "--at", "step:charge", "--key", "reservation.shelf")
    assert on_kafka.run(*at).json == 7
    run = ("replay", "run", "o-1", "--from-step", "charge", "--override", '{"token": "good"}')
    replayed = on_kafka.run(*run, "--app", "shop:OrderSaga")
    assert (replayed.status, replayed.json["status"]) == (0, "success")
    listed = on_kafka.run("saga", "list").json
    assert {saga["saga_id"] for saga in listed} == {"o-1", replayed.json["new_saga_id"]}
    assert on_kafka.run("projector", "status").status == 2
    assert on_kafka.run("doctor").status == 0


def test_looking_makes_no_tables(on_kafka: Project, postgresql_url: str) -> None:
    on_kafka.run(*START, "--saga-id", "o-1", "--context", '{"token": "bad"}')
    for command in (
        ("saga", "list"),
        ("saga", "show", "o-1"),
        ("replay", "time-travel", "o-1", "--at", "1"),
        ("replay", "plan", "o-1", "--from-step", "charge"),
        ("projector", "status"),
        ("projector", "verify"),
    ):
        given = on_kafka.run(*command, "--store", postgresql_url)
        assert given.status == 0, command
        assert "there is no store postgresql://" in given.stderr
    listed = on_kafka.run("saga", "list", "--store", postgresql_url)
    assert [saga["saga_id"] for saga in listed.json] == ["o-1"]
    checks = on_kafka.run("doctor", "--store", postgresql_url).json
    assert [check["result"] for check in checks if check["check"] == "store"] == ["look"]

    async def tables() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(postgresql_url)
        try:
            found = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            return await connection.fetch(found)
        finally:
            await connection.close()

    assert asyncio.run(tables()) == []


def test_a_projector_beside_it_keeps_the_store(on_servers: Project) -> None:
    on_servers.run(*START, "--saga-id", "o-1", "--context", '{"token": "bad"}')
    behind = on_servers.run("saga", "list")
    assert behind.json == []
    assert "records behind the log: newer changes are missing" in behind.stderr
    assert "is `sagaz-es projector run` running?" in behind.stderr
    assert "the store has no sagas yet" in behind.stderr
    with on_servers.start("projector", "run") as process:
        until(lambda: not sum(p["lag"] for p in on_servers.run("projector", "status").json))
        run = ("replay", "run", "o-1", "--from-step", "charge", "-o", "token=good")
        replayed = on_servers.run(*run, "--app", "shop:OrderSaga")
        assert (replayed.status, replayed.json["status"]) == (0, "success")
        listed = on_servers.run("saga", "list")
        assert {saga["saga_id"] for saga in listed.json} == {"o-1", replayed.json["new_saga_id"]}
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (0, "")
    assert "Warning" not in stderr
    assert on_servers.run("projector", "verify").json["ok"] is True
    assert on_servers.run("doctor").status == 0
    undone = on_servers.run("replay", "undo", replayed.json["replay_id"], "--app", "shop")
    assert (undone.status, undone.stdout) == (3, "")  # it has shipped


def test_a_saga_that_runs_elsewhere_is_cancelled_and_not_replayed(on_servers: Project) -> None:
    start = ("saga", "start", "sleepy", "--saga-id", "z", "--app", "shop")
    with on_servers.start(*start) as process:

        def runs() -> bool:
            given = on_servers.run("saga", "show", "z")
            return given.status == 0 and given.json["current_step"] == "sleep"

        until(runs)
        refused = on_servers.run("replay", "run", "z", "-s", "sleep", "--dry-run")
        assert refused.status == 3
        assert [step["step"] for step in refused.json["plan"]["steps"]] == ["sleep"]
        given = on_servers.run("saga", "cancel", "z", "--reason", "it is late", "--actor", "olga")
        assert (given.status, given.json["saga_id"]) == (0, "z")
        stdout, _ = process.communicate(timeout=30)
    assert (process.returncode, json.loads(stdout)["status"]) == (1, "cancelled")


def up_to_date(project: Project) -> bool:
    given = project.run("projector", "status")
    return given.status == 0 and all(one["lag"] == 0 for one in given.json)


def test_a_projector_whose_database_is_gone_waits_and_ends_well_when_told_to(
    project: Project, postgresql_server: PostgreSQLServer, postgresql_url: str
) -> None:
    assert project.run(*START, "--saga-id", "o-1", "--context", '{"token": "good"}').status == 0
    beside = replace(project, env=dict(project.env) | {"SAGAZ_ES_STORE": postgresql_url})
    with beside.start("projector", "run") as process:
        until(lambda: up_to_date(beside))
        postgresql_server.kill()
        try:
            start = (*START, "--saga-id", "o-2", "--context", '{"token": "good"}')
            assert project.run(*start).status == 0  # the log is there
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            assert any("the projector waits" in line for line in lines)
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
            assert (process.wait(60), "stopped; the next one goes on from here" in rest) == (
                0,
                True,
            )
            assert "Traceback" not in rest
        finally:
            postgresql_server.restart()


def test_a_projector_whose_log_does_not_answer_ends_when_told_to(
    on_servers: Project, kafka_server: KafkaServer
) -> None:
    on_servers.run(*START, "--saga-id", "o-1", "--context", '{"token": "good"}')
    with on_servers.start("projector", "run", code=HASTY) as process:
        until(lambda: up_to_date(on_servers))
        kafka_server.pause()
        try:
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=60)
        finally:
            kafka_server.resume()
    assert process.returncode == 0
    assert "which have not answered within 0.1 s of the stop; the next one goes on" in stderr
    with on_servers.start("projector", "run") as process:
        until(lambda: up_to_date(on_servers))
    assert on_servers.run("projector", "verify").json["ok"] is True


def test_a_projector_and_an_engine_start_while_the_database_is_gone_and_find_it(
    project: Project, postgresql_server: PostgreSQLServer, postgresql_url: str
) -> None:
    beside = replace(project, env=dict(project.env) | {"SAGAZ_ES_STORE": postgresql_url})
    postgresql_server.kill()
    try:
        started = beside.run(*START, "--saga-id", "o-1", "--context", '{"token": "good"}')
        assert (started.status, started.json["status"]) == (0, "completed")
        with beside.start("projector", "run") as process:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            assert any("the projector waits" in line for line in lines)
            postgresql_server.restart()
            until(lambda: up_to_date(beside))
            process.send_signal(signal.SIGTERM)
            assert (process.wait(60), "Traceback" in process.stderr.read()) == (0, False)
    finally:
        postgresql_server.ensure_running()
    assert beside.run("projector", "verify").json["ok"] is True


def test_servers_that_are_not_there_are_named_within_ten_seconds_without_their_password(
    project: Project,
) -> None:
    port = free_port()
    assert project.run(*START, "--context", '{"token": "good"}').status == 0
    for place in (
        ("--log", f"kafka://ann:s3cret@127.0.0.1:{port}/shop"),
        ("--store", f"postgresql://ann:s3cret@127.0.0.1:{port}/shop"),
    ):
        given = project.run("projector", "status", *place)
        assert (given.status, given.stdout) == (1, ""), place
        assert f"127.0.0.1:{port}" in given.error
        assert "cannot be reached" in given.error
        assert "s3cret" not in given.stderr
    assert Deadlines().open_s < 9


def test_a_store_that_lets_nobody_in_is_told_with_what_to_do_and_the_log_answers(
    project: Project, postgresql_url: str
) -> None:
    assert project.run(*START, "--saga-id", "o-1", "--context", '{"token": "good"}').status == 0
    for url, hint in (
        (f"{postgresql_url}-not", "create that database, or name another one in its URL"),
        (postgresql_url.replace("postgres@", "nobody:s3cret@"), "check user and password in its"),
    ):
        listed = project.run("saga", "list", "--store", url)
        assert [saga["saga_id"] for saga in listed.json] == ["o-1"]
        assert f"{hint}" in listed.stderr
        assert ". The log answers alone, from its beginning" in listed.stderr
        given = project.run("projector", "status", "--store", url)
        assert (given.status, given.stdout) == (1, "")
        assert hint in given.error
        assert "Traceback" not in given.stderr + listed.stderr
        assert "s3cret" not in given.stderr + listed.stderr
