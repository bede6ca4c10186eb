"""A projector of its own, for the tests to kill: `python -m tests.services.projector_worker`.

Arguments: log URL, store URL, records a batch.
"""

from __future__ import annotations

import asyncio
import sys

from sagaz_es.connect import open_log, open_store
from sagaz_es.reading.projector import Projector
from sagaz_es_projections.runner import run, stop_at_signals


async def main() -> None:
    log = open_log(sys.argv[1])
    store = open_store(sys.argv[2], log)
    assert store is not None
    projector = Projector(log, store, batch=int(sys.argv[3]), linger_s=0.0)
    with stop_at_signals() as stop:
        print("ready", flush=True)
        await run(log, store, stop=stop, projector=projector)
    await store.close()
    await log.close()
    print("stopped", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
