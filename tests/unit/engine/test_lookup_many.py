"""The whole fold of many sagas: from the store and the tail, or one by one, it is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Engine, Saga, action
from sagaz_es.connect import open_log, open_store
from sagaz_es.core.state import SagaState
from sagaz_es.engine.config import EngineConfig
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.reading import lookup
from sagaz_es.reading.lookup import current_state, current_states
from sagaz_es.reading.projector import Projector
from sagaz_es.storage.memory import MemoryProjectionStore


class Approval(Saga):
    saga_name = "approval"

    @action("act", wait_for="approved")
    async def act(self, ctx: Any) -> dict[str, Any]:
        return {"by": ctx.signal}


class _MadeAnew(MemoryProjectionStore):
    """Is reset between the two questions of whoever looks first, as by `projector rebuild`."""

    when_asked: Any = None

    async def heads(self, saga_ids: Any) -> Any:
        if self.when_asked is not None:
            made_anew, self.when_asked = self.when_asked, None
            await made_anew()
        return await super().heads(saga_ids)


@pytest.mark.parametrize("how_far", [0, 2])
async def test_a_saga_is_found_while_the_store_is_made_anew(how_far: int) -> None:
    log, store = _WithoutIndex(1), _MadeAnew()
    async with Engine(log, sagas=[Approval], config=EngineConfig(drain_seconds=1)) as engine:
        saga_id = (await engine.start(Approval, {"n": 1})).saga_id
        await Projector(log, store, batch=2).catch_up()

        async def made_anew() -> None:
            await store.reset()
            if how_far:
                await Projector(log, store, batch=how_far).run_until({0: how_far})

        expected = await current_state(log, None, saga_id)
        assert expected is not None
        store.when_asked = made_anew
        assert await current_state(log, store, saga_id) == expected
        assert store.when_asked is None


class _WithoutIndex(MemoryEventLog):
    indexed = False


@pytest.mark.parametrize("projected", ["nothing", "a part", "all"])
async def test_what_is_asked_for_together_is_what_each_is_alone(
    tmp_path: Path, projected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "FEW", 5)
    log = open_log(f"sqlite:///{tmp_path}/log.db")
    store = open_store(None, log)
    assert store is not None
    config = EngineConfig(projector=False, drain_seconds=1)
    async with Engine(log, store, sagas=[Approval], config=config) as engine:
        ids = [(await engine.start(Approval, {"n": n})).saga_id for n in range(20)]
        if projected == "a part":
            await Projector(log, store).catch_up()
        for saga_id in ids[::2]:
            await engine.signal(saga_id, "approved", "olga")
            await (await engine.handle(saga_id)).result(30)
        if projected == "all":
            await Projector(log, store).catch_up()
        alone: dict[str, SagaState] = {}
        for saga_id in ids:
            state = await current_state(log, store, saga_id)
            assert state is not None
            alone[saga_id] = state
        for partition in range(log.partitions):
            here = {key: alone[key] for key in ids if log.partition_of(key) == partition}
            asked = [*here, *(f"nobody-{n}" for n in range(6))]
            assert await current_states(log, store, partition, asked) == here
            assert await current_states(log, None, partition, asked) == here
