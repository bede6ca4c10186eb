"""Stuck compensations: a saga that ended `failed` because an undo kept failing.

Each can be tried again, or let be with a reason. Either is a fact in the saga's own stream, written
by a claim of the ended saga, so that of two people at one time one decides.
"""

from __future__ import annotations

from sagaz_es.core import events as e
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import join_names
from sagaz_es.engine.host import Host
from sagaz_es.engine.inputs import new_id
from sagaz_es.engine.lookup import current_state
from sagaz_es.engine.partition import Partition
from sagaz_es.engine.result import SagaHandle
from sagaz_es.errors import RequestRefusedError, SagaNotFound, SagaStillRunning, StepNotFound


async def retry(host: Host, saga_id: str, step: str, reason: str, actor: str) -> SagaHandle:
    """See Engine.retry_compensation."""
    state = await _stuck(host, saga_id, step)
    partition = host.partition_for(saga_id)
    if partition is not None:
        return await retry_here(host, partition, state, step, reason, actor)
    request = e.CompensationRetryRequested(
        new_id(), saga_id, host.clock.now(), actor, reason, step=step
    )
    await host.ask(request, lambda fact: isinstance(fact, e.CompensationStarted))
    return host.handle(saga_id)


async def skip(host: Host, saga_id: str, step: str, reason: str, actor: str) -> None:
    """See Engine.skip_compensation."""
    state = await _stuck(host, saga_id, step)
    partition = host.partition_for(saga_id)
    if partition is not None:
        await skip_here(host, partition, state, step, reason, actor)
        return
    request = e.CompensationSkipRequested(
        new_id(), saga_id, host.clock.now(), actor, reason, step=step
    )
    await host.ask(request, lambda fact: isinstance(fact, e.StepSkipped) and fact.step == step)


async def answer(
    host: Host,
    partition: Partition,
    request: e.CompensationRetryRequested | e.CompensationSkipRequested,
) -> None:
    """Do what somebody else asked this engine for."""
    state = await _stuck(host, request.saga_id, request.step)
    do = retry_here if isinstance(request, e.CompensationRetryRequested) else skip_here
    await do(host, partition, state, request.step, request.reason, request.actor)


async def _stuck(host: Host, saga_id: str, step: str) -> SagaState:
    """The saga's state, if this step's compensation is stuck."""
    state = await current_state(host.log, host.store, saga_id)
    if state is None:
        raise SagaNotFound(saga_id, host.log.name)
    if not state.ended:
        raise SagaStillRunning(saga_id, state.status)
    stuck = stuck_steps(state)
    if step not in stuck:
        raise StepNotFound(saga_id, step, stuck, "has no stuck compensation of step")
    if state.branch:
        raise RequestRefusedError(
            f"the effects of saga {saga_id!r} belong to its branch {state.branch!r} now"
        )
    return state


def stuck_steps(state: SagaState) -> tuple[str, ...]:
    """Steps whose compensation failed for good and was not let be."""
    return tuple(
        name
        for name, step in state.steps.items()
        if step.status == "compensation_failed" and not step.undo_skipped
    )


async def retry_here(
    host: Host, partition: Partition, state: SagaState, step: str, reason: str, actor: str
) -> SagaHandle:
    """Claim the saga and undo the step."""
    goal = state.goal or "rolled_back"
    back = e.CompensationStarted(join_names([step]), goal, reason, actor)
    definition = host.registry.by_name(state.saga_name)
    return host.resume(partition, state, definition, (await host.claim(state, "retry"), back))


async def skip_here(
    host: Host, partition: Partition, state: SagaState, step: str, reason: str, actor: str
) -> SagaHandle:
    """Claim the saga and write down that the step's effect is to stay."""
    definition = host.registry.by_name(state.saga_name)
    skipped = e.StepSkipped(step, reason, actor)
    handle = host.resume(partition, state, definition, (await host.claim(state, "skip"), skipped))
    await handle.result()
    return handle
