"""Requests that reach a saga while it changes hands: in the log before anybody serves it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from sagaz_es import Engine, Saga, SagaResult, SagaStatus, action
from sagaz_es.core import events as e
from sagaz_es.core.fold import fold
from sagaz_es.core.state import SagaState
from sagaz_es.engine.config import EngineConfig
from sagaz_es.errors import SagaIdTaken, UnknownSagaName
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Record
from tests.helpers import QUIET, Gate, Ledger, OrderSaga, engine_on


class Approval(Saga):
    """ask → act, which waits for the signal `approved`."""

    saga_name = "approval"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    @action("ask")
    async def ask(self, ctx: Any) -> None:
        self.calls.append("ask")

    @action("act", depends_on=["ask"], wait_for="approved", wait_seconds=3600)
    async def act(self, ctx: Any) -> None:
        self.calls.append("act")


async def left_waiting(log: MemoryEventLog) -> None:
    """Saga a-1 waits for its signal, and its engine has stopped."""
    async with Engine(log, sagas=[Approval()]) as engine:
        await engine.start("approval", saga_id="a-1")
        async with asyncio.timeout(5):
            while (await engine.current("a-1")).step("act").status != "waiting":  # noqa: ASYNC110
                await asyncio.sleep(0)


SIGNAL = e.SignalSent("r-1", "a-1", 0, "olga", name="approved")
PAUSE = e.PauseRequested("r-1", "a-1", 0, "olga", "strike")
CANCEL = e.CancelRequested("r-1", "a-1", 0, "olga", "too late")


async def folded(log: MemoryEventLog) -> tuple[SagaState, list[type[e.Fact]]]:
    """The saga as the log alone has it, and the facts that the fold rejects."""
    state, rejected = SagaState(), []
    for record in await log.read_saga("a-1"):
        if isinstance(record.entry, e.Event):
            after = fold(state, record.entry)
            if after is state:
                rejected.append(type(record.entry.fact))
            state = after
    return state, rejected


WITH_REQUESTS = pytest.mark.parametrize(
    ("request_", "status", "calls"),
    [
        (SIGNAL, SagaStatus.COMPLETED, ["act"]),
        (CANCEL, SagaStatus.CANCELLED, []),
    ],
    ids=["signal", "cancel"],
)


@WITH_REQUESTS
async def test_what_was_asked_before_anybody_served_the_saga_is_answered(
    request_: e.Request, status: SagaStatus, calls: list[str]
) -> None:
    log = MemoryEventLog()
    await left_waiting(log)
    await log.append(log.partition_of("a-1"), [request_])
    saga = Approval()
    async with Engine(log, sagas=[saga]) as engine:
        handle = await engine.handle("a-1")
        assert (await handle.result(5)).status is status
    assert saga.calls == calls
    state, rejected = await folded(log)
    assert (state.status, rejected) == (status, [])


@WITH_REQUESTS
async def test_what_was_asked_of_a_dead_engine_is_answered_once_the_saga_is_taken_over(
    request_: e.Request, status: SagaStatus, calls: list[str]
) -> None:
    other = MemoryEventLog()
    await left_waiting(other)
    entries = [record.entry for record in await other.read_saga("a-1")]
    events = [entry for entry in entries if isinstance(entry, e.Event)]

    log, saga = MemoryEventLog(), Approval()
    quickly = EngineConfig(takeover_seconds=0.1, housekeeping_seconds=0.02)
    async with Engine(log, sagas=[saga], config=quickly) as engine:
        await log.append(log.partition_of("a-1"), [*events, request_])
        handle = await engine.handle("a-1")
        assert (await handle.result(5)).status is status
    assert saga.calls == calls
    state, rejected = await folded(log)
    assert (state.status, rejected) == (status, [])


async def test_nothing_that_is_asked_stands_before_the_claim() -> None:
    log = MemoryEventLog()
    await left_waiting(log)
    await log.append(log.partition_of("a-1"), [PAUSE])
    async with Engine(log, sagas=[Approval()]) as engine, asyncio.timeout(5):
        while not (await engine.current("a-1")).paused:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    state, rejected = await folded(log)
    assert (state.paused, rejected) == (True, [])


# --- asked again ----------------------------------------------------------------------------


async def test_of_two_who_retry_one_compensation_at_once_one_does() -> None:
    undone: list[str] = []

    async def book(ctx: Any) -> None: ...

    async def unbook(ctx: Any) -> None:
        undone.append(ctx.saga_id)
        await asyncio.sleep(0)
        raise ValueError("the hotel does not answer")

    async def fly(ctx: Any) -> None:
        raise ValueError("no seats")

    trip = Saga(name="trip", compensation_failure_strategy="continue_on_error")
    trip.add_step("book", book, unbook, max_retries=0).add_step("fly", fly, max_retries=0)
    async with Engine(MemoryEventLog(), sagas=[trip]) as engine:
        await engine.run("trip", saga_id="t-1")
        undone.clear()
        retries = [engine.retry_compensation("t-1", "book", reason=who) for who in ("a", "b")]
        answers = await asyncio.gather(*retries, return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) == [
            "SagaResult",
            "SagaStillRunning",
        ]
        assert undone == ["t-1"]
        undone.clear()
        same = [
            engine.retry_compensation("t-1", "book", reason="c", request_id="r-1") for _ in range(3)
        ]
        assert [str(answer.status) for answer in await asyncio.gather(*same)] == ["failed"] * 3
        assert undone == ["t-1"]


async def test_a_refused_request_that_comes_again_is_refused_again_in_the_same_words() -> None:
    log = MemoryEventLog()
    await left_waiting(log)
    report = e.OutcomeReported("r-1", "a-1", 0, "olga", step="act", happened=True)

    async def refusals(count: int) -> list[str]:
        async with asyncio.timeout(5):
            while True:
                told = [
                    record.entry.message
                    for record in await log.read_saga("a-1")
                    if isinstance(record.entry, e.RequestRefused)
                ]
                if len(told) >= count:
                    return told
                await asyncio.sleep(0.01)

    async with Engine(log, sagas=[Approval()]):
        await log.append(log.partition_of("a-1"), [report])
        first = await refusals(1)
        await log.append(log.partition_of("a-1"), [report])
        assert await refusals(2) == first * 2
    async with Engine(log, sagas=[Approval()]):  # it knows from the log
        await log.append(log.partition_of("a-1"), [report])
        assert await refusals(3) == first * 3


class LateAnswers(MemoryEventLog):
    """`late`, once set, holds an answer about a saga back until it is opened."""

    late: Gate | None = None

    async def read_saga(self, saga_id: str, from_offset: int = 0) -> tuple[Record, ...]:
        found = await super().read_saga(saga_id, from_offset)
        gate, self.late = self.late, None
        if gate is not None:
            await gate.pass_through()
        return found


async def test_an_end_that_comes_while_the_state_is_looked_up_is_heard() -> None:
    log, ledger = LateAnswers(1), Ledger()
    shipping, answer = ledger.gate("ship"), Gate()
    asker = engine_on(log, ledger=ledger)
    async with engine_on(log, ledger=ledger) as engine, asyncio.timeout(20):
        await asker.open(join=False)
        running = await engine.start(OrderSaga, saga_id="s")
        await shipping.entered()
        handle = await asker.handle("s")
        log.late = answer
        waiting = asyncio.create_task(handle.result())
        await answer.entered()
        shipping.open()
        await running.result()
        for _ in range(50):
            await asyncio.sleep(0)
        answer.open()
        assert (await waiting).status is SagaStatus.COMPLETED
        await asker.close()


class Refund(OrderSaga):
    saga_name = "refund"


@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended"])
@pytest.mark.parametrize("restarted", [False, True], ids=["the same engine", "the next engine"])
async def test_the_id_of_a_saga_of_another_name_is_refused(ended: bool, restarted: bool) -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    gate = None if ended else ledger.gate("reserve")
    engine = engine_on(log, OrderSaga, Refund, ledger=ledger)
    await engine.open()
    handle = await engine.start(OrderSaga, {"sku": "A1"}, saga_id="id-1")
    if gate is None:
        await handle.result()
    if restarted:
        if gate is not None:
            gate.open()
        await engine.close()
        engine = engine_on(log, OrderSaga, Refund, ledger=ledger)
        await engine.open()
    taken = "'refund' cannot be started as 'id-1': this is the id of a saga of 'order'"
    with pytest.raises(SagaIdTaken, match=taken):
        await engine.run(Refund, saga_id="id-1")
    asking = engine_on(log, OrderSaga, Refund, ledger=ledger)
    await asking.open(join=False)
    with pytest.raises(SagaIdTaken, match=taken):
        await asking.run(Refund, saga_id="id-1")
    # The same id of the same class is the same saga, whatever the context.
    same = await engine.start(OrderSaga, {"sku": "B2"}, saga_id="id-1")
    if gate is not None:
        gate.open()
    assert (await same.result()).context["sku"] == "A1"
    await asking.close()
    await engine.close()


async def test_of_two_names_that_ask_for_one_id_at_once_one_is_refused() -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    asking = [engine_on(log, OrderSaga, Refund, ledger=ledger) for _ in range(2)]
    for one in asking:
        await one.open(join=False)
    runs = [
        asyncio.create_task(one.run(saga, saga_id="id-1"))
        for one, saga in zip(asking, (OrderSaga, Refund), strict=True)
    ]
    while (await log.bounds(0)).end < 2:  # noqa: ASYNC110 - both requests stand
        await asyncio.sleep(0)
    async with engine_on(log, OrderSaga, Refund, ledger=ledger):
        results = await asyncio.gather(*runs, return_exceptions=True)
    won = [one for one in results if isinstance(one, SagaResult)]
    assert [one.saga_name for one in won] == ["order"]
    assert [type(one).__name__ for one in results if one not in won] == ["SagaIdTaken"]
    for one in asking:
        await one.close()


async def test_a_start_that_waits_in_line_has_its_id_for_itself() -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    gate = ledger.gate("reserve")
    config = msgspec.structs.replace(QUIET, max_in_flight=1)
    async with engine_on(log, OrderSaga, Refund, ledger=ledger, config=config) as engine:
        await engine.start(OrderSaga, saga_id="first")
        waits = await engine.start(OrderSaga, saga_id="id-1")
        with pytest.raises(SagaIdTaken):
            await engine.start(Refund, saga_id="id-1")
        gate.open()
        assert (await waits.result()).saga_name == "order"


# --- an engine that lacks the class -------------------------------------------------------------

BRIEFLY = msgspec.structs.replace(QUIET, refuse_unknown=False)


@pytest.mark.parametrize("config", [QUIET, BRIEFLY], ids=["refuses", "leaves"])
async def test_who_has_not_the_class_refuses_a_start_or_leaves_it_to_the_next_engine(
    config: EngineConfig,
) -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    asker = engine_on(log, Refund, ledger=ledger)
    await asker.open(join=False)
    async with asyncio.timeout(20), engine_on(log, ledger=ledger, config=config) as engine:
        end = (await log.bounds(0)).end
        running = asyncio.create_task(asker.run(Refund, saga_id="r-1"))
        while (await log.bounds(0)).end == end:  # noqa: ASYNC110 - until the request stands
            await asyncio.sleep(0)
        await engine.run(OrderSaga, saga_id="o-1")  # it has read as far
        if config is QUIET:
            with pytest.raises(UnknownSagaName):
                await running
    if config is BRIEFLY:
        assert not running.done()
        async with engine_on(log, OrderSaga, Refund, ledger=ledger):
            assert (await running).status is SagaStatus.COMPLETED
    ran = [call.saga_id for call in ledger.of("reserve")]
    assert ran == (["o-1", "r-1"] if config is BRIEFLY else ["o-1"])
    await asker.close()


async def test_a_cancel_of_an_unfinished_saga_is_left_to_who_has_its_class() -> None:
    log, ledger = MemoryEventLog(1), Ledger()
    charging = ledger.gate("charge")
    at_once = msgspec.structs.replace(QUIET, drain_seconds=0)
    async with engine_on(log, Refund, ledger=ledger, config=at_once) as engine:
        await engine.start(Refund, saga_id="r-1")
        await charging.entered()
    charging.open()
    asker = engine_on(log, Refund, ledger=ledger)
    await asker.open(join=False)
    async with asyncio.timeout(20), engine_on(log, ledger=ledger, config=BRIEFLY) as engine:
        end = (await log.bounds(0)).end
        cancelling = asyncio.create_task(asker.cancel("r-1", reason="late"))
        while (await log.bounds(0)).end == end:  # noqa: ASYNC110 - until the request stands
            await asyncio.sleep(0)
        await engine.run(OrderSaga, saga_id="o-1")
    assert not cancelling.done()
    async with engine_on(log, OrderSaga, Refund, ledger=ledger) as engine:
        await cancelling
        assert (await (await engine.handle("r-1")).result()).status is SagaStatus.CANCELLED
    await asker.close()
