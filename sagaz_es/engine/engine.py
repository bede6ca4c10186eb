"""The engine: what a service holds to run sagas, ask about them and replay them.

It serves the partitions that its membership gives it (`host.py`). What belongs to a partition that
another engine serves becomes a request in the log (`requests.py`). Correctness rests on the
acceptance rule alone; who serves which partition only decides who does the work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from sagaz_es.codec.values import to_text
from sagaz_es.core import events as e
from sagaz_es.core.plan import ReplayPlan
from sagaz_es.core.state import SagaState, SagaStatus
from sagaz_es.core.texts import join_object
from sagaz_es.engine import compensations, decisions, replayer, requests, starting
from sagaz_es.engine.config import EngineConfig, SystemClock
from sagaz_es.engine.health import Health, health_of
from sagaz_es.engine.host import Host
from sagaz_es.engine.late_store import LateStore, opened
from sagaz_es.engine.registry import Registry, Source
from sagaz_es.engine.replayer import ReplayResult
from sagaz_es.engine.steps.calling import calls_in_threads
from sagaz_es.engine.steps.fact_sizes import check_size
from sagaz_es.errors import (
    ConfigurationError,
    EngineClosed,
    HandingOver,
    LostOwnership,
    SagaError,
)
from sagaz_es.ports import BlobStore, Clock, EventLog, Membership, ProjectionStore
from sagaz_es.sagas.definition import Definition
from sagaz_es.sagas.inputs import (
    check_id,
    check_request_id,
    check_said,
    check_text,
    context_texts,
    new_id,
)
from sagaz_es.sagas.large_values import LargeValues
from sagaz_es.sagas.result import SagaHandle, SagaResult
from sagaz_es.sagas.typed import Contents, check_texts

if TYPE_CHECKING:
    from sagaz_es.reading.projector import Projector
    from sagaz_es.reading.time_travel import SagaHistory

logger = logging.getLogger("sagaz_es.engine")

FLUSH_SECONDS = 10.0

PROJECTORS = "~projectors"
"""Engines of named groups serve the same partitions: among them all, this group says who projects
which one. No engine's group can have this name."""


