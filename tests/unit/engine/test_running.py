"""A saga from its start to its end: order, results, context, starts of one id."""

from __future__ import annotations

import asyncio
import gc
import threading
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from sagaz_es import Saga, SagaStatus, action
from sagaz_es.core import events as e
from sagaz_es.errors import (
    ConfigurationError,
    DefinitionError,
    SagaNotFound,
    SagaStepError,
    UnstorableValue,
)
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import (
    NOON,
    Declined,
    Ledger,
    OrderSaga,
    SetClock,
    engine_on,
    facts,
    story,
    until,
)

# --- order and results ----------------------------------------------------------------------------


async def test_steps_that_name_no_dependencies_run_in_written_order() -> None:
    class Plain(Saga):
        @action("b")
        async def first(self, ctx: Any) -> Any:
            ctx["order"] = ["b"]

        @action("a")
        async def second(self, ctx: Any) -> Any:
            ctx["order"].append("a")

        @action("c")
        async def third(self, ctx: Any) -> Any:
            ctx["order"].append("c")

    async with engine_on(None, Plain) as engine:
        result = await engine.run(Plain)
    assert (result.status, result.context) == (SagaStatus.COMPLETED, {"order": ["b", "a", "c"]})


async def test_a_hundred_steps_all_run_in_the_order_they_were_added() -> None:
    saga = Saga("long")
    for number in range(100):

        async def step(ctx: Any, number: int = number) -> None:
            ctx["done"] = [*ctx.get("done", []), number]

        saga.add_step(f"s{number}", step)
    async with engine_on(None, saga) as engine:
        result = await engine.run(saga)
    assert result.context["done"] == list(range(100))
    assert (result.completed_steps, result.total_steps) == (100, 100)


async def test_mappings_are_merged_into_the_context_and_other_results_are_kept() -> None:
    seen: dict[str, Any] = {}
    saga = Saga("results")

    async def reserve(ctx: Any) -> Any:
        return {"reservation": "r1"}

    async def weigh(ctx: Any) -> Any:
        return Decimal("1.50")

    async def nothing(ctx: Any) -> None:
        return None

    async def look(ctx: Any) -> None:
        seen["reservation"] = ctx["reservation"]
        seen["results"] = [ctx.result_of(name) for name in ("reserve", "weigh", "nothing")]
        seen["by name"] = ctx["weigh"]
        seen["given"] = ctx["sku"]

    for step in (reserve, weigh, nothing, look):
        saga.add_step(step.__name__, step)
    async with engine_on(None, saga) as engine:
        result = await engine.run(saga, {"sku": "A1"})
    assert seen == {
        "reservation": "r1",
        "results": [{"reservation": "r1"}, Decimal("1.50"), None],
        "by name": Decimal("1.50"),
        "given": "A1",
    }
    assert result.context == {"sku": "A1", "reservation": "r1"}


async def test_a_key_set_by_a_step_is_not_overwritten_by_a_later_step_of_that_name() -> None:
    saga = Saga("names")

    async def first(ctx: Any) -> Any:
        return {"second": "mine"}

    async def second(ctx: Any) -> Any:
        return "its result"

    saga.add_step("first", first).add_step("second", second)
    async with engine_on(None, saga) as engine:
        result = await engine.run(saga)
    assert result.context == {"second": "mine"}


async def test_what_a_step_does_to_its_context_counts_also_deep_inside() -> None:
    saga = Saga("mutating")

    async def change(ctx: Any) -> Any:
        ctx["order"]["items"][0]["count"] += 1
        del ctx["old"]
        ctx.setdefault("new", []).append(1)
        return {"told": True}

    saga.add_step("change", change)
    log = MemoryEventLog(1)
    given = {"order": {"items": [{"count": 1}]}, "old": 0, "kept": [1]}
    async with engine_on(log, saga) as engine:
        result = await engine.run(saga, given, saga_id="s")
    after = {"order": {"items": [{"count": 2}]}, "kept": [1], "new": [1], "told": True}
    assert result.context == after
    assert given == {"order": {"items": [{"count": 1}]}, "old": 0, "kept": [1]}
    (done,) = [fact for fact in await facts(log, "s") if isinstance(fact, e.StepCompleted)]
    assert done.keys_set in (
        '{"order":{"items":[{"count":2}]},"new":[1],"told":true}',
        '{"new":[1],"order":{"items":[{"count":2}]},"told":true}',
    )
    assert done.keys_deleted == '["old"]'


