"""Which partitions this process serves, and the sagas that change hands with them.

From an assignment to running sagas: read each partition from its low-water mark, claim what is
unfinished, go on. A partition that is lost while alive is handed over: nothing new starts there,
and running steps finish (to a limit). So only a crash can run a step twice, and only the steps that
were under way.

Law (no step holds a partition): what does not end at the limit is cancelled; whose step does not
accept that is lost to its runner, without SagaReleased, and nothing that it tells later is
appended. Source: docs/decisions/0057.

Law (nothing under way, nothing to wait for): the new owner waits while the log has the start of an
attempt without its end, and the old one is alive and has not written SagaReleased. Everything else
it claims at once: the acceptance rule sees to it that one of the two goes on. Source:
docs/decisions/0053.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING

import msgspec

from sagaz_es.core import events as e
from sagaz_es.core.state import SagaState
from sagaz_es.engine import starting
from sagaz_es.engine.groups import with_last
from sagaz_es.engine.other_owners import OtherOwners
from sagaz_es.engine.partitions.accepted import Accepted
from sagaz_es.engine.partitions.cell import Cell
from sagaz_es.engine.partitions.partition import Partition
from sagaz_es.engine.takeover import read_from_mark
from sagaz_es.errors import (
    ConfigurationError,
    DefinitionChanged,
    DefinitionError,
    LogReplaced,
    LogTruncated,
    MigrationFailed,
    SagaError,
    UnknownSagaName,
)
from sagaz_es.ports import ProjectionStore, Record
from sagaz_es.reading.lookup import asked, current_state, is_indexed
from sagaz_es.reading.projection import verify_checkpoint

if TYPE_CHECKING:
    from sagaz_es.engine.host import Host

logger = logging.getLogger("sagaz_es.engine")

MAX_CHECKPOINTS = 100  # old sagas carried forward in one round of housekeeping
TAKEN_AT_ONCE = 500  # unfinished sagas of a partition that are being claimed
CUT_OFF_SECONDS = 1.0  # for a step to accept that it is cancelled, twice
RELEASE_SECONDS = 5.0  # for the last word about a partition that is handed over


class Serving:
    """Takes partitions over and hands them over, for a host; the Owner of each Partition."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._rebalance = asyncio.Lock()
        self._wanted: frozenset[int] = frozenset()
        self._unfit: dict[str, tuple[int, SagaError]] = {}
        """Sagas that stay unfinished here, as their code is not here or does not fit: at which
        sequence, and why."""
        self._strange: dict[str, list[str]] = {}
        """Unfinished sagas of names that are not here, found just now, to be told of together."""
        self._told: set[str] = set()  # those: their take-over need not say so
        self._others = OtherOwners(host.config.group, host.config.takeover_seconds)

    # --- assignment ---

    async def on_change(self, wanted: frozenset[int]) -> None:
        """Serve exactly these partitions; returns when the others are handed over."""
        async with self._rebalance:
            self._wanted = wanted
            self._others.forget()
            lost = [index for index in self._host.partitions if index not in wanted]
            await _all(self._let_go(index) for index in lost)
            if not self._host.closing:
                gained = [index for index in sorted(wanted) if index not in self._host.partitions]
                with self._host.admission.held_back():
                    await _all(self._begin_to_serve(index) for index in gained)
                self._tell_of_strangers()
            self._host.on_serving(frozenset(self._host.partitions))

    async def _begin_to_serve(self, index: int) -> None:
        try:
            await self._serve(index)
        except (LogTruncated, LogReplaced) as error:
            logger.critical("partition %d is not served: %s", index, error)
            self._host.spawn(self._until_served(index, whole=True), f"serve {index}")

    async def _until_served(self, index: int, *, whole: bool) -> None:
        """Serve a partition that could not be, as soon as it can be, if it is still ours to."""
        delay = 0.5
        while True:
            async with self._rebalance:
                served = index in self._host.partitions
                if served or index not in self._wanted or self._host.closing:
                    return
                try:
                    await self._serve(index, whole=whole)
                except (LogTruncated, LogReplaced) as error:  # until the store is made anew
                    logger.critical("partition %d is not served: %s", index, error)
                except (SagaError, OSError) as error:
                    logger.error("partition %d is not served yet: %s", index, error)
                else:
                    self._tell_of_strangers()
                    self._host.on_serving(frozenset(self._host.partitions))
                    return
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0)

    async def _check_store(self, index: int, *, must_answer: bool) -> None:
        """A store that knows more than the log would answer for what nobody else has. Raises
        LogTruncated, LogReplaced; what the store raises, if it `must_answer`."""
        log, store = self._host.log, self._host.store
        if store is not None:
            if must_answer:
                checkpoint = await store.checkpoint(index)
            else:
                checkpoint = await asked(log, store, index, lambda: store.checkpoint(index))
            if checkpoint is not None:
                await verify_checkpoint(log, checkpoint, store.name)

    async def _serve(self, index: int, *, whole: bool = False) -> None:
        """Read a partition from its mark, or `whole`; take its unfinished sagas over, answer open
        requests."""
        # Before the fold: a store that is made anew while it is read looks well behind it.
        await self._check_store(index, must_answer=whole)
        found = await read_from_mark(
            self._host.log,
            self._host.store,
            index,
            group=self._host.config.group,
            classes=self._host.registry.names,
            serves=self._host.serves,
            whole=whole,
        )
        # And behind it: the log may have lost what the store knew meanwhile.
        await self._check_store(index, must_answer=whole)
        writer = self._host.writer_of(index, anew=whole or found.mark > 0)
        partition = Partition(index, self._host.log, writer, self)
        partition.note, partition.old_mark = found.note, found.mark
        partition.last_read = found.last
        if found.mark:
            self._host.lost_tails.add(index)
        partition.position, partition.known_from = found.position, found.start
        partition.served_from = found.position
        partition.seen, partition.answered = found.ended, found.answered
        partition.refused = found.refused
        for saga_name, saga_ids in found.by_class.items():
            self._are_strange(saga_name, saga_ids)
        for saga_id in sorted(found.unfinished, key=found.begins.__getitem__):  # the oldest first
            cell = partition.cells[saga_id] = found.unfinished[saga_id]
            cell.quiet_since = asyncio.get_running_loop().time()
        self._host.partitions[index] = partition
        partition.start()
        # Not what is heard from here on: a late copy of a start looks like a new saga.
        cells = deque(partition.cells.items())
        for saga_id, _ in cells:
            self._host.admission.expect(saga_id)  # before any start that waits
        self._host.spawn(self._take_all_over(partition, cells), f"take-over of partition {index}")
        for event, offset in found.branched:
            self.on_branched(partition, event, offset)
        for record in found.requests:
            if getattr(record.entry, "request_id", "") not in found.answered:
                self.on_request(partition, record)
        for waiting in found.starts:
            if (
                waiting.request_id not in found.answered
                and waiting.request_id not in partition.held
            ):
                partition.held[waiting.request_id] = waiting.offset
                self._host.admission.line_up(waiting)

    async def _take_all_over(self, partition: Partition, cells: deque[tuple[str, Cell]]) -> None:
        """Some at a time: of very many that wait for something, only those cost a task."""

        async def some() -> None:
            while cells:
                saga_id, cell = cells.popleft()
                try:
                    await self._take_over(partition, cell)
                except Exception:
                    logger.exception("saga %s was not taken over", saga_id)
                finally:
                    self._host.admission.unexpect(saga_id)

        await asyncio.gather(*(some() for _ in range(min(len(cells), TAKEN_AT_ONCE))))

    async def _take_over(self, partition: Partition, cell: Cell) -> None:
        """Claim an unfinished saga and go on with it, if its code is here and fits."""
        state = cell.state
        try:
            definition = self._host.registry.by_name(state.saga_name)
        except UnknownSagaName as error:
            unknown = UnknownSagaName(error.saga_name, error.known, state.saga_id)
            self._stays_unfinished(state, unknown)
            return
        except (DefinitionError, ConfigurationError) as error:  # a factory's saga shows it now
            self._stays_unfinished(state, error)
            return
        await self._let_its_owner_finish(partition, state)
        if state.ended or cell.ours or partition.leaving or state.saga_id not in partition.cells:
            return
        try:
            claimed = await self._host.claim(state, "take-over")
        except (DefinitionChanged, MigrationFailed) as error:
            self._stays_unfinished(state, error)
            return
        if state.ended or cell.ours or partition.leaving or state.saga_id not in partition.cells:
            return
        cell.ours = True
        # What is held, or taken back at once, runs no step again.
        # Not what was refused, or whose fact stands, which may have been heard since.
        answered = (partition.answered, state.answered)
        waiting = (r for r in cell.asked if not any(r.request_id in ids for ids in answered))
        asked, cell.asked = next(waiting, None), ()
        first: tuple[e.Fact, ...] = (claimed,)
        if isinstance(asked, e.PauseRequested):
            first = (claimed, e.SagaPaused(asked.reason, asked.actor, asked.request_id))
        runner = self._host.carry_on(partition, cell, definition, first, waits_for_room=True)
        runner.ready = asyncio.get_running_loop().create_future()
        if isinstance(asked, e.CancelRequested):
            runner.cancel_first(asked)
        elif isinstance(asked, e.PauseRequested):
            runner.posted_first(asked.request_id)
        await asyncio.wait([runner.ready])  # until the claim stands, or is lost

    async def _let_its_owner_finish(self, partition: Partition, state: SagaState) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._host.config.drain_seconds + 5
        while state.under_way and not state.released and loop.time() < deadline:
            # What it joined with it is told behind its first partitions; or it is closed.
            await self._host.joined.wait()
            membership = self._host.membership
            assert membership is not None
            if not await membership.predecessor_is_alive(partition.index):
                return
            if partition.leaving or self._host.closing:
                return
            await asyncio.sleep(0.05)

    async def _refold(self, partition: Partition, cell: Cell) -> None:
        """What was heard in passing may be a late copy: the whole fold says what the saga is."""
        saga_id = cell.state.saga_id
        state = await current_state(self._host.log, self._host.store, saga_id)
        if cell.ours or partition.cells.get(saga_id) is not cell:
            return
        if state is None or state.ended:
            partition.cells.pop(saga_id, None)
            if state is not None:
                self._remember(partition, state)
        elif state.sequence >= cell.state.sequence:
            cell.state, cell.accepted = state, Accepted.of(state)

    def _remember(self, partition: Partition, state: SagaState) -> None:
        """A saga has ended elsewhere, or is left to others: its id is taken, and a step that waits
        for it asks again."""
        accepted = partition.seen[state.saga_id] = Accepted.of(state)
        accepted.end_offset = partition.position
        if state.saga_id in partition.waiting:
            self.on_awaited(partition, state.saga_id, None)

    async def _let_go(self, index: int) -> None:
        """Start nothing new there, let running steps finish, write SagaReleased, forget it."""
        partition = self._host.partitions.pop(index)
        partition.leaving = True
        self._host.give_up_waiting(partition)
        runners = [
            (saga_id, self._host.runners[saga_id], self._host.tasks[saga_id])
            for saga_id, cell in partition.cells.items()
            if cell.ours and saga_id in self._host.runners
        ]
        for _, runner, _ in runners:
            runner.drain()
        late = set[asyncio.Task[None]]()
        if runners:
            tasks = [task for _, _, task in runners]
            _, late = await asyncio.wait(tasks, timeout=self._host.config.drain_seconds)
            partition.closed = True
            for task in late:
                task.cancel()
            await self._cut_off(late)
        # What was cut off, behind all that it has told; and what others do (a child taken back).
        cut_off = {saga_id for saga_id, _, task in runners if task in late}
        releases = [
            self._host.make_runner(partition, cell)
            for saga_id, cell in partition.cells.items()
            if cell.ours and not cell.lost and (cell.under_way or saga_id in cut_off)
        ]
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await asyncio.gather(
                    *(runner.release() for runner in releases if not runner.state.ended),
                    return_exceptions=True,
                )
                await self._commit_mark(partition)
        except TimeoutError:
            logger.warning(
                "partition %d: the log did not take the last word about it (%d sagas whose steps "
                "were cut off, and the low-water mark) within %g s; the next owner goes on from "
                "what stands there",
                index,
                len(releases),
                RELEASE_SECONDS,
            )
        await partition.stop()
        self._moved(partition)
        self._host.turns.look_again()

    async def _cut_off(self, late: set[asyncio.Task[None]]) -> None:
        """Of tasks that were cancelled: a clean-up that lasts is cancelled once more. What then
        still runs is left to itself, and nothing of it counts."""
        if late:
            _, late = await asyncio.wait(late, timeout=CUT_OFF_SECONDS)
        for task in late:
            task.cancel()
        if late:
            _, late = await asyncio.wait(late, timeout=CUT_OFF_SECONDS)
        if late:
            for saga_id, task in list(self._host.tasks.items()):
                if task in late:
                    await self._host.abandon(saga_id)

    def _moved(self, partition: Partition) -> None:
        """Its sagas go on elsewhere; a parked one has no task that would tell."""
        for saga_id in partition.cells:
            if saga_id not in self._host.tasks:
                self._host.outcomes.moved(saga_id)

    # --- told by a partition ---

    def serves(self, saga_name: str) -> bool:
        """Whether sagas of this name are this engine's to carry on."""
        return self._host.serves(saga_name)

    def on_request(self, partition: Partition, record: Record) -> None:
        """Somebody asked for something in a partition that is served here."""
        request = record.entry
        assert isinstance(request, e.Request)
        if request.request_id in partition.answered:
            refused = partition.refused.get(request.request_id)
            if refused is not None and not partition.leaving:  # who asks again hears it again
                self._host.spawn(partition.refuse(refused), f"refuse {request.request_id}")
        elif request.request_id not in partition.held:  # else it is being answered
            # It holds the mark also where it is left to the next owner.
            partition.held[request.request_id] = record.offset
            cell = partition.cells.get(request.saga_id)
            if cell is not None and not cell.ours:
                cell.hear(request)
            if not partition.leaving:
                self._host.answer(partition, record)

    def on_lost(self, partition: Partition, cell: Cell, event: e.Event, offset: int) -> None:
        """Another engine's claim was accepted, or its word that the saga is replayed: stop at once,
        whatever runs here."""
        saga_id = event.saga_id
        task = self._host.tasks.get(saga_id)
        if task is not None:
            task.cancel()
            self._host.spawn(self._cut_off({task}), f"end of {saga_id} here")
        else:
            self._host.outcomes.moved(saga_id)
        partition.held[f"lost {saga_id}"] = max(cell.begin, 0)
        if partition.leaving:
            return  # to whoever has the partition now; the mark stays before it
        logger.warning("saga %s was taken over by another engine", saga_id)
        self._others.heard(event.saga_name, saga_id)
        self._host.spawn(self._look_at(partition, event, offset), f"adopt {saga_id}")

    def on_taken_up(self, partition: Partition, event: e.Event, offset: int) -> None:
        """A saga that had ended is replayed or undone by the word of an engine that served the
        partition before us, and may be dead by now."""
        if f"lost {event.saga_id}" not in partition.held:
            partition.held[f"lost {event.saga_id}"] = offset
            self._host.spawn(self._look_at(partition, event, offset), f"adopt {event.saga_id}")

    async def _look_at(self, partition: Partition, event: e.Event, offset: int) -> None:
        state = await self._adopt(partition, event.saga_id)
        branch = getattr(event.fact, "branch_saga_id", "")
        if state is not None and branch and state.branch == branch:
            self.on_branched(partition, event, offset)

    async def _adopt(self, partition: Partition, saga_id: str) -> SagaState | None:
        """Watch a saga of our partition that another engine runs, to take it over if that dies;
        the saga as it is. Who hands the partition over before that leaves it to the next owner:
        until the saga is known here, or has ended, it holds the mark."""
        while not partition.closed:
            try:
                state = await current_state(self._host.log, self._host.store, saga_id)
            except (SagaError, OSError) as error:
                logger.warning("saga %s: %s; looking again", saga_id, error)
                await asyncio.sleep(0.5)
                continue
            known = partition.seen.get(saga_id)
            if state is not None and saga_id not in partition.cells:
                if known is not None and state.sequence < known.sequence:
                    continue  # more of it was heard meanwhile
                if state.ended or state.recorded or not self.serves(state.saga_name):
                    self._remember(partition, state)
                else:
                    begin = partition.held[f"lost {saga_id}"]
                    cell = Cell(state, Accepted.of(state), ours=False, begin=begin)
                    if not state.released:
                        cell.quiet_since = asyncio.get_running_loop().time()
                    partition.cells[saga_id] = cell
                    partition.seen.pop(saga_id, None)
            del partition.held[f"lost {saga_id}"]
            return state
        return None

    def on_foreign(self, partition: Partition, cell: Cell) -> None:
        """Somebody else started a saga in our partition: housekeeping takes it over if it is
        silent."""
        logger.info("saga %s was started here by another engine", cell.state.saga_id)
        self._others.heard(cell.state.saga_name, cell.state.saga_id)
        if cell.state.saga_id in partition.waiting:
            self.on_awaited(partition, cell.state.saga_id, None)

    def on_awaited(self, partition: Partition, saga_id: str, cell: Cell | None) -> None:
        """Something became of a saga that a step waits for; with its cell: it has ended."""
        waiter = partition.waiting[saga_id]
        if cell is None:
            self._host.children.on_news(waiter)
        else:
            del partition.waiting[saga_id]
            self._host.children.on_ended(partition, cell, waiter)

    def on_branched(self, partition: Partition, event: e.Event, offset: int) -> None:
        """A branch that may not have begun: begin it. Until then it holds the mark."""
        fact = event.fact
        assert isinstance(fact, e.ReplayBranched)
        if fact.branch_saga_id in partition.cells or fact.branch_saga_id in partition.seen:
            return
        partition.held[fact.branch_saga_id] = offset
        if not partition.leaving:
            self._host.spawn(self._begin_branch(partition, event), f"branch {fact.branch_saga_id}")

    async def _begin_branch(self, partition: Partition, event: e.Event) -> None:
        fact = event.fact
        assert isinstance(fact, e.ReplayBranched)
        try:
            await starting.begin_branch(
                self._host, partition, fact.branch_saga_id, branch_start(fact), event.saga_name
            )
        except (UnknownSagaName, DefinitionChanged, MigrationFailed) as error:
            # It stays held: an engine that has the class begins it.
            logger.warning("branch %s has not begun: %s", fact.branch_saga_id, error)

    def on_broken(self, partition: Partition, error: BaseException) -> None:
        """A partition cannot go on: fold it anew, and claim."""
        logger.critical("partition %d is read anew: %s", partition.index, error)
        if isinstance(error, LogTruncated):
            self._host.lost_tails.add(partition.index)
        self._host.spawn(self._again(partition, error), f"restart {partition.index}")

    async def _again(self, partition: Partition, error: BaseException) -> None:
        index = partition.index
        async with self._rebalance:
            if self._host.partitions.get(index) is not partition or self._host.closing:
                return
            del self._host.partitions[index]
            await self._drop(partition)
        await self._until_served(index, whole=isinstance(error, LogTruncated))

    async def _drop(self, partition: Partition) -> None:
        """Stop everything of a partition at once; what the log has of it is claimed anew."""
        partition.closed = True
        self._host.give_up_waiting(partition)
        stopped = set[asyncio.Task[None]]()
        for saga_id, cell in partition.cells.items():
            if cell.ours and saga_id in self._host.tasks:
                cell.lost = True
                stopped.add(self._host.tasks[saga_id])
        for task in stopped:
            task.cancel()
        self._host.spawn(self._cut_off(stopped), f"end of sagas of partition {partition.index}")
        await partition.stop()
        self._moved(partition)

    # --- housekeeping ---

    async def keep_house(self) -> None:
        while True:
            await asyncio.sleep(self._host.config.housekeeping_seconds)
            for partition in list(self._host.partitions.values()):
                try:
                    await self._commit_mark(partition)
                    await self._forget(partition)
                except (SagaError, OSError) as error:
                    logger.warning("housekeeping: %s", error)
                self._checkpoint_old(partition)
                for cell in list(partition.cells.values()):
                    await self._take_over_silent(partition, cell)

    async def _take_over_silent(self, partition: Partition, cell: Cell) -> None:
        now = asyncio.get_running_loop().time()
        if cell.ours or now - cell.quiet_since <= self._host.config.takeover_seconds:
            return
        cell.quiet_since = now
        try:
            await self._refold(partition, cell)
            await self._take_over(partition, cell)
        except (SagaError, OSError) as error:
            logger.warning(
                "saga %s was not taken over: %s; trying again", cell.state.saga_id, error
            )

    def _checkpoint_old(self, partition: Partition) -> None:
        """Carry old unfinished sagas forward, so that they do not hold the mark back: a take-over
        stays short whatever the age of the oldest saga."""
        oldest = self._host.clock.now() - int(self._host.config.checkpoint_seconds * 1e6)
        due = [
            cell
            for cell in partition.cells.values()
            if cell.ours
            and not cell.lost
            and not cell.ended
            and 0 <= cell.begin
            and (
                max(cell.started_at, cell.checkpointed_at) < oldest
                # A mark is never lowered: before it nobody would look for them.
                or cell.begin < partition.old_mark <= partition.position
            )
        ]
        for cell in due[:MAX_CHECKPOINTS]:
            cell.checkpointed_at = self._host.clock.now()
            self._host.spawn(self._checkpoint(partition, cell), f"checkpoint {cell.state.saga_id}")

    async def _checkpoint(self, partition: Partition, cell: Cell) -> None:
        saga_id = cell.state.saga_id
        runner = self._host.runners.get(saga_id) or self._host.make_runner(partition, cell)
        cell.begin = await runner.checkpoint()
        if saga_id not in self._host.runners:
            cell.put_aside()

    async def _forget(self, partition: Partition) -> None:
        log, store = self._host.log, self._host.store
        if is_indexed(log):
            partition.forget_before(partition.position)  # the log itself answers for any id
            return
        answer = None
        if store is not None:
            answer = await asked(log, store, partition.index, lambda: _place(store, partition))
        if answer is not None:
            partition.forget_before(answer)
        partition.forget_most()

    async def _commit_mark(self, partition: Partition) -> None:
        if self._host.membership is not None:
            try:
                await self._host.membership.commit_low_water_mark(
                    partition.index,
                    partition.low_water_mark(),
                    with_last(partition.note, partition.last_known()),
                )
            except (SagaError, OSError) as error:
                logger.warning("the low-water mark was not committed: %s", error)

    def _are_strange(self, saga_name: str, saga_ids: list[str]) -> None:
        """Remember unfinished sagas of a class that is not here, to be told of with the others: a
        program that runs one class of a log with many would warn of each, each time."""
        if saga_name not in self._host.registry:
            new = [saga_id for saga_id in saga_ids if saga_id not in self._unfit]
            if new:
                self._strange.setdefault(saga_name, []).extend(new)
                self._told.update(new)

    def _tell_of_strangers(self) -> None:
        strange, self._strange = self._strange, {}
        total = sum(map(len, strange.values()))
        if total == 1:
            ((name, (saga_id,)),) = strange.items()
            error = UnknownSagaName(name, self._host.registry.names, saga_id)
            about = {"saga_id": saga_id}
            logger.warning("saga %s stays unfinished: %s", saga_id, error, extra=about)
        elif total:
            listed = ", ".join(
                f"{len(ids)} of {name!r} (such as {ids[0]})"
                for name, ids in list(strange.items())[:10]
            )
            listed += ", …" if len(strange) > 10 else ""
            logger.warning(
                "%d sagas stay unfinished, as this engine has no class of their name: %s",
                total,
                listed,
            )

    def _stays_unfinished(self, state: SagaState, error: SagaError) -> None:
        known = self._unfit.get(state.saga_id)
        self._unfit[state.saga_id] = state.sequence, error.with_traceback(None)
        told = state.saga_id in self._told
        self._told.discard(state.saga_id)
        if known is None and not (told and isinstance(error, UnknownSagaName)):  # not each round
            about = {"saga_id": state.saga_id}
            # Of a class that is not here others may have the code; of one that is, nobody has it.
            level = logging.WARNING if isinstance(error, UnknownSagaName) else logging.ERROR
            logger.log(level, "saga %s stays unfinished: %s", state.saga_id, error, extra=about)
        self._host.outcomes.tell_followers(state.saga_id)

    def refusal_of(self, saga_id: str) -> SagaError | None:
        """Why a saga of a partition that is served here is not carried on with this code, unless
        another engine has gone on with it; None: it is, or nobody has looked yet."""
        partition = self._host.partition_for(saga_id)
        cell = partition.cells.get(saga_id) if partition is not None else None
        sequence, error = self._unfit.get(saga_id, (0, None))
        if cell is None or cell.ours or cell.state.sequence != sequence:
            return None
        return type(error)(*error.args) if error is not None else None  # it may be raised often


async def _place(store: ProjectionStore, partition: Partition) -> int:
    """How far a store is with a partition."""
    checkpoint = await store.checkpoint(partition.index)
    return checkpoint.next_offset if checkpoint is not None else 0


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """Until each has ended; raises what the first one raised that failed. What goes on behind the
    caller's back would serve a partition a second time when the caller tries again."""
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


_START = msgspec.json.Decoder(e.SagaStarted)


def branch_start(fact: e.ReplayBranched) -> e.SagaStarted:
    """The first fact of the branch that a ReplayBranched decided."""
    return _START.decode(fact.start)
