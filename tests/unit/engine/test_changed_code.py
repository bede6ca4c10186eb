"""Code that has changed under sagas that have begun (B52, B95)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar

import pytest

from sagaz_es import Engine, Saga, SagaStatus, action, compensate, forward_recovery
from sagaz_es.core import events as e
from sagaz_es.core.fold import fold_all
from sagaz_es.errors import (
    DefinitionChanged,
    DefinitionError,
    MigrationFailed,
    PlanOutdated,
    ReplayError,
    SagaError,
    UnknownSagaName,
)
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.sagas.definition import RecordedSaga, RecoveryAction
from tests.helpers import Declined, Ledger, LedgerSaga, OrderSaga, SetClock, engine_on, facts, story

OLD = OrderSaga.fingerprint()


class Reserving(LedgerSaga):
    """What all the changed orders have in common with OrderSaga."""

    saga_name: ClassVar[str | None] = "order"

    @action("reserve", max_retries=0)
    async def reserve(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @compensate("reserve")
    async def release(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)


class Undeclared(Reserving):
    """charge and ship became pay, which notify follows."""

    @action("pay", depends_on=["reserve"], max_retries=0)
    async def pay(self, ctx: Any) -> Any:
        ctx["item"] = ctx.get("item")
        return await self.do(ctx)

    @action("notify", depends_on=["pay"], max_retries=0)
    async def notify(self, ctx: Any) -> Any:
        return await self.do(ctx)


class Declared(Undeclared):
    saga_name: ClassVar[str | None] = "order"
    compatible_with = (OLD,)


class Renaming(Declared):
    def migrate(self, saga: RecordedSaga) -> Mapping[str, Any] | None:
        return {"item": saga.context["sku"]}


class Refusing(Declared):
    def migrate(self, saga: RecordedSaga) -> Mapping[str, Any] | None:
        raise KeyError("sku")


class WithoutReserve(LedgerSaga):
    saga_name: ClassVar[str | None] = "order"
    compatible_with = (OLD,)

    @action("pay")
    async def pay(self, ctx: Any) -> Any:
        return await self.do(ctx)


class Dearer(OrderSaga):
    """Only its limits and code differ: the same definition."""

    @action("charge", depends_on=["reserve"], max_retries=7, timeout_seconds=3)
    async def charge(self, ctx: Any) -> Any:
        return await self.do(ctx)


async def interrupted(ledger: Ledger, step: str = "reserve") -> MemoryEventLog:
    """A log with "order-1" of OrderSaga, whose engine stopped while `step` was under way."""
    log = MemoryEventLog(1)
    gate = ledger.gate(step)
    engine = engine_on(log, OrderSaga, ledger=ledger)
    await engine.open()
    await engine.start(OrderSaga, {"sku": "A1"}, saga_id="order-1")
    await gate.entered()
    for task in engine.host.tasks.values():  # as a crash does: nothing is released
        task.cancel()
    await engine.close()
    ledger.gates.clear()
    return log


async def ended(ledger: Ledger, fails: str) -> MemoryEventLog:
    """A log with "order-1" of OrderSaga, rolled back after `fails` failed."""
    log = MemoryEventLog(1)
    ledger.fails(fails, Declined("no"))
    async with engine_on(log, OrderSaga, ledger=ledger) as engine:
        await engine.run(OrderSaga, {"sku": "A1"}, saga_id="order-1")
    return log


async def test_changed_code_without_a_word_leaves_an_unfinished_saga_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = await interrupted(Ledger())
    before = await facts(log, "order-1")
    async with engine_on(log, Undeclared, ledger=Ledger()) as engine:
        await asyncio.sleep(0)
        assert await engine.status("order-1") is SagaStatus.EXECUTING
    assert await facts(log, "order-1") == before
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "step 'charge' is missing; step 'ship' is missing; step 'pay' is new" in told
    assert f"({OLD}) than the code's ({Undeclared.fingerprint()})" in told
    assert f'compatible_with = ("{OLD}",)' in told


async def test_what_is_not_in_the_graph_may_change() -> None:
    ledger = Ledger()
    log = await interrupted(ledger)
    assert Dearer.fingerprint() == OLD
    async with engine_on(log, Dearer, ledger=ledger) as engine:
        await (await engine.handle("order-1")).result()
    assert [fact for fact in await facts(log, "order-1") if type(fact) is e.SagaClaimed] == [
        e.SagaClaimed("take-over")
    ]


async def test_a_class_that_declares_it_goes_on_with_its_own_steps() -> None:
    ledger = Ledger()
    log = await interrupted(ledger)
    async with engine_on(log, Declared, ledger=ledger) as engine:
        result = await (await engine.handle("order-1")).result()
    assert result.status is SagaStatus.COMPLETED
    assert result.steps == {"reserve": "completed", "pay": "completed", "notify": "completed"}
    assert ledger.standing == ["reserve", "pay", "notify"]


async def test_every_reader_folds_the_definition_that_the_saga_goes_on_by() -> None:
    log = await interrupted(ledger := Ledger())
    async with engine_on(log, Declared, ledger=ledger) as engine:
        await (await engine.handle("order-1")).result()
    records = await log.read_saga("order-1")
    state = fold_all(record.entry for record in records if isinstance(record.entry, e.Event))
    assert state.definition == Declared.fingerprint()
    assert state.step_graph.order == ("reserve", "pay", "notify")


async def test_what_migrate_sets_is_in_the_log_before_the_new_code_runs() -> None:
    log = await interrupted(ledger := Ledger())
    async with engine_on(log, Renaming, ledger=ledger) as engine:
        result = await (await engine.handle("order-1")).result()
    assert result.context["item"] == "A1"
    (claim,) = [fact for fact in await facts(log, "order-1") if type(fact) is e.SagaClaimed]
    assert claim.keys_set == '{"item":"A1"}'


async def test_a_migrate_that_raises_leaves_the_saga_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = await interrupted(Ledger())
    before = await facts(log, "order-1")
    async with engine_on(log, Refusing, ledger=Ledger()):
        await asyncio.sleep(0)
    assert await facts(log, "order-1") == before
    assert str(MigrationFailed("order-1", "order", "KeyError('sku')")) in caplog.text


async def test_no_declaration_covers_a_step_that_has_begun_and_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = await interrupted(Ledger(), "charge")
    before = await facts(log, "order-1")
    async with engine_on(log, WithoutReserve, ledger=Ledger()):
        await asyncio.sleep(0)
    assert await facts(log, "order-1") == before
    assert "step 'reserve' has begun and is missing" in caplog.text
    assert "no compatible_with can cover that" in caplog.text


async def test_a_replay_by_changed_code_is_refused_with_the_differences() -> None:
    log = await ended(Ledger(), "charge")
    async with engine_on(log, Undeclared, ledger=Ledger()) as engine:
        plan = await engine.plan_replay("order-1", "charge")
        with pytest.raises(DefinitionChanged) as refused:
            await engine.replay(plan)
    assert refused.value.differences[0] == "step 'charge' is missing"
    assert (refused.value.recorded, refused.value.code) == (OLD, Undeclared.fingerprint())
    assert (await story(log, "order-1"))[-1] == "SagaRolledBack charge"


async def test_a_replay_by_a_class_that_declares_it_runs_the_new_graph() -> None:
    log = await ended(ledger := Ledger(), "charge")
    async with engine_on(log, Renaming, ledger=ledger) as engine:
        plan = await engine.plan_replay("order-1", "pay")
        assert [(s.step, str(s.verdict)) for s in plan.steps] == [
            ("reserve", "redo"),
            ("pay", "redo"),
            ("notify", "redo"),
        ]
        replay = await engine.replay(plan)
        assert replay.success
        state = await engine.current(replay.new_saga_id)
    assert state.definition == Declared.fingerprint()
    assert state.context["item"] == '"A1"'
    assert ledger.standing == ["reserve", "pay", "notify"]


async def test_an_override_goes_before_what_migrate_sets() -> None:
    log = await ended(ledger := Ledger(), "charge")
    async with engine_on(log, Renaming, ledger=ledger) as engine:
        plan = await engine.plan_replay("order-1", "pay", context_override={"item": "B2"})
        replay = await engine.replay(plan)
        assert (await engine.current(replay.new_saga_id)).context["item"] == '"B2"'


async def test_an_effect_that_stands_keeps_its_step_in_a_replay() -> None:
    """What was undone may be gone from the code; what stands may not."""
    ledger = Ledger()
    ledger.fails("undo reserve", *[Declined("no")] * 3)
    log = await ended(ledger, "charge")
    assert ledger.standing == ["reserve"]
    async with engine_on(log, WithoutReserve, ledger=ledger) as engine:
        plan = await engine.plan_replay("order-1", "reserve")
        with pytest.raises(DefinitionChanged) as refused:
            await engine.replay(plan)
    assert refused.value.differences == ("step 'reserve' has begun and is missing",)


async def test_a_plan_that_other_code_made_is_out_of_date() -> None:
    log = await ended(Ledger(), "charge")
    async with engine_on(log, OrderSaga, ledger=Ledger()) as engine:
        plan = await engine.plan_replay("order-1", "reserve")
    log = await ended(Ledger(), "charge")
    async with engine_on(log, Declared, ledger=Ledger()) as engine:
        with pytest.raises(PlanOutdated, match="other code"):
            await engine.replay(plan)


async def test_a_migrate_that_raises_refuses_the_replay() -> None:
    log = await ended(Ledger(), "charge")
    async with engine_on(log, Refusing, ledger=Ledger()) as engine:
        with pytest.raises((MigrationFailed, ReplayError), match="migrate of 'order' failed"):
            await engine.plan_replay("order-1", "pay")


async def test_an_old_branch_is_undone_by_code_that_declares_it() -> None:
    log = await ended(ledger := Ledger(), "charge")
    async with engine_on(log, OrderSaga, ledger=ledger) as engine:
        plan = await engine.plan_replay("order-1", "charge")
        replay = await engine.replay(plan)
    assert ledger.standing == ["reserve", "charge", "ship"]

    class Longer(OrderSaga):
        compatible_with = (OLD,)

        @action("thank", depends_on=["ship"])
        async def thank(self, ctx: Any) -> Any:
            return await self.do(ctx)

    async with engine_on(log, Longer, ledger=ledger) as engine:
        await engine.undo_replay(replay.new_saga_id)
    assert ledger.standing == []
    async with engine_on(log, Undeclared, ledger=ledger) as engine:
        with pytest.raises(DefinitionChanged):
            await engine.replay(await engine.plan_replay("order-1", "charge"))


def test_a_fingerprint_that_is_no_tuple_is_refused_where_it_is_written() -> None:
    with pytest.raises(DefinitionError, match=r"such as \('0123456789abcdef',\)"):

        class _Wrong(Saga):
            compatible_with = "0123456789abcdef"  # type: ignore[assignment]


@pytest.mark.parametrize("one", ["v1", "4A0E64F1B0CF3C0B", "", 5, None])
def test_what_can_be_no_fingerprint_is_refused_where_it_is_written(one: Any) -> None:
    with pytest.raises(DefinitionError, match="compatible_with names fingerprints, 16 hex digits"):

        class _Wrong(Saga):
            compatible_with = ("4a0e64f1b0cf3c0b", one)


def test_a_migrate_that_nobody_would_await_is_refused_where_it_is_written() -> None:
    with pytest.raises(DefinitionError, match=r"write def migrate\(self, saga\)$"):

        class _Wrong(Saga):
            async def migrate(self, saga: RecordedSaga) -> Any:  # type: ignore[override]
                return {}


async def test_no_declaration_is_suggested_that_would_be_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Silent(WithoutReserve):
        saga_name: ClassVar[str | None] = "order"
        compatible_with = ()  # type: ignore[assignment]

    log = await interrupted(Ledger())
    async with engine_on(log, Silent, ledger=Ledger()) as engine:
        await asyncio.sleep(0)
        assert await engine.status("order-1") is SagaStatus.EXECUTING
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "declare compatible_with" not in told
    assert told.endswith(
        "compatible_with would not do, as what has begun must stay as it was: step 'reserve' has "
        "begun and is missing"
    )


class Approved(LedgerSaga):
    """Waits for a word before it acts."""

    saga_name: ClassVar[str | None] = "approved"

    @action("ask", max_retries=0)
    async def ask(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @action("act", depends_on=["ask"], wait_for="word", wait_seconds=3600)
    async def act(self, ctx: Any) -> Any:
        return await self.do(ctx)


class ApprovedAndTold(Approved):
    saga_name: ClassVar[str | None] = "approved"

    @action("tell", depends_on=["act"])
    async def tell(self, ctx: Any) -> Any:
        return await self.do(ctx)


async def waiting(ledger: Ledger) -> MemoryEventLog:
    """A log with "w" of Approved, which waits for its word."""
    log = MemoryEventLog(1)
    async with engine_on(log, Approved, ledger=ledger) as engine:
        await engine.start(Approved, saga_id="w")
        while (  # noqa: ASYNC110 - only asked for
            await engine.current("w")
        ).step("ask").status != "completed":
            await asyncio.sleep(0)
    return log


ASKED: dict[str, Callable[[Engine], Awaitable[Any]]] = {
    "signal": lambda engine: engine.signal("w", "word"),
    "cancel": lambda engine: engine.cancel("w"),
    "pause": lambda engine: engine.pause("w"),
    "resume": lambda engine: engine.resume("w"),
    "run": lambda engine: engine.run(ApprovedAndTold, saga_id="w"),
}


@pytest.mark.parametrize("asked", ASKED)
async def test_what_is_asked_of_a_saga_that_changed_code_may_not_carry_on_is_refused_at_once(
    asked: str,
) -> None:
    ledger = Ledger()
    log = await waiting(ledger)
    for _ in range(2):  # before and after its take-over was tried; and by the next engine
        async with engine_on(log, ApprovedAndTold, ledger=ledger) as engine:
            for _ in range(2):
                with pytest.raises(DefinitionChanged, match="step 'tell' is new"):
                    await ASKED[asked](engine)
    assert not [r for r in await log.read_saga("w") if isinstance(r.entry, e.Request)]
    async with engine_on(log, Approved, ledger=ledger) as engine:  # nothing of it comes later
        assert await engine.status("w") is SagaStatus.EXECUTING
        await engine.signal("w", "word")
        assert (await (await engine.handle("w")).result()).success


async def test_who_waits_for_a_saga_is_told_that_its_code_does_not_fit() -> None:
    log = await waiting(Ledger())
    async with engine_on(log, ApprovedAndTold, ledger=Ledger()) as engine:
        handles = [await engine.handle("w") for _ in range(3)]
        told = await asyncio.gather(
            *(handle.result() for handle in handles), return_exceptions=True
        )
    assert [type(error) for error in told] == [DefinitionChanged] * 3


async def test_a_decision_on_a_saga_of_changed_code_is_refused_at_once() -> None:
    ledger = Ledger()

    class Unsure(Approved):
        saga_name: ClassVar[str | None] = "approved"

        @action("ask", pivot=True, max_retries=0)
        async def ask(self, ctx: Any) -> Any:
            return await self.do(ctx)

        @action("act", depends_on=["ask"], max_retries=0)
        async def act(self, ctx: Any) -> Any:
            return await self.do(ctx)

        @forward_recovery("act")
        async def recover(self, ctx: Any, error: Exception) -> RecoveryAction:
            return RecoveryAction.MANUAL_INTERVENTION

    ledger.fails("act", Declined("no"))
    log = MemoryEventLog(1)
    async with engine_on(log, Unsure, ledger=ledger) as engine:
        result = await engine.run(Unsure, saga_id="w")
        assert result.status is SagaStatus.FORWARD_RECOVERY
    async with engine_on(log, ApprovedAndTold, ledger=ledger) as engine:
        with pytest.raises(DefinitionChanged):
            await engine.decide_recovery("w", "act", "retry", actor="ann")


# --- asked from elsewhere -------------------------------------------------------------------------


class Elsewhere(LedgerSaga):
    saga_name: ClassVar[str | None] = "elsewhere"

    @action("only")
    async def only(self, ctx: Any) -> Any:
        return await self.do(ctx)


WITH_CODE = pytest.mark.parametrize(
    ("code", "error", "why"),
    [
        (ApprovedAndTold, DefinitionChanged, "step 'tell' is new"),
        (Elsewhere, UnknownSagaName, "no saga class registered under the name 'approved'"),
    ],
)
FROM_ELSEWHERE = {name: ask for name, ask in ASKED.items() if name != "run"}


@WITH_CODE
@pytest.mark.parametrize("asked", FROM_ELSEWHERE)
async def test_who_asks_beside_an_engine_whose_code_does_not_fit_is_refused_with_the_reason(
    asked: str, code: type[LedgerSaga], error: type[SagaError], why: str
) -> None:
    ledger = Ledger()
    log = await waiting(ledger)
    async with engine_on(log, code, ledger=ledger):
        asker = engine_on(log, Approved, ledger=ledger)
        await asker.open(join=False)
        with pytest.raises(error, match=why):
            await FROM_ELSEWHERE[asked](asker)
        await asker.close()
    async with engine_on(log, Approved, ledger=ledger) as engine:  # nothing of it comes later
        assert await engine.status("w") is SagaStatus.EXECUTING
        assert not (await engine.current("w")).paused
        await engine.signal("w", "word")
        assert (await (await engine.handle("w")).result()).success


@pytest.mark.parametrize("asked", FROM_ELSEWHERE)
async def test_an_engine_without_the_class_refuses_at_once_and_says_which(asked: str) -> None:
    log = await waiting(Ledger())
    async with engine_on(log, Elsewhere, ledger=Ledger()) as engine:
        with pytest.raises(UnknownSagaName) as refused:
            await FROM_ELSEWHERE[asked](engine)
        assert "saga 'w' is not carried on" in str(refused.value)
        assert "registered: 'elsewhere'" in str(refused.value)
        with pytest.raises(UnknownSagaName):
            await (await engine.handle("w")).result()


async def test_many_sagas_of_classes_that_are_not_here_are_told_of_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A program with one class of a log of many."""

    class Patient(Saga):
        saga_name = "patient"

        @action("wait", wait_for="word")
        async def wait(self, ctx: Any) -> None: ...

    log = MemoryEventLog(4)
    async with Engine(log, sagas=[Patient]) as engine:
        for number in range(20):
            await engine.start(Patient, saga_id=f"w-{number}")
    caplog.clear()
    async with engine_on(log, Elsewhere, ledger=Ledger()) as engine:
        assert (await engine.run(Elsewhere, {})).success
        with pytest.raises(UnknownSagaName):
            await engine.signal("w-7", "word")
        told = [text for record in caplog.records if "unfinished" in (text := record.message)]
    assert len(told) == 1, told
    assert "20 sagas stay unfinished" in told[0]
    assert "20 of 'patient' (such as w-" in told[0]


async def test_what_was_asked_before_waits_for_the_code_that_can() -> None:
    ledger = Ledger()
    log = await waiting(ledger)
    await log.append(0, [e.SignalSent("asked before", "w", 0, "olga", name="word")])
    async with engine_on(log, ApprovedAndTold, ledger=ledger, clock=SetClock()) as engine:
        with pytest.raises(DefinitionChanged):  # its take-over was tried
            await engine.signal("w", "word")
    async with engine_on(log, Approved, ledger=ledger, clock=SetClock()) as engine:
        assert (await (await engine.handle("w")).result()).success
