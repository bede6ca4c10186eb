"""Children: sagas that a step of another saga, their parent, starts, waits for, and takes back.

The parent's stream decides: `ChildStarted` names the child and what it starts with. From then on
the parent's runner asks here, once in each of its lives and again whenever the child's partition
(which is its own) has news: the child is begun if it is not there, else its end is told. Nothing of
this is remembered over a restart but what stands in the log.

Law (one fact decides): no child begins before its ChildStarted is accepted, and each begins once.
Law (no orphan): a parent does not end before its children have.
Source: docs/decisions/0045.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from sagaz_es.core import events as e
from sagaz_es.core.children import Caller, next_child_id
from sagaz_es.core.decide import completed_pivots, has_gone_back, take_back
from sagaz_es.core.effects import Effect
from sagaz_es.core.plan import ChildNow
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import join_object, split_object
from sagaz_es.engine import starting
from sagaz_es.engine.taken_ids import exists
from sagaz_es.errors import (
    ChildIdTaken,
    HandingOver,
    LogBusy,
    LogForbidden,
    LogFull,
    LostOwnership,
    SagaEnded,
    SagaError,
    SagaNotFound,
    SagaStillRunning,
    StorageFailed,
    UnknownSagaName,
)
from sagaz_es.reading.lookup import current_state, head_of_family
from sagaz_es.sagas.fan_out import RESULTS, child_name, one_of

if TYPE_CHECKING:
    from sagaz_es.engine.host import Host
    from sagaz_es.engine.partitions.cell import Cell
    from sagaz_es.engine.partitions.partition import Partition

logger = logging.getLogger("sagaz_es.engine")
T = TypeVar("T")

RETRY_S, MAX_RETRY_S = 0.5, 30.0
AWAY = (StorageFailed, OSError, LogBusy, LogForbidden, LogFull)
MAX_AWAY_S = 1.0
"""Log or store may be back at any moment; other causes take longer."""

Answer: TypeAlias = SagaState | e.RequestRefused | None
"""How a saga ended, or why nothing comes of what was asked; None: not yet, there will be news."""


class Children:
    """The children of the sagas that run in this process."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ended: dict[str, SagaState] = {}  # heard of, and not asked for yet

    def new_id(self, parent: SagaState, step: str) -> str:
        """The id for the next child of a step."""
        partition_of = self._host.log.partition_of
        home = partition_of(parent.saga_id)
        used = parent.step(step).child
        return next_child_id(parent.saga_id, step, used, lambda found: partition_of(found) == home)

    # --- asked by the parent's runner ---

    async def ended(self, parent: SagaState, step: str) -> Answer:
        """How the child of a step has ended; begins it if it is not there."""
        return await self._insist(parent, lambda home: self._child(home, parent, step))

    async def taken_back(self, parent: SagaState, step: str, attempt: int) -> Answer:
        """The head of the child's family once it has ended and will not go back any further; asks
        it to go back, once for each attempt."""
        return await self._insist(parent, lambda home: self._back(home, parent, step, attempt))

    async def _insist(
        self, parent: SagaState, ask: Callable[[Partition], Awaitable[Answer]]
    ) -> Answer:
        """Until there is an answer: a log or store that is away for a while is waited for."""
        delay = RETRY_S
        while True:
            home = self._host.partition_for(parent.saga_id)
            if home is None or home.leaving:
                return None  # the next owner asks
            try:
                return await ask(home)
            except LostOwnership:
                return None
            except (SagaError, OSError) as error:
                logger.warning("saga %s, about its child: %s; trying again", parent.saga_id, error)
                most = MAX_AWAY_S if isinstance(error, AWAY) else MAX_RETRY_S
            await asyncio.sleep(min(delay, most))
            delay = min(2 * delay, MAX_RETRY_S)

    async def _child(self, home: Partition, parent: SagaState, step: str) -> Answer:
        child = await self._begun(home, parent, step)
        if child is None or (isinstance(child, SagaState) and not child.ended):
            return None
        home.waiting.pop(child.saga_id, None)
        return child

    async def _begun(
        self,
        home: Partition,
        parent: SagaState,
        step: str,
        cancel: e.CancelRequested | None = None,
    ) -> Answer:
        """The child as it stands, begun if it was not (and cancelled at once, if it is here); None:
        an engine elsewhere begins it."""
        child_id = parent.step(step).child
        # Before anything is looked at: from here on there is news of whatever happens to it.
        home.waiting[child_id] = (parent.saga_id, step)
        child = await self._now(home, child_id)
        if child is None:
            refused = home.refused.get(_start_id(child_id))
            if refused is not None:
                return refused
            refused = await self._begin(home, parent, step, cancel)
            if refused is not None:
                return refused
            cell = home.cells.get(child_id)
            return None if cell is None else cell.state
        caller = parent.step(step).owner or parent.saga_id  # a branch takes back what it inherited
        if (child.caller_saga_id, child.caller_step) != (caller, step):
            home.waiting.pop(child_id, None)
            error = ChildIdTaken(child_id, caller)
            return e.RequestRefused("", child_id, error="ChildIdTaken", message=str(error))
        return child

    async def _now(self, home: Partition, saga_id: str) -> SagaState | None:
        heard, known = self._ended.pop(saga_id, None), home.seen.get(saga_id)
        cell = home.cells.get(saga_id)
        if heard is not None and cell is None:
            if known is None or known.sequence <= heard.sequence:
                return heard  # otherwise it has gone on since
        if cell is not None:
            await starting.begun(self._host, saga_id)
            return cell.look()
        if not await exists(self._host, home, saga_id):
            return None
        cell = home.cells.get(saga_id)
        return (
            cell.look() if cell else await current_state(self._host.log, self._host.store, saga_id)
        )

    async def _begin(
        self, home: Partition, parent: SagaState, step: str, cancel: e.CancelRequested | None
    ) -> e.RequestRefused | None:
        host, now = self._host, parent.step(step)
        start = split_object(now.child_start)
        name = child_name(parent.step_graph.by_name[step].child, start)
        try:
            definition = host.registry.by_name(name)
            await host.check_context(definition, start, "at its start")
        except UnknownSagaName:
            request = e.StartRequested(
                _start_id(now.child),
                now.child,
                host.clock.now(),
                parent.actor,
                saga_name=name,
                context=now.child_start,
                caller_saga_id=parent.saga_id,
                caller_step=step,
                caller_replay_id=replay_of(parent),
            )
            await self._request(home, request)
            return None
        except SagaError as error:  # its class is here and cannot be made, or takes other data
            kind = type(error).__name__
            return e.RequestRefused("", now.child, error=kind, message=str(error))
        # No await between this look and the new cell: of two who begin it at once one does.
        if now.child not in home.cells and now.child not in home.seen:
            caller = Caller(parent.saga_id, step, replay_of(parent))
            text = now.child_start
            who = parent.actor
            await starting.begin(
                host, home, definition, now.child, text, actor=who, caller=caller, cancel=cancel
            )
        return None

    async def _request(self, home: Partition, request: e.Request) -> None:
        """Ask whoever has the class, unless that was asked and is not answered."""
        if request.request_id not in home.held and request.request_id not in home.answered:
            await self._host.log.append(home.index, [request])

    async def _back(self, home: Partition, parent: SagaState, step: str, attempt: int) -> Answer:
        child_id = parent.step(step).child
        # A branch that inherited it asks anew: what its parent asked may have been in vain.
        whose = f" for {parent.saga_id}" if parent.step(step).owner else ""
        request_id = f"take back {child_id}{whose} {attempt}"
        asked = (
            self._host.clock.now(),
            parent.undo_actor,
            f"saga {parent.saga_id!r}, whose step {step!r} it is, goes back",
        )
        cancel = e.CancelRequested(request_id, child_id, *asked)
        child = await self._begun(home, parent, step, cancel)
        if child is None:
            return None
        if isinstance(child, e.RequestRefused):
            home.waiting.pop(child_id, None)
            return SagaState(saga_id=child_id, status="cancelled")  # nothing of it has begun
        head = child
        if child.branch:
            found = await head_of_family(self._host.log, self._host.store, child)
            if found is None:
                raise SagaStillRunning(child.branch, "pending", child.saga_id)
            head = found
            home.waiting[head.saga_id] = (parent.saga_id, step)
            cell = home.cells.get(head.saga_id)
            head = head if cell is None else cell.state
        if head.ended and (
            has_gone_back(head) or request_id in head.answered or behind_pivot(head)
        ):
            answer: Answer = head
        elif head.ended and request_id in home.refused:
            answer = home.refused[request_id]
        else:
            request = e.UndoRequested(
                request_id, child_id, *asked, caller_saga_id=child.caller_saga_id
            )
            await self._request(home, request)
            return None
        home.waiting.pop(child.saga_id, None)
        home.waiting.pop(head.saga_id, None)
        return answer

    # --- news ---

    def on_ended(self, home: Partition, cell: Cell, waiter: tuple[str, str]) -> None:
        """A saga that a step waits for has ended."""
        if cell.ours and cell.state.ended:
            self._ended[cell.state.saga_id] = cell.state
        if not self.on_news(waiter):
            self._ended.pop(cell.state.saga_id, None)

    def on_news(self, waiter: tuple[str, str]) -> bool:
        """Something became of a child, or of a request about it: its parent asks again."""
        parent, step = waiter
        runner = self._host.awake(parent)
        if runner is None:
            return False
        runner.ask_again(step)
        return True


