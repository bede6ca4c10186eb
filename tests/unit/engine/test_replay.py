"""Replays on the engine: which steps run again, what happens to the world, what the log says."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import msgspec
import pytest

from sagaz_es import Engine, Saga, SagaStatus, Verdict, action, compensate
from sagaz_es.codec.values import from_text
from sagaz_es.core import events as e
from sagaz_es.engine.replayer import ReplayNotFound
from sagaz_es.engine.serving import branch_start
from sagaz_es.engine.starting import begin_branch
from sagaz_es.errors import (
    AppendRefused,
    PlanBlocked,
    PlanOutdated,
    ReplayError,
    SagaStillRunning,
    SnapshotNotFoundError,
    StorageFailed,
    UndoRefused,
)
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.reading.projector import Projector
from sagaz_es.snapshots import ReplayConfig
from sagaz_es.storage.memory import MemoryProjectionStore
from tests.helpers import (
    NOON,
    QUIET,
    Declined,
    FaultyLog,
    Gate,
    Ledger,
    LedgerSaga,
    OrderSaga,
    engine_on,
    facts,
    story,
    until,
)


class Reads(LedgerSaga):
    """reserve reads sku, charge reads token, ship reads nothing of its own."""

    saga_name: ClassVar[str | None] = "reads"

    @action("reserve", max_retries=0)
    async def reserve(self, ctx: Any) -> Any:
        ctx.resources["ledger"].seen["reserve"] = ctx["sku"]
        return await self.do(ctx)

    @compensate("reserve")
    async def release(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)

    @action("charge", max_retries=0)
    async def charge(self, ctx: Any) -> Any:
        ctx.resources["ledger"].seen["charge"] = (ctx["token"], ctx.get("voucher"))
        return await self.do(ctx)

    @compensate("charge")
    async def refund(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)

    @action("ship", max_retries=0)
    async def ship(self, ctx: Any) -> Any:
        ctx.resources["ledger"].seen["ship"] = ctx.result_of("reserve")
        return await self.do(ctx)

    @compensate("ship")
    async def recall(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)


class SeeingLedger(Ledger):
    """It also notes what steps saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {}


def verdicts(plan: Any) -> dict[str, str]:
    return {step.step: str(step.verdict) for step in plan.steps}


# --- which steps run ------------------------------------------------------------------------------


async def test_a_rolled_back_order_is_begun_anew_whatever_the_point() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("ship", Declined("no truck"))
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="o-1")
        assert ledger.standing == []
        ledger.calls.clear()
        plan = await engine.plan_replay("o-1", "ship")
        assert verdicts(plan) == dict.fromkeys(("reserve", "charge", "ship"), "redo")
        assert (await engine.replay(plan)).success
    assert ledger.order == ledger.standing == ["reserve", "charge", "ship"]


async def test_what_stands_before_the_point_is_reused_and_what_follows_is_undone() -> None:
    ledger = SeeingLedger()
    async with engine_on(None, Reads, ledger=ledger) as engine:
        done = await engine.run(Reads, {"sku": "A", "token": "t"}, saga_id="o-1")
        ledger.calls.clear()
        plan = await engine.plan_replay("o-1", "charge")
        assert verdicts(plan) == {"reserve": "reuse", "charge": "undo_first", "ship": "undo_first"}
        assert (await engine.replay(plan)).success
    assert ledger.order == ["undo ship", "undo charge", "charge", "ship"]
    for step in ("ship", "charge"):
        assert ledger.of(f"undo {step}")[0].result == {step: done.context[step]}
    assert ledger.standing == ["reserve", "charge", "ship"]
    assert ledger.seen["ship"] == {"reserve": done.context["reserve"]}, "the recorded result"


