"""One run of a saga under test: its lives, what every call of a step did, how it ended."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sagaz_es.codec.values import from_text
from sagaz_es.core import events as e
from sagaz_es.core.state import SagaState
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.registry import Source
from sagaz_es.errors import SagaError
from sagaz_es.reading.lookup import current_state
from sagaz_es.sagas.result import SagaResult
from sagaz_es.testing.faults import Fault, Faults
from sagaz_es.testing.processes import DurableLog, Killed, Life, Lines, Points, in_words
from sagaz_es.testing.virtual_time import FOR_EVER_SECONDS
from sagaz_es.testing.watching import Call, WatchedRegistry, perform, steps_of
from sagaz_es.testing.worlds import in_text

SAGA_ID = "saga-1"

CONFIG = EngineConfig(
    drain_seconds=1.0,
    request_seconds=30.0,
    housekeeping_seconds=2 * FOR_EVER_SECONDS,  # nothing happens by the second
)

MAX_LIVES = 100

ActionKind = Literal[
    "signal", "cancel", "wait", "replay", "crash", "pause", "resume", "recover", "resolve"
]


@dataclass(frozen=True, slots=True)
class Action:
    """Something that is done to a saga from outside, once nothing more happens without time
    passing."""

    kind: ActionKind
    name: str = ""
    payload: Any = None
    seconds: float = 0.0
    allow: tuple[str, ...] = ()
    decision: str = ""
    happened: bool = False

    def __str__(self) -> str:
        if self.kind == "wait":
            return f"{lasting(self.seconds)} pass"
        if self.kind == "recover":
            return f"it is decided about {self.name}: {self.decision}"
        if self.kind == "resolve":
            return (
                f"it is told that {self.name} {'happened' if self.happened else 'did not happen'}"
            )
        return f"{self.kind} {self.name}".rstrip()


@dataclass(slots=True)
class Body:
    """One call of a step's code. `before`, `after`: the world, as far as it can be seen. `own`: it
    was changed while this code ran, and not only meanwhile, by another step beside it."""

    call: Call
    life: int
    before: Any
    after: Any = None
    own: bool = False
    since: Any = None  # while its code runs: the world when it went on
    ended: Literal["died", "raised", "returned"] = "died"

    def __str__(self) -> str:
        sign = {"died": " †", "raised": " ✗", "returned": ""}[self.ended]
        return f"{self.call.name} ({self.call.attempt}){sign}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    status: str  # of the saga, or of its newest replay
    saga_id: str
    context: dict[str, Any]
    result: SagaResult
    calls: tuple[Call, ...]  # of steps and compensations, in their order
    refused: tuple[tuple[Action, SagaError], ...]  # what was asked and not done
    faults: tuple[Fault, ...]  # that happened
    not_done: tuple[Action, ...]  # it never came to them
    history: str
    waits_for: str  # empty: it has ended
    stuck: tuple[str, ...]  # steps whose compensation failed for good
    unfinished: tuple[str, ...]  # other sagas (children) that have not ended
    needs_person: bool  # it waits for a decision
    facts: tuple[tuple[str, str], ...]  # of this saga: class and step, accepted or not
    failed_step: str
    error_type: str


@dataclass(slots=True)
class Run:
    """Plays a saga once, with faults and crashes. `play` may be called once."""

    saga: Source
    context: Mapping[str, Any] | None
    resources: Callable[[], Mapping[str, Any]]
    others: Sequence[Source] = ()
    faults: Faults = field(default_factory=Faults)
    actions: Sequence[Action] = ()
    picture: Callable[[], Any] = lambda: None
    lines: bool = False
    blames: bool = False  # whose code changes the world is looked at
    tried_once: frozenset[str] = frozenset()  # steps that are not tried again
    left_behind: list[Any] = field(default_factory=list)  # by each process that died
    bodies: list[Body] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    outcome: Outcome | None = None
    _done: int = 0  # actions
    _newest: str = SAGA_ID
    _refused: list[tuple[Action, SagaError]] = field(default_factory=list)
    _errors: dict[str, BaseException] = field(default_factory=dict)  # the last one of each step
    _followed: Lines | None = None

    def play(self, crash_at: Sequence[int | str] = ()) -> Outcome:
        """To the end. `crash_at`: for each life the point where it dies, see Points."""
        before = random.getstate()
        random.seed(0)  # the jitter of backoffs
        try:
            log: DurableLog | None = None
            now = 0.0
            for number in range(MAX_LIVES):
                points = Points(crash_at[number] if number < len(crash_at) else 0)
                log = DurableLog(points) if log is None else log.successor(points)
                life = Life(points, now)
                self.lives.append(life)
                lived = self._live(life, log)
                now = life.loop.time()
                if lived:
                    assert self.outcome is not None
                    return self.outcome
                for body in self.bodies:
                    if body.life == number and body.ended == "died":
                        body.after = self.picture()
                        if body.since is not None:
                            body.own |= body.since != body.after
                self.left_behind.append(self._left(log, points))
            raise RuntimeError(
                f"{MAX_LIVES} processes have died over one saga, the last one {self.deaths[-1]}"
            )
        finally:
            random.setstate(before)

    def _left(self, log: DurableLog, points: Points) -> str:
        """All that a dead process has left: two that leave the same have died the same death."""
        bodies = [str(body) for body in self.bodies]
        inside = points.died_at if any(body.ended == "died" for body in self.bodies) else ""
        told = [(in_words(entry), getattr(entry, "sequence", 0)) for entry in log.entries()]
        return repr((bodies, inside, told, in_text(self.picture())))

    def bury(self) -> None:
        """Everything is judged: what died may unwind."""
        for life in self.lives:
            life.bury()

    @property
    def deaths(self) -> list[str]:
        """Where processes died."""
        return [life.points.died_at for life in self.lives if life.points.died_at]

    # --- one life ---

    def _live(self, life: Life, log: DurableLog) -> bool:
        engine: Engine
        self._followed = Lines(life.points.reach) if self.lines else None
        if self._followed is not None:
            for step in steps_of((self.saga, *self.others)).values():
                self._followed.add(step.name, step.function)
                if step.compensation is not None:
                    self._followed.add(f"undo {step.name}", step.compensation.function)

        async def script() -> None:
            nonlocal engine
            # In the thread of this life: clients such as sqlite3's belong to one.
            engine = self._engine(life, log)
            await engine.open()
            await engine.start(self.saga, self.context, saga_id=SAGA_ID)
            while self._done < len(self.actions):
                await life.loop.quiet()
                action = self.actions[self._done]
                if action.kind == "crash":
                    self._done += 1
                    life.points.die("between two steps, when nothing was under way")
                try:
                    await self._do(engine, log, action)
                except SagaError as error:
                    self._refused.append((action, error))
                self._done += 1
            await life.loop.create_future()

        async def last() -> None:
            self.outcome = await self._outcome(engine, log)

        return life.run(script, last)

    def _engine(self, life: Life, log: DurableLog) -> Engine:
        sagas = (self.saga, *self.others)
        resources = self.resources()
        engine = Engine(log, sagas=sagas, resources=resources, clock=life.loop, config=CONFIG)
        watched = WatchedRegistry(sagas, self, self.tried_once)
        engine.registry = engine.host.registry = watched
        return engine

    async def _do(self, engine: Engine, log: DurableLog, action: Action) -> None:
        if action.kind == "wait":
            await asyncio.sleep(action.seconds)
        elif action.kind == "cancel":
            await engine.cancel(self._newest, reason=action.name)
        elif action.kind == "replay":
            await self._replay(engine, log, action)
        else:
            # Who died before hearing that it stands asks again: the same id counts once.
            await _decide(engine, self._newest, action, f"action-{self._done}")

    async def _replay(self, engine: Engine, log: DurableLog, action: Action) -> None:
        # A replay that was decided before its process died goes on by itself.
        if _newest_of(log, self._newest) == self._newest:
            # Time has to pass before a saga that retries has ended.
            await (await engine.handle(self._newest)).result()
            plan = await engine.plan_replay(
                self._newest, action.name, context_override=action.payload, allow=action.allow
            )
            # Its end is not awaited: the next action may be what the branch waits for.
            replaying = asyncio.create_task(engine.replay(plan))
            await self.lives[-1].loop.quiet()
            if replaying.done():
                replaying.result()
        self._newest = _newest_of(log, self._newest)

    async def _outcome(self, engine: Engine, log: DurableLog) -> Outcome:
        self._newest = _newest_of(log, self._newest)
        state = await current_state(log, None, self._newest)
        assert state is not None
        result = await engine.host.outcomes.result(state, self._errors.get(state.failed_step))
        ids = dict.fromkeys(entry.saga_id for entry in log.entries() if isinstance(entry, e.Event))
        unfinished = []
        for saga_id in ids:
            other = await current_state(log, None, saga_id)
            if other is not None and not other.ended and saga_id != self._newest:
                unfinished.append(f"{saga_id}: {_waits_for(other)}")
        return Outcome(
            status=state.status,
            saga_id=self._newest,
            context={key: from_text(text) for key, text in state.context.items()},
            result=result,
            calls=tuple(body.call for body in self.bodies),
            refused=tuple(self._refused),
            faults=tuple(self.faults.happened),
            not_done=tuple(self.actions[self._done :]),
            history=told(log, [*ids]),
            waits_for="" if state.ended else _waits_for(state),
            stuck=tuple(n for n, s in state.steps.items() if s.status == "compensation_failed"),
            unfinished=tuple(unfinished),
            needs_person=not state.ended
            and (
                state.status == "forward_recovery"
                or any(step.status == "outcome_unknown" for step in state.steps.values())
            ),
            facts=tuple(
                (type(entry.fact).__name__, getattr(entry.fact, "step", ""))
                for entry in log.entries()
                if isinstance(entry, e.Event) and entry.saga_id == self._newest
            ),
            failed_step=state.failed_step,
            error_type=state.failure[0],
        )

    # --- a call of a step ---

    async def perform(self, call: Call, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """See Watcher."""
        number, life = self._here()
        if life.points.judged.is_set():
            raise Killed  # it only unwinds: a dead process calls no step
        body = Body(call, number, self.picture())
        self.bodies.append(body)
        fault = self.faults.of(call)
        try:
            if fault is not None and not fault.after:
                await self._fail(fault, life)
            value = await self._perform(function, args, body, life)
            if fault is not None:
                await self._fail(fault, life)
        except BaseException as error:
            if not life.points.died_at and not life.points.judged.is_set():
                body.ended, body.after = "raised", self.picture()
                if not call.undo:
                    self._errors[call.step] = error
            raise
        body.ended, body.after = "returned", self.picture()
        life.points.reach(f"in {call.name}, after its effect, before that is recorded")
        return value

    def _here(self) -> tuple[int, Life]:
        """The life that asks; one that is over may still unwind while the next ones have been."""
        loop = asyncio.get_running_loop()
        return next((n, life) for n, life in enumerate(self.lives) if life.loop is loop)

    async def _perform(
        self, function: Callable[..., Any], args: tuple[Any, ...], body: Body, life: Life
    ) -> Any:
        if not inspect.iscoroutinefunction(function):
            followed = self._followed.in_thread(function) if self._followed else function
            try:
                return await perform(followed, args)
            finally:  # nothing else has run meanwhile
                body.own = self.blames and body.before != self.picture()
        working = function(*args)
        if self.blames:
            working = _Working(working, body, self.picture, life.points)
        if self._followed is None:
            return await working
        with self._followed:
            return await working

    async def _fail(self, fault: Fault, life: Life) -> None:
        if fault.kind == "error":
            raise fault.raised()
        if fault.kind == "crash":
            name = f"undo {fault.step}" if fault.undo else fault.step
            life.points.die(f"in {name}, {'after' if fault.after else 'before'} its effect")
        await asyncio.get_running_loop().create_future()  # until its time is over


@dataclass(slots=True)
class _Working:
    """A step's coroutine, from one of its waits to the next: what it changes is its own doing."""

    coroutine: Coroutine[Any, Any, Any]
    body: Body
    picture: Callable[[], Any]
    points: Points

    def __await__(self) -> Generator[Any, Any, Any]:
        first, given = True, None
        thrown: BaseException | None = None
        while True:
            self.body.since = self.body.before if first else self.picture()
            first = False
            try:
                if thrown is None:
                    waits_for = self.coroutine.send(given)
                else:
                    waits_for = self.coroutine.throw(thrown)
            except StopIteration as ended:
                return ended.value
            finally:
                if not self.points.judged.is_set():
                    self.body.own |= self.body.since != self.picture()
                    self.body.since = None
            try:
                given, thrown = (yield waits_for), None
            except BaseException as error:
                given, thrown = None, error


