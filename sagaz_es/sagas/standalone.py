"""`Saga.run` without an engine at hand: one is opened for the runs that are under way, and closed
after the last of them, so that nothing of it outlives them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sagaz_es.core.state import SagaState, SagaStatus
from sagaz_es.errors import DefinitionError, SagaExecutionError
from sagaz_es.sagas.config import InMemorySagaStorage, SagaConfig, settings_of
from sagaz_es.sagas.context import FinalContext, SagaContext
from sagaz_es.sagas.inspection import own_id, remember, showing, start_context
from sagaz_es.sagas.large_values import DEFAULT_LIMITS, Limits
from sagaz_es.sagas.typed import Contents

if TYPE_CHECKING:
    from sagaz_es.engine.engine import Engine
    from sagaz_es.sagas.result import SagaResult
    from sagaz_es.sagas.saga import Saga

_openers: list[Callable[..., Engine]] = []


def open_with(opener: Callable[..., Engine]) -> None:
    """Told by `sagaz_es.connect`, which alone knows URLs: how to make the default engine."""
    _openers[:] = [opener]


class _Shared:
    """The engine of one event loop and one log, while anything runs on it."""

    def __init__(self, log: str | None, store: str | None, snapshots: Any, limits: Limits) -> None:
        self._log, self._store, self._snapshots = log, store, snapshots
        self._limits = limits
        self._sagas: list[Any] = []  # that somebody wants to run
        self._lock = asyncio.Lock()
        self._users = 0
        self._engine: Engine | None = None

    def running(self, saga: Any) -> _Shared:
        """The same; it has this saga's code before others can ask it to run one."""
        if self._engine is None and all(known is not saga for known in self._sagas):
            self._sagas.append(saga)
        return self

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[Engine]:
        """An engine for questions alone: it takes no partition from those who serve the log."""
        if self._engine is not None:
            async with self as shared:
                yield shared
            return
        async with self._made() as engine:
            await engine.open(join=False)
            yield engine

    @asynccontextmanager
    async def _made(self) -> AsyncIterator[Engine]:
        engine = self._make()
        try:
            yield engine
        finally:
            await engine.close()

    def _make(self) -> Engine:
        (opener,) = _openers
        return opener(self._log, store=self._store, snapshots=self._snapshots, limits=self._limits)

    async def __aenter__(self) -> Engine:
        async with self._lock:
            if self._engine is None:
                engine = self._make()
                for saga in self._sagas:
                    with suppress(DefinitionError):  # `start` tells whose name it is not
                        engine.registry.add(saga)
                await engine.open()
                self._engine = engine
            self._users += 1
            return self._engine

    async def __aexit__(self, *exc: object) -> None:
        async with self._lock:
            self._users -= 1
            if not self._users and self._engine is not None:
                engine, self._engine = self._engine, None
                self._sagas.clear()
                await engine.close()


_Place = tuple[str | None, str | None, Any, Limits]
_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Place, _Shared]] = WeakKeyDictionary()


def engine_of(config: Any = None, snapshots: Any = None) -> _Shared:
    """The engine of these settings (None: those of all sagas), to be used with `async with`.

    `snapshots`: a snapshot storage that is to hold what is captured.
    """
    settings = settings_of(config)
    log, store = (settings.log, settings.store) if settings is not None else (None, None)
    if snapshots is None and settings is not None:
        snapshots = settings.snapshot_storage
    if not hasattr(snapshots, "engine_store"):
        snapshots = None  # one of the user's own: it keeps what is saved by hand
    elif snapshots.place is None:
        snapshots.place = (log, store)
    return _at((log, store, snapshots, DEFAULT_LIMITS if settings is None else settings.limits))


def engine_with(place: Any) -> _Shared:
    """The engine of a log's URL, or of the log whose sagas were given this snapshot storage; else
    the default one."""
    if isinstance(place, str):
        return _at((place, None, None, DEFAULT_LIMITS))
    if isinstance(getattr(place, "place", None), tuple):
        return _at((*place.place, place, DEFAULT_LIMITS))
    return engine_of(None, place)


def _at(place: _Place) -> _Shared:
    here = _shared.setdefault(asyncio.get_running_loop(), {})
    return here.setdefault(place, _Shared(*place))


async def execute(saga: Saga) -> SagaResult:
    """See Saga.execute."""
    return await _execute(saga, start_context(saga), own_id(saga))


async def run(saga: Saga, context: Contents | None, saga_id: Any) -> dict[str, Any]:
    """See Saga.run."""
    if saga_id is None and isinstance(context, Mapping):
        saga_id = context.get("saga_id")  # as sagaz takes it
        saga_id = str(saga_id) if saga_id else None
    result = await _execute(saga, context, saga_id)
    if result.status is SagaStatus.COMPLETED:
        return SagaContext({**result.context, "saga_id": result.saga_id})
    if result.error is not None:
        raise result.error
    raise SagaExecutionError(f"saga {result.saga_id!r} ended {result.status}")


async def _execute(saga: Saga, context: Contents | None, saga_id: Any) -> SagaResult:
    if not type(saga)._collected and not saga.__dict__.get("_added"):
        await saga.build()
    settings, snapshots = saga.__dict__.get("_config"), saga.__dict__.get("snapshot_storage")
    async with engine_of(settings, snapshots).running(saga) as engine:
        with showing(saga, lambda: _state_here(engine, saga)):
            result = await engine.run(saga, context, saga_id=saga_id)
        state = await engine.current(result.saga_id)
        result.context = FinalContext(result.context, result.result_texts)
        remember(saga, state, result)
        return result


def _state_here(engine: Engine, saga: Saga) -> SagaState | None:
    """The newest run of an object in this engine, as it stands."""
    for runner in reversed(engine.host.runners.values()):
        if getattr(runner.definition.migrate, "__self__", None) is saga:
            return runner.state
    return None


async def state_of(saga_id: Any, engine: Any = None, config: Any = None) -> SagaState:
    """A recorded saga, from the given engine or the default log. Raises SagaNotFound."""
    if hasattr(engine, "current"):
        found: SagaState = await engine.current(saga_id)
        return found
    if isinstance(engine, InMemorySagaStorage):
        config = SagaConfig(storage=engine)
    async with engine_of(config).asked() as default:
        return await default.current(saga_id)
