"""Confirm before effects, appends of unknown outcome, and two engines that both believe."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sagaz_es import Engine, SagaStatus
from sagaz_es.core import events as e
from sagaz_es.errors import AppendRefused, LogForbidden, SagaStopped
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import (
    Declined,
    FaultyLog,
    Gate,
    Ledger,
    OrderSaga,
    accepted_story,
    engine_on,
    facts,
    story,
)

ORDER = [
    "SagaStarted",
    "StepStarted reserve",
    "StepCompleted reserve",
    "StepStarted charge",
    "StepCompleted charge",
    "StepStarted ship",
    "StepCompleted ship",
    "SagaCompleted",
]


# --- confirm before effects -----------------------------------------------------------------------


async def test_a_step_runs_only_after_its_start_is_in_the_log() -> None:
    log, ledger = FaultyLog(), Ledger()
    gates = [Gate() for _ in range(4)]
    log.outcomes.extend(gates)
    async with engine_on(log, ledger=ledger) as engine:
        running = asyncio.create_task(engine.run(OrderSaga, saga_id="s"))
        for gate, before in zip(gates, ([], ["reserve"], ["reserve", "charge"]), strict=False):
            await gate.entered()
            await until_quiet()
            assert ledger.order == before
            gate.open()
        gates[3].open()
        assert (await running).success
    assert ledger.order == ["reserve", "charge", "ship"]


async def test_a_step_runs_only_after_its_start_is_acknowledged() -> None:
    log, ledger = FaultyLog(), Ledger()
    late = Gate(late=True)
    log.outcomes.extend(["", late])
    async with engine_on(log, ledger=ledger) as engine:
        running = asyncio.create_task(engine.run(OrderSaga, saga_id="s"))
        await late.entered()
        await until_quiet()
        # The start of charge stands in the log; its place is not known yet.
        assert (await story(log, "s"))[-1] == "StepStarted charge"
        assert ledger.order == ["reserve"]
        late.open()
        assert (await running).success
    assert await story(log, "s") == ORDER


async def test_a_start_returns_only_when_the_saga_is_durable() -> None:
    log, ledger = FaultyLog(), Ledger()
    gate = Gate()
    log.outcomes.append(gate)
    async with engine_on(log, ledger=ledger) as engine:
        starting = asyncio.create_task(engine.start(OrderSaga, saga_id="s"))
        await gate.entered()
        await until_quiet()
        assert not starting.done()
        gate.open()
        assert (await (await starting).result()).success


async def test_the_end_of_a_step_and_the_start_of_the_next_are_one_append() -> None:
    log = FaultyLog()
    async with engine_on(log, ledger=Ledger()) as engine:
        await engine.run(OrderSaga, saga_id="s")
    assert log.appends == [
        ["SagaStarted", "StepStarted reserve"],
        ["StepCompleted reserve", "StepStarted charge"],
        ["StepCompleted charge", "StepStarted ship"],
        ["StepCompleted ship", "SagaCompleted"],
    ]


# --- unknown outcomes -----------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", ["lands, unknown", "lost, unknown"])
@pytest.mark.parametrize("which", range(4))
async def test_an_append_of_unknown_outcome_goes_out_again_as_it_was(
    unknown: str, which: int
) -> None:
    log, ledger = FaultyLog(), Ledger()
    log.outcomes.extend(["", "", "", ""])
    log.outcomes[which] = unknown
    async with engine_on(log, ledger=ledger) as engine:
        result = await engine.run(OrderSaga, saga_id="s")
    assert result.success
    assert ledger.order == ["reserve", "charge", "ship"]
    assert await accepted_story(log, "s") == ORDER
    assert log.appends[which] == log.appends[which + 1]
    events = [record.entry for record in await log.read_saga("s")]
    again = 2 if unknown == "lands, unknown" else 0
    assert len(events) == len(ORDER) + again
    assert len(set(map(repr, events))) == len(ORDER), "an event was numbered anew"


async def test_appends_that_all_land_twice_change_nothing() -> None:
    log, ledger = FaultyLog(), Ledger()
    log.outcomes.extend(["lands, unknown", ""] * 20)
    ledger.fails("ship", Declined())
    async with engine_on(log, ledger=ledger) as engine:
        result = await engine.run(OrderSaga, saga_id="s")
        again = await (await engine.handle("s")).result()
    assert result.status is again.status is SagaStatus.ROLLED_BACK
    assert ledger.order == ["reserve", "charge", "ship", "undo charge", "undo reserve"]
    assert ledger.standing == []


async def test_two_starts_of_one_id_with_lost_acknowledgements_run_it_once() -> None:
    log, ledger = FaultyLog(), Ledger()
    log.outcomes.extend(["lands, unknown", "lost, unknown", "lands, unknown"])
    async with engine_on(log, ledger=ledger) as engine:
        results = await asyncio.gather(
            *(engine.run(OrderSaga, saga_id="s") for _ in range(3)),
        )
    assert all(result.success for result in results)
    assert ledger.order == ["reserve", "charge", "ship"]


async def test_a_copy_of_an_append_that_lands_after_the_end_changes_nothing() -> None:
    log, ledger = FaultyLog(), Ledger()
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="s")
        late = [record.entry for record in await log.read_saga("s")]
        await log.append(0, [entry for entry in late if isinstance(entry, e.Event)])
        assert (await engine.run(OrderSaga, saga_id="s")).success
    async with engine_on(log, ledger=ledger) as another:
        assert (await another.run(OrderSaga, saga_id="s")).success
    assert ledger.order == ["reserve", "charge", "ship"]
    assert await accepted_story(log, "s") == ORDER


# --- two engines that both believe they own the partition -----------------------------------------


async def both(log: MemoryEventLog, *ledgers: Ledger) -> tuple[Any, Any]:
    """Two engines that serve the log's one partition, each as if it were alone."""
    one, other = (engine_on(log, ledger=ledger) for ledger in ledgers)
    await one.open()
    await other.open()
    for engine in (one, other):
        if 0 not in engine.host.partitions:
            await engine.host._serving._serve(0)
    return one, other