async def test_what_a_step_has_read_is_recorded() -> None:
    saga = Saga("reading")

    async def some(ctx: Any) -> None:
        ctx["a"], ctx.get("b"), "c" in ctx

    async def whole(ctx: Any) -> None:
        dict(ctx)

    async def result(ctx: Any) -> None:
        ctx.result_of("some")

    async def none(ctx: Any) -> None:
        ctx["written"] = 1

    for step in (some, whole, result, none):
        saga.add_step(step.__name__, step)
    log = MemoryEventLog(1)
    async with engine_on(log, saga) as engine:
        await engine.run(saga, {"a": 1, "d": 2}, saga_id="s")
    reads = {f.step: f.reads for f in await facts(log, "s") if isinstance(f, e.StepCompleted)}
    assert reads == {
        "some": '["a","b","c"]',
        "whole": '["*"]',
        "result": '["result_of:some"]',
        "none": "",
    }


async def test_sync_steps_run_beside_the_loop_in_threads() -> None:
    saga = Saga("sync")
    threads: list[threading.Thread] = []

    def step(ctx: Any) -> Any:
        threads.append(threading.current_thread())
        return {"k": ctx["given"] + 1}

    def undo(result: Any, ctx: Any) -> None:
        threads.append(threading.current_thread())

    async def fail(ctx: Any) -> None:
        raise Declined

    saga.add_step("step", step, undo).add_step("fail", fail, max_retries=0)
    async with engine_on(None, saga) as engine:
        result = await engine.run(saga, {"given": 1})
    assert (result.status, result.context) == (SagaStatus.ROLLED_BACK, {"given": 1, "k": 2})
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_a_saga_without_steps_completes_at_once() -> None:
    saga = Saga("empty")
    log = MemoryEventLog(1)
    async with engine_on(log, saga) as engine:
        result = await engine.run(saga, {"k": 1}, saga_id="s")
    assert (result.status, result.completed_steps, result.total_steps) == ("completed", 0, 0)
    assert await story(log, "s") == ["SagaStarted", "SagaCompleted"]


# --- one definition, many runs --------------------------------------------------------------------


async def test_runs_of_one_definition_share_nothing() -> None:
    saga = Saga("shared")

    async def grow(ctx: Any) -> Any:
        ctx["list"].append(ctx["n"])
        await asyncio.sleep(0)
        return {"sum": sum(ctx["list"])}

    saga.add_step("one", grow).add_step("two", grow)
    given = {"list": [0]}
    async with engine_on(None, saga) as engine:
        results = await asyncio.gather(*(engine.run(saga, {**given, "n": n}) for n in range(50)))
        again = await engine.run(saga, {**given, "n": 99})
    for n, result in enumerate(results):
        assert result.context == {"list": [0, n, n], "n": n, "sum": 2 * n}
    assert again.context == {"list": [0, 99, 99], "n": 99, "sum": 198}
    assert given == {"list": [0]}


async def test_a_pivot_of_one_run_is_not_passed_in_the_next() -> None:
    ledger = Ledger()
    saga = Saga("pivot")

    async def do(ctx: Any) -> Any:
        return {ctx.step: await ledger.do(ctx)}

    async def undo(result: Any, ctx: Any) -> Any:
        return await ledger.undo(ctx, result)

    saga.add_step("a", do, undo, max_retries=0)
    saga.add_step("p", do, pivot=True, max_retries=0)
    saga.add_step("b", do, undo, max_retries=0)
    ledger.fails("b", Declined())
    ledger.fails("p", None, Declined())
    async with engine_on(None, saga) as engine:
        first = await engine.run(saga)
        second = await engine.run(saga)
    assert (first.status, first.pivot_reached) == (SagaStatus.PARTIALLY_COMMITTED, True)
    assert (second.status, second.pivot_reached) == (SagaStatus.ROLLED_BACK, False)
    assert ledger.standing == ["a", "p"]


# --- ids ------------------------------------------------------------------------------------------


async def test_an_id_that_was_started_is_started_once_however_often_it_is_asked() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    async with engine_on(log, ledger=ledger) as engine:
        results = await asyncio.gather(
            *(engine.run(OrderSaga, {"n": n}, saga_id="order-1") for n in range(10))
        )
        later = await engine.run(OrderSaga, {"n": 99}, saga_id="order-1")
    assert {result.status for result in (*results, later)} == {SagaStatus.COMPLETED}
    assert {result.context["n"] for result in (*results, later)} == {0}
    assert ledger.order == ["reserve", "charge", "ship"]
    assert [type(f) for f in await facts(log, "order-1")].count(e.SagaStarted) == 1


