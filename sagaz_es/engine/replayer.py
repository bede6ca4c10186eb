"""Replays: from a plan to a branch, and back.

The way of a replay: the plan is made from the named saga and the head of its family; ReplayBranched
in the head's stream decides it (of two at one time the acceptance rule lets one win) and carries
the
branch's whole first fact; then the branch is started under its id, idempotently, in the same
partition. Killed between the two, whoever reads the ReplayBranched starts the branch.

Law (audit first): the ReplayBranched is durable before anything of the branch runs.
Law (nothing doubled): the table of effects comes from the head, which the sequence in the plan
pins.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from sagaz_es.codec.values import from_text
from sagaz_es.core import events as e
from sagaz_es.core.decide import completed_pivots, executed_effects
from sagaz_es.core.effects import load_effects, standing
from sagaz_es.core.fold import Verdict as FoldVerdict
from sagaz_es.core.fold import advance, judge
from sagaz_es.core.plan import ReplayPlan, make_plan
from sagaz_es.core.state import SagaState, SagaStatus
from sagaz_es.core.texts import join_names, join_object, names, split_object
from sagaz_es.engine import starting
from sagaz_es.engine.asking import ask
from sagaz_es.engine.changes import branch_state, check_replayable, graph_of_branch, migrated
from sagaz_es.engine.children import children_now
from sagaz_es.engine.decisions import ASK_AGAIN_S
from sagaz_es.engine.host import Host
from sagaz_es.engine.partitions.accepted import Accepted
from sagaz_es.engine.partitions.cell import Cell
from sagaz_es.engine.partitions.partition import Partition
from sagaz_es.errors import (
    ConfigurationError,
    HandingOver,
    LostOwnership,
    NotFound,
    PlanBlocked,
    PlanOutdated,
    RecordedStillRunning,
    ReplayError,
    RequestRefusedError,
    SagaError,
    SagaStillRunning,
    SnapshotNotFoundError,
    StorageFailed,
    UndoRefused,
    UnknownSagaName,
)
from sagaz_es.reading.lookup import current_state, find_branch, head_of_family
from sagaz_es.sagas.definition import Definition
from sagaz_es.sagas.inputs import context_texts
from sagaz_es.sagas.result import SagaHandle
from sagaz_es.snapshots import from_us

_START = msgspec.json.Decoder(e.SagaStarted)


class ReplayStatus(StrEnum):
    """Where a replay stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class ReplayResult:
    """What became of a replay. `status` is `success` when the branch completed (or, dry, when it
    could run); `error_message` says why not, in the branch's failing step's words."""

    replay_id: str
    original_saga_id: str
    new_saga_id: str | None
    checkpoint_step: str
    status: ReplayStatus
    plan: ReplayPlan | None = None
    initiated_by: str = ""
    context_override: dict[str, Any] | None = None
    error_message: str | None = None
    dry_run: bool = False
    force_failure: bool = False
    saga_status: SagaStatus | None = None  # of the branch
    created_at: datetime | None = None
    completed_at: datetime | None = None

    @property
    def replay_status(self) -> ReplayStatus:
        """As sagaz spells `status`."""
        return self.status

    @property
    def error(self) -> str | None:
        """As the command line spells `error_message`."""
        return self.error_message

    @property
    def success(self) -> bool:
        return self.status is ReplayStatus.SUCCESS

    def to_dict(self) -> dict[str, Any]:
        """A plain record: ids and times as text."""
        return {
            "replay_id": self.replay_id,
            "original_saga_id": self.original_saga_id,
            "new_saga_id": self.new_saga_id,
            "checkpoint_step": self.checkpoint_step,
            "status": str(self.status),
            "replay_status": str(self.status),
            "initiated_by": self.initiated_by,
            "context_override": self.context_override,
            "error_message": self.error_message,
            "dry_run": self.dry_run,
            "force_failure": self.force_failure,
            "created_at": self.created_at.isoformat() if self.created_at else None,
            "completed_at": self.completed_at.isoformat() if self.completed_at else None,
        }


# --- planning -------------------------------------------------------------------------------------


