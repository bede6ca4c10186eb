"""Behind a pivot a saga goes forward: its handler decides, or a person; and at-most-once steps."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from sagaz_es import Engine, Saga, SagaStatus, action, compensate, forward_recovery
from sagaz_es.core import events as e
from sagaz_es.errors import ConfigurationError, DefinitionError, SagaEnded, StepNotFound
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.sagas.definition import RecoveryAction
from tests.helpers import facts


class Parcel(Saga):
    """reserve → charge (pivot) → pack → ship; `ship` fails while its carrier is in `down`."""

    saga_name = "parcel"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.down = {"post"}
        self.answers: list[Any] = []

    @action("reserve")
    async def reserve(self, ctx: Any) -> None:
        self.calls.append("reserve")

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        self.calls.append("release")

    @action("charge", depends_on=["reserve"], pivot=True)
    async def charge(self, ctx: Any) -> None:
        self.calls.append("charge")

    @compensate("charge")
    async def refund(self, ctx: Any) -> None:
        self.calls.append("refund")

    @action("pack", depends_on=["charge"])
    async def pack(self, ctx: Any) -> None:
        self.calls.append("pack")

    @compensate("pack")
    async def unpack(self, ctx: Any) -> None:
        self.calls.append("unpack")

    @action("ship", depends_on=["pack"], max_retries=0)
    async def ship(self, ctx: Any) -> None:
        carrier = ctx.get("carrier", "post")
        self.calls.append(f"ship by {carrier}")
        if carrier in self.down:
            raise ConnectionError(f"{carrier} is down")

    @action("notify", depends_on=["ship"])
    async def notify(self, ctx: Any) -> None:
        self.calls.append("notify")


class Recovering(Parcel):
    saga_name = "recovering"

    @forward_recovery("ship", max_retries=2, timeout_seconds=5)
    async def recover(self, ctx: Any, error: Exception) -> RecoveryAction:
        self.calls.append(f"recover from {type(error).__name__}")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is RecoveryAction.RETRY_WITH_ALTERNATE:
            ctx.set("carrier", "courier")
        return answer  # type: ignore[no-any-return]


BEFORE = ["reserve", "charge", "pack", "ship by post"]


async def run(saga: Parcel, log: MemoryEventLog | None = None) -> Any:
    async with Engine(log or MemoryEventLog(), sagas=[saga]) as engine:
        return await engine.run(saga)


async def test_without_a_handler_what_the_pivot_locks_stands_and_the_rest_is_undone() -> None:
    saga = Parcel()
    result = await run(saga)
    assert saga.calls == [*BEFORE, "unpack"]
    assert result.status is SagaStatus.PARTIALLY_COMMITTED
    assert result.rollback_boundary == "charge"
    assert result.committed_step_names == ["reserve", "charge"]


async def test_retry_runs_the_step_again() -> None:
    saga = Recovering()
    saga.answers = [RecoveryAction.RETRY, RecoveryAction.SKIP]
    result = await run(saga)
    recover = "recover from ConnectionError"
    assert saga.calls == [*BEFORE, recover, "ship by post", recover, "notify"]
    assert result.status is SagaStatus.COMPLETED


async def test_retry_with_alternate_sees_what_the_handler_changed() -> None:
    saga = Recovering()
    saga.answers = [RecoveryAction.RETRY_WITH_ALTERNATE]
    result = await run(saga)
    assert saga.calls[4:] == ["recover from ConnectionError", "ship by courier", "notify"]
    assert result.status is SagaStatus.COMPLETED
    assert result.context["carrier"] == "courier"


async def test_compensating_the_pivot_rolls_everything_back() -> None:
    saga = Recovering()
    saga.answers = [RecoveryAction.COMPENSATE_PIVOT]
    result = await run(saga)
    assert saga.calls[4:] == ["recover from ConnectionError", "unpack", "refund", "release"]
    assert result.status is SagaStatus.ROLLED_BACK


@pytest.mark.parametrize(
    "answers",
    [
        [RecoveryAction.MANUAL_INTERVENTION],
        [ValueError("handler broke")],
        ["nonsense"],
        [RecoveryAction.RETRY, RecoveryAction.RETRY],  # out of tries
    ],
    ids=["manual", "raises", "nonsense", "out-of-tries"],
)
async def test_a_handler_that_cannot_say_leaves_it_to_a_person(answers: list[Any]) -> None:
    saga = Recovering()
    saga.answers = answers
    result = await run(saga)
    assert result.status is SagaStatus.FORWARD_RECOVERY
    assert result.needs_intervention
    assert not {"unpack", "refund", "release"} & set(saga.calls)


async def test_a_handler_that_hangs_leaves_it_to_a_person() -> None:
    class Hanging(Parcel):
        saga_name = "hanging"

        @forward_recovery("ship", timeout_seconds=0.01)
        async def recover(self, ctx: Any, error: Exception) -> RecoveryAction:
            self.calls.append("recover")
            await asyncio.Event().wait()
            return RecoveryAction.SKIP

    saga = Hanging()
    result = await run(saga)
    assert result.status is SagaStatus.FORWARD_RECOVERY
    assert saga.calls == [*BEFORE, "recover"]


async def test_the_limit_of_a_handler_begins_once_it_has_a_thread() -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    held, released = asyncio.Event(), threading.Event()

    def holds(ctx: Any) -> None:
        loop.call_soon_threadsafe(held.set)
        released.wait(10)

    async def hangs(ctx: Any) -> None:
        await asyncio.Event().wait()

    class Waiting(Parcel):
        saga_name = "waiting"

        @forward_recovery("ship", timeout_seconds=0.05)
        def recover(self, ctx: Any, error: Exception) -> RecoveryAction:
            self.calls.append("recover")
            return RecoveryAction.SKIP

    saga = Waiting()
    other = Saga("other").add_step("hold", holds)
    clock = Saga("clock").add_step("hang", hangs, timeout_seconds=0.05, max_retries=0)
    log = MemoryEventLog(1)
    async with asyncio.timeout(20), Engine(log, sagas=[saga, other, clock]) as engine:
        try:
            await engine.start("other")
            await held.wait()
            recovering = await engine.start(saga, saga_id="w")
            while (await engine.current("w")).step("ship").status != "failed":  # noqa: ASYNC110
                await asyncio.sleep(0)
            await engine.run("clock")  # longer than the handler may take
            assert "recover" not in saga.calls
        finally:
            released.set()
        assert (await recovering.result()).status is SagaStatus.COMPLETED
    assert saga.calls == [*BEFORE, "recover", "notify"]


async def test_a_person_decides_later_and_in_another_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, saga = MemoryEventLog(), Recovering()
    saga.answers = [RecoveryAction.MANUAL_INTERVENTION]
    async with Engine(log, sagas=[saga]) as engine:
        parked = await engine.run(saga, saga_id="p-1")
        assert (await engine.health()).sagas_waiting_for_person == 1
    assert parked.status is SagaStatus.FORWARD_RECOVERY
    assert "waits for a person: how to go on from step 'ship' (saga recover)" in caplog.text

    again = Recovering()
    again.down = set()
    async with Engine(log, sagas=[again]) as engine:
        handle = await engine.handle("p-1")
        await engine.decide_recovery("p-1", "ship", "retry", actor="olga", reason="post is up")
        assert (await handle.result()).status is SagaStatus.COMPLETED
    assert again.calls == ["ship by post", "notify"]
    decided = [
        record.entry.fact
        for record in await log.read_saga("p-1")
        if isinstance(record.entry, e.Event) and isinstance(record.entry.fact, e.RecoveryDecided)
    ]
    assert decided[-1].request_id
    assert msgspec.structs.replace(decided[-1], request_id="") == e.RecoveryDecided(
        "ship", "retry", "", "olga", "post is up"
    )


async def test_a_decision_that_fits_nothing_is_refused_and_nothing_is_written() -> None:
    log, saga = MemoryEventLog(), Recovering()
    saga.answers = [RecoveryAction.MANUAL_INTERVENTION]
    async with Engine(log, sagas=[saga]) as engine:
        result = await engine.run(saga)
        before = len(await log.read_saga(result.saga_id))
        with pytest.raises(StepNotFound, match="'ship'"):
            await engine.decide_recovery(result.saga_id, "pack", "retry", actor="olga")
        with pytest.raises(ConfigurationError, match="retry_with_alternate"):
            await engine.decide_recovery(result.saga_id, "ship", "explode", actor="olga")
        assert len(await log.read_saga(result.saga_id)) == before


def test_a_handler_for_an_unknown_step_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(DefinitionError, match="recovery handler for 'shipp'"):

        class Wrong(Parcel):
            @forward_recovery("shipp")
            async def recover(self, ctx: Any, error: Exception) -> RecoveryAction:
                return RecoveryAction.SKIP


@pytest.mark.parametrize("ending", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_a_handler_that_would_end_more_than_itself_leaves_it_to_a_person(
    ending: BaseException,
) -> None:
    class Ending(Parcel):
        saga_name = "ending"

        @forward_recovery("ship")
        def recover(self, ctx: Any, error: Exception) -> RecoveryAction:
            raise ending

    log = MemoryEventLog()
    result = await run(Ending(), log)
    assert result.forward_recovery_needed
    told = await facts(log, result.saga_id)
    reasons = [fact.reason for fact in told if isinstance(fact, e.RecoveryDecided)]
    assert reasons and type(ending).__name__ in reasons[0]


# --- at most once ---------------------------------------------------------------------------


def transfer(calls: list[str], resolve: Any = None) -> Saga:
    """One at-most-once step that hangs, and one after it."""

    async def wire(ctx: Any) -> None:
        calls.append("wire")
        await asyncio.sleep(3600)

    async def book(ctx: Any) -> None:
        calls.append(f"book {ctx.get('reference')}")

    saga = Saga(name="transfer")
    saga.add_step("wire", wire, at_most_once=True, timeout_seconds=0.01, resolve=resolve)
    return saga.add_step("book", book)


async def test_an_at_most_once_step_of_unknown_outcome_waits_for_a_person() -> None:
    calls: list[str] = []
    saga = transfer(calls)
    async with Engine(MemoryEventLog(), sagas=[saga]) as engine:
        parked = await engine.run(saga)
        assert parked.steps["wire"] == "outcome_unknown"
        assert parked.unknown_step_names == ["wire"]
        assert calls == ["wire"]
        handle = await engine.handle(parked.saga_id)
        await engine.resolve_outcome(
            parked.saga_id, "wire", happened=True, result={"reference": "r-1"}, actor="olga"
        )
        result = await handle.result()
    assert result.status is SagaStatus.COMPLETED
    assert calls == ["wire", "book r-1"]


async def test_a_person_says_that_it_did_not_happen() -> None:
    calls: list[str] = []
    saga = transfer(calls)
    async with Engine(MemoryEventLog(), sagas=[saga]) as engine:
        parked = await engine.run(saga)
        handle = await engine.handle(parked.saga_id)
        await engine.resolve_outcome(parked.saga_id, "wire", happened=False, actor="olga")
        assert (await handle.result()).status is SagaStatus.ROLLED_BACK
        with pytest.raises(SagaEnded, match="rolled_back"):
            await engine.resolve_outcome(parked.saga_id, "wire", happened=True, actor="olga")
    assert calls == ["wire"]


@pytest.mark.parametrize(
    ("answer", "status", "called"),
    [
        ({"reference": "r-7"}, SagaStatus.COMPLETED, ["wire", "book r-7"]),
        (True, SagaStatus.COMPLETED, ["wire", "book None"]),
        (False, SagaStatus.ROLLED_BACK, ["wire"]),
        (None, SagaStatus.EXECUTING, ["wire"]),
    ],
    ids=["result", "true", "false", "none"],
)
async def test_resolve_says_what_happened(
    answer: Any, status: SagaStatus, called: list[str]
) -> None:
    calls: list[str] = []

    async def resolve(ctx: Any) -> Any:
        return answer

    saga = transfer(calls, resolve)
    async with Engine(MemoryEventLog(), sagas=[saga]) as engine:
        result = await engine.run(saga)
    assert (result.status, calls) == (status, called)


@pytest.mark.parametrize("ending", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_a_resolve_that_would_end_more_than_itself_leaves_it_to_a_person(
    ending: BaseException,
) -> None:
    async def resolve(ctx: Any) -> Any:
        raise ending

    saga = transfer([], resolve)
    async with Engine(MemoryEventLog(), sagas=[saga]) as engine:
        assert (await engine.run(saga)).steps["wire"] == "outcome_unknown"
