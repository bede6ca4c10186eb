"""An engine in memory for tests: a virtual clock, every call of a step seen, failures on demand."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from sagaz_es.core.plan import ReplayPlan
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.registry import Registry, Source
from sagaz_es.engine.replayer import ReplayResult
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import EventLog, ProjectionStore
from sagaz_es.sagas.result import SagaHandle, SagaResult
from sagaz_es.testing.faults import Fault, Faults, attempts_of, checked
from sagaz_es.testing.virtual_time import VirtualClock
from sagaz_es.testing.watching import Call, WatchedRegistry, all_steps, perform

T = TypeVar("T")

CONFIG = EngineConfig(drain_seconds=1.0, request_seconds=5.0)


def memory_engine(
    *sagas: Source,
    resources: Mapping[str, Any] | None = None,
    clock: VirtualClock | None = None,
    log: EventLog | None = None,
    store: ProjectionStore | None = None,
    config: EngineConfig = CONFIG,
) -> MemoryEngine:
    """An engine for one test, to be used with `async with`.

    Give two of them one `log` to test what happens when a process takes over from another.
    """
    return MemoryEngine(
        log if log is not None else MemoryEventLog(1),
        store,
        sagas=sagas,
        resources=resources,
        clock=clock,
        config=config,
    )


class MemoryEngine(Engine):
    """An Engine whose time is virtual.

    Backoffs, delays, deadlines and limits of signals pass by `clock.elapse(seconds)`; while the
    test awaits the end of a saga (`run`, `result`, `replay` …) they pass by themselves, unless
    a step is at work. A step's own waits and its time limit take real time.
    """

    def __init__(
        self,
        log: EventLog,
        store: ProjectionStore | None = None,
        *,
        sagas: Iterable[Source] = (),
        resources: Mapping[str, Any] | None = None,
        clock: VirtualClock | None = None,
        config: EngineConfig = CONFIG,
    ) -> None:
        self.clock = clock or VirtualClock()
        self.calls: list[Call] = []  # of steps and compensations, in their order
        self._faults = Faults()
        listed = tuple(sagas)
        super().__init__(
            log, store, sagas=listed, resources=resources, clock=self.clock, config=config
        )
        self._declared = Registry(listed)
        self.registry = self.host.registry = WatchedRegistry(listed, self)

    def fails(
        self,
        step: str,
        *,
        attempts: int | Iterable[int] | None = None,
        error: BaseException | Callable[[], BaseException] | None = None,
        after: bool = False,
        compensation: bool = False,
    ) -> None:
        """Let attempts of a step (None: all) fail before its code is called, or `after` it."""
        fault = Fault(step, "error", attempts_of(attempts), compensation, after, error)
        self._faults.faults.append(checked(fault, all_steps(self._declared)))

    def heal(self) -> None:
        """Nothing is made to fail any more."""
        self._faults.faults.clear()

    async def perform(self, call: Call, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """See Watcher."""
        self.calls.append(call)
        fault = self._faults.of(call)
        if fault is not None and not fault.after:
            raise fault.raised()
        threaded = not inspect.iscoroutinefunction(function)
        self.clock.at_work += 1
        self.clock.in_threads += threaded
        try:
            value = await perform(function, args)
        finally:
            self.clock.at_work -= 1
            self.clock.in_threads -= threaded
        if fault is not None:
            raise fault.raised()
        return value

    # --- time passes while an end is awaited ---

    async def _skipping(self, work: Awaitable[T]) -> T:
        with self.clock.skipping():
            return await work

    def _with_time(self, handle: SagaHandle) -> SagaHandle:
        return SagaHandle(handle.saga_id, lambda: self._skipping(handle.result()), handle.waits_for)

    async def start(self, *args: Any, **options: Any) -> SagaHandle:
        return self._with_time(await super().start(*args, **options))

    async def handle(self, saga_id: Any) -> SagaHandle:
        return self._with_time(await super().handle(saga_id))

    async def replay(self, plan: ReplayPlan, **options: Any) -> ReplayResult:
        return await self._skipping(super().replay(plan, **options))

    async def undo_replay(self, replay_id: Any, **options: Any) -> ReplayResult:
        return await self._skipping(super().undo_replay(replay_id, **options))

    async def retry_compensation(self, saga_id: Any, step: str, **options: Any) -> SagaResult:
        return await self._skipping(super().retry_compensation(saga_id, step, **options))
