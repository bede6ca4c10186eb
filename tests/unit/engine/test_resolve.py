"""`resolve=` says what became of an at-most-once step; only if it cannot, a person has to."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from sagaz_es import Engine, Saga, SagaStatus, action
from sagaz_es.core import events as e
from sagaz_es.errors import ConfigurationError, DefinitionError
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import facts


class Bank:
    """Its answer comes once `open` is set."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked, self.open = asyncio.Event(), asyncio.Event()
        self.booked = 0

    async def resolve(self, ctx: Any) -> Any:
        self.asked.set()
        await self.open.wait()
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def saga(self, *, wire_seconds: float = 60) -> Saga:
        async def wire(ctx: Any) -> None:
            raise asyncio.CancelledError  # nobody knows how far it came

        async def book(ctx: Any) -> None:
            self.booked += 1

        saga = Saga(name="transfer")
        saga.add_step(
            "wire", wire, at_most_once=True, timeout_seconds=wire_seconds, resolve=self.resolve
        )
        return saga.add_step("book", book)


async def asked_and_answered(bank: Bank, waiting: list[asyncio.Task[Any]]) -> None:
    await bank.asked.wait()
    for _ in range(50):  # whoever is told too soon is told by now
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    bank.open.set()


@pytest.mark.parametrize(
    ("answer", "status", "booked"),
    [(True, SagaStatus.COMPLETED, 1), (None, SagaStatus.EXECUTING, 0)],
    ids=["it happened", "it does not know"],
)
async def test_who_waits_here_or_elsewhere_is_told_once_resolve_has_answered(
    answer: Any, status: SagaStatus, booked: int
) -> None:
    log, bank = MemoryEventLog(), Bank(answer)
    saga = bank.saga()
    async with Engine(log, sagas=[saga]) as engine, Engine(log, sagas=[saga]) as other:
        handle = await engine.start(saga, saga_id="t-1")
        here = asyncio.create_task(handle.result())
        elsewhere = asyncio.create_task((await other.handle("t-1")).result())
        await asked_and_answered(bank, [here, elsewhere])
        results = [await here, await elsewhere]
        # Who comes later is told as much.
        results.append(await (await other.handle("t-1")).result())
    assert [result.status for result in results] == [status] * 3
    assert [result.needs_intervention for result in results] == [answer is None] * 3
    assert bank.booked == booked


async def test_the_next_owner_asks_again_and_nobody_is_told_before_it_is_answered() -> None:
    log, bank = MemoryEventLog(), Bank(None)
    bank.open.set()
    async with Engine(log, sagas=[saga := bank.saga()]) as engine:
        assert (await engine.run(saga, saga_id="t-1")).needs_intervention
    bank = Bank(True)
    async with Engine(log, sagas=[saga := bank.saga()]) as engine:
        again = asyncio.create_task(engine.run(saga, saga_id="t-1"))
        await asked_and_answered(bank, [again])
        assert (await again).status is SagaStatus.COMPLETED
    assert bank.booked == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "returned None: it does not know"),
        (RuntimeError("bank is down"), "failed with RuntimeError: bank is down"),
        (object(), "failed with UnstorableValue: "),
        (SystemExit(3), "failed with SystemExit: 3"),
    ],
    ids=["none", "raises", "cannot be kept", "exits"],
)
async def test_why_it_could_not_say_is_in_the_log_and_in_the_history(
    answer: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    log, bank = MemoryEventLog(), Bank(answer)
    bank.open.set()
    with caplog.at_level(logging.WARNING, "sagaz_es.engine"):
        async with Engine(log, sagas=[saga := bank.saga()]) as engine:
            assert (await engine.run(saga, saga_id="t-1")).steps["wire"] == "outcome_unknown"
    assert [fact.reason for fact in await unknown(log)][1].startswith(
        f"its resolve function {reason}"
    )
    (line,) = [record.getMessage() for record in caplog.records]
    waits = "saga t-1 (transfer) waits for a person: the outcome of step 'wire' is unknown"
    assert line.startswith(f"{waits} (saga resolve): its resolve function {reason}")


async def test_a_resolve_that_hangs_is_given_up() -> None:
    log, bank = MemoryEventLog(), Bank(True)
    async with Engine(log, sagas=[saga := bank.saga(wire_seconds=0.01)]) as engine:
        assert (await engine.run(saga, saga_id="t-1")).needs_intervention
    assert [fact.reason for fact in await unknown(log)] == [
        "the step was cancelled",
        "its resolve function has not answered in 0.01 s",
    ]


@pytest.mark.parametrize("answer", [None, True, False])
async def test_a_person_who_answers_first_is_not_overruled(answer: Any) -> None:
    log, bank = MemoryEventLog(), Bank(answer)
    async with Engine(log, sagas=[saga := bank.saga()]) as engine:
        running = asyncio.create_task(engine.run(saga, saga_id="t-1"))
        await bank.asked.wait()
        await engine.resolve_outcome("t-1", "wire", happened=True, actor="olga")
        bank.open.set()
        assert (await running).status is SagaStatus.COMPLETED
    assert len(await unknown(log)) == 1
    assert bank.booked == 1


async def unknown(log: MemoryEventLog) -> list[e.StepOutcomeUnknown]:
    return [fact for fact in await facts(log, "t-1") if isinstance(fact, e.StepOutcomeUnknown)]


# --- who waits for a person is found --------------------------------------------------------------


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for record in caplog.records if "waits for a person" in (text := record.message)]


