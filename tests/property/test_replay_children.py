"""A parent with a child, failed and replayed at random, the child also on its own: what stands?

Each example is a random line of failures, and of replays and undoings of any member of the parent's
family and of its children's families, on the real engine and a log in memory.

Law (exactly once): of all children that the members of a family have started, one stands, unless a
person allowed another by name, or replayed one whose parent had gone back.
Law (no lies): what the engine says of a saga is what stands of it in the world.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from sagaz_es import Engine, Saga, SagaResult
from sagaz_es.core import events as e
from sagaz_es.errors import PlanBlocked, UndoRefused
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import QUIET, Declined, SetClock

EXAMPLES = int(os.environ.get("EXAMPLES", "120"))


@dataclass
class World:
    """The ledger: token -> step and the saga that made it."""

    outcomes: dict[str, list[bool]]  # of each step's calls, in order: whether it fails
    undo_failures: dict[str, list[int]]  # how often each undoing fails before it works
    stands: dict[str, tuple[str, str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    made: int = 0

    async def act(self, ctx: Any) -> Any:
        outcomes = self.outcomes.get(ctx.step)
        await asyncio.sleep(0)
        if outcomes and outcomes.pop(0):
            raise Declined(ctx.step)
        self.made += 1
        token = f"{ctx.step}-{self.made}"
        self.stands[token] = (ctx.step, ctx.saga_id)
        return {f"k{ctx.step}": token, "seen": ctx.get("total", 0)}

    async def undo(self, result: Any, ctx: Any) -> None:
        failures = self.undo_failures.get(ctx.step)
        if failures and failures[0] > 0:
            failures[0] -= 1
            raise Declined(f"undo {ctx.step}")
        if failures:
            failures.pop(0)
        if self.stands.pop(result[f"k{ctx.step}"], None) is None:
            self.wrong.append(f"{result} is undone, but does not stand")

    def of(self, family: list[str]) -> Counter[str]:
        return Counter(step for step, saga_id in self.stands.values() if saga_id in family)


def sagas(world: World, pivot: bool, merged: bool, reads: bool) -> tuple[Saga, Saga]:
    payment = Saga("payment")
    how: dict[str, Any] = {"compensation": lambda result, ctx: world.undo(result, ctx)}
    payment.add_step("x", world.act, **how, max_retries=0)
    payment.add_step("y", world.act, **how, depends_on=["x"], max_retries=0, pivot=pivot)

    async def start(ctx: Any) -> Any:
        return {"total": ctx["total"] if reads else 7}

    order = Saga("order")
    order.add_step("a", world.act, **how, max_retries=0)
    keys = ["ky"] if merged else None
    order.add_step("pay", start, child=payment, result_keys=keys, depends_on=["a"], pivot=False)
    order.add_step("c", world.act, **how, depends_on=["pay"], max_retries=0)
    return order, payment


class Story:
    def __init__(self, engine: Engine, world: World, order: Saga) -> None:
        self.engine, self.world, self.order = engine, world, order
        self.members = ["root"]
        self.families: dict[str, list[str]] = {}  # of each child
        self.excused: set[str] = set()  # children that may stand beside the current one
        self.doubled: Counter[str] = Counter()  # steps of the parent that were allowed by name

    async def begin(self) -> None:
        await self.engine.run(self.order, {"total": 0}, saga_id="root")
        await self.check()

    async def current_child(self) -> str:
        return (await self.engine.current(self.members[-1])).step("pay").child

    async def replay_parent(self, member: int, point: str, total: int | None, allow: bool) -> None:
        named = self.members[member % len(self.members)]
        override = {} if total is None else {"total": total}
        plan = await self.engine.plan_replay(named, point, context_override=override)
        note(f"{named} from {point} {override}: {[(s.step, str(s.verdict)) for s in plan.steps]}")
        if plan.blocked:
            if not allow:
                try:
                    await self.engine.replay(plan)
                    raise AssertionError("a blocked plan ran")
                except PlanBlocked:
                    return
            before = await self.ended(self.members[-1])
            for step in plan.blockers:
                if step == "pay":
                    self.excused.add(await self.current_child())
                elif step in before.committed_step_names:
                    self.doubled[step] += 1
            plan = await self.engine.plan_replay(
                named, point, context_override=override, allow=plan.blockers
            )
        replay = await self.engine.replay(plan)
        assert replay.new_saga_id is not None
        self.members.append(replay.new_saga_id)

    async def replay_child(self, point: str, total: int | None, allow: bool) -> None:
        child = await self.current_child()
        if not child:
            return
        override = {} if total is None else {"total": total}
        plan = await self.engine.plan_replay(child, point, context_override=override)
        if plan.blocked:
            return
        parent = await self.engine.current(self.members[-1])
        step = parent.step("pay")
        if step.status != "completed" or parent.status != "completed":
            self.excused.add(child)  # its parent has gone back: it stands alone
        replay = await self.engine.replay(plan)
        assert replay.new_saga_id is not None
        note(f"child {child} from {point}: {replay.saga_status}")
        self.families[child].append(replay.new_saga_id)

    async def undo(self, saga_id: str) -> None:
        try:
            done = await self.engine.undo_replay(saga_id)
            note(f"undo {saga_id}: {done.status}")
        except UndoRefused as refused:
            note(f"undo {saga_id}: {refused}")

    async def check(self) -> None:
        await self.find_children()
        world = self.world
        assert world.wrong == []
        for child, family in self.families.items():
            result = await self.ended(family[-1])
            assert world.of(family) == Counter(result.committed_step_names), child
            event(f"child {result.status}")
        head = await self.ended(self.members[-1])
        event(f"parent {head.status}")
        note(f"{head.status} {head.steps}, stands {world.stands}")
        mine = world.of(self.members) - self.doubled
        assert mine == Counter(name for name in head.committed_step_names if name != "pay")
        current = await self.current_child()
        for child, family in self.families.items():
            if child not in self.excused and (child != current or head.steps["pay"] == "pending"):
                assert not world.of(family), f"{child} stands beside {current}"
        if current and head.steps["pay"] == "compensated" and current not in self.excused:
            assert not world.of(self.families[current])
        if head.status == "rolled_back" and not (await self.engine.current(head.saga_id)).undone:
            assert head.steps["pay"] != "completed"
        if head.status == "completed":
            assert head.steps["pay"] == "completed"

    async def find_children(self) -> None:
        for member in self.members:
            for record in await self.engine.log.read_saga(member):
                entry = record.entry
                if isinstance(entry, e.Event) and isinstance(entry.fact, e.ChildStarted):
                    child = entry.fact.child_saga_id
                    self.families.setdefault(child, [child])

    async def ended(self, saga_id: str) -> SagaResult:
        state = await self.engine.current(saga_id)
        assert state.ended, f"{saga_id} is {state.status}"
        return await self.engine.host.outcomes.result(state)


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["parent", "parent", "child", "undo", "undo child"]),
        st.integers(0, 4),
        st.integers(0, 2),
        st.sampled_from([None, None, 0, 1]),
        st.booleans(),
    ),
    max_size=6,
)
OUTCOMES = st.fixed_dictionaries(
    {name: st.lists(st.sampled_from([False, False, False, True]), max_size=4) for name in "axyc"}
)
UNDO_FAILURES = st.fixed_dictionaries(
    {name: st.lists(st.sampled_from([0, 0, 0, 1, 3]), max_size=3) for name in "xyc"}
)


async def live(
    outcomes: dict[str, list[bool]],
    undo_failures: dict[str, list[int]],
    how: tuple[bool, bool, bool],
    moves: list[tuple[Any, ...]],
) -> None:
    world = World(outcomes, undo_failures)
    order, payment = sagas(world, *how)
    engine = Engine(
        MemoryEventLog(2), sagas=[order, payment], clock=SetClock(jumps=True), config=QUIET
    )
    async with engine:
        story = Story(engine, world, order)
        await story.begin()
        for kind, member, step, total, allow in moves:
            if kind == "parent":
                await story.replay_parent(member, ["a", "pay", "c"][step], total, allow)
            elif kind == "child":
                await story.replay_child("xy"[step % 2], total, allow)
            elif kind == "undo":
                if len(story.members) > 1:
                    await story.undo(story.members[-1])
            else:
                child = await story.current_child()
                if len(story.families.get(child, ())) > 1:
                    await story.undo(story.families[child][-1])
            await story.check()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(OUTCOMES, UNDO_FAILURES, st.tuples(st.booleans(), st.booleans(), st.booleans()), MOVES)
def test_whatever_is_replayed_one_child_stands_or_none(
    outcomes: dict[str, list[bool]],
    undo_failures: dict[str, list[int]],
    how: tuple[bool, bool, bool],
    moves: list[tuple[Any, ...]],
) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await live(outcomes, undo_failures, how, moves)

    asyncio.run(limited())
