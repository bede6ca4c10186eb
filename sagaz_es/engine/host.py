"""The sagas that run in this process: who carries which on, to its end.

Which partitions are served, and how sagas change hands with them, is `serving.py`'s; how a saga
begins, `starting.py`'s; who is told of its end, `outcomes.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from sagaz_es import errors
from sagaz_es.core import events as e
from sagaz_es.core.state import SagaState
from sagaz_es.engine.admission import Admission, in_saga
from sagaz_es.engine.changes import claim
from sagaz_es.engine.children import Children
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.outcomes import Outcomes
from sagaz_es.engine.parked import Parked, warn_of_person
from sagaz_es.engine.partitions.cell import Cell
from sagaz_es.engine.partitions.partition import Partition
from sagaz_es.engine.registry import Registry
from sagaz_es.engine.runner import SagaRunner
from sagaz_es.engine.serving import Serving
from sagaz_es.engine.steps.calling import current_saga
from sagaz_es.engine.steps.deadline import Deadlines
from sagaz_es.engine.turns import TurnsByClass
from sagaz_es.errors import EngineClosed, LostOwnership, SagaError
from sagaz_es.ports import Clock, EventLog, Membership, ProjectionStore, Record
from sagaz_es.reading.lookup import current_state
from sagaz_es.reading.tail import Tail
from sagaz_es.sagas.context import Resources
from sagaz_es.sagas.definition import Definition
from sagaz_es.sagas.inputs import new_id
from sagaz_es.sagas.large_values import LargeValues
from sagaz_es.sagas.result import SagaResult
from sagaz_es.sagas.typed import check_texts

logger = logging.getLogger("sagaz_es.engine")


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
        self._writers: dict[int, bytes] = {}  # of partitions whose log has lost its tail
        self.lost_tails: set[int] = set()  # partitions whose log was seen to have lost its tail
        self.runners: dict[str, SagaRunner] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.admission = Admission(self, config.max_in_flight)
        self._tails: dict[int, Tail] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._serving = Serving(self)
        self.turns = TurnsByClass(self)
        self.children = Children(self)
        self.outcomes = Outcomes(self)
        self.parked = Parked(self)
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
        self.spawn(self.parked.alarms.run(), "alarms")

    async def close(self, *, for_good: bool) -> None:
        """Hand everything over and leave; whoever still waits gets EngineClosed."""
        self.closing = True
        if self.membership is not None:
            await self.membership.leave(for_good=for_good)
        await self._serving.on_change(frozenset())
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for tail in self._tails.values():
            tail.close()
        self.outcomes.close()

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

    # --- where sagas live, and who runs them ---

    def awake(self, saga_id: str) -> SagaRunner | None:
        """The runner of a saga that this engine carries on; a parked one is woken."""
        runner = self.runners.get(saga_id)
        partition = self.partition_for(saga_id)
        if runner is not None or partition is None or partition.leaving:
            return runner
        cell = partition.cells.get(saga_id)
        if cell is None or not cell.ours or cell.lost or cell.state.ended:
            return None
        state = cell.state
        definition = self.registry.by_name(state.saga_name)
        # A step waits for the end of a child, others of its class for a turn to end: a step of this
        # process, which keeps its room, may wait for one of those.
        waits = not (state.caller_saga_id or definition.max_concurrent)
        return self.carry_on(partition, cell, definition, (), waits_for_room=waits)

    def runs_here(self, saga_id: str) -> bool:
        """Whether this engine carries the saga on, which may be parked."""
        partition = self.partition_for(saga_id)
        cell = partition.cells.get(saga_id) if partition is not None else None
        return cell is not None and cell.ours and not cell.lost and not cell.ended

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

    def give_up_waiting(self, partition: Partition) -> None:
        """The partition is not served here any more: who waits for its starts asks the log."""
        for saga_id in self.admission.forget(partition.index, partition.cells):
            self.outcomes.refuse(saga_id, LostOwnership(saga_id))

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

    # --- running ---

    def carry_on(
        self,
        partition: Partition,
        cell: Cell,
        definition: Definition,
        first: Sequence[e.Fact],
        *,
        waits_for_room: bool = False,
    ) -> SagaRunner:
        """Run a saga. `waits_for_room`: before it runs a step, if there is none."""
        runner = self.make_runner(partition, cell, definition)
        runner.starting = True
        saga_id = cell.state.saga_id
        if waits_for_room or saga_id in self.admission.backlog:
            runner.lets_in = self.admission.backlog.lets_in
            self.admission.is_outside(saga_id)
        self.parked.woken(saga_id)
        self.runners[saga_id] = runner
        task = self.tasks[saga_id] = asyncio.create_task(
            self._to_the_end(runner, partition, first), name=f"sagaz-es saga {saga_id}"
        )
        task.add_done_callback(partial(self._never_began, runner))
        return runner

    def _never_began(self, runner: SagaRunner, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step runs none of its code: nothing in it lets
        the runner go, or tells who waits for that."""
        if not task.cancelled():
            return  # and its cell may be put aside: to look into it would bring it back
        saga_id = runner.cell.state.saga_id
        if self.runners.get(saga_id) is runner:
            error = EngineClosed(saga_id) if self.closing else LostOwnership(saga_id)
            self._let_go(runner, parked=False)
            self._fail(self._over(runner, error), saga_id, error)

    def writer_of(self, index: int, *, anew: bool = False) -> bytes:
        """As whom it writes in a partition. `anew`: the log has lost its tail. What of ours was on
        its way may land later, and would bear the epochs and numbers that are given once more."""
        if anew:
            self._writers[index] = os.urandom(16)
        return self._writers.get(index, self.writer)

    def make_runner(
        self, partition: Partition, cell: Cell, definition: Definition | None = None
    ) -> SagaRunner:
        definition = definition or self.registry.by_name(cell.state.saga_name)
        return SagaRunner(
            cell,
            partition,
            definition,
            writer=partition.writer,
            clock=self.clock,
            resources=self.resources,
            blobs=self._patient_values,
            deadlines=self.deadlines,
            turns=self.turns.of(partition, cell.state, definition),
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
                self.outcomes.tell_followers(saga_id)
                partition.seen[saga_id] = cell.accepted  # its id must not start again
        finally:
            if here := self.runners.get(saga_id) is runner:
                self._let_go(runner, parked=error is None and runner.parked)
        if here:
            if error is None and cell.state.ended:
                partition.finish(cell)
                warn_of_person(cell.state)
            await self._has_stopped(runner, error)

    def _let_go(self, runner: SagaRunner, *, parked: bool) -> None:
        saga_id = runner.cell.state.saga_id
        self.runners.pop(saga_id, None)
        self.tasks.pop(saga_id, None)
        self.admission.stopped(saga_id, parked=parked)

    async def _has_stopped(self, runner: SagaRunner, error: BaseException | None) -> None:
        """Tell whoever waits for the saga; `error` is what stopped it, if it has not ended."""
        cell, saga_id = runner.cell, runner.cell.state.saga_id
        outcome = self._over(runner, error)
        if outcome is None or outcome.done():
            return
        if error is None and cell.state.ended:
            await self.outcomes.tell(outcome, cell.state, runner.error, runner.scalars)
            return
        self._fail(outcome, saga_id, error)

    def _over(
        self, runner: SagaRunner, error: BaseException | None
    ) -> asyncio.Future[SagaResult] | None:
        """It runs here no more: what is to be told of it, if anybody waits and it is not parked."""
        saga_id = runner.cell.state.saga_id
        if runner.ready is not None and not runner.ready.done():
            runner.ready.set_exception(error or EngineClosed(saga_id))
            runner.ready.exception()
        # It has ended, or goes on elsewhere: who wanted to cancel it asks again.
        over = EngineClosed(saga_id) if self.closing else LostOwnership(saga_id)
        runner.abandon(error if isinstance(error, Exception) else over)
        if error is None and runner.parked:
            self.parked.add(runner)
            return None
        self.turns.done(runner.definition.name, saga_id)
        return self.outcomes.take(saga_id)

    def _fail(
        self,
        outcome: asyncio.Future[SagaResult] | None,
        saga_id: str,
        error: BaseException | None,
    ) -> None:
        if outcome is not None and not outcome.done():
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
            "cancelled. It runs on, unrecorded, until it ends or its event loop does, and the step "
            "is run again by the next owner",
            saga_id,
            runner.definition.name,
            runner.what_runs,
            extra={"saga_id": saga_id},
        )
        runner.leave_behind()
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

    # --- what is not carried on ---

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