async def test_an_override_of_what_a_step_has_read_makes_it_and_its_dependents_stale() -> None:
    ledger = SeeingLedger()
    async with engine_on(None, Reads, ledger=ledger) as engine:
        ledger.fails("ship", Declined("lost"))
        await engine.run(Reads, {"sku": "A", "token": "t", "note": 1}, saga_id="o-1")

        async def planned(**override: Any) -> dict[str, str]:
            return verdicts(await engine.plan_replay("o-1", "ship", context_override=override))

        await engine.run(Reads, {"sku": "A", "token": "t", "note": 1}, saga_id="o-2")
        of_two = await engine.plan_replay("o-2", "ship", context_override={"note": 2})
        assert verdicts(of_two) == {"reserve": "reuse", "charge": "reuse", "ship": "undo_first"}
        of_two = await engine.plan_replay("o-2", "ship", context_override={"token": "u"})
        assert verdicts(of_two) == {
            "reserve": "reuse",
            "charge": "undo_first",
            "ship": "undo_first",
        }
        of_two = await engine.plan_replay("o-2", "ship", context_override={"sku": "B"})
        assert set(verdicts(of_two).values()) == {"undo_first"}
        assert await planned(note=2) == dict.fromkeys(("reserve", "charge", "ship"), "redo")


async def test_overrides_replace_whole_keys_and_the_original_keeps_its_own() -> None:
    ledger, log = SeeingLedger(), MemoryEventLog(1)
    context = {"sku": "A", "token": {"kind": "card", "no": 1}, "kept": [1, 2]}
    ledger.fails("charge", Declined("bad"))
    async with engine_on(log, Reads, ledger=ledger) as engine:
        await engine.run(Reads, context, saga_id="o-1")
        override = {"token": {"kind": "iban"}, "voucher": "V"}
        plan = await engine.plan_replay("o-1", "charge", context_override=override)
        result = await engine.replay(plan, actor="olga", reason="OPS-1")
        assert ledger.seen["charge"] == ({"kind": "iban"}, "V")
        branch = await engine.current(result.new_saga_id)
        kept = {key: from_text(text) for key, text in branch.context.items()}
        assert kept["token"] == {"kind": "iban"}
        assert kept["kept"] == [1, 2]
        original = await engine.current("o-1")
        assert {key: from_text(text) for key, text in original.start.items()} == context
        assert from_text(original.context["token"]) == context["token"]


async def test_the_original_gains_one_fact_and_the_branch_says_where_it_comes_from() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("charge", Declined())
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, {"token": "x"}, saga_id="o-1")
        before = await story(log, "o-1")
        plan = await engine.plan_replay("o-1", "charge", context_override={"token": "y"})
        result = await engine.replay(plan, actor="olga", reason="OPS-1")
    assert await story(log, "o-1") == [*before, "ReplayBranched"]
    assert result.original_saga_id == "o-1" != result.new_saga_id
    branched = (await facts(log, "o-1"))[-1]
    assert isinstance(branched, e.ReplayBranched)
    assert (branched.actor, branched.reason, branched.point) == ("olga", "OPS-1", "charge")
    started = (await facts(log, str(result.new_saga_id)))[0]
    assert isinstance(started, e.SagaStarted)
    assert (started.parent_saga_id, started.point) == ("o-1", "charge")
    assert started.digest == plan.digest
    assert from_text(started.overrides) == {"token": "y"}
    assert "redo" in started.plan