async def test_an_id_long_ended_and_forgotten_is_not_started_again() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="order-1")
    async with engine_on(log, ledger=ledger) as another:
        for partition in another.host.partitions.values():
            partition.forget_before(partition.position)
        again = await another.run(OrderSaga, saga_id="order-1")
    assert again.success
    assert ledger.order == ["reserve", "charge", "ship"]


async def test_the_same_id_joins_a_saga_that_runs() -> None:
    ledger = Ledger()
    gate = ledger.gate("charge")
    async with engine_on(ledger=ledger) as engine:
        first = asyncio.create_task(engine.run(OrderSaga, saga_id="order-1"))
        await gate.entered()
        second = await engine.start(OrderSaga, saga_id="order-1")
        gate.open()
        assert await second.result() == await first
    assert ledger.order == ["reserve", "charge", "ship"]


async def test_ids_chosen_by_the_business_are_any_text_and_no_two_are_mixed_up() -> None:
    ids = ["order/2026-07 №5", "order/2026-07 №6", "a", "A", "a ", "1", "$x", "🚚"]
    log = MemoryEventLog(4)
    async with engine_on(log, ledger=Ledger()) as engine:
        for saga_id in ids:
            result = await engine.run(OrderSaga, {"own": saga_id}, saga_id=saga_id)
            assert (result.saga_id, result.context["own"]) == (saga_id, saga_id)
        for saga_id in ids:
            assert (await (await engine.handle(saga_id)).result()).context["own"] == saga_id


@pytest.mark.parametrize("saga_id", ["", 7, b"x", "\ud800", "x" * 1025])
async def test_what_is_no_usable_id_is_refused_and_nothing_is_written(saga_id: Any) -> None:
    log = MemoryEventLog(1)
    async with engine_on(log, ledger=Ledger()) as engine:
        before = await log.bounds(0)
        with pytest.raises(ConfigurationError):
            await engine.run(OrderSaga, saga_id=saga_id)
        assert await log.bounds(0) == before


async def test_an_unknown_id_is_told_apart_from_a_saga() -> None:
    async with engine_on(ledger=Ledger()) as engine:
        with pytest.raises(SagaNotFound) as error:
            await engine.status("nobody")
        assert error.value.saga_id == "nobody"
        with pytest.raises(SagaNotFound):
            await engine.handle("nobody")
        with pytest.raises(SagaNotFound):
            await engine.cancel("nobody")


# --- what cannot be kept --------------------------------------------------------------------------


async def test_a_live_object_in_the_start_context_is_refused_with_its_path() -> None:
    log = MemoryEventLog(1)
    async with engine_on(log, ledger=Ledger()) as engine:
        before = await log.bounds(0)
        with pytest.raises(UnstorableValue) as refused:
            await engine.run(OrderSaga, {"order": {"items": [1, threading.Lock()]}})
        with pytest.raises(UnstorableValue):
            await engine.run(OrderSaga, {1: "x"})  # type: ignore[dict-item]
        with pytest.raises(UnstorableValue):
            await engine.run(OrderSaga, [("a", 1)])  # type: ignore[arg-type]
        assert await log.bounds(0) == before
    assert refused.value.path == "order.items[1]"


@pytest.mark.parametrize(
    ("what", "path"),
    [
        (lambda ctx: {"r": {"conn": threading.Lock()}}, "result.r.conn"),
        (lambda ctx: ctx.update(conn=threading.Lock()), "conn"),
        (lambda ctx: ctx["given"].append(object()), "given[0]"),
        (lambda ctx: {1: "x"}, "result"),
        (lambda ctx: ctx.__setitem__(1, "x"), "1"),
    ],
)
async def test_what_a_step_hands_back_and_cannot_be_kept_fails_it_once_with_the_path(
    what: Any, path: str
) -> None:
    saga = Saga("live")
    calls: list[str] = []

    async def undone(ctx: Any) -> None:
        calls.append("undo first")

    async def first(ctx: Any) -> None:
        calls.append("first")

    async def step(ctx: Any) -> Any:
        calls.append("step")
        return what(ctx)

    saga.add_step("first", first, undone).add_step("step", step)
    async with engine_on(None, saga) as engine:
        result = await engine.run(saga, {"given": []})
    assert isinstance(result.error, UnstorableValue)
    assert result.error.path == path
    assert result.status is SagaStatus.ROLLED_BACK
    assert calls == ["first", "step", "undo first"]


