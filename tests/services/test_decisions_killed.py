"""kill -9 between the fact that answers a request and everything that follows from it: it counts
once, and who asks again with the same id gets the same answer."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from sagaz_es import Engine, EngineConfig, connect
from sagaz_es.connect import open_log
from sagaz_es.core import events as e
from sagaz_es.core.state import SagaState
from tests.services.decisions_worker import SAGAS
from tests.services.running import Processes

PARTITIONS = 1
REQUEST = "r-1"
Ask = Callable[[Engine, str], Awaitable[object]]


class Case(NamedTuple):
    saga: str
    waits: Callable[[SagaState], bool]  # for a person, and again after the answer
    ask: Ask
    before: dict[str, int]  # what happened in the world until somebody is asked
    after: dict[str, int]  # and in all


def _decide(engine: Engine, saga_id: str) -> Awaitable[object]:
    return engine.decide_recovery(saga_id, "ship", "retry", actor="olga", request_id=REQUEST)


def _report(engine: Engine, saga_id: str) -> Awaitable[object]:
    return engine.resolve_outcome(
        saga_id,
        "wire",
        happened=True,
        result={"reference": "r-7"},
        actor="olga",
        request_id=REQUEST,
    )


def _retry(engine: Engine, saga_id: str) -> Awaitable[object]:
    return engine.retry_compensation(saga_id, "book", reason="it is up", request_id=REQUEST)


def _skip(engine: Engine, saga_id: str) -> Awaitable[object]:
    return engine.skip_compensation(saga_id, "book", reason="we pay", request_id=REQUEST)


CASES = {
    "recovery": Case(
        "parcel",
        lambda state: state.status == "forward_recovery",
        _decide,
        {"charge": 1, "ship": 1},
        {"charge": 1, "ship": 2},
    ),
    "outcome": Case(
        "transfer",
        lambda state: state.step("wire").status in ("outcome_unknown", "completed"),
        _report,
        {"wire": 1},
        {"wire": 1, "book r-7": 1},
    ),
    "retry": Case(
        "trip",
        lambda state: state.status == "failed",
        _retry,
        {"book": 1, "unbook": 1},
        {"book": 1, "unbook": 2},
    ),
    "skip": Case(
        "trip",
        lambda state: state.status == "failed",
        _skip,
        {"book": 1, "unbook": 1},
        {"book": 1, "unbook": 1},
    ),
}


Worker = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def worker(processes: Processes, log_url: str, tmp_path: Path) -> Worker:
    ledger = str(tmp_path / "ledger")
    return lambda request_id: processes.start(
        "decisions_worker", log_url, request_id, LEDGER=ledger
    )


@asynccontextmanager
async def asker(url: str) -> AsyncIterator[Engine]:
    """An engine that serves nothing: what it asks, the worker answers."""
    engine = connect(open_log(url), sagas=SAGAS, config=EngineConfig(request_seconds=15))
    await engine.open(join=False)
    try:
        yield engine
    finally:
        await engine.close()


async def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert (await asyncio.to_thread(process.stdout.readline)).startswith("ready")


def world(tmp_path: Path, saga_id: str) -> Counter[str]:
    """What happened to one saga, by the ledger."""
    path = tmp_path / "ledger"
    rows = [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []
    return Counter(what for what, whose in rows if whose == saga_id)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_decision_whose_writer_is_killed_counts_once(
    case: Case, log_url: str, worker: Worker, tmp_path: Path
) -> None:
    first = worker(REQUEST)
    await ready(first)
    async with asker(log_url) as engine:
        await engine.start(case.saga, saga_id="s-1")
        async with asyncio.timeout(20):
            while (  # noqa: ASYNC110 - another process
                not case.waits(await engine.current("s-1")) or world(tmp_path, "s-1") != case.before
            ):
                await asyncio.sleep(0.05)
        asked = asyncio.ensure_future(case.ask(engine, "s-1"))
        assert await asyncio.to_thread(first.wait, 20) == -signal.SIGKILL
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            await asked

        second = worker("")
        await ready(second)
        async with asyncio.timeout(20):
            while (  # noqa: ASYNC110
                not case.waits(await engine.current("s-1")) or world(tmp_path, "s-1") != case.after
            ):
                await asyncio.sleep(0.05)
        async with asyncio.timeout(20):
            await case.ask(engine, "s-1")  # the same answer: it stands
            await engine.start(case.saga, saga_id="s-2")  # served after what was found in the log
            while world(tmp_path, "s-2") != case.before:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert world(tmp_path, "s-1") == case.after
        entries = [record.entry for record in await engine.log.read_saga("s-1")]
    answers = [
        type(entry).__name__
        for entry in entries
        if (isinstance(entry, e.RequestRefused) and entry.request_id == REQUEST)
        or (isinstance(entry, e.Event) and e.request_of(entry.fact) == REQUEST)
    ]
    assert answers == ["Event"]
