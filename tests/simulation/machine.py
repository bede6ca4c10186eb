"""One schedule: processes with engines and projectors on a simulated log, what is done to them, and
how it heals. Everything in it follows from its seed.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from sagaz_es.core import events as e
from sagaz_es.core.snapshot import SnapshotPolicy
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.engine import Engine
from sagaz_es.errors import (
    EngineClosed,
    LostOwnership,
    RequestRefusedError,
    SagaError,
    UnknownSagaName,
)
from sagaz_es.log.partitioning import partition_of
from sagaz_es.ports import Record
from sagaz_es.reading.projector import Projector
from sagaz_es.testing.simulation import (
    Broker,
    Bucket,
    Database,
    Points,
    Process,
    SimulatedBlobs,
    SimulatedClock,
    SimulatedLog,
    SimulatedLoop,
    SimulatedStore,
    Weather,
)
from sagaz_es.testing.virtual_time import NothingLeft
from tests.simulation.importers import Import
from tests.simulation.lost_tail import Losses, lose_tail, process_name
from tests.simulation.model import Truth, read_log
from tests.simulation.operators import Operator
from tests.simulation.recorders import Recording
from tests.simulation.sagas import EARLIER, REGISTRIES
from tests.simulation.world import Habits, World, papers, torn

CONFIG = EngineConfig(
    drain_seconds=1.0, takeover_seconds=6.0, housekeeping_seconds=2.0, request_seconds=6.0
)
REFERENCE = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Doing:
    """Something that is done at a time: to a process, to the servers, or by a client."""

    at: float
    what: str
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.what} {' '.join(map(str, self.args))}".rstrip()


@dataclass(frozen=True)
class Plan:
    """What a seed becomes: the stage, and what is done on it, until `heals_at`."""

    seed: int
    partitions: int
    engines: int
    store: str  # none, beside (a projector of its own), inside (in each engine)
    weather: Weather
    habits: Habits
    policy: SnapshotPolicy
    static: bool
    doings: tuple[Doing, ...]
    heals_at: float
    deaths: tuple[tuple[str, str, int], ...] = ()  # process, point, which time

    def in_words(self) -> str:
        """The stage, for whoever reads the trace."""
        kinds = {
            "none": "no store",
            "beside": "a projector beside each engine",
            "inside": "the projector in each engine",
        }
        return (
            f"seed {self.seed}: engines {self.engines}, partitions {self.partitions}, "
            f"{kinds[self.store]}, {self.policy.strategy.value}; heals at {self.heals_at:.1f} s\n"
            f"{self.weather}\n{self.habits}"
        )

    in_flight: int = 0  # how many sagas run at once in an engine; 0: as many as there are
    bounded: bool = False  # whether nothing happens that may run one more
    groups: tuple[str, ...] = ("",)  # of engines, which are in one after the other
    large: bool = False  # whether values are kept in a blob store
    grows: bool = False  # whether a class comes to its group with later lives alone


@dataclass
class Promise:
    """What a client was told. `kind`: started, result, signalled, cancelled, replayed …"""

    kind: str
    saga_id: str
    detail: Any = None


class Node:
    """A process of ours, with what runs in it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.clock: SimulatedClock | None = None
        self.engine: Engine | None = None
        self.projector: Projector | None = None
        self.ready = False
        self.woke_at = 0.0  # when it went on after a pause