async def plan(
    host: Host,
    saga_id: str,
    from_step: str,
    *,
    context_override: Mapping[str, Any] | None = None,
    force_failure: bool = False,
    allow: Iterable[str] = (),
    actor: str = "",
    reason: str = "",
    dry_run: bool = False,
) -> ReplayPlan:
    """See Engine.plan_replay. `actor`, `reason` and `dry_run` are noted with what is refused."""
    overrides = context_texts(context_override)
    overrides = await host.large_values.off_load(overrides)
    allowed = _names_of(allow)
    try:
        return await _plan(host, saga_id, from_step, overrides, force_failure, allowed)
    except SnapshotNotFoundError as error:
        await note(
            host,
            saga_id,
            from_step,
            "refused",
            overrides=join_object(overrides) if overrides else "",
            actor=actor,
            reason=reason,
            dry_run=dry_run,
            error=str(error),
        )
        raise
    except (StorageFailed, OSError) as error:
        raise ReplayError(f"the replay of {saga_id!r} could not be prepared: {error}") from error


def _names_of(allow: Any) -> tuple[str, ...]:
    if isinstance(allow, str):
        return (allow,)
    if not isinstance(allow, Iterable):
        raise ConfigurationError(f'allow: step names, such as ["ship"], not {allow!r}')
    return tuple(allow)


async def _plan(
    host: Host,
    saga_id: str,
    from_step: str,
    overrides: Mapping[str, str],
    force_failure: bool,
    allow: tuple[str, ...],
) -> ReplayPlan:
    named = await current_state(host.log, host.store, saga_id)
    if named is None:
        raise SnapshotNotFoundError(saga_id, from_step, f"there is no such saga in {host.log.name}")
    head = await head_of_family(host.log, host.store, named)
    if head is None:
        raise SagaStillRunning(named.branch, "pending", named.saga_id)
    definition = None
    try:
        definition = host.registry.by_name(named.saga_name)
    except UnknownSagaName as error:
        if not named.graph:  # its services did not say how its steps hang together
            raise ReplayError(
                f"saga {saga_id!r} was recorded without a definition, and {error}"
            ) from error
    graph = graph_of_branch(named, head, definition)
    how: dict[str, Any] = {
        "allow": allow,
        "force_failure": force_failure,
        "children": await children_now(host, standing(head)),
    }
    plan = make_plan(named, head, graph, from_step, overrides=overrides, **how)
    if definition is None:
        return plan
    if graph.fingerprint == named.definition:
        if overrides:
            await _check_context(host, plan, definition)
        return plan
    begun = branch_state(named.saga_id, named.saga_name, _START.decode(plan.start))
    begun.definition = named.definition
    keys_set = await migrated(begun, definition, host.large_values)
    if not keys_set:
        return plan
    return make_plan(named, head, graph, from_step, overrides=overrides, migrated=keys_set, **how)


async def _check_context(host: Host, plan: ReplayPlan, definition: Definition) -> None:
    """Raises ContextMismatch where the context that the branch begins with is not of its type."""
    if definition.context_type is not None:
        begun = branch_state(plan.saga_id, plan.saga_name, _START.decode(plan.start))
        where = "after the override" if plan.overrides else "at its start"
        await host.check_context(definition, begun.context, where)


async def note(
    host: Host,
    saga_id: str,
    point: str,
    status: str,
    *,
    overrides: str = "",
    actor: str = "",
    reason: str = "",
    dry_run: bool = False,
    error: str = "",
    replay_id: str = "",
) -> None:
    """Keep an attempt in the audit trail, whatever becomes of it."""
    replay_id = replay_id or str(uuid.uuid4())
    logged = e.ReplayLogged(
        replay_id,
        saga_id,
        host.clock.now(),
        actor,
        reason,
        replay_id=replay_id,
        point=point,
        overrides=overrides,
        dry_run=dry_run,
        status=status,
        error_message=error,
    )
    await host.log.append(host.log.partition_of(saga_id), [logged])


# --- running --------------------------------------------------------------------------------------


