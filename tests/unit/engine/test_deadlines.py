"""A saga's deadline is one error, wherever it strikes; what became of the step is its cause."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sagaz_es import Saga, SagaListener, SagaStatus, action
from sagaz_es.errors import SagaStepError, SagaTimeoutError
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import Declined, Ledger, SetClock, engine_on, until

PASSED = "the saga's deadline has passed"
CANCELLED = f"Cancelled: the step was cancelled: {PASSED}"


class Hears(SagaListener):
    def __init__(self) -> None:
        self.failed: list[BaseException] = []

    async def on_saga_failed(self, name: str, saga_id: str, ctx: Any, error: Any) -> None:
        self.failed.append(error)


def late(hears: Hears | None = None, **options: Any) -> tuple[Saga, Ledger]:
    ledger = Ledger()
    saga = Saga("late").add_step("late", ledger.do, **options)
    saga.deadline_seconds = 60  # type: ignore[misc] # of this object
    saga.listeners = [hears] if hears else ()  # type: ignore[misc]
    return saga, ledger


@pytest.mark.parametrize(
    ("options", "failures", "where", "cause"),
    [
        ({"wait_for": "yes"}, 0, "", ""),
        ({"delay_seconds": 3600}, 0, "", ""),
        ({"max_retries": 99, "retry_delay_seconds": 50}, 9, "", "Declined: no"),
        ({}, 0, ", in step 'late'", CANCELLED),
        ({"pivot": True, "max_retries": 0}, 1, ", in step 'late'", "no"),
    ],
    ids=["a signal", "a time", "a retry", "a step", "a pivot"],
)
async def test_it_is_the_error_for_all_who_ask(
    options: dict[str, Any], failures: int, where: str, cause: str
) -> None:
    hears = Hears()
    saga, ledger = late(hears, timeout_seconds=3600, **options)
    ledger.fails("late", *[Declined("no")] * failures)
    log, clock = MemoryEventLog(1), SetClock(jumps=not where)
    gate = ledger.gate("late") if where else None
    async with engine_on(log, saga, clock=clock) as engine:
        handle = await engine.start(saga, saga_id="s")
        if gate is not None:
            await gate.entered()
            clock.advance(60_000_000)
            if "pivot" in options:  # it is waited for
                gate.open()
        result = await handle.result(5)
        shown = await (await engine.history("s")).now()
    async with engine_on(log, saga) as another:
        again = await (await another.handle("s")).result()
    assert result.status is SagaStatus.ROLLED_BACK
    assert len(hears.failed) == 1
    for error in (result.error, again.error, *hears.failed):
        assert type(error) is SagaTimeoutError
        assert str(error) == f"{PASSED}{where}"
        assert str(error.__cause__ or "").endswith(cause)
    assert shown.error == f"SagaTimeoutError: {PASSED}{where}"


async def test_a_step_that_failed_for_good_before_it_is_the_error() -> None:
    ledger, clock = Ledger(), SetClock()
    ledger.fails("one", Declined("no"))
    gate = ledger.gate("two")
    saga = Saga("late", failure_strategy="wait_all")
    saga.add_step("one", ledger.do, depends_on=[], max_retries=0)
    saga.add_step("two", ledger.do, depends_on=[], timeout_seconds=3600)
    saga.deadline_seconds = 60  # type: ignore[misc] # of this object
    async with engine_on(None, saga, clock=clock) as engine:
        handle = await engine.start(saga, saga_id="s")
        await gate.entered()
        await until(lambda: engine.host.runners["s"].state.failed_step)
        clock.advance(60_000_000)
        result = await handle.result(5)
        shown = await (await engine.history("s")).now()
    assert type(result.error) is Declined
    assert shown.error == "Declined: no"


async def test_it_is_what_a_parent_is_told_of_its_child() -> None:
    saga, ledger = late(timeout_seconds=3600)
    clock, gate = SetClock(), ledger.gate("late")
    parent = Saga("parent").add_step("child", dict, child=saga)
    async with engine_on(None, parent, clock=clock) as engine:
        handle = await engine.start(parent, saga_id="p")
        await gate.entered()
        clock.advance(60_000_000)
        result = await handle.result(5)
    assert str(result.error).endswith(f"SagaTimeoutError: {PASSED}, in step 'late'")


async def test_run_raises_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGAZ_ES_LOG", f"sqlite:///{tmp_path}/sagas.db")

    class Slow(Saga):
        deadline_seconds: ClassVar[float | None] = 0.05

        @action("wait")
        async def wait(self, ctx: Any) -> None:
            await asyncio.Event().wait()

    with pytest.raises(SagaTimeoutError, match=f"^{PASSED}, in step 'wait'$") as raised:
        await Slow().run({})
    assert isinstance(raised.value.__cause__, SagaStepError)