def replay_of(state: SagaState) -> str:
    """The replay that a saga is part of, as its branch or as a child in it; empty: none."""
    return state.replay_id or state.caller_replay_id


def behind_pivot(state: SagaState) -> tuple[str, ...]:
    """The completed pivots that forbid a saga to go back."""
    return () if state.pivots_released else completed_pivots(state, state.step_graph)


async def children_now(host: Host, effects: Iterable[Effect]) -> dict[str, ChildNow]:
    """What the children are now whose effects these are, by their ids."""
    found: dict[str, ChildNow] = {}
    for effect in effects:
        child = None
        if effect.child:
            child = await current_state(host.log, host.store, effect.child)
        if child is None:
            continue
        head = await head_of_family(host.log, host.store, child)
        if head is None:
            found[child.saga_id] = ChildNow(child.branch, "pending")
            continue
        result = keys_set = ""
        if head is not child and head.status == "completed":
            texts = await host.large_values.load(head.context)
            if effect.keys_set:  # only what was asked for
                asked = split_object(effect.keys_set)
                texts = {key: texts[key] for key in asked if key in texts}
                kept = await host.large_values.off_load(texts, effect.step)
                keys_set = join_object(kept)
            text = texts[RESULTS] if one_of(head.saga_name) else join_object(texts)
            result = await host.large_values.off_load_one(text, "result", effect.step)
        status = head.status
        if status in ("rolled_back", "cancelled") and not has_gone_back(head):
            status = "undone"
        found[child.saga_id] = ChildNow(head.saga_id, status, behind_pivot(head), result, keys_set)
    return found


