"""What callers hand in and no log can hold is refused by name, and nothing is written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Engine, Saga, SagaReplay, SagaTimeTravel, action, compensate, connect
from sagaz_es.core import events as e
from sagaz_es.errors import ConfigurationError, StateNotFound, UnstorableValue
from tests.helpers import Declined, Ledger, LedgerSaga, OrderSaga, facts

NO_TEXT = [None, 5, b"x", "\ud800", "x" * 100_000]


class Waiting(Saga):
    saga_name = "waiting"

    @action("wait", wait_for="approved")
    async def wait(self, ctx: Any) -> None: ...


class Stuck(Saga):
    saga_name = "stuck"

    @action("book")
    async def book(self, ctx: Any) -> None: ...

    @compensate("book", max_retries=0)
    async def give_back(self, ctx: Any) -> None:
        raise Declined

    @action("pay", max_retries=0)
    async def pay(self, ctx: Any) -> None:
        raise Declined


ASKED: dict[str, Callable[[Engine, Any], Awaitable[Any]]] = {
    "actor of run": lambda engine, text: engine.run(OrderSaga, saga_id="new", actor=text),
    "actor of cancel": lambda engine, text: engine.cancel("w", actor=text),
    "reason of cancel": lambda engine, text: engine.cancel("w", reason=text),
    "name of signal": lambda engine, text: engine.signal("w", text),
    "actor of signal": lambda engine, text: engine.signal("w", "other", actor=text),
    "reason of pause": lambda engine, text: engine.pause("w", reason=text),
    "reason of resume": lambda engine, text: engine.resume("w", reason=text),
    "from_step of plan_replay": lambda engine, text: engine.plan_replay("o", text),
    "replay_id of undo_replay": lambda engine, text: engine.undo_replay(text),
    "reason of undo_replay": lambda engine, text: engine.undo_replay("o", reason=text),
    "step of retry_compensation": lambda engine, text: engine.retry_compensation(
        "s", text, reason="it is up"
    ),
    "reason of skip_compensation": lambda engine, text: engine.skip_compensation(
        "s", "book", reason=text
    ),
    "actor of decide_recovery": lambda engine, text: engine.decide_recovery(
        "s", "book", "retry", actor=text
    ),
    "step of resolve_outcome": lambda engine, text: engine.resolve_outcome(
        "s", text, happened=True, actor="olga"
    ),
    "initiated_by of SagaReplay": lambda engine, text: SagaReplay(
        "o", engine, initiated_by=text
    ).from_checkpoint("ship"),
}


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/log.db"


@pytest.mark.parametrize("asked", ASKED)
async def test_a_text_that_no_log_can_hold_is_refused_by_name_and_nothing_is_written(
    url: str, asked: str
) -> None:
    what = asked.split()[0].replace("initiated_by", "actor")
    sagas = [OrderSaga, Waiting, Stuck]
    async with connect(url, sagas=sagas, resources={"ledger": Ledger()}) as engine:
        await engine.run(OrderSaga, saga_id="o")
        await engine.start(Waiting, saga_id="w")
        await engine.run(Stuck, saga_id="s")
        before = [await facts(engine.log, saga_id) for saga_id in ("o", "w", "s", "new")]
        for text in NO_TEXT:
            with pytest.raises(ConfigurationError, match=f"^{what}: "):
                await ASKED[asked](engine, text)
        after = [await facts(engine.log, saga_id) for saga_id in ("o", "w", "s", "new")]
        assert after == before
        await engine.signal("w", "approved")
        assert (await (await engine.handle("w")).result()).success


async def test_a_request_id_is_a_text_or_a_uuid() -> None:
    async with connect("memory://", sagas=[Waiting]) as engine:
        await engine.start(Waiting, saga_id="w")
        for wrong in ("", 5, "\ud800"):
            with pytest.raises(ConfigurationError, match=r"^request_id: "):
                await engine.pause("w", request_id=wrong)  # type: ignore[arg-type]


async def test_an_outcome_has_happened_or_not() -> None:
    async with connect("memory://", sagas=[Waiting]) as engine:
        await engine.start(Waiting, saga_id="w")
        with pytest.raises(ConfigurationError, match=r"^happened: True or False, not 'no'"):
            await engine.resolve_outcome("w", "wait", happened="no", actor="olga")  # type: ignore[arg-type]


async def test_what_may_happen_again_is_a_list_of_step_names() -> None:
    async with connect("memory://", sagas=[OrderSaga], resources={"ledger": Ledger()}) as engine:
        await engine.run(OrderSaga, saga_id="o")
        with pytest.raises(ConfigurationError, match=r'^allow: step names, such as \["ship"\]'):
            await engine.plan_replay("o", "ship", allow=5)  # type: ignore[arg-type]


async def test_an_empty_replay_id_undoes_no_saga(url: str) -> None:
    """A saga that is no branch has an empty replay id, too."""
    ledger = Ledger()
    async with connect(url, sagas=[OrderSaga], resources={"ledger": ledger}) as engine:
        await engine.run(OrderSaga, saga_id="o")
        with pytest.raises(ConfigurationError, match=r"^replay_id: a text that is not empty"):
            await engine.undo_replay("")
    assert ledger.order == ["reserve", "charge", "ship"]


async def test_an_event_that_cannot_be_written_holds_nobody_else_up(tmp_path: Path) -> None:
    url, ledger = f"sqlite:///{tmp_path}/log.db?partitions=1", Ledger()
    async with connect(url, sagas=[OrderSaga], resources={"ledger": ledger}) as engine:
        (partition,) = engine.host.partitions.values()
        broken = e.CancelRequested("r", "s", 0, actor="\ud800")
        with pytest.raises(UnstorableValue, match=r"^CancelRequested\.actor: "):
            await partition.queue.put(None, [broken])
        assert (await engine.run(OrderSaga)).success


@pytest.mark.parametrize("key", ["\ud800", 5])
async def test_a_key_that_is_no_text_is_refused_with_the_context(url: str, key: Any) -> None:
    class Sets(LedgerSaga):
        saga_name = "sets"

        @action("set")
        async def set_it(self, ctx: Any) -> None:
            ctx[key] = 1

        @action("look")
        async def look(self, ctx: Any) -> None: ...

    async with connect(url, sagas=[Sets]) as engine:
        with pytest.raises(UnstorableValue):
            await engine.run(Sets, {key: 1}, saga_id="s")
        assert await facts(engine.log, "s") == []
        result = await engine.run(Sets)
        assert isinstance(result.error, UnstorableValue)


@pytest.mark.parametrize("key", ["\ud800", 5])
async def test_looking_for_a_key_that_is_no_text_is_no_failure(url: str, key: Any) -> None:
    class Looks(LedgerSaga):
        saga_name = "looks"

        @action("look")
        async def look(self, ctx: Any) -> dict[str, bool]:
            return {"found": key in ctx or ctx.get(key) is not None}

    async with connect(url, sagas=[Looks]) as engine:
        result = await engine.run(Looks)
        assert (result.success, result.context) == (True, {"found": False})


# --- about the past -------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", [2**70, "9" * 5000])
async def test_a_sequence_beyond_counting_is_not_there_yet(url: str, sequence: Any) -> None:
    async with connect(url, sagas=[OrderSaga], resources={"ledger": Ledger()}) as engine:
        await engine.run(OrderSaga, saga_id="o")
        with pytest.raises(StateNotFound, match=r"its last is 8"):
            await engine.history("o").state_at(sequence)
        assert await engine.history("o").changes(after=sequence) == []
        assert len(await engine.history("o").changes(before=sequence)) == 8


@pytest.mark.parametrize("limit", [-1, "2", 1.5, True])
async def test_a_limit_is_a_number_or_none(url: str, limit: Any) -> None:
    async with connect(url, sagas=[OrderSaga], resources={"ledger": Ledger()}) as engine:
        await engine.run(OrderSaga, saga_id="o")
        for asked in (engine.history("o").changes, SagaTimeTravel("o", engine).list_state_changes):
            with pytest.raises(ConfigurationError, match=r"^limit: "):
                await asked(limit=limit)
            assert len(await asked(limit=None)) == 8


async def test_blame_is_about_a_path() -> None:
    async with connect("memory://", sagas=[OrderSaga], resources={"ledger": Ledger()}) as engine:
        await engine.run(OrderSaga, saga_id="o")
        with pytest.raises(ConfigurationError, match=r"^path: "):
            await engine.history("o").blame(None)  # type: ignore[arg-type]
