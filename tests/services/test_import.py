"""Real cases, imported into real logs and stores: the state of each at every time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from sagaz_es.connect import open_log, open_store
from sagaz_es.ports import EventLog, ProjectionStore
from sagaz_es.reading.projector import Projector
from sagaz_es.reading.time_travel import SagaHistory
from sagaz_es.recording.importing import ImportResult
from tests.unit.test_importing import FINES, FINES_COLUMNS, context_of, imported, model

Place = tuple[EventLog, ProjectionStore]


@pytest.fixture(params=["sqlite", "kafka and postgresql"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param == "sqlite":
        log = open_log(f"sqlite:///{tmp_path}/log.db")
        store = open_store(None, log)
    else:
        bootstrap = request.getfixturevalue("kafka_bootstrap")
        namespace = request.getfixturevalue("kafka_namespace")
        log = open_log(f"kafka://{bootstrap}/{namespace}?partitions=3")
        store = open_store(request.getfixturevalue("postgresql_url"), log)
    assert store is not None
    async with AsyncExitStack() as stack:
        for part in (log, store):
            await part.open()
            stack.push_async_callback(part.close)
        yield log, store


@pytest.mark.parametrize("projected", ["not", "half", "all"])
async def test_every_case_is_at_every_time_what_the_file_says(place: Place, projected: str) -> None:
    log, store = place
    ends = {"Send for Credit Collection": "failed"}
    result = await imported(log, FINES, **FINES_COLUMNS, ends=ends)
    last = {case: rows[-1][1]["concept:name"] for case, rows in model().items()}
    ended = {case for case, step in last.items() if step in ends}
    assert result == ImportResult(100, 390, 0, (), len(ended))
    bounds = [await log.bounds(partition) for partition in range(log.partitions)]
    share = {"not": 0.0, "half": 0.5, "all": 1.0}[projected]
    await Projector(log, store).run_until(
        {partition: int(bound.end * share) for partition, bound in enumerate(bounds)}
    )
    for case, rows in model().items():
        past = SagaHistory(case, log, store)
        for at in {at for at, _ in rows}:
            until = [row for row in rows if row[0] <= at]
            state = await past.state_at(at)
            assert (state.context, state.timestamp) == (context_of(until), at)
            over = case in ended and at == rows[-1][0]
            assert state.status == ("failed" if over else "executing")
            assert state.completed_steps == list(dict.fromkeys(r["concept:name"] for _, r in until))
    again = await imported(log, FINES, **FINES_COLUMNS, ends=ends, store=store)
    assert again == ImportResult(0, 0, 390)
