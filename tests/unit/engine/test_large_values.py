"""Values over the inline limit leave the event and come back equal."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Engine, EngineConfig, Saga, SagaConfig, SagaResult, action, compensate, connect
from sagaz_es.blobs.memory import MemoryBlobStore
from sagaz_es.core import events as e
from sagaz_es.errors import (
    BlobMissing,
    ConfigurationError,
    EngineClosed,
    LargePayloadWarning,
    MemoryFootprintError,
    Unreachable,
)
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.sagas.config import InMemorySagaStorage
from tests.helpers import Declined, Ledger, LedgerSaga, SetClock

LARGE = {"rows": ["x" * 100] * 5000}  # half a megabyte


class Report(Saga):
    saga_name = "report"

    @action("load")
    async def load(self, ctx: Any) -> dict[str, Any]:
        return {"table": LARGE, "seen": ctx["given"] == LARGE}

    @action("sum")
    async def sum(self, ctx: Any) -> dict[str, Any]:
        ctx["table"]["rows"].append("one more")
        return {"count": len(ctx["table"]["rows"])}


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    sqlite = f"sqlite:///{tmp_path}/log.db"
    if request.param == "postgresql":
        return {"log": sqlite, "store": request.getfixturevalue("postgresql_url")}
    return {"log": sqlite if request.param == "sqlite" else "memory://"}


async def test_a_large_value_is_kept_outside_the_event_and_read_back_equal(
    place: dict[str, str],
) -> None:
    async with connect(place["log"], store=place.get("store"), sagas=[Report]) as engine:
        result = await engine.run(Report, {"given": LARGE}, saga_id="r-1")
        assert result.success, result.error
        assert result.context["seen"] is True
        assert result.context["given"] == LARGE
        assert result.context["table"] == {"rows": [*LARGE["rows"], "one more"]}
        assert result.context["count"] == 5001

        facts = [placed.event.fact for placed in await engine.history("r-1").events()]
        assert max(len(str(fact)) for fact in facts) < 10_000
        started = facts[0]
        assert isinstance(started, e.SagaStarted)
        assert '"$blob":"sha256:' in started.context
        past = await engine.history("r-1").state_at(1)
        assert past.context == {"given": LARGE}


async def test_without_a_store_a_value_that_no_record_holds_is_refused_with_its_size() -> None:
    from sagaz_es import Engine
    from sagaz_es.log.memory import MemoryEventLog

    async with Engine(MemoryEventLog(), sagas=[Report]) as engine:
        with pytest.raises(MemoryFootprintError, match="bytes"):
            await engine.run(Report, {"given": ["x" * 1000] * 2000})


async def test_of_a_mapping_that_does_not_fit_twice_it_is_said_that_it_counts_twice() -> None:
    from sagaz_es import Engine
    from sagaz_es.log.memory import MemoryEventLog

    class Wide(Saga):
        saga_name = "wide"

        @action("make", max_retries=0)
        async def make(self, ctx: Any) -> Any:
            return {f"key-{number}": "x" * 1000 for number in range(500)}

    async with Engine(MemoryEventLog(), sagas=[Wide]) as engine:
        result = await engine.run(Wide)
    assert isinstance(result.error, MemoryFootprintError)
    assert result.error.size_bytes > 1_000_000
    assert "what step 'make' set takes" in str(result.error)
    assert "is kept twice" in str(result.error)


# --- the limits -----------------------------------------------------------------------------------

SMALL = EngineConfig(value_warn_bytes=100, value_inline_bytes=400, value_max_bytes=2_000)


class Sized(Saga):
    """A step that leaves as many characters as it is told, and a compensation that returns them."""

    saga_name = "sized"

    @action("make", retry_delay_seconds=0)
    async def make(self, ctx: Any) -> Any:
        if "set" in ctx:
            ctx["made"] = "x" * ctx["set"]
        return "y" * ctx["result"] if "result" in ctx else None

    @compensate("make")
    async def unmake(self, ctx: Any) -> Any:
        return "z" * ctx["undo"]

    @action("then", max_retries=0)
    async def then(self, ctx: Any) -> Any:
        if "undo" in ctx:
            raise ValueError("no")
        if "result" in ctx:
            ctx["seen"] = ctx.result_of("make")


async def sized(engine: Engine, **context: Any) -> SagaResult:
    return await engine.run(Sized, context)


async def test_a_value_over_the_warning_size_is_told_of_once_with_saga_step_key_and_size() -> None:
    async with connect("memory://", sagas=[Sized], config=SMALL) as engine:
        with pytest.warns(LargePayloadWarning) as told:
            assert (await sized(engine, set=150)).success
            assert (await sized(engine, set=160)).success
            assert (await sized(engine, result=150)).success
            assert (await sized(engine, given="g" * 150)).success
            assert (await sized(engine, set=90, result=90)).success
    texts = [str(one.message) for one in told]
    assert [text.partition(";")[0] for text in texts] == [
        "saga 'sized', step 'make', key 'made': 152 bytes",
        "saga 'sized', step 'make', key 'result': 152 bytes",
        "saga 'sized', step 'then', key 'seen': 152 bytes",
        "saga 'sized', key 'given': 152 bytes",
    ]


async def test_a_large_value_that_is_returned_and_merged_is_told_of_once() -> None:
    class Returns(Saga):
        saga_name = "returns"

        @action("one")
        async def one(self, ctx: Any) -> Any:
            return {"large": "x" * 150, "small": 1}

        @action("two", depends_on=["one"])
        async def two(self, ctx: Any) -> Any:
            ctx["own"] = "y" * 150
            return "z" * 150

        @action("many", depends_on=["two"])
        async def many(self, ctx: Any) -> Any:
            return {"a": "x" * 70, "b": "x" * 70}

    async with connect("memory://", sagas=[Returns], config=SMALL) as engine:
        with pytest.warns(LargePayloadWarning) as told:
            assert (await engine.run(Returns)).success
    assert [str(one.message).partition(": ")[0] for one in told] == [
        "saga 'returns', step 'one', key 'large'",
        "saga 'returns', step 'two', key 'own'",
        "saga 'returns', step 'two', key 'result'",
        "saga 'returns', step 'many', key 'result'",
    ]


async def test_a_warning_that_is_made_an_error_does_not_fail_the_step() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with connect("memory://", sagas=[Sized], config=SMALL) as engine:
            assert (await sized(engine, set=150)).success


@pytest.mark.filterwarnings("ignore::sagaz_es.errors.LargePayloadWarning")
@pytest.mark.parametrize("what", ["set", "result", "undo"])
async def test_a_value_over_the_inline_size_leaves_its_event_and_is_read_back(what: str) -> None:
    async with connect("memory://", sagas=[Sized], config=SMALL) as engine:
        result = await engine.run(Sized, {what: 1_000}, saga_id="s")
        facts = [str(placed.event.fact) for placed in await engine.history("s").events()]
    found = {
        "set": result.context.get("made"),
        "result": result.context.get("seen"),
        "undo": result.compensation_results.get("make"),
    }
    assert found[what] == {"set": "x", "result": "y", "undo": "z"}[what] * 1_000
    assert not any(letter * 500 in fact for letter in "xyz" for fact in facts)
    assert sum('"$blob":"sha256:' in fact for fact in facts) == {"result": 2}.get(what, 1)


@pytest.mark.filterwarnings("ignore::sagaz_es.errors.LargePayloadWarning")
async def test_a_value_over_the_bound_is_refused_with_key_size_and_limit() -> None:
    async with connect("memory://", sagas=[Sized], config=SMALL) as engine:
        with pytest.raises(MemoryFootprintError) as caught:
            await sized(engine, ok=1, big="b" * 3_000)
        assert (caught.value.key, caught.value.size_bytes, caught.value.limit_bytes) == (
            "big",
            3_002,
            2_000,
        )
        for context, key in (({"set": 2_500}, "made"), ({"result": 2_500}, "result")):
            result = await sized(engine, **context)
            assert isinstance(result.error, MemoryFootprintError)
            assert (result.error.key, result.error.size_bytes, result.error.limit_bytes) == (
                key,
                2_502,
                2_000,
            )
            assert result.steps["make"] == "failed"
        assert (await engine.history(result.saga_id).now()).steps["make"].attempt == 1


class Signalled(Saga):
    saga_name = "signalled"

    @action("wait", wait_for="go")
    async def wait(self, ctx: Any) -> dict[str, Any]:
        return {"got": ctx.signal}


@pytest.mark.filterwarnings("ignore::sagaz_es.errors.LargePayloadWarning")
async def test_the_limits_hold_for_what_a_signal_brings() -> None:
    async with connect("memory://", sagas=[Signalled], config=SMALL) as engine:
        handle = await engine.start(Signalled)
        with pytest.raises(MemoryFootprintError, match="payload"):
            await engine.signal(handle.saga_id, "go", "s" * 3_000)
        await engine.signal(handle.saga_id, "go", "s" * 1_000)
        assert (await handle.result()).context["got"] == "s" * 1_000


@pytest.mark.filterwarnings("ignore::sagaz_es.errors.LargePayloadWarning")
async def test_without_a_store_the_bound_holds_and_large_values_stay_in_their_event() -> None:
    async with Engine(MemoryEventLog(), sagas=[Sized], config=SMALL) as engine:
        assert (await sized(engine, set=1_000)).context["made"] == "x" * 1_000
        with pytest.raises(MemoryFootprintError, match=r"'big' takes 3002 bytes.*2000"):
            await sized(engine, big="b" * 3_000)


@pytest.mark.filterwarnings("ignore::sagaz_es.errors.LargePayloadWarning")
async def test_sizes_are_bytes_not_characters() -> None:
    async with connect("memory://", sagas=[Sized], config=SMALL) as engine:
        with pytest.raises(MemoryFootprintError) as caught:
            await sized(engine, big="€" * 700)
    assert caught.value.size_bytes == 2_102


async def test_saga_config_has_the_same_limits() -> None:
    config = SagaConfig(storage=InMemorySagaStorage(), value_max_bytes=2_000)
    with pytest.raises(MemoryFootprintError, match="2000"):
        await Saga("s", config).add_step("a", lambda ctx: None).run({"big": "b" * 3_000})


@pytest.mark.parametrize("make", [EngineConfig, SagaConfig])
@pytest.mark.parametrize(
    "setting", [{"value_max_bytes": 0}, {"value_inline_bytes": 10**6}, {"value_warn_bytes": -1}]
)
def test_an_impossible_limit_is_named(make: Any, setting: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        make(**setting)


# --- a blob store that is away --------------------------------------------------------------------


class Shaky(MemoryBlobStore):
    """Its next calls fail, as `failures` says; `lost`: it does not find what it was given;
    `hangs`: it tells of the next read, and never answers it."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0
        self.lost = False
        self.hangs: asyncio.Event | None = None

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise Unreachable("the blob store", self.name)

    async def put(self, data: bytes) -> str:
        self._fail()
        return await super().put(data)

    async def get(self, key: str) -> bytes | None:
        self._fail()
        if self.hangs is not None:
            self.hangs.set()
            await asyncio.Event().wait()
        return None if self.lost else await super().get(key)


