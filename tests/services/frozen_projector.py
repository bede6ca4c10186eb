"""A projector that freezes in the middle of its first commit:
`python -m tests.services.frozen_projector LOG STORE`. SIGCONT lets it go on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from sagaz_es.connect import open_log, open_store
from sagaz_es.reading.projector import Projector
from sagaz_es.storage import postgresql
from sagaz_es_projections.runner import run, stop_at_signals

move = vars(postgresql)["_move"]


async def move_and_freeze(*arguments: Any) -> None:
    """The checkpoint's row is ours from here to the end of the transaction."""
    await move(*arguments)
    if vars(postgresql)["_move"] is not move:  # partitions are projected side by side: once
        vars(postgresql)["_move"] = move
        print("inside", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)


async def main() -> None:
    log = open_log(sys.argv[1])
    store = open_store(sys.argv[2], log)
    assert store is not None
    vars(postgresql)["_move"] = move_and_freeze
    with stop_at_signals() as stop:
        await run(log, store, stop=stop, projector=Projector(log, store, batch=20, linger_s=0.0))
    await store.close()
    await log.close()
    print("stopped", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
