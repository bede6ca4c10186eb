"""One partition as its owner sees it: what is unfinished there, one queue of appends, one position.

The way of a fact: a runner numbers it and carries its own state forward (a prediction) and puts it
in the queue, the write loop sends everything that waits as one append (group commit), and the
append is confirmed from its offset: if it directly follows the last offset that was folded, nothing
foreign lies between and every record in it is accepted as predicted. Only a gap is read.

Law (confirm before effects): the future of an append resolves only after its events are accepted.
Law (lost is loud): an accepted foreign fact in a saga of ours fails every append of that saga.
Law (same again): after an unknown outcome the identical events go out again, never renumbered ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, advance, judge
from sagaz_es.core.state import SagaState
from sagaz_es.engine.partitions.accepted import ENDINGS, Accepted, pass_by
from sagaz_es.engine.partitions.append_queue import Append, AppendQueue
from sagaz_es.engine.partitions.cell import LONG_AGO, Cell
from sagaz_es.engine.partitions.known_ids import KnownIds
from sagaz_es.errors import (
    AppendRefused,
    AppendUnknown,
    HistoryGone,
    LogBusy,
    LogForbidden,
    LogFull,
    LogGone,
    LogReplaced,
    LogTruncated,
    LostOwnership,
    SagaError,
    UnstorableValue,
)
from sagaz_es.ports import EventLog, Record, Undecodable
from sagaz_es.reading.projection import identity_at, identity_of, verify_record

logger = logging.getLogger("sagaz_es.engine")

QUIET_S = 0.02
"""Without an append of one's own for so long, what others append is looked for by reading."""
BUSY_S = 1.0
"""And in any case after that: an append may hang, and what others append matters all the more."""
MAX_SEEN = 10_000
"""Ended sagas of a partition that are remembered where no store answers for them."""
MAX_REFUSED = 10_000
"""Refusals of a partition that are remembered, to be told again: one of before is decided anew."""

_AWAITED = ENDINGS | {e.SagaStarted}
"""Facts of another group's child that the parent has to hear of."""

_TAKES_UP = (e.SagaClaimed, e.ReplayBranched)


class Owner(Protocol):
    """What a partition tells the engine about. Calls return at once; the work is the engine's."""

    def serves(self, saga_name: str) -> bool: ...
    def on_request(self, partition: Partition, record: Record) -> None: ...
    def on_lost(self, partition: Partition, cell: Cell, event: e.Event, offset: int) -> None: ...
    def on_foreign(self, partition: Partition, cell: Cell) -> None: ...
    def on_branched(self, partition: Partition, event: e.Event, offset: int) -> None: ...
    def on_taken_up(self, partition: Partition, event: e.Event, offset: int) -> None: ...
    def on_awaited(self, partition: Partition, saga_id: str, cell: Cell | None) -> None: ...
    def on_broken(self, partition: Partition, error: BaseException) -> None: ...


