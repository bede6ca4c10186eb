"""For tests of the engine: a ledger of effects, a clock that a test sets, sagas that use them.

The ledger is the world: only steps and compensations write it, the engine does not know it. So a
test can compare what happened with what the engine says.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sagaz_es import Engine, EngineConfig, Saga, action, compensate
from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.errors import AppendRefused, AppendUnknown, LogForbidden
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import EventLog

NOON = 1_753_963_200_000_000
"""µs; some noon in UTC."""


class SetClock:
    """A clock that stands still until a test moves it.

    `jumps=True`: whoever waits moves it, so that no wait takes time. `waited`: every wait, in µs.
    """

    def __init__(self, now: int = NOON, *, jumps: bool = False) -> None:
        self._now = now
        self._jumps = jumps
        self._moved = asyncio.Event()
        self._asked = asyncio.Event()
        self._waiting: list[int] = []
        self.waited: list[int] = []

    def now(self) -> int:
        return self._now

    async def sleep_until(self, when: int) -> None:
        self.waited.append(when - self._now)
        self._waiting.append(when)
        self._asked.set()
        if self._jumps:
            await asyncio.sleep(0)
            self._now = max(self._now, when)
        try:
            while self._now < when:
                self._moved.clear()
                await self._moved.wait()
        finally:
            self._waiting.remove(when)

    def set(self, now: int) -> None:
        """Also back."""
        self._now = now
        self._moved.set()

    def advance(self, us: int) -> None:
        self.set(self._now + us)

    async def wait(self) -> int:
        """Until somebody waits for this clock; how long they will, in µs."""
        while not self._waiting:
            self._asked.clear()
            await self._asked.wait()
        return min(self._waiting) - self._now


@dataclass(frozen=True)
class Call:
    """One call that reached the world."""

    what: str  # "charge", or "undo charge"
    saga_id: str
    key: str
    attempt: int
    result: Any = None  # of a compensation: the result it was given


class Gate:
    """Holds a step in the middle: before its effect, or behind it (`late`)."""

    def __init__(self, *, late: bool = False) -> None:
        self.late = late
        self._entered, self._opened = asyncio.Event(), asyncio.Event()

    async def entered(self) -> None:
        """Until the step is there."""
        await self._entered.wait()

    def open(self) -> None:
        self._opened.set()

    async def pass_through(self) -> None:
        self._entered.set()
        await self._opened.wait()


@dataclass(frozen=True)
class After:
    """Of a script: the effect happens, then this is raised."""

    error: BaseException


Scripted = BaseException | After | None


@dataclass
class Ledger:
    """What stands in the world, and every call that was made.

    `script["charge"]` says how the next calls of charge end: with an error before the effect, with
    one after it, or well (None, and whatever goes beyond the script). `gates["charge"]` holds it.
    """

    calls: list[Call] = field(default_factory=list)
    stands: dict[str, str] = field(default_factory=dict)  # token -> step
    script: dict[str, deque[Scripted]] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)  # what no world would allow
    _made: Counter[str] = field(default_factory=Counter)

    def fails(self, what: str, *outcomes: Scripted) -> None:
        """Script the next calls of a step, or of its compensation (`"undo charge"`)."""
        self.script.setdefault(what, deque()).extend(outcomes)

    def gate(self, what: str, *, late: bool = False) -> Gate:
        """Hold the step (or `"undo charge"`) until the gate is opened."""
        self.gates[what] = Gate(late=late)
        return self.gates[what]

    @property
    def order(self) -> list[str]:
        """The calls in their order, by name."""
        assert not self.wrong
        return [call.what for call in self.calls]

    @property
    def standing(self) -> list[str]:
        """Steps whose effect stands now, one for each time that it does, in order of happening."""
        assert not self.wrong  # an assertion inside a step would be the step's error
        return list(self.stands.values())

    def of(self, what: str) -> list[Call]:
        """The calls of one step."""
        return [call for call in self.calls if call.what == what]

    async def do(self, ctx: Any, step: str = "") -> str:
        """An effect; its token, `charge-1`, `charge-2` …"""
        step = step or ctx.step
        async with self._call(Call(step, ctx.saga_id, ctx.idempotency_key, ctx.attempt)):
            self._made[step] += 1
            token = f"{step}-{self._made[step]}"
            self.stands[token] = step
        return token

    async def undo(self, ctx: Any, result: Any = None) -> str:
        """Take back the effect of the result's token; if it does not stand, that is `wrong`."""
        call = Call(f"undo {ctx.step}", ctx.saga_id, ctx.idempotency_key, ctx.attempt, result)
        async with self._call(call):
            if result is not None:
                token = result[ctx.step]
                if self.stands.pop(token, None) is None:
                    self.wrong.append(f"{call.what}: {token} does not stand")
        return f"{call.what} done"

    @asynccontextmanager
    async def _call(self, call: Call) -> AsyncIterator[None]:
        self.calls.append(call)
        gate = self.gates.get(call.what)
        if gate is not None and not gate.late:
            await gate.pass_through()
        outcomes = self.script.get(call.what)
        outcome = outcomes.popleft() if outcomes else None
        if isinstance(outcome, BaseException):
            raise outcome
        yield
        if gate is not None and gate.late:
            await gate.pass_through()
        if isinstance(outcome, After):
            raise outcome.error