class Photo(LedgerSaga):
    """take → print, both undone."""

    saga_name = "photo"

    @action("take", max_retries=0)
    async def take(self, ctx: Any) -> Any:
        ctx.resources["blobs"].failures = 2  # as it leaves its result behind
        return {**await self.do(ctx), "picture": "p" * 1_000}

    @compensate("take", max_retries=0)
    async def shred(self, result: Any, ctx: Any) -> Any:
        assert result["picture"] == "p" * 1_000
        return await self.undo(ctx, result)

    @action("print", max_retries=0)
    async def print(self, ctx: Any) -> Any:
        blobs = ctx.resources["blobs"]
        blobs.failures, blobs.lost = 1, ctx.get("lose", False)  # as the compensation begins
        return await self.do(ctx)


def studio(blobs: Shaky, ledger: Ledger) -> Engine:
    return Engine(
        MemoryEventLog(1),
        sagas=[Photo],
        blobs=blobs,
        resources={"ledger": ledger, "blobs": blobs},
        config=SMALL,
        clock=SetClock(jumps=True),
    )


@pytest.mark.filterwarnings("ignore::sagaz_es.errors.LargePayloadWarning")
async def test_an_outage_of_the_blob_store_fails_no_step_and_no_compensation() -> None:
    blobs, ledger = Shaky(), Ledger()
    ledger.fails("print", Declined())
    async with studio(blobs, ledger) as engine:
        result = await engine.run(Photo, {}, saga_id="s")
    assert (result.status, ledger.standing) == ("rolled_back", [])
    assert ledger.order == ["take", "print", "undo take"]


