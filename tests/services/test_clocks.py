"""Engines on machines whose clocks are hours apart: one takes over from the other, sagas wait no
longer than they were meant to, and no step runs twice.

On Kafka: those that share a file share their clock, too."""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter, defaultdict

import pytest

from sagaz_es.connect import open_log
from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, fold_into
from sagaz_es.core.state import SagaState
from tests.servers import clock
from tests.services.clock_worker import DELAY_S
from tests.services.running import Ledger, Processes, charges, said, until, worker

pytestmark = pytest.mark.skipif(
    shutil.which("apt-get") is None, reason="libfaketime comes from a Debian package"
)

ORDERS = 8
HOUR_S = 3600.0


@pytest.fixture
def log_url(kafka_bootstrap: str, kafka_namespace: str) -> str:
    return f"kafka://{kafka_bootstrap}/{kafka_namespace}?partitions=4"


async def times_of(log_url: str, saga_id: str) -> list[int]:
    """Of its accepted events, in their order; µs since 1970."""
    log, state = open_log(log_url), SagaState()
    times: list[int] = []
    await log.open()
    try:
        for record in await log.read_saga(saga_id):
            event = record.entry
            if isinstance(event, e.Event) and fold_into(state, event) is Verdict.ACCEPTED:
                times.append(event.occurred_at)
    finally:
        await log.close()
    return times


@pytest.mark.parametrize("ahead_h", [5, -5])
async def test_after_kill_9_a_saga_waits_as_long_as_it_was_meant_to_by_a_clock_hours_away(
    log_url: str, ledger: Ledger, processes: Processes, ahead_h: int
) -> None:
    here = {"LEDGER": str(ledger.path)}
    first = processes.start("clock_worker", log_url, str(ORDERS), **here, **clock.off_by(ahead_h))
    told = float((await said(first, "ready")).split()[1])
    assert (told - time.time()) / HOUR_S == pytest.approx(ahead_h, abs=0.1)
    await until(ledger, "order", ORDERS)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not ledger.rows("remind")  # they wait

    processes.start("clock_worker", log_url, "0", **here, **clock.off_by(-ahead_h))
    await until(ledger, "thank", ORDERS)

    attempts = {"order": 1, "remind": 2, "thank": 1}
    happened: dict[str, dict[str, float]] = defaultdict(dict)
    for step, number in attempts.items():
        rows = ledger.rows(step)
        assert Counter(row[1] for row in rows) == {f"o-{n}": number for n in range(ORDERS)}
        assert Counter(row[3] for row in rows) == {str(n + 1): ORDERS for n in range(number)}
        for _, order, _, attempt, _, moment in rows:
            happened[order][f"{step} {attempt}"] = float(moment)
    for order, at in happened.items():
        if ahead_h > 0:  # by a clock that was behind, a wait may have been over long ago
            assert at["remind 1"] - at["order 1"] >= DELAY_S
        assert at["remind 1"] < at["remind 2"] < at["thank 1"]
        times = await times_of(log_url, order)
        assert times == sorted(times)


@pytest.mark.parametrize("ahead_h", [5, -5])
async def test_engines_with_clocks_hours_apart_hand_over_and_run_no_step_twice(
    log_url: str, ledger: Ledger, processes: Processes, ahead_h: int
) -> None:
    enough = ledger.path.with_name("enough")
    load = {"LOAD_UNTIL": str(enough), **clock.off_by(ahead_h)}
    first = worker(processes, log_url, ledger, 5000, 0.2, 0.02, **load)
    await until(ledger, "charge-begins", 20)
    second = worker(processes, log_url, ledger, 0, 0.2, 0, **clock.off_by(-ahead_h))
    await said(second, "ready")
    await charges(ledger, second, 1)
    second.send_signal(signal.SIGINT)  # hands over what it has to the first
    await until(ledger, "charge-begins", len(ledger.count("charge-begins")) + 20)
    enough.touch()
    orders = int((await said(first, "started")).split()[1])
    await said(first, "done")

    once = Counter({f"o-{number}": 1 for number in range(orders)})
    for what in ("reserve", "charge-begins", "charge", "ship"):
        assert ledger.count(what) == once
    for number in range(0, orders, max(1, orders // 10)):
        times = await times_of(log_url, f"o-{number}")
        assert times == sorted(times)
