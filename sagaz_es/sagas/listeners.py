"""Ready-made listeners (logging, counts, traces) and helpers for hooks of steps."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

from sagaz_es.core.state import SagaStatus
from sagaz_es.errors import ConfigurationError, MissingDependencyError
from sagaz_es.sagas.observers import SagaListener

F = TypeVar("F", bound=Callable[..., Any])
MAX_OPEN = 10_000
"""Starts that are remembered at once: a saga that ends elsewhere leaves its start behind."""

logger = logging.getLogger("sagaz_es.sagas")


class LoggingSagaListener(SagaListener):
    """Writes every event of a saga to a logger (default: `sagaz_es.sagas`), failures as errors.

    Nothing is seen of it before the program configures logging.
    """

    def __init__(self, logger_instance: Any = None, level: int | str = logging.INFO) -> None:
        self.log = logger_instance if logger_instance is not None else logger
        number = logging.getLevelName(level.upper()) if isinstance(level, str) else level
        if not isinstance(number, int):
            raise ConfigurationError(f"level: a level of logging such as 'INFO', not {level!r}")
        self.level = number

    async def on_saga_start(self, saga_name: str, saga_id: str, ctx: Any) -> None:
        self.log.log(self.level, "saga %s (%s) starts", saga_name, saga_id)

    async def on_saga_complete(self, saga_name: str, saga_id: str, ctx: Any) -> None:
        self.log.log(self.level, "saga %s (%s) is complete", saga_name, saga_id)

    async def on_saga_failed(self, saga_name: str, saga_id: str, ctx: Any, error: Any) -> None:
        self.log.error("saga %s (%s) failed: %s", saga_name, saga_id, error)

    async def on_step_enter(self, saga_name: str, step_name: str, ctx: Any) -> None:
        self.log.log(self.level, "step %s.%s starts", saga_name, step_name)

    async def on_step_success(self, saga_name: str, step_name: str, ctx: Any, result: Any) -> None:
        self.log.log(self.level, "step %s.%s is done", saga_name, step_name)

    async def on_step_failure(self, saga_name: str, step_name: str, ctx: Any, error: Any) -> None:
        self.log.error("step %s.%s failed: %s", saga_name, step_name, error)

    async def on_compensation_start(self, saga_name: str, step_name: str, ctx: Any) -> None:
        self.log.log(self.level, "step %s.%s is being undone", saga_name, step_name)

    async def on_compensation_complete(self, saga_name: str, step_name: str, ctx: Any) -> None:
        self.log.log(self.level, "step %s.%s is undone", saga_name, step_name)


class _Starts:
    """When things began, bounded."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, str], float] = {}

    def begin(self, saga_id: str, step: str) -> None:
        if len(self._at) >= MAX_OPEN:
            self._at.pop(next(iter(self._at)))
        self._at[saga_id, step] = time.monotonic()

    def end(self, saga_id: str, step: str) -> float:
        """Seconds since then; 0 if the beginning was elsewhere."""
        at = self._at.pop((saga_id, step), None)
        return time.monotonic() - at if at is not None else 0.0


@dataclass
class SagaCounts:
    """Counts in this process: what a `MetricsSagaListener` keeps unless it is given another."""

    started: Counter[str] = field(default_factory=Counter)  # by saga name
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)  # by saga name and status
    active: Counter[str] = field(default_factory=Counter)
    saga_seconds: dict[str, float] = field(default_factory=dict)
    step_seconds: dict[tuple[str, str], float] = field(default_factory=dict)  # by saga and step

    def saga_started(self, saga_name: str) -> None:
        self.started[saga_name] += 1
        self.active[saga_name] += 1

    def saga_finished(self, saga_name: str) -> None:
        self.active[saga_name] -= 1

    def record_execution(self, saga_name: str, status: Any, duration: float) -> None:
        self.ended[saga_name, str(status)] += 1
        self.saga_seconds[saga_name] = self.saga_seconds.get(saga_name, 0.0) + duration

    def record_step_duration(self, saga_name: str, step_name: str, duration: float) -> None:
        key = (saga_name, step_name)
        self.step_seconds[key] = self.step_seconds.get(key, 0.0) + duration