async def test_live_objects_reach_steps_as_resources() -> None:
    lock = threading.Lock()
    saga = Saga("resources")

    async def step(ctx: Any) -> Any:
        return {"same": ctx.resources["lock"] is lock}

    saga.add_step("step", step)
    async with engine_on(None, saga, resources={"lock": lock}) as engine:
        assert (await engine.run(saga)).context == {"same": True}


# --- times, counts, what a result says ------------------------------------------------------------


async def test_times_have_their_order_and_the_duration_is_recorded() -> None:
    clock = SetClock()
    saga = Saga("timed")

    async def step(ctx: Any) -> None:
        clock.advance(1_500_000)

    saga.add_step("step", step)
    async with engine_on(None, saga, clock=clock) as engine:
        result = await engine.run(saga, saga_id="s")
        state = await engine.current("s")
    assert (state.started_at, state.ended_at) == (NOON, NOON + 1_500_000)
    assert result.execution_time == 1.5
    assert datetime.fromtimestamp(state.started_at / 1e6, UTC).tzinfo is UTC


async def test_a_clock_that_steps_back_makes_no_time_of_a_saga_fall() -> None:
    clock, log = SetClock(), MemoryEventLog(1)
    saga = Saga("back")

    async def step(ctx: Any) -> None:
        clock.advance(-3_600_000_000)

    saga.add_step("one", step).add_step("two", step)
    async with engine_on(log, saga, clock=clock) as engine:
        await engine.run(saga, saga_id="s")
    times = [
        record.entry.occurred_at
        for record in await log.read_saga("s")
        if isinstance(record.entry, e.Event)
    ]
    assert times == sorted(times)


async def test_a_result_names_the_steps_and_their_statuses() -> None:
    ledger = Ledger()
    ledger.fails("charge", Declined("no money"))
    async with engine_on(ledger=ledger) as engine:
        result = await engine.run(OrderSaga, saga_id="order-1")
        told = await (await engine.handle("order-1")).result()
    assert result.steps == {"reserve": "compensated", "charge": "failed", "ship": "pending"}
    assert (result.completed_steps, result.total_steps) == (1, 3)
    assert isinstance(result.error, Declined)
    # Who did not run it knows the error from the log.
    assert isinstance(told.error, SagaStepError)
    assert (told.error.step, told.error.error_type) == ("charge", "Declined")
    assert told.error.message == "no money"
    assert (told.status, told.steps, told.context) == (result.status, result.steps, result.context)


async def test_the_caller_may_go_away_and_the_saga_goes_on() -> None:
    ledger = Ledger()
    gate = ledger.gate("charge")
    async with engine_on(ledger=ledger) as engine:
        caller = asyncio.create_task(engine.run(OrderSaga, saga_id="order-1"))
        await gate.entered()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        gate.open()
        assert (await engine.run(OrderSaga, saga_id="order-1")).success
    assert ledger.standing == ["reserve", "charge", "ship"]


async def test_a_caller_cancelled_while_its_saga_starts_leaves_it_running() -> None:
    ledger = Ledger()
    async with engine_on(ledger=ledger) as engine:
        caller = asyncio.create_task(engine.run(OrderSaga, saga_id="order-1"))
        await until(lambda: engine.host.runner_of("order-1"))
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert (await (await engine.handle("order-1")).result()).success
    assert ledger.standing == ["reserve", "charge", "ship"]


async def test_waiting_may_be_limited_and_the_saga_goes_on() -> None:
    ledger = Ledger()
    gate = ledger.gate("charge")
    async with engine_on(ledger=ledger) as engine:
        handle = await engine.start(OrderSaga)
        with pytest.raises(TimeoutError):
            await handle.result(timeout=0.01)
        gate.open()
        assert (await handle.result(timeout=5)).success


# --- definitions ----------------------------------------------------------------------------------


def test_a_duplicate_step_name_is_refused_when_it_is_added() -> None:
    async def step(ctx: Any) -> None: ...

    with pytest.raises(DefinitionError, match="'a' is declared twice"):
        Saga("twice").add_step("a", step).add_step("a", step)


async def test_an_engine_that_is_not_running_a_saga_keeps_nothing_of_it() -> None:
    async with engine_on(ledger=Ledger()) as engine:
        for _ in range(20):
            await engine.run(OrderSaga)
        host = engine.host
        partition = host.partitions[0]
        assert (host.runners, host.tasks, host.outcomes._outcomes) == ({}, {}, {})
        assert (partition.cells, partition.held) == ({}, {})
        partition.forget_before(partition.position)
        assert partition.seen == {}
    gc.collect()
