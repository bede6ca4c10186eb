"""What a result tells: every step's own result, and when the saga ran."""

from __future__ import annotations

from datetime import UTC, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import EngineConfig, Saga, action, compensate, connect
from sagaz_es.errors import SagaNotFound, StepNotFound
from sagaz_es.log.memory import MemoryEventLog
from tests.helpers import NOON, Declined, SetClock, engine_on


class Tells(Saga):
    saga_name = "tells"

    @action("count")
    async def count(self, ctx: Any) -> Decimal:
        return Decimal("9.90")

    @compensate("count")
    async def forget(self, ctx: Any) -> None: ...

    @action("write")
    async def write(self, ctx: Any) -> dict[str, str]:
        return {"letter": "x" * 3000}

    @action("rest")
    async def rest(self, ctx: Any) -> None: ...

    @action("send", max_retries=0)
    async def send(self, ctx: Any) -> str:
        if ctx.get("closed"):
            raise Declined
        return "sent"


async def test_every_result_can_be_read_by_its_steps_name(tmp_path: Path) -> None:
    """Large ones, too, of an undone step, and after a restart."""
    url, config = f"sqlite:///{tmp_path}/log.db", EngineConfig(value_inline_bytes=1000)
    for attempt in ("at once", "after a restart"):
        async with connect(url, sagas=[Tells], config=config) as engine:
            result = await engine.run(Tells, saga_id="t")
            undone = await engine.run(Tells, {"closed": True}, saga_id="u")
        assert result.result_of("count") == Decimal("9.90"), attempt
        assert result.result_of("write") == {"letter": "x" * 3000}
        assert result.result_of("rest") is None
        assert result.result_of("send") == "sent"
        assert undone.result_of("count") == Decimal("9.90")
        for step in ("send", "unheard-of"):
            with pytest.raises(StepNotFound, match=r"completed are: 'count', 'write', 'rest'"):
                undone.result_of(step)


async def test_a_branch_has_the_results_of_the_steps_that_it_reuses() -> None:
    async with connect("memory://", sagas=[Tells]) as engine:
        await engine.run(Tells, saga_id="t")
        plan = await engine.plan_replay("t", "send", allow=["send"])
        replay = await engine.replay(plan)
        branch = await (await engine.handle(replay.new_saga_id)).result()
    assert (branch.result_of("count"), branch.result_of("send")) == (Decimal("9.90"), "sent")


async def test_a_large_result_is_read_in_the_final_context_of_a_saga_that_runs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGAZ_ES_LOG", f"sqlite:///{tmp_path}/log.db")

    class Long(Saga):
        @action("read")
        async def read(self, ctx: Any) -> str:
            return "x" * 300_000

    saga = Long()
    with pytest.warns(Warning, match="key 'result'"):
        result = await saga.execute()
    assert result.context["read"] == "x" * 300_000


async def test_a_run_has_a_start_an_end_and_a_duration() -> None:
    clock = SetClock(NOON)

    class Slow(Saga):
        @action("wait")
        async def wait(self, ctx: Any) -> None:
            clock.advance(90_000_000)

    async with engine_on(MemoryEventLog(1), Slow, clock=clock) as engine:
        result = await engine.run(Slow)
    assert result.started_at is not None and result.completed_at is not None
    assert result.started_at.tzinfo is UTC
    assert result.completed_at - result.started_at == timedelta(seconds=90)
    assert result.execution_time == 90


async def test_a_family_is_listed_from_its_first_saga_to_its_newest_branch() -> None:
    async with connect("memory://", sagas=[Tells]) as engine:
        await engine.run(Tells, saga_id="t")
        ids = ["t"]
        for _ in range(2):
            plan = await engine.plan_replay(ids[-1], "send", allow=["send"])
            replay = await engine.replay(plan)
            assert replay.new_saga_id is not None
            ids.append(replay.new_saga_id)
        for saga_id in ids:
            family = await engine.history(saga_id).lineage()
            assert [member.saga_id for member in family.members] == ids
            assert (family.root, family.head) == ("t", ids[-1])
        assert family.ancestors == (ids[1], "t")
        with pytest.raises(SagaNotFound):
            await engine.history("nobody").lineage()
