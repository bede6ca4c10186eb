"""The sagas that run in this process: starting them, running them to their end, waiting for it.

Which partitions are served, and how sagas change hands with them, is `serving.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from sagaz_es import errors
from sagaz_es.core import events as e
from sagaz_es.core.children import NOBODY, Caller
from sagaz_es.core.state import SagaState
from sagaz_es.core.stuck import waits_for_person
from sagaz_es.engine.admission import Admission, in_saga
from sagaz_es.engine.alarms import Alarms
from sagaz_es.engine.attempts import current_saga
from sagaz_es.engine.changes import branch_state, claim
from sagaz_es.engine.children import Children
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.deadline import Deadlines
from sagaz_es.engine.known_ids import KnownIds
from sagaz_es.engine.partition import ENDINGS, Accepted, Cell, Partition
from sagaz_es.engine.registry import Registry
from sagaz_es.engine.runner import SagaRunner
from sagaz_es.engine.serving import Serving
from sagaz_es.engine.sharing import shared
from sagaz_es.engine.turns import Turns
from sagaz_es.errors import (
    EngineClosed,
    HandingOver,
    LostOwnership,
    RequestRefusedError,
    SagaError,
    SagaStillRunning,
)
from sagaz_es.ports import Clock, EventLog, Membership, ProjectionStore, Record
from sagaz_es.reading.lookup import (
    asked,
    current_state,
    is_indexed,
    refused_start,
    waiting_start,
)
from sagaz_es.reading.tail import Tail
from sagaz_es.sagas.context import Resources, values_of
from sagaz_es.sagas.definition import Definition
from sagaz_es.sagas.inputs import new_id
from sagaz_es.sagas.large_values import LargeValues
from sagaz_es.sagas.result import HAS_RESULT, SagaHandle, SagaResult, result_of
from sagaz_es.sagas.typed import check_texts

logger = logging.getLogger("sagaz_es.engine")

LINE_SECONDS = 2.0
"""Who has heard nothing of a start for so long asks whether it may just be waiting in line."""

TOLD = ENDINGS | {e.RecoveryDecided, e.StepOutcomeUnknown}
"""Facts after which who waits for a saga may be told how it stands."""


class Host:
    """Serves partitions: starts, takes over, hands over, forgets. `writer` is this incarnation."""

    def __init__(
        self,
        log: EventLog,
        store: ProjectionStore | None,
        registry: Registry,
        *,
        clock: Clock,
        config: EngineConfig,
        large_values: LargeValues,
        resources: Mapping[str, Any],
    ) -> None:
        self.log, self.store, self.registry = log, store, registry
        self.clock, self.config, self.large_values = clock, config, large_values
        self._patient_values = large_values.patient()  # of sagas that run
        self.resources = Resources(resources)
        self.writer = os.urandom(16)
        self.deadlines: Deadlines  # of steps; made when it opens, in its event loop
        self.joined: asyncio.Event  # set once `membership` is there; made likewise
        self.partitions: dict[int, Partition] = {}
        self.membership: Membership | None = None
        self.answer: Callable[[Partition, Record], None] = lambda partition, record: None
        self.on_serving: Callable[[frozenset[int]], None] = lambda partitions: None
        self.closing = False
        self.lost_tails: set[int] = set()  # partitions whose log was seen to have lost its tail
        self.runners: dict[str, SagaRunner] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._outcomes: dict[str, asyncio.Future[SagaResult]] = {}
        self._expected: WeakValueDictionary[str, asyncio.Future[SagaResult]] = WeakValueDictionary()
        """Those of sagas that have not begun, or wait, as long as anybody has a handle."""
        self.admission = Admission(self, config.max_in_flight)
        self._followers: dict[str, set[asyncio.Event]] = {}  # who waits for an end in the log
        self._tails: dict[int, Tail] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._serving = Serving(self)
        self._alarms = Alarms(clock, self.awake)
        self._turns: dict[str, Turns] = {}
        self.children = Children(self)
        # Sagas that only a person can carry on, and what they wait for; empty: for such a child.
        self._stuck: dict[str, str] = {}
        self._stopped: dict[str, str] = {}  # what stopped sagas that are held as such
        self._abandoned: dict[asyncio.Task[None], str] = {}
        """Tasks of sagas that were let go although a step runs on in them."""

    # --- life ---

    async def open(self, instance_id: str | None) -> None:
        """Join the group; returns when what it gave is taken over."""
        self.deadlines = Deadlines(asyncio.get_running_loop())
        self.joined = asyncio.Event()
        self.membership = await self.log.join(
            self._serving.on_change, instance_id=instance_id, group=self.config.group
        )
        self.joined.set()
        self.spawn(self._serving.keep_house(), "housekeeping")
        self.spawn(self._alarms.run(), "alarms")

    async def close(self) -> None:
        """Hand everything over and leave; whoever still waits gets EngineClosed."""
        self.closing = True
        if self.membership is not None:
            await self.membership.leave()
        await self._serving.on_change(frozenset())
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for tail in self._tails.values():
            tail.close()
        for saga_id in self._followers:
            self.tell_followers(saga_id)
        for saga_id, outcome in [*self._outcomes.items(), *self._expected.items()]:
            if not outcome.done():
                outcome.set_exception(EngineClosed(saga_id))
                outcome.exception()
        self._outcomes.clear()

    def check_open(self, saga_id: str) -> None:
        """Raises EngineClosed."""
        if self.closing:
            raise EngineClosed(saga_id)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=f"sagaz-es {name}")
        self._background.add(task)
        task.add_done_callback(self._background_done)
        return task

    def _background_done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and isinstance(task.exception(), Exception):
            logger.error("%s failed", task.get_name(), exc_info=task.exception())

    # --- starting ---

    def awake(self, saga_id: str) -> SagaRunner | None:
        """The runner of a saga that this engine carries on; a parked one is woken."""
        runner = self.runners.get(saga_id)
        partition = self.partition_for(saga_id)
        if runner is not None or partition is None or partition.leaving:
            return runner
        cell = partition.cells.get(saga_id)
        if cell is None or not cell.ours or cell.lost or cell.state.ended:
            return None
        return self.carry_on(partition, cell, self.registry.by_name(cell.state.saga_name), ())

    def _turns_of(self, definition: Definition) -> Turns | None:
        """The turns of a class that has a limit; None: it has none."""
        if not (definition.max_concurrent or definition.start_interval_us):
            return None
        turns = self._turns.get(definition.name)
        if turns is None:
            turns = self._turns[definition.name] = Turns(
                definition.max_concurrent,
                definition.start_interval_us,
                wake=self._call,
                is_here=self._runs_here,
            )
        return turns

    def _turns_in(
        self, partition: Partition, state: SagaState, definition: Definition
    ) -> Turns | None:
        """As `_turns_of`; a child takes none from a saga of its class that waits for it."""
        turns, caller = self._turns_of(definition), state.caller_saga_id
        while turns is not None and caller and (cell := partition.cells.get(caller)) is not None:
            if cell.state.saga_name == definition.name:
                return None
            caller = cell.state.caller_saga_id
        return turns

    def _call(self, saga_id: str) -> None:
        runner = self.awake(saga_id)
        if runner is not None:
            runner.look_again()

    def _runs_here(self, saga_id: str) -> bool:
        partition = self.partition_for(saga_id)
        cell = partition.cells.get(saga_id) if partition is not None else None
        return cell is not None and cell.ours and not cell.lost and not cell.ended

    def waiting_for_turn(self, saga_name: str) -> int:
        """How many sagas of a class have begun and wait for their turn."""
        turns = self._turns.get(saga_name)
        return turns.waiting if turns is not None else 0

    def look_at_turns(self) -> None:
        """A partition was let go: its sagas take no turn here any more."""
        for turns in self._turns.values():
            turns.look_again()

    def runner_of(self, saga_id: str) -> SagaRunner | None:
        """The runner of a saga that runs here."""
        return self.runners.get(saga_id)

    def new_id_here(self) -> tuple[str, Partition]:
        """A random id whose saga lives in a partition that is served here, of which there is one
        at least."""
        while True:
            saga_id = new_id()
            partition = self.partitions.get(self.log.partition_of(saga_id))
            if partition is not None:
                return saga_id, partition

    def new_id_in(self, partition: int) -> str:
        """A random id whose saga lives in this partition."""
        saga_id = new_id()
        while self.log.partition_of(saga_id) != partition:
            saga_id = new_id()
        return saga_id

    def partition_for(self, saga_id: str) -> Partition | None:
        """The partition of a saga, if this engine serves it."""
        return self.partitions.get(self.log.partition_of(saga_id))

    def serves(self, saga_name: str) -> bool:
        """Whether sagas of this name are this engine's to carry on: all are, unless it belongs to a
        named group, which leaves those of classes that it does not have to other groups."""
        return not self.config.group or saga_name in self.registry

    def place_of(self, state: SagaState) -> Partition | None:
        """The partition of a saga, if this engine may write there for it."""
        return self.partition_for(state.saga_id) if self.serves(state.saga_name) else None

    def leaves_to_others(self, saga_name: str) -> bool:
        """Whether only another engine can run sagas of this name, and it can be asked."""
        asks = self.membership is None or bool(self.config.group)
        return asks and saga_name not in self.registry

    async def answers(self, request: e.Request) -> bool:
        """Whether a request in a partition that is served here is this group's to answer."""
        if not self.config.group:
            return True
        if isinstance(request, e.StartRequested):
            return self.serves(request.saga_name)
        partition = self.partition_for(request.saga_id)
        if partition is not None and request.saga_id in partition.cells:
            return True
        if self.admission.find(request.saga_id) is not None:
            return True
        state = await current_state(self.log, self.store, request.saga_id)
        return state is not None and self.serves(state.saga_name)

    async def wait_in_line(
        self, partition: Partition, definition: Definition, saga_id: str, text: str, actor: str
    ) -> SagaHandle:
        """Start a saga once there is room; returns once that is durable. Raises HandingOver,
        SagaIdTaken."""
        waiting = self.admission.find(saga_id)
        if waiting is None:
            await self.admission.wait(partition, saga_id, definition.name, text, actor)
        elif waiting.saga_name != definition.name:
            raise errors.SagaIdTaken(saga_id, definition.name, waiting.saga_name)
        return self.handle(saga_id, definition.name)

    def give_up_waiting(self, partition: Partition) -> None:
        """The partition is not served here any more: who waits for its starts asks the log."""
        for saga_id in self.admission.forget(partition.index, partition.cells):
            self.refuse_start(saga_id, LostOwnership(saga_id))

    def refuse_start(self, saga_id: str, error: Exception) -> None:
        """Tell who has a handle on a saga whose start waited that it does not run here."""
        future = self._expected.pop(saga_id, None)
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()

    async def start_here(
        self,
        partition: Partition,
        definition: Definition,
        saga_id: str,
        text: str,
        *,
        actor: str = "",
        cause: str = "",
        caller: Caller = NOBODY,
    ) -> SagaHandle:
        """Start a saga, or give the one of this id. Raises SagaIdTaken, unless it has a `caller`,
        which looks itself."""
        if await self.exists(partition, saga_id):
            await self.begun(saga_id)
            if not caller.saga_id:
                await self.check_name(saga_id, definition.name)
            return self.handle(saga_id)
        # No await between this look and the new cell: of ten starts at once one makes it.
        cell = partition.cells.get(saga_id)
        if cell is not None or saga_id in partition.seen:
            await self.begun(saga_id)
            if not caller.saga_id:
                await self.check_name(saga_id, definition.name)
            return self.handle(saga_id)
        return await self.begin(
            partition, definition, saga_id, text, actor=actor, cause=cause, caller=caller
        )

    async def check_name(self, saga_id: str, saga_name: str) -> None:
        """Raises SagaIdTaken if this is the id of a saga of another name."""
        partition = self.partition_for(saga_id)
        cell = partition.cells.get(saga_id) if partition is not None else None
        if cell is not None:
            name = cell.look().saga_name
        else:
            state = await current_state(self.log, self.store, saga_id)
            name = state.saga_name if state is not None else ""
        if name and name != saga_name:
            raise errors.SagaIdTaken(saga_id, saga_name, name)

    async def exists(self, partition: Partition, saga_id: str) -> bool:
        """Whether a saga of this id was ever started; since `known_from`, memory knows."""
        if saga_id in partition.cells or saga_id in partition.seen:
            return True
        if is_indexed(self.log):
            return await current_state(self.log, None, saga_id) is not None
        store = self.store
        since = 0
        if store is not None:
            answer = await asked(
                self.log, store, partition.index, lambda: _kept(self.log, store, partition, saga_id)
            )
            kept, since = answer or (False, 0)
            if kept or (answer and since >= partition.known_from):
                return kept
        return saga_id in await self._ids_between(partition, since)

    async def _ids_between(self, partition: Partition, since: int) -> KnownIds:
        """For what no store answers, or one that is behind: the ids of all sagas of which there is
        an event from `since` to `known_from`, and perhaps more, by one scan. One that takes too
        long is gone on with by the next call. Raises StorageFailed."""
        known = partition.older
        if known is None or known.since > since:
            known = partition.older = KnownIds(since)
        start = (await self.log.bounds(partition.index)).start
        if since and known.upto < start:  # between the store and the log something is missing
            where = f"partition {partition.index}"
            raise errors.HistoryGone(where, f"offset {known.upto}", f"offset {start}")
        offset = max(known.upto, start)
        try:
            async with asyncio.timeout(self.config.request_seconds):
                while offset < partition.known_from:
                    try:
                        chunk = await self.log.read(partition.index, offset, limit=5000, wait_s=0.1)
                    except errors.HistoryGone:  # retention came between
                        offset = (await self.log.bounds(partition.index)).start
                        continue
                    known.update({r.key for r in chunk.records if isinstance(r.entry, e.Event)})
                    offset = chunk.next_offset
                    known.upto = max(known.upto, offset)
        except TimeoutError as error:
            raise errors.StorageFailed(
                self.store.name if self.store is not None else self.log.name,
                "whether a saga of this id was there is not known: no store says it, and the log "
                f"was not searched within {self.config.request_seconds:g} s; start it again",
            ) from error
        return known

    async def begun(self, saga_id: str) -> None:
        runner = self.runners.get(saga_id)
        if runner is not None and runner.ready is not None:
            await self._accepted(runner)

    def handle(self, saga_id: str, started: str = "") -> SagaHandle:
        """A handle on a saga that exists, or whose start waits, whoever runs it. `started`: the
        name that was asked for; another saga may turn out to have the id."""
        future = None
        if saga_id in self.runners:
            future = self._outcome_future(saga_id)
        else:
            future = self._expected.get(saga_id)
            if future is None and self.admission.find(saga_id) is not None:
                future = asyncio.get_running_loop().create_future()
                self._expected[saga_id] = future
        return SagaHandle(saga_id, lambda: self._outcome(saga_id, future, started))

    async def begin(
        self,
        partition: Partition,
        definition: Definition,
        saga_id: str,
        text: str,
        *,
        actor: str = "",
        cause: str = "",
        caller: Caller = NOBODY,
        cancel: e.CancelRequested | None = None,
    ) -> SagaHandle:
        """Begin a saga that does not exist. `caller`: of a child. With
        `cancel` it begins and ends, and nothing of it runs."""
        fact = e.SagaStarted(
            definition.graph.fingerprint,
            definition.graph.text,
            text,
            definition.snapshot_policy,
            self.clock.now() + definition.deadline_us if definition.deadline_us else 0,
            actor=actor,
            cause=cause,
            caller_saga_id=caller.saga_id,
            caller_step=caller.step,
            caller_replay_id=caller.replay_id,
        )
        state = SagaState(
            saga_id=saga_id,
            saga_name=definition.name,
            caller_saga_id=caller.saga_id,
            caller_replay_id=caller.replay_id,
        )
        return await self._launch(partition, definition, state, fact, cancel=cancel)

    async def _launch(
        self,
        partition: Partition,
        definition: Definition,
        state: SagaState,
        *first: e.Fact,
        cancel: e.CancelRequested | None = None,
    ) -> SagaHandle:
        """Make the first event of a new saga; returns once it is accepted.

        Raises HandingOver; nothing happened then.
        """
        if partition.leaving:
            raise HandingOver(state.saga_id)
        cell = Cell(state, Accepted(), ours=True)
        partition.cells[state.saga_id] = cell
        runner = self.carry_on(partition, cell, definition, first)
        cancelled = self.admission.begun(state.saga_id) or cancel
        if cancelled is not None:
            runner.cancel_first(cancelled)
        runner.ready = asyncio.get_running_loop().create_future()
        handle = self.handle(state.saga_id)
        await self._accepted(runner)
        return handle

    async def _accepted(self, runner: SagaRunner) -> None:
        """Until the saga stands in the log, whoever has put it there."""
        assert runner.ready is not None
        try:
            await shared(runner.ready)
        except LostOwnership:
            if not runner.cell.lost or runner.cell.begin < 0:  # given up: it may stand nowhere
                raise

    async def launch_branch(
        self,
        partition: Partition,
        saga_id: str,
        start: e.SagaStarted,
        saga_name: str,
        *,
        fresh: bool = False,
    ) -> SagaHandle:
        """Start a branch whose ReplayBranched is in the log; starting it twice is starting it once.

        `fresh`: this engine has just decided it under a new id. So memory knows whether it began,
        whatever store and log have lost of what was before.
        """
        definition = self.registry.by_name(saga_name)
        exists = saga_id in partition.cells or saga_id in partition.seen
        if not (exists or fresh):
            exists = await self.exists(partition, saga_id)
        first: list[e.Fact] = [start]
        if not exists and start.definition != definition.graph.fingerprint:
            # Decided by an engine with other code, which died before the branch began.
            begun = branch_state(saga_id, saga_name, start)
            first.append(await self.claim(begun, "branch"))
        if not exists and saga_id not in partition.cells:
            if saga_id not in partition.seen:
                state = SagaState(saga_id=saga_id, saga_name=saga_name, replay_id=start.replay_id)
                return await self._launch(partition, definition, state, *first)
        return self.handle(saga_id)

    async def begin_branch(
        self,
        partition: Partition,
        saga_id: str,
        start: e.SagaStarted,
        saga_name: str,
        *,
        fresh: bool = False,
    ) -> SagaHandle:
        """As `launch_branch`, however often log and store fail, because it is decided. It holds the
        mark until it has begun; of a partition that is handed over, the next owner begins it."""
        while True:
            try:
                handle = await self.launch_branch(partition, saga_id, start, saga_name, fresh=fresh)
                await self.begun(saga_id)  # by whoever was first: until then it stands nowhere
            except LostOwnership:
                if partition.leaving or partition.closed:
                    return self.handle(saga_id)
                await asyncio.sleep(0)  # another engine was first: look again
            except (errors.StorageFailed, errors.HistoryGone, OSError) as error:
                logger.warning("branch %s has not begun: %s; trying again", saga_id, error)
                if partition.leaving or partition.closed:
                    return self.handle(saga_id)
                await asyncio.sleep(0.5)
            else:
                partition.held.pop(saga_id, None)
                return handle

    async def claim(self, state: SagaState, cause: str) -> e.SagaClaimed:
        """The claim of a saga by the code that is registered here.

        Raises UnknownSagaName, DefinitionChanged, MigrationFailed.
        """
        definition = self.registry.by_name(state.saga_name)
        return await claim(state, definition, cause, self.large_values)

    async def check_context(
        self, definition: Definition, texts: Mapping[str, str], where: str
    ) -> None:
        """Raises ContextMismatch where a recorded context is not of the saga's context_type."""
        if definition.context_type is not None:
            loaded = await self.large_values.load(texts)
            check_texts(definition.context_type, loaded, definition.name, where)

    async def resume(
        self,
        partition: Partition,
        state: SagaState,
        definition: Definition,
        first: Sequence[e.Fact],
    ) -> SagaHandle:
        """Take an ended saga up again (an undo); `first` begins with the claim. Returns once that
        is accepted. Raises SagaStillRunning, HandingOver; nothing happened then. LostOwnership: the
        saga has become another engine's first, and the claim is rejected; or nobody knows."""
        await partition.looked_at(state.saga_id)
        if partition.leaving:
            raise HandingOver(state.saga_id)
        # No await between this look and the new cell: of two who take it up at once one does.
        other = partition.cells.get(state.saga_id)
        if other is not None or partition.knows_more(state):
            raise SagaStillRunning(
                state.saga_id, state.status if other is None else other.state.status
            )
        cell = Cell(state, Accepted.of(state), ours=True, begin=partition.position)
        partition.cells[state.saga_id] = cell
        partition.seen.pop(state.saga_id, None)
        runner = self.carry_on(partition, cell, definition, first)
        runner.ready = asyncio.get_running_loop().create_future()
        handle = self.handle(state.saga_id)
        await shared(
            runner.ready
        )  # not that the saga stands, which it did before: that the claim does
        return handle

    async def has_answered(self, request: e.Request) -> bool:
        """Whether a saga that runs here does so with the answer to this request, which stands."""
        runner = self.runners.get(request.saga_id)
        if runner is None:
            return False
        if runner.ready is not None:
            await shared(runner.ready)
        return request.request_id in runner.state.answered

    # --- running ---

    def carry_on(
        self,
        partition: Partition,
        cell: Cell,
        definition: Definition,
        first: Sequence[e.Fact],
        *,
        taken_over: bool = False,
    ) -> SagaRunner:
        """Run a saga; one that was `taken_over` waits its turn before it runs a step."""
        runner = self.make_runner(partition, cell, definition)
        runner.starting = True
        saga_id = cell.state.saga_id
        if taken_over or saga_id in self.admission.backlog:
            runner.lets_in = self.admission.backlog.lets_in
            self.admission.is_outside(saga_id)
        if self._stuck:
            self._stuck.pop(saga_id, None)
        self.runners[saga_id] = runner
        self.tasks[saga_id] = asyncio.create_task(
            self._to_the_end(runner, partition, first), name=f"sagaz-es saga {saga_id}"
        )
        return runner

    def make_runner(
        self, partition: Partition, cell: Cell, definition: Definition | None = None
    ) -> SagaRunner:
        definition = definition or self.registry.by_name(cell.state.saga_name)
        return SagaRunner(
            cell,
            partition,
            definition,
            writer=self.writer,
            clock=self.clock,
            resources=self.resources,
            blobs=self._patient_values,
            deadlines=self.deadlines,
            turns=self._turns_in(partition, cell.state, definition),
            children=self.children,
        )

    async def _to_the_end(
        self, runner: SagaRunner, partition: Partition, first: Sequence[e.Fact]
    ) -> None:
        cell = runner.cell
        saga_id = cell.state.saga_id
        error: BaseException | None = None
        in_saga.set(True)
        current_saga.set(saga_id)  # the tasks and threads of its steps inherit both
        try:
            await runner.run(first)
        except asyncio.CancelledError as stopped:
            # Stopped by this engine (closing, hand-over, lost): the log knows where it stands.
            handed_over = cell.lost or (partition.closed and not self.closing)
            error = LostOwnership(saga_id) if handed_over else EngineClosed(saga_id)
            if not (self.closing or handed_over):
                error = stopped
        except LostOwnership as lost:
            error = lost
        except Exception as failure:
            error = failure
            if self.runners.get(saga_id) is not runner:
                return  # it was abandoned: what becomes of it does not count
            logger.error("saga %s stopped, unfinished: %s", saga_id, failure)
            # Its prediction is not the log's state any more: leave it for a take-over.
            partition.cells.pop(saga_id, None)
            if cell.begin >= 0:
                partition.held[f"stopped {saga_id}"] = cell.begin
                self._stopped[saga_id] = str(failure) or repr(failure)
                self.tell_followers(saga_id)
                partition.seen[saga_id] = cell.accepted  # its id must not start again
        finally:
            if here := self.runners.get(saga_id) is runner:
                self._let_go(runner, parked=error is None and runner.parked)
        if here:
            if error is None and cell.state.ended:
                partition.finish(cell)
                self._warn_of_person(cell.state)
            await self._has_stopped(runner, error)

    def _let_go(self, runner: SagaRunner, *, parked: bool) -> None:
        saga_id = runner.cell.state.saga_id
        self.runners.pop(saga_id, None)
        self.tasks.pop(saga_id, None)
        self.admission.stopped(saga_id, parked=parked)

    async def _has_stopped(self, runner: SagaRunner, error: BaseException | None) -> None:
        """Tell whoever waits for the saga; `error` is what stopped it, if it has not ended."""
        cell, saga_id = runner.cell, runner.cell.state.saga_id
        if runner.ready is not None and not runner.ready.done():
            runner.ready.set_exception(error or EngineClosed(saga_id))
            runner.ready.exception()
        # It has ended, or goes on elsewhere: who wanted to cancel it asks again.
        over = EngineClosed(saga_id) if self.closing else LostOwnership(saga_id)
        runner.abandon(error if isinstance(error, Exception) else over)
        if self._turns and not (error is None and runner.parked):
            self._turn_ends(runner)
        if error is None and runner.parked:
            self._park(runner)
            return
        outcome = self._taken_outcome(saga_id)
        if outcome is None or outcome.done():
            return
        if error is None and cell.state.ended:
            try:
                known = runner.scalars
                outcome.set_result(await self.result(cell.state, runner.error, known))
            except Exception as failure:  # a large value that cannot be read back
                outcome.set_exception(failure)
            return
        # Drained, its partition was handed over; the saga goes on elsewhere.
        outcome.set_exception(error or LostOwnership(saga_id))
        outcome.exception()  # nobody may be waiting

    async def abandon(self, saga_id: str) -> None:
        """Let a saga go whose code does not end although it is cancelled: it runs on, and nothing
        of it counts."""
        runner, task = self.runners[saga_id], self.tasks[saga_id]
        runner.cell.lost = True
        logger.warning(
            "saga %s (%s) is let go although %s does not end: its code does not accept that it is "
            "cancelled. It runs on, unrecorded, and the step is run again by the next owner",
            saga_id,
            runner.definition.name,
            runner.what_runs,
            extra={"saga_id": saga_id},
        )
        self._abandoned[task] = saga_id
        task.add_done_callback(self._abandoned_has_ended)
        self._let_go(runner, parked=False)
        await self._has_stopped(runner, LostOwnership(saga_id))

    def _abandoned_has_ended(self, task: asyncio.Task[None]) -> None:
        saga_id = self._abandoned.pop(task)
        if not task.cancelled():
            task.exception()  # no "never retrieved" noise
        about = {"saga_id": saga_id}
        logger.warning("saga %s: what was let go has ended here at last", saga_id, extra=about)

    @property
    def abandoned(self) -> list[str]:
        """Sagas that were let go although code of theirs still runs here."""
        return sorted(set(self._abandoned.values()))

    def not_here(self, saga_id: str) -> None:
        """Who waits for a start that stood in line follows the log, if another engine was first."""
        if saga_id not in self.runners and not self._runs_here(saga_id):
            self.refuse_start(saga_id, LostOwnership(saga_id))

    def moved(self, saga_id: str) -> None:
        """A saga that was parked here goes on elsewhere: who waits for it follows the log."""
        outcome = self._taken_outcome(saga_id)
        if outcome is not None and not outcome.done():
            outcome.set_exception(LostOwnership(saga_id))
            outcome.exception()

    def _turn_ends(self, runner: SagaRunner) -> None:
        turns = self._turns.get(runner.definition.name)
        if turns is not None and not self.closing:
            turns.done(runner.state.saga_id)

    def _park(self, runner: SagaRunner) -> None:
        """Nothing of the saga runs until it is woken. Where only a person can do that, who waits
        for the saga is told how it stands."""
        state = runner.state
        if runner.wake_at:
            self._alarms.set(runner.wake_at, state.saga_id)
        needs = needs_nobody_else(state) or self._has_stuck_child(state)
        outcome = self._taken_outcome(state.saga_id)
        if outcome is not None and not outcome.done():
            if needs:
                self.spawn(self._tell(outcome, state.copy(), runner.error), "parked")
            else:
                self._expected[state.saga_id] = outcome
        if needs:
            self._stuck[state.saga_id] = waits_for_person(state)
            self._warn_of_person(state)
            if state.caller_saga_id:
                self.awake(state.caller_saga_id)  # who waits for its parent is told, too
        runner.cell.put_aside()

    def _warn_of_person(self, state: SagaState) -> None:
        why = waits_for_person(state)
        if why:
            about = {"saga_id": state.saga_id}
            logger.warning(
                "saga %s (%s) waits for a person: %s",
                state.saga_id,
                state.saga_name,
                why,
                extra=about,
            )

    def waiting_for_person(self) -> int:
        """How many sagas in the partitions served here only a person can carry on."""
        served = self.partitions.values()
        return sum(
            1
            for saga_id, why in self._stuck.items()
            if why and any(saga_id in partition.cells for partition in served)
        )

    def _is_asked(self, state: SagaState) -> bool:
        """Whether the `resolve` of a step of unknown outcome has yet to answer, wherever the saga
        runs. Of a class that this engine does not have nobody can tell."""
        if state.ended or state.paused or state.saga_name not in self.registry:
            return False
        resolvable = self.registry.by_name(state.saga_name).rules.resolvable
        return any(
            step.status == "outcome_unknown" and not step.unresolved and name in resolvable
            for name, step in state.steps.items()
        )

    def _has_stuck_child(self, state: SagaState) -> bool:
        """Whether it waits for a child that only a person can carry on."""
        return bool(self._stuck) and any(
            step.child_start and step.child in self._stuck for step in state.steps.values()
        )

    async def _tell(
        self,
        outcome: asyncio.Future[SagaResult],
        state: SagaState,
        error: BaseException | None,
    ) -> None:
        try:
            outcome.set_result(await self.result(state, error))
        except Exception as failure:  # a large value that cannot be read back
            outcome.set_exception(failure)

    async def result(
        self,
        state: SagaState,
        error: BaseException | None = None,
        known: dict[str, tuple[str, Any]] | None = None,
    ) -> SagaResult:
        """The result of a saga that has ended, or waits for a person. `known`: see `values_of`."""
        texts: Mapping[str, str] = state.context
        if self.large_values.refers(texts):
            texts = await self.large_values.load(texts)
        undone: Mapping[str, str] | None = None
        if state.undo:
            undone = {n: step.undo_result for n, step in state.steps.items() if step.undo_result}
            undone = await self.large_values.load(undone)
        results: Mapping[str, str] = {
            name: step.result for name, step in state.steps.items() if step.status in HAS_RESULT
        }
        if self.large_values.refers(results):
            results = await self.large_values.load(results)
        context = values_of(texts, known)
        return result_of(state, context, error, undone, results)

    # --- waiting for an end ---

    def _taken_outcome(self, saga_id: str) -> asyncio.Future[SagaResult] | None:
        """What is to be told of a saga, if anybody has a handle on it."""
        outcome = self._outcomes.pop(saga_id, None)
        if outcome is None and self._expected:
            return self._expected.pop(saga_id, None)
        return outcome

    def _outcome_future(self, saga_id: str) -> asyncio.Future[SagaResult]:
        future = self._outcomes.get(saga_id)
        if future is None:
            future = self._expected.pop(saga_id, None) if self._expected else None
            future = future or asyncio.get_running_loop().create_future()
            self._outcomes[saga_id] = future
        return future

    async def _outcome(
        self, saga_id: str, future: asyncio.Future[SagaResult] | None, started: str
    ) -> SagaResult:
        """The saga's result, whoever brings it to its end."""
        result: SagaResult | None = None
        with self.admission.waited_for(saga_id):
            if future is not None:
                try:
                    result = await shared(future)
                except LostOwnership:
                    pass  # handed over, or taken over: the log will tell
            if result is None:
                result = await self.follow(saga_id, asked_for=bool(started))
        if started and result.saga_name != started:
            raise errors.SagaIdTaken(saga_id, started, result.saga_name)
        return result

    async def follow(self, saga_id: str, *, asked_for: bool = False) -> SagaResult:
        """Wait in the log for the end of a saga that runs elsewhere, or whose start waits.
        `asked_for`: a request to start it stood in the log.

        Raises what its start was refused with; SagaNotFound where the log lost it, with its tail;
        DefinitionChanged, MigrationFailed, UnknownSagaName where this engine would have to carry
        it on.
        """
        partition = self.log.partition_of(saga_id)
        heard = asyncio.Event()

        def hear(record: Record | None) -> None:
            entry = record.entry if record is not None else None
            if (
                record is None
                or isinstance(entry, e.RequestRefused)
                or (isinstance(entry, e.Event) and type(entry.fact) in TOLD)
            ):
                heard.set()

        offset = (await self.log.bounds(partition)).end
        tail = self.tail(partition)
        tail.listen(saga_id, offset, hear)
        told = False
        self._followers.setdefault(saga_id, set()).add(heard)
        try:
            while not self.closing:
                heard.clear()  # before looking: what comes meanwhile may not be in the answer
                state = await current_state(self.log, self.store, saga_id)
                if state is None:
                    refused = await refused_start(self.log, saga_id, self.config.group)
                    if refused is not None:
                        raise refusal(refused)
                    if asked_for or partition in self.lost_tails or tail.lost_tail:
                        await self._check_begins(saga_id)
                elif needs_nobody_else(state) and not self._is_asked(state):
                    return await self.result(state)
                elif (unfit := self.refusal_of(saga_id)) is not None:
                    raise unfit
                if state is not None and state.recorded and not told:
                    told = True
                    logger.warning(
                        "saga %s is recorded by other services, no engine runs it: its result "
                        "comes when one of them records its end",
                        saga_id,
                    )
                await heard.wait()
            raise EngineClosed(saga_id)
        finally:
            followers = self._followers[saga_id]
            followers.discard(heard)
            if not followers:
                del self._followers[saga_id]
            tail.ignore(saga_id, hear)

    async def _check_begins(self, saga_id: str) -> None:
        """Of a saga that the log does not have, and that may have gone with its tail. Raises
        SagaNotFound, unless its start waits."""
        if await waiting_start(self.log, saga_id, self.config.group) is None:
            raise errors.SagaNotFound(saga_id, self.log.name)

    def tell_followers(self, saga_id: str) -> None:
        """Who waits in the log for the saga's end looks again."""
        for follower in self._followers.get(saga_id, ()):
            follower.set()

    def refusal_of(self, saga_id: str) -> SagaError | None:
        """Why this engine does not carry on an unfinished saga that is its own to carry on."""
        partition, error = self.partition_for(saga_id), self._stopped.get(saga_id)
        if error is not None and partition is not None:
            if f"stopped {saga_id}" in partition.held and saga_id not in partition.cells:
                return errors.SagaStopped(saga_id, error)
        return self._serving.refusal_of(saga_id)

    async def check_fits(self, saga_id: str) -> None:
        """Raises DefinitionChanged, MigrationFailed, UnknownSagaName, SagaStopped where this engine
        would have to carry an unfinished saga on, and cannot; waits until its take-over was
        tried."""
        while (unfit := self.refusal_of(saga_id)) is None:
            partition = self.partition_for(saga_id)
            cell = partition.cells.get(saga_id) if partition is not None else None
            if cell is None or cell.ours or not self.admission.expects(saga_id):
                return
            await asyncio.sleep(0.01)
        raise unfit

    def tail(self, partition: int) -> Tail:
        tail = self._tails.get(partition)
        if tail is None:
            tail = self._tails[partition] = Tail(self.log, partition)
        return tail

    async def ask(
        self,
        request: e.Request,
        answer: Callable[[e.Fact], bool],
        stands: Callable[[], Awaitable[bool]] | None = None,
        waits: Callable[[], Awaitable[bool]] | None = None,
        confirmed: Callable[[], Awaitable[bool]] | None = None,
    ) -> e.Fact | None:
        """Append a request and wait for the fact that answers it. None: `stands`, which is asked
        once nothing can be missed any more, knows that it was answered before; or `waits`, which is
        asked after a while, knows that it will be. `confirmed` is asked when a fact answers: an
        engine that had lost the saga may have written it, and then the fold rejects it.

        Raises what the saga's writer refused it with; TimeoutError after `request_seconds`, when no
        engine serves the partition (the request stays in the log).
        """
        partition = self.log.partition_of(request.saga_id)
        loop = asyncio.get_running_loop()
        found: asyncio.Future[e.Fact] = loop.create_future()

        def hear(record: Record | None) -> None:
            entry = record.entry if record is not None else None
            if found.done():
                return
            if isinstance(entry, e.RequestRefused) and entry.request_id == request.request_id:
                found.set_exception(refusal(entry))
            elif isinstance(entry, e.Event) and answer(entry.fact):
                found.set_result(entry.fact)

        offset = (await self.log.bounds(partition)).end
        tail = self.tail(partition)
        tail.listen(request.saga_id, offset, hear)
        try:
            if stands is not None and await stands():
                return None
            await self.log.append(partition, [request])
            if waits is not None:
                await asyncio.wait([found], timeout=min(LINE_SECONDS, self.config.request_seconds))
                if not found.done() and await waits():
                    return None
            async with asyncio.timeout(self.config.request_seconds):
                while True:
                    fact = await found
                    found = loop.create_future()  # what comes while one looks is heard, too
                    if confirmed is None or await confirmed():
                        return fact
        except TimeoutError:
            raise TimeoutError(
                f"no engine answered within {self.config.request_seconds:g} s: is one running that "
                f"serves partition {partition} of {self.log.name}, and has the saga's class? The "
                "request stays in the log"
            ) from None
        finally:
            tail.ignore(request.saga_id, hear)
            if found.done() and not found.cancelled():
                found.exception()  # a refusal behind the answer is nobody's affair


