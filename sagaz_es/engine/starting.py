"""How a saga begins here: for a caller, for a step that waits for it, as a branch, or once more.

Law (one cell, one saga): from the last look whether a saga is there to its new cell nothing is
awaited, so of ten who start one id at once one makes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sagaz_es import errors
from sagaz_es.core import events as e
from sagaz_es.core.children import NOBODY, Caller
from sagaz_es.core.state import SagaState
from sagaz_es.engine.changes import branch_state
from sagaz_es.engine.partitions.accepted import Accepted
from sagaz_es.engine.partitions.cell import Cell
from sagaz_es.engine.partitions.partition import Partition
from sagaz_es.engine.sharing import shared
from sagaz_es.engine.taken_ids import exists
from sagaz_es.errors import HandingOver, LostOwnership, SagaStillRunning
from sagaz_es.reading.lookup import current_state

if TYPE_CHECKING:
    from sagaz_es.engine.host import Host
    from sagaz_es.engine.runner import SagaRunner
    from sagaz_es.sagas.definition import Definition
    from sagaz_es.sagas.result import SagaHandle

logger = logging.getLogger("sagaz_es.engine")


async def wait_in_line(
    host: Host, partition: Partition, definition: Definition, saga_id: str, text: str, actor: str
) -> SagaHandle:
    """Start a saga once there is room; returns once that is durable. Raises HandingOver,
    SagaIdTaken."""
    waiting = host.admission.find(saga_id)
    if waiting is None:
        await host.admission.wait(partition, saga_id, definition.name, text, actor)
    elif waiting.saga_name != definition.name:
        raise errors.SagaIdTaken(saga_id, definition.name, waiting.saga_name)
    return host.outcomes.handle(saga_id, definition.name)


async def start_here(
    host: Host,
    partition: Partition,
    definition: Definition,
    saga_id: str,
    text: str,
    *,
    actor: str = "",
    cause: str = "",
    caller: Caller = NOBODY,
) -> SagaHandle:
    """Start a saga, or give the one of this id. Raises SagaIdTaken, unless it has a `caller`,
    which looks itself."""
    known = await exists(host, partition, saga_id)
    # No await between this look and the new cell: of ten starts at once one makes it.
    if known or saga_id in partition.cells or saga_id in partition.seen:
        await begun(host, saga_id)
        if not caller.saga_id:
            await check_name(host, saga_id, definition.name)
        return host.outcomes.handle(saga_id)
    return await begin(
        host, partition, definition, saga_id, text, actor=actor, cause=cause, caller=caller
    )


async def check_name(host: Host, saga_id: str, saga_name: str) -> None:
    """Raises SagaIdTaken if this is the id of a saga of another name."""
    partition = host.partition_for(saga_id)
    cell = partition.cells.get(saga_id) if partition is not None else None
    if cell is not None:
        name = cell.look().saga_name
    else:
        state = await current_state(host.log, host.store, saga_id)
        name = state.saga_name if state is not None else ""
    if name and name != saga_name:
        raise errors.SagaIdTaken(saga_id, saga_name, name)


async def begun(host: Host, saga_id: str) -> None:
    """Wait until a saga that begins here stands in the log, if it does not yet."""
    runner = host.runners.get(saga_id)
    if runner is not None and runner.ready is not None:
        await _accepted(host, runner)


async def begin(
    host: Host,
    partition: Partition,
    definition: Definition,
    saga_id: str,
    text: str,
    *,
    actor: str = "",
    cause: str = "",
    caller: Caller = NOBODY,
    cancel: e.CancelRequested | None = None,
) -> SagaHandle:
    """Begin a saga that does not exist. `caller`: of a child. With `cancel` it begins and ends, and
    nothing of it runs."""
    fact = e.SagaStarted(
        definition.graph.fingerprint,
        definition.graph.text,
        text,
        definition.snapshot_policy,
        host.clock.now() + definition.deadline_us if definition.deadline_us else 0,
        actor=actor,
        cause=cause,
        caller_saga_id=caller.saga_id,
        caller_step=caller.step,
        caller_replay_id=caller.replay_id,
    )
    state = SagaState(
        saga_id=saga_id,
        saga_name=definition.name,
        caller_saga_id=caller.saga_id,
        caller_replay_id=caller.replay_id,
    )
    return await _launch(host, partition, definition, state, fact, cancel=cancel)


async def _launch(
    host: Host,
    partition: Partition,
    definition: Definition,
    state: SagaState,
    *first: e.Fact,
    cancel: e.CancelRequested | None = None,
) -> SagaHandle:
    """Make the first event of a new saga; returns once it is accepted.

    Raises HandingOver; nothing happened then.
    """
    if partition.leaving:
        raise HandingOver(state.saga_id)
    cell = Cell(state, Accepted(), ours=True)
    partition.cells[state.saga_id] = cell
    runner = host.carry_on(partition, cell, definition, first)
    cancelled = host.admission.begun(state.saga_id) or cancel
    if cancelled is not None:
        runner.cancel_first(cancelled)
    runner.ready = asyncio.get_running_loop().create_future()
    handle = host.outcomes.handle(state.saga_id)
    await _accepted(host, runner)
    return handle


async def _accepted(host: Host, runner: SagaRunner) -> None:
    """Until the saga stands in the log, whoever has put it there."""
    assert runner.ready is not None
    try:
        await shared(runner.ready)
    except LostOwnership:
        if not runner.cell.lost or runner.cell.begin < 0:  # given up: it may stand nowhere
            raise


async def begin_branch(
    host: Host,
    partition: Partition,
    saga_id: str,
    start: e.SagaStarted,
    saga_name: str,
    *,
    fresh: bool = False,
) -> SagaHandle:
    """Start a branch whose ReplayBranched is in the log, however often log and store fail: it is
    decided. It holds the mark until it has begun; of a partition that is handed over, the next
    owner begins it. Starting it twice is starting it once.

    `fresh`: this engine has just decided it under a new id. So memory knows whether it began,
    whatever store and log have lost of what was before.
    """
    definition = host.registry.by_name(saga_name)
    while True:
        try:
            first: list[e.Fact] = [start]
            has_begun = not fresh and await exists(host, partition, saga_id)
            if not has_begun and start.definition != definition.graph.fingerprint:
                # Decided by an engine with other code, which died before the branch began.
                state = branch_state(saga_id, saga_name, start)
                first.append(await host.claim(state, "branch"))
            # No await between this look and the new cell: of two who begin it at once one does.
            if has_begun or saga_id in partition.cells or saga_id in partition.seen:
                handle = host.outcomes.handle(saga_id)
            else:
                state = SagaState(saga_id=saga_id, saga_name=saga_name, replay_id=start.replay_id)
                handle = await _launch(host, partition, definition, state, *first)
            await begun(host, saga_id)  # by whoever was first: until then it stands nowhere
        except LostOwnership:
            if partition.leaving or partition.closed:
                return host.outcomes.handle(saga_id)
            await asyncio.sleep(0)  # another engine was first: look again
        except (errors.StorageFailed, errors.HistoryGone, OSError) as error:
            logger.warning("branch %s has not begun: %s; trying again", saga_id, error)
            if partition.leaving or partition.closed:
                return host.outcomes.handle(saga_id)
            await asyncio.sleep(0.5)
        else:
            partition.held.pop(saga_id, None)
            return handle


async def resume(
    host: Host,
    partition: Partition,
    state: SagaState,
    definition: Definition,
    first: Sequence[e.Fact],
) -> SagaHandle:
    """Take an ended saga up again (an undo); `first` begins with the claim. Returns once that is
    accepted. Raises SagaStillRunning, HandingOver; nothing happened then. LostOwnership: the saga
    has become another engine's first, and the claim is rejected; or nobody knows."""
    await partition.looked_at(state.saga_id)
    if partition.leaving:
        raise HandingOver(state.saga_id)
    # No await between this look and the new cell: of two who take it up at once one does.
    other = partition.cells.get(state.saga_id)
    if other is not None or partition.knows_more(state):
        raise SagaStillRunning(state.saga_id, state.status if other is None else other.state.status)
    cell = Cell(state, Accepted.of(state), ours=True, begin=partition.position)
    partition.cells[state.saga_id] = cell
    partition.seen.pop(state.saga_id, None)
    runner = host.carry_on(partition, cell, definition, first)
    runner.ready = asyncio.get_running_loop().create_future()
    handle = host.outcomes.handle(state.saga_id)
    await shared(runner.ready)  # not that the saga stands, which it did before: that the claim does
    return handle


async def has_answered(host: Host, request: e.Request) -> bool:
    """Whether a saga that runs here does so with the answer to this request, which stands."""
    runner = host.runners.get(request.saga_id)
    if runner is None:
        return False
    if runner.ready is not None:
        await shared(runner.ready)
    return request.request_id in runner.state.answered