class Simulation:
    """Runs a plan. Afterwards it holds everything that a judge needs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop = SimulatedLoop()
        self.points = Points()
        self.points.deaths = dict.fromkeys(plan.deaths)
        self.random = random.Random(f"{plan.seed} servers")
        self.broker = Broker(
            self.loop,
            self.random,
            partitions=plan.partitions,
            weather=plan.weather.copy(),
            points=self.points,
        )
        self.database = Database(self.broker)
        self.bucket = Bucket(self.broker)
        self.world = World(self.broker, random.Random(f"{plan.seed} world"), replace(plan.habits))
        self.world.bound = plan.in_flight if plan.bounded else 0
        self.world.large = plan.large
        self.config = structs.replace(CONFIG, max_in_flight=plan.in_flight or 1000)
        if plan.large:
            sizes = {"value_warn_bytes": 0, "value_inline_bytes": 64}
            self.config = structs.replace(self.config, **sizes)
            self.broker.on_landed.append(self._look_for_blobs)
        self.nodes: list[Node] = []  # the latest life of each
        self.dead: list[Node] = []
        self.promises: list[Promise] = []
        self.clients: dict[asyncio.Task[Any], str] = {}
        self.counts: Counter[str] = Counter()
        self.lines: list[str] = []  # the trace
        self.stuck: list[str] = []
        self.alarms: list[str] = []
        self.truth = Truth()
        self.beliefs: list[str] = []
        self.allowed: dict[str, tuple[str, ...]] = {}
        """By the mark of a replay: the steps that its client allowed to happen again."""
        self.overridden: dict[str, dict[str, Any]] = {}
        """By the mark of a replay: the values that its client gave."""
        self.slept: set[str] = set()  # processes that were paused, cut off, or closed
        self.losses = Losses(self)
        self.recordings: list[Recording] = []
        self.imports: list[Import] = []
        self.broker.on_landed += [self.truth.take, self._trace_landed, self._look_at_releases]
        self.broker.on_lost.append(self.losses.take)

    # --- the run ---

    def run(self, judge: Callable[[Simulation], Coroutine[Any, Any, None]]) -> None:
        """From boot to after healing, then let `judge` look, still on the loop."""
        with _one_seed(self.plan.seed, self.loop), _quiet(self):
            try:
                self.loop.run_until_complete(self._main(judge))
            except NothingLeft:
                self.stuck.append("nothing will ever happen again")
            finally:
                self.alarms += self.loop.errors
                self.loop.close()
                for imported in self.imports:
                    imported.path.unlink(missing_ok=True)

    async def _main(self, judge: Callable[[Simulation], Coroutine[Any, Any, None]]) -> None:
        for number in range(self.plan.engines):
            self._boot(number)
        for doing in self.plan.doings:
            await self._until(doing.at)
            self.look_at_beliefs()
            self.trace(str(doing).partition(" ")[2])
            getattr(self, f"do_{doing.what}")(*doing.args)
        await self._until(self.plan.heals_at)
        self.look_at_beliefs()
        await self._heal()
        self.look_at_beliefs()
        await judge(self)

    def look_at_beliefs(self) -> None:
        """What each engine takes for accepted has to be what the log has up to where it has read,
        at any time."""
        for node in self.nodes:
            if node.engine is None or not node.process.alive:
                continue
            for partition in node.engine.host.partitions.values():
                for saga_id, cell in partition.cells.items():
                    if cell.lost or not cell.ours or self.losses.may_believe(node, partition.index):
                        continue
                    believed = cell.accepted.sequence
                    stands = self.truth.sequence_of(saga_id, partition.position)
                    # A take-over looks at its sagas once more, behind where it has read.
                    if not stands <= believed <= self.truth.sequence_of(saga_id, 1 << 60):
                        self.beliefs.append(
                            f"{node.process.name} believes {saga_id} to be at {believed}, the log "
                            f"has it at {stands} before offset {partition.position}"
                        )

    async def _until(self, at: float) -> None:
        if (left := at - self.loop.time()) > 0:
            await asyncio.sleep(left)

    def trace(self, line: str) -> None:
        self.lines.append(f"{self.loop.time():.6f} {line}")

    def _trace_landed(self, records: Sequence[Record]) -> None:
        for record in records:
            entry = record.entry
            words = type(entry).__name__
            if isinstance(entry, e.Event):
                words = (
                    f"{entry.saga_id} {entry.writer.hex()[:6]} {entry.epoch}/{entry.sequence} "
                    f"{type(entry.fact).__name__} {getattr(entry.fact, 'step', '')}"
                )
            elif isinstance(entry, e.Request):
                words = f"{entry.saga_id} {words} {entry.request_id}"
            self.trace(f"p{record.partition}@{record.offset} {words}")

    def _look_at_releases(self, records: Sequence[Record]) -> None:
        """Who says that nothing of a saga runs there any more has nothing of it at work."""
        for record in records:
            event = record.entry
            if not (isinstance(event, e.Event) and isinstance(event.fact, e.SagaReleased)):
                continue
            saga_id = event.saga_id
            if self.truth.sequence_of(saga_id, record.offset + 1) == event.sequence:
                for process, writer in self.world.writers.items():
                    at_work = self.world.at_work.get(process, ())
                    if writer(record.partition) == event.writer and saga_id in at_work:
                        self.world.wrong.append(
                            f"{process} has released {saga_id}, and works on it"
                        )

    def _look_for_blobs(self, records: Sequence[Record]) -> None:
        """What an event refers to was kept before it."""
        for record in records:
            fact = getattr(record.entry, "fact", record.entry)
            for key in set(REFERENCE.findall(repr(fact))) - self.bucket.kept.keys():
                self.world.wrong.append(
                    f"offset {record.offset} refers to {key}, which is not kept"
                )

    @property
    def digest(self) -> str:
        """Equal for equal runs."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()[:16]

    # --- processes ---

    def _boot(self, number: int) -> None:
        lives = sum(1 for node in self.dead if node.process.name.startswith(f"engine-{number}."))
        process = Process(self.loop, f"engine-{number}.{lives + 1}")
        node = Node(process)
        process.on_change.append(lambda: self._changed(node))
        if number < len(self.nodes):
            self.nodes[number] = node
        else:
            self.nodes.append(node)
        process.spawn(self._serve(node, number))

    def _changed(self, node: Node) -> None:
        process = node.process
        state = "is paused" if process.paused else "goes on" if process.alive else "dies"
        if process.alive and process.cut:
            state += ", and reaches no server"
        at = f" at {process.died_at}" if process.died_at else ""
        self.trace(f"{process.name} {state}{at}")
        if process.runs:
            node.woke_at = self.loop.time()
        if not process.alive:
            self.counts["kills"] += 1
            self.dead.append(node)
            number = self.nodes.index(node)
            delay = 0.2 + self.random.random() * 4
            self.loop.in_world(delay, self._boot_again, number, node)

    def _boot_again(self, number: int, node: Node) -> None:
        if self.nodes[number] is node:
            self._boot(number)

    async def _serve(self, node: Node, number: int) -> None:
        plan, process = self.plan, node.process
        log = SimulatedLog(self.broker, process)
        clock = node.clock = SimulatedClock(self.loop)
        store = None if plan.store == "none" else SimulatedStore(self.database, process)
        projector = None
        if store is not None:
            projector = node.projector = Projector(
                log,
                store,
                clock=clock,
                batch=self.random.choice((1, 3, 50)),
                linger_s=0.3,
                default_policy=plan.policy,
            )
        while True:
            engine = Engine(
                log,
                store,
                resources={"world": self.world},
                clock=clock,
                blobs=SimulatedBlobs(self.bucket, process) if plan.large else None,
                config=structs.replace(self.config, group=self._group(number)),
                instance_id=f"engine-{number}" if plan.static else None,
                projector=projector if plan.store == "inside" else None,
            )
            registries = EARLIER if self._is_early(process) else REGISTRIES
            engine.registry = engine.host.registry = registries[self._group(number)]
            self.world.writers[process.name] = engine.host.writer_of
            node.engine = engine
            try:
                await engine.open()
                break
            except (SagaError, OSError) as error:
                self.trace(f"{process.name} does not open: {type(error).__name__}")
                self.losses.tell(process.name, str(error))
                await asyncio.sleep(1.0)
        node.ready = True
        if plan.store == "beside" and projector is not None:
            while True:
                try:
                    await projector.run()
                except* (SagaError, OSError) as errors:
                    self.trace(f"{process.name} projector: {errors.exceptions}")
                    for cause in errors.exceptions:
                        self.losses.tell(process.name, str(cause))
                await asyncio.sleep(1.0)

    def _engine(self, number: int) -> Node | None:
        """A node that can be asked: this one, or else any."""
        for node in (*self.nodes[number:], *self.nodes[:number]):
            if node.ready and node.process.runs:
                return node
        return None

    def _group(self, number: int) -> str:
        """Of which group the engines of this number are."""
        return self.plan.groups[number % len(self.plan.groups)]

    def _is_early(self, process: Process) -> bool:
        """Whether it does not have all classes of its group yet."""
        return self.plan.grows and process.name.endswith(".1")

    # --- what is done ---

    def do_kill(self, number: int) -> None:
        self.nodes[number].process.kill()

    def do_kill_at(self, number: int, steps: int) -> None:
        process = self.nodes[number].process
        process.dies_at = process.steps + steps

    def do_pause(self, number: int, seconds: float) -> None:
        process = self.nodes[number].process
        if process.runs:
            self.counts["pauses"] += 1
            self.slept.add(process.name)
            process.pause()
            self.loop.in_world(seconds, process.resume)

    def do_cut(self, number: int, seconds: float) -> None:
        process = self.nodes[number].process
        if process.alive and not process.cut:
            self.counts["cuts"] += 1
            self.slept.add(process.name)
            self._cut(process, True)
            self.loop.in_world(seconds, self._cut, process, False)

    def _cut(self, process: Process, cut: bool) -> None:
        process.cut = cut
        process.told()

    def do_split(self, number: int, index: int, seconds: float) -> None:
        """The group is wrong: an engine serves what another one has, too."""
        group, process = self.broker.group(self._group(number)), self.nodes[number].process
        for member in list(group.members.values()):
            if member.process is process:
                self.counts["splits"] += 1
                member.believe(index)
                self.loop.in_world(seconds, group.rebalance)

    def do_impostor(self) -> None:
        """What a writer that lost the race for a start or a claim still had on its way: the right
        epoch and the right numbers, and not the saga's writer."""
        running = [s for s in read_log(self.broker).sagas.values() if not s.ended]
        if not running:
            return
        saga = self.random.choice(running)
        started = [name for name, step in saga.steps.items() if step.status == "started"]
        fact = e.StepCompleted(started[0]) if started else e.SagaCancelled("an impostor")
        index = partition_of(saga.saga_id, len(self.broker.partitions))
        if self.loop.time() < self.broker.partitions[index].refuses_until:
            return  # it takes nothing from anybody yet, see `lose_tail`
        writer = self.random.randbytes(16)
        number = saga.sequence + 1
        event = e.Event(saga.saga_id, saga.name, writer, saga.epoch, number, self.loop.now(), fact)
        self.counts["impostors"] += 1
        self.broker.append(index, [event])
        self.broker.partitions[index].wake()

    def do_jump(self, number: int, us: int) -> None:
        clock = self.nodes[number].clock
        if clock is not None:
            self.counts["clock jumps"] += 1
            clock.jump(us)

    def do_restart_log(self, seconds: float) -> None:
        self.counts["log restarts"] += 1
        self.broker.restart(seconds)

    def do_lead_elsewhere(self, index: int, seconds: float) -> None:
        self.counts["leader changes"] += 1
        self.broker.lead_elsewhere(index, seconds)

    def do_lose_tail(self, index: int, records: int, down_s: float) -> None:
        lose_tail(self, index, records, down_s)

    def do_restart_store(self, seconds: float) -> None:
        if not self.broker.losses:
            self.counts["store outages"] += 1
            self.database.restart(seconds)

    def do_restart_blobs(self, seconds: float) -> None:
        self.counts["blob outages"] += 1
        self.bucket.restart(seconds)

    def do_delete_blobs(self, share: float, for_ever: bool) -> None:
        """Somebody cleans up what is in use; what is lost `for_ever` is found by nobody."""
        keys = [key for key in self.bucket.kept if self.random.random() < share]
        self.bucket.gone.update(keys)
        self.counts["deleted blobs"] += len(keys)
        if not for_ever:
            self.loop.in_world(2.0, self.bucket.gone.difference_update, keys)

    def do_close(self, number: int) -> None:
        """SIGTERM: it hands over, and comes back."""
        node = self.nodes[number]
        if node.ready and node.process.runs and node.engine is not None:
            self.counts["hand-overs"] += 1
            self.slept.add(node.process.name)
            node.ready = False
            node.process.spawn(self._close(node))

    async def _close(self, node: Node) -> None:
        assert node.engine is not None
        try:
            await node.engine.close()
            mine = [t for t, who in self.clients.items() if who.startswith(f"{node.process.name} ")]
            waiting = set(mine)
            while waiting:
                since = self.loop.time()
                _, waiting = await asyncio.wait(waiting, timeout=CONFIG.request_seconds + 3)
                if node.woke_at < since:
                    break  # otherwise it stood still for a part of that time
            self.stuck += [
                f"it has closed, and nobody was told: {self.clients[task]}"
                for task in mine
                if not task.done()
            ]
        finally:
            if node.process.alive:
                node.process.kill("its end")

    def do_poison(self, key: str) -> None:
        self.counts["poison records"] += 1
        index = partition_of(key, len(self.broker.partitions))
        self.broker.add_foreign(index, key, b"\xc3\x01poison", "damaged")

    def do_operate(self, what: str, saga_id: str = "") -> None:
        if self.plan.store != "none":
            self.counts["operators"] += 1
            operator = Operator(self, self.counts["operators"])
            operator.process.on_change.append(lambda: self.trace(f"{operator.process.name} dies"))
            operator.process.spawn(operator.work(what, saga_id))

    def do_record(self, saga_id: str, facts: int, remembered: int) -> None:
        self.counts["recorders"] += 1
        number = self.counts["recorders"]
        self.recordings.append(Recording(self, number, saga_id, facts, remembered))
        self.recordings[-1].boot()

    def do_import(self, file: int) -> None:
        self.counts["imports"] += 1
        self.imports.append(Import(self, self.counts["imports"], file))
        self.imports[-1].boot()

    def do_kill_recorder(self) -> None:
        services: tuple[Recording | Import, ...] = (*self.recordings, *self.imports)
        for service in services:
            if not service.done:
                service.process.kill()

    def do_forget(self) -> None:
        """Retention takes what the marks and the store do not need any more."""
        if self.broker.losses:
            return  # what they need may be more than they say
        groups = [self.broker.group(name) for name in set(self.plan.groups)]
        for index in range(len(self.broker.partitions)):
            checkpoint = self.database.kept._checkpoints.get(index)
            aside = [offset for place, offset in self.database.kept._parked if place == index]
            kept = checkpoint.next_offset if checkpoint else 0
            mark = min(kept, *aside, *(group.marks[index][0] for group in groups))
            if mark > self.broker.partitions[index].start:
                self.counts["retentions"] += 1
                self.broker.forget_before(index, mark)

    def do_ask(self, number: int, call: str, *args: Any) -> None:
        """A client asks an engine for something."""
        node = self._engine(number)
        if node is not None:
            self.ask(node, call, *args)

    def ask(self, node: Node, call: str, *args: Any) -> None:
        self.counts["calls"] += 1
        task = node.process.spawn(self._asking(node, call, args))
        self.clients[task] = f"{node.process.name} {call} {args}"

    async def _asking(self, node: Node, call: str, args: tuple[Any, ...]) -> None:
        assert node.engine is not None
        words = f"{node.process.name} {call} {' '.join(map(str, args))}"
        try:
            await getattr(self, f"client_{call}")(node.engine, *args)
        except (SagaError, OSError) as error:
            self.trace(f"{words}: {type(error).__name__}")
            self.counts["refused"] += 1
            if isinstance(error, EngineClosed | LostOwnership) and not node.engine.host.closing:
                self.stuck.append(f"its engine is open, and {words} raised {error!r}")
            if isinstance(error, UnknownSagaName):  # each is some group's
                self.stuck.append(f"{words} raised {error!r}")
        except Exception as error:
            self.stuck.append(f"{words} raised {error!r}")
        else:
            self.trace(f"{words}: done")

    def promise(self, kind: str, saga_id: str, detail: Any = None) -> None:
        self.promises.append(Promise(kind, saga_id, detail))

    # --- what clients do ---

    async def client_run(self, engine: Engine, name: str, saga_id: str | None, x: int) -> None:
        given = {"first": x, "draft": x} | ({"bulk": papers("bulk")} if self.plan.large else {})
        handle = await engine.start(name, given, saga_id=saga_id)
        self.promise("started", handle.saga_id)
        result = await handle.result()
        self.world.wrong += [
            f"the result of {handle.saga_id} has {t}" for t in torn(result.context)
        ]
        self.promise("result", handle.saga_id, result)

    async def client_signal(self, engine: Engine, saga_id: str, name: str, request: str) -> None:
        await engine.signal(saga_id, name, request, request_id=request)
        self.promise("signalled", saga_id, request)

    async def client_cancel(self, engine: Engine, saga_id: str) -> None:
        await engine.cancel(saga_id, reason="a client")
        self.promise("cancelled", saga_id)

    async def client_cancel_head(self, engine: Engine, root: str) -> None:
        await self.client_cancel(engine, self._members(root)[-1])

    async def client_replay(
        self, engine: Engine, root: str, step: str, x: Any, allow: bool, mark: str
    ) -> None:
        """Replay some member of a family from a step. `mark` finds it again in the log."""
        member = self._member(root)
        given = x if isinstance(x, dict) else {} if x is None else {"first": x}
        self.overridden[mark] = given
        how: dict[str, Any] = {"context_override": given or None}
        how["force_failure"] = mark.endswith("7")
        plan = await engine.plan_replay(member, step, **how)
        if plan.blocked and allow:
            self.allowed[mark] = plan.blockers
            plan = await engine.plan_replay(member, step, allow=plan.blockers, **how)
        try:
            result = await engine.replay(plan, reason=mark)
        except RequestRefusedError:
            self.promise("nothing ran", member, mark)
            raise
        assert result.new_saga_id is not None
        self.promise("started", result.new_saga_id)

    async def client_undo(self, engine: Engine, root: str, mark: str) -> None:
        """Undo the replay that made some member of a family."""
        member = self._member(root)
        await engine.undo_replay(member, reason=mark)
        self.promise("undone", member)

    def _members(self, root: str) -> list[str]:
        sagas = read_log(self.broker).sagas
        members = [root]
        while (saga := sagas.get(members[-1])) is not None and saga.branch:
            members.append(saga.branch)
        return members

    def _member(self, root: str) -> str:
        """Some member of a family, often its head."""
        members = self._members(root)
        return members[-1] if self.random.random() < 0.4 else self.random.choice(members)

    async def client_retry_compensation(
        self, engine: Engine, saga_id: str, step: str, request: str
    ) -> None:
        result = await engine.retry_compensation(saga_id, step, reason="", request_id=request)
        self.promise("result", saga_id, result)

    async def client_skip_compensation(
        self, engine: Engine, saga_id: str, step: str, request: str
    ) -> None:
        await engine.skip_compensation(saga_id, step, reason="let it be", request_id=request)
        self.promise("asked", saga_id, request)

    async def client_pause(self, engine: Engine, saga_id: str, request: str) -> None:
        await engine.pause(saga_id, request_id=request)
        self.promise("asked", saga_id, request)

    async def client_resume(self, engine: Engine, saga_id: str, request: str) -> None:
        await engine.resume(saga_id, request_id=request)
        self.promise("asked", saga_id, request)

    # --- healing ---

    async def _heal(self) -> None:
        """Nothing goes wrong any more; people do what only people can. Then all must end."""
        self.trace("healing")
        self.broker.weather.calm()
        self.points.deaths = {}
        self.database.down_until = self.bucket.down_until = 0.0
        for partition in self.broker.partitions:
            partition.down_until = 0.0
            partition.wake()
        self.world.habits.fails = self.world.habits.hangs = self.world.habits.undo_fails = 0.0
        for node in self.nodes:
            node.process.dies_at = 0
            node.process.resume()
            if node.process.cut:
                self._cut(node.process, False)
            if self._is_early(node.process):  # what is new is deployed everywhere
                node.process.kill("a deployment")
        for round_ in range(60):
            await asyncio.sleep(2.0)
            if self._at_rest():
                self.counts["rounds of healing"] += round_
                return
            if round_ % 3 == 2:
                self._people()
                if self.broker.losses and self.losses.stores_to_rebuild():
                    self.losses.rebuild_store()
        self.stuck += self._unfinished()

    def _at_rest(self) -> bool:
        # What is still on its way may ask for something, long after its client has gone.
        if self.broker.losses and self.losses.stores_to_rebuild():
            return False
        return not self.broker.under_way and not self._unfinished()

    def _unfinished(self) -> list[str]:
        log = read_log(self.broker)
        left = [
            f"saga {saga_id} ({saga.name}) is {saga.status}: {saga.steps}"
            for saga_id, saga in log.sagas.items()
            if not saga.ended
        ]
        left += [f"nobody has answered {request}" for request in log.unanswered]
        left += [
            f"branch {saga.branch} of {saga_id} has not begun"
            for saga_id, saga in log.sagas.items()
            if saga.branch and saga.branch not in log.sagas
        ]
        for task, words in self.clients.items():
            process = words.split()[0]
            alive = any(n.process.name == process and n.process.alive for n in self.nodes)
            if not task.done() and alive and not self.losses.hides(words):
                left.append(f"nobody was answered: {words}")
        left += [f"{n.process.name} does not open" for n in self.nodes if not n.ready]
        services: tuple[Recording | Import, ...] = (*self.recordings, *self.imports)
        left += [f"{one.process.name} has not told all" for one in services if not one.done]
        return left

    def _people(self) -> None:
        """Whoever waits for a person gets one."""
        for saga_id, saga in read_log(self.broker).sagas.items():
            node = self._engine(self.random.randrange(len(self.nodes)))
            if node is None or saga.ended:
                continue
            request = f"people-{self.random.randrange(1 << 30)}"
            if saga.paused:
                self.ask(node, "resume", saga_id, request)
            for step, state in saga.steps.items():
                if state.status == "waiting" and not state.child:
                    for name in ("yes", "sure"):
                        self.ask(node, "signal", saga_id, name, f"{request}-{name}")
                elif state.status == "unknown":
                    self.ask(node, "resolve", saga_id, step, request)
                elif state.status == "failed" and saga.status == "forward_recovery":
                    self.ask(node, "recover", saga_id, step, request)

    async def client_resolve(self, engine: Engine, saga_id: str, step: str, request: str) -> None:
        effect = self.world.effects.get(f"{saga_id}/{step}")
        happened = effect is not None
        result = {step: effect.token} if effect is not None else None
        await engine.resolve_outcome(
            saga_id, step, happened=happened, result=result, actor="people", request_id=request
        )
        self.promise("asked", saga_id, request)

    async def client_recover(self, engine: Engine, saga_id: str, step: str, request: str) -> None:
        how = self.random.choice(("retry", "skip", "compensate_pivot"))
        await engine.decide_recovery(saga_id, step, how, actor="people", request_id=request)
        self.promise("asked", saga_id, request)


