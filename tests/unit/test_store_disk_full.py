"""A store whose disk is full: it says so, loses nothing, and goes on when there is room again."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from sagaz_es.core.fold import fold_all
from sagaz_es.errors import StorageFailed
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.reading.projector import Projector
from sagaz_es.storage.sqlite import SQLiteProjectionStore
from sagaz_es.testing.contracts.histories import history
from sagaz_es_projections.verify import verify

FIRST = {f"order-{n}": history(f"order-{n}") for n in range(20)}
MORE = {f"order-{n}": history(f"order-{n}") for n in range(20, 80)}
PATIENCE_S = 60.0


async def test_a_projector_waits_for_a_full_disk_and_goes_on_with_space(small_disk: Path) -> None:
    log, path = MemoryEventLog(1), small_disk / "store.db"
    store = SQLiteProjectionStore(str(path))
    failures: list[Exception] = []
    projector = Projector(log, store, batch=50, on_failure=failures.append)
    await log.open()
    await store.open()
    for events in FIRST.values():
        await log.append(0, events)
    await projector.run_until(timeout_s=PATIENCE_S)

    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    for events in MORE.values():
        await log.append(0, events)
    running = asyncio.create_task(projector.run())
    async with asyncio.timeout(PATIENCE_S):
        while not failures:  # noqa: ASYNC110 - it is told, not awaited
            await asyncio.sleep(0.01)
    assert isinstance(failures[0], StorageFailed)
    assert "the disk is full" in str(failures[0])
    assert str(path) in str(failures[0])
    kept = await store.heads(list(FIRST))
    assert kept == {saga_id: fold_all(events) for saga_id, events in FIRST.items()}

    ballast.unlink()
    await projector.run_until(timeout_s=PATIENCE_S)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    verified = await verify(log, store)
    assert (verified.sagas, verified.differences) == (len(FIRST | MORE), ())
    await store.close()