async def _kept(
    log: EventLog, store: ProjectionStore, partition: Partition, saga_id: str
) -> tuple[bool, int]:
    """Whether a store has a saga, and from which offset on it does not know."""
    # The checkpoint first: a head that is newer than it does no harm.
    checkpoint = await store.checkpoint(partition.index)
    kept = bool(await store.heads([saga_id]))
    if not kept and await store.parked_of(partition.index, saga_id):
        # Set aside there before it began, for foreign bytes under its id: the log says.
        kept = await current_state(log, store, saga_id) is not None
    return kept, checkpoint.next_offset if checkpoint is not None else 0


def needs_nobody_else(state: SagaState) -> bool:
    """It has ended, or only a person can carry it on."""
    if state.ended or state.status == "forward_recovery":
        return True
    steps = state.steps.values()
    return any(step.status == "outcome_unknown" for step in steps) and not any(
        step.status in ("executing", "compensating") for step in steps
    )


def refusal(answer: e.RequestRefused) -> SagaError:
    """The error that a request was refused with, by its class and sentence."""
    kind = getattr(errors, answer.error, RequestRefusedError)
    if not (isinstance(kind, type) and issubclass(kind, SagaError)):
        kind = RequestRefusedError

    class Refused(kind):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            Exception.__init__(self, answer.message)

        def __str__(self) -> str:
            return answer.message

    Refused.__name__ = Refused.__qualname__ = kind.__name__
    return Refused()
