"""The process of a parent and its child dies at each place of its life in turn.

A place is before and after each append, and after each call of a step. Whatever had happened until
then, another process finishes both sagas, and the world is as if nothing had been.

Law (one fact decides): one child for each ChildStarted that stands; nothing of it happens twice.
Law (no orphan): when the parent has ended, so has everything that it started.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from sagaz_es import Saga, action, child, compensate
from sagaz_es.testing import cancel, replay, wait
from sagaz_es.testing.faults import Faults
from sagaz_es.testing.runs import Action, Outcome, Run

PAIRS = 80
"""Runs with two crashes, of each story."""


@dataclass
class World:
    """A service that knows keys: what was done with one is not done again."""

    stands: dict[str, str] = field(default_factory=dict)  # key -> step
    undone: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def do(self, ctx: Any) -> None:
        if ctx.idempotency_key not in self.undone:
            self.stands[ctx.idempotency_key] = ctx.step

    def undo(self, ctx: Any) -> None:
        key = ctx.idempotency_key.removesuffix("/compensation")
        if self.stands.pop(key, None) is None and key not in self.undone:
            self.wrong.append(f"{key} is undone and never was done")
        self.undone.add(key)


class Payment(Saga):
    saga_name = "payment"

    @action("authorize")
    async def authorize(self, ctx: Any) -> Any:
        ctx.resources["world"].do(ctx)
        return {"amount": ctx["amount"]}

    @compensate("authorize")
    async def void(self, ctx: Any) -> None:
        ctx.resources["world"].undo(ctx)

    @action("capture", max_retries=0)
    async def capture(self, ctx: Any) -> Any:
        if ctx["amount"] < 0:
            raise ValueError("no funds")
        ctx.resources["world"].do(ctx)
        return {"receipt": ctx["amount"]}

    @compensate("capture")
    async def refund(self, ctx: Any) -> None:
        ctx.resources["world"].undo(ctx)


class SlowPayment(Payment):
    saga_name = "slow payment"

    @action("capture", wait_for="captured")
    async def capture(self, ctx: Any) -> Any:
        ctx.resources["world"].do(ctx)
        return {"receipt": ctx.signal}


class Order(Saga):
    saga_name = "order"

    @action("reserve")
    async def reserve(self, ctx: Any) -> None:
        ctx.resources["world"].do(ctx)

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        ctx.resources["world"].undo(ctx)

    @child("payment", Payment, depends_on=["reserve"], result_keys=["receipt"])
    async def payment(self, ctx: Any) -> Any:
        return {"amount": ctx["total"]}

    @action("ship", depends_on=["payment"], max_retries=0)
    async def ship(self, ctx: Any) -> None:
        if ctx["receipt"] == 13:
            raise ValueError("no truck")
        ctx.resources["world"].do(ctx)

    @compensate("ship")
    async def recall(self, ctx: Any) -> None:
        ctx.resources["world"].undo(ctx)


class SlowOrder(Order):
    saga_name = "slow order"

    @child("payment", SlowPayment, depends_on=["reserve"], result_keys=["receipt"])
    async def payment(self, ctx: Any) -> Any:
        return {"amount": ctx["total"]}


class Hasty(SlowOrder):
    saga_name = "hasty"
    deadline_seconds = 60


class Wide(Saga):
    """payment, which waits, beside stock, which fails."""

    saga_name = "wide"
    failure_strategy = "fail_fast"

    @child("payment", SlowPayment, depends_on=[])
    async def payment(self, ctx: Any) -> Any:
        return {"amount": ctx["total"]}

    @action("stock", depends_on=[], max_retries=0)
    async def stock(self, ctx: Any) -> None:
        await asyncio.sleep(1)
        raise ValueError("sold out")


class Basket(Saga):
    """order (a child with a child), beside another payment; then wrap, which fails."""

    saga_name = "basket"

    @child("order", Order, depends_on=[])
    async def order(self, ctx: Any) -> Any:
        return {"total": ctx["total"]}

    @child("gift", Payment, depends_on=[])
    async def gift(self, ctx: Any) -> Any:
        return {"amount": 5}

    @action("wrap", depends_on=["order", "gift"], max_retries=0)
    async def wrap(self, ctx: Any) -> None:
        raise ValueError("no paper")


ALL = ["authorize", "capture", "reserve", "ship"]

STORIES: dict[str, tuple[type[Saga], int, Sequence[Action], str, list[str]]] = {
    "it completes": (Order, 90, (), "completed", ALL),
    "the child rolls back": (Order, -1, (), "rolled_back", []),
    "the completed child is taken back": (Order, 13, (), "rolled_back", []),
    "the running child is cancelled": (SlowOrder, 90, (cancel("no"),), "cancelled", []),
    "the child waits for a signal": (SlowOrder, 90, (), "executing", ["authorize", "reserve"]),
    "a replay takes the child back and starts another": (
        Order,
        90,
        (replay("payment", {"total": 70}),),
        "completed",
        ALL,
    ),
    "a deadline": (Hasty, 90, (wait(minutes=2),), "rolled_back", []),
    "a failed sibling": (Wide, 90, (), "rolled_back", []),
    "children of children": (Basket, 90, (), "rolled_back", []),
    "a replay of what failed": (Order, -1, (replay("payment", {"total": 70}),), "completed", ALL),
}


def live(story: str, crash_at: Sequence[int] = ()) -> tuple[World, Run, Outcome]:
    saga, total, actions, *_ = STORIES[story]
    world = World()
    run = Run(saga, {"total": total}, lambda: {"world": world}, faults=Faults([]), actions=actions)
    try:
        outcome = run.play(crash_at)
        check(story, world, outcome)
        return world, run, outcome
    except BaseException:
        print(f"{story}, killed {run.deaths}")
        raise
    finally:
        run.bury()


def check(story: str, world: World, outcome: Outcome) -> None:
    *_, status, standing = STORIES[story]
    assert outcome.status == status, outcome.history
    assert sorted(world.stands.values()) == standing, outcome.history
    assert world.wrong == []
    if status != "executing":
        assert outcome.unfinished == (), outcome.history
    children = {"children of children": 3}.get(story, 2 if story.startswith("a replay") else 1)
    assert outcome.history.count("ChildStarted") == children


def places(story: str) -> int:
    _, run, _ = live(story)
    return len(run.lives[0].points.reached)


@pytest.mark.parametrize("story", STORIES)
def test_killed_anywhere_parent_and_child_end_as_if_nothing_had_been(story: str) -> None:
    for place in range(1, places(story) + 1):
        live(story, [place])


@pytest.mark.parametrize("story", STORIES)
def test_killed_twice_too(story: str) -> None:
    dice = random.Random(story)
    last = places(story)
    for _ in range(PAIRS):
        live(story, [dice.randint(1, last), dice.randint(1, last)])
