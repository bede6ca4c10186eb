"""The sagas that a simulation runs: one of each kind that the engine treats in its own way.

All steps do the same: they write the world's ledger (`ctx.resources["world"]`), which the engine
does not know.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from sagaz_es import (
    CompensationFailureStrategy,
    ParallelFailureStrategy,
    Saga,
    action,
    compensate,
    forward_recovery,
)
from sagaz_es.engine.registry import Registry


async def do(ctx: Any) -> Any:
    return await ctx.resources["world"].do(ctx)


async def undo(result: Any, ctx: Any) -> Any:
    return await ctx.resources["world"].undo(ctx, result)


async def compute(ctx: Any) -> Any:
    return await ctx.resources["world"].compute(ctx)


async def begins_with(ctx: Any) -> Any:
    """What a child starts with."""
    return await ctx.resources["world"].begins_with(ctx)


async def begin_with(ctx: Any) -> Any:
    """What the children of a list start with."""
    return await ctx.resources["world"].begin_with(ctx)


async def did_it_happen(ctx: Any) -> Any:
    return ctx.resources["world"].did_it_happen(ctx)


class Late(Saga):
    """It has a deadline."""

    saga_name = "late"
    deadline_seconds = 3.0

    @action("first", max_retries=3)
    async def first(self, ctx: Any) -> Any:
        return await do(ctx)

    @compensate("first")
    async def undo_first(self, result: Any, ctx: Any) -> Any:
        return await undo(result, ctx)

    @action("second", max_retries=3, delay_seconds=1.0)
    async def second(self, ctx: Any) -> Any:
        return await do(ctx)

    @compensate("second", on_unknown=True)
    async def undo_second(self, result: Any, ctx: Any) -> Any:
        return await undo(result, ctx)


class Trip(Saga):
    """It has a pivot, behind which it goes forward."""

    saga_name = "trip"

    @action("book", max_retries=0)
    async def book(self, ctx: Any) -> Any:
        return await do(ctx)

    @compensate("book")
    async def unbook(self, result: Any, ctx: Any) -> Any:
        return await undo(result, ctx)

    @action("pay", pivot=True, max_retries=1)
    async def pay(self, ctx: Any) -> Any:
        return await do(ctx)

    @compensate("pay")
    async def refund(self, result: Any, ctx: Any) -> Any:
        return await undo(result, ctx)

    @action("confirm", max_retries=0, timeout_seconds=1.5)
    async def confirm(self, ctx: Any) -> Any:
        return await do(ctx)

    @forward_recovery("confirm", max_retries=2)
    async def recover(self, ctx: Any, error: Exception) -> Any:
        return ctx.resources["world"].recovers(ctx)

    @action("thank", max_retries=0)
    async def thank(self, ctx: Any) -> Any:
        return await do(ctx)


def _made(name: str, **options: Any) -> tuple[Saga, Any]:
    saga = Saga(name, **options)
    return saga, functools.partial(saga.add_step, timeout_seconds=1.5)


def _sagas() -> tuple[Saga | type[Saga], ...]:
    order, step = _made("order")
    step("reserve", do, undo, max_retries=1)
    step("charge", do, undo, max_retries=2, on_unknown=True)
    step("ship", do, undo, max_retries=0)

    siblings = ParallelFailureStrategy
    diamond, step = _made("diamond", failure_strategy=siblings.FAIL_FAST)
    step("top", do, undo, depends_on=[], max_retries=1)
    step("left", do, undo, depends_on=["top"], max_retries=0)
    step("right", do, undo, depends_on=["top"], max_retries=1, on_unknown=True)
    step("bottom", do, undo, depends_on=["left", "right"], max_retries=0)

    wide, step = _made("wide", failure_strategy=siblings.WAIT_ALL)
    step("a", do, undo, depends_on=[], max_retries=0)
    step("b", do, undo, depends_on=[], max_retries=1)
    step("note", do, depends_on=["a"], max_retries=0)
    step("c", do, undo, depends_on=["note"], max_retries=0)

    wire, step = _made("wire")
    step("prepare", do, undo, max_retries=0)
    step("send", do, undo, at_most_once=True, on_unknown=True, resolve=did_it_happen)
    step("once", do, undo, at_most_once=True)
    step("close", do, undo, max_retries=1)

    asked, step = _made("asked")
    step("ask", do, undo, max_retries=0)
    step("approve", do, undo, wait_for="yes", max_retries=0)
    step("remind", do, undo, delay_seconds=1.5, max_retries=0)
    step("count", compute, effects=False)
    step("confirm", do, undo, wait_for="sure", wait_seconds=4.0, max_retries=1)

    failing = CompensationFailureStrategy
    strict, one = _made("strict", compensation_failure_strategy=failing.FAIL_FAST)
    loose, two = _made("loose", compensation_failure_strategy=failing.SKIP_DEPENDENTS)
    for step in (one, two):
        step("one", do, undo, max_retries=0)
        step("two", do, undo, max_retries=0)
        step("three", do, undo, max_retries=0, compensation_type="manual")
        step("four", do, undo, max_retries=0)
    return (order, diamond, wide, wire, asked, strict, loose, Late, Trip)


async def quote(ctx: Any) -> Any:
    """Its price is a value of its own, which an override may replace."""
    return {**await do(ctx), "price": f"for {ctx.get('first')} by {ctx.attempt}"}


async def hold(ctx: Any) -> Any:
    """What was a draft is one no more."""
    done = await ctx.resources["world"].do(ctx, "price")
    ctx.pop("draft", None)
    return {**done, "seat": f"seat of {done['hold']}"}


async def with_price(ctx: Any) -> Any:
    return await ctx.resources["world"].do(ctx, "price")


async def with_seat(ctx: Any) -> Any:
    """It depends on nobody, and looks at what another one has left."""
    return await ctx.resources["world"].do(ctx, "seat")


def _fare() -> Saga:
    """Each step is made with the values of earlier ones, and can be undone, its pivot too."""
    fare, step = _made("fare")
    step("quote", quote, undo, depends_on=[], max_retries=1)
    step("hold", hold, undo, depends_on=["quote"], max_retries=0)
    step("pay", with_price, undo, depends_on=["hold"], pivot=True, max_retries=1)
    step("ship", with_price, undo, depends_on=["pay"], max_retries=0)
    step("look", with_seat, undo, depends_on=[], delay_seconds=0.5, max_retries=0)
    return fare


def _parents() -> tuple[Saga, ...]:
    """Sagas whose steps are sagas, which may have a pivot, or children of their own."""
    part, step = _made("part")
    step("one", do, undo, max_retries=0)
    step("two", do, undo, max_retries=1, on_unknown=True)

    whole, step = _made("whole")
    step("prepare", do, undo, max_retries=0)
    step("buy", begins_with, child=part, result_keys=["one"], max_retries=1)
    step("close", do, undo, max_retries=1)

    pair, step = _made("pair", failure_strategy=ParallelFailureStrategy.FAIL_FAST)
    step("go", begins_with, child=part, depends_on=[], max_retries=1)
    step("fly", begins_with, child=Trip, depends_on=[], max_retries=0, pivot=False)
    step("note", do, undo, depends_on=["go", "fly"], max_retries=0)

    house, step = _made("house", failure_strategy=ParallelFailureStrategy.WAIT_ALL)
    step("plan", do, undo, depends_on=[], max_retries=0)
    step("build", begins_with, child=whole, depends_on=["plan"], max_retries=0)
    step("garden", do, undo, depends_on=["plan"], max_retries=0)

    deal, step = _made("deal")
    step("offer", do, undo, max_retries=0)
    step(
        "buy", begins_with, child="trip", max_retries=1, pivot=False
    )  # by its name: another group has it
    step("sign", do, undo, max_retries=0)

    fleet, step = _made("fleet")
    step("load", do, undo, max_retries=0)
    step("send", begin_with, child=part, for_each=True, max_retries=1)
    step("close", do, undo, max_retries=1)

    convoy, step = _made("convoy", failure_strategy=ParallelFailureStrategy.WAIT_ALL)
    step("go", begin_with, child=whole, for_each=True, depends_on=[], max_retries=0)
    step("watch", do, undo, depends_on=[], max_retries=0)
    step("close", do, undo, depends_on=["go", "watch"], max_retries=0)
    return part, whole, pair, house, deal, fleet, convoy


ALL = (*_sagas(), *_parents(), _fare())
PLAIN = Registry(_sagas()).names
PARENTS = ("whole", "pair", "house")
FLEETS = ("fleet", "convoy")
"""Parents with a child for each item of a list."""
REGISTRY = Registry(ALL)
"""Shared by all simulated processes: what a definition is does not change."""

GROUPS = {
    "orders": ("order", "diamond", "wide", "loose", "late", "deal"),
    "payments": ("wire", "asked", "strict", "trip"),
}
"""Two named groups, and which sagas each has."""
COMES_LATER = "loose"
"""One that the first lives of its group's processes do not have yet, where a plan says so."""


def _of(names: Iterable[str]) -> Registry:
    sagas = {saga.registered_name() if isinstance(saga, type) else saga.name: saga for saga in ALL}
    return Registry(sagas[name] for name in names)


REGISTRIES = {group: _of(names) for group, names in GROUPS.items()} | {"": REGISTRY}
EARLIER = {**REGISTRIES, "orders": _of(n for n in GROUPS["orders"] if n != COMES_LATER)}
