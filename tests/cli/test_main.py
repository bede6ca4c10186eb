"""Every command: exit statuses, what goes where, interruptions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sagaz_es import errors
from sagaz_es_cli import exits
from sagaz_es_cli.main import main
from sagaz_es_cli.options import Command

from .conftest import Project, Shop


def commands(group: click.Group = main, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_common_options_after_its_name(name: str) -> None:
    command = COMMANDS[name]
    assert isinstance(command, Command)
    options = {option for param in command.params for option in param.opts}
    assert {"--log", "--store", "--storage", "--app", "--format"} <= options


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples_and_exit_statuses(shop: Shop, name: str) -> None:
    given = shop.run(*name.split(), "--help")
    assert given.status == 0
    assert f"sagaz-es {name}" in given.stdout.split("Examples:")[1]
    assert "Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 not found" in given.stdout
    assert max(len(line) for line in given.stdout.splitlines()) <= 100


def test_the_version_is_that_of_the_package(shop: Shop) -> None:
    given = shop.run("--version")
    assert (given.status, given.stdout) == (0, "sagaz-es, version 0.1.0\n")


@pytest.mark.parametrize(
    "arguments", [("nothing",), ("saga",), ("saga", "show"), ("saga", "list", "--nothing")]
)
def test_wrong_usage_is_status_2_on_stderr(shop: Shop, arguments: tuple[str, ...]) -> None:
    given = shop.run(*arguments)
    assert (given.status, given.stdout) == (2, "")
    assert given.stderr.startswith("Usage: sagaz-es")


# --- which error means what -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.SagaNotFound("s"), 4),
        (errors.SnapshotNotFoundError("s", "charge"), 4),
        (errors.StateNotFound("s", "then", "later"), 4),
        (errors.PlanBlocked("s", ("ship",)), 3),
        (errors.PlanOutdated("s", "it moved"), 3),
        (errors.SagaStillRunning("s", "executing"), 3),
        (errors.PivotPassed("s", "ship"), 3),
        (errors.PivotUndecided("s", "ship"), 3),
        (errors.UndoRefused("r", "no"), 3),
        (errors.DefinitionChanged("s", "order", ()), 3),
        (errors.InvalidOverride("x", "column 1"), 2),
        (errors.ConfigurationError("no"), 2),
        (errors.UnknownScheme("log", "x", ()), 2),
        (errors.ReplayError("no"), 1),
        (errors.Unreachable("Kafka", "host:1"), 1),
        (errors.UnknownSagaName("order"), 4),
        (TimeoutError("no engine answered"), 1),
        (RuntimeError("a bug"), 1),
    ],
)
def test_the_class_of_an_error_decides_the_status(error: Exception, status: int) -> None:
    assert exits.status_of(error) == status
    group = BaseExceptionGroup("tasks", [RuntimeError("x"), ExceptionGroup("more", [error])])
    assert exits.status_of(exits.root_of(group)) in (status, 1)


@pytest.mark.parametrize(
    ("url", "status", "sentence"),
    [
        (
            "redis://host",
            2,
            "unknown log URL scheme 'redis'; known: memory://, sqlite://, kafka://",
        ),
        ("orders.db", 2, "log URL: write scheme://…, with one of memory, sqlite, kafka"),
        ("kafka://me:secret@host", 2, "log URL kafka://host: write kafka://host:port[,host:port]/"),
        ("sqlite:///no/such/x.db", 1, "the directory"),
    ],
)
def test_a_log_that_cannot_be_used(shop: Shop, url: str, status: int, sentence: str) -> None:
    given = shop.run("saga", "list", "--log", url)
    assert (given.status, given.stdout) == (status, "")
    assert sentence in given.error
    assert "secret" not in given.stderr
    assert "Traceback" not in given.stderr


def test_a_bug_is_one_sentence_and_a_traceback_on_demand(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("sagaz_es_cli.saga.reading", broken)
    given = shop.run("saga", "list")
    sentence = "Error: unexpected ZeroDivisionError: by zero (SAGAZ_ES_DEBUG=1 shows where)"
    assert (given.status, given.stdout, given.stderr) == (1, "", f"{sentence}\n")
    shop.env["SAGAZ_ES_DEBUG"] = "1"
    told = shop.run("saga", "list")
    assert told.stderr.startswith("Traceback") and told.error == sentence


def test_what_a_saga_logs_and_warns_of_is_a_line_each(project: Project) -> None:
    shutil.copy(Path(__file__).with_name("noisy.py"), project.path)
    given = project.run("saga", "start", "noisy", "--app", "noisy")
    assert given.json["status"] == "completed"
    assert given.stderr == (
        "Error: it is loud: unexpected ValueError: 7 (SAGAZ_ES_DEBUG=1 shows where)\n"
        "Warning: it is old\n"
    )


# --- the embedded log -----------------------------------------------------------------------------


def test_log_and_store_are_one_file_by_default(project: Project) -> None:
    start = ("saga", "start", "order", "--saga-id", "o-1", "--app", "shop")
    assert project.run(*start, "--context", '{"token": "good"}').status == 0
    assert [saga["saga_id"] for saga in project.run("saga", "list").json] == ["o-1"]
    assert (project.path / "sagaz-es.db").exists()
    assert project.run("saga", "show", "o-1", "--log", "sqlite:///sagaz-es.db").status == 0


def test_a_replay_works_in_a_fresh_process(project: Project) -> None:
    store = ("--storage", "sqlite:///orders.db")  # named alone it is the log, too
    start = ("saga", "start", "order", "--saga-id", "o-1", "--app", "shop", *store)
    assert project.run(*start, "--context", '{"token": "bad"}').status == 1
    run = ("replay", "run", "o-1", "--from-step", "charge", "--override", '{"token": "good"}')
    given = project.run(*run, *store, SAGAZ_ES_APP="shop:OrderSaga")
    assert (given.status, given.json["status"]) == (0, "success")
    assert project.run("saga", "show", given.json["new_saga_id"], *store).status == 0
    assert not (project.path / "sagaz-es.db").exists()


def test_looking_makes_no_file(project: Project) -> None:
    listed = project.run("saga", "list")
    assert (listed.status, listed.json) == (0, [])
    assert "there is no log file" in listed.stderr
    assert project.run("saga", "show", "o-1").status == 4
    assert project.run("replay", "plan", "o-1", "-s", "charge").status == 4
    assert [path.name for path in project.path.iterdir()] == ["shop.py"]


def test_list_is_right_with_a_store_that_has_everything_to_catch_up(project: Project) -> None:
    start = ("saga", "start", "order", "--saga-id", "o-1", "--app", "shop")
    project.run(*start, "--context", '{"token": "good"}')
    behind = ("--log", "sqlite:///sagaz-es.db", "--store", "sqlite:///new.db")
    assert [saga["status"] for saga in project.run("saga", "list", *behind).json] == ["completed"]


def test_only_sagas_of_the_name_asked_for_are_taken_over(project: Project) -> None:
    with project.start("saga", "start", "sleepy", "--saga-id", "z", "--app", "shop"):
        _until(lambda: _status(project, "z") == "executing")
    before = time.monotonic()
    start = ("saga", "start", "order", "--context", '{"token": "good"}', "--app", "shop")
    assert project.run(*start).status == 0
    assert time.monotonic() - before < 4  # it did not wait for a saga that sleeps for an hour
    assert project.run("saga", "show", "z").json["sequence"] == 2


# --- interruptions --------------------------------------------------------------------------------


def test_an_interrupted_start_says_that_the_saga_goes_on(project: Project) -> None:
    with project.start("saga", "start", "sleepy", "--saga-id", "z", "--app", "shop") as process:
        _until(lambda: _status(project, "z") == "executing")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines() == [
        "saga 'z' is unfinished: an engine of this log goes on with it",
        "waiting up to 5 s for the step that runs; once more to stop at once",
    ]
    assert _status(project, "z") == "executing"


def test_the_second_interruption_stops_at_once(project: Project) -> None:
    with project.start("saga", "start", "sleepy", "--saga-id", "z", "--app", "shop") as process:
        _until(lambda: _status(project, "z") == "executing")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("saga 'z' is unfinished")
        before = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert (process.returncode, time.monotonic() - before < 3) == (143, True)
    assert _status(project, "z") == "executing"


def test_a_reader_that_has_gone_is_no_error(project: Project) -> None:
    project.run("saga", "start", "order", "--context", '{"token": "good"}', "--app", "shop")
    reader, writer = os.pipe()
    os.close(reader)
    given = project.run("saga", "list", stdout=writer)
    os.close(writer)
    assert (given.status, given.stderr) == (128 + signal.SIGPIPE, "")


def test_a_full_disk_is_one_sentence(project: Project) -> None:
    project.run("saga", "start", "order", "--context", '{"token": "good"}', "--app", "shop")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        given = project.run("saga", "list", stdout=full)
    assert (given.status, given.stderr) == (1, "Error: [Errno 28] No space left on device\n")


def test_the_installed_command_is_the_same(project: Project) -> None:
    command = Path(sys.executable).with_name("sagaz-es")
    process = subprocess.run(
        [command, "saga", "list"], cwd=project.path, env=dict(project.env), capture_output=True
    )
    assert (process.returncode, json.loads(process.stdout)) == (0, [])


def test_the_shell_can_complete_commands(project: Project) -> None:
    given = project.run(
        _SAGAZ_ES_COMPLETE="bash_complete", COMP_WORDS="sagaz-es replay ", COMP_CWORD="2"
    )
    assert "plain,time-travel" in given.stdout


def _status(project: Project, saga_id: str) -> str | None:
    given = project.run("saga", "show", saga_id)
    return given.json["status"] if given.status == 0 else None


def _until(holds: object, seconds: float = 20.0) -> None:
    assert callable(holds)
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
