"""A store that is down, or damaged, changes no answer and no saga: the log answers in its place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sagaz_es import Engine, Saga
from sagaz_es.core.history import Step
from sagaz_es.engine import late_store
from sagaz_es.engine.config import EngineConfig
from sagaz_es.errors import (
    AccessRefused,
    HistoryGone,
    SagaNotFound,
    SagaSetAside,
    StorageFailed,
    Unreachable,
)
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Bounds
from sagaz_es.reading import lookup
from sagaz_es.reading.projector import Projector
from sagaz_es.reading.time_travel import SagaHistory
from sagaz_es.storage.memory import MemoryProjectionStore

DOWN = Unreachable("PostgreSQL", "db:5432/sagas", "no answer within 8 s")


class Scanned(MemoryEventLog):
    """A log without an index, as Kafka's; it may have lost its beginning."""

    indexed = False
    start = 0

    async def bounds(self, partition: int) -> Bounds:
        return Bounds(self.start, (await super().bounds(partition)).end)


class Fragile(MemoryProjectionStore):
    """Answers nothing while `error` is set, or after so many more answers."""

    error: Exception | None = None
    answers_left = 0
    asked = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not asyncio.iscoroutinefunction(found) or name == "close":
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.asked += 1
            if self.error is not None:
                if not self.answers_left:
                    raise self.error
                self.answers_left -= 1
            return await found(*args, **kwargs)

        return call


@pytest.fixture(params=[Scanned, MemoryEventLog], ids=["scanned", "indexed"])
def log(request: pytest.FixtureRequest) -> Iterator[MemoryEventLog]:
    yield request.param(2, "memory://orders")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Fragile:
    monkeypatch.setattr(lookup, "REST_S", 0.0)  # asked again each time
    return Fragile()


def order(effects: list[str]) -> Saga:
    async def reserve(ctx: Any) -> dict[str, Any]:
        effects.append(f"reserve {ctx.saga_id}")
        return {"shelf": 7}

    async def charge(ctx: Any) -> None:
        if ctx.get("wait"):
            await asyncio.sleep(3600)
        effects.append(f"charge {ctx.saga_id}")

    saga = Saga(name="order")
    return saga.add_step("reserve", reserve).add_step("charge", charge, depends_on=["reserve"])


