"""Steps beside each other: what overlaps, what a failure does to the others, who is undone when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagaz_es import ParallelFailureStrategy, Saga, SagaStatus, action, connect
from sagaz_es.errors import DefinitionError
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import (
    Declined,
    FaultyLog,
    Gate,
    Ledger,
    SetClock,
    engine_on,
    facts,
    in_words,
    until,
)


def dag(ledger: Ledger, steps: dict[str, list[str]], **options: dict[str, Any]) -> Saga:
    """Steps by name with what they depend on; each has a compensation unless its options say so."""

    async def do(ctx: Any) -> dict[str, str]:
        return {ctx.step: await ledger.do(ctx)}

    async def undo(result: Any, ctx: Any) -> None:
        await ledger.undo(ctx, result)

    saga = Saga("dag")
    for name, needs in steps.items():
        more = {"max_retries": 0, "compensation": undo, **options.get(name, {})}
        saga.add_step(name, do, depends_on=needs, **more)
    return saga


async def stands(log: MemoryEventLog, saga_id: str, fact: str) -> None:
    """Until a fact is in the log."""
    async with asyncio.timeout(30):
        while fact not in map(in_words, await facts(log, saga_id)):  # noqa: ASYNC110
            await asyncio.sleep(0)


DIAMOND: dict[str, list[str]] = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


# --- what runs when -------------------------------------------------------------------------------


async def test_of_two_changes_to_one_nested_dict_the_later_whole_value_wins() -> None:
    first = asyncio.Event()

    class Beside(Saga):
        @action("a", depends_on=[])
        async def a(self, ctx: Any) -> None:
            ctx["seats"]["a"] = 1

        @action("b", depends_on=[])
        async def b(self, ctx: Any) -> None:
            ctx["seats"]["b"] = 1
            await first.wait()

        @action("c", depends_on=["a"])
        async def c(self, ctx: Any) -> None:
            first.set()

    async with connect("memory://", sagas=[Beside]) as engine:
        result = await engine.run(Beside, {"seats": {}})
    assert result.context["seats"] == {"b": 1}


async def test_the_middle_of_a_diamond_overlaps_and_the_join_starts_after_both() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    saga = dag(ledger, DIAMOND)
    b, c = ledger.gate("b"), ledger.gate("c")
    async with engine_on(log, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await b.entered()
        await c.entered()  # both are inside at once
        b.open()
        await until(lambda: ledger.standing == ["a", "b"])
        for _ in range(50):
            await asyncio.sleep(0)
        assert ledger.order == ["a", "b", "c"], "the join waits for the other one"
        c.open()
        assert (await handle.result()).success
    assert ledger.order[-1] == "d"


async def test_a_step_starts_when_its_own_dependencies_are_done_and_not_a_whole_level() -> None:
    ledger = Ledger()
    saga = dag(ledger, {"slow": [], "quick": [], "next": ["quick"], "last": ["next"]})
    gate = ledger.gate("slow")
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        await until(lambda: ledger.standing == ["quick", "next", "last"])
        gate.open()
        assert (await handle.result()).success


async def test_groups_that_are_not_connected_both_run_and_both_are_undone() -> None:
    ledger = Ledger()
    saga = dag(ledger, {"a": [], "b": ["a"], "x": [], "y": ["x"]})
    async with engine_on(None, saga) as engine:
        assert (await engine.run(saga)).success
        assert sorted(ledger.standing) == ["a", "b", "x", "y"]
        ledger.calls.clear()
        ledger.stands.clear()
        ledger.fails("y", Declined())
        result = await engine.run(saga)
    assert result.status is SagaStatus.ROLLED_BACK
    assert ledger.standing == []


async def test_changes_of_parallel_steps_merge_in_the_order_of_the_log() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    gates = {name: asyncio.Event() for name in "bc"}

    class Two(Saga):
        @action("b", depends_on=[])
        async def b(self, ctx: Any) -> Any:
            await gates["b"].wait()
            return {"who": "b", "b": 1}

        @action("c", depends_on=[])
        async def c(self, ctx: Any) -> Any:
            await gates["c"].wait()
            return {"who": "c", "c": 1}

    for first, second in ("bc", "cb"):
        for gate in gates.values():
            gate.clear()
        async with engine_on(log, Two, ledger=ledger) as engine:
            handle = await engine.start(Two, saga_id=first)
            gates[first].set()
            await stands(log, first, f"StepCompleted {first}")
            gates[second].set()
            assert (await handle.result()).context == {"who": second, "b": 1, "c": 1}


# --- when one fails -------------------------------------------------------------------------------


async def test_fail_fast_cancels_running_siblings_and_they_are_not_completed() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    saga = dag(ledger, {"a": [], "bad": ["a"], "slow": ["a"]})
    saga.set_failure_strategy(ParallelFailureStrategy.FAIL_FAST)
    slow = ledger.gate("slow")
    bad = ledger.gate("bad")
    ledger.fails("bad", Declined("no"))
    async with engine_on(log, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await slow.entered()
        await bad.entered()
        bad.open()  # slow's gate stays closed: only a cancellation ends it
        result = await handle.result()
    assert result.status is SagaStatus.ROLLED_BACK
    assert "StepCompleted slow" not in list(map(in_words, await facts(log, "s")))
    assert result.unknown_step_names == ["slow"]
    assert (ledger.order[-1], ledger.standing) == ("undo a", [])


async def test_wait_all_lets_siblings_finish_before_the_failure_counts() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    saga = dag(ledger, {"a": [], "bad": ["a"], "slow": ["a"], "after": ["slow"]})
    saga.set_failure_strategy(ParallelFailureStrategy.WAIT_ALL)
    slow = ledger.gate("slow")
    ledger.fails("bad", Declined("no"))
    async with engine_on(log, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await slow.entered()
        await stands(log, "s", "StepFailed bad")
        for _ in range(100):
            await asyncio.sleep(0)
        assert "CompensationStarted" not in list(map(in_words, await facts(log, "s")))
        slow.open()
        result = await handle.result()
    told = list(map(in_words, await facts(log, "s")))
    assert told.index("StepCompleted slow") < told.index("CompensationStarted")
    assert "after" not in ledger.order, "nothing new begins behind a failure"
    assert (result.status, ledger.standing) == (SagaStatus.ROLLED_BACK, [])
    assert sorted(ledger.order[-2:]) == ["undo a", "undo slow"]


@pytest.mark.parametrize("grace", [0.0, 5.0])
async def test_with_grace_siblings_may_finish_in_time_and_are_cancelled_after_it(
    grace: float,
) -> None:
    ledger, log, clock = Ledger(), MemoryEventLog(1), SetClock()
    saga = dag(ledger, {"bad": [], "in time": [], "late": []})
    saga.grace_seconds = grace  # type: ignore[misc] # of this object
    gates = {name: ledger.gate(name) for name in ("in time", "late")}
    ledger.fails("bad", Declined("no"))
    async with engine_on(log, saga, clock=clock) as engine:
        handle = await engine.start(saga, saga_id="s")
        for gate in gates.values():
            await gate.entered()
        if grace:
            await stands(log, "s", "StepFailed bad")
            gates["in time"].open()
            await until(lambda: "in time" in ledger.standing)
            assert await clock.wait() == pytest.approx(5_000_000)
            clock.advance(5_000_000)
        result = await asyncio.wait_for(handle.result(), 30)
    told = list(map(in_words, await facts(log, "s")))
    assert ("StepCompleted in time" in told) == bool(grace)
    assert "StepCompleted late" not in told
    assert (result.status, ledger.standing) == (SagaStatus.ROLLED_BACK, [])


async def test_time_limits_retries_and_pivots_hold_beside_each_other_too() -> None:
    ledger = Ledger()
    saga = dag(
        ledger,
        {"a": [], "flaky": ["a"], "hangs": ["a"], "pay": ["a"], "mail": ["pay"]},
        flaky={"max_retries": 2},
        hangs={"timeout_seconds": 0.2},
        pay={"pivot": True, "compensation": None},
    )
    saga.set_failure_strategy(ParallelFailureStrategy.WAIT_ALL)
    ledger.fails("flaky", Declined(), Declined())
    ledger.gate("hangs")
    async with engine_on(None, saga) as engine:
        result = await asyncio.wait_for(engine.run(saga, saga_id="s"), 30)
    assert [call.attempt for call in ledger.of("flaky")] == [1, 2, 3]
    assert "hangs" in str(result.error)
    assert result.status is SagaStatus.PARTIALLY_COMMITTED
    assert set(ledger.standing) >= {"a", "pay"}, "what the pivot locks stands"
    assert "undo flaky" in ledger.order


# --- undoing --------------------------------------------------------------------------------------


async def test_only_what_ran_is_undone_each_once_and_side_by_side_where_it_can_be() -> None:
    ledger = Ledger()
    saga = dag(ledger, {"1": [], "2": ["1"], "3": ["1"], "4": ["2", "3"], "5": ["4"]})
    ledger.fails("4", Declined("no"))
    two, three = ledger.gate("undo 2"), ledger.gate("undo 3")
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga, saga_id="s")
        await two.entered()
        await three.entered()  # both are being undone at once
        assert "undo 1" not in ledger.order
        two.open()
        await until(lambda: "2" not in ledger.standing)
        for _ in range(50):
            await asyncio.sleep(0)
        assert "undo 1" not in ledger.order, "it waits for both"
        three.open()
        result = await handle.result()
    assert result.status is SagaStatus.ROLLED_BACK
    assert ledger.order[-1] == "undo 1"
    assert sorted(name for name in ledger.order if name.startswith("undo")) == [
        "undo 1",
        "undo 2",
        "undo 3",
    ]


async def test_the_order_of_undoing_reaches_over_a_step_without_a_compensation() -> None:
    ledger = Ledger()
    saga = dag(
        ledger,
        {"a": [], "b": ["a"], "c": ["b"], "bad": ["c"]},
        b={"compensation": None},
    )
    ledger.fails("bad", Declined())
    gate = ledger.gate("undo c")
    async with engine_on(None, saga) as engine:
        handle = await engine.start(saga)
        await gate.entered()
        for _ in range(50):
            await asyncio.sleep(0)
        assert "undo a" not in ledger.order
        gate.open()
        result = await handle.result()
    assert ledger.order[-2:] == ["undo c", "undo a"]
    assert (result.status, ledger.standing) == (SagaStatus.ROLLED_BACK, ["b"])


async def test_a_failure_before_anything_ran_has_nothing_to_undo_and_has_rolled_back() -> None:
    ledger = Ledger()
    saga = dag(ledger, DIAMOND)
    ledger.fails("a", Declined("no"))
    async with engine_on(None, saga) as engine:
        result = await engine.run(saga)
    assert (result.status, result.completed_steps) == (SagaStatus.ROLLED_BACK, 0)
    assert ledger.order == ["a"]
    assert str(result.error) == "no"


# --- graphs that cannot be ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "told"),
    [
        ({"a": ["c"], "b": ["a"], "c": ["b"]}, r"a.*b.*c|c.*b.*a"),
        ({"a": ["a"]}, "a"),
        ({"a": [], "b": ["nowhere"]}, "'b'.*'nowhere'"),
    ],
)
async def test_a_circle_or_an_unknown_dependency_is_refused_before_any_step(
    needs: dict[str, list[str]], told: str
) -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    async with engine_on(log) as engine:
        with pytest.raises(DefinitionError, match=told):
            await engine.run(dag(ledger, needs), saga_id="s")
    assert ledger.calls == []
    assert await log.read_saga("s") == ()


def test_a_circle_in_a_class_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(DefinitionError, match="a → b → a"):

        class Round(Saga):
            saga_name = "round"

            @action("a", depends_on=["b"])
            async def a(self, ctx: Any) -> None: ...

            @action("b", depends_on=["a"])
            async def b(self, ctx: Any) -> None: ...


# --- what a step sees -----------------------------------------------------------------------------


async def test_a_step_sees_no_value_of_one_beside_it_that_is_still_on_its_way_to_the_log() -> None:
    """Another engine may have taken over by then; then that value never was."""
    ledger, log = Ledger(), FaultyLog()
    seen: list[dict[str, Any]] = []
    saga = dag(ledger, {"a": [], "b": []})

    async def note(ctx: Any) -> None:
        seen.append(dict(ctx))

    saga.add_step("note", note, depends_on=["a"])
    b = ledger.gate("b")
    starts, completes = Gate(late=True), Gate()
    log.outcomes.extend(["", starts, completes])
    async with engine_on(log, saga) as engine:
        running = asyncio.create_task(engine.run(saga, saga_id="s"))
        await starts.entered()  # a has completed, note is about to start
        b.open()
        await until(lambda: "b" in ledger.standing)
        starts.open()
        await completes.entered()  # that b has completed does not stand yet
        await until(lambda: seen)
        assert seen == [{"a": "a-1"}]
        completes.open()
        assert (await running).success
    assert log.appends[2] == ["StepCompleted b"]