async def replay(
    host: Host, plan: ReplayPlan, *, actor: str, reason: str, dry_run: bool
) -> ReplayResult:
    """See Engine.replay."""
    replay_id = str(uuid.uuid4())
    result = ReplayResult(
        replay_id,
        plan.saga_id,
        None,
        plan.from_step,
        ReplayStatus.PENDING,
        plan,
        initiated_by=actor,
        context_override=_override_values(plan),
        dry_run=dry_run,
        force_failure=plan.force_failure,
        created_at=from_us(host.clock.now()),
    )
    said: dict[str, Any] = {
        "overrides": plan.overrides,
        "actor": actor,
        "reason": reason,
        "dry_run": dry_run,
        "replay_id": replay_id,
    }
    try:
        await _check_runnable(host, plan, dry_run)
        if not dry_run:
            handle = await _decide(host, plan, replay_id, actor, reason)
    except (SagaError, OSError) as error:
        status = "failed" if dry_run else "refused"
        await note(host, plan.saga_id, plan.from_step, status, error=str(error), **said)
        if not dry_run:
            if isinstance(error, StorageFailed | OSError):
                raise ReplayError(f"the replay could not be prepared: {error}") from error
            raise
        result.status, result.error_message = ReplayStatus.FAILED, str(error)
        result.completed_at = from_us(host.clock.now())
        return result
    if dry_run:
        await note(host, plan.saga_id, plan.from_step, "success", **said)
        result.status = ReplayStatus.SUCCESS
        result.completed_at = from_us(host.clock.now())
        return result
    outcome = await handle.result()
    result.new_saga_id = handle.saga_id
    result.saga_status = outcome.status
    result.completed_at = from_us(host.clock.now())
    if outcome.success:
        result.status = ReplayStatus.SUCCESS
    else:
        result.status = ReplayStatus.FAILED
        result.error_message = str(outcome.error) if outcome.error else str(outcome.status)
        if outcome.status is SagaStatus.CANCELLED:
            result.status = ReplayStatus.CANCELLED
    return result


def _override_values(plan: ReplayPlan) -> dict[str, Any] | None:
    if not plan.overrides:
        return None
    return {key: from_text(text) for key, text in split_object(plan.overrides).items()}


async def _check_runnable(host: Host, plan: ReplayPlan, dry_run: bool = False) -> None:
    """Raises what a run of the plan would be refused with, as far as it can be known before."""
    start = _START.decode(plan.start)
    if plan.head_status in ("pending", "executing", "compensating", "forward_recovery"):
        running = await current_state(host.log, host.store, plan.head_saga_id)
        if running is not None and running.recorded:
            raise RecordedStillRunning(plan.head_saga_id)
        raise SagaStillRunning(plan.head_saga_id, plan.head_status, plan.saga_id)
    if plan.blocked:
        reasons = tuple(step.reason for step in plan.steps if step.step in plan.blockers)
        raise PlanBlocked(plan.saga_id, plan.blockers, reasons)
    head = await current_state(host.log, host.store, plan.head_saga_id)
    if head is None or head.sequence != plan.head_sequence:
        raise PlanOutdated(plan.saga_id, _what_moved(head))
    try:
        definition = host.registry.by_name(plan.saga_name)
    except UnknownSagaName as error:
        if dry_run or host.leaves_to_others(plan.saga_name):
            return  # a plan needs no code; who has it checks it
        raise ReplayError(f"saga {plan.saga_id!r} cannot be replayed: {error}") from error
    if plan.saga_id != plan.head_saga_id:
        named = await current_state(host.log, host.store, plan.saga_id)
        if named is not None:
            check_replayable(named, definition)
    check_replayable(head, definition)
    await _check_context(host, plan, definition)
    if start.definition != definition.graph.fingerprint:
        raise PlanOutdated(plan.saga_id, "it was made for other code than what is registered now")
    if any(effect.child for effect in load_effects(start.standing)):
        overrides = split_object(plan.overrides)
        now = await _plan(
            host, plan.saga_id, plan.from_step, overrides, plan.force_failure, plan.allow
        )
        if now.digest != plan.digest and now.head_sequence == plan.head_sequence:
            raise PlanOutdated(plan.saga_id, "a child of it has moved since the plan was made")


async def _decide(
    host: Host, plan: ReplayPlan, replay_id: str, actor: str, reason: str
) -> SagaHandle:
    """Get the replay decided by the writer of the head, and the branch begun."""
    partition = host.partition_for(plan.head_saga_id)
    if partition is not None and host.serves(plan.saga_name):
        # Whoever asked may go away in the middle: what is decided then still begins.
        deciding = asyncio.ensure_future(
            _branch(host, partition, plan, replay_id, actor, reason, "")
        )
        try:
            return await asyncio.shield(deciding)
        except HandingOver as error:
            raise ReplayError(
                f"its partition was handed over while the replay of {plan.saga_id!r} was being "
                "decided; see whether it has a branch, and plan it again if not"
            ) from error
    request = e.ReplayRequested(
        str(uuid.uuid4()),
        plan.head_saga_id,
        host.clock.now(),
        actor,
        reason,
        replay_id=replay_id,
        parent_saga_id=plan.saga_id,
        point=plan.from_step,
        overrides=plan.overrides,
        allow=join_names(plan.allow) or "[]",
        force_failure=plan.force_failure,
        digest=plan.digest,
    )
    fact = await ask(
        host,
        request,
        lambda fact: isinstance(fact, e.ReplayBranched) and fact.replay_id == replay_id,
        confirmed=lambda: _stands(host, request),
    )
    assert isinstance(fact, e.ReplayBranched)
    return host.outcomes.handle(fact.branch_saga_id)