class MetricsSagaListener(SagaListener):
    """Counts sagas and takes their times, in `metrics`: an object with
    `record_execution(saga_name, status, seconds)` and, if it likes, `saga_started(saga_name)`,
    `saga_finished(saga_name)` and `record_step_duration(saga_name, step_name, seconds)`.

    None: counts in this process (`listener.metrics`). "prometheus": the default registry.
    """

    def __init__(self, metrics: Any = None) -> None:
        if metrics == "prometheus":
            metrics = _prometheus()
        self.metrics = metrics if metrics is not None else SagaCounts()
        self._starts = _Starts()

    async def on_saga_start(self, saga_name: str, saga_id: str, ctx: Any) -> None:
        self._starts.begin(saga_id, "")
        self._say("saga_started", saga_name)

    async def on_saga_complete(self, saga_name: str, saga_id: str, ctx: Any) -> None:
        self._ended(saga_name, saga_id, SagaStatus.COMPLETED)

    async def on_saga_failed(self, saga_name: str, saga_id: str, ctx: Any, error: Any) -> None:
        self._ended(saga_name, saga_id, SagaStatus.FAILED)

    async def on_step_enter(self, saga_name: str, step_name: str, ctx: Any) -> None:
        self._starts.begin(_saga_id(ctx), step_name)

    async def on_step_success(self, saga_name: str, step_name: str, ctx: Any, result: Any) -> None:
        self._step(saga_name, step_name, ctx)

    async def on_step_failure(self, saga_name: str, step_name: str, ctx: Any, error: Any) -> None:
        self._step(saga_name, step_name, ctx)

    def _step(self, saga_name: str, step_name: str, ctx: Any) -> None:
        seconds = self._starts.end(_saga_id(ctx), step_name)
        self._say("record_step_duration", saga_name, step_name, seconds)

    def _ended(self, saga_name: str, saga_id: str, status: SagaStatus) -> None:
        seconds = self._starts.end(saga_id, "")
        self.metrics.record_execution(saga_name, status, seconds)
        self._say("saga_finished", saga_name)

    def _say(self, method: str, *args: Any) -> None:
        function = getattr(self.metrics, method, None)
        if function is not None:
            function(*args)


class TracingSagaListener(SagaListener):
    """A span for each step and each compensation, marked with saga and step.

    `tracer`: one of OpenTelemetry's (None: its global one), or an object with sagaz's
    `start_saga_trace` and `start_step_trace`. Raises MissingDependencyError.
    """

    def __init__(self, tracer: Any = None) -> None:
        self.tracer = tracer if tracer is not None else _opentelemetry()
        self._spans: dict[tuple[str, str, bool], Any] = {}

    async def on_saga_start(self, saga_name: str, saga_id: str, ctx: Any) -> None:
        if hasattr(self.tracer, "start_saga_trace"):
            self.tracer.start_saga_trace(saga_id, saga_name, 0)

    async def on_step_enter(self, saga_name: str, step_name: str, ctx: Any) -> None:
        self._begin(saga_name, step_name, ctx, "action")

    async def on_step_success(self, saga_name: str, step_name: str, ctx: Any, result: Any) -> None:
        self._end(step_name, ctx, undo=False)

    async def on_step_failure(self, saga_name: str, step_name: str, ctx: Any, error: Any) -> None:
        self._end(step_name, ctx, undo=False, error=error)

    async def on_compensation_start(self, saga_name: str, step_name: str, ctx: Any) -> None:
        self._begin(saga_name, step_name, ctx, "compensation")

    async def on_compensation_complete(self, saga_name: str, step_name: str, ctx: Any) -> None:
        self._end(step_name, ctx, undo=True)

    def _begin(self, saga_name: str, step_name: str, ctx: Any, kind: str) -> None:
        saga_id = _saga_id(ctx)
        if hasattr(self.tracer, "start_step_trace"):
            self.tracer.start_step_trace(saga_id, saga_name, step_name, step_type=kind)
            return
        undo = kind == "compensation"
        self._end(step_name, ctx, undo=undo)  # the attempt before this one
        if len(self._spans) >= MAX_OPEN:
            self._spans.pop(next(iter(self._spans))).end()
        marks = {"saga.id": saga_id, "saga.name": saga_name, "saga.step": step_name}
        name = f"{saga_name}.{step_name}" + (" compensation" if undo else "")
        self._spans[saga_id, step_name, undo] = self.tracer.start_span(name, attributes=marks)

    def _end(self, step_name: str, ctx: Any, *, undo: bool, error: Any = None) -> None:
        span = self._spans.pop((_saga_id(ctx), step_name, undo), None)
        if span is None:
            return
        if error is not None:
            span.record_exception(error)
        span.end()


