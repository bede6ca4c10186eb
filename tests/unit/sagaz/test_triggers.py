"""Events that start sagas: one saga a key, turns for those that come too many or too fast."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from sagaz_es import (
    IdempotencyKeyMissingInPayloadError,
    Saga,
    SagaStatus,
    TriggerEngine,
    TriggerRegistry,
    action,
    connect,
    fire_event,
    trigger,
)
from sagaz_es.errors import ConfigurationError, UnstorableValue
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import NOON, Ledger, LedgerSaga, SetClock, engine_on, story


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """What other modules have declared is put back afterwards."""
    known = dict(TriggerRegistry._triggers)
    TriggerRegistry.clear()
    yield
    TriggerRegistry._triggers.clear()
    TriggerRegistry._triggers.update(known)


def ship_saga(name: str = "shipping", **options: Any) -> type[Saga]:
    options.setdefault("idempotency_key", "order")

    class Shipping(LedgerSaga):
        saga_name = name

        @trigger("orders", **options)
        def on_order(self, event: dict[str, Any]) -> dict[str, Any] | None:
            return None if event.get("ignored") else {"order": event["order"]}

        @action("ship")
        async def ship(self, ctx: Any) -> Any:
            return await self.do(ctx)

    return Shipping


# --- which sagas ----------------------------------------------------------------------------------


async def test_one_key_starts_one_saga_of_a_class_however_often_and_fast_it_comes() -> None:
    saga, ledger, log = ship_saga(), Ledger(), MemoryEventLog(1)
    async with engine_on(log, saga, ledger=ledger) as engine:
        events = TriggerEngine(engine)
        ids = await asyncio.gather(*(events.fire("orders", {"order": 17}) for _ in range(10)))
        ids += [await events.fire("orders", {"order": 17})]
        other = await events.fire("orders", {"order": 18})
        for saga_id in (ids[0][0], other[0]):
            assert (await (await engine.handle(saga_id)).result()).success
    assert len({tuple(one) for one in ids}) == 1
    assert str(UUID(ids[0][0])) == ids[0][0] != other[0]
    assert sorted(call.saga_id for call in ledger.of("ship")) == sorted([ids[0][0], other[0]])


async def test_the_same_key_is_another_saga_of_another_class() -> None:
    one, two, ledger = ship_saga("by-road"), ship_saga("by-sea"), Ledger()
    async with engine_on(None, one, two, ledger=ledger) as engine:
        ids = await fire_event("orders", {"order": 17}, engine=engine)
        for saga_id in ids:
            await (await engine.handle(saga_id)).result()
    assert len(set(ids)) == 2
    assert len(ledger.of("ship")) == 2


PROGRAM = """
    import asyncio, sys
    from sagaz_es import Saga, action, fire_event, trigger

    class Shipping(Saga):
        saga_name = "shipping"

        @trigger(source="orders", idempotency_key=lambda event: event["order"])
        async def on_order(self, event):
            return {"order": event["order"]}

        @action("ship")
        def ship(self, ctx):
            with open("ledger", "a") as ledger:
                ledger.write(f"{ctx['order']}\\n")

    async def main():
        for order in range(3):
            await fire_event("orders", {"order": order})
        while len(open("ledger").readlines() if __import__("os").path.exists("ledger") else []) < 3:
            await asyncio.sleep(0.01)

    asyncio.run(main())
