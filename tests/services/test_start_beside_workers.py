"""`sagaz-es saga start` where workers serve the log, and where none does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter

from sagaz_es.connect import open_log
from sagaz_es.core import events as e
from tests.services.running import APP, ROOT, Ledger, Workers, until
from tests.services.test_worker import all_completed, order


def command(log: str, ledger: Ledger, *more: str) -> subprocess.Popen[str]:
    start = ("saga", "start", "order", "--log", log, "--context", '{"order": "mine"}', *more)
    return subprocess.Popen(
        [sys.executable, "-m", "sagaz_es_cli", *start],
        cwd=ROOT,
        env={**os.environ, "LEDGER": str(ledger.path), "CHARGE_SECONDS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def told(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    async with asyncio.timeout(60):
        out, err = await asyncio.to_thread(process.communicate)
    return process.returncode, out, err


async def facts(url: str, kind: type) -> int:
    """How many facts of this kind stand in the log."""
    log = open_log(url)
    await log.open()
    try:
        found = 0
        for partition in range(log.partitions):
            offset, end = 0, (await log.bounds(partition)).end
            while offset < end:
                chunk = await log.read(partition, offset, wait_s=1.0)
                entries = [record.entry for record in chunk.records]
                found += sum(isinstance(x, e.Event) and type(x.fact) is kind for x in entries)
                offset = chunk.next_offset
        return found
    finally:
        await log.close()


async def test_where_workers_serve_the_log_one_of_them_runs_it_and_keeps_its_partitions(
    workers: Workers, ledger: Ledger
) -> None:
    worker = workers.start(2.0)
    await worker.ready()
    await order(workers.log, 8)
    await until(ledger, "charge-begins", 8)  # joining now would take some of them away

    status, out, err = await told(command(workers.log, ledger))
    assert status == 0, err
    assert "1 engine serves this log: the saga runs there" in err
    assert json.loads(out)["status"] == "completed"
    assert json.loads(out)["context"]["payment"] == "p-mine"

    await all_completed(workers.log, 8)
    orders = Counter({f"o-{n}": 1 for n in range(8)} | {"mine": 1})
    for step in ("reserve", "charge-begins", "charge", "ship"):
        assert ledger.count(step) == orders
        assert {row[4] for row in ledger.rows(step)} == {str(worker.process.pid)}
    assert await facts(workers.log, e.SagaReleased) == 0
    assert await facts(workers.log, e.SagaClaimed) == 0


async def test_where_nobody_serves_the_log_the_command_runs_it(
    workers: Workers, ledger: Ledger
) -> None:
    worker = workers.start(0)
    await worker.ready()
    worker.process.send_signal(signal.SIGTERM)
    assert await worker.ended() == 0

    status, _, err = await told(command(workers.log, ledger))
    assert status == 2
    assert "no engine serves the log" in err
    assert "--app" in err
    assert ledger.count("reserve") == Counter()

    process = command(workers.log, ledger, "--app", APP)
    assert (await told(process))[0] == 0
    for step in ("reserve", "charge", "ship"):
        assert [row[4] for row in ledger.rows(step)] == [str(process.pid)]


async def test_when_the_last_worker_dies_a_command_that_has_the_code_goes_on_with_the_saga(
    workers: Workers, ledger: Ledger
) -> None:
    worker = workers.start(3600)
    await worker.ready()
    process = command(workers.log, ledger, "--app", APP)
    await until(ledger, "charge-begins", 1)
    worker.process.kill()

    status, out, err = await told(process)
    assert status == 0, err
    assert "no engine serves the log any more" in err
    assert json.loads(out)["status"] == "completed"
    assert ledger.count("reserve") == Counter({"mine": 1})
    assert [row[4] for row in ledger.rows("ship")] == [str(process.pid)]


def cli(log: str, ledger: Ledger, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sagaz_es_cli", *arguments, "--log", log],
        cwd=ROOT,
        env={**os.environ, "LEDGER": str(ledger.path), "CHARGE_SECONDS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_a_replay_runs_and_is_taken_back_in_the_workers_that_serve_the_log(
    workers: Workers, ledger: Ledger
) -> None:
    worker = workers.start(0)
    await worker.ready()
    await order(workers.log, 1)
    await all_completed(workers.log, 1)

    again = ("--from-step", "ship", "--allow", "ship", "--reason", "lost")
    status, out, err = await told(cli(workers.log, ledger, "replay", "run", "o-0", *again))
    assert status == 0, err
    assert "1 engine serves this log" in err
    replayed = json.loads(out)
    assert replayed["status"] == "success"
    assert ledger.count("ship") == Counter({"o-0": 2})
    assert ledger.count("charge") == Counter({"o-0": 1})

    undo = ("replay", "undo", replayed["replay_id"])
    status, _, err = await told(cli(workers.log, ledger, *undo))
    assert status == 3, "ship has no compensation"
    assert "these steps have no compensation" in err
    assert {row[4] for row in ledger.rows("ship")} == {str(worker.process.pid)}
    assert await facts(workers.log, e.SagaReleased) == 0

    worker.process.send_signal(signal.SIGTERM)
    assert await worker.ended() == 0
    status, _, err = await told(cli(workers.log, ledger, "replay", "run", "o-0", *again))
    assert (status, ledger.count("ship")) == (2, Counter({"o-0": 2}))
    assert "no engine serves the log" in err
    assert "replay run runs the code of the saga" in err
