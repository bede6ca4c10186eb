"""Requests to the engine that serves a saga's partition, and the answers to them.

A request is durable before anything comes of it, and its id makes asking twice the same as asking
once. It is answered by the fact that it leads to, or by a RequestRefused.
"""

from __future__ import annotations

import asyncio
import logging

from sagaz_es.core import events as e
from sagaz_es.core.children import Caller
from sagaz_es.core.decide import open_pivots
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import split_object
from sagaz_es.engine import children, compensations, decisions, replayer, starting
from sagaz_es.engine.admission import Waiting
from sagaz_es.engine.asking import LINE_SECONDS, ask
from sagaz_es.engine.decisions import ASK_AGAIN_S
from sagaz_es.engine.host import Host
from sagaz_es.engine.partitions.partition import Partition
from sagaz_es.errors import (
    EngineClosed,
    HandingOver,
    LostOwnership,
    RequestRefusedError,
    SagaEnded,
    SagaError,
    SagaIdTaken,
    SagaIsRecorded,
    SagaNotFound,
    StorageFailed,
    UnknownSagaName,
)
from sagaz_es.ports import Record
from sagaz_es.reading.lookup import current_state, waiting_start
from sagaz_es.sagas.inputs import new_id
from sagaz_es.sagas.result import SagaHandle

logger = logging.getLogger("sagaz_es.engine")

ANSWER_AGAIN_S = 0.5
"""How soon a request is tried again that the log or the store stood in the way of."""


async def start_elsewhere(
    host: Host, saga_name: str, saga_id: str, text: str, actor: str
) -> SagaHandle:
    """Start a saga that is another engine's: by the partition of its id, or by its class.

    Law (durable is started): once the request stands in the log there is a handle, whether
    anybody serves the saga now or later. Source: docs/decisions/0050.

    Raises what it is refused with at once, such as SagaIdTaken; later, the handle does.
    """
    state = await current_state(host.log, host.store, saga_id)
    if state is not None and state.saga_name != saga_name:
        raise SagaIdTaken(saga_id, saga_name, state.saga_name)
    if state is None:
        request = e.StartRequested(
            new_id(),
            saga_id,
            host.clock.now(),
            actor,
            saga_name=saga_name,
            context=text,
        )
        fact = await ask(
            host, request, lambda fact: isinstance(fact, e.SagaStarted), patience_s=LINE_SECONDS
        )
        if fact is None:
            host.outcomes.tell_of_silence(saga_id, saga_name)
            return host.outcomes.handle(saga_id, saga_name, begun=False)
        if isinstance(fact, e.SagaStarted) and fact.cause != request.request_id:
            await starting.check_name(host, saga_id, saga_name)  # somebody else was first
    return host.outcomes.handle(saga_id, saga_name)


async def cancel(host: Host, saga_id: str, reason: str, actor: str) -> None:
    """See Engine.cancel."""
    request = e.CancelRequested(new_id(), saga_id, host.clock.now(), actor, reason)

    async def goes_back() -> bool:
        """Whether it does so already. Raises what the request would be refused with."""
        state = await known_state(host, saga_id)
        if state.ended and state.status != "cancelled":
            raise SagaEnded(saga_id, state.status, "cancelled")
        if state.recorded:
            raise SagaIsRecorded(saga_id, "cancelled")
        if state.status in ("cancelled", "compensating"):
            return True
        await host.check_fits(saga_id)  # refused now, it is not in the log for later
        return False

    async def went_back() -> bool:
        return bool((await known_state(host, saga_id)).goal)

    while not await goes_back():
        runner, home = host.awake(saga_id), host.partition_for(saga_id)
        if runner is None or (home is None and runner.awaits_pivot):
            try:
                await ask(host, request, _goes_back, goes_back, confirmed=went_back)
            except TimeoutError:
                await _tell_what_it_waits_for(host, saga_id)
                raise
            return
        try:
            if home is not None and runner.awaits_pivot:
                await _after_pivot(host, home, request)
            else:
                await runner.request_cancel(request)
            return
        except LostOwnership:
            host.check_open(saga_id)  # it goes on elsewhere, and may go back there
            await asyncio.sleep(ASK_AGAIN_S)