"""


def test_one_key_starts_one_saga_also_from_several_processes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    environment = {**os.environ, "SAGAZ_ES_LOG": f"sqlite:///{tmp_path}/log.db"}
    processes = [
        subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=environment)
        for _ in range(3)
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert sorted((tmp_path / "ledger").read_text().split()) == ["0", "1", "2"]


async def test_an_event_that_nobody_takes_starts_nothing() -> None:
    saga, ledger = ship_saga(), Ledger()
    async with engine_on(None, saga, ledger=ledger) as engine:
        assert await fire_event("unknown", {"order": 1}, engine=engine) == []
        assert await fire_event("orders", {"order": 1, "ignored": True}, engine=engine) == []
    assert ledger.order == []


async def test_a_trigger_that_gives_no_mapping_is_an_error_and_nothing_is_started() -> None:
    class Odd(LedgerSaga):
        @trigger("odd", idempotency_key="id")
        def on_event(self, event: Any) -> Any:
            return [event]

        @action("ship")
        async def ship(self, ctx: Any) -> Any:
            return await self.do(ctx)

    ledger = Ledger()
    async with engine_on(None, Odd, ledger=ledger) as engine:
        with pytest.raises(UnstorableValue, match=r"Odd\.on_event gives a mapping"):
            await fire_event("odd", {"id": 1}, engine=engine)
    assert ledger.order == []


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [{}, {"order": None}, {"order": ""}, {"order": "  "}])
async def test_a_missing_or_empty_key_field_is_an_error_that_names_field_and_saga(
    event: dict[str, Any],
) -> None:
    class Shipping(LedgerSaga):
        saga_name = "shipping"

        @trigger("orders", idempotency_key="order")
        def on_order(self, event: Any) -> Any:
            return {"kept": True}

        @action("ship")
        async def ship(self, ctx: Any) -> Any:
            return await self.do(ctx)

    ledger, log = Ledger(), MemoryEventLog(1)
    async with engine_on(log, Shipping, ledger=ledger) as engine:
        with pytest.raises(IdempotencyKeyMissingInPayloadError) as failed:
            await fire_event("orders", {**event, "price": 9}, engine=engine)
    assert "'shipping'" in str(failed.value)
    assert "'order'" in str(failed.value)
    assert "'price'" in str(failed.value)
    assert ledger.order == []
    assert (await log.bounds(0)).end <= 1  # nothing but the namespace's own record


async def test_a_key_function_that_finds_no_field_is_the_same_error() -> None:
    saga = ship_saga(idempotency_key=lambda event: event["nowhere"])
    async with engine_on(None, saga, ledger=Ledger()) as engine:
        with pytest.raises(IdempotencyKeyMissingInPayloadError) as failed:
            await fire_event("orders", {"order": 1}, engine=engine)
    assert isinstance(failed.value.__cause__, KeyError)


async def test_without_a_key_there_is_a_warning_and_every_event_is_a_saga(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="sagaz_es"):
        saga = ship_saga(idempotency_key=None)
    assert "Shipping.on_order" in caplog.text
    assert "idempotency_key" in caplog.text
    ledger = Ledger()
    async with engine_on(None, saga, ledger=ledger) as engine:
        ids = [(await fire_event("orders", {"order": 1}, engine=engine))[0] for _ in range(2)]
        for saga_id in ids:
            assert (await (await engine.handle(saga_id)).result()).success
    assert len(set(ids)) == len(ledger.of("ship")) == 2


@pytest.mark.parametrize("options", [{"max_concurrent": 0}, {"rate_limit": 0}])
def test_a_limit_that_lets_nothing_through_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        trigger("orders", **options)


# --- turns ----------------------------------------------------------------------------------------


async def test_max_concurrent_holds_the_next_back_until_the_first_ends() -> None:
    saga, ledger, log = ship_saga(max_concurrent=1), Ledger(), MemoryEventLog(1)
    gate = ledger.gate("ship")
    async with engine_on(log, saga, ledger=ledger) as engine:
        ids = [
            (await fire_event("orders", {"order": order}, engine=engine))[0] for order in range(3)
        ]
        await gate.entered()
        for _ in range(200):
            await asyncio.sleep(0)
        assert [call.saga_id for call in ledger.of("ship")] == ids[:1]
        assert await story(log, ids[1]) == ["SagaStarted"]  # held, and not lost by a crash
        assert await engine.status(ids[1]) is SagaStatus.EXECUTING
        gate.open()
        for saga_id in ids:
            assert (await (await engine.handle(saga_id)).result()).success
    assert [call.saga_id for call in ledger.of("ship")] == ids


async def test_of_five_sagas_never_more_run_than_may() -> None:
    saga = ship_saga(max_concurrent=2)
    running, most = 0, 0

    class Counting(Ledger):
        async def do(self, ctx: Any, step: str = "") -> str:
            nonlocal running, most
            running += 1
            most = max(most, running)
            for _ in range(20):
                await asyncio.sleep(0)
            running -= 1
            return await super().do(ctx, step)

    ledger = Counting()
    async with engine_on(None, saga, ledger=ledger) as engine:
        handles = [await engine.start(saga, {"order": order}) for order in range(5)]
        assert all([(await handle.result()).success for handle in handles])
    assert most == 2


async def test_a_saga_that_is_held_back_can_be_cancelled_and_takes_no_turn() -> None:
    saga, ledger = ship_saga(max_concurrent=1), Ledger()
    gate = ledger.gate("ship")
    async with engine_on(None, saga, ledger=ledger) as engine:
        first, second, third = [await engine.start(saga, {"order": n}) for n in range(3)]
        await gate.entered()
        await engine.cancel(second.saga_id, reason="not wanted")
        assert (await second.result()).status is SagaStatus.CANCELLED
        gate.open()
        assert (await first.result()).success
        assert (await third.result()).success
    assert [call.saga_id for call in ledger.of("ship")] == [first.saga_id, third.saga_id]


async def test_a_saga_that_fails_gives_its_turn_on() -> None:
    saga, ledger = ship_saga(max_concurrent=1), Ledger()
    ledger.fails("ship", *[ValueError("no ship")] * 4)
    async with engine_on(None, saga, ledger=ledger) as engine:
        first, second = [await engine.start(saga, {"order": n}) for n in range(2)]
        assert (await first.result()).status is SagaStatus.ROLLED_BACK
        assert (await second.result()).success


async def test_what_was_held_back_when_its_engine_stopped_runs_where_it_is_taken_over() -> None:
    saga, ledger, log = ship_saga(max_concurrent=1), Ledger(), MemoryEventLog(1)
    gate = ledger.gate("ship")
    async with engine_on(log, saga, ledger=ledger) as engine:
        handles = [await engine.start(saga, {"order": n}) for n in range(3)]
        await gate.entered()
        gate.open()
        ids = [handle.saga_id for handle in handles]
    before = len(ledger.of("ship"))
    async with engine_on(log, saga, ledger=ledger) as engine:
        for saga_id in ids:
            assert (await (await engine.handle(saga_id)).result()).success
    assert before < 3
    assert sorted(call.saga_id for call in ledger.of("ship")) == sorted(ids)


async def test_rate_limit_spaces_the_beginnings_out() -> None:
    saga = ship_saga(rate_limit=4)
    clock = SetClock(jumps=True)
    times: list[int] = []

    class Timed(Ledger):
        async def do(self, ctx: Any, step: str = "") -> str:
            times.append(clock.now() - NOON)
            return await super().do(ctx, step)

    async with engine_on(None, saga, ledger=Timed(), clock=clock) as engine:
        handles = [await engine.start(saga, {"order": n}) for n in range(4)]
        for handle in handles:
            assert (await handle.result()).success
    assert len(times) == 4
    assert all(b - a >= 250_000 for a, b in itertools.pairwise(times))


async def test_a_deadline_counts_while_a_saga_waits_for_its_turn() -> None:
    class Slow(LedgerSaga):
        deadline_seconds = 60

        @trigger("slow", idempotency_key="id", max_concurrent=1)
        def on_event(self, event: Any) -> Any:
            return event

        @action("wait", wait_for="go")
        async def wait(self, ctx: Any) -> Any:
            return await self.do(ctx)

    clock, ledger = SetClock(), Ledger()
    async with engine_on(None, Slow, ledger=ledger, clock=clock) as engine:
        first, second = [await engine.start(Slow, {"id": n}) for n in range(2)]
        clock.advance(61_000_000)
        results = [await first.result(), await second.result()]
    assert [result.status for result in results] == [SagaStatus.ROLLED_BACK] * 2
    assert ledger.order == []


# --- the default log ------------------------------------------------------------------------------


async def test_without_an_engine_the_default_log_takes_them_and_they_run_on() -> None:
    done: list[Any] = []

    class Mail(Saga):
        saga_name = "mail"

        @trigger(source="mails", idempotency_key="id", topic="mails.new")
        async def on_mail(self, event: Any) -> Any:
            return event

        @action("send")
        async def send(self, ctx: Any) -> None:
            done.append(ctx["id"])

    ids = await fire_event("mails", {"id": "m-1"})
    assert await fire_event("mails", {"id": "m-1"}) == ids
    await until_real(lambda: done)
    assert TriggerRegistry.get_triggers("mails")[0].metadata.config == {"topic": "mails.new"}
    assert list(TriggerRegistry.get_all()) == ["mails"]
    async with connect(sagas=[Mail]) as engine:
        assert (await (await engine.handle(ids[0])).result()).success
    assert done == ["m-1"]


async def until_real(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the step's own thread
            await asyncio.sleep(0.01)


async def test_a_missing_key_is_told_also_where_the_method_stumbles_over_it() -> None:
    class Stumbles(Saga):
        saga_name = "stumbles"

        @trigger(source="stumbling", idempotency_key="order_id")
        def on_order(self, event: Any) -> dict[str, Any]:
            return {"id": event["order_id"]}

        @action("a")
        async def a(self, ctx: Any) -> None: ...

    with pytest.raises(IdempotencyKeyMissingInPayloadError, match=r"'stumbles'.*'order_id'"):
        await fire_event("stumbling", {"other": 1})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("source", ""),
        ("source", 5),
        ("idempotency_key", 5),
        ("idempotency_key", ""),
        ("rate_limit", "2"),
    ],
)
def test_a_triggers_option_that_cannot_be_meant_is_refused_by_its_name(
    option: str, value: Any
) -> None:
    with pytest.raises(ConfigurationError, match=option):
        trigger(**{"source": "orders", option: value})
