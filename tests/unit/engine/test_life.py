"""An engine is opened once, used while it is open, in the event loop that opened it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Saga, SagaStatus, action, connect
from sagaz_es.errors import EngineClosed, SagaNotFound
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import Ledger, OrderSaga, engine_on, until


class Order(Saga):
    @action("charge")
    async def charge(self, ctx: Any) -> None: ...


async def test_an_engine_that_was_closed_is_not_opened_again(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'a.db'}", sagas=[Order])
    async with engine:
        await engine.run(Order)
    tasks = asyncio.all_tasks()
    with pytest.raises(EngineClosed, match=r"not opened again; make another with connect"):
        async with engine:
            pass
    assert asyncio.all_tasks() == tasks
    assert vars(engine.log)["_open_reader"] is None


async def test_an_engine_is_opened_once() -> None:
    async with connect("memory://", sagas=[Order]) as engine:
        with pytest.raises(RuntimeError, match="open already"):
            await engine.open()
        assert (await engine.run(Order)).success


async def test_an_engine_that_was_never_opened_says_so() -> None:
    engine = connect("memory://", sagas=[Order])
    with pytest.raises(RuntimeError, match=r"not open yet; use `async with connect"):
        await engine.run(Order)


async def test_a_run_from_another_event_loop_is_refused_and_writes_nothing() -> None:
    async with connect("memory://", sagas=[Order]) as engine:

        def elsewhere() -> None:
            asyncio.run(engine.run(Order, saga_id="order-1"))

        with pytest.raises(RuntimeError, match="opened in another event loop"):
            await asyncio.to_thread(elsewhere)
        with pytest.raises(SagaNotFound):
            await engine.current("order-1")
        assert (await engine.run(Order, saga_id="order-1")).success


def test_a_program_that_ends_while_sagas_run_does_not_wait_for_their_last_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When its event loop ends it cancels every task, also the one that would write it."""
    started: list[str] = []

    class Long(Saga):
        @action("wait")
        async def wait(self, ctx: Any) -> None:
            started.append(ctx.step)
            await asyncio.Event().wait()

    async def follow(log: MemoryEventLog) -> None:
        async with engine_on(log, Long) as engine:
            await engine.run(Long, saga_id="s")

    async def program() -> asyncio.Task[None]:
        task = asyncio.create_task(follow(MemoryEventLog(1)))
        await until(lambda: started)
        return task

    assert asyncio.run(program()).done()
    assert [r.getMessage() for r in caplog.records if r.levelname != "INFO"] == []


async def test_a_closed_engine_says_so_and_a_wait_that_was_too_long_names_its_saga() -> None:
    class Waiting(Saga):
        @action("wait", wait_for="approved")
        async def wait(self, ctx: Any) -> None: ...

    engine = connect("memory://", sagas=[Waiting])
    async with engine:
        handle = await engine.start(Waiting, saga_id="w-1")
        with pytest.raises(TimeoutError, match=r"saga 'w-1' has not ended within 0 s; it goes on"):
            await handle.result(timeout=0)
    with pytest.raises(EngineClosed, match=r"was closed and is not opened again; make another"):
        await engine.run(Waiting)


async def test_a_saga_that_is_lost_before_its_task_began_leaves_nothing_behind() -> None:
    """A task that is cancelled before its first step runs none of its code."""
    log, ledger = MemoryEventLog(1), Ledger()
    async with engine_on(log, ledger=ledger) as engine, asyncio.timeout(5):
        starting = asyncio.create_task(engine.start(OrderSaga, saga_id="s"))
        while "s" not in engine.host.tasks:  # noqa: ASYNC110 - the very next step counts
            await asyncio.sleep(0)
        partition = engine.host.partitions[0]
        partition.cells.pop("s").lost = True  # another engine has it
        engine.host.tasks["s"].cancel()
        handle = await starting  # asked for again, where it is now
        assert (await handle.result()).status is SagaStatus.COMPLETED
        assert engine.host.runners == {}
    assert [call.what for call in ledger.calls] == ["reserve", "charge", "ship"]