async def test_in_a_dag_only_the_point_and_what_depends_on_it_runs_again() -> None:
    ledger = Ledger()

    async def undo(result: Any, ctx: Any) -> Any:
        return await LedgerSaga.undo(ctx, result)

    saga = Saga("dag")
    for name, needs in (("a", []), ("b", ["a"]), ("c", ["a"]), ("d", ["b"]), ("e", ["c"])):
        saga.add_step(name, LedgerSaga.do, undo, depends_on=needs, max_retries=0)
    async with engine_on(None, saga, ledger=ledger) as engine:
        await engine.run(saga, saga_id="s")
        ledger.calls.clear()
        plan = await engine.plan_replay("s", "b")
        assert [step for step, verdict in verdicts(plan).items() if verdict == "reuse"] == [
            "a",
            "c",
            "e",
        ]
        assert (await engine.replay(plan)).success
    assert ledger.order == ["undo d", "undo b", "b", "d"]
    assert sorted(ledger.standing) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("pivot", "it is a pivot"),
        ("at_most_once", "it may run at most once"),
        ("no compensation", "it has no compensation"),
    ],
)
async def test_what_cannot_be_undone_blocks_until_it_is_allowed_by_name(
    option: str, why: str
) -> None:
    ledger, log = Ledger(), MemoryEventLog(1)

    async def undo(result: Any, ctx: Any) -> Any:
        return await LedgerSaga.undo(ctx, result)

    more: dict[str, Any] = {} if option == "no compensation" else {option: True}
    saga = Saga("pay").add_step("a", LedgerSaga.do, undo, max_retries=0)
    saga.add_step(
        "pay", LedgerSaga.do, None if option == "no compensation" else undo, max_retries=0, **more
    )
    async with engine_on(log, saga, ledger=ledger) as engine:
        await engine.run(saga, saga_id="s")
        before, calls = await story(log, "s"), list(ledger.calls)
        plan = await engine.plan_replay("s", "pay")
        assert (plan.verdict("pay"), plan.blocked, plan.blockers) == (
            Verdict.BLOCKED,
            True,
            ("pay",),
        )
        with pytest.raises(PlanBlocked) as blocked:
            await engine.replay(plan)
        assert (await story(log, "s"), ledger.calls) == (before, calls)
        allowed = await engine.plan_replay("s", "pay", allow=["pay"])
        assert (await engine.replay(allowed)).success
    assert str(blocked.value) == (
        "the replay of saga 's' is blocked by step 'pay' (its effect stands, it is the point of "
        f"the replay, and {why}). If it may happen again, allow it by name: allow=['pay'] or "
        "--allow pay. If not, it has to be reused: replay from a step that it does not depend on "
        "(from_step or --from-step), and leave what it read as it was (context_override or "
        "--override)"
    )
    assert ledger.standing == ["a", "pay", "pay"], "it was allowed to happen again"


# --- whether it may run ---------------------------------------------------------------------------


async def test_a_plan_is_refused_once_the_family_has_moved() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("charge", Declined())
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="o-1")
        old = await engine.plan_replay("o-1", "charge")
        assert (await engine.replay(await engine.plan_replay("o-1", "charge"))).success
        calls = list(ledger.calls)
        with pytest.raises(PlanOutdated):
            await engine.replay(old)
        dry = await engine.replay(old, dry_run=True)
        assert (dry.status, dry.success) == ("failed", False)
        assert "is out of date: it was replayed as" in str(dry.error_message)
    async with Engine(log) as without_code:
        assert (await without_code.replay(old, dry_run=True)).error_message == dry.error_message
    assert ledger.calls == calls


async def test_of_many_replays_at_once_one_runs_and_the_others_are_told() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("charge", Declined())
    async with engine_on(log, ledger=ledger) as engine, engine_on(log, ledger=ledger) as other:
        await engine.run(OrderSaga, saga_id="o-1")
        plan = await engine.plan_replay("o-1", "charge")
        racing = [one.replay(plan) for one in (engine, other, engine, other)]
        outcomes = await asyncio.gather(*racing, return_exceptions=True)
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert [outcome.success for outcome in won] == [True]
    told = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert all(isinstance(error, PlanOutdated | SagaStillRunning) for error in told)
    assert (await story(log, "o-1")).count("ReplayBranched") == 1
    assert ledger.standing == ["reserve", "charge", "ship"]


async def test_a_saga_that_runs_is_not_replayed_and_its_plan_is_shown() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    gate = ledger.gate("charge")
    async with engine_on(log, ledger=ledger) as engine:
        handle = await engine.start(OrderSaga, saga_id="o-1")
        await gate.entered()
        plan = await engine.plan_replay("o-1", "ship")
        assert verdicts(plan)["reserve"] == "reuse"
        with pytest.raises(SagaStillRunning, match="executing"):
            await engine.replay(plan)
        dry = await engine.replay(plan, dry_run=True)
        assert dry.dry_run
        gate.open()
        assert (await handle.result()).success
    assert ledger.order == ["reserve", "charge", "ship"]