async def _stands(host: Host, request: e.Request) -> bool:
    """Whether the fold accepts a fact that answers this request."""
    state = await current_state(host.log, host.store, request.saga_id)
    return state is not None and request.request_id in state.answered


async def answer(host: Host, request: e.ReplayRequested) -> None:
    """Decide a replay that somebody else asked this engine for. Raises what it is refused with."""
    plan = await _plan(
        host,
        request.parent_saga_id,
        request.point,
        split_object(request.overrides),
        request.force_failure,
        tuple(names(request.allow)),
    )
    head = await current_state(host.log, host.store, plan.head_saga_id)
    if head is not None and head.replay_id == request.replay_id:
        return  # decided before a restart
    if plan.digest != request.digest:
        raise PlanOutdated(
            request.parent_saga_id, "its history or its code has moved since the plan was made"
        )
    await _check_runnable(host, plan)
    partition = host.partition_for(plan.head_saga_id)
    if partition is None:
        raise RequestRefusedError("the partition was handed over meanwhile; ask again")
    await _branch(
        host,
        partition,
        plan,
        request.replay_id,
        request.actor,
        request.reason,
        request.request_id,
    )


async def _branch(
    host: Host,
    partition: Partition,
    plan: ReplayPlan,
    replay_id: str,
    actor: str,
    reason: str,
    request_id: str,
) -> SagaHandle:
    await partition.looked_at(plan.head_saga_id)
    head = await current_state(host.log, host.store, plan.head_saga_id)
    if head is None or head.sequence != plan.head_sequence:
        raise PlanOutdated(plan.saga_id, _what_moved(head))
    branch_id = host.new_id_in(partition.index)
    start = msgspec.structs.replace(
        _START.decode(plan.start),
        replay_id=replay_id,
        digest=plan.digest,
        actor=actor,
        cause=request_id,
    )
    fact = e.ReplayBranched(
        replay_id,
        branch_id,
        msgspec.json.encode(start).decode(),
        plan.saga_id,
        plan.from_step,
        plan.digest,
        actor,
        reason,
        request_id,
    )
    # Until the branch has begun, nothing moves the mark beyond the fact that decides it.
    partition.held[branch_id] = partition.position
    try:
        await _append_to_head(host, partition, plan, head, fact)
    except PlanOutdated:
        partition.held.pop(branch_id, None)
        raise
    return await starting.begin_branch(
        host, partition, branch_id, start, head.saga_name, fresh=True
    )


async def _append_to_head(
    host: Host, partition: Partition, plan: ReplayPlan, head: SagaState, fact: e.ReplayBranched
) -> None:
    """Append ReplayBranched as the next event of the head; the acceptance rule picks the winner."""
    if plan.head_saga_id in partition.cells or partition.knows_more(head):
        raise PlanOutdated(plan.saga_id, "another replay of it is being decided")
    accepted = Accepted.of(head)
    ours = head.writer == partition.writer
    event = e.Event(
        head.saga_id,
        head.saga_name,
        partition.writer,
        head.epoch if ours else head.epoch + 1,
        head.sequence + 1,
        max(host.clock.now(), head.updated_at),
        fact,
        head.replay_id,
    )
    assert judge(accepted, event) is FoldVerdict.ACCEPTED
    cell = Cell(head, accepted, ours=True, begin=partition.position)
    advance(head, event)
    partition.cells[head.saga_id] = cell
    try:
        await partition.queue.put(cell, [event], 2000 + len(fact.start))
    except LostOwnership:
        if not cell.lost:  # the partition was handed over, and it may stand
            raise HandingOver(plan.head_saga_id) from None
        raise PlanOutdated(plan.saga_id, "another replay of it has won") from None
    finally:
        if partition.cells.get(head.saga_id) is cell:
            partition.finish(cell)


