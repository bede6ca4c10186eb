"""A store that is away when an engine opens: sagas do not wait for it, and it is found later."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any, cast

from sagaz_es.errors import (
    AccessRefused,
    LogReplaced,
    LogTruncated,
    SagaError,
    StorageFailed,
    Unreachable,
)
from sagaz_es.ports import EventLog, ProjectionStore
from sagaz_es.reading.lookup import STORE_DOWN
from sagaz_es.reading.projection import verify_store

logger = logging.getLogger("sagaz_es.engine")

AGAIN_S = 1.0


async def opened(log: EventLog, store: ProjectionStore) -> LateStore | None:
    """Open a store, and see that it is this log's; None: it is. Where it does not answer, what
    stands for it until it does.

    Raises StoreOfAnotherLog, LogReplaced, LogTruncated; AccessRefused and StorageFailed, which do
    not pass by themselves.
    """
    try:
        await store.open()
        await verify_store(log, store)
    except AccessRefused:
        raise
    except Unreachable as error:
        logger.warning("%s The engine opens without its store, and looks for it", error)
        return LateStore(store, error)
    return None


class LateStore:
    """Raises what a store raised, whatever is asked of it, until it is `found`.

    Law (seen first): nothing is asked of a store that is not known to be this log's.
    """

    def __init__(self, store: ProjectionStore, error: SagaError) -> None:
        self._store, self._error = store, error

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name == "close" or not inspect.iscoroutinefunction(found):
            return found

        async def refuse(*given: object, **named: object) -> None:
            raise type(self._error)(*self._error.args)  # a new one: it is raised more than once

        return refuse

    async def found(self, log: EventLog) -> ProjectionStore:
        """The store, once it answers and is seen to be this log's; one of another log never is."""
        while True:
            await asyncio.sleep(AGAIN_S)
            try:
                await self._store.open()
                await verify_store(log, self._store)
            except STORE_DOWN as error:
                if isinstance(error, SagaError):
                    self._error = error
            except (LogReplaced, LogTruncated) as error:
                logger.critical("%s; this engine goes on without a store", error)
                self._error = StorageFailed(self._store.name, str(error))
                await asyncio.Event().wait()
            else:
                logger.warning("%s answers", self._store.name)
                return self._store

    def standing_for(self) -> ProjectionStore:
        """It, as what it stands for."""
        return cast(ProjectionStore, self)
