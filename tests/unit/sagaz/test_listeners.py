"""Listeners and hooks: told once of what is accepted, in order; never able to change an outcome."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any, ClassVar

import pytest

from sagaz_es import (
    Engine,
    EngineConfig,
    Saga,
    SagaListener,
    SagaResult,
    SagaStatus,
    action,
    compensate,
)
from sagaz_es.errors import ConfigurationError, MissingDependencyError
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.sagas.listeners import (
    LoggingSagaListener,
    MetricsSagaListener,
    SagaCounts,
    TracingSagaListener,
    default_listeners,
    log_step_lifecycle,
    on_step_compensate,
    on_step_enter,
    on_step_exit,
    on_step_failure,
    on_step_success,
)

told: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    told.clear()


class Telling(SagaListener):
    def __init__(self, broken: BaseException | None = None) -> None:
        self.broken = broken

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        async def tell(*args: Any) -> None:
            where = args[1] if name.startswith(("on_step", "on_comp")) else args[0]
            told.append(f"{name} {where}")
            if self.broken is not None:
                raise self.broken

        return tell


@on_step_enter
def entered(ctx: Any, step: str) -> None:
    told.append(f"enter {step}")


@on_step_success
async def succeeded(ctx: Any, step: str, result: Any) -> None:
    told.append(f"success {step} {result}")


@on_step_failure
def failed(ctx: Any, step: str, error: Exception) -> None:
    told.append(f"failure {step} {error}")


@on_step_exit
async def left(ctx: Any, step: str) -> None:
    told.append(f"exit {step}")


@on_step_compensate
def undone(ctx: Any, step: str) -> None:
    told.append(f"compensate {step}")


HOOKS: dict[str, Any] = {
    "on_enter": entered,
    "on_success": succeeded,
    "on_failure": failed,
    "on_exit": left,
}


class Hooked(Saga):
    saga_name = "hooked"

    @action("reserve", **HOOKS)
    async def reserve(self, ctx: Any) -> dict[str, Any]:
        told.append("reserve")
        return {"r": 1}

    @compensate("reserve", on_compensate=undone)
    async def release(self, ctx: Any) -> None:
        told.append("release")

    @action("charge", max_retries=1, retry_delay_seconds=0, **HOOKS)
    async def charge(self, ctx: Any) -> None:
        told.append("charge")
        if ctx.get("poor"):
            raise ValueError("poor")


class Listened(Saga):
    saga_name = "listened"
    listeners: ClassVar[list[Any]] = [Telling()]

    reserve = Hooked.reserve
    release = Hooked.release
    charge = Hooked.charge


async def run(saga: type[Saga] | Saga, context: dict[str, Any]) -> SagaResult:
    async with Engine(MemoryEventLog(), sagas=[saga]) as engine:
        return await engine.run(saga, context)


async def test_what_on_enter_sets_is_the_steps_own_change() -> None:
    log, seen = MemoryEventLog(), []

    def enter(ctx: Any, step: str, *more: Any) -> None:
        ctx[f"entered {step}"] = ctx.attempt

    async def charge(ctx: Any) -> None:
        seen.append((ctx.attempt, dict(ctx)))
        if ctx.attempt == 1:
            raise ValueError("poor")

    saga = Saga("entered").add_step(
        "charge", charge, on_enter=enter, on_success=enter, on_exit=enter, retry_delay_seconds=0
    )
    saga.add_step("ship", lambda ctx: None, depends_on=["charge"])
    async with Engine(log, sagas=[saga]) as engine:
        result = await engine.run(saga, saga_id="s")
        changes = await (await engine.history("s")).changes()
    assert seen == [(1, {"entered charge": 1}), (2, {"entered charge": 2})]
    assert result.context == {"entered charge": 2}, "and nothing of other attempts, other hooks"
    set_by = [(change.step, change.changes["set"]) for change in changes if change.changes["set"]]
    assert set_by == [("charge", {"entered charge": 2})]


async def test_hooks_come_around_the_action_and_compensate_during_the_rollback() -> None:
    await run(Hooked, {"poor": True})
    assert told == [
        "enter reserve",
        "reserve",
        "success reserve {'r': 1}",
        "exit reserve",
        "enter charge",
        "charge",
        "enter charge",
        "charge",
        "failure charge poor",
        "exit charge",
        "compensate reserve",
        "release",
    ]


EVENTS = [
    "on_saga_start listened",
    "on_step_enter reserve",
    "on_step_success reserve",
    "on_step_enter charge",
    "on_step_enter charge",
    "on_step_failure charge",
    "on_compensation_start reserve",
    "on_compensation_complete reserve",
    "on_saga_failed listened",
]


async def test_a_listener_is_told_of_saga_step_and_compensation_in_order() -> None:
    await run(Listened, {"poor": True})
    assert [each for each in told if each.startswith("on_")] == EVENTS


async def test_a_saga_that_completes_is_told_once() -> None:
    await run(Listened, {})
    assert [each for each in told if each.startswith("on_saga")] == [
        "on_saga_start listened",
        "on_saga_complete listened",
    ]


BROKEN = [RuntimeError("broke"), SystemExit(3), asyncio.CancelledError()]
"""The last is what it gets that waits for something of its own which was cancelled."""


@pytest.mark.parametrize("broken", BROKEN, ids=repr)
async def test_one_that_raises_changes_nothing_and_the_next_still_hears(
    broken: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Listened):
        saga_name = "listened"
        listeners: ClassVar[list[Any]] = [Telling(broken), Telling()]

    result = await run(Broken, {})
    assert result.status is SagaStatus.COMPLETED
    assert told.count("on_saga_complete listened") == 2
    assert "the saga goes on" in caplog.text


@pytest.mark.parametrize("broken", BROKEN, ids=repr)
async def test_a_hook_that_raises_changes_nothing(broken: BaseException) -> None:
    async def hook(ctx: Any, step: str, *more: Any) -> None:
        told.append(f"hook of {step}")
        raise broken

    class Broken(Saga):
        @action("reserve", on_enter=hook, on_success=hook, on_exit=hook)
        async def reserve(self, ctx: Any) -> None:
            told.append("reserve")

        @compensate("reserve", on_compensate=hook)
        async def release(self, ctx: Any) -> None:
            told.append("release")

        @action("charge", max_retries=0, on_failure=hook)
        async def charge(self, ctx: Any) -> None:
            raise ValueError("poor")

    result = await run(Broken, {})
    assert (result.status, str(result.error)) == (SagaStatus.ROLLED_BACK, "poor")
    hook_of = "hook of reserve"
    assert told == [
        *(hook_of, "reserve", hook_of, hook_of),
        *("hook of charge", hook_of, "release"),
    ]


async def test_an_engine_that_stops_does_not_wait_for_a_listener_that_hangs() -> None:
    entered = asyncio.Event()

    class Hanging(SagaListener):
        async def on_step_success(self, *args: Any) -> None:
            entered.set()
            await asyncio.Event().wait()

    class Waiting(Listened):
        saga_name = "listened"
        listeners: ClassVar[list[Any]] = [Hanging()]

    async with Engine(
        MemoryEventLog(), sagas=[Waiting], config=EngineConfig(drain_seconds=0)
    ) as engine:
        await engine.start(Waiting, {})
        await entered.wait()
    # Its saga is left where it was, for the next engine.
    assert told == ["enter reserve", "reserve", "success reserve {'r': 1}"]


async def test_a_replay_tells_nothing_of_steps_that_it_reuses() -> None:
    async with Engine(MemoryEventLog(), sagas=[Listened]) as engine:
        first = await engine.run(Listened, {})
        told.clear()
        await engine.replay(await engine.plan_replay(first.saga_id, "charge", allow=["charge"]))
    assert "on_step_success charge" in told
    assert "on_step_success reserve" not in told


# --- ready-made -----------------------------------------------------------------------------------


async def test_logging_says_every_event_and_failures_as_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Logged(Hooked):
        saga_name = "logged"
        listeners: ClassVar[list[Any]] = [LoggingSagaListener(level="debug")]

    with caplog.at_level(logging.DEBUG, "sagaz_es.sagas"):
        await run(Logged, {"poor": True})
    records = [record for record in caplog.records if record.name == "sagaz_es.sagas"]
    assert [(record.levelname, record.getMessage().split(" (")[0]) for record in records] == [
        ("DEBUG", "saga logged"),
        ("DEBUG", "step logged.reserve starts"),
        ("DEBUG", "step logged.reserve is done"),
        ("DEBUG", "step logged.charge starts"),
        ("DEBUG", "step logged.charge starts"),
        ("ERROR", "step logged.charge failed: poor"),
        ("DEBUG", "step logged.reserve is being undone"),
        ("DEBUG", "step logged.reserve is undone"),
        ("ERROR", "saga logged"),
    ]


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="level"):
        LoggingSagaListener(level="loud")


async def test_metrics_count_in_the_process_unless_given_another() -> None:
    listener = MetricsSagaListener()

    class Counted(Hooked):
        saga_name = "counted"
        listeners: ClassVar[list[Any]] = [listener]

    await run(Counted, {})
    await run(Counted, {"poor": True})
    counts = listener.metrics
    assert isinstance(counts, SagaCounts)
    assert (counts.started["counted"], counts.active["counted"]) == (2, 0)
    assert counts.ended == {("counted", "completed"): 1, ("counted", "failed"): 1}
    assert counts.step_seconds["counted", "reserve"] > 0


async def test_a_tracer_gets_a_span_for_each_try_and_each_compensation() -> None:
    spans: list[str] = []

    class Span:
        def __init__(self, name: str) -> None:
            self.name = name

        def record_exception(self, error: Exception) -> None:
            spans.append(f"{self.name}: {error}")

        def end(self) -> None:
            spans.append(f"{self.name} ends")

    class Tracer:
        def start_span(self, name: str, attributes: dict[str, str]) -> Span:
            assert attributes["saga.name"] == "traced"
            assert attributes["saga.id"]
            return Span(name)

    class Traced(Hooked):
        saga_name = "traced"
        listeners: ClassVar[list[Any]] = [TracingSagaListener(Tracer())]

    await run(Traced, {"poor": True})
    assert spans == [
        "traced.reserve ends",
        "traced.charge ends",
        "traced.charge: poor",
        "traced.charge ends",
        "traced.reserve compensation ends",
    ]


@pytest.mark.parametrize(
    ("make", "package"),
    [
        (TracingSagaListener, "opentelemetry"),
        (lambda: MetricsSagaListener("prometheus"), "prometheus_client"),
    ],
)
def test_what_is_not_installed_is_said(
    make: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        make()


def test_default_listeners() -> None:
    assert [type(each) for each in default_listeners()] == [
        LoggingSagaListener,
        MetricsSagaListener,
    ]
    assert default_listeners(metrics=False, logging_enabled=False) == []
    with pytest.raises(ConfigurationError, match="subscribe"):
        default_listeners(outbox_storage=object())


def test_hooks_that_log(caplog: pytest.LogCaptureFixture) -> None:
    hooks = log_step_lifecycle()
    with caplog.at_level(logging.INFO, "sagaz_es.sagas"):
        hooks["on_enter"]({}, "a")
        hooks["on_success"]({}, "a", 1)
        hooks["on_failure"]({}, "a", ValueError("no"))
    assert caplog.messages == ["step a starts", "step a is done", "step a failed: no"]


async def test_a_listener_can_await_the_methods_it_overrides(caplog: Any) -> None:
    told: list[str] = []

    class Own(SagaListener):
        async def on_saga_start(self, saga_name: str, saga_id: str, ctx: Any) -> None:
            await super().on_saga_start(saga_name, saga_id, ctx)
            told.append(saga_name)

    class Louder(LoggingSagaListener):
        async def on_saga_complete(self, saga_name: str, saga_id: str, ctx: Any) -> None:
            await super().on_saga_complete(saga_name, saga_id, ctx)
            told.append("complete")

    class Heard(Saga):
        saga_name = "heard"
        listeners: ClassVar[Any] = [Own(), Louder()]

        @action("a")
        async def a(self, ctx: Any) -> None: ...

    await Heard().run()
    assert told == ["heard", "complete"]


async def test_a_hook_of_success_sees_what_the_step_has_set() -> None:
    seen: list[Any] = []

    def look(ctx: Any, step: str, result: Any) -> None:
        seen.append((ctx.get("order_id"), result))

    saga = Saga("hooked").add_step("a", lambda ctx: {"order_id": 7}, on_success=look)
    await saga.run()
    assert seen == [(7, {"order_id": 7})]
