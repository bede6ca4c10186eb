"""The world outside: services that the steps call, and the ledger of all that happened there.

Only steps and compensations write it; the engine does not know it. The services know their callers'
idempotency keys: the same key again gives the same answer and has no second effect, and what was
taken back under a key stays taken back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sagaz_es import RecoveryAction
from sagaz_es.log.partitioning import partition_of
from sagaz_es.testing.simulation import Broker, Process
from sagaz_es.testing.simulation.processes import current_process


class Declined(Exception):
    """A service's own error; it did nothing."""


PAPERS = "_papers"


def papers(token: str) -> str:
    """A large value that belongs to a small one."""
    return f"{token} " * 40


def torn(values: Any) -> list[str]:
    """The large values among these that are not whole, or do not belong to their small ones."""
    if not isinstance(values, dict):
        return []
    return [
        f"{name} as {str(value)[:80]!r}"
        for name, value in dict.items(values)
        if name.endswith(PAPERS)
        and value != papers(str(dict.get(values, name.removesuffix(PAPERS), "")))
    ]


@dataclass(slots=True)
class Execution:
    """One call of a step's code, or of its compensation's."""

    what: str  # do, undo or compute
    saga_id: str
    step: str
    attempt: int
    key: str
    process: str
    writer: bytes
    seen: int  # where the saga's partition ended as it began
    at: float
    given: Any = None  # of a compensation: the result it was given
    context: dict[str, Any] = field(default_factory=dict)  # all that it could see
    signal: Any = None  # the payload that it was given
    read: dict[str, Any] = field(default_factory=dict)  # what it looked at
    token: str = ""  # what it answered with, once it had an effect
    effect_seen: int = 0  # where the partition ended as it had its effect
    again: bool = False  # the service knew the key: no second effect
    ended: str = "died"  # returned, raised; or its process died, or it was stopped


@dataclass(slots=True)
class Effect:
    """What stands, or stood, in the world."""

    token: str
    saga_id: str
    step: str
    key: str
    undone: bool = False


@dataclass
class Habits:
    """How often a step fails, hangs, takes long; the same for undoing. 0 to 1."""

    fails: float = 0.0
    hangs: float = 0.0
    undo_fails: float = 0.0
    slow_s: float = 0.02