async def test_of_two_engines_that_start_one_id_at_once_one_runs_it_and_both_answer() -> None:
    log, ledger, other_ledger = FaultyLog(), Ledger(), Ledger()
    one, other = await both(log, ledger, other_ledger)
    first, second = Gate(), Gate()
    log.outcomes.extend([first, second])
    running = asyncio.create_task(one.run(OrderSaga, {"by": 1}, saga_id="s"))
    await first.entered()
    also = asyncio.create_task(other.run(OrderSaga, {"by": 2}, saga_id="s"))
    await second.entered()
    first.open()
    await running
    second.open()
    result = await asyncio.wait_for(also, 5)
    assert (await running).context["by"] == result.context["by"] == 1
    assert (ledger.order, other_ledger.order) == (["reserve", "charge", "ship"], [])
    assert await accepted_story(log, "s") == ORDER
    await one.close()
    await other.close()


async def test_an_engine_that_lost_a_saga_starts_nothing_more_and_its_caller_gets_the_end() -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    one = engine_on(log, ledger=ledger)
    await one.open()
    gate = ledger.gate("charge")
    running = asyncio.create_task(one.run(OrderSaga, saga_id="s"))
    await gate.entered()
    other_ledger = Ledger()
    other = engine_on(log, ledger=other_ledger)
    await other.open()
    await other.host._serving._serve(0)  # it takes over what the first one still runs
    other_ledger.stands = dict(ledger.stands)
    result = await asyncio.wait_for(running, 5)
    assert result.success
    assert ledger.order == ["reserve", "charge"]
    assert other_ledger.order == ["charge", "ship"]
    assert [call.attempt for call in (*ledger.of("charge"), *other_ledger.of("charge"))] == [1, 2]
    assert {call.key for call in (*ledger.of("charge"), *other_ledger.of("charge"))} == {"s/charge"}
    assert "SagaClaimed" in await accepted_story(log, "s")
    await one.close()
    await other.close()