class Partition:
    """See the module. `position` is the next offset that has not been folded."""

    def __init__(self, index: int, log: EventLog, writer: bytes, owner: Owner) -> None:
        self.index = index
        self._log = log
        self.writer = writer
        self._owner = owner
        self.position = 0
        self.known_from = 0  # every saga that began at or after this offset is in cells or seen
        self.served_from = 0  # what stands before it was there when this engine came
        self.cells: dict[str, Cell] = {}
        self.seen: dict[str, Accepted] = {}
        """Sagas since `known_from` that ended here, are recorded, or are another group's: their ids
        must not start again."""
        self.older: KnownIds | None = None
        """Where no store answers, or one that is behind: ids of the sagas that stand in the log
        between `older.since` and `older.upto`. None: nobody has asked."""
        self.held: dict[object, int] = {}
        """Unhandled requests and branches not begun yet, by offset: they hold the mark."""
        self.answered: set[str] = set()  # requests that led to a fact or were refused
        self.refused: dict[str, e.RequestRefused] = {}  # the last refusals, by request
        self.waiting: dict[str, tuple[str, str]] = {}
        """Sagas whose end a step of another one waits for: child -> (parent, step)."""
        self.note = ""  # committed with every mark
        self.last_read = ""  # which record was the last one before `position` (`identity_of`)
        self._last: Record | tuple[int, e.Entry] | None = None  # as it is known since
        self.old_mark = 0  # of a log that lost its tail: sagas before it are to be carried forward
        self.rejected: dict[str, int] = {}
        self.pending_since = 0.0  # since when an append waits for the log; 0: none does
        self.queue = AppendQueue()
        self._sending: list[Append] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._lock = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._appends = 0
        self._missed = False  # a read failed: what the log did meanwhile, nobody has seen
        self._own_read = -1  # the last offset at which an event of ours was read
        self.leaving = False  # being handed over: what runs may end, nothing new begins
        self.closed = False

    # --- appending ---

    async def _write(self) -> None:
        while True:
            if not self.queue.items:
                await self.queue.filled()
            self._sending = self.queue.take()
            self.pending_since = self._loop.time()
            await self._send(self._sending)
            self.pending_since = 0.0
            self._sending = []

    async def _send(self, batch: list[Append]) -> None:
        if not batch:
            return
        entries = (
            batch[0].entries
            if len(batch) == 1
            else [entry for item in batch for entry in item.entries]
        )
        delay, begun_at = 0.05, self.position
        while True:
            try:
                base = await self._log.append(self.index, entries)
                break
            except (LogFull, LogForbidden) as error:
                logger.error("%s; trying again", error)
                starts = [item for item in batch if item.begins]
                for item in starts:  # nothing of them stands: their callers are told at once
                    item.fail(error)
                if starts:
                    await self._send([item for item in batch if item not in starts])
                    return
            except LogBusy as error:
                logger.warning("%s; trying again", error)
            except (AppendRefused, UnstorableValue) as error:  # it never will be written
                await self._split(batch, error)
                return
            except (AppendUnknown, SagaError, OSError) as error:
                logger.warning("%s; appending the identical events again", error)
            except Exception as error:  # a defect, of an adapter or of who made the entry
                await self._split(batch, error)
                return
            await asyncio.sleep(delay)
            delay = min(delay * 2, 1.0)
        self._appends += 1
        count = len(entries)
        last = base + count - 1
        if base < begun_at or (
            last < self.position and type(entries[-1]) is e.Event and self._own_read < last
        ):  # something else had been read there: it is gone
            raise LogTruncated(self.index, self.position, base)
        if base == self.position:
            self.position = base + count
            self._last = last, entries[-1]
            self._confirm(batch, base)
            return
        await self._catch_up(base + count)
        self._settle(batch, base)

    async def _catch_up(self, end: int) -> None:
        """Fold up to `end`, however often reading fails: what was just appended waits for it."""
        while True:
            try:
                async with self._lock:
                    await self._read_to(end)
                return
            except (LogTruncated, HistoryGone):
                raise
            except (SagaError, OSError) as error:
                logger.warning("partition %d: %s; trying again", self.index, error)
                await asyncio.sleep(0.5)

    async def _split(self, batch: list[Append], error: Exception) -> None:
        """One of several was refused: send them alone, so that only that one fails."""
        if len(batch) == 1:
            batch[0].fail(error)
            return
        for item in batch:
            await self._send([item])

    def _confirm(self, batch: list[Append], base: int) -> None:
        """Nothing foreign lies between: every event is accepted as predicted, unless what was
        folded while the append was on its way has made the saga somebody else's."""
        for item in batch:
            cell = item.cell
            if cell is not None and cell.lost:
                item.fail(LostOwnership(cell.state.saga_id))
                base += len(item.entries)
                continue
            if cell is not None:
                if cell.begin < 0:
                    cell.begin = base
                last = item.entries[-1]
                if type(last) is e.Event:
                    accepted = cell.accepted
                    accepted.writer, accepted.epoch = last.writer, last.epoch
                    accepted.sequence = last.sequence
                    if type(last.fact) in ENDINGS:
                        accepted.ended = True
                        accepted.end_offset = base + len(item.entries) - 1
                    elif type(last.fact) is not e.ReplayBranched:
                        accepted.ended = False
            if not item.future.done():
                item.future.set_result(base)
            base += len(item.entries)

    def _settle(self, batch: list[Append], base: int) -> None:
        """The records up to the batch have been folded: who is still the writer was accepted."""
        for item in batch:
            cell = item.cell
            if cell is not None and cell.lost:
                item.fail(LostOwnership(cell.state.saga_id))
            else:
                if cell is not None and cell.begin < 0:
                    cell.begin = base
                if not item.future.done():
                    item.future.set_result(base)
            base += len(item.entries)

    # --- reading ---

    async def _read(self) -> None:
        """Notice what others append while this engine appends nothing itself."""
        while True:
            if self._missed:
                await self._look_back()
            seen = self._appends
            position = self.position
            chunk = await self._log.read(self.index, position, limit=1000, wait_s=1.0)
            async with self._lock:
                self._fold_records(chunk.records)
                if not chunk.records and self.position == position:
                    self.position = chunk.next_offset  # offsets that hold no records
            del chunk  # a thousand records, until the next one is there
            # Own traffic wakes this loop, too. As long as there is any, the write loop notices by
            # itself what others append between: to read it all again would be for nothing.
            until = self._loop.time() + BUSY_S
            while (self._appends != seen or self._sending) and self._loop.time() < until:
                seen = self._appends
                await asyncio.sleep(QUIET_S)

    async def _look_back(self) -> None:
        """Whether the log still has the record before `position`, which it may have grown beyond
        again. Raises LogTruncated: it lost its tail."""
        try:
            await verify_record(self._log, self.index, self.last_known())
        except LogReplaced as error:
            raise LogTruncated(self.index, error.offset + 1, error.offset) from error
        self._missed = False

    async def _read_to(self, end: int) -> None:
        """Fold up to an offset before which everything stood. Raises LogTruncated if it does not
        any more."""
        while self.position < end:
            chunk = await self._log.read(self.index, self.position, limit=1000, wait_s=0.1)
            self._fold_records(chunk.records)
            if not chunk.records and chunk.next_offset > self.position:
                self.position = chunk.next_offset  # offsets that hold no records
            elif not chunk.records and (stands := await self._log.bounds(self.index)).end < end:
                raise LogTruncated(self.index, end, stands.end)

    def _fold_records(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.offset >= self.position:
                self.position = record.offset + 1
                self._last = record
                self._observe(record)

    def _observe(self, record: Record) -> None:
        entry = record.entry
        if isinstance(entry, e.Event):
            if entry.writer == self.writer:
                self._own_read = record.offset
            self._observe_event(entry, record.offset)
        elif isinstance(entry, e.RequestRefused):
            self._remember(entry)
        elif isinstance(entry, e.Request):
            if not isinstance(entry, e.ReplayLogged):
                self._owner.on_request(self, record)
        elif isinstance(entry, Undecodable):
            self._count("undecodable")
            logger.error(
                "partition %d, offset %d holds no record of ours: %s",
                record.partition,
                record.offset,
                entry.reason,
            )

    async def refuse(self, refused: e.RequestRefused) -> None:
        """Append a refusal; returns once it stands."""
        await self.queue.put(None, [refused])
        self._remember(refused)

    def _remember(self, refused: e.RequestRefused) -> None:
        self.answered.add(refused.request_id)
        self.refused[refused.request_id] = refused
        if refused.saga_id in self.waiting:
            self._owner.on_awaited(self, refused.saga_id, None)
        if len(self.refused) > MAX_REFUSED:
            self.answered.discard(gone := next(iter(self.refused)))
            del self.refused[gone]

    def _observe_event(self, event: e.Event, offset: int) -> None:
        cell = self.cells.get(event.saga_id)
        recorded = event.epoch == e.RECORDED_EPOCH
        if cell is None and (recorded or not self._owner.serves(event.saga_name)):
            pass_by(self.seen, event, offset)
            if event.saga_id in self.waiting and type(event.fact) in _AWAITED:
                self._owner.on_awaited(self, event.saga_id, None)
            return
        accepted = cell.accepted if cell is not None else self.seen.get(event.saga_id)
        if accepted is None:
            if type(event.fact) is not e.SagaStarted:
                # Of a saga that ended before `known_from`. What takes it up again comes through a
                # request, or from an engine that has lost the partition: then it may stand.
                self._count("unknown_saga")
                if type(event.fact) in _TAKES_UP:
                    self._owner.on_taken_up(self, event, offset)
                return
            if event.writer == self.writer:
                # It lands late: the saga has ended and is forgotten, or was given up here with the
                # partition before it stood.
                self._owner.on_taken_up(self, event, offset)
                return
            accepted = Accepted()
            cell = Cell(SagaState(), accepted, ours=False)
        verdict = judge(accepted, event)
        if verdict is not Verdict.ACCEPTED:
            self._count(verdict)
            return
        accepted.take(event, offset)
        if cell is None:
            if type(event.fact) is e.ReplayBranched:
                self._owner.on_branched(self, event, offset)
            elif not accepted.ended and event.writer != self.writer:
                self._owner.on_taken_up(self, event, offset)
            return
        if cell.begin < 0:
            cell.begin = offset
        if event.writer == self.writer and cell.ours and event.epoch >= cell.look().epoch:
            return  # an append of our own that is not acknowledged yet
        # Also what this process still had on its way when it last served the partition.
        if cell.ours:
            cell.lost = True
            self.cells.pop(event.saga_id, None)
            self.seen[event.saga_id] = accepted  # until it is watched: its id must not start again
            self._owner.on_lost(self, cell, event, offset)
            return
        advance(cell.state, event)
        released = type(event.fact) is e.SagaReleased
        cell.quiet_since = LONG_AGO if released else asyncio.get_running_loop().time()
        if cell.state.ended:
            self.finish(cell)
        elif event.saga_id not in self.cells:
            self.cells[event.saga_id] = cell
            self._owner.on_foreign(self, cell)

    def _count(self, cause: str) -> None:
        self.rejected[cause] = self.rejected.get(cause, 0) + 1

    # --- life ---

    def start(self) -> None:
        """Begin to append and to read from `position` on."""
        self._tasks = [
            asyncio.create_task(self._guard(self._write), name=f"sagaz-es write {self.index}"),
            asyncio.create_task(self._guard(self._read), name=f"sagaz-es read {self.index}"),
        ]

    async def _guard(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Errors of the log's connection are waited out; what cannot be is told to the engine."""
        while True:
            try:
                await loop()
            except asyncio.CancelledError:
                if loop == self._write:  # not only by `stop`: an event loop that ends cancels all
                    self._give_up()
                raise
            except (LogTruncated, HistoryGone) as error:  # more is gone than was waited for
                logger.critical("%s", error)
                self._owner.on_broken(self, error)
                return
            except (SagaError, OSError) as error:
                level = logging.CRITICAL if isinstance(error, LogGone) else logging.WARNING
                logger.log(level, "partition %d: %s; trying again", self.index, error)
                self._missed = self._missed or loop == self._read
                await asyncio.sleep(0.5)
            except Exception as error:
                logger.exception("partition %d stopped", self.index)
                self._owner.on_broken(self, error)
                return

    def finish(self, cell: Cell) -> None:
        """The saga has ended: forget it, but not its id."""
        self.cells.pop(cell.state.saga_id, None)
        self.seen[cell.state.saga_id] = cell.accepted
        if self.waiting and cell.state.saga_id in self.waiting:
            self._owner.on_awaited(self, cell.state.saga_id, cell)

    async def looked_at(self, saga_id: str) -> None:
        """Wait while it is found out what others' word about this saga comes to."""
        while f"lost {saga_id}" in self.held and not self.leaving:  # noqa: ASYNC110 - it is rare
            await asyncio.sleep(QUIET_S)

    def knows_more(self, state: SagaState) -> bool:
        """Whether more was heard of an ended saga than this state, read off the log, has in it."""
        seen = self.seen.get(state.saga_id)
        if f"lost {state.saga_id}" in self.held:
            return True  # taken up by others, who are being looked at
        if seen is None:
            return False
        if state.recorded:  # it holds no mark: what was heard may begin in its middle
            return seen.sequence > state.sequence
        return seen.sequence != state.sequence

    def forget_before(self, offset: int) -> None:
        """The store, or the log's index, answers for everything that ended before `offset`."""
        if offset >= self.known_from:
            self.older = None
        if offset > self.known_from:
            self._forget_seen(offset)

    def forget_most(self) -> None:
        """Where no store answers, or one that is behind: of very many sagas that have ended, keep
        the newest. Whether one of the others was there a look through the log says; who has looked
        once keeps their ids."""
        if len(self.seen) <= MAX_SEEN:
            return
        ends = sorted(known.end_offset for known in self.seen.values() if known.end_offset)
        if len(ends) <= MAX_SEEN // 2:
            return
        offset, older = ends[-MAX_SEEN // 2], self.older
        complete = older is not None and older.upto >= self.known_from
        gone = self._forget_seen(offset)
        if older is not None and complete:
            older.update(gone)
            older.upto = self.known_from

    def _forget_seen(self, offset: int) -> list[str]:
        gone = [key for key, known in self.seen.items() if 0 < known.end_offset < offset]
        for key in gone:
            del self.seen[key]
        self.known_from = max(self.known_from, offset)
        return gone

    def last_known(self) -> str:
        """The last record that was folded, by its `identity_of`, or one before it."""
        last, self._last = self._last, None
        if last is not None:
            known = identity_at(*last) if isinstance(last, tuple) else identity_of(last)
            self.last_read = known or self.last_read
        return self.last_read

    def low_water_mark(self) -> int:
        """Nothing before it belongs to an unfinished saga or an unhandled request."""
        begins = [cell.begin for cell in self.cells.values() if cell.begin >= 0]
        return min([self.position, *begins, *self.held.values()])

    async def stop(self) -> None:
        """Stop both loops; appends that were not sent fail with LostOwnership."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self._give_up()

    def _give_up(self) -> None:
        """Nobody waits for the log to answer, or sends what is queued: who waits is told."""
        for item in self._sending:
            item.fail(LostOwnership(item.cell.state.saga_id if item.cell else ""))
        self._sending = []
        self.queue.close()
