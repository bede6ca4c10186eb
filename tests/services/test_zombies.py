"""Processes that freeze, are taken for dead, and wake: they finish what they had begun, no more."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from sagaz_es import SagaStatus, connect
from sagaz_es.connect import open_log
from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.reading.projector import Projector
from sagaz_es.storage.postgresql import PostgreSQLProjectionStore
from sagaz_es.testing.contracts.histories import history
from sagaz_es_projections.verify import verify
from tests.services.running import Ledger, Processes, said, until, worker
from tests.services.takeover_worker import Order

ORDERS = 6
PATIENCE_S = 90.0


async def test_an_engine_that_wakes_after_its_sagas_were_taken_over_begins_nothing_more(
    kafka_bootstrap: str,
    kafka_namespace: str,
    ledger: Ledger,
    processes: Processes,
) -> None:
    url = f"kafka://{kafka_bootstrap}/{kafka_namespace}?partitions=2&session_timeout_ms=1000"
    frozen = worker(processes, url, ledger, ORDERS, 1.0)
    await until(ledger, "charge-begins", ORDERS)
    frozen.send_signal(signal.SIGSTOP)
    before = ledger.path.read_text().splitlines()

    other = worker(processes, url, ledger, 0, 0.0)
    await until(ledger, "ship", ORDERS)
    frozen.send_signal(signal.SIGCONT)
    engine = connect(open_log(url), sagas=[Order])
    async with asyncio.timeout(PATIENCE_S):
        await engine.open(join=False)
        # What wakes has had its turn when orders are served to their end again, more than once.
        for number in range(100, 104):
            handle = await engine.start(Order, {"order": f"o-{number}"}, saga_id=f"o-{number}")
            assert (await handle.result()).status is SagaStatus.COMPLETED

        for number in range(ORDERS):
            state, accepted = SagaState(), []
            for record in await engine.log.read_saga(f"o-{number}"):
                event = record.entry
                if isinstance(event, e.Event) and fold_into(state, event) is Verdict.ACCEPTED:
                    accepted.append(event)
            facts = [type(event.fact) for event in accepted]
            claim = facts.index(e.SagaClaimed)
            assert facts[-1] is e.SagaCompleted
            assert len({event.writer for event in accepted[claim:]}) == 1
        await engine.close()
    rows = [line.split("\t") for line in ledger.path.read_text().splitlines()[len(before) :]]
    orders = {f"o-{number}" for number in range(ORDERS)}
    late = {row[0] for row in rows if row[4] == str(frozen.pid) and row[1] in orders}
    assert late <= {"charge"}  # what it had begun before it froze
    shipped = [row for row in ledger.rows("ship") if row[1] in orders]
    assert [row[4] for row in shipped] == [str(other.pid)] * ORDERS
    assert {count for order, count in ledger.count("reserve").items()} == {1}


async def test_a_projector_that_freezes_inside_its_transaction_does_not_hold_up_the_next_one(
    processes: Processes, postgresql_url: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    process = processes.start("frozen_projector", url, postgresql_url)
    log, store = open_log(url), PostgreSQLProjectionStore(postgresql_url)
    await log.open()
    for number in range(40):
        await log.append(log.partition_of(f"o-{number}"), history(f"o-{number}"))
    await said(process, "inside")

    await store.open()
    await Projector(log, store).run_until(timeout_s=PATIENCE_S)

    process.send_signal(signal.SIGCONT)
    for number in range(40, 60):
        await log.append(log.partition_of(f"o-{number}"), history(f"o-{number}"))
    async with asyncio.timeout(PATIENCE_S):
        # The one that woke goes on where the other one stopped.
        while sum((await store.count_by_status()).values()) < 60:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    verified = await verify(log, store)
    assert (verified.sagas, verified.differences) == (60, ())
    process.send_signal(signal.SIGTERM)
    await said(process, "stopped")
    await store.close()
    await log.close()