def _newest_of(log: DurableLog, saga_id: str) -> str:
    """The newest branch of a saga: a replay that was under way when a process died goes on."""
    for entry in log.entries():
        if isinstance(entry, e.Event) and isinstance(entry.fact, e.ReplayBranched):
            if entry.saga_id == saga_id:
                saga_id = entry.fact.branch_saga_id
    return saga_id


async def _decide(engine: Engine, saga_id: str, action: Action, request_id: str) -> None:
    if action.kind == "signal":
        await engine.signal(saga_id, action.name, action.payload, request_id=request_id)
    elif action.kind == "pause":
        await engine.pause(saga_id, request_id=request_id)
    elif action.kind == "resume":
        await engine.resume(saga_id, request_id=request_id)
    elif action.kind == "recover":
        await engine.decide_recovery(
            saga_id,
            action.name,
            action.decision,
            actor="test",
            context_override=action.payload,
            request_id=request_id,
        )
    else:
        await engine.resolve_outcome(
            saga_id,
            action.name,
            happened=action.happened,
            result=action.payload,
            actor="test",
            request_id=request_id,
        )


def _waits_for(state: SagaState) -> str:
    """What an unfinished saga waits for, in words."""
    if state.paused:
        return "it is paused"
    for name, step in state.steps.items():
        if step.status == "waiting" and step.waits_for:
            return f"step {name!r} waits for the signal {step.waits_for!r}"
        if step.status == "waiting" and step.child_start:
            return f"step {name!r} waits for its saga {step.child!r}"
        if step.status == "outcome_unknown":
            return f"nobody knows whether step {name!r} happened: a person has to say"
    if state.status == "forward_recovery":
        return "a person has to decide how it goes on"
    return f"it is {state.status}"