async def _after_pivot(host: Host, home: Partition, request: e.CancelRequested) -> None:
    """Until a cancel is decided that a pivot comes before, which may take as long as the pivot's
    retries do. It is, although who asked goes away, and although this engine does."""
    deciding = host.spawn(_decided(host, home, request), f"cancel {request.saga_id}")
    await asyncio.wait([deciding])
    if deciding.cancelled():
        raise EngineClosed(request.saga_id)
    error = deciding.result()
    if error is not None:
        raise error


async def _decided(host: Host, home: Partition, request: e.CancelRequested) -> Exception | None:
    """Put a cancel in the log and carry it out; what it was refused with, or what came between."""
    home.held[request.request_id] = home.position  # ours to answer when we read it
    error: Exception | None = None
    try:
        await host.log.append(home.index, [request])
        runner = host.awake(request.saga_id)
        if runner is None:
            raise LostOwnership(request.saga_id)
        await runner.request_cancel(request)
    except RequestRefusedError as refused:
        error = refused
        await _refuse(host, home, request, refused)
    except (SagaError, OSError) as failure:
        error = failure
    if not home.leaving:  # else it is the next owner's
        home.held.pop(request.request_id, None)
    return error


async def _tell_what_it_waits_for(host: Host, saga_id: str) -> None:
    """Raises TimeoutError if a cancel that nobody has answered yet waits for a pivot, or, where an
    engine runs, for a step."""
    state = await known_state(host, saga_id)
    for pivot in sorted(open_pivots(state, state.step_graph)):
        raise TimeoutError(
            f"saga {saga_id!r} is in its pivot {pivot!r}: the cancel stays in the log, and is "
            "decided once the outcome of the pivot is known"
        ) from None
    runs = [n for n, s in state.steps.items() if s.status == "executing" and not s.child_start]
    if runs and await host.log.members(group=host.config.group) > 0:
        raise TimeoutError(
            f"saga {saga_id!r} has not gone back within {host.config.request_seconds:g} s: its "
            f"step {runs[0]!r} has not ended. It may not accept that it is cancelled, or no engine "
            "with the saga's class serves its partition; the cancel stays in the log"
        ) from None


def _goes_back(fact: e.Fact) -> bool:
    return isinstance(fact, e.CompensationStarted)


async def known_state(host: Host, saga_id: str) -> SagaState:
    """The saga now; `pending` where its start waits in the log. Raises SagaNotFound."""
    state = await current_state(host.log, host.store, saga_id)
    if state is None:
        start = await waiting_start(host.log, saga_id, host.config.group)
        if start is None:
            raise SagaNotFound(saga_id, host.log.name)
        state = SagaState(saga_id=saga_id, saga_name=start.saga_name)
    return state


