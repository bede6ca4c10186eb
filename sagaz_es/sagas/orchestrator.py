"""`SagaOrchestrator`: questions about many sagas, answered from the log of all processes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sagaz_es.core.state import SagaStatus
from sagaz_es.errors import SagaNotFound
from sagaz_es.ports import Summary
from sagaz_es.sagas import standalone
from sagaz_es.snapshots import from_us

if TYPE_CHECKING:
    from sagaz_es.sagas.result import SagaResult
    from sagaz_es.sagas.saga import Saga

PAGE = 500


class SagaOrchestrator:
    """Runs sagas on the default log and tells of all sagas in it, whoever ran them."""

    def __init__(self, logger: logging.Logger | None = None, verbose: bool = False) -> None:
        self.logger = logger or logging.getLogger("sagaz_es.sagas")
        self.verbose = verbose
        self.sagas: dict[str, Saga] = {}  # objects that were executed here

    async def execute_saga(self, saga: Saga) -> SagaResult:
        """As `saga.execute()`."""
        result = await saga.execute()
        self.sagas[result.saga_id] = saga
        if self.verbose:
            self.logger.info("saga %s (%s) is %s", saga.name, result.saga_id, result.status)
        return result

    async def get_saga(self, saga_id: Any) -> Saga | None:
        """The object, if it was executed here."""
        return self.sagas.get(str(saga_id))

    async def get_saga_status(self, saga_id: Any) -> dict[str, Any] | None:
        """A saga as plain data; None: there is none of this id."""
        return await saga_status(saga_id)

    async def get_all_sagas_status(self) -> list[dict[str, Any]]:
        """Every saga, newest first."""
        return await summaries(limit=None)

    async def count_by_status(self, status: SagaStatus | str) -> int:
        """How many sagas have this status."""
        return (await counts()).get(str(status), 0)

    async def count_completed(self) -> int:
        return await self.count_by_status(SagaStatus.COMPLETED)

    async def count_failed(self) -> int:
        return await self.count_by_status(SagaStatus.FAILED)

    async def count_rolled_back(self) -> int:
        return await self.count_by_status(SagaStatus.ROLLED_BACK)

    async def get_statistics(self) -> dict[str, Any]:
        """How many sagas there are, in all and by status."""
        by_status = await counts()
        known = {str(status): by_status.get(str(status), 0) for status in SagaStatus}
        return {"total_sagas": sum(by_status.values()), **known}


async def saga_status(saga_id: Any, config: Any = None) -> dict[str, Any] | None:
    """A saga as plain data; None: there is none of this id."""
    try:
        state = await standalone.state_of(saga_id, None, config)
    except SagaNotFound:
        return None
    return {
        "saga_id": state.saga_id,
        "saga_name": state.saga_name,
        "name": state.saga_name,
        "status": state.status,
        "total_steps": len(state.step_graph.steps),
        "completed_steps": len(state.completed_steps),
        "steps": [
            {
                "name": name,
                "status": state.step(name).status,
                "retry_count": max(0, state.step(name).attempt - 1),
                "error": state.step(name).error_message or None,
            }
            for name in state.step_graph.order
        ],
        "started_at": _time(state.started_at),
        "completed_at": _time(state.ended_at),
        "error": state.error_message or None,
    }


async def summaries(
    config: Any = None,
    *,
    status: str | None = None,
    saga_name: str | None = None,
    limit: int | None = 100,
) -> list[dict[str, Any]]:
    """Sagas as plain data, newest first; `limit=None`: all of them."""
    found: list[Summary] = []
    last: tuple[int, str] | None = None
    async with standalone.engine_of(config) as engine:
        while engine.store is not None and (limit is None or len(found) < limit):
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            page = await engine.store.summaries(
                status=status, saga_name=saga_name, limit=size, after=last
            )
            found += page
            if len(page) < size:
                break
            last = page[-1].place
    return [
        {
            "saga_id": each.saga_id,
            "saga_name": each.saga_name,
            "name": each.saga_name,
            "status": each.status,
            "started_at": _time(each.started_at),
            "completed_at": _time(each.ended_at),
            "error": each.error or None,
        }
        for each in found
    ]


async def counts(config: Any = None) -> dict[str, int]:
    """How many sagas have each status."""
    async with standalone.engine_of(config) as engine:
        return await engine.store.count_by_status() if engine.store is not None else {}


def _time(us: int) -> str | None:
    return from_us(us).isoformat() if us else None