def _start_id(child_id: str) -> str:
    return f"start {child_id}"


# --- asked of the child's engine ------------------------------------------------------------------


async def answer(host: Host, home: Partition, request: e.UndoRequested) -> None:
    """Lead a child back because its parent goes back: cancel it while it runs, undo it when it has
    ended. Raises what it is refused with."""
    while True:
        child = await current_state(host.log, host.store, request.saga_id)
        if child is None or child.caller_saga_id != request.caller_saga_id:
            raise SagaNotFound(request.saga_id, host.log.name)
        head = await head_of_family(host.log, host.store, child)
        if head is None:
            await _look_again(home, child.branch)
            continue
        if request.request_id in head.answered or has_gone_back(head):
            return
        if not await _is_taken_back(host, home, request):
            return  # it had gone back, and was replayed on its own since
        cell = home.cells.get(head.saga_id)
        if cell is None and head.ended:
            try:
                await _undo(host, home, head, request)
                return
            except SagaStillRunning:
                pass  # another engine has taken it up
        if cell is not None and cell.ours:
            runner = host.awake(head.saga_id)
            if runner is not None:
                cancel = e.CancelRequested(
                    request.request_id,
                    head.saga_id,
                    request.requested_at,
                    request.actor,
                    request.reason,
                )
                try:
                    await runner.request_cancel(cancel)
                except SagaEnded:
                    pass  # meanwhile: look again
                else:
                    return
        await _look_again(home, head.saga_id)


async def _look_again(home: Partition, saga_id: str) -> None:
    """Soon: it is another engine's, or begins. Raises HandingOver."""
    if home.leaving:
        raise HandingOver(saga_id)
    await asyncio.sleep(0.05)


async def _undo(host: Host, home: Partition, head: SagaState, request: e.UndoRequested) -> None:
    definition = host.registry.by_name(head.saga_name)
    claimed = await host.claim(head, "take-back")
    back = take_back(
        head,
        definition.graph,
        reason=request.reason,
        actor=request.actor,
        cause=request.request_id,
    )
    await starting.resume(host, home, head, definition, (claimed, back))


async def _is_taken_back(host: Host, home: Partition, request: e.UndoRequested) -> bool:
    """Whether a step of its caller, or of the newest branch of that, waits for it to go back. An
    engine that takes the partition over may read a request that has had its answer."""
    cell = home.cells.get(request.caller_saga_id)
    caller = cell.look() if cell is not None else None
    if caller is None or caller.branch:
        caller = await current_state(host.log, host.store, request.caller_saga_id)
        caller = caller and await head_of_family(host.log, host.store, caller)
    return caller is not None and any(
        step.child == request.saga_id and step.status == "compensating"
        for step in caller.steps.values()
    )
