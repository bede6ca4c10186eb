"""Steps that do not accept that they are cancelled: they hold nothing up but themselves."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from sagaz_es import Engine, Saga, SagaStatus, action
from sagaz_es.core import events as e
from sagaz_es.engine import serving
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.steps import deadline
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import story

CONFIG = EngineConfig(drain_seconds=0.05, request_seconds=30)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "CUT_OFF_SECONDS", 0.05)


class World:
    """What steps are given, and the ledger of what they did."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.inside = asyncio.Event()
        self.let_end = asyncio.Event()

    async def resist(self) -> None:
        """Until it is let end, whoever cancels it."""
        self.inside.set()
        asyncio.get_running_loop().call_later(60, self.let_end.set)  # where a test has failed
        while not self.let_end.is_set():
            try:
                await self.let_end.wait()
            except asyncio.CancelledError:
                self.calls.append("cancelled")


class Stubborn(Saga):
    saga_name = "stubborn"

    @action("hold")
    async def hold(self, ctx: Any) -> None:
        world = ctx.resources["world"]
        world.calls.append("hold")
        if ctx.attempt == 1:
            await world.resist()


class Beside(Saga):
    saga_name = "beside"

    @action("quick")
    async def quick(self, ctx: Any) -> None:
        ctx.resources["world"].calls.append("quick")

    @action("slow", depends_on=[])
    async def slow(self, ctx: Any) -> None:
        if ctx.attempt == 1:
            await ctx.resources["world"].resist()


class CleansUp(Saga):
    saga_name = "cleans-up"

    @action("hold")
    async def hold(self, ctx: Any) -> None:
        ctx.resources["world"].inside.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.Event().wait()


class Patient(Saga):
    saga_name = "patient"

    @action("act", wait_for="go")
    async def act(self, ctx: Any) -> None:
        ctx.resources["world"].calls.append("act")


ALL = (Stubborn, Beside, CleansUp, Patient)


def engine_on(log: MemoryEventLog, world: World, sagas: Sequence[type[Saga]] = ALL) -> Engine:
    return Engine(log, sagas=sagas, resources={"world": world}, config=CONFIG)


@pytest.mark.parametrize(("kind", "step"), [(Stubborn, "hold"), (Beside, "slow")])
async def test_an_engine_that_stops_lets_go_of_a_step_that_does_not_accept_it(
    kind: type[Saga], step: str, caplog: pytest.LogCaptureFixture
) -> None:
    log, world = MemoryEventLog(1), World()
    async with asyncio.timeout(30):
        async with engine_on(log, world) as engine:
            handle = await engine.start(kind, saga_id="s")
            await engine.start(Patient, saga_id="p")
            await world.inside.wait()
        told = await story(log, "s")
        assert "SagaReleased" not in " ".join(told)
        about = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert [f"step {step!r}" in r.getMessage() for r in about] == [True]
        assert about[0].__dict__["saga_id"] == "s"
        assert engine.host.abandoned == ["s"]
        await ended_here(engine, world)
        assert await story(log, "s") == told
        async with engine_on(log, world) as after:
            assert (await (await after.handle(handle.saga_id)).result(30)).success
            await after.signal("p", "go")
            assert (await (await after.handle("p")).result(30)).success


async def one_in_each_partition(log: MemoryEventLog, engine: Engine, world: World) -> list[str]:
    """A stubborn saga in each partition, all inside their step."""
    ids: dict[int, str] = {}
    for number in range(100):
        ids.setdefault(log.partition_of(f"s{number}"), f"s{number}")
    for saga_id in ids.values():
        await engine.start(Stubborn, saga_id=saga_id)
    while world.calls.count("hold") < log.partitions:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return [ids[partition] for partition in range(log.partitions)]


async def ended_here(engine: Engine, world: World) -> None:
    """What the engine has let go ends now."""
    world.let_end.set()
    while engine.host.abandoned:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_a_partition_changes_hands_although_a_step_does_not_accept_it() -> None:
    log, world = MemoryEventLog(2), World()
    async with asyncio.timeout(30), engine_on(log, world) as old:
        ids = await one_in_each_partition(log, old, world)
        patient = [f"p{n}" for n in range(8)]
        for saga_id in patient:
            await old.start(Patient, saga_id=saga_id)
        async with engine_on(log, world) as new:
            (moved,) = new.host.partitions
            assert old.host.abandoned == [ids[moved]]
            for saga_id in patient:
                await new.signal(saga_id, "go")
                assert (await (await new.handle(saga_id)).result(30)).success
            assert (await (await old.handle(ids[moved])).result(30)).success
            told = await story(log, ids[moved])
            await ended_here(old, world)
            assert await story(log, ids[moved]) == told


async def test_the_engine_that_let_a_saga_go_can_take_it_again_while_its_step_runs_on() -> None:
    log, world = MemoryEventLog(2), World()
    async with asyncio.timeout(30), engine_on(log, world) as old:
        ids = await one_in_each_partition(log, old, world)
        async with engine_on(log, world, [Patient]) as new:
            (moved,) = new.host.partitions
        assert (await (await old.handle(ids[moved])).result(30)).success
        assert old.host.abandoned == [ids[moved]]
        told = await story(log, ids[moved])
        await ended_here(old, world)
        assert await story(log, ids[moved]) == told
        assert (await (await old.handle(ids[1 - moved])).result(30)).success
    assert world.calls.count("hold") == 3


