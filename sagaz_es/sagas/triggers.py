"""Events that start sagas: `@trigger` on a method of a saga class, and `fire_event`.

The id of a saga comes from its class and the event's key, so the same event starts one saga however
often it comes, and from however many processes.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from uuid import UUID, uuid5

from sagaz_es.errors import (
    ConfigurationError,
    IdempotencyKeyMissingInPayloadError,
    SagaError,
    UnstorableValue,
)
from sagaz_es.sagas.inputs import check_text

if TYPE_CHECKING:
    from sagaz_es.engine.engine import Engine
    from sagaz_es.sagas.saga import Saga

logger = logging.getLogger("sagaz_es.triggers")

F = TypeVar("F", bound=Callable[..., Any])
Key = str | Callable[[Any], Any]
_MARK = "__sagaz_es_trigger__"
_NAMESPACE = UUID("5a6a2c1e-6f0b-5d6b-9a53-6c1c2f0e8f7d")  # for ever: ids are made with it


@dataclass(frozen=True, slots=True)
class TriggerMetadata:
    """What `@trigger` was told."""

    source: str
    config: dict[str, Any] = field(default_factory=dict)  # what it did not know: the caller's own
    max_concurrent: int | None = None
    rate_limit: float | None = None  # sagas a second
    idempotency_key: Key | None = None


@dataclass(frozen=True, slots=True)
class RegisteredTrigger:
    """A method of a saga class that an event of a source calls."""

    saga_class: type[Saga]
    method_name: str
    metadata: TriggerMetadata


def trigger(
    source: str,
    *,
    max_concurrent: int | None = None,
    rate_limit: float | None = None,
    idempotency_key: Key | None = None,
    **config: Any,
) -> Callable[[F], F]:
    """Declare a method `(self, event)` that makes a saga's context of an event; None: no saga.

    `idempotency_key`: a field of the event, or a function of it; the same key starts one saga of
    this class. `max_concurrent` and `rate_limit` (a second) hold for all sagas of the class that an
    engine runs: whoever comes too early stands in the log and waits for its turn. `config` is kept
    in the registry, for the caller.

    Raises ConfigurationError.
    """
    check_text("trigger: source", source)
    if idempotency_key is not None and not callable(idempotency_key):
        check_text(f"trigger {source!r}: idempotency_key", idempotency_key)
    if max_concurrent is not None and (not isinstance(max_concurrent, int) or max_concurrent < 1):
        raise ConfigurationError(
            f"trigger {source!r}: max_concurrent is 1 or more, not {max_concurrent!r}"
        )
    if rate_limit is not None and (not isinstance(rate_limit, int | float) or not rate_limit > 0):
        raise ConfigurationError(f"trigger {source!r}: rate_limit is above 0, not {rate_limit!r}")
    metadata = TriggerMetadata(source, config, max_concurrent, rate_limit, idempotency_key)

    def mark(function: F) -> F:
        setattr(function, _MARK, metadata)
        return function

    return mark


class TriggerRegistry:
    """Which methods an event of a source calls, in all saga classes of this process."""

    _triggers: ClassVar[
        dict[tuple[str, str, str], RegisteredTrigger]
    ] = {}  # by class, name, method

    @classmethod
    def register(cls, saga_class: type[Saga], method_name: str, metadata: TriggerMetadata) -> None:
        """Classes with `@trigger` do it by themselves; one made anew takes its old one's place."""
        if metadata.idempotency_key is None:
            logger.warning(
                "trigger %s.%s of %r has no idempotency_key: an event that comes twice starts two "
                "sagas; name a field of the event, or a function of it",
                saga_class.__name__,
                method_name,
                metadata.source,
            )
        kind = f"{saga_class.__module__}.{saga_class.__qualname__}"
        place = (kind, saga_class.registered_name(), method_name)
        cls._triggers[place] = RegisteredTrigger(saga_class, method_name, metadata)

    @classmethod
    def get_triggers(cls, source: str) -> list[RegisteredTrigger]:
        """Those of one source."""
        return [known for known in cls._triggers.values() if known.metadata.source == source]

    @classmethod
    def get_all(cls) -> dict[str, list[RegisteredTrigger]]:
        """All of them, by source."""
        return {source: cls.get_triggers(source) for source in cls._sources()}

    @classmethod
    def _sources(cls) -> list[str]:
        return list(dict.fromkeys(known.metadata.source for known in cls._triggers.values()))

    @classmethod
    def clear(cls) -> None:
        """Forget all, for tests."""
        cls._triggers.clear()