class Engine:
    """Made by `connect`; an async context manager.

    From `run` a saga's own failure is a result, not an exception.
    """

    def __init__(
        self,
        log: EventLog,
        store: ProjectionStore | None = None,
        *,
        blobs: BlobStore | None = None,
        sagas: Iterable[Source] | Mapping[str, Callable[..., Any]] = (),
        resources: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
        config: EngineConfig | None = None,
        instance_id: str | None = None,
        projector: Projector | None = None,
    ) -> None:
        self.log = log
        self.store = store
        self.blob_store = blobs
        config = config or EngineConfig()
        self.registry = Registry(sagas, config.group)
        self.host = Host(
            log,
            store,
            self.registry,
            clock=clock or SystemClock(),
            config=config,
            large_values=LargeValues(blobs, config.limits),
            resources=resources or {},
        )
        self.host.answer = requests.Answers(self.host)
        self._instance_id = instance_id
        self._projector = projector
        self._projecting: dict[int, asyncio.Task[None]] = {}
        self._sharing: Membership | None = None
        self._shares = projector is not None and bool(self.host.config.group)
        if not self._shares:
            self.host.on_serving = self._project
        self._opened = False
        self._loop: asyncio.AbstractEventLoop | None = None  # that it was opened in

    # --- life ---

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def open(self, *, join: bool = True) -> None:
        """Connect, and (unless only questions will be asked) join and take over what is unfinished.

        A store that does not answer is found later: until then the log answers in its place.

        Raises Unreachable (the log does not answer), AccessRefused, UnsuitableTopic,
        ConfigurationError, and LogReplaced or LogTruncated where the store was made from another
        log, or from more than this one still has; EngineClosed for an engine that was closed,
        RuntimeError for one that is open.
        """
        if self.host.closing:
            raise EngineClosed(again=True)
        if self._loop is not None:
            raise RuntimeError("this engine is open already; make another one with connect(…)")
        self._loop = asyncio.get_running_loop()
        try:
            await self.log.open()
            if self.store is not None:
                late = await opened(self.log, self.store)
                if late is not None:
                    self.store = self.host.store = late.standing_for()
                    self.host.spawn(self._find(late), "search for the store")
            self._opened = True
            if join:
                await self.host.open(self._instance_id)
                if self._shares:
                    self._sharing = await self.log.join(self._project_share, group=PROJECTORS)
        except BaseException:
            await self.close()
            raise

    async def _find(self, late: LateStore) -> None:
        self.store = self.host.store = await late.found(self.log)

    async def close(self, *, for_good: bool = False) -> None:
        """Let running steps finish (`drain_seconds`), release, disconnect. Unfinished sagas go on
        when an engine of this log starts. Calling it twice is harmless.

        On Kafka an engine with an `instance_id` keeps its partitions for a session, for one of the
        same name that comes at once; `for_good`: none comes, the others go on at once.
        """
        if self.host.closing:
            return
        served = frozenset(self._projecting if self._shares else self.host.partitions)
        ours = frozenset(self.host.partitions)
        await self.host.close(for_good=for_good)
        self._tell_of_threads(ours)
        away = isinstance(self.store, LateStore)  # it was never there: nothing to wait for
        if self._projector is not None and served and not away:
            try:
                await self._flush(self._projector, served)
            except (TimeoutError, SagaError, OSError) as error:
                logger.warning("the projector is behind at close: %s", error)
        if self._sharing is not None:
            await self._sharing.leave()
        for part in (self.store, self.blob_store, self.log):
            if part is not None:
                await part.close()

    def _tell_of_threads(self, partitions: frozenset[int]) -> None:
        """Say what a program will wait for at its end."""
        for saga_id, function in calls_in_threads():
            if saga_id and self.log.partition_of(saga_id) in partitions:
                logger.warning(
                    "saga %s: %s still runs in a thread, and nothing of it counts. A thread cannot "
                    "be stopped: a program ends only when it does (`sagaz-es engine run` does not "
                    "wait for it)",
                    saga_id,
                    function,
                    extra={"saga_id": saga_id},
                )

    async def health(self) -> Health:
        """How it is doing, also before `open` and while it closes. Raises nothing, and answers
        within about a second, whatever log and store do."""
        return await health_of(self.host, self._projector)

    def _project(self, served: frozenset[int]) -> None:
        """The projector in this process follows the engine: nobody else projects what it serves."""
        if self._projector is None:
            return
        for index, task in list(self._projecting.items()):
            if index not in served or task.done():  # it ends only where log and store do not fit
                self._projecting.pop(index).cancel()
        for index in served - self._projecting.keys():
            work = self._projector.run_partition(index)
            self._projecting[index] = self.host.spawn(work, f"projector {index}")

    async def _project_share(self, share: frozenset[int]) -> None:
        self._project(share)

    async def _flush(self, projector: Projector, partitions: frozenset[int]) -> None:
        ends = {index: (await self.log.bounds(index)).end for index in partitions}
        await projector.run_until(ends, timeout_s=FLUSH_SECONDS)

    def _check_open(self) -> None:
        if self.host.closing:
            raise EngineClosed(again=True)
        if not self._opened:
            raise RuntimeError(
                "this engine is not open yet; use `async with connect(…) as engine:`, or await "
                "engine.open() first"
            )
        if _running_loop() not in (self._loop, None):
            raise RuntimeError(
                "this engine was opened in another event loop; use it there, or make one in this "
                "loop with connect(…)"
            )

    # --- starting ---

    async def run(
        self,
        saga: Source | str,
        context: Contents | None = None,
        *,
        saga_id: Any = None,
        actor: str = "",
    ) -> SagaResult:
        """Start a saga (or join the one of this id) and wait for its end."""
        handle = await self.start(saga, context, saga_id=saga_id, actor=actor)
        return await handle.result()

    async def start(
        self,
        saga: Source | str,
        context: Contents | None = None,
        *,
        saga_id: Any = None,
        actor: str = "",
    ) -> SagaHandle:
        """Start a saga; it is durable when this returns. The same id twice is the same saga.

        One of a partition or class that other engines serve may begin later: if none answers
        within 2 s (or `request_seconds`, if that is less), there is a handle all the same.

        `context`: a mapping, or a Struct, dataclass or pydantic model.

        An engine that serves nothing, or only its group's classes, may start any other saga by its
        name: who has the class runs it.
        Raises UnstorableValue (path of the key), ContextMismatch (the saga's context_type),
        UnknownSagaName, MemoryFootprintError; SagaIdTaken, if the id is of a saga of another name.
        What another engine refuses later is raised by the handle.
        """
        self._check_open()
        check_said(actor)
        host = self.host
        definition = None if self._is_elsewhere(saga) else self.registry.resolve(saga)
        name = definition.name if definition is not None else str(saga)
        texts = context_texts(context)
        if definition is not None and definition.context_type is not None:
            check_texts(definition.context_type, texts, name, "at its start")
        texts = await host.large_values.off_load(texts, name)
        text = join_object(texts)
        check_size("the context", len(text))
        given = None if saga_id is None else check_id(saga_id)
        while True:
            try:
                if definition is None:
                    saga_id = given or new_id()
                    return await requests.start_elsewhere(host, name, saga_id, text, actor)
                return await self._start(definition, given, text, actor)
            except HandingOver:
                continue  # its partition was being handed over: begin again where it is now
            except LostOwnership as lost:
                # Handed over while its start was on its way: it may stand, so the id stays.
                given = lost.saga_id

    def _is_elsewhere(self, saga: Source | str) -> bool:
        """Whether only other engines have this class."""
        return isinstance(saga, str) and self.host.leaves_to_others(saga)

    async def _start(
        self, definition: Definition, given: str | None, text: str, actor: str
    ) -> SagaHandle:
        host = self.host
        if host.closing:
            raise EngineClosed()
        if given is None and host.partitions:
            saga_id, partition = host.new_id_here()
            await partition.queue.room()
            if not host.admission.admits(definition.name):
                return await starting.wait_in_line(
                    host, partition, definition, saga_id, text, actor
                )
            return await starting.begin(host, partition, definition, saga_id, text, actor=actor)
        saga_id = given or new_id()
        served = host.partition_for(saga_id)
        if served is None:
            return await requests.start_elsewhere(host, definition.name, saga_id, text, actor)
        await served.queue.room()
        known = saga_id in served.cells or saga_id in served.seen
        if not known and not host.admission.admits(definition.name):
            return await starting.wait_in_line(host, served, definition, saga_id, text, actor)
        with host.admission.entering(saga_id):
            return await starting.start_here(host, served, definition, saga_id, text, actor=actor)

    # --- asking ---

    async def current(self, saga_id: Any) -> SagaState:
        """The saga's state at the end of the log; `pending` where its start waits. Raises
        SagaNotFound."""
        self._check_open()
        return await requests.known_state(self.host, check_id(saga_id))

    async def status(self, saga_id: Any) -> SagaStatus:
        """Where the saga stands. Raises SagaNotFound."""
        return SagaStatus((await self.current(saga_id)).status)

    async def handle(self, saga_id: Any) -> SagaHandle:
        """A handle on a saga that exists, whoever started it. Raises SagaNotFound."""
        return self.host.outcomes.handle((await self.current(saga_id)).saga_id)

    def history(self, saga_id: Any) -> SagaHistory:
        """The saga's past; awaited, it also checks that the saga exists (SagaNotFound)."""
        from sagaz_es.reading.time_travel import SagaHistory

        self._check_open()
        return SagaHistory(check_id(saga_id), self.log, self.store, self.blob_store)

    async def cancel(self, saga_id: Any, *, reason: str = "", actor: str = "") -> None:
        """Stop the saga and undo what it did; returns once that is decided.

        A pivot that runs is not stopped: what becomes of it decides, and that may take as long as
        its retries do. Raises SagaNotFound, SagaEnded, PivotPassed, PivotUndecided; here and below
        DefinitionChanged, MigrationFailed, where this engine serves the saga and its code does not
        fit.
        """
        self._check_open()
        check_said(actor, reason)
        await requests.cancel(self.host, check_id(saga_id), reason, actor)

    async def signal(
        self,
        saga_id: Any,
        name: str,
        payload: Any = None,
        *,
        actor: str = "",
        request_id: str | None = None,
    ) -> None:
        """Tell the saga something a step waits for (`wait_for`); returns once it is recorded.

        A signal that no step waits for yet is kept; of one that no step of the class waits for, the
        engine that runs the saga warns in its log. `request_id`, here and below: whoever does not
        know what became of a request asks again with the same id, and it counts once.
        Raises SagaNotFound, SagaEnded.
        """
        self._check_open()
        check_text("name", name)
        check_said(actor)
        text = to_text(payload, "payload") if payload is not None else ""
        text = await self.host.large_values.off_load_one(text, "payload", "", f"signal {name}")
        now = self.host.clock.now()
        request = e.SignalSent(
            check_request_id(request_id), check_id(saga_id), now, actor, name=name, payload=text
        )
        await decisions.decide(self.host, request)

    async def pause(
        self, saga_id: Any, *, reason: str = "", actor: str = "", request_id: str | None = None
    ) -> None:
        """Start no further step of the saga until `resume`; what runs may end. Compensations are
        not held: a saga that goes back, or is cancelled or late while it is paused, undoes.

        Raises SagaNotFound, SagaEnded.
        """
        self._check_open()
        check_said(actor, reason)
        now = self.host.clock.now()
        request = e.PauseRequested(
            check_request_id(request_id), check_id(saga_id), now, actor, reason
        )
        await decisions.decide(self.host, request)

    async def resume(
        self, saga_id: Any, *, reason: str = "", actor: str = "", request_id: str | None = None
    ) -> None:
        """Let a paused saga go on. Raises SagaNotFound, SagaEnded."""
        self._check_open()
        check_said(actor, reason)
        now = self.host.clock.now()
        request = e.ResumeRequested(
            check_request_id(request_id), check_id(saga_id), now, actor, reason
        )
        await decisions.decide(self.host, request)

    # --- replay ---

    async def plan_replay(
        self,
        saga_id: Any,
        from_step: str,
        *,
        context_override: Mapping[str, Any] | None = None,
        force_failure: bool = False,
        allow: Iterable[str] = (),
    ) -> ReplayPlan:
        """What a replay would do, step by step; nothing happens.

        Raises SnapshotNotFoundError (unknown saga or step), UnstorableValue and ContextMismatch (an
        override).
        """
        self._check_open()
        check_text("from_step", from_step, empty=True)
        return await replayer.plan(
            self.host,
            check_id(saga_id),
            from_step,
            context_override=context_override,
            force_failure=force_failure,
            allow=allow,
        )

    async def replay(
        self, plan: ReplayPlan, *, actor: str = "", reason: str = "", dry_run: bool = False
    ) -> ReplayResult:
        """Run a plan as a branch and wait for its end. A branch that fails is a result.

        Raises PlanBlocked, PlanOutdated, SagaStillRunning, DefinitionChanged, UnknownSagaName;
        nothing has run then. A dry run raises none of them: its result says so.
        """
        self._check_open()
        if not isinstance(plan, ReplayPlan):
            raise TypeError(
                f"replay runs a plan, not {plan!r}: make one with "
                "`await engine.plan_replay(saga_id, from_step)`"
            )
        check_said(actor, reason)
        return await replayer.replay(self.host, plan, actor=actor, reason=reason, dry_run=dry_run)

    async def undo_replay(
        self, replay_id: Any, *, actor: str = "", reason: str = ""
    ) -> ReplayResult:
        """Compensate exactly the effects that a replay's branch executed.

        `replay_id`: the replay's, or its branch's saga id. Raises UndoRefused with a list.
        """
        self._check_open()
        given = str(replay_id) if isinstance(replay_id, UUID) else replay_id
        check_text("replay_id", given)  # empty, it would be found in sagas that are no branch
        check_said(actor, reason)
        return await replayer.undo(self.host, given, actor=actor, reason=reason)

    # --- stuck compensations ---

    async def retry_compensation(
        self,
        saga_id: Any,
        step: str,
        *,
        reason: str,
        actor: str = "",
        request_id: str | None = None,
    ) -> SagaResult:
        """Try a compensation that failed for good once more; the saga as it ends then.

        Raises SagaNotFound, StepNotFound (with those that are stuck), SagaStillRunning;
        RequestRefusedError for one that was not tried because the undoing of a step that depends on
        it had failed, until that one is retried or skipped.
        """
        self._check_open()
        check_text("step", step, empty=True)
        check_said(actor, reason)
        now = self.host.clock.now()
        request = e.CompensationRetryRequested(
            check_request_id(request_id), check_id(saga_id), now, actor, reason, step=step
        )
        handle = await compensations.retry(self.host, request)
        return await handle.result()

    async def skip_compensation(
        self,
        saga_id: Any,
        step: str,
        *,
        reason: str,
        actor: str = "",
        request_id: str | None = None,
    ) -> None:
        """Let the effect of a step stand although it should be undone; `reason` says why.

        Raises as `retry_compensation`.
        """
        self._check_open()
        check_text("step", step, empty=True)
        check_said(actor, reason)
        now = self.host.clock.now()
        request = e.CompensationSkipRequested(
            check_request_id(request_id), check_id(saga_id), now, actor, reason, step=step
        )
        await compensations.skip(self.host, request)

    # --- what a person decides ---

    async def decide_recovery(
        self,
        saga_id: Any,
        step: str,
        action: str,
        *,
        actor: str,
        reason: str = "",
        context_override: Mapping[str, Any] | None = None,
        request_id: str | None = None,
    ) -> None:
        """How a saga in `forward_recovery` goes on: retry, retry_with_alternate (with the
        overrides), skip, or compensate_pivot. Returns once the decision is recorded.

        Raises SagaNotFound, StepNotFound (with the steps that wait), ConfigurationError.
        """
        self._check_open()
        check_text("step", step, empty=True)
        check_said(actor, reason)
        overrides = await self.host.large_values.off_load(context_texts(context_override))
        request = e.RecoveryRequested(
            check_request_id(request_id),
            check_id(saga_id),
            self.host.clock.now(),
            actor,
            reason,
            step=step,
            action=str(action),
            keys_set=join_object(overrides) if overrides else "",
        )
        await decisions.decide(self.host, request)

    async def resolve_outcome(
        self,
        saga_id: Any,
        step: str,
        *,
        happened: bool,
        result: Any = None,
        actor: str,
        reason: str = "",
        request_id: str | None = None,
    ) -> None:
        """What became of an at-most-once step of unknown outcome; the saga goes on from there.

        Raises SagaNotFound, StepNotFound (with the steps whose outcome is unknown).
        """
        self._check_open()
        check_text("step", step, empty=True)
        check_said(actor, reason)
        if not isinstance(happened, bool):
            raise ConfigurationError(f"happened: True or False, not {happened!r}")
        text = to_text(result, "result") if result is not None else ""
        self.host.large_values.check(text, "result")
        request = e.OutcomeReported(
            check_request_id(request_id),
            check_id(saga_id),
            self.host.clock.now(),
            actor,
            reason,
            step=step,
            happened=happened,
            result=text,
        )
        await decisions.decide(self.host, request)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # a plain call, such as `engine.history(…)`
        return None
