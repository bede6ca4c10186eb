"""kill -9 of a real process in the middle of its sagas, and what another one makes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagaz_es import SagaStatus, connect
from sagaz_es.connect import open_log
from tests.services.takeover_worker import Order

ROOT = Path(__file__).parents[2]
ORDERS = 12


class Ledger:
    """What the steps did, as they wrote it down themselves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, what: str) -> list[list[str]]:
        if not self.path.exists():
            return []
        rows = [line.split("\t") for line in self.path.read_text().splitlines()]
        return [row for row in rows if row[0] == what]

    def count(self, what: str) -> Counter[str]:
        return Counter(row[1] for row in self.rows(what))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture(params=["sqlite", "kafka"])
def log_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    namespace = request.getfixturevalue("kafka_namespace")
    bootstrap = request.getfixturevalue("kafka_bootstrap")
    return f"kafka://{bootstrap}/{namespace}?partitions=4"


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def worker(
    processes: list[subprocess.Popen[str]],
    url: str,
    ledger: Ledger,
    orders: int,
    seconds: float,
    pause: float = 0.0,
    **more: str,
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.services.takeover_worker", url, str(orders)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "LEDGER": str(ledger.path),
            "CHARGE_SECONDS": str(seconds),
            "START_PAUSE_SECONDS": str(pause),
            **more,
        },
    )
    processes.append(process)
    return process


async def said(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while True:
            line = await asyncio.to_thread(process.stdout.readline)
            assert line, f"the process ended before it said {word!r}"
            if line.startswith(word):
                return line


async def until(ledger: Ledger, what: str, orders: int) -> None:
    async with asyncio.timeout(60):
        while len(ledger.count(what)) < orders:  # noqa: ASYNC110 - a file of other processes
            await asyncio.sleep(0.05)


async def test_after_kill_9_another_process_finishes_every_saga_and_repeats_no_completed_step(
    log_url: str, ledger: Ledger, processes: list[subprocess.Popen[str]]
) -> None:
    first = worker(processes, log_url, ledger, ORDERS, 3600)
    await said(first, "started")
    await until(ledger, "charge-begins", ORDERS)
    first.send_signal(signal.SIGKILL)
    first.wait()

    second = worker(processes, log_url, ledger, 0, 0)
    await until(ledger, "ship", ORDERS)
    async with connect(open_log(log_url), sagas=[Order]) as engine:
        for number in range(ORDERS):
            handle = await engine.handle(f"o-{number}")
            assert (await handle.result(60)).status is SagaStatus.COMPLETED
    assert second.poll() is None

    once = Counter({f"o-{number}": 1 for number in range(ORDERS)})
    assert ledger.count("reserve") == once  # completed before the kill: not run again
    assert ledger.count("ship") == once
    assert ledger.count("charge") == once
    begun = ledger.rows("charge-begins")
    assert Counter(row[1] for row in begun) == Counter({order: 2 for order in once})
    keys = {row[1]: set[str]() for row in begun}
    for row in begun:
        keys[row[1]].add(row[2])
    assert keys == {order: {f"{order}/charge"} for order in once}  # the same key in both attempts
    assert sorted(row[3] for row in begun) == ["1"] * ORDERS + ["2"] * ORDERS


async def test_starting_again_after_a_kill_is_the_same_saga(
    log_url: str, ledger: Ledger, processes: list[subprocess.Popen[str]]
) -> None:
    first = worker(processes, log_url, ledger, 3, 3600)
    await until(ledger, "charge-begins", 3)
    first.send_signal(signal.SIGKILL)
    first.wait()

    second = worker(processes, log_url, ledger, 3, 0)  # starts the same ids
    await said(second, "done")

    once = Counter({"o-0": 1, "o-1": 1, "o-2": 1})
    assert ledger.count("reserve") == once
    assert ledger.count("charge") == once
    assert ledger.count("ship") == once


async def test_scaling_out_and_a_clean_stop_run_no_step_twice(
    log_url: str, ledger: Ledger, processes: list[subprocess.Popen[str]]
) -> None:
    enough = ledger.path.with_name("enough")
    first = worker(processes, log_url, ledger, 5000, 0.2, pause=0.02, LOAD_UNTIL=str(enough))
    await until(ledger, "charge-begins", 20)
    second = worker(processes, log_url, ledger, 0, 0.2)
    await said(second, "ready")
    async with asyncio.timeout(60):
        while (  # noqa: ASYNC110 - a file of other processes
            str(second.pid) not in {row[4] for row in ledger.rows("charge-begins")}
        ):
            await asyncio.sleep(0.05)
    second.send_signal(signal.SIGINT)
    await until(ledger, "charge-begins", len(ledger.count("charge-begins")) + 20)
    enough.touch()
    orders = int((await said(first, "started")).split()[1])
    await said(first, "done")
    await until(ledger, "ship", orders)

    once = Counter({f"o-{number}": 1 for number in range(orders)})
    for what in ("reserve", "charge-begins", "charge", "ship"):
        assert ledger.count(what) == once
    assert len({row[4] for row in ledger.rows("charge")}) == 2  # both did their share
