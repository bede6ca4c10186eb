"""Random sagas, failed and replayed at random, on the real engine: what stands in the world?

Each example is a random step graph, random failures, and a random line of replays and undoings of
any member of the family, run on the memory log. The world is a ledger that only the steps write.

Law (exactly once): after a branch completes each effect stands once, whatever was replayed before.
Law (nothing ships unpaid): a step runs only while all it depends on stands.
Law (fresh): a standing effect has seen what it would see if it ran in the branch that reuses it.
Law (no lies): what the engine says of the world is what stands in it.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from sagaz_es import (
    Engine,
    ParallelFailureStrategy,
    ReplayPlan,
    ReplayStatus,
    Saga,
    SagaResult,
    SagaStatus,
    Verdict,
)
from sagaz_es.codec.values import from_text
from sagaz_es.core import events as e
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.errors import PlanBlocked, UndoRefused
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import QUIET, Declined, SetClock

EXAMPLES = int(os.environ.get("EXAMPLES", "300"))
START_KEYS = ("x", "y")


@dataclass(frozen=True)
class Step:
    """A step of a generated saga. `reads`: start keys, and steps whose result it reads."""

    name: str
    depends_on: tuple[str, ...]
    reads: tuple[str, ...]
    whole: bool  # it takes the whole context
    results: tuple[str, ...]  # steps whose result it asks for by `result_of`
    mutates: bool  # it writes its key into the context instead of returning a mapping
    pivot: bool
    at_most_once: bool
    effects: bool
    compensable: bool
    on_unknown: bool
    retries: int


OUTCOMES = ["fails", "fails", "fails", "lost", "lost, nothing happened"]


@dataclass
class Effect:
    step: str
    key: str
    read: dict[str, Any]
    lost: bool = False  # the engine does not know that it happened


@dataclass
class World:
    """The ledger. Whatever no world would allow is noted in `wrong`."""

    steps: dict[str, Step]
    graph: Graph
    outcomes: dict[str, list[str]]  # of each step's calls, in order; "" is well
    undo_failures: dict[str, list[int]]  # how often each undoing fails before it works
    by_key: bool  # services that know a key do nothing a second time
    stands: dict[str, Effect] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    computed: dict[str, dict[str, Any]] = field(default_factory=dict)
    stuck: set[str] = field(default_factory=set)  # steps whose undoing has failed so far
    keys: dict[str, str] = field(default_factory=dict)  # key -> what it was used for
    answers: dict[str, Any] = field(default_factory=dict)
    orphans: Counter[str] = field(default_factory=Counter)  # may stand beside another: allowed
    made: int = 0

    def count(self, step: str) -> int:
        return sum(1 for effect in self.stands.values() if effect.step == step)

    async def act(self, name: str, ctx: Any) -> Any:
        step = self.steps[name]
        self.calls.append(name)
        for need in self.graph.ancestors[name]:
            if self.steps[need].effects and not self.count(need):
                self.wrong.append(f"{name} runs, but {need} does not stand")
        read = self._read(step, ctx)
        if not step.effects:
            self.computed[name] = read
            return {f"k{name}": ["computed", name, sorted(read.items(), key=repr)]}
        outcomes = self.outcomes.get(name)
        outcome = outcomes.pop(0) if outcomes else ""
        await asyncio.sleep(0)
        if outcome == "fails":
            raise Declined(name)
        if outcome == "lost, nothing happened":
            raise asyncio.CancelledError
        token = self._happen(name, ctx.idempotency_key, read)
        self.stands[token].lost = True
        await asyncio.sleep(0)  # a step that is stopped here leaves its effect behind
        if outcome == "lost":
            raise asyncio.CancelledError
        self.stands[token].lost = False
        if step.mutates:
            ctx[f"k{name}"] = [token]
            return None
        return {f"k{name}": [token]}

    def _read(self, step: Step, ctx: Any) -> dict[str, Any]:
        if step.whole:
            return {key: value for key, value in ctx.items() if self._is_before(step, key)}
        read = {key: ctx.get(key) for key in step.reads}
        for name in step.results:
            read[f"result of {name}"] = ctx.result_of(name)
        return read

    def _is_before(self, step: Step, key: str) -> bool:
        # What a step beside this one writes comes at any time.
        return key in START_KEYS or key[1:] in self.graph.ancestors[step.name]

    def _happen(self, name: str, key: str, read: dict[str, Any]) -> str:
        if self.by_key and key in self.answers:
            return str(self.answers[key])
        if self.keys.setdefault(key, name) != name:
            self.wrong.append(f"{name} has the key of {self.keys[key]}: {key}")
        self.made += 1
        token = f"{name}-{self.made}"
        self.stands[token] = Effect(name, key, read)
        self.answers[key] = token
        return token

    async def take_back(self, name: str, result: Any, ctx: Any) -> None:
        self.calls.append(f"undo {name}")
        for later in self.graph.dependents[name]:
            step = self.steps[later]
            sure = [x for x in self.stands.values() if x.step == later and not x.lost]
            if step.compensable and len(sure) > self.orphans[later] and later not in self.stuck:
                self.wrong.append(f"{name} is undone, but {later} stands on it")
        failures = self.undo_failures.get(name)
        if failures and failures[0] > 0:
            failures[0] -= 1
            self.stuck.add(name)
            raise Declined(f"undo {name}")
        if failures:
            failures.pop(0)
        self.stuck.discard(name)
        key = ctx.idempotency_key
        if self.by_key and key in self.answers:
            return
        self.answers[key] = "undone"
        if not self.steps[name].effects:
            return
        self._undo(name, result, ctx, key.removesuffix("/compensation"))

    def _undo(self, name: str, result: Any, ctx: Any, key: str) -> None:
        if result is None and self.steps[name].mutates:
            result = ctx if isinstance(dict.get(ctx, f"k{name}"), list) else None
        if result is not None:
            token = dict.__getitem__(result, f"k{name}")[0]
            if token not in self.stands:
                self.wrong.append(f"{token} is undone, but does not stand")
            elif self.stands[token].key != key:
                self.wrong.append(f"{token} was made with {self.stands[token].key}, not {key}")
            self.stands.pop(token, None)
            return
        # Of an unknown outcome: all there is to find it by is the key.
        for token, effect in list(self.stands.items()):
            if effect.step == name and effect.key == key:
                del self.stands[token]


# --- generating -----------------------------------------------------------------------------------


@st.composite
def steps_of(draw: st.DrawFn) -> list[Step]:
    steps: list[Step] = []
    often = st.sampled_from([True, True, True, True, False])
    seldom = st.sampled_from([False, False, False, False, False, False, True])
    for index in range(draw(st.integers(1, 5))):
        name = "abcde"[index]
        before = [step.name for step in steps]
        needs = draw(st.lists(st.sampled_from(before), unique=True)) if before else []
        known = Graph([StepNode(step.name, step.depends_on) for step in steps]).ancestors
        ancestors = sorted(set(needs).union(*(known[need] for need in needs)))
        reads = draw(st.lists(st.sampled_from([*START_KEYS, *(f"k{a}" for a in ancestors)])))
        effects = draw(often)
        results = draw(st.lists(st.sampled_from(ancestors), max_size=1)) if ancestors else []
        steps.append(
            Step(
                name,
                tuple(needs),
                tuple(dict.fromkeys(reads)),
                whole=draw(seldom),
                results=tuple(results),
                mutates=effects and draw(seldom),
                pivot=effects and draw(seldom),
                at_most_once=effects and draw(seldom),
                effects=effects,
                compensable=effects and draw(often),
                on_unknown=draw(st.booleans()),
                retries=draw(st.sampled_from([0, 0, 1])),
            )
        )
    return steps


@st.composite
def worlds(draw: st.DrawFn) -> World:
    steps = draw(steps_of())
    outcomes: dict[str, list[str]] = {}
    undo_failures: dict[str, list[int]] = {}
    for step in steps:
        # At most once and lost: it waits for a person, and nothing else follows.
        possible = ["", "", "", "fails"] + ([] if step.at_most_once else OUTCOMES[3:])
        outcomes[step.name] = draw(st.lists(st.sampled_from(possible), max_size=4))
        undo_failures[step.name] = draw(st.lists(st.sampled_from([0, 0, 0, 1, 3]), max_size=3))
    graph = Graph([StepNode(step.name, step.depends_on) for step in steps])
    return World(
        {step.name: step for step in steps}, graph, outcomes, undo_failures, draw(st.booleans())
    )


def saga_of(world: World, strategy: ParallelFailureStrategy) -> Saga:
    saga = Saga("random", failure_strategy=strategy)
    for step in world.steps.values():

        async def undo(result: Any, ctx: Any, name: str = step.name) -> None:
            await world.take_back(name, result, ctx)

        saga.add_step(
            step.name,
            functools.partial(world.act, step.name),
            (lambda function: lambda result, ctx: function(result, ctx))(undo)
            if step.compensable
            else None,
            depends_on=step.depends_on,
            max_retries=step.retries,
            pivot=step.pivot,
            at_most_once=step.at_most_once,
            effects=step.effects,
            on_unknown=step.on_unknown,
        )
    return saga


OVERRIDES = st.dictionaries(
    st.sampled_from([*START_KEYS, "ka", "kb", "new"]), st.integers(0, 2), max_size=2
)
MOVES = st.lists(
    st.tuples(
        st.sampled_from(["replay", "replay", "replay", "undo"]),
        st.integers(0, 5),  # which member of the family
        st.integers(0, 5),  # which step
        OVERRIDES,
        st.sampled_from([True, True, False]),  # allow what is blocked
        st.sampled_from([False, False, False, True]),  # force a failure
    ),
    max_size=5,
)


# --- the law --------------------------------------------------------------------------------------


class Family:
    """Runs the moves, and compares the world with what the engine says after each."""

    def __init__(self, engine: Engine, world: World) -> None:
        self.engine, self.world = engine, world
        self.members: list[str] = []

    @property
    def head(self) -> str:
        return self.members[-1]

    async def begin(self, saga: Saga) -> None:
        result = await self.engine.run(saga, {"x": 0, "y": 0}, saga_id="root")
        self.members.append("root")
        await self.check(result, None)

    async def replay(
        self, member: str, step: str, overrides: Mapping[str, Any], allow: bool, force: bool
    ) -> None:
        plan = await self.engine.plan_replay(
            member, step, context_override=overrides, force_failure=force
        )
        note(f"{member} from {step} {overrides}: {[(s.step, str(s.verdict)) for s in plan.steps]}")
        before = await self.streams()
        if plan.blocked:
            try:
                await self.engine.replay(plan)
                raise AssertionError("a blocked plan ran")
            except PlanBlocked:
                assert await self.streams() == before
            if not allow:
                return
            plan = await self.engine.plan_replay(
                member, step, context_override=overrides, force_failure=force, allow=plan.blockers
            )
        head, calls = self.head, len(self.world.calls)
        for planned in plan.steps:
            if "allowed by name" in planned.reason:
                self.world.orphans[planned.step] = self.world.count(planned.step)
        result = await self.engine.replay(plan)
        assert result.new_saga_id is not None
        self.members.append(result.new_saga_id)
        outcome = await (await self.engine.handle(self.head)).result()
        await self.check(outcome, plan, self.world.calls[calls:])
        await self.check_streams(before, head, [e.ReplayBranched])
        assert (result.status is ReplayStatus.SUCCESS) == (outcome.status is SagaStatus.COMPLETED)

    async def undo(self, member: str) -> None:
        before, calls = await self.streams(), len(self.world.calls)
        state = await self.engine.current(member)
        try:
            await self.engine.undo_replay(member)
        except UndoRefused as refused:
            note(f"undo {member}: {refused}")
            assert self.world.calls[calls:] == []
            assert await self.streams() == before
            assert member != self.head or refused.steps
            return
        if state.undone:
            assert self.world.calls[calls:] == []
            assert await self.streams() == before
            return
        assert member == self.head
        outcome = await (await self.engine.handle(member)).result()
        note(f"undo {member}: {outcome.status}")
        await self.check(outcome, None)
        assert all(call.startswith("undo") for call in self.world.calls[calls:])
        after = await self.streams()
        assert {m: s for m, s in after.items() if m != member} == {
            m: s for m, s in before.items() if m != member
        }

    async def check(
        self, result: SagaResult, plan: ReplayPlan | None, calls: list[str] | None = None
    ) -> None:
        world = self.world
        note(f"{result.status} {result.steps}, stands: {list(world.stands)}")
        event(f"{'branch' if plan else 'original'} {result.status}")
        assert world.wrong == []
        for name, step in world.steps.items():
            if not step.effects:
                continue
            count = world.count(name) - world.orphans[name]
            if name in result.unknown_step_names:
                assert count in (0, 1), f"{name} stands {count} times"
            else:
                says = int(name in result.committed_step_names)
                assert count == says, f"{name} stands {count} times, the engine says {says}"
            if result.status is SagaStatus.ROLLED_BACK and step.compensable and plan is not None:
                sure = name not in result.unknown_step_names or step.on_unknown
                assert not (sure and count), f"{name} stands behind a branch that failed"
        if result.status is SagaStatus.COMPLETED:
            await self.check_completed(result)
        if plan is not None and calls is not None:
            self.check_plan(plan, calls, result)

    async def check_completed(self, result: SagaResult) -> None:
        """Each effect stands once, and has seen what it would see in this branch."""
        world, state = self.world, await self.engine.current(result.saga_id)
        assert result.unknown_step_names == []
        for name, step in world.steps.items():
            if step.effects:
                assert world.count(name) - world.orphans[name] == 1
                effect = [effect for effect in world.stands.values() if effect.step == name][-1]
                read = effect.read
            else:
                read = world.computed[name]
            for key, value in read.items():
                now = result.context.get(key)
                if key.startswith("result of "):
                    text = state.step(key.removeprefix("result of ")).result
                    now = from_text(text) if text else None
                assert value == now, f"{name} has seen another {key}"

    def check_plan(self, plan: ReplayPlan, calls: list[str], result: SagaResult) -> None:
        for planned in plan.steps:
            name, verdict = planned.step, planned.verdict
            mine = [call for call in calls if call.removeprefix("undo ") == name]
            ran, failed = mine.count(name), result.status is not SagaStatus.COMPLETED
            if verdict is Verdict.REUSE:
                assert ran == 0
                assert failed or mine == []
            elif verdict is Verdict.REDO:
                assert failed or (ran and mine == [name] * ran)
                assert mine[:1] != [f"undo {name}"]
            else:
                assert verdict is Verdict.UNDO_FIRST
                assert not ran or mine[0] == f"undo {name}"
                assert failed or ran
        if plan.force_failure:
            assert plan.from_step not in calls

    async def streams(self) -> dict[str, list[e.Fact]]:
        return {
            member: [
                record.entry.fact
                for record in await self.engine.log.read_saga(member)
                if isinstance(record.entry, e.Event)
            ]
            for member in self.members
        }

    async def check_streams(
        self, before: dict[str, list[e.Fact]], head: str, gained: list[type[e.Fact]]
    ) -> None:
        after = await self.streams()
        for member, facts in before.items():
            new = after[member][len(facts) :]
            assert after[member][: len(facts)] == facts
            assert [type(fact) for fact in new] == (gained if member == head else [])


async def live(
    world: World, strategy: ParallelFailureStrategy, moves: list[tuple[Any, ...]]
) -> None:
    log = MemoryEventLog(1)
    saga = saga_of(world, strategy)
    engine = Engine(log, sagas=[saga], clock=SetClock(jumps=True), config=QUIET)
    async with engine:
        family = Family(engine, world)
        await family.begin(saga)
        for kind, member, step, overrides, allow, force in moves:
            named = family.members[member % len(family.members)]
            point = list(world.steps)[step % len(world.steps)]
            if kind == "replay":
                await family.replay(named, point, overrides, allow, force)
            elif len(family.members) > 1 and named != "root":
                await family.undo(named)


def run(main: Callable[[], Any]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await main()

    asyncio.run(limited())


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds(), st.sampled_from(ParallelFailureStrategy), MOVES)
def test_whatever_is_replayed_each_effect_stands_once_or_not_at_all(
    world: World, strategy: ParallelFailureStrategy, moves: list[tuple[Any, ...]]
) -> None:
    run(lambda: live(world, strategy, moves))
