"""Who waits for the end of a saga here, and what it is told, whoever brings the saga there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from sagaz_es import errors
from sagaz_es.core import events as e
from sagaz_es.core.state import SagaState
from sagaz_es.engine.asking import refusal
from sagaz_es.engine.parked import is_asked, needs_nobody_else
from sagaz_es.engine.partitions.accepted import ENDINGS
from sagaz_es.engine.sharing import shared
from sagaz_es.errors import EngineClosed, LostOwnership
from sagaz_es.reading.lookup import current_state, refused_start, waiting_start
from sagaz_es.sagas.context import values_of
from sagaz_es.sagas.result import HAS_RESULT, SagaHandle, SagaResult, result_of

if TYPE_CHECKING:
    from sagaz_es.engine.host import Host
    from sagaz_es.ports import Record

logger = logging.getLogger("sagaz_es.engine")

LOOK_AGAIN_S = 10.0
"""Of a log that lost its tail the store may know too much until it is made anew, which nothing in
the log tells: who waits for a saga there looks so often."""

SILENCE_S = 60.0
"""How often is told that a start found nobody to begin it: not for each of many."""

TOLD = ENDINGS | {e.RecoveryDecided, e.StepOutcomeUnknown}
"""Facts after which who waits for a saga may be told how it stands."""


class _Standing:
    """What who waits for a saga has seen of it."""

    __slots__ = ("begun",)

    def __init__(self, begun: bool) -> None:
        self.begun = begun


class Outcomes:
    """What became of sagas, for those who hold a handle on one."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._outcomes: dict[str, asyncio.Future[SagaResult]] = {}
        self._expected: WeakValueDictionary[str, asyncio.Future[SagaResult]] = WeakValueDictionary()
        """Those of sagas that have not begun, or wait, as long as anybody has a handle."""
        self._telling: dict[asyncio.Future[SagaResult], str] = {}
        """Of sagas that have ended, by future: their results are put together."""
        self._followers: dict[str, set[asyncio.Event]] = {}  # who waits for an end in the log
        self._told_of_silence: float | None = None  # loop time

    def close(self) -> None:
        """Whoever still waits gets EngineClosed."""
        for saga_id in self._followers:
            self.tell_followers(saga_id)
        waited_for = [*self._outcomes.items(), *self._expected.items()]
        waited_for += [(saga_id, outcome) for outcome, saga_id in self._telling.items()]
        for saga_id, outcome in waited_for:
            if not outcome.done():
                outcome.set_exception(EngineClosed(saga_id))
                outcome.exception()
        self._outcomes.clear()

    def handle(self, saga_id: str, started: str = "", *, begun: bool = True) -> SagaHandle:
        """A handle on a saga that exists, or whose start waits, whoever runs it. `started`: the
        name that was asked for; another saga may turn out to have the id. `begun`: whether
        anybody has, as far as is known."""
        future = None
        if saga_id in self._host.runners:
            future = self._outcome_future(saga_id)
        else:
            future = self._expected.get(saga_id)
            if future is None and self._host.admission.find(saga_id) is not None:
                future = asyncio.get_running_loop().create_future()
                self._expected[saga_id] = future
        standing = _Standing(begun)
        return SagaHandle(
            saga_id,
            lambda: self._outcome(saga_id, future, started, standing),
            lambda: self._waits_for(saga_id, standing),
        )

    def _waits_for(self, saga_id: str, standing: _Standing) -> str:
        """What a saga that has not begun waits for; empty for one that has."""
        if self._host.admission.find(saga_id) is not None:
            return "its start stands in the log and waits for room in this engine (max_in_flight)"
        return "" if standing.begun else self._nobody(saga_id)

    def _nobody(self, saga_id: str) -> str:
        log = self._host.log
        return (
            "its start stands in the log, and no engine has begun it: does one with room run that "
            f"serves partition {log.partition_of(saga_id)} of {log.name}, and has the saga's "
            "class? Asking again with the same saga_id is safe"
        )

    def tell_of_silence(self, saga_id: str, saga_name: str) -> None:
        """A start stands, and nobody has answered."""
        now, told = asyncio.get_running_loop().time(), self._told_of_silence
        if told is not None and now - told < SILENCE_S:
            return
        self._told_of_silence = now
        about = {"saga_id": saga_id}
        logger.warning(
            "saga %s (%s) waits: %s", saga_id, saga_name, self._nobody(saga_id), extra=about
        )

    def refuse(self, saga_id: str, error: Exception) -> None:
        """Tell who has a handle on a saga whose start waited that it does not run here."""
        future = self._expected.pop(saga_id, None)
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()

    def not_here(self, saga_id: str) -> None:
        """Who waits for a start that stood in line follows the log, if another engine was first."""
        if saga_id not in self._host.runners and not self._host.runs_here(saga_id):
            self.refuse(saga_id, LostOwnership(saga_id))

    def moved(self, saga_id: str) -> None:
        """A saga that was parked here goes on elsewhere: who waits for it follows the log."""
        outcome = self.take(saga_id)
        if outcome is not None and not outcome.done():
            outcome.set_exception(LostOwnership(saga_id))
            outcome.exception()

    def take(self, saga_id: str) -> asyncio.Future[SagaResult] | None:
        """What is to be told of a saga, if anybody has a handle on it."""
        outcome = self._outcomes.pop(saga_id, None)
        if outcome is None and self._expected:
            return self._expected.pop(saga_id, None)
        return outcome

    def expect(self, saga_id: str, outcome: asyncio.Future[SagaResult]) -> None:
        """It was parked: what was taken is told later, if anybody still has the handle then."""
        self._expected[saga_id] = outcome

    def _outcome_future(self, saga_id: str) -> asyncio.Future[SagaResult]:
        future = self._outcomes.get(saga_id)
        if future is None:
            future = self._expected.pop(saga_id, None) if self._expected else None
            future = future or asyncio.get_running_loop().create_future()
            self._outcomes[saga_id] = future
        return future

    async def _outcome(
        self,
        saga_id: str,
        future: asyncio.Future[SagaResult] | None,
        started: str,
        standing: _Standing,
    ) -> SagaResult:
        """The saga's result, whoever brings it to its end."""
        result: SagaResult | None = None
        with self._host.admission.waited_for(saga_id):
            if future is not None:
                try:
                    result = await shared(future)
                except LostOwnership:
                    pass  # handed over, or taken over: the log will tell
            if result is None:
                result = await self.follow(saga_id, started, standing)
        if started and result.saga_name != started:
            raise errors.SagaIdTaken(saga_id, started, result.saga_name)
        return result

    async def follow(
        self, saga_id: str, started: str = "", standing: _Standing | None = None
    ) -> SagaResult:
        """Wait in the log for the end of a saga that runs elsewhere, or whose start waits.
        `started`: a request to start a saga of that name stood in the log. `standing` is told
        whether it has begun.

        Raises what its start was refused with; SagaNotFound where the log lost it, with its tail;
        DefinitionChanged, MigrationFailed, UnknownSagaName where this engine would have to carry
        it on.
        """
        partition = self._host.log.partition_of(saga_id)
        heard = asyncio.Event()

        def hear(record: Record | None) -> None:
            entry = record.entry if record is not None else None
            if (
                record is None
                or isinstance(entry, e.RequestRefused)
                or (isinstance(entry, e.Event) and type(entry.fact) in TOLD)
            ):
                heard.set()

        offset = (await self._host.log.bounds(partition)).end
        tail = self._host.tail(partition)
        tail.listen(saga_id, offset, hear)
        told = False
        self._followers.setdefault(saga_id, set()).add(heard)
        try:
            while not self._host.closing:
                heard.clear()  # before looking: what comes meanwhile may not be in the answer
                state = await current_state(self._host.log, self._host.store, saga_id)
                if standing is not None:
                    standing.begun = state is not None
                if state is None:
                    refused = await refused_start(self._host.log, saga_id, self._host.config.group)
                    if refused is not None:
                        raise refusal(refused)
                    if started or partition in self._host.lost_tails or tail.lost_tail:
                        await self._check_begins(saga_id, started)
                elif needs_nobody_else(state) and not is_asked(self._host, state):
                    return await self.result(state)
                elif (unfit := self._host.refusal_of(saga_id)) is not None:
                    raise unfit
                if state is not None and state.recorded and not told:
                    told = True
                    logger.warning(
                        "saga %s is recorded by other services, no engine runs it: its result "
                        "comes when one of them records its end",
                        saga_id,
                    )
                lost = partition in self._host.lost_tails or tail.lost_tail
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S if lost else None):
                        await heard.wait()
            raise EngineClosed(saga_id)
        finally:
            followers = self._followers[saga_id]
            followers.discard(heard)
            if not followers:
                del self._followers[saga_id]
            tail.ignore(saga_id, hear)

    async def _check_begins(self, saga_id: str, started: str) -> None:
        """Of a saga that the log does not have, and that may have gone with its tail. Raises
        SagaNotFound, unless its start waits."""
        group: str | None = self._host.config.group
        if group and started and started not in self._host.registry:
            group = None  # another group's start: our mark passes it
        if await waiting_start(self._host.log, saga_id, group) is None:
            raise errors.SagaNotFound(saga_id, self._host.log.name)

    def tell_followers(self, saga_id: str) -> None:
        """Who waits in the log for the saga's end looks again."""
        for follower in self._followers.get(saga_id, ()):
            follower.set()

    async def result(
        self,
        state: SagaState,
        error: BaseException | None = None,
        known: dict[str, tuple[str, Any]] | None = None,
    ) -> SagaResult:
        """The result of a saga that has ended, or waits for a person. `known`: see `values_of`."""
        texts: Mapping[str, str] = state.context
        if self._host.large_values.refers(texts):
            texts = await self._host.large_values.load(texts)
        undone: Mapping[str, str] | None = None
        if state.undo:
            undone = {n: step.undo_result for n, step in state.steps.items() if step.undo_result}
            undone = await self._host.large_values.load(undone)
        results: Mapping[str, str] = {
            name: step.result for name, step in state.steps.items() if step.status in HAS_RESULT
        }
        if self._host.large_values.refers(results):
            results = await self._host.large_values.load(results)
        context = values_of(texts, known)
        return result_of(state, context, error, undone, results)

    async def tell(
        self,
        outcome: asyncio.Future[SagaResult],
        state: SagaState,
        error: BaseException | None,
        known: dict[str, tuple[str, Any]] | None = None,
    ) -> None:
        """Give who waits the result, or what hinders it: a large value that cannot be read back.
        Where this engine stops while one is read, it has closed, or the log will tell."""
        failure: Exception | None = None
        self._telling[outcome] = state.saga_id
        try:
            result = await self.result(state, error, known)
            if not outcome.done():
                outcome.set_result(result)
        except Exception as unreadable:
            failure = unreadable
        finally:
            del self._telling[outcome]
            if not outcome.done():
                stopped = EngineClosed if self._host.closing else LostOwnership
                outcome.set_exception(failure or stopped(state.saga_id))
                outcome.exception()  # nobody may be waiting