@pytest.mark.filterwarnings("ignore::sagaz_es.errors.LargePayloadWarning")
async def test_a_value_that_is_gone_is_an_error_of_its_own_and_loses_nothing() -> None:
    blobs, ledger = Shaky(), Ledger()
    ledger.fails("print", Declined())
    async with studio(blobs, ledger) as engine:
        with pytest.raises(BlobMissing):  # the result's context, too, has a value that is gone
            await engine.run(Photo, {"lose": True}, saga_id="s")
        state = await engine.current("s")
        assert (state.status, ledger.standing) == ("failed", ["take"])
        assert state.steps["take"].error_type == "BlobMissing"
        blobs.lost = False
        result = await engine.retry_compensation("s", "take", reason="restored")
        assert (result.status, ledger.standing) == ("rolled_back", [])


class Long(Saga):
    saga_name = "long"

    @action("only")
    async def only(self, ctx: Any) -> None:
        assert ctx["given"]
        ctx.resources["blobs"].hangs = ctx.resources["hangs"]


async def test_who_waits_is_told_where_the_engine_closes_while_a_result_is_read_back() -> None:
    blobs, reading = Shaky(), asyncio.Event()
    engine = Engine(
        MemoryEventLog(1),
        sagas=[Long],
        blobs=blobs,
        resources={"blobs": blobs, "hangs": reading},
        config=EngineConfig(value_inline_bytes=400, drain_seconds=0.05),
        clock=SetClock(jumps=True),
    )
    await engine.open()
    running = asyncio.create_task(engine.run(Long, {"given": "g" * 1_000}, saga_id="s"))
    await reading.wait()  # it has ended, and its result is put together
    await engine.close()
    with pytest.raises(EngineClosed):
        await asyncio.wait_for(running, 5)