async def test_a_clean_up_that_lasts_is_cancelled_once_more_and_the_saga_released() -> None:
    log, world = MemoryEventLog(1), World()
    async with asyncio.timeout(30):
        async with engine_on(log, world) as engine:
            await engine.start(CleansUp, saga_id="s")
            await world.inside.wait()
        assert engine.host.abandoned == []
    assert (await story(log, "s"))[-1] == "SagaReleased"


class Limited(Saga):
    saga_name = "limited"

    @action("hold", timeout_seconds=0.01)
    async def hold(self, ctx: Any) -> None:
        await ctx.resources["world"].resist()


async def test_of_a_step_that_does_not_end_at_its_time_limit_the_log_tells_and_the_saga_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deadline, "RESISTS_SECONDS", 0.01)
    log, world = MemoryEventLog(1), World()
    async with asyncio.timeout(30), engine_on(log, world, [Limited]) as engine:
        handle = await engine.start(Limited, saga_id="s")
        while not caplog.records:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        (record,) = caplog.records
        assert record.getMessage().startswith("saga s: step 'hold' does not end although its time")
        assert [each for each in await story(log, "s") if "hold" in each] == ["StepStarted hold"]
        world.let_end.set()
        assert (await handle.result(30)).success


async def test_of_a_step_that_does_not_end_when_its_saga_is_cancelled_the_log_tells(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deadline, "RESISTS_SECONDS", 0.01)
    log, world = MemoryEventLog(1), World()
    async with asyncio.timeout(30), engine_on(log, world) as engine:
        await engine.start(Stubborn, saga_id="s")
        await world.inside.wait()
        cancelling = asyncio.create_task(engine.cancel("s"))
        while not caplog.records:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        (record,) = caplog.records
        told = "saga s: step 'hold' does not end although the saga goes back"
        assert record.getMessage().startswith(told)
        world.let_end.set()
        await cancelling


async def test_a_saga_that_others_took_over_is_let_go_though_its_step_does_not_end() -> None:
    log, world = MemoryEventLog(1), World()
    async with asyncio.timeout(30), engine_on(log, world) as engine:
        handle = await engine.start(Stubborn, saga_id="s")
        await world.inside.wait()
        sequence = len(await story(log, "s"))
        others = bytes(16)
        claimed = e.Event("s", "stubborn", others, 1, sequence + 1, 0, e.SagaClaimed("test"))
        ended = e.Event("s", "stubborn", others, 1, sequence + 2, 0, e.SagaRolledBack())
        await log.append(0, [claimed, ended])
        assert (await handle.result(30)).status is SagaStatus.ROLLED_BACK
        assert engine.host.abandoned == ["s"]
        told = await story(log, "s")
        await ended_here(engine, world)
        assert await story(log, "s") == told


async def test_who_cancels_a_saga_elsewhere_hears_which_step_does_not_end() -> None:
    log, world = MemoryEventLog(1), World()
    short = EngineConfig(request_seconds=0.1)
    async with asyncio.timeout(30), engine_on(log, world) as engine:
        handle = await engine.start(Stubborn, saga_id="s")
        await world.inside.wait()
        asking = Engine(log, config=short)
        await asking.open(join=False)
        with pytest.raises(TimeoutError, match=r"step 'hold' has not ended"):
            await asking.cancel("s")
        await asking.close()
        world.let_end.set()
        assert (await handle.result(30)).status is SagaStatus.CANCELLED


async def test_an_engine_that_stops_says_what_runs_on_in_a_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inside, let_end = threading.Event(), threading.Event()

    def hold(ctx: Any) -> None:
        inside.set()
        let_end.wait(60)

    saga = Saga("threaded").add_step("hold", hold)
    quick = Saga("quick").add_step("act", lambda ctx: None)
    async with Engine(MemoryEventLog(1), sagas=[saga, quick], config=CONFIG) as engine:
        assert (await engine.run(quick, saga_id="q")).success
        await engine.start(saga, saga_id="s")
        await asyncio.to_thread(inside.wait)
    let_end.set()
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("saga s: ")
    assert "hold still runs in a thread" in told


PROGRAM = """
import asyncio

from sagaz_es import Saga, action, connect
from sagaz_es.engine import serving
from sagaz_es.engine.config import EngineConfig

serving.CUT_OFF_SECONDS = 0.05
begun = asyncio.Event()


async def resist(ctx):
    begun.set()
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            print("swallowed")


async def main():
    saga = Saga("s").add_step("hold", resist, depends_on=[])
    for name in BESIDE:
        saga.add_step(name, resist, depends_on=[])
    config = EngineConfig(drain_seconds=0.01)
    async with connect("memory://", sagas=[saga], config=config) as engine:
        await engine.start(saga)
        await begun.wait()
    await asyncio.sleep(0)


asyncio.run(main())
print("ended")
"""


@pytest.mark.parametrize("beside", [[], ["a", "b"]], ids=["alone", "beside others"])
def test_a_program_ends_although_a_step_does_not(beside: list[str]) -> None:
    program = PROGRAM.replace("BESIDE", repr(beside))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1] == "ended"
    assert (done.returncode, "step 'hold'" in done.stderr) == (0, True)
