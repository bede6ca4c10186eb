"""What stands beside a group's mark; and an engine of no group, which answers for all classes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any

import pytest

from sagaz_es import Engine, EngineConfig, Saga, action, child, connect
from sagaz_es.core import events as e
from sagaz_es.engine.asking import ask
from sagaz_es.engine.groups import MAX_NOTE_BYTES, next_note, read_note, start_of
from sagaz_es.errors import ConfigurationError, UnknownSagaName
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import OrderSaga


def test_a_note_says_for_which_classes_a_mark_holds() -> None:
    first = read_note(next_note(0, read_note(""), ["order"]))
    assert start_of(50, first, ["order"], 0) == 50
    assert start_of(50, first, ["order", "invoice"], 7) == 7, "never looked for: from the beginning"
    left = read_note(next_note(50, first, ["invoice"]))
    assert start_of(90, left, ["invoice"], 0) == 90
    assert start_of(90, left, ["invoice", "order"], 0) == 50, "where the class left"
    assert start_of(90, left, ["order"], 60) == 60
    assert start_of(90, read_note("not ours"), ["order"], 3) == 3
    many = [f"class-{number}" for number in range(1000)]
    assert next_note(1, first, many) == ""
    assert len(next_note(1, read_note(""), many[:100])) < MAX_NOTE_BYTES


async def test_an_engine_without_a_group_still_refuses_what_nobody_has() -> None:
    async with connect("memory://", sagas=[OrderSaga]) as engine:
        request = e.StartRequested("r-1", "i-1", 0, saga_name="invoice", context="{}")
        with pytest.raises(UnknownSagaName, match="invoice"):
            await ask(engine.host, request, lambda fact: True)


class Parcel(Saga):
    @action("pack")
    async def pack(self, ctx: Any) -> None: ...


class Shop(Saga):
    @child("parcel", Parcel)
    async def parcel(self, ctx: Any) -> None: ...


class Reseller(Saga):
    @child("parcel", "Parcel")
    async def parcel(self, ctx: Any) -> None: ...


ORDERS = EngineConfig(group="orders")
UNSAID = r"in its step 'parcel'.* group 'orders' .*sagas=\[…\]\), too; .* by name: child 'Parcel'"


def test_an_engine_of_a_group_runs_only_the_classes_that_it_was_given() -> None:
    """Two groups with one class would take its sagas from each other, again and again."""
    with pytest.raises(ConfigurationError, match=UNSAID):
        Engine(MemoryEventLog(1), sagas=[Shop], config=ORDERS)
    Engine(MemoryEventLog(1), sagas=[Shop, Parcel], config=ORDERS)
    Engine(MemoryEventLog(1), sagas=[Reseller], config=ORDERS)
    assert Engine(MemoryEventLog(1), sagas=[Shop]).registry.names == ("Shop", "Parcel")


async def test_nor_does_a_start_or_a_factory_bring_another_class_in() -> None:
    async with Engine(MemoryEventLog(1), sagas=[Reseller], config=ORDERS) as engine:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=UNSAID):
                await engine.start(Shop, saga_id="s-1")
    made = Engine(MemoryEventLog(1), sagas={"Shop": lambda name: Shop()}, config=ORDERS)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=UNSAID):
            made.registry.by_name("Shop")


def alarms(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]


async def engines(stack: AsyncExitStack, log: MemoryEventLog, *groups: str) -> list[Engine]:
    made = []
    for group in groups:
        config = EngineConfig(group=group, takeover_seconds=0.1, housekeeping_seconds=0.02)
        made.append(await stack.enter_async_context(Engine(log, sagas=[Parcel], config=config)))
    return made


@pytest.mark.parametrize("groups", [("orders", "billing"), ("orders", "")])
async def test_a_class_in_two_groups_is_told_of_once_by_each_that_hears_of_it(
    groups: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        both = await engines(stack, MemoryEventLog(1), *groups)
        while len(alarms(caplog)) < 2:
            for engine in both:
                await engine.run(Parcel)
        for engine in both:
            await engine.run(Parcel)
    told = alarms(caplog)
    assert len(told) == 2
    for group in groups:
        ours = f"belongs to group {group!r};" if group else "belongs to no named group;"
        assert sum(ours in line for line in told) == 1
    assert all("class 'Parcel' is run by another engine, too" in line for line in told)


async def test_of_engines_of_one_group_that_come_and_go_nobody_tells_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = MemoryEventLog(2)
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        (stays,) = await engines(stack, log, "orders")
        for _ in range(10):
            async with AsyncExitStack() as other:
                (comes,) = await engines(other, log, "orders")
                for number in range(8):
                    await (stays if number % 2 else comes).run(Parcel)
    assert alarms(caplog) == []