def _what_moved(head: SagaState | None) -> str:
    if head is None:
        return "its head is gone"
    if head.branch:
        return f"it was replayed as {head.branch!r} meanwhile"
    return f"the head of its family, {head.saga_id!r}, has gone on to sequence {head.sequence}"


# --- undoing --------------------------------------------------------------------------------------


async def undo(host: Host, replay_id: str, *, actor: str, reason: str) -> ReplayResult:
    """See Engine.undo_replay."""
    state = await _find_branch(host, replay_id)
    result = ReplayResult(
        state.replay_id,
        state.parent_saga_id,
        state.saga_id,
        state.point,
        ReplayStatus.SUCCESS,
        initiated_by=actor,
        created_at=from_us(host.clock.now()),
    )
    if not state.undone:
        handle = None
        while handle is None:
            try:
                handle = await _undo(host, state, actor, reason)
            except LostOwnership:  # another engine was first, or it is handed over
                host.check_open(state.saga_id)
                await asyncio.sleep(ASK_AGAIN_S)
                state = await _find_branch(host, replay_id)
                if state.undone or (state.goal == "undone" and not state.ended):
                    # It may have been ours that stands.
                    handle = host.outcomes.handle(state.saga_id)
        outcome = await handle.result()
        result.saga_status = outcome.status
        if outcome.compensation_errors:
            result.status = ReplayStatus.FAILED
            result.error_message = "; ".join(map(str, outcome.compensation_errors))
    result.completed_at = from_us(host.clock.now())
    return result


async def _find_branch(host: Host, replay_id: str) -> SagaState:
    state = await find_branch(host.log, host.store, replay_id)
    if state is None:
        raise ReplayNotFound(replay_id)
    return state


class ReplayNotFound(NotFound):
    """No replay of this id."""

    def __init__(self, replay_id: str) -> None:
        super().__init__(replay_id)
        self.replay_id = replay_id

    def __str__(self) -> str:
        return (
            f"there is no replay {self.replay_id!r}; give its replay id, or its branch's saga id "
            "(`sagaz-es saga show` of the original names it)"
        )


async def _undo(host: Host, state: SagaState, actor: str, reason: str) -> SagaHandle:
    partition = host.place_of(state)
    if partition is None:
        request = e.UndoRequested(
            str(uuid.uuid4()),
            state.saga_id,
            host.clock.now(),
            actor,
            reason,
            replay_id=state.replay_id,
        )
        await ask(
            host,
            request,
            lambda fact: e.request_of(fact) == request.request_id,
            confirmed=lambda: _stands(host, request),
        )
        return host.outcomes.handle(state.saga_id)
    return await _undo_here(host, partition, state, actor, reason, "")


async def answer_undo(host: Host, request: e.UndoRequested) -> None:
    """Undo a replay that somebody else asked this engine for."""
    state = await current_state(host.log, host.store, request.saga_id)
    partition = host.partition_for(request.saga_id)
    if state is None or partition is None:
        raise ReplayNotFound(request.replay_id)
    if not state.undone and request.request_id not in state.answered:
        await _undo_here(host, partition, state, request.actor, request.reason, request.request_id)


async def _undo_here(
    host: Host, partition: Partition, state: SagaState, actor: str, reason: str, cause: str
) -> SagaHandle:
    if not state.ended:
        raise SagaStillRunning(state.saga_id, state.status)
    if state.branch:
        raise UndoRefused(state.replay_id, f"it was replayed as {state.branch!r}; undo that first")
    definition = host.registry.by_name(state.saga_name)
    claimed = await host.claim(state, "undo")
    graph = definition.graph
    steps = executed_effects(state, graph)
    pivots = tuple(name for name in completed_pivots(state, graph) if name in steps)
    if pivots:
        raise UndoRefused(state.replay_id, "there is no way back behind its pivots", pivots)
    stuck = tuple(name for name in steps if not graph.by_name[name].compensable)
    if stuck:
        raise UndoRefused(state.replay_id, "these steps have no compensation", stuck)
    own = [effect for effect in standing(state) if effect.step in steps]
    children = await children_now(host, own)
    behind = tuple(
        effect.step for effect in own if effect.child in children and children[effect.child].pivots
    )
    if behind:
        raise UndoRefused(state.replay_id, "the sagas of these steps are behind a pivot", behind)
    back = e.CompensationStarted(
        join_names(steps) or "[]", "undone", reason or "undo of the replay", actor, cause
    )
    return await starting.resume(host, partition, state, definition, (claimed, back))
