"""Damage in the log under a saga's id: nobody decides about the saga on a guess."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagaz_es import Engine, Saga, Verdict
from sagaz_es.errors import ConfigurationError, SagaSetAside
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.reading.projector import Projector
from sagaz_es.storage.memory import MemoryProjectionStore


def pay(charges: list[str]) -> Saga:
    async def charge(ctx: Any) -> None:
        if ctx["token"] == "bad":
            raise ValueError("declined")
        charges.append(ctx.saga_id)

    async def refund(ctx: Any) -> None:
        charges.pop()

    return Saga(name="pay").add_step("charge", charge, refund, max_retries=0)


async def test_foreign_bytes_under_its_id_do_not_hide_that_a_saga_was_replayed() -> None:
    charges: list[str] = []
    log, store = MemoryEventLog(), MemoryProjectionStore()
    projector = Projector(log, store)
    async with Engine(log, store, sagas=[pay(charges)]) as engine:
        await engine.run("pay", {"token": "bad"}, saga_id="p-1")
        await projector.run_until()
        await log.append_raw(log.partition_of("p-1"), "p-1", b"oops")
        plan = await engine.plan_replay("p-1", "charge", context_override={"token": "ok"})
        assert (await engine.replay(plan)).success
        await projector.run_until()

        plan = await engine.plan_replay("p-1", "charge", context_override={"token": "ok"})
        assert plan.verdict("charge") is Verdict.UNDO_FIRST
        assert (await engine.replay(plan)).success
    assert len(charges) == 1


async def test_a_base_exception_fails_its_step_and_not_its_caller() -> None:
    async def stop(ctx: Any) -> None:
        raise GeneratorExit

    def stop_in_thread(ctx: Any) -> None:
        raise StopIteration

    for function in (stop, stop_in_thread):
        saga = Saga(name="stops").add_step("only", function, max_retries=0)
        async with Engine(MemoryEventLog(), sagas=[saga]) as engine, asyncio.timeout(5):
            assert str((await engine.run(saga)).status) == "rolled_back"


@pytest.mark.parametrize("password", ["s3c/ret", "s3c#ret"])
def test_a_password_in_a_wrong_url_is_not_shown(password: str) -> None:
    from sagaz_es.connect import open_log, open_store

    with pytest.raises(ConfigurationError) as refused:
        open_log(f"kafka://u:{password}@localhost:1/ns")
    assert "s3c" not in str(refused.value)
    with pytest.raises(ConfigurationError) as refused:
        open_store(f"postgresql://u:{password}@localhost:1/db", MemoryEventLog())
    assert "s3c" not in str(refused.value)


def test_the_refusal_says_where_the_damage_is() -> None:
    assert "partition 2, offset 7" in str(SagaSetAside("p-1", 2, 7))