def told(log: DurableLog, ids: Sequence[str]) -> str:
    """What stands in the log, one line a fact: its sequence, and when it happened after the first;
    with the saga's id where there are several."""
    lines = []
    began = 0
    branches: dict[str, str] = {}  # random ids, named in their order
    width = max((len(saga_id) for saga_id in ids if len(saga_id) < 30), default=0) + 1
    for entry in log.entries():
        if isinstance(entry, e.Event):
            fact = entry.fact
            began = began or entry.occurred_at
            after = lasting((entry.occurred_at - began) / 1e6)
            if isinstance(fact, e.ReplayBranched):
                branches.setdefault(fact.branch_saga_id, f"replay {len(branches) + 1}")
            whose = f"{branches.get(entry.saga_id, entry.saga_id):<{width}}" if len(ids) > 1 else ""
            words = f"{whose}{entry.sequence:>3}  {after:>9}  {in_words(entry)}"
            lines.append(f"{words}{_details(fact)}")
    return "\n".join(lines)


def lasting(seconds: float) -> str:
    """`0.108 s`, `90 s`, `1 h`, `30 d`: so long."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:.6g} s"


def _details(fact: e.Fact) -> str:
    error = getattr(fact, "error_type", "")
    if error:
        again = " (tried again)" if getattr(fact, "retry_at", 0) else ""
        return f": {error}: {getattr(fact, 'error_message', '')}{again}"
    if isinstance(fact, e.SignalReceived):
        return f" {fact.name}"
    if isinstance(fact, e.StepCompleted) and fact.keys_set:
        return f" {fact.keys_set}"
    return ""
