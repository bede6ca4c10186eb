"""`sagaz-es engine run`: usage, log lines, resources and health, on one SQLite file."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from sagaz_es import Saga, SagaResult, action, connect

from .conftest import APP, Project, Shop

RUN = ("engine", "run", "--app", "shop", "--log-format", "json")
PROBED = (*RUN, "--health-port", "0")

WIRED = """
    import asyncio, logging, warnings
    from contextlib import asynccontextmanager
    from sagaz_es import Saga, action

    print("this module is imported")
    logging.basicConfig(format="not like this: %(message)s")

    class Wired(Saga):
        saga_name = "wired"

        @action("ask")
        async def ask(self, ctx):
            logging.getLogger("shop").info("asking %s", ctx.resources["pool"])
            return {"answer": ctx.resources["pool"]}

        @action("tell", depends_on=["ask"])
        def tell(self, ctx):  # in a thread
            logging.getLogger("shop").warning("telling\\nin two lines")
            warnings.warn("odd")
            print("step prints")

    plain = {"pool": "a mapping"}

    def made():
        return {"pool": "a function's"}

    async def awaited():
        return {"pool": "a coroutine's"}

    @asynccontextmanager
    async def opened():
        yield {"pool": "a context's"}
        print("the pool is closed")

    number = 7
"""


@pytest.fixture
def wired(project: Project) -> Project:
    """The project with a module whose saga needs resources."""
    (project.path / "wiring.py").write_text(textwrap.dedent(WIRED))
    return project


class Lines:
    """What a worker logs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.stream = process.stderr
        self.seen: list[dict[str, Any]] = []

    def until(self, start: str) -> dict[str, Any]:
        """The next line whose message begins so."""
        for text in self.stream:
            self.seen.append(json.loads(text))
            if self.seen[-1]["message"].startswith(start):
                return self.seen[-1]
        raise AssertionError(f"it ended before it said {start!r}: {self.seen}")

    def url(self) -> str:
        """Where the worker answers probes."""
        message: str = self.until("health: ")["message"]
        return message.split()[1].removesuffix("/healthz")


