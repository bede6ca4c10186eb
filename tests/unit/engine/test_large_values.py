"""Values over the inline limit leave the event and come back equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Saga, action, connect
from sagaz_es.core import events as e
from sagaz_es.errors import MemoryFootprintError

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
