"""Workers as processes: stopped in the middle of steps, and what the next one makes of it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from dataclasses import replace

import pytest

from sagaz_es import SagaStatus, connect
from sagaz_es.errors import LogGone
from sagaz_es_cli.health import STUCK_SECONDS, alive, ready
from tests.servers import KafkaServer
from tests.services.running import Ledger, Workers, until
from tests.services.takeover_worker import Order

ORDERS = 12


async def order(log: str, number: int) -> None:
    """Ask whoever serves the log for so many orders."""
    engine = connect(log, sagas=[Order])
    await engine.open(join=False)
    try:
        for n in range(number):
            await engine.start(Order, {"order": f"o-{n}"}, saga_id=f"o-{n}")
    finally:
        await engine.close()


async def all_completed(log: str, number: int) -> None:
    """Wait until these orders are."""
    engine = connect(log, sagas=[Order])
    await engine.open(join=False)
    try:
        for n in range(number):
            handle = await engine.handle(f"o-{n}")
            assert (await handle.result(60)).status is SagaStatus.COMPLETED
    finally:
        await engine.close()


def once(number: int) -> Counter[str]:
    return Counter({f"o-{n}": 1 for n in range(number)})


async def test_told_to_stop_it_lets_running_steps_finish_and_no_step_runs_twice(
    workers: Workers, ledger: Ledger
) -> None:
    first = workers.start(2.0)
    assert (await first.ready())["sagas_in_flight"] == 0
    await order(workers.log, ORDERS)
    await until(ledger, "charge-begins", ORDERS)
    assert (await first.ready())["sagas_in_flight"] == ORDERS

    first.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        while (await first.probe("/readyz"))[0] == 200:
            pass
    assert (await first.probe("/healthz"))[0] == 200  # it drains, and wants to live
    assert await first.ended() == 0
    assert ledger.count("charge") == once(ORDERS)
    assert ledger.count("ship") == Counter()

    second = workers.start(2.0)
    await all_completed(workers.log, ORDERS)
    for step in ("reserve", "charge-begins", "charge", "ship"):
        assert ledger.count(step) == once(ORDERS)
    assert {row[4] for row in ledger.rows("ship")} == {str(second.process.pid)}


async def test_steps_that_outlast_the_limit_are_left_to_the_next_worker(
    workers: Workers, ledger: Ledger
) -> None:
    first = workers.start(3600, "--drain-seconds", "0.5")
    await first.ready()
    await order(workers.log, 2)
    await until(ledger, "charge-begins", 2)
    first.process.send_signal(signal.SIGTERM)
    assert await first.ended() == 0

    workers.start(0)
    await all_completed(workers.log, 2)
    assert sorted(row[3] for row in ledger.rows("charge-begins")) == ["1", "1", "2", "2"]
    assert ledger.count("charge") == once(2)
    assert ledger.count("reserve") == once(2)


async def test_a_second_signal_stops_at_once(workers: Workers, ledger: Ledger) -> None:
    worker = workers.start(3600, "--drain-seconds", "3600")
    await worker.ready()
    await order(workers.log, 1)
    await until(ledger, "charge-begins", 1)
    worker.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        while (await worker.probe("/readyz"))[0] == 200:
            pass
    worker.process.send_signal(signal.SIGTERM)
    assert await worker.ended() == 128 + signal.SIGTERM


@pytest.mark.parametrize("log_url", ["kafka"], indirect=True)
async def test_a_log_that_does_not_answer_does_not_hold_up_a_stop(
    workers: Workers, ledger: Ledger, kafka_server: KafkaServer
) -> None:
    worker = workers.start(3600, "--drain-seconds", "0.5", app="tests.services.impatient:Order")
    await worker.ready()
    await order(workers.log, 1)
    await until(ledger, "charge-begins", 1)
    kafka_server.pause()
    try:
        worker.process.send_signal(signal.SIGTERM)
        status, said = await worker.last_words()
    finally:
        kafka_server.resume()
    assert status == 1
    assert said[-1].startswith(
        f"ending without a word to {workers.log.split('?')[0]}, or its store"
    )

    workers.start(0)
    await all_completed(workers.log, 1)
    assert ledger.count("charge") == once(1)


@pytest.mark.parametrize("log_url", ["kafka"], indirect=True)
async def test_of_a_named_worker_that_is_not_to_come_back_the_others_have_all_at_once(
    workers: Workers,
) -> None:
    workers.log += "&session_timeout_ms=30000"  # longer than anybody waits here
    stays = workers.start(0, "--instance-id", "w-0")
    await stays.ready()
    for options, number in ([], signal.SIGUSR1), (["--leave"], signal.SIGTERM):
        leaves = workers.start(0, "--instance-id", "w-1", *options)
        await leaves.serves(2)
        leaves.process.send_signal(number)
        assert await leaves.ended() == 0
        await stays.serves(4)


async def test_a_topic_that_is_deleted_under_an_engine_is_told_as_that(
    kafka_server: KafkaServer, kafka_namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"kafka://{kafka_server.bootstrap}/{kafka_namespace}"
    async with connect(url, sagas=[Order]) as engine, asyncio.timeout(60):
        await asyncio.to_thread(kafka_server.delete_topics, kafka_namespace)
        while (await engine.health()).serving:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        topic = f"topic '{kafka_namespace}.saga-events'"
        why_not = f"no broker knows {topic} any more: was it deleted?"
        assert (await engine.health()).why_not == why_not
        with pytest.raises(LogGone, match=f"{topic} is gone from Kafka .* restore it from a copy"):
            await engine.current("o-0")
        while not any(one.levelno == logging.CRITICAL for one in caplog.records):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    told = {record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL}
    assert all(f"{topic} is gone from Kafka" in line for line in told)


async def test_while_the_group_does_not_answer_a_worker_is_not_ready(
    kafka_server: KafkaServer, kafka_namespace: str
) -> None:
    url = f"kafka://{kafka_server.bootstrap}/{kafka_namespace}?session_timeout_ms=1000"
    engine = connect(url, sagas=[Order])
    assert (await engine.health()).why_not == "starting"
    async with engine, asyncio.timeout(60):
        assert ready(await engine.health())[0] == 200
        kafka_server.pause()
        try:
            while (await engine.health()).serving:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            assert ready(await engine.health())[0] == 503
            assert "has not answered for" in (await engine.health()).why_not
        finally:
            kafka_server.resume()
        while not (await engine.health()).serving:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (await engine.health()).why_not == "draining"


async def test_while_the_log_does_not_answer_the_oldest_append_grows_old(
    kafka_server: KafkaServer, kafka_namespace: str
) -> None:
    url = f"kafka://{kafka_server.bootstrap}/{kafka_namespace}"
    async with connect(url, sagas=[Order]) as engine:
        assert (await engine.health()).oldest_pending_append_s == 0
        kafka_server.pause()
        try:
            starting = asyncio.create_task(engine.start(Order, {"order": "o-0"}))
            async with asyncio.timeout(30):
                while True:
                    health = await engine.health()
                    if health.oldest_pending_append_s > 1:
                        break
                    await asyncio.sleep(0.05)
            assert alive(health)[0] == 200
            stuck = replace(health, oldest_pending_append_s=STUCK_SECONDS + 1)
            assert (alive(stuck)[0], alive(stuck)[1]["status"]) == (503, "stuck")
        finally:
            kafka_server.resume()
        handle = await starting
        assert (await engine.health()).oldest_pending_append_s < 1
        await handle.result(30)
