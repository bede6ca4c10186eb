"""kill -9 of a real process in the middle of its sagas, and what another one makes of it."""

from __future__ import annotations

import signal
from collections import Counter

from sagaz_es import SagaStatus, connect
from sagaz_es.connect import open_log
from tests.services.running import Ledger, Processes, charges, said, until, worker
from tests.services.takeover_worker import Order

ORDERS = 12


async def test_after_kill_9_another_process_finishes_every_saga_and_repeats_no_completed_step(
    log_url: str, ledger: Ledger, processes: Processes
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
    log_url: str, ledger: Ledger, processes: Processes
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
    log_url: str, ledger: Ledger, processes: Processes
) -> None:
    enough = ledger.path.with_name("enough")
    first = worker(processes, log_url, ledger, 5000, 0.2, pause=0.02, LOAD_UNTIL=str(enough))
    await until(ledger, "charge-begins", 20)
    second = worker(processes, log_url, ledger, 0, 0.2)
    await said(second, "ready")
    await charges(ledger, second, 1)
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