async def test_while_the_head_runs_a_further_replay_is_refused_and_told_which() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("charge", Declined())
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="o-1")
        gate = ledger.gate("charge")
        running = asyncio.create_task(engine.replay(await engine.plan_replay("o-1", "charge")))
        await gate.entered()
        branch = (await engine.current("o-1")).branch
        again = await engine.plan_replay("o-1", "charge")
        with pytest.raises(SagaStillRunning, match=branch):
            await engine.replay(again)
        gate.open()
        assert (await running).success
    assert ledger.standing == ["reserve", "charge", "ship"]


@pytest.mark.parametrize(("saga_id", "step"), [("nobody", "charge"), ("o-1", "nothing")])
async def test_what_is_not_there_is_named_and_the_attempt_is_in_the_log(
    saga_id: str, step: str
) -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="o-1")
        calls = list(ledger.calls)
        with pytest.raises(SnapshotNotFoundError, match=f"{saga_id!r}.*{step!r}"):
            await engine.plan_replay(saga_id, step)
    logged = [r.entry for r in await log.read_saga(saga_id) if isinstance(r.entry, e.ReplayLogged)]
    assert [(entry.status, entry.point) for entry in logged] == [("refused", step)]
    assert ledger.calls == calls


async def test_a_name_that_is_allowed_and_no_step_is_told_as_such() -> None:
    async with engine_on(MemoryEventLog(1), ledger=Ledger()) as engine:
        await engine.run(OrderSaga, saga_id="o-1")
        told = "from step 'charge': allow names 'mail', which is none of its steps: reserve"
        for allow in ("mail", ["mail"]):
            with pytest.raises(SnapshotNotFoundError, match=told):
                await engine.plan_replay("o-1", "charge", allow=allow)


async def test_what_is_no_plan_is_not_replayed() -> None:
    async with engine_on(MemoryEventLog(1), ledger=Ledger()) as engine:
        await engine.run(OrderSaga, saga_id="o-1")
        with pytest.raises(TypeError, match=r"a plan, not 'o-1': .*engine\.plan_replay"):
            await engine.replay("o-1")  # type: ignore[arg-type]


# --- branches that fail ---------------------------------------------------------------------------


async def test_a_branch_that_fails_undoes_each_effect_that_stands_once_reused_ones_too() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="o-1")
        tokens = {call.what: call for call in ledger.calls}
        ledger.calls.clear()
        ledger.fails("ship", Declined("the truck broke down"))
        result = await engine.replay(await engine.plan_replay("o-1", "ship"))
        assert (str(result.status), result.saga_status) == ("failed", SagaStatus.ROLLED_BACK)
        assert "the truck broke down" in str(result.error_message)
        assert ledger.order == ["undo ship", "ship", "undo charge", "undo reserve"]
        assert ledger.of("undo reserve")[0].result == {"reserve": "reserve-1"}
        assert ledger.standing == []
        assert tokens
        ledger.calls.clear()
        again = await engine.plan_replay("o-1", "ship")
        assert set(verdicts(again).values()) == {"redo"}, "what was undone is not undone again"
        assert (await engine.replay(again)).success
    assert ledger.order == ledger.standing == ["reserve", "charge", "ship"]


async def test_a_forced_failure_calls_no_action_and_is_said_to_be_forced() -> None:
    ledger, log, store = Ledger(), MemoryEventLog(1), MemoryProjectionStore()
    engine = Engine(log, store, sagas=[OrderSaga], resources={"ledger": ledger})
    async with engine:
        await engine.run(OrderSaga, saga_id="o-1")
        ledger.calls.clear()
        plan = await engine.plan_replay("o-1", "ship", force_failure=True)
        result = await engine.replay(plan, actor="olga")
        assert (str(result.status), result.force_failure) == ("failed", True)
        await Projector(log, store).run_until()
        (entry,) = await store.replays("o-1")
    assert "ship" not in ledger.order
    assert ledger.order == ["undo ship", "undo charge", "undo reserve"]
    assert (entry.force_failure, entry.status, entry.actor) == (True, "failed", "olga")


# --- the audit comes first ------------------------------------------------------------------------