def triggers_of(saga_class: type) -> dict[str, TriggerMetadata]:
    """The methods of a class, its own and inherited, that are triggers."""
    found: dict[str, TriggerMetadata] = {}
    for base in reversed(saga_class.__mro__):
        for name, value in vars(base).items():
            metadata = getattr(value, _MARK, None)
            if isinstance(metadata, TriggerMetadata):
                found[name] = metadata
            else:
                found.pop(name, None)
    return found


def register(saga_class: type[Saga]) -> None:
    """Called for each new class. One without steps is a base: those made of it are triggered."""
    for name, metadata in triggers_of(saga_class).items():
        TriggerRegistry.register(saga_class, name, metadata)


def limits_of(saga_class: type) -> tuple[int, int]:
    """How many sagas of a class may run at once, and how many µs apart they start; 0: any."""
    known = triggers_of(saga_class).values()
    most = min((one.max_concurrent for one in known if one.max_concurrent), default=0)
    rate = min((one.rate_limit for one in known if one.rate_limit), default=0.0)
    return most, max(1, round(1_000_000 / rate)) if rate else 0


class TriggerEngine:
    """Starts the sagas that an event asks for: on `engine`, or on the default log."""

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine = engine
        self._following: set[asyncio.Task[None]] = set()

    async def fire(self, source: str, payload: Any) -> list[str]:
        """Ids of the sagas that this event has started, or had started before.

        They are durable when this returns, and run on. An event that no trigger takes starts none.
        Raises IdempotencyKeyMissingInPayloadError, UnstorableValue, and what a trigger's method
        raises; then nothing is started.
        """
        wanted: list[tuple[type[Saga], Mapping[str, Any], str | None]] = []
        for known in TriggerRegistry.get_triggers(source):
            try:
                context = await _context_of(known, payload)
            except Exception:
                _id_of(known, payload)  # that a key is missing says more than what came of it
                raise
            if context is not None:
                wanted.append((known.saga_class, context, _id_of(known, payload)))
        return [await self._start(*one) for one in wanted]

    async def _start(
        self, saga_class: type[Saga], context: Mapping[str, Any], saga_id: str | None
    ) -> str:
        if self._engine is not None:
            handle = await self._engine.start(saga_class, context, saga_id=saga_id)
            return handle.saga_id
        # The default engine lives as long as anybody uses it: this saga does, to its end.
        started: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(
            _run_by_default(saga_class, context, saga_id, started), name="sagaz-es trigger"
        )
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        return await started


async def _run_by_default(
    saga_class: type[Saga],
    context: Mapping[str, Any],
    saga_id: str | None,
    started: asyncio.Future[str],
) -> None:
    from sagaz_es.sagas import standalone

    try:
        async with standalone.engine_of().running(saga_class) as engine:
            handle = await engine.start(saga_class, context, saga_id=saga_id)
            if not started.done():
                started.set_result(handle.saga_id)
            await handle.result()
    except BaseException as error:
        if not started.done():
            started.set_exception(error)
        elif isinstance(error, SagaError | OSError):
            logger.warning("a triggered saga is not followed any more, it goes on: %s", error)
        else:
            raise


async def _context_of(known: RegisteredTrigger, payload: Any) -> Mapping[str, Any] | None:
    function = getattr(known.saga_class(), known.method_name)
    made = function(payload)
    context = await made if inspect.isawaitable(made) else made
    if context is None or isinstance(context, Mapping):
        return context
    where = f"{known.saga_class.__name__}.{known.method_name}"
    raise UnstorableValue("context", type(context).__name__, f"{where} gives a mapping, or None")


def _id_of(known: RegisteredTrigger, payload: Any) -> str | None:
    key = known.metadata.idempotency_key
    if key is None:
        return None
    cause: Exception | None = None
    value: Any = None
    if isinstance(key, str):
        value = payload.get(key) if isinstance(payload, Mapping) else getattr(payload, key, None)
    else:
        try:
            value = key(payload)
        except Exception as error:
            cause = error
    text = "" if value is None else str(value)
    if not text.strip():
        fields = tuple(map(str, payload)) if isinstance(payload, Mapping) else ()
        name = key if isinstance(key, str) else getattr(key, "__name__", "a function")
        raise IdempotencyKeyMissingInPayloadError(
            known.saga_class.registered_name(), known.metadata.source, name, fields
        ) from cause
    return str(uuid5(_NAMESPACE, f"{known.saga_class.registered_name()}\n{text}"))


_default = TriggerEngine()


async def fire_event(source: str, payload: Any, *, engine: Engine | None = None) -> list[str]:
    """As `TriggerEngine(engine).fire`: start the sagas whose `@trigger` names this source."""
    return await (_default if engine is None else TriggerEngine(engine)).fire(source, payload)