async def told(log: MemoryEventLog, store: MemoryProjectionStore) -> list[object]:
    """All that can be asked of a saga's past, without how the answer was made."""
    history = SagaHistory("o-1", log, store, page=2)
    states = [await history.state_at(when) for when in (1, 2, 4, Step("charge"))]
    states.append(await history.now())
    shown = [(state.sequence, state.status, state.context) for state in states]
    changes = [(change.sequence, change.type) for change in await history.changes()]
    found = await history.bisect(lambda state: "shelf" in state.context)
    assert found is not None
    return [shown, changes, found.sequence, [a.event for a in await history.events()]]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - housekeeping tells nobody
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("error", [DOWN, StorageFailed("db", "a saga's head is damaged")])
async def test_status_and_history_are_the_same_without_the_store(
    log: MemoryEventLog,
    store: Fragile,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    effects: list[str] = []
    async with Engine(log, store, sagas=[order(effects)]) as engine:
        await engine.run("order", saga_id="o-1")
        await Projector(log, store).run_until()
        expected = await told(log, store)
        store.error = error
        with caplog.at_level(logging.WARNING):
            assert str(await engine.status("o-1")) == "completed"
            assert await told(log, store) == expected
            assert (await engine.history("o-1")).saga_id == "o-1"
        assert [record.getMessage() for record in caplog.records] == [
            f"the store does not answer, the log is read instead: {error}"
        ], "once, not at each look"


@pytest.mark.parametrize("answers", range(1, 12))
async def test_a_store_that_goes_away_half_way_changes_no_answer(
    log: MemoryEventLog, store: Fragile, answers: int
) -> None:
    async with Engine(log, store, sagas=[order([])]) as engine:
        await engine.run("order", saga_id="o-1")
    await Projector(log, store).run_until()
    expected = await told(log, store)
    store.error, store.answers_left = DOWN, answers
    assert await told(log, store) == expected


async def test_an_id_is_started_once_although_the_store_is_down(
    log: MemoryEventLog, store: Fragile
) -> None:
    effects: list[str] = []
    async with Engine(log, store, sagas=[order(effects)]) as engine:
        await engine.run("order", saga_id="o-1")
        await Projector(log, store).run_until()
    async with Engine(log, store, sagas=[order(effects)]) as engine:  # has not seen o-1 itself
        store.error = DOWN
        for saga_id in ("o-1", "o-2", "o-1", "o-2"):
            assert (await engine.run("order", saga_id=saga_id)).success
    assert sorted(effects) == ["charge o-1", "charge o-2", "reserve o-1", "reserve o-2"]


async def test_what_is_remembered_while_the_store_is_down_is_dropped_when_it_is_back(
    store: Fragile,
) -> None:
    log, effects = Scanned(1, "memory://orders"), list[str]()
    async with Engine(log, store, sagas=[order([])]) as engine:
        for n in range(20):
            await engine.run("order", saga_id=f"o-{n}")
        await Projector(log, store).run_until()
    config = EngineConfig(housekeeping_seconds=0.01)
    async with Engine(log, store, sagas=[order(effects)], config=config) as engine:
        (partition,) = engine.host.partitions.values()
        for _ in range(3):
            store.error = DOWN
            await engine.run("order", saga_id="o-3")
            assert partition.older is not None
            assert len(partition.older) == 20
            store.error = None
            await until(lambda: partition.older is None)
        assert (await engine.run("order", saga_id="o-4")).success
    assert effects == []


async def test_an_engine_opens_while_its_store_is_down_and_finds_it_later(
    log: MemoryEventLog, store: Fragile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_store, "AGAIN_S", 0.01)
    effects: list[str] = []
    async with Engine(log, store, sagas=[order(effects)]) as engine:
        await engine.run("order", saga_id="o-1")
        await Projector(log, store).run_until()
    store.error = DOWN
    projector = Projector(log, store)
    async with Engine(log, store, sagas=[order(effects)], projector=projector) as engine:
        for saga_id in ("o-1", "o-2"):
            assert (await engine.run("order", saga_id=saga_id)).success
        assert (await engine.history("o-1").now()).sequence == 6
        assert engine.store is not None
        with pytest.raises(Unreachable, match="db:5432"):
            await engine.store.summaries()
        store.error = None
        await until(lambda: engine.store is store)
        await projector.catch_up()
        assert {found.saga_id for found in await store.summaries()} == {"o-1", "o-2"}
    assert sorted(effects) == ["charge o-1", "charge o-2", "reserve o-1", "reserve o-2"]


async def test_a_store_of_another_log_that_is_found_later_is_never_asked(
    store: Fragile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(late_store, "AGAIN_S", 0.01)
    other, log = MemoryEventLog(2, "memory://other"), MemoryEventLog(2, "memory://orders")
    async with Engine(other, store, sagas=[order([])]) as engine:
        await engine.run("order", saga_id="o-1")
        await Projector(other, store).run_until()
    store.error = DOWN
    async with Engine(log, store, sagas=[order([])]) as engine:
        store.error = None
        await until(lambda: "goes on without a store" in caplog.text)
        assert (await engine.run("order", saga_id="o-2")).success
        with pytest.raises(SagaNotFound):
            await engine.status("o-1")
        assert engine.store is not None
        with pytest.raises(StorageFailed, match="belongs to the log"):
            await engine.store.summaries()


@pytest.mark.parametrize(
    "error",
    [AccessRefused("PostgreSQL", "db", "no role", "check"), StorageFailed("db", "version 99")],
)
async def test_what_does_not_pass_by_itself_is_told_when_an_engine_opens(
    log: MemoryEventLog, store: Fragile, error: Exception
) -> None:
    store.error = error
    with pytest.raises(type(error)):
        await Engine(log, store, sagas=[order([])]).open()


@pytest.mark.parametrize("by_id", [False, True], ids=["random ids", "ids of the caller's"])
@pytest.mark.parametrize("how", ["no store", "it is down", "it is behind"])
async def test_an_engine_that_no_store_answers_remembers_the_newest_sagas_in_full_and_no_more(
    store: Fragile, monkeypatch: pytest.MonkeyPatch, by_id: bool, how: str
) -> None:
    monkeypatch.setattr("sagaz_es.engine.partitions.partition.MAX_SEEN", 10)
    log, effects = Scanned(1, "memory://orders"), list[str]()
    config = EngineConfig(housekeeping_seconds=0.01)
    kept = store if how != "no store" else None
    async with Engine(log, kept, sagas=[order(effects)], config=config) as engine:
        store.error = DOWN if how == "it is down" else None
        (partition,) = engine.host.partitions.values()
        for n in range(100):
            await engine.run("order", saga_id=f"o-{n}" if by_id else None)
            await until(lambda: len(partition.seen) <= 10)
        assert (partition.older is not None) == by_id  # only who asks has anything kept
        for saga_id in ("o-1", "o-99", "o-100"):
            assert (await engine.run("order", saga_id=saga_id)).success
        if how == "it is behind":
            await Projector(log, store).catch_up()
            await until(lambda: partition.older is None and not partition.seen)
            assert (await engine.run("order", saga_id="o-99")).success
    assert len(effects) == 2 * (101 if by_id else 103)


async def test_what_neither_a_store_that_is_behind_nor_the_log_has_is_not_guessed(
    store: Fragile,
) -> None:
    log, effects = Scanned(1, "memory://orders"), list[str]()
    async with Engine(log, store, sagas=[order([])]) as engine:
        await engine.run("order", saga_id="o-1")
        await Projector(log, store).run_until()
        await engine.run("order", saga_id="o-2")  # the store does not see it
    end = (await log.bounds(0)).end
    async with Engine(log, store, sagas=[order(effects)]) as engine:
        log.start = end
        with pytest.raises(HistoryGone):
            await engine.run("order", saga_id="o-2")
        assert (await engine.run("order")).success
    assert len(effects) == 2


async def test_a_saga_is_taken_over_although_the_store_is_down(
    log: MemoryEventLog, store: Fragile
) -> None:
    effects: list[str] = []
    config = EngineConfig(drain_seconds=0)
    async with Engine(log, store, sagas=[order(effects)], config=config) as engine:
        await engine.start("order", {"wait": True}, saga_id="o-1")
        while len(effects) < 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    ended = asyncio.Event()

    async def charge(ctx: Any) -> None:
        effects.append("charge")
        ended.set()

    again = Saga(name="order").add_step("reserve", charge)
    again.add_step("charge", charge, depends_on=["reserve"])
    store.error, store.answers_left = DOWN, 1 + log.partitions  # it goes away once all is open
    async with Engine(log, store, sagas=[again], config=config) as engine:
        await asyncio.wait_for(ended.wait(), 10)
        assert (await (await engine.handle("o-1")).result(timeout=10)).success
    assert effects == ["reserve o-1", "charge"]


async def test_without_the_beginning_of_the_log_nothing_is_guessed(store: Fragile) -> None:
    log = Scanned(1, "memory://orders")
    effects: list[str] = []
    async with Engine(log, store, sagas=[order(effects)]) as engine:
        await engine.run("order", saga_id="o-1")
        await Projector(log, store).run_until()
        log.start, store.error = 1, DOWN
        with pytest.raises(Unreachable, match="db:5432"):
            await engine.status("o-2")
        with pytest.raises(Unreachable, match="db:5432"):
            await engine.history("o-1").now()
    assert len(effects) == 2


async def test_damage_in_the_log_is_noticed_without_the_store(
    log: MemoryEventLog, store: Fragile
) -> None:
    effects: list[str] = []
    async with Engine(log, store, sagas=[order(effects)]) as engine:
        await engine.run("order", saga_id="o-1")
    records = log._partitions[log.partition_of("o-1")].records
    place = next(n for n, record in enumerate(records) if record.key == "o-1") + 1
    whole = list(records)
    del records[place:]
    await log.append_raw(log.partition_of("o-1"), "o-1", b"damaged")
    records.extend(whole[place + 1 :])
    store.error = DOWN
    with pytest.raises(SagaSetAside, match=f"offset {place}"):
        await lookup.current_state(log, store, "o-1")