def _saga_id(ctx: Any) -> str:
    return str(getattr(ctx, "saga_id", ""))


def default_listeners(
    metrics: bool = True,
    logging_enabled: bool = True,
    tracing: bool = False,
    outbox_storage: Any = None,
) -> list[SagaListener]:
    """Logging, counts and traces, as asked for.

    `outbox_storage` is refused with ConfigurationError: what it published stands in the log.
    """
    if outbox_storage is not None:
        raise ConfigurationError(
            "outbox_storage: there is no outbox, the log is one; subscribe to its events topic"
        )
    wanted: list[SagaListener] = []
    if logging_enabled:
        wanted.append(LoggingSagaListener())
    if metrics:
        wanted.append(MetricsSagaListener())
    if tracing:
        wanted.append(TracingSagaListener())
    return wanted


# --- optional packages ----------------------------------------------------------------------------


def _opentelemetry() -> Any:
    try:
        return import_module("opentelemetry.trace").get_tracer("sagaz_es")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("opentelemetry-api", "TracingSagaListener()") from error


def _prometheus() -> Any:
    try:
        return _Prometheus(import_module("prometheus_client"))
    except ModuleNotFoundError as error:
        what = 'MetricsSagaListener("prometheus")'
        raise MissingDependencyError("prometheus-client", what) from error


class _Prometheus:
    def __init__(self, client: Any) -> None:
        name, status = ["saga_name"], ["saga_name", "status"]
        self._active = client.Gauge("sagaz_es_active_sagas", "Sagas under way here.", name)
        self._sagas = client.Histogram("sagaz_es_saga_seconds", "From start to end.", status)
        step = ["saga_name", "step_name"]
        self._steps = client.Histogram("sagaz_es_step_seconds", "From try to outcome.", step)

    def saga_started(self, saga_name: str) -> None:
        self._active.labels(saga_name).inc()

    def saga_finished(self, saga_name: str) -> None:
        self._active.labels(saga_name).dec()

    def record_execution(self, saga_name: str, status: Any, duration: float) -> None:
        self._sagas.labels(saga_name, str(status)).observe(duration)

    def record_step_duration(self, saga_name: str, step_name: str, duration: float) -> None:
        self._steps.labels(saga_name, step_name).observe(duration)


# --- hooks ----------------------------------------------------------------------------------------


def on_step_enter(function: F) -> F:
    """Marks a function as meant for `on_enter=`, for readers; it stays as it is."""
    return function


def on_step_success(function: F) -> F:
    """As `on_step_enter`, for `on_success=`."""
    return function


def on_step_failure(function: F) -> F:
    """As `on_step_enter`, for `on_failure=`."""
    return function


def on_step_compensate(function: F) -> F:
    """As `on_step_enter`, for `on_compensate=`."""
    return function


def on_step_exit(function: F) -> F:
    """As `on_step_enter`, for `on_exit=`."""
    return function


def log_step_lifecycle(logger_instance: Any = None) -> dict[str, Any]:
    """Hooks that write a step's course to a logger: `@action("charge", **log_step_lifecycle())`."""
    log = logger_instance if logger_instance is not None else logger

    def on_enter(ctx: Any, step: str) -> None:
        log.info("step %s starts", step)

    def on_success(ctx: Any, step: str, result: Any) -> None:
        log.info("step %s is done", step)

    def on_failure(ctx: Any, step: str, error: Any) -> None:
        log.error("step %s failed: %s", step, error)

    return {"on_enter": on_enter, "on_success": on_success, "on_failure": on_failure}
