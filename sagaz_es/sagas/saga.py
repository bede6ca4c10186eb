"""`Saga`: the class that an author writes, or the object that is put together step by step."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from msgspec import structs

from sagaz_es.core.decide import CompensationFailureStrategy, ParallelFailureStrategy, Rules
from sagaz_es.errors import ConfigurationError, DefinitionError
from sagaz_es.sagas import options as check
from sagaz_es.sagas.collecting import collect, own_undoing
from sagaz_es.sagas.config import SagaConfig, checked, settings_of
from sagaz_es.sagas.decorators import DELAY, RETRIES, TIMEOUT, US, compensation_of, step_of
from sagaz_es.sagas.definition import CompensationType, Definition, RecordedSaga, StepDefinition
from sagaz_es.sagas.inspection import Inspection, start_context
from sagaz_es.sagas.triggers import limits_of, register
from sagaz_es.sagas.typed import Contents
from sagaz_es.sagas.typed import context_type as typed_as

if TYPE_CHECKING:
    from sagaz_es.sagas.result import SagaResult


class Saga(Inspection):
    """A saga: decorated methods in a subclass, or steps added by hand; not both.

    `saga_name` names it in the log; unset, it is the class name. A subclass is constructible
    without arguments, so that any process can carry it on after a crash.

    `compatible_with`: fingerprints of older definitions whose sagas this code may carry on and
    replay, as long as nothing has changed about the steps that have begun.

    `context_type`: a msgspec.Struct, dataclass, TypedDict or pydantic model. A context is checked
    against it before the saga starts, after an override, and after each step; steps read it by
    `ctx.typed(Class)`. ContextMismatch says where, what was found and what expected.
    """

    saga_name: ClassVar[str | None] = None
    failure_strategy: ClassVar[ParallelFailureStrategy | str] = (
        ParallelFailureStrategy.FAIL_FAST_WITH_GRACE
    )
    compensation_failure_strategy: ClassVar[CompensationFailureStrategy | str] = (
        CompensationFailureStrategy.RETRY_THEN_CONTINUE
    )
    grace_seconds: ClassVar[float] = 5.0
    listeners: ClassVar[Sequence[Any] | None] = ()  # unset or None: the configuration's
    deadline_seconds: ClassVar[float | None] = None
    replay_config: Any = None
    compatible_with: ClassVar[tuple[str, ...]] = ()
    context_type: Any = None
    _collected: ClassVar[tuple[StepDefinition, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._collected = collect(cls)
        check.check_compatible_with(cls.__name__, cls.compatible_with)
        if inspect.iscoroutinefunction(cls.migrate):
            raise DefinitionError(
                f"{cls.__name__}: migrate is a plain function, as it only computes: write "
                "def migrate(self, saga)"
            )
        check.check_saga(cls.__name__, check.said_by(cls))
        if cls._collected:  # a base for others may have none
            Definition(cls.__name__, cls._collected, rules=Rules())
        if cls.context_type is not None:
            typed_as(cls.context_type)
        if cls._collected or cls.build is not Saga.build:
            register(cls)

    def __init__(
        self,
        name: str | None = None,
        config: Any = None,
        failure_strategy: ParallelFailureStrategy | str | None = None,
        retry_backoff_base: float | None = None,
        replay_config: Any = None,
        snapshot_storage: Any = None,
        *,
        version: str = "1.0",
        grace_seconds: float | None = None,
        compensation_failure_strategy: CompensationFailureStrategy | str | None = None,
        context: Mapping[str, Any] | None = None,
        context_type: Any = None,
    ) -> None:
        """`retry_backoff_base`: seconds, for steps that name no delay of their own. `version` is
        only shown. `snapshot_storage` holds the snapshots that `run` and `execute` leave, where the
        log is an embedded one. `context`: what `execute` starts with."""
        if isinstance(config, str):  # one of sagaz's two classes has the version here
            config, version = None, config
        if config is not None:
            checked(config)
        check.check_saga("Saga", {"saga_name": name})
        self._name = name
        if name is not None and self.saga_name is None:
            self.__dict__["saga_name"] = name
        self._config = config
        self._version = version
        self._added: list[StepDefinition] = []
        self._backoff = retry_backoff_base
        self.snapshot_storage = snapshot_storage
        if context_type is not None:
            self.context_type = context_type
        if context is not None:
            start_context(self).update(context)
        if failure_strategy is not None:
            self.set_failure_strategy(failure_strategy)
        if compensation_failure_strategy is not None:
            self.__dict__["compensation_failure_strategy"] = check.one_of(
                self.name,
                "compensation_failure_strategy",
                CompensationFailureStrategy,
                compensation_failure_strategy,
            )
        if grace_seconds is not None:
            seconds = check.seconds(self.name, "grace_seconds", grace_seconds, zero=True)
            self.__dict__["grace_seconds"] = seconds
        if replay_config is not None:
            check.check_saga(self.name, {"replay_config": replay_config})
            self.replay_config = replay_config

    @property
    def name(self) -> str:
        """Its name in the log."""
        # A subclass whose __init__ does not call ours still has a name and no added steps.
        return self.__dict__.get("_name") or self.saga_name or type(self).__name__

    @name.setter
    def name(self, name: str) -> None:
        self.__dict__["_name"] = name

    @property
    def version(self) -> str:
        """As given to the constructor; what decides about code is the fingerprint."""
        return str(self.__dict__.get("_version", "1.0"))

    @classmethod
    def registered_name(cls) -> str:
        """The name that sagas of this class have in the log."""
        return cls.saga_name or cls.__name__

    @classmethod
    def fingerprint(cls) -> str:
        """16 hex digits that change with the step graph: what a log knows this definition by.

        Of a saga built by hand ask the object: `saga.definition().graph.fingerprint`.
        """
        return Definition(cls.__name__, cls._collected, rules=Rules()).graph.fingerprint

    def migrate(self, saga: RecordedSaga) -> Mapping[str, Any] | None:
        """What to set in the context of a saga of a `compatible_with` definition before this code
        goes on with it. It only computes, as it may be called again; raising refuses the saga.
        """
        return None

    def add_step(
        self,
        name: str,
        action: Callable[..., Any],
        compensation: Callable[..., Any] | None = None,
        depends_on: Iterable[str] | None = None,
        timeout_seconds: float | None = None,
        compensation_timeout_seconds: float | None = None,
        max_retries: int = RETRIES,
        description: str | None = None,
        *,
        timeout: float | None = None,
        compensation_timeout: float | None = None,
        dependencies: Iterable[str] | None = None,
        idempotency_key: str | None = None,
        pivot: bool | None = None,
        at_most_once: bool = False,
        effects: bool = True,
        on_unknown: bool = False,
        compensation_type: CompensationType | str = CompensationType.MECHANICAL,
        retry_delay_seconds: float = DELAY,
        max_retry_delay_seconds: float = 30.0,
        retry_on: tuple[type[BaseException], ...] = (Exception,),
        no_retry: tuple[type[BaseException], ...] = (),
        resolve: Callable[..., Any] | None = None,
        wait_for: str | None = None,
        wait_seconds: float | None = None,
        delay_seconds: float | None = None,
        child: type[Saga] | Saga | str | None = None,
        result_keys: Iterable[str] | None = None,
        for_each: bool = False,
        on_enter: Callable[..., Any] | None = None,
        on_success: Callable[..., Any] | None = None,
        on_failure: Callable[..., Any] | None = None,
        on_exit: Callable[..., Any] | None = None,
        on_compensate: Callable[..., Any] | None = None,
    ) -> Self:
        """Add a step `action(ctx)`; the result can be chained, and awaited. With `child`, a saga,
        `action` says what that starts with (see `child`).

        Raises TypeError on a decorated saga, DefinitionError (a ValueError) on a duplicate name.
        """
        if type(self)._collected:
            raise TypeError(
                f"{type(self).__name__} declares its steps with @action; steps are added by hand "
                "only to a saga without decorated ones"
            )
        added = self.__dict__.setdefault("_added", [])
        if any(step.name == name for step in added):
            raise DefinitionError(f"step {name!r} is declared twice")
        options = {
            "depends_on": depends_on if depends_on is not None else dependencies,
            "max_retries": max_retries,
            "retry_delay_seconds": retry_delay_seconds,
            "max_retry_delay_seconds": max_retry_delay_seconds,
            "timeout_seconds": _first(timeout_seconds, timeout, TIMEOUT),
            "pivot": pivot,
            "at_most_once": at_most_once,
            "effects": effects,
            "idempotency_key": idempotency_key,
            "description": description,
            "retry_on": retry_on,
            "no_retry": no_retry,
            "resolve": resolve,
            "wait_for": wait_for,
            "wait_seconds": wait_seconds,
            "delay_seconds": delay_seconds,
            "child": child,
            "result_keys": result_keys,
            "for_each": for_each,
            "on_enter": on_enter,
            "on_success": on_success,
            "on_failure": on_failure,
            "on_exit": on_exit,
            "on_compensate": on_compensate,
        }
        step = step_of(name, action, options, method=False)
        check.check_call(f"step {name!r}", action, "ctx")
        if step.child and (at_most_once or not effects):
            raise ConfigurationError(
                f"step {name!r} is a saga of its own: at_most_once and effects are said of that "
                "saga's steps"
            )
        if compensation is not None:
            if step.child:
                raise DefinitionError(own_undoing("", step))
            undo = compensation_of(
                name,
                compensation,
                method=False,
                timeout_seconds=_first(compensation_timeout_seconds, compensation_timeout, 30.0),
                on_unknown=on_unknown,
                kind=compensation_type,
            )
            check.check_call(f"the compensation of step {name!r}", compensation, *undo.takes)
            step = replace(step, compensation=undo)
        added.append(step)
        return self

    def __await__(self) -> Any:
        """`await saga.add_step(…)`, as sagaz spells it, gives the saga."""
        return self
        yield

    async def build(self) -> Any:
        """To be overridden: adds the steps. Awaited by `execute` and `run`, and whenever the steps
        are asked for, while there are none; it must not wait for anything but `add_step`."""

    async def run(
        self, initial_context: Contents | None = None, saga_id: Any = None
    ) -> dict[str, Any]:
        """Run on the default log (SAGAZ_ES_LOG, else `sagaz-es.db`), as sagaz spells it.

        Gives the final context with "saga_id" in it, and raises the step's error: `Engine.run`
        gives a result instead. The same id twice is the same saga.
        """
        from sagaz_es.sagas import standalone

        return await standalone.run(self, initial_context, saga_id)

    async def execute(self) -> SagaResult:
        """Run on the default log with what `saga.context` holds; a failure is a result.

        The id is the object's (`saga.saga_id`): executed twice, it is one saga.
        """
        from sagaz_es.sagas import standalone

        return await standalone.execute(self)

    def definition(self) -> Definition:
        """Its steps, checked and bound to this object. Raises DefinitionError."""
        steps = type(self)._collected
        bound = tuple(_bind(step, self) for step in steps) if steps else _added(self)
        settings = settings_of(self.__dict__.get("_config"))
        if settings is not None:
            bound = tuple(_with_defaults(step, settings) for step in bound)
        strategy, listeners = self.failure_strategy, self.listeners or ()
        if settings is not None and not _says(self, "failure_strategy"):
            strategy = settings.failure_strategy
        if settings is not None and (self.listeners is None or not _says(self, "listeners")):
            listeners = settings.listeners
        backoff = self.__dict__.get("_backoff")
        if backoff is not None:
            bound = tuple(_backed_off(step, backoff) for step in bound)
        most, interval_us = limits_of(type(self))
        rules = Rules(
            ParallelFailureStrategy(strategy),
            int(self.grace_seconds * US),
            compensation_failure=CompensationFailureStrategy(self.compensation_failure_strategy),
        )
        return Definition(
            self.name,
            bound,
            rules=rules,
            snapshot_policy=self._snapshot_policy(),
            listeners=listeners,
            deadline_us=int((self.deadline_seconds or 0) * US),
            compatible_with=self.compatible_with,
            migrate=self.migrate,
            max_concurrent=most,
            start_interval_us=interval_us,
            context_type=self.context_type,
        )

    def _snapshot_policy(self) -> str:
        config = self.replay_config
        if config is None:
            config = getattr(settings_of(self.__dict__.get("_config")), "replay_config", None)
        return config.policy_text() if config is not None else ""


def _added(saga: Saga) -> tuple[StepDefinition, ...]:
    """Steps added by hand, by `build` if nobody has asked it yet."""
    if not saga.__dict__.get("_added") and type(saga).build is not Saga.build:
        building = saga.build()
        try:
            building.send(None)
        except StopIteration:
            pass
        else:
            building.close()
            raise ConfigurationError(
                f"saga {saga.name!r}: its build() waits for something; it may only add steps, as "
                "any process that carries the saga on has to build it"
            )
    return tuple(saga.__dict__.get("_added", ()))


def _says(saga: Saga, attribute: str) -> bool:
    """Whether the object or its class says something of its own here."""
    own = (kind for kind in type(saga).__mro__ if kind is not Saga)
    return attribute in saga.__dict__ or any(attribute in vars(kind) for kind in own)


def _with_defaults(step: StepDefinition, settings: SagaConfig) -> StepDefinition:
    if "max_retries" in step.left:
        retry = structs.replace(step.retry, max_retries=settings.default_max_retries)
        step = replace(step, retry=retry)
    if "timeout_seconds" in step.left:
        step = replace(step, timeout_seconds=float(settings.default_timeout))
    return step


def _backed_off(step: StepDefinition, seconds: float) -> StepDefinition:
    if "retry_delay_seconds" not in step.left:
        return step
    base = check.seconds(f"step {step.name!r}", "retry_backoff_base", seconds, zero=True)
    return replace(step, retry=structs.replace(step.retry, base_us=int(base * US)))


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _bind(step: StepDefinition, saga: Saga) -> StepDefinition:
    undo = step.compensation
    if undo is not None:
        undo = replace(undo, function=_method(undo.function, saga))
    recovery = step.recovery
    if recovery is not None:
        recovery = replace(recovery, function=_method(recovery.function, saga))
    resolve = step.resolve
    if isinstance(resolve, str):
        resolve = getattr(saga, resolve)
    elif resolve is not None and not check.fits(resolve, "ctx"):
        resolve = _method(resolve, saga)
    bound = _method(step.function, saga)
    return replace(step, function=bound, compensation=undo, recovery=recovery, resolve=resolve)


def _method(function: Any, saga: Saga) -> Callable[..., Any]:
    """Bound to the object, also where a wrapper is an object that can be called."""
    if hasattr(function, "__get__"):
        bound: Callable[..., Any] = function.__get__(saga)
        return bound
    return partial(function, saga)


Factory = Callable[[str], Saga | Awaitable[Saga]]
"""Makes a saga by its name; sync or async."""
