"""Stuck compensations: a saga that ended `failed` because an undo kept failing.

Each can be tried again, or let be with a reason. Either is a fact in the saga's own stream, written
by a claim of the ended saga, so that of two people at one time one decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TypeAlias

from sagaz_es.core import events as e
from sagaz_es.core.decide import GIVEN_UP
from sagaz_es.core.state import SagaState
from sagaz_es.core.stuck import stuck_steps
from sagaz_es.core.texts import join_names
from sagaz_es.engine import starting
from sagaz_es.engine.asking import ask
from sagaz_es.engine.decisions import ASK_AGAIN_S
from sagaz_es.engine.host import Host
from sagaz_es.engine.partitions.partition import Partition
from sagaz_es.errors import (
    LostOwnership,
    RequestRefusedError,
    SagaIsRecorded,
    SagaNotFound,
    SagaStillRunning,
    StepNotFound,
)
from sagaz_es.reading.lookup import current_state
from sagaz_es.sagas.result import SagaHandle

Wish: TypeAlias = e.CompensationRetryRequested | e.CompensationSkipRequested


async def retry(host: Host, request: e.CompensationRetryRequested) -> SagaHandle:
    """See Engine.retry_compensation."""
    await _ask(host, request)
    return host.outcomes.handle(request.saga_id)


async def skip(host: Host, request: e.CompensationSkipRequested) -> None:
    """See Engine.skip_compensation."""
    await _ask(host, request)


async def _ask(host: Host, request: Wish) -> None:
    while (partition := host.partition_for(request.saga_id)) and await host.answers(request):
        try:
            await answer(host, partition, request)
            return
        except LostOwnership:  # another engine was first, or it is handed over
            host.check_open(request.saga_id)
            await asyncio.sleep(ASK_AGAIN_S)

    async def stands() -> bool:
        return await _stuck(host, request) is None

    def answers(fact: e.Fact) -> bool:
        return e.request_of(fact) == request.request_id

    await ask(host, request, answers, stands, confirmed=stands)


async def answer(host: Host, partition: Partition, request: Wish) -> None:
    """Claim the saga and do what is asked, unless that was done before; returns once it stands."""
    state = await _stuck(host, request)
    if state is None:
        return
    fact: e.Fact
    if isinstance(request, e.CompensationRetryRequested):
        cause = "retry"
        fact = e.CompensationStarted(
            join_names([request.step]),
            state.goal or "rolled_back",
            request.reason,
            request.actor,
            request.request_id,
        )
    else:
        cause = "skip"
        fact = e.StepSkipped(request.step, request.reason, request.actor, request.request_id)
    definition = host.registry.by_name(state.saga_name)
    claimed = await host.claim(state, cause)
    try:
        await starting.resume(host, partition, state, definition, (claimed, fact))
    except SagaStillRunning:
        if not await starting.has_answered(host, request):  # asked twice at once
            raise


async def _stuck(host: Host, request: Wish) -> SagaState | None:
    """The saga's state, if this step's compensation is stuck; None: the request was answered."""
    saga_id, step = request.saga_id, request.step
    state = await current_state(host.log, host.store, saga_id)
    if state is None:
        raise SagaNotFound(saga_id, host.log.name)
    if request.request_id in state.answered:
        return None
    if state.recorded:
        raise SagaIsRecorded(saga_id, "compensated here")
    if not state.ended:
        raise SagaStillRunning(saga_id, state.status)
    stuck = stuck_steps(state)
    if step not in stuck:
        raise StepNotFound(saga_id, step, stuck, "has no stuck compensation of step", "those stuck")
    if state.branch:
        raise RequestRefusedError(
            f"the effects of saga {saga_id!r} belong to its branch {state.branch!r} now"
        )
    if isinstance(request, e.CompensationRetryRequested):
        _check_order(state, step, stuck)
    return state


def _check_order(state: SagaState, step: str, stuck: Collection[str]) -> None:
    """What was not tried because the undoing of a dependent had failed comes behind that. Raises
    RequestRefusedError.

    Where the saga's strategy has tried it all the same, a person may, too.
    """
    if state.step(step).error_type != GIVEN_UP:
        return
    graph = state.step_graph
    dependents = graph.dependents.get(step, frozenset())
    first = [name for name in graph.undo_order(stuck) if name in dependents]
    if first:
        raise RequestRefusedError(
            f"saga {state.saga_id!r}: step {step!r} is undone behind {first[0]!r}, which depends "
            f"on it and is not undone; retry the compensation of {first[0]!r} first, or skip it"
        )
