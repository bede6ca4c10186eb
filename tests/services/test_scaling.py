"""Engines come and go under load, and starts wait for room: all are served, no step runs twice."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.services.running import Ledger, Processes, charges, said, until, worker

STEPS = ("reserve", "charge-begins", "charge", "ship")
IN_FLIGHT = 4


def most_at_once(ledger: Ledger, process: subprocess.Popen[str]) -> int:
    """How many charges ran in a process at once, at most."""
    rows = [line.split("\t") for line in ledger.path.read_text().splitlines()]
    running = most = 0
    for row in rows:
        if row[4] == str(process.pid) and row[0] in ("charge-begins", "charge"):
            running += 1 if row[0] == "charge-begins" else -1
            most = max(most, running)
    return most


@pytest.mark.timeout(240)
async def test_from_one_engine_to_four_and_back_under_load_no_step_runs_twice_and_none_is_missing(
    log_url: str, ledger: Ledger, processes: Processes, tmp_path: Path
) -> None:
    enough = tmp_path / "enough"
    options = {"MAX_IN_FLIGHT": str(IN_FLIGHT), "LOAD_UNTIL": str(enough)}
    first = worker(processes, log_url, ledger, 100_000, 0.05, 0.01, **options)
    await charges(ledger, first, 20)
    others = []
    for _ in range(3):
        others.append(worker(processes, log_url, ledger, 0, 0.05, 0, **options))
        await said(others[-1], "ready")
        await charges(ledger, others[-1], 5)
    everybody = [first, *others]
    await asyncio.gather(*(charges(ledger, process, 10) for process in everybody))
    for process in others:
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(process.wait)
        await charges(ledger, first, 10)
    enough.touch()
    orders = int((await said(first, "started")).split()[1])
    await said(first, "done")

    once = Counter({f"o-{number}": 1 for number in range(orders)})
    for what in STEPS:
        assert ledger.count(what) == once
    assert {row[4] for row in ledger.rows("charge")} == {str(p.pid) for p in everybody}
    assert max(most_at_once(ledger, process) for process in everybody) <= IN_FLIGHT


async def test_starts_that_waited_when_their_engine_was_killed_run_in_the_next_one(
    log_url: str, ledger: Ledger, processes: Processes
) -> None:
    orders, options = 30, {"MAX_IN_FLIGHT": str(IN_FLIGHT)}
    first = worker(processes, log_url, ledger, orders, 3600, 0, **options)
    await said(first, "started")
    await until(ledger, "charge-begins", IN_FLIGHT)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert ledger.count("reserve").total() == IN_FLIGHT
    second = worker(processes, log_url, ledger, 0, 0.05, 0, **options)
    await until(ledger, "ship", orders)

    once = Counter({f"o-{number}": 1 for number in range(orders)})
    for what in ("reserve", "charge", "ship"):
        assert ledger.count(what) == once
    # Only what was under way when the first one was killed began twice.
    assert ledger.count("charge-begins") - once == Counter(
        {order: 1 for order in {row[1] for row in ledger.rows("charge-begins")[:IN_FLIGHT]}}
    )
    assert most_at_once(ledger, second) <= IN_FLIGHT


async def test_what_was_under_way_in_a_killed_engine_runs_within_the_bound_of_the_next_ones(
    log_url: str, ledger: Ledger, processes: Processes
) -> None:
    orders, options = 40, {"MAX_IN_FLIGHT": str(IN_FLIGHT)}
    first = worker(processes, log_url, ledger, orders, 3600, 0, MAX_IN_FLIGHT="0")
    await until(ledger, "charge-begins", orders)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = worker(processes, log_url, ledger, 0, 0.05, 0, **options)
    await charges(ledger, second, 10)
    second.send_signal(signal.SIGINT)  # in the middle of its take-over
    await asyncio.to_thread(second.wait)
    third = worker(processes, log_url, ledger, 0, 0.05, 0, **options)
    await until(ledger, "ship", orders)

    once = Counter({f"o-{number}": 1 for number in range(orders)})
    for what in ("reserve", "charge", "ship"):
        assert ledger.count(what) == once
    assert ledger.count("charge-begins") == once + once  # each was cut off by the kill, and only so
    assert max(most_at_once(ledger, process) for process in (second, third)) <= IN_FLIGHT