@dataclass
class World:
    """The ledger and the services."""

    broker: Broker
    random: Random
    habits: Habits
    executions: list[Execution] = field(default_factory=list)
    effects: dict[str, Effect] = field(default_factory=dict)  # by key
    undone: set[str] = field(default_factory=set)  # keys taken back, known before or not
    wrong: list[str] = field(default_factory=list)  # what no world would allow
    writers: dict[str, Callable[[int], bytes]] = field(default_factory=dict)
    # Of processes, by partition.
    large: bool = False  # whether steps leave values behind that do not stay in their event
    bound: int = 0  # how many sagas of one process may be at work at once; 0: any number
    at_work: dict[str, Counter[str]] = field(default_factory=dict)  # process -> saga -> calls

    # --- called by steps ---

    async def do(self, ctx: Any, *reads: str) -> dict[str, Any]:
        """A step's effect, made with the values of `reads`."""
        with self._at_work(ctx):
            return await self._do(ctx, reads)

    async def _do(self, ctx: Any, reads: tuple[str, ...]) -> dict[str, Any]:
        execution = await self._begin("do", ctx, ctx.idempotency_key, None)
        fate = self.random.random()
        if fate < self.habits.fails:
            execution.ended = "raised"
            raise Declined(ctx.step)
        hangs = fate < self.habits.fails + self.habits.hangs
        if hangs and self.random.random() < 0.5:
            await asyncio.sleep(1000)
        self._happen(execution)
        await self._go_on(f"step {ctx.step}, after its effect")
        await asyncio.sleep(1000 if hangs else self._takes())
        execution.ended = "returned"
        execution.read = {key: ctx.get(key) for key in ("first", *reads)}
        returned = {ctx.step: execution.token, "last": execution.read["first"] or 0}
        return returned | ({f"{ctx.step}{PAPERS}": papers(execution.token)} if self.large else {})

    async def undo(self, ctx: Any, result: Any) -> str:
        """The effect of a step is taken back."""
        with self._at_work(ctx):
            return await self._undo(ctx, result)

    async def _undo(self, ctx: Any, result: Any) -> str:
        key = ctx.idempotency_key.removesuffix("/compensation")
        if key == ctx.idempotency_key:  # a service would take the undoing for the step, again
            self.wrong.append(f"undo {ctx.step} has the key of the step: {key}")
        execution = await self._begin("undo", ctx, key, result)
        if self.random.random() < self.habits.undo_fails:
            execution.ended = "raised"
            raise Declined(f"undo {ctx.step}")
        self._take_back(execution, result)
        await self._go_on(f"undo {ctx.step}, after its effect")
        await asyncio.sleep(self._takes())
        execution.ended = "returned"
        return f"{ctx.step} undone"

    async def compute(self, ctx: Any) -> dict[str, Any]:
        """A step without effects."""
        with self._at_work(ctx):
            return await self._compute(ctx)

    async def _compute(self, ctx: Any) -> dict[str, Any]:
        execution = await self._begin("compute", ctx, ctx.idempotency_key, None)
        execution.ended = "returned"
        return {"counted": len(ctx)}

    async def begins_with(self, ctx: Any) -> dict[str, Any]:
        """What the child that is a step starts with: nothing happens yet."""
        execution = await self._begin("compute", ctx, ctx.idempotency_key, None)
        if self.random.random() < self.habits.fails / 2:
            execution.ended = "raised"
            raise Declined(ctx.step)
        execution.ended = "returned"
        return {"first": ctx.get("first", 0)} | ({"bulk": papers("bulk")} if self.large else {})

    async def begin_with(self, ctx: Any) -> list[dict[str, Any]]:
        """As `begins_with`, for each child of a list."""
        first = await self.begins_with(ctx)
        return [{**first, "number": n} for n in range(self.random.choice((0, 1, 2, 2, 3)))]

    def did_it_happen(self, ctx: Any) -> Any:
        """What became of an attempt of unknown outcome."""
        if self.random.random() < 0.3 and self.habits.fails:
            return None
        effect = self.effects.get(ctx.idempotency_key)
        return {ctx.step: effect.token} if effect is not None else False

    def recovers(self, ctx: Any) -> RecoveryAction:
        """How a step behind a pivot goes on."""
        actions = (RecoveryAction.RETRY, RecoveryAction.SKIP, RecoveryAction.MANUAL_INTERVENTION)
        return self.random.choice((*actions, RecoveryAction.RETRY))

    # --- inside ---

    @contextmanager
    def _at_work(self, ctx: Any) -> Iterator[None]:
        process, saga_id = _process().name, ctx.saga_id
        running = self.at_work.setdefault(process, Counter())
        running[saga_id] += 1
        if self.bound and len(running) > self.bound:
            self.wrong.append(f"{process} has {', '.join(running)} at work at once")
        try:
            yield
        finally:
            running[saga_id] -= 1
            if not running[saga_id]:
                del running[saga_id]

    def _end(self, saga_id: str) -> int:
        partition = partition_of(saga_id, len(self.broker.partitions))
        return self.broker.partitions[partition].end

    def _takes(self) -> float:
        return self.random.expovariate(1.0) * self.habits.slow_s

    async def _begin(self, what: str, ctx: Any, key: str, given: Any) -> Execution:
        process = _process()
        loop = self.broker.loop
        execution = Execution(
            what,
            ctx.saga_id,
            ctx.step,
            ctx.attempt,
            key,
            process.name,
            self.writers[process.name](partition_of(ctx.saga_id, len(self.broker.partitions))),
            self._end(ctx.saga_id),
            loop.time(),
            given,
            dict(dict.items(ctx)),
            ctx.signal,
        )
        self.executions.append(execution)
        if self.large:
            self.wrong += [f"{ctx.saga_id}/{ctx.step} sees {each}" for each in torn(ctx)]
            self.wrong += [f"{ctx.saga_id}/{ctx.step} is given {each}" for each in torn(given)]
        await self._go_on(f"{'undo' if what == 'undo' else 'step'} {ctx.step}, before its effect")
        await asyncio.sleep(self._takes())
        return execution

    async def _go_on(self, point: str) -> None:
        if not self.broker.points.reach(_process(), point):
            await self.broker.loop.create_future()

    def _happen(self, execution: Execution) -> None:
        if not _process().alive:
            return
        key = execution.key
        effect = self.effects.get(key)
        execution.effect_seen = self._end(execution.saga_id)
        if effect is None:
            token = f"{execution.step}-{len(self.effects) + 1}"
            effect = self.effects[key] = Effect(token, execution.saga_id, execution.step, key)
            effect.undone = key in self.undone  # taken back before it came: it has no effect
        else:
            execution.again = True
            if (effect.saga_id, effect.step) != (execution.saga_id, execution.step):
                self.wrong.append(f"{execution.step} has the key of {effect.step}: {key}")
        execution.token = effect.token

    def _take_back(self, execution: Execution, result: Any) -> None:
        if not _process().alive:
            return
        key = execution.key
        effect = self.effects.get(key)
        self.undone.add(key)
        if result is not None:
            token = dict.get(result, execution.step)
            if effect is None:
                self.wrong.append(f"{token} is undone, but never happened")
            elif effect.token != token:
                self.wrong.append(f"undo {execution.step} got {token}, not {effect.token}")
        if effect is not None:
            execution.token = effect.token
            execution.again = effect.undone
            effect.undone = True


def _process() -> Process:
    process = current_process.get()
    assert process is not None, "a step runs in a process"
    return process