async def test_an_engine_that_was_taken_over_while_it_appended_does_not_run_the_step() -> None:
    log, ledger, other_ledger = FaultyLog(), Ledger(), Ledger()
    one = engine_on(log, ledger=ledger)
    await one.open()
    held = Gate()
    log.outcomes.extend(["", held])
    running = asyncio.create_task(one.run(OrderSaga, saga_id="s"))
    await held.entered()  # the start of charge is on its way
    other = engine_on(log, ledger=other_ledger)
    await other.open()
    await other.host._serving._serve(0)
    assert (await (await other.handle("s")).result()).success
    held.open()
    assert (await asyncio.wait_for(running, 5)).success
    assert ledger.order == ["reserve"]
    # It had not recorded the end of reserve: the same effect again, with the same key.
    assert other_ledger.order == ["reserve", "charge", "ship"]
    assert {call.key for call in (*ledger.of("reserve"), *other_ledger.of("reserve"))} == {
        "s/reserve"
    }
    await one.close()
    await other.close()


async def test_an_append_that_is_repeated_after_the_saga_was_lost_does_not_run_the_step() -> None:
    log, ledger, other_ledger = FaultyLog(), Ledger(), Ledger()
    one = engine_on(log, ledger=ledger)
    await one.open()
    again = Gate()
    log.outcomes.extend(["", "lost, unknown", again])
    running = asyncio.create_task(one.run(OrderSaga, saga_id="s"))
    await again.entered()
    other = engine_on(log, ledger=other_ledger)
    await other.open()
    await other.host._serving._serve(0)
    assert (await (await other.handle("s")).result()).success
    again.open()
    assert (await asyncio.wait_for(running, 5)).success
    assert ledger.order == ["reserve"]
    await one.close()
    await other.close()


async def test_facts_of_an_engine_that_lost_the_saga_are_rejected_by_everybody() -> None:
    log, ledger = FaultyLog(), Ledger()
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="s")
        last = (await log.read_saga("s"))[-1].entry
        assert isinstance(last, e.Event)
        stale = e.Event("s", "order", b"z" * 16, 0, last.sequence + 1, 0, e.SagaFailed())
        await log.append(0, [stale])
        assert (await engine.status("s")) is SagaStatus.COMPLETED
    assert type((await facts(log, "s"))[-1]) is e.SagaFailed


async def test_a_right_to_write_that_is_taken_away_for_a_while_stops_no_saga() -> None:
    log, ledger = FaultyLog(), Ledger()
    async with engine_on(log, ledger=ledger) as engine:
        log.outcomes.append("forbidden")
        with pytest.raises(LogForbidden):  # nothing stands: who starts is told at once
            await engine.start(OrderSaga, saga_id="s")
        log.outcomes.extend(["", "forbidden", "forbidden"])
        assert (await engine.run(OrderSaga, saga_id="t")).success
    assert ledger.order == ["reserve", "charge", "ship"]


ASKED: dict[str, Callable[[Engine], Awaitable[Any]]] = {
    "signal": lambda engine: engine.signal("s", "word"),
    "cancel": lambda engine: engine.cancel("s"),
    "pause": lambda engine: engine.pause("s"),
    "result": lambda engine: follow(engine, "s"),
}


async def follow(engine: Engine, saga_id: str) -> None:
    await (await engine.handle(saga_id)).result()


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("asked", ASKED)
async def test_of_a_saga_that_has_stopped_in_its_engine_everybody_is_told_why(
    asked: str, joined: bool
) -> None:
    log, ledger = FaultyLog(), Ledger()
    async with engine_on(log, ledger=ledger) as engine:
        log.outcomes.extend(["", "refused"])
        with pytest.raises(AppendRefused):
            await engine.run(OrderSaga, saga_id="s")
        asker = engine if joined else engine_on(log, ledger=ledger)
        if not joined:
            if asked == "result":
                return  # only the engine that serves it knows
            await asker.open(join=False)
        with pytest.raises(SagaStopped, match=r"has stopped, unfinished.* a test says so"):
            await ASKED[asked](asker)
        if not joined:
            await asker.close()
    async with engine_on(log, ledger=ledger) as engine:
        assert (await (await engine.handle("s")).result()).success


async def until_quiet() -> None:
    """Many turns of the loop: whatever could run has run."""
    for _ in range(50):
        await asyncio.sleep(0)