def probe(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def stopped(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Status and stdout of a worker that was told to stop."""
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=30)
    return process.returncode, stdout


def test_it_serves_until_sigterm_and_its_probes_say_so(project: Project) -> None:
    with project.start(*PROBED) as process:
        lines = Lines(process)
        url = lines.url()
        served = lines.until("serving")["message"]
        assert served == "serving sqlite:///sagaz-es.db; partitions: 0, 1, 2, 3, 4, 5, 6, 7"
        health = {
            "why_not": None,
            "partitions": [0, 1, 2, 3, 4, 5, 6, 7],
            "sagas_in_flight": 0,
            "starts_waiting": 0,
            "takeovers_waiting": 0,
            "sagas_unfinished": 0,
            "sagas_waiting_for_person": 0,
            "oldest_pending_append_s": None,
            "projector_lag": 0,
        }
        while probe(f"{url}/healthz")[1]["projector_lag"]:
            pass  # it projects the log's own first record
        assert probe(f"{url}/healthz") == (200, {"status": "ok"} | health)
        assert probe(f"{url}/readyz") == (200, {"status": "ready"} | health)
        assert stopped(process) == (0, "")


@pytest.fixture
def terminal() -> Iterator[None]:
    """As started in a terminal: a run of the tests under `nohup` lets SIGHUP be ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_that_closes_stops_it_as_sigterm_does(project: Project) -> None:
    with project.start(*PROBED) as process:
        lines = Lines(process)
        lines.until("serving")
        process.send_signal(signal.SIGHUP)
        assert lines.until("stopped")
        assert process.wait(30) == 0


def test_before_it_has_joined_it_is_alive_and_not_ready(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a broker that never answers
        log = f"kafka://127.0.0.1:{silent.getsockname()[1]}/shop"
        with project.start(*PROBED, "--log", log) as process:
            url = Lines(process).url()
            assert probe(f"{url}/healthz")[0] == 200
            status, body = probe(f"{url}/readyz")
            assert (status, body["status"], body["partitions"]) == (503, "not ready", [])
            assert stopped(process) == (0, "")


def test_a_log_that_cannot_be_reached_is_status_1_and_a_log_line(project: Project) -> None:
    given = project.run(*RUN, "--log", "kafka://127.0.0.1:1/shop")
    assert (given.status, given.stdout) == (1, "")
    line = json.loads(given.error)
    assert (line["level"], line["logger"]) == ("critical", "sagaz_es.worker")
    assert "127.0.0.1:1 cannot be reached" in line["message"]


def test_a_port_that_is_taken_is_status_1_and_says_so(shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = shop.run("engine", "run", "--app", APP, "--health-port", port)
    assert given.status == 1
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in given.error


def test_probes_without_their_packages_name_the_extra(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "sagaz_es_cli.health", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    given = shop.run("engine", "run", "--app", APP, "--health-port", "0")
    assert given.status == 1
    assert "'uvicorn'; install it with: pip install \"sagaz-es[worker]\"" in given.error


def test_a_worker_without_code_is_wrong_usage(shop: Shop) -> None:
    given = shop.run("engine", "run")
    assert given.status == 2
    assert "engine run runs the code of the saga: name it with --app" in given.error


SLOW = """
    import threading
    from sagaz_es import Saga, action

    class Slow(Saga):
        saga_name = "slow"

        @action("any", timeout_seconds=3600)
        def any(self, ctx):  # in a thread, which nobody can stop
            print("begun", flush=True)
            threading.Event().wait()
"""

RESISTS = """
    import asyncio
    from sagaz_es import Saga, action

    class Slow(Saga):
        saga_name = "slow"

        @action("any", timeout_seconds=3600)
        async def any(self, ctx):
            print("begun", flush=True)
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass
"""


@pytest.mark.parametrize(
    ("code", "how"), [(SLOW, "in threads"), (RESISTS, "although they were cancelled")]
)
def test_it_ends_at_the_drain_limit_though_a_step_does_not(
    project: Project, code: str, how: str
) -> None:
    (project.path / "slow.py").write_text(textwrap.dedent(code))
    run = ("engine", "run", "--app", "slow", "--log-format", "json", "--drain-seconds", "0.1")
    with project.start(*run) as process:
        lines = Lines(process)
        lines.until("serving")
        begin_elsewhere(project, "slow", "s-1")
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        lines.until("stopped")
        told = lines.until(f"ending while steps still run {how}")
        assert (told["level"], "s-1" in told["message"]) == ("warning", True)
        assert process.wait(60) == 0
    shown = project.run("saga", "show", "s-1").json
    assert shown["status"] == "executing", "the next worker carries it on"


EXITS = """
    import asyncio, sys
    from sagaz_es import Saga, action

    class Exits(Saga):
        saga_name = "exits"

        @action("left", max_retries=0)
        async def left(self, ctx):
            self.task = asyncio.get_running_loop().create_task(self.end())
            await asyncio.sleep(0.05)

        @action("gathered", max_retries=0)
        async def gathered(self, ctx):
            await asyncio.gather(self.end(), asyncio.sleep(0))

        async def end(self):
            sys.exit(3)
"""


def test_a_task_of_a_step_that_exits_does_not_end_the_worker(project: Project) -> None:
    (project.path / "exits.py").write_text(textwrap.dedent(EXITS))
    with project.start("engine", "run", "--app", "exits", "--log-format", "json") as process:
        Lines(process).until("serving")
        result = elsewhere(project, "exits", "e-1")
        assert result.steps == {"left": "completed", "gathered": "failed"}
        assert "RuntimeError: SystemExit(3) in a task of saga 'e-1'" in str(result.error)
        assert elsewhere(project, "exits", "e-2").status == "rolled_back", "it is still there"
        assert stopped(process)[0] == 0


WIDE = """
    import os, threading
    from sagaz_es import Saga

    WIDTH = min(32, (os.cpu_count() or 1) + 4) + 1  # one more than there are by default
    ALL = threading.Barrier(WIDTH)

    def wide(name):
        saga = Saga(name)
        for number in range(WIDTH):
            saga.add_step(
                f"s{number}", lambda ctx: ALL.wait(20) and None, depends_on=[], max_retries=0
            )
        return saga

    SAGAS = {"wide": wide}
"""


def test_it_has_as_many_threads_as_it_is_told(project: Project) -> None:
    (project.path / "wide.py").write_text(textwrap.dedent(WIDE))
    run = ("engine", "run", "--app", "wide:SAGAS", "--threads", "64", "--log-format", "json")
    with project.start(*run) as process:
        Lines(process).until("serving")
        assert elsewhere(project, "wide", "w-1").status == "completed"
        assert stopped(process)[0] == 0


# --- what it logs ---------------------------------------------------------------------------------


def elsewhere(project: Project, name: str, saga_id: str) -> SagaResult:
    """Have a saga run by whoever serves the project's log; this process joins nothing."""
    result = asyncio.run(_elsewhere(project, name, saga_id, waits=True))
    assert result is not None
    return result


def begin_elsewhere(project: Project, name: str, saga_id: str) -> None:
    """The same, without waiting for its end."""
    asyncio.run(_elsewhere(project, name, saga_id, waits=False))


async def _elsewhere(
    project: Project, name: str, saga_id: str, *, waits: bool
) -> SagaResult | None:
    class Asked(Saga):
        saga_name = name

        @action("any")
        async def any(self, ctx: Any) -> None: ...

    engine = connect(f"sqlite:///{project.path}/sagaz-es.db", sagas=[Asked])
    await engine.open(join=False)
    try:
        handle = await engine.start(Asked, saga_id=saga_id)
        return await handle.result(30) if waits else None
    finally:
        await engine.close()


def test_lines_are_json_and_name_the_saga_whose_code_speaks(wired: Project) -> None:
    run = ("engine", "run", "--app", "wiring", "--resources", "wiring:plain")
    with wired.start(*run, "--log-format", "json") as process:
        lines = Lines(process)
        lines.until("serving")
        assert elsewhere(wired, "wired", "w-1").success
        asking = lines.until("asking")
        telling = lines.until("telling")
        odd = lines.until("")
        assert stopped(process) == (0, "this module is imported\nstep prints\n")
    assert asking.pop("time").endswith("Z")
    assert asking == {
        "level": "info",
        "logger": "shop",
        "message": "asking a mapping",
        "saga_id": "w-1",
    }
    assert (telling["message"], telling["saga_id"]) == ("telling\nin two lines", "w-1")
    assert (odd["level"], odd["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: odd" in odd["message"]


def test_lines_for_people_say_the_same(wired: Project) -> None:
    run = ("engine", "run", "--app", "wiring", "--resources", "wiring:plain")
    with wired.start(*run) as process:
        assert process.stderr is not None
        assert " info sagaz_es.worker: serving sqlite" in process.stderr.readline()
        assert elsewhere(wired, "wired", "w-1").success
        assert process.stderr.readline().endswith(" info shop [w-1]: asking a mapping\n")
        assert stopped(process)[0] == 0


def test_each_saga_without_code_is_told_of_once(wired: Project) -> None:
    start = ("saga", "start", "sleepy", "--saga-id", "s-1", "--app", "shop")
    with wired.start(*start) as first:
        state = ("saga", "show", "s-1")
        while (shown := wired.run(*state)).status or shown.json["current_step"] != "sleep":
            pass
        first.send_signal(signal.SIGKILL)
    with wired.start("engine", "run", "--app", "wiring", "--log-format", "json") as process:
        lines = Lines(process)
        told = lines.until("saga s-1 stays unfinished")
        assert (told["saga_id"], "'sleepy'" in told["message"]) == ("s-1", True)
        process.send_signal(signal.SIGTERM)
        lines.until("stopped")
    assert sum("s-1" in line["message"] for line in lines.seen) == 1


# --- resources ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("plain", "a mapping"),
        ("made", "a function's"),
        ("awaited", "a coroutine's"),
        ("opened", "a context's"),
    ],
)
def test_resources_reach_the_steps(wired: Project, name: str, answer: str) -> None:
    start = ("saga", "start", "wired", "--app", "wiring")
    given = wired.run(*start, "--resources", f"wiring:{name}")
    assert (given.status, given.json["context"]) == (0, {"answer": answer})
    assert ("the pool is closed" in given.stderr) is (name == "opened")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("wiring:number", "it gives a int, not a mapping of names to objects"),
        ("wiring:gone", "module 'wiring' has no 'gone'"),
        ("wiring", "write it as module:name"),
        ("nowhere:x", "there is no module 'nowhere'"),
    ],
)
def test_resources_that_cannot_be_had_are_wrong_usage(wired: Project, name: str, why: str) -> None:
    given = wired.run("engine", "run", "--app", "wiring", "--resources", name)
    assert given.status == 2
    assert f"--resources {name}: {why}" in given.error


# --- started, and begun by nobody -----------------------------------------------------------------


def test_a_start_that_no_engine_begins_says_so_and_is_done_later(wired: Project) -> None:
    log = ("--log", f"sqlite:///{wired.path}/sagaz-es.db?group=g")
    saga_id = "order-1"
    start = ("saga", "start", "order", "--saga-id", saga_id, "--context", '{"token": "good"}')
    with wired.start("engine", "run", "--app", "wiring", *log) as other:
        assert other.stderr is not None
        assert "serving sqlite" in other.stderr.readline()
        given = wired.run(*start, *log, "--timeout", "0.2")
        assert (given.status, given.stdout) == (1, "")
        assert "saga 'order-1' has not begun within 0.2 s: its start stands in the log" in (
            given.stderr
        )
        assert "Asking again with the same saga_id is safe" in given.stderr
        assert stopped(other)[0] == 0
    with wired.start("engine", "run", "--app", "shop", *log) as worker:
        assert worker.stderr is not None
        assert "serving sqlite" in worker.stderr.readline()
        again = wired.run(*start, *log)
        assert (again.status, again.json["status"]) == (0, "completed")
        assert stopped(worker)[0] == 0