class RefusingLog(FaultyLog):
    """A log that takes no ReplayBranched."""

    async def append(self, partition: int, entries: Any) -> int:
        if any(isinstance(getattr(one, "fact", None), e.ReplayBranched) for one in entries):
            raise AppendRefused(partition, "not this one")
        return await super().append(partition, entries)


async def test_where_the_audit_cannot_be_written_nothing_runs() -> None:
    ledger, log = Ledger(), RefusingLog()
    ledger.fails("charge", Declined())
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="o-1")
        calls = list(ledger.calls)
        with pytest.raises(AppendRefused):
            await engine.replay(await engine.plan_replay("o-1", "charge"))
    assert ledger.calls == calls
    assert "ReplayBranched" not in await story(log, "o-1")


async def test_the_decision_stands_before_the_first_action() -> None:
    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("charge", Declined())
    async with engine_on(log, ledger=ledger) as engine:
        await engine.run(OrderSaga, saga_id="o-1")
        gate = ledger.gate("reserve")
        running = asyncio.create_task(
            engine.replay(await engine.plan_replay("o-1", "charge"), actor="olga")
        )
        await gate.entered()
        branched = (await facts(log, "o-1"))[-1]
        assert isinstance(branched, e.ReplayBranched)
        assert branched.actor == "olga"
        gate.open()
        await running


class DownStore(MemoryProjectionStore):
    down = False

    async def checkpoint(self, partition: int) -> Any:
        if self.down:
            raise StorageFailed("the store", "it is down")
        return await super().checkpoint(partition)


async def test_a_store_that_fails_while_a_replay_is_prepared_is_a_replay_error() -> None:
    ledger, log, store = Ledger(), MemoryEventLog(1), DownStore()
    log.indexed = False
    ledger.fails("charge", Declined())
    async with Engine(log, store, sagas=[OrderSaga], resources={"ledger": ledger}) as engine:
        await engine.run(OrderSaga, saga_id="o-1")
        calls = list(ledger.calls)
        store.down = True
        original = log.bounds

        async def later(partition: int) -> Any:
            bounds = await original(partition)
            return type(bounds)(1, bounds.end)  # the beginning is gone: only the store knows it

        log.bounds = later  # type: ignore[method-assign]
        with pytest.raises(ReplayError) as raised:
            await engine.plan_replay("o-1", "charge")
        assert isinstance(raised.value.__cause__, StorageFailed)
    assert ledger.calls == calls


# --- the point means the same whatever is captured ------------------------------------------------

