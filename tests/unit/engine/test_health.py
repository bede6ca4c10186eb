"""What an engine says of itself, on a log that does not answer."""

from __future__ import annotations

import asyncio

from tests.helpers import FaultyLog, Gate, Ledger, OrderSaga, engine_on


async def test_an_append_that_the_log_does_not_answer_grows_old() -> None:
    log = FaultyLog()
    async with engine_on(log, ledger=Ledger()) as engine:
        assert (await engine.health()).oldest_pending_append_s == 0
        gate = Gate()
        log.outcomes.append(gate)
        starting = asyncio.create_task(engine.start(OrderSaga, {}))
        await gate.entered()
        async with asyncio.timeout(30):
            while (await engine.health()).oldest_pending_append_s < 0.1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        gate.open()
        await (await starting).result(10)
        assert (await engine.health()).oldest_pending_append_s == 0


async def test_an_append_that_was_refused_waits_no_more() -> None:
    log = FaultyLog()
    async with engine_on(log, ledger=Ledger()) as engine:
        log.outcomes.append("refused")
        starting = asyncio.create_task(engine.start(OrderSaga, {}))
        await asyncio.gather(starting, return_exceptions=True)
        assert starting.exception() is not None
        await asyncio.sleep(0)
        assert (await engine.health()).oldest_pending_append_s == 0