class Answers:
    """Serves the requests that reach the partitions of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        host.admission.answer = self._answer

    def __call__(self, partition: Partition, record: Record) -> None:
        """Begin to answer; the request holds the partition's mark until that is done."""
        request = record.entry
        assert isinstance(request, e.Request)
        if isinstance(request, e.StartRequested):
            if self._host.serves(request.saga_name):
                self._host.admission.line_up(Waiting.of(record, request), request)
            else:
                partition.held.pop(request.request_id, None)  # another group's
            return
        self._host.spawn(self._answer(partition, request), f"request {request.request_id}")

    async def _answer(self, partition: Partition, request: e.Request) -> None:
        while True:
            try:
                if await self._host.answers(request):
                    await self._begin(partition, request)
                # Another group's request does not hold this group's mark.
                break
            except (LostOwnership, EngineClosed):
                error: Exception | None = None  # it is carried on elsewhere
            except (StorageFailed, OSError) as failure:
                error = failure  # ours, not the request's: it is answered once that is over
            except (SagaError, TypeError, ValueError) as refused:
                if self._is_left(request, refused):
                    return  # the request holds the mark, and the next owner finds it
                await _refuse(self._host, partition, request, refused)
                break
            if partition.leaving or partition.closed:
                return  # the next owner answers; until then the request holds the mark
            if error is not None:
                logger.warning("request %s: %s; trying again", request.request_id, error)
            await asyncio.sleep(ASK_AGAIN_S if error is None else ANSWER_AGAIN_S)
        partition.held.pop(request.request_id, None)

    def _is_left(self, request: e.Request, error: Exception) -> bool:
        """Whether another engine is to answer, which has the class. Not where a saga here waits for
        it: a child runs in its parent's partition, which nobody else serves meanwhile."""
        if self._host.config.refuse_unknown:
            return False
        if isinstance(request, e.StartRequested) and request.caller_saga_id:
            return False
        return any(isinstance(each, UnknownSagaName) for each in (error, error.__cause__))

    async def _begin(self, partition: Partition, request: e.Request) -> None:
        if isinstance(request, e.CancelRequested | decisions.Decision):
            await self._taken_over(partition, request)
        if isinstance(request, decisions.Decision):
            await self._host.admission.at_once(request.saga_id)
        await self._do(partition, request)

    async def _taken_over(self, partition: Partition, request: e.Request) -> None:
        """Wait while the saga is another engine's, whose death may not be noticed yet. Raises
        HandingOver; and why its code is not here or does not fit, to who asks while that is so.

        Who asked before this engine came is not there to hear of it, and meant the code of then:
        that waits in the log for an engine that can.
        """
        saga_id = request.saga_id
        asks_now = partition.held.get(request.request_id, 0) >= partition.served_from
        while (cell := partition.cells.get(saga_id)) is not None and not cell.ours:
            if partition.leaving:
                raise HandingOver(saga_id)
            if asks_now and (unfit := self._host.refusal_of(saga_id)) is not None:
                raise unfit
            await asyncio.sleep(0.05)
        if cell is None and (stopped := self._host.refusal_of(saga_id)) is not None:
            raise stopped if asks_now else HandingOver(saga_id)

    async def _do(self, partition: Partition, request: e.Request) -> None:
        host = self._host
        if isinstance(request, e.StartRequested):
            definition = host.registry.by_name(request.saga_name)
            await host.check_context(definition, split_object(request.context), "at its start")
            await starting.start_here(
                host,
                partition,
                definition,
                request.saga_id,
                request.context,
                actor=request.actor,
                cause=request.request_id,
                caller=Caller(
                    request.caller_saga_id, request.caller_step, request.caller_replay_id
                ),
            )
        elif isinstance(request, e.CancelRequested):
            if await host.admission.at_once(request.saga_id, request):
                return
            runner = host.awake(request.saga_id)
            if runner is None:
                state = await current_state(host.log, host.store, request.saga_id)
                if state is not None and request.request_id in state.answered:
                    return
                if state is not None and state.recorded and not state.ended:
                    raise SagaIsRecorded(request.saga_id, "cancelled")
                status = "unknown" if state is None else state.status
                raise SagaEnded(request.saga_id, status, "cancelled")
            await runner.request_cancel(request)
        elif isinstance(request, e.ReplayRequested):
            await replayer.answer(host, request)
        elif isinstance(request, e.UndoRequested):
            if request.caller_saga_id:
                await children.answer(host, partition, request)
            else:
                await replayer.answer_undo(host, request)
        elif isinstance(request, e.CompensationRetryRequested | e.CompensationSkipRequested):
            await compensations.answer(host, partition, request)
        elif isinstance(request, decisions.Decision):
            await decisions.answer(host, request)
        else:
            raise RequestRefusedError(f"{type(request).__name__} is not served by this version")


async def _refuse(host: Host, home: Partition, request: e.Request, error: Exception) -> None:
    refused = e.RequestRefused(
        request.request_id,
        request.saga_id,
        host.clock.now(),
        error=type(error).__name__,
        message=str(error),
    )
    await home.refuse(refused)
    if isinstance(request, e.StartRequested):
        host.outcomes.refuse(request.saga_id, error)