# --- the same again -------------------------------------------------------------------------------


@contextmanager
def _one_seed(seed: int, loop: SimulatedLoop) -> Iterator[None]:
    """All chance and all clocks of this process come from the seed and from virtual time."""
    chance = random.Random(f"{seed} ids")
    before = os.urandom, time.time_ns, time.monotonic, random.getstate()
    os.urandom = chance.randbytes
    time.time_ns = lambda: loop.now() * 1000
    time.monotonic = loop.time
    random.seed(seed)
    gc.disable()
    try:
        yield
    finally:
        os.urandom, time.time_ns, time.monotonic, state = before
        random.setstate(state)
        gc.enable()


class _Alarms(logging.Handler):
    """Keeps what the engine says in a loud voice."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(logging.CRITICAL)
        self._simulation = simulation

    def emit(self, record: logging.LogRecord) -> None:
        self._simulation.alarms.append(record.getMessage())
        self._simulation.losses.tell(process_name(), record.getMessage())
        self._simulation.trace(f"ALARM {record.getMessage()}")


@contextmanager
def _quiet(simulation: Simulation) -> Iterator[None]:
    logger = logging.getLogger("sagaz_es")
    before = logger.level, logger.propagate
    handler = _Alarms(simulation)
    logger.addHandler(handler)
    logger.setLevel(logging.CRITICAL)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