async def test_an_engine_warns_of_an_unknown_outcome_and_counts_it_until_somebody_decides(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, bank = MemoryEventLog(), Bank(None)
    bank.open.set()
    async with Engine(log, sagas=[saga := bank.saga()]) as engine:
        assert (await engine.run(saga, saga_id="t-1")).needs_intervention
        assert warned(caplog) == [
            "saga t-1 (transfer) waits for a person: the outcome of step 'wire' is unknown "
            "(saga resolve): its resolve function returned None: it does not know"
        ]
        assert (await engine.health()).sagas_waiting_for_person == 1
        await engine.resolve_outcome("t-1", "wire", happened=True, actor="olga")
        assert (await (await engine.handle("t-1")).result()).status is SagaStatus.COMPLETED
        health = await engine.health()
        assert (health.sagas_waiting_for_person, health.sagas_unfinished) == (0, 0)
    assert len(warned(caplog)) == 1


# --- what it may be ---


async def by_itself(ctx: Any) -> Any:
    return {"by": ctx.step}


async def of_a_saga(self: Any, ctx: Any) -> Any:
    return {"by": f"{self.name}, {ctx.step}"}


class Wire(Saga):
    @action("wire", at_most_once=True)
    async def wire(self, ctx: Any) -> None:
        raise asyncio.CancelledError


class ByItself(Wire):
    @action("wire", at_most_once=True, resolve=by_itself)
    async def wire(self, ctx: Any) -> None:
        raise asyncio.CancelledError


class OfASaga(Wire):
    saga_name = "desk"

    @action("wire", at_most_once=True, resolve=of_a_saga)
    async def wire(self, ctx: Any) -> None:
        raise asyncio.CancelledError


class Named(Wire):
    saga_name = "named"

    @action("wire", at_most_once=True, resolve="look")
    async def wire(self, ctx: Any) -> None:
        raise asyncio.CancelledError

    def look(self, ctx: Any) -> Any:
        return {"by": "the base"}


class Overriding(Named):
    saga_name = "overriding"

    def look(self, ctx: Any) -> Any:
        return {"by": f"{self.name}, {ctx.step}"}


@pytest.mark.parametrize(
    ("saga", "by"),
    [
        (ByItself, "wire"),
        (OfASaga, "desk, wire"),
        (Named, "the base"),
        (Overriding, "overriding, wire"),
    ],
)
async def test_it_is_a_function_or_a_method_or_the_name_of_one(saga: type[Saga], by: str) -> None:
    async with Engine(MemoryEventLog(), sagas=[saga]) as engine:
        assert (await engine.run(saga)).context["by"] == by


async def three(self: Any, ctx: Any, error: Any) -> None: ...


async def none() -> None: ...


@pytest.mark.parametrize(
    ("resolve", "said"),
    [
        (three, r"step 'wire': resolve: three\(self.* is called with \(ctx\)"),
        (none, r"step 'wire': resolve: none\(\).* is called with \(ctx\)"),
        ("nowhere", r"Wrong: resolve of step 'wire': there is no method 'nowhere'"),
        ("wire_it", r"Wrong: resolve of step 'wire': wire_it\(self\).* \(self, ctx\)"),
        (7, "step 'wire': resolve is a function, not 7"),
    ],
)
def test_what_cannot_be_asked_is_refused_when_the_class_is_made(resolve: Any, said: str) -> None:
    with pytest.raises((DefinitionError, ConfigurationError), match=said):

        class Wrong(Saga):
            @action("wire", at_most_once=True, resolve=resolve)
            async def wire(self, ctx: Any) -> None: ...

            def wire_it(self) -> None: ...


@pytest.mark.parametrize("resolve", [of_a_saga, none, "look"])
def test_of_a_step_that_is_added_it_is_a_function(resolve: Any) -> None:
    with pytest.raises((DefinitionError, ConfigurationError), match=r"step 'wire': resolve"):
        Saga(name="s").add_step("wire", by_itself, at_most_once=True, resolve=resolve)


def test_of_a_step_that_runs_again_nobody_asks() -> None:
    with pytest.raises(ConfigurationError, match=r"step 'wire': resolve .* at_most_once=True"):
        Saga(name="s").add_step("wire", by_itself, resolve=by_itself)
    with pytest.raises(ConfigurationError, match=r"step 'wire': resolve .* at_most_once=True"):
        action("wire", resolve=by_itself)(by_itself)