class LedgerSaga(Saga):
    """For sagas whose steps only write the ledger: `await self.do(ctx)`."""

    @staticmethod
    async def do(ctx: Any) -> dict[str, str]:
        return {ctx.step: await ctx.resources["ledger"].do(ctx)}

    @staticmethod
    async def undo(ctx: Any, result: Any) -> Any:
        return await ctx.resources["ledger"].undo(ctx, result)


class OrderSaga(LedgerSaga):
    """reserve → charge → ship, each undone by release, refund, recall; nothing is tried twice."""

    saga_name: ClassVar[str | None] = "order"

    @action("reserve", max_retries=0)
    async def reserve(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @compensate("reserve")
    async def release(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)

    @action("charge", depends_on=["reserve"], max_retries=0)
    async def charge(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @compensate("charge")
    async def refund(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)

    @action("ship", depends_on=["charge"], max_retries=0)
    async def ship(self, ctx: Any) -> Any:
        return await self.do(ctx)

    @compensate("ship")
    async def recall(self, result: Any, ctx: Any) -> Any:
        return await self.undo(ctx, result)


class FaultyLog(MemoryEventLog):
    """A memory log whose appends go wrong as a test says, one outcome for each append.

    `"lands, unknown"`: it stands, but AppendUnknown is raised; `"lost, unknown"`: it does not;
    `"refused"`, `"forbidden"`: nor does it then, and AppendRefused, LogForbidden says so.
    A Gate holds the append before it stands (`late`: behind that, so that the answer is late).
    """

    def __init__(self, partitions: int = 1) -> None:
        super().__init__(partitions)
        self.outcomes: deque[str | Gate] = deque()
        self.appends: list[list[str]] = []  # of each append: its entries, in words

    async def append(self, partition: int, entries: Sequence[e.Entry]) -> int:
        self.appends.append([in_words(entry) for entry in entries])
        outcome = self.outcomes.popleft() if self.outcomes else ""
        if outcome == "lost, unknown":
            raise AppendUnknown(partition, "nobody knows")
        if outcome == "forbidden":
            raise LogForbidden(partition, "a test says so")
        if outcome == "refused":
            raise AppendRefused(partition, "a test says so")
        if isinstance(outcome, Gate) and not outcome.late:
            await outcome.pass_through()
        base = await super().append(partition, entries)
        if isinstance(outcome, Gate) and outcome.late:
            await outcome.pass_through()
        if outcome == "lands, unknown":
            raise AppendUnknown(partition, "nobody knows")
        return base


class Declined(Exception):
    """A step's own error."""


QUIET = EngineConfig(housekeeping_seconds=3600, drain_seconds=1, request_seconds=5)
"""Nothing happens by the second: only what a test does."""


def engine_on(
    log: EventLog | None = None,
    *sagas: type[Saga] | Saga,
    ledger: Ledger | None = None,
    clock: SetClock | None = None,
    config: EngineConfig = QUIET,
    resources: Mapping[str, Any] | None = None,
) -> Engine:
    """An engine without store and projector, not opened yet; OrderSaga if no saga is given."""
    return Engine(
        log if log is not None else MemoryEventLog(1),
        sagas=sagas or (OrderSaga,),
        resources={"ledger": ledger, **(resources or {})},
        clock=clock or SetClock(jumps=True),
        config=config,
    )


async def until(holds: Callable[[], Any]) -> None:
    """Give way to other tasks until it holds; an error if it still does not after many turns."""
    for _ in range(10_000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come to hold")


async def facts(log: EventLog, saga_id: str) -> list[e.Fact]:
    """What the log holds of one saga, in order, accepted or not."""
    return [
        record.entry.fact
        for record in await log.read_saga(saga_id)
        if isinstance(record.entry, e.Event)
    ]


def in_words(entry: e.Entry | e.Fact) -> str:
    """`StepStarted charge`, `SagaCompleted`."""
    fact = entry.fact if isinstance(entry, e.Event) else entry
    return f"{type(fact).__name__} {getattr(fact, 'step', '')}".rstrip()


async def story(log: EventLog, saga_id: str) -> list[str]:
    """As `facts`, in words."""
    return [in_words(fact) for fact in await facts(log, saga_id)]


async def accepted_story(log: EventLog, saga_id: str) -> list[str]:
    """As `story`, without what the fold rejects."""
    state, told = SagaState(), []
    for record in await log.read_saga(saga_id):
        entry = record.entry
        if isinstance(entry, e.Event) and fold_into(state, entry) is Verdict.ACCEPTED:
            told.append(in_words(entry))
    return told