STRATEGIES: dict[str, ReplayConfig] = {
    "none": ReplayConfig(),
    **{
        name: ReplayConfig(enable_snapshots=True, snapshot_strategy=name)
        for name in ("before_each_step", "after_each_step", "on_completion", "on_failure")
    },
    "every 2": ReplayConfig(
        enable_snapshots=True, snapshot_strategy="every_n_events", every_events=2
    ),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_the_point_is_the_first_step_that_runs_again_whatever_was_captured(
    strategy: str,
) -> None:
    ledger, log, store = Ledger(), MemoryEventLog(1), MemoryProjectionStore()

    class Order(OrderSaga):
        replay_config = STRATEGIES[strategy]

    async with Engine(log, store, sagas=[Order], resources={"ledger": ledger}) as engine:
        await engine.run(Order, saga_id="o-1")
        await Projector(log, store).run_until()
        ledger.calls.clear()
        result = await engine.replay(await engine.plan_replay("o-1", "charge"))
        assert result.success
    assert ledger.order == ["undo ship", "undo charge", "charge", "ship"]


@pytest.mark.parametrize("store", [None, MemoryProjectionStore()], ids=["no store", "a store"])
async def test_a_replay_is_undone_by_the_id_that_was_just_given_out(
    store: MemoryProjectionStore | None,
) -> None:
    """No store has to have seen it: nothing is projected here."""
    log, ledger = MemoryEventLog(4), Ledger()
    resources = {"ledger": ledger}
    async with Engine(log, store, sagas=[OrderSaga], resources=resources) as engine:
        for saga_id in ("x", "y"):
            await engine.run(OrderSaga, saga_id=saga_id)
        replays = [
            await engine.replay(await engine.plan_replay(saga_id, "charge"))
            for saga_id in ("x", "y")
        ]
        for replay in replays:
            undone = await engine.undo_replay(replay.replay_id)
            assert (undone.success, undone.new_saga_id) == (True, replay.new_saga_id)
            assert await engine.status(replay.new_saga_id) is SagaStatus.ROLLED_BACK
    async with Engine(log, store, sagas=[OrderSaga], resources=resources) as other:
        again = await other.undo_replay(replays[0].replay_id)
        assert again.new_saga_id == replays[0].new_saga_id
        with pytest.raises(ReplayNotFound, match="there is no replay 'nobody'"):
            await other.undo_replay("nobody")


class Paid(LedgerSaga):
    """Each step can be undone, its pivot too; the first one fails until it is told not to."""

    saga_name: ClassVar[str | None] = "paid"

    @action("reserve", max_retries=0)
    async def reserve(self, ctx: Any) -> Any:
        if not ctx.get("possible"):
            raise Declined("reserve")
        return await self.do(ctx)

    @compensate("reserve")
    async def release(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)

    @action("pay", pivot=True)
    async def pay(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @compensate("pay")
    async def refund(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)


async def test_an_undo_of_a_replay_is_refused_behind_the_pivot_that_it_passed() -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    async with Engine(log, sagas=[Paid], resources={"ledger": ledger}) as engine:
        await engine.run(Paid, saga_id="p")
        plan = await engine.plan_replay("p", "reserve", context_override={"possible": True})
        replay = await engine.replay(plan)
        assert replay.success
        with pytest.raises(UndoRefused, match="no way back behind its pivots") as refused:
            await engine.undo_replay(replay.replay_id)
        assert refused.value.steps == ("pay",)
        assert await engine.status(str(replay.new_saga_id)) is SagaStatus.COMPLETED
    assert ledger.standing == ["reserve", "pay"]


class Looks(LedgerSaga):
    """look depends on nobody, and its place in the order is before seat, whose value it reads."""

    saga_name: ClassVar[str | None] = "looks"

    @action("offer", depends_on=[], max_retries=0)
    async def offer(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @compensate("offer")
    async def withdraw(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)

    @action("seat", depends_on=["offer"], max_retries=0)
    async def seat(self, ctx: Any) -> Any:
        return {**await self.do(ctx), "place": 1}

    @compensate("seat")
    async def free(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)

    @action("look", depends_on=[], wait_for="seated", max_retries=0)
    async def look(self, ctx: Any) -> Any:
        assert ctx["place"]
        return await self.do(ctx)

    @compensate("look")
    async def forget(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)


async def test_what_read_a_value_of_a_step_behind_it_in_the_order_is_stale_with_it() -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    async with Engine(log, sagas=[Looks], resources={"ledger": ledger}) as engine:
        running = asyncio.create_task(engine.run(Looks, saga_id="s"))
        for _ in range(1000):
            if "StepCompleted seat" in await story(log, "s"):
                break
            await asyncio.sleep(0)
        await engine.signal("s", "seated")
        assert (await running).success
        plan = await engine.plan_replay("s", "seat")
        assert [step.step for step in plan.steps] == ["offer", "look", "seat"]
        assert plan.verdict("look") is Verdict.UNDO_FIRST
        assert plan.verdict("offer") is Verdict.REUSE


async def test_what_read_the_result_of_a_step_that_runs_again_is_stale_without_an_edge() -> None:
    ledger = Ledger()

    async def undo(result: Any, ctx: Any) -> Any:
        return await LedgerSaga.undo(ctx, result)

    async def reads(ctx: Any) -> Any:
        assert ctx.result_of("a") == {"a": "a-1"}
        return await LedgerSaga.do(ctx)

    saga = Saga("reading")
    saga.add_step("a", LedgerSaga.do, undo, depends_on=[], max_retries=0)
    saga.add_step("b", LedgerSaga.do, undo, depends_on=["a"], max_retries=0)
    saga.add_step("c", LedgerSaga.do, undo, depends_on=[], max_retries=0, wait_for="go")
    saga.add_step("d", reads, undo, depends_on=["c"], max_retries=0)
    async with engine_on(None, saga, ledger=ledger) as engine:
        running = asyncio.create_task(engine.run(saga, saga_id="s"))
        await until(lambda: "b" in ledger.order)
        await engine.signal("s", "go")  # so d comes behind a, though no edge says so
        assert (await running).success
        found = verdicts(await engine.plan_replay("s", "a"))
    assert found == {"a": "undo_first", "b": "undo_first", "c": "reuse", "d": "undo_first"}


# --- a branch that is decided and has not begun --------------------------------------------------


async def decided(ledger: Ledger) -> tuple[FaultyLog, int, e.ReplayBranched]:
    """A log that ends with the word that order-1 is replayed, and where that stands."""
    log = FaultyLog()
    ledger.fails("ship", Declined("no"))
    async with engine_on(log, OrderSaga, ledger=ledger) as engine:
        await engine.run(OrderSaga, {"sku": "A1"}, saga_id="order-1")
        await engine.replay(await engine.plan_replay("order-1", "reserve"))
    again = FaultyLog()
    for record in (await log.read(0, 1)).records:
        assert isinstance(record.entry, e.Event)
        offset = await again.append(0, [record.entry])
        if isinstance(fact := record.entry.fact, e.ReplayBranched):
            return again, offset, fact
    raise AssertionError("nothing was decided")


async def test_a_branch_that_is_on_its_way_into_the_log_holds_the_mark() -> None:
    ledger = Ledger()
    log, offset, fact = await decided(ledger)
    gate = Gate()
    log.outcomes.append(gate)
    async with engine_on(log, OrderSaga, ledger=ledger) as engine:
        await gate.entered()  # the branch's first event, which does not stand yet
        partition = engine.host.partitions[0]
        start = branch_start(fact)
        again = asyncio.ensure_future(
            begin_branch(engine.host, partition, fact.branch_saga_id, start, "order")
        )
        for _ in range(20):
            await asyncio.sleep(0)
        assert partition.low_water_mark() <= offset
        gate.open()
        assert (await (await again).result(5)).success
        await until(lambda: partition.low_water_mark() > offset)


async def test_a_branch_that_another_engine_begins_first_holds_the_mark_no_longer() -> None:
    ledger = Ledger()
    log, offset, fact = await decided(ledger)
    gate = Gate()
    log.outcomes.append(gate)
    quickly = msgspec.structs.replace(QUIET, housekeeping_seconds=0.01, takeover_seconds=0.05)
    async with engine_on(log, OrderSaga, ledger=ledger, config=quickly) as engine:
        await gate.entered()
        start = branch_start(fact)
        branch = fact.branch_saga_id
        other = e.Event(branch, "order", b"z" * 16, 0, 1, NOON, start, fact.replay_id)
        await MemoryEventLog.append(log, 0, [other])
        gate.open()
        assert (await (await engine.handle(branch)).result(5)).success  # taken over: it is silent
        await until(lambda: not engine.host.partitions[0].held)
        assert engine.host.partitions[0].low_water_mark() > offset


async def test_what_was_on_its_way_when_the_log_lost_its_tail_is_no_branch_that_has_begun() -> None:
    ledger = Ledger()
    log, offset, fact = await decided(ledger)
    log.indexed = False  # as Kafka: of what stands before the mark only a scan can say
    membership = await log.join(_takes_nothing)
    await membership.commit_low_water_mark(0, offset)
    await membership.leave()
    # The branch had begun, and its first events are gone.
    branch, done = fact.branch_saga_id, e.StepCompleted("reserve", 1)
    late = e.Event(branch, "order", b"z" * 16, 0, 3, NOON, done, fact.replay_id)
    await log.append(0, [late])
    async with engine_on(log, OrderSaga, ledger=ledger) as engine:
        assert (await (await engine.handle("order-1")).result(5)).success is False
        await until(lambda: not engine.host.partitions[0].held)
        assert (await (await engine.handle(branch)).result(5)).success


async def _takes_nothing(partitions: frozenset[int]) -> None: ...
