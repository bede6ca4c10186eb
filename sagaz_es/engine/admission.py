"""How many sagas run here at once. Starts beyond that wait, as requests in the log.

A start that waits is durable and takes some hundred bytes: only its place in the log is kept, what
it was asked with is read again once there is room. So a crash loses none, and a partition that
changes hands takes its waiting starts along.

Of two classes with starts that wait each gets its turn, whoever came first and however many; within
a class it goes by the order of coming.

What was taken over, or is woken by a time or a signal, waits for room, too, and takes turns with
the starts (`backlog.py`).

Law (no circle): a saga whose start or end a step waits for, a child that wakes, and one of a class
with `max_concurrent` that wakes, run at once, also beyond the limit: a step may wait for them that
keeps the room which they would wait for. Source: docs/decisions/0052.
Law (only what runs counts): a saga that waits for a signal, a time or a decision takes no room.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from sagaz_es.core import events as e
from sagaz_es.engine.backlog import Backlog
from sagaz_es.errors import HandingOver, HistoryGone, LostOwnership, SagaError
from sagaz_es.sagas.inputs import new_id

if TYPE_CHECKING:
    from sagaz_es.engine.host import Host
    from sagaz_es.engine.partitions.partition import Partition
    from sagaz_es.ports import Record

logger = logging.getLogger("sagaz_es.engine")

READ_AHEAD = 64
"""Records that are read at once, from the first start that waits on."""

AT_HAND = 256
"""Requests that are kept because they were read with an earlier one."""

CROWD = 100
"""Sagas of one class that have begun and wait for its turn (`max_concurrent`, `rate_limit`): beyond
them, starts of that class wait here and take no memory."""

in_saga: ContextVar[bool] = ContextVar("sagaz_es_in_saga", default=False)
"""Whether the code that runs was called by a saga of this process."""


class Waiting(Struct, frozen=True, gc=False):
    """A start that waits, by its place in the log."""

    partition: int
    offset: int
    request_id: str
    saga_id: str
    saga_name: str

    @classmethod
    def of(cls, record: Record, request: e.StartRequested) -> Waiting:
        """That of a request that was read."""
        return cls(
            record.partition, record.offset, request.request_id, request.saga_id, request.saga_name
        )

    def is_before(self, other: Waiting) -> bool:
        """Whether it came earlier, as far as that can be said."""
        return self.partition == other.partition and self.offset < other.offset


class Admission:
    """The starts that wait in the partitions of a host, and who begins next.

    `answer` begins a saga that was asked for, or refuses it.
    """

    def __init__(self, host: Host, limit: int) -> None:
        """`limit`: 0 is none."""
        self._host, self._limit = host, limit
        self.answer: Callable[[Partition, e.StartRequested], Awaitable[None]]
        self._lines: dict[str, deque[Waiting]] = {}  # by class; whose turn comes next is first
        self._waiting: dict[str, tuple[Waiting, ...]] = {}
        """By saga, until it has begun; it may have been asked for more than once."""
        self._beginning: set[str] = set()  # let in, and not running yet
        self._entering: Counter[str] = Counter()
        self._cancelled: dict[str, e.CancelRequested] = {}  # before they have begun
        self._at_hand: dict[str, e.StartRequested] = {}
        self._feeding = False
        self._held_back = 0
        self.backlog = Backlog(self)
        self._backlogs_turn = True
        self._needed: dict[str, int] = {}  # sagas that steps wait for: by how many

    def count(self) -> int:
        """How many starts wait."""
        return sum(len(line) for line in self._lines.values())

    def find(self, saga_id: str) -> Waiting | None:
        """The start of this saga, if it waits."""
        return next(iter(self._waiting.get(saga_id, ())), None)

    def admits(self, saga_name: str) -> bool:
        """Whether a saga that is started now begins at once."""
        if in_saga.get():
            return True
        waits = self._lines or len(self.backlog)
        return not waits and self._has_room() and not self._is_crowded(saga_name)

    @contextmanager
    def entering(self, saga_id: str) -> Iterator[None]:
        """It takes room already while it is found out whether it may begin."""
        self._beginning.add(saga_id)
        self._entering[saga_id] += 1  # one id may be started by many at once
        try:
            yield
        finally:
            self._entering[saga_id] -= 1
            if not self._entering[saga_id]:
                del self._entering[saga_id]
                self._beginning.discard(saga_id)
            self.look()

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Nobody is let in while it is found out what has begun already."""
        self._held_back += 1
        try:
            yield
        finally:
            self._held_back -= 1
            self.look()

    def in_flight(self) -> int:
        """How many sagas run, or are about to."""
        return len(self._host.runners) - len(self.backlog.outside) + len(self._beginning)

    # --- taken over ---

    def expect(self, saga_id: str) -> None:
        """It was found unfinished: no start takes its room until `unexpect`."""
        self.backlog.expected.add(saga_id)

    def expects(self, saga_id: str) -> bool:
        """Whether it is being found out whether it runs here."""
        return saga_id in self.backlog.expected

    def unexpect(self, saga_id: str) -> None:
        """It was taken over, or will not be."""
        self.backlog.expected.discard(saga_id)
        self.look()

    def is_outside(self, saga_id: str) -> None:
        """A runner begins that has to ask before it runs anything."""
        self.backlog.outside.add(saga_id)

    def takes_back(self, saga_id: str, *, others_wait: bool) -> bool:
        """Whether a saga that was taken over or woken, and does not wait, may run something now."""
        if saga_id in self._beginning or saga_id in self._needed:
            self._beginning.discard(saga_id)  # it was called, and counts as a runner now
            return True
        return not others_wait and (not self._limit or self.in_flight() < self._limit)

    def stopped(self, saga_id: str, *, parked: bool) -> None:
        """Its runner has ended; a parked one goes on waiting for room, if it did."""
        self._beginning.discard(saga_id)
        self.backlog.outside.discard(saga_id)
        if not parked:
            self.backlog.remove(saga_id)
        self.look()

    @contextmanager
    def waited_for(self, saga_id: str) -> Iterator[None]:
        """Somebody waits for the saga's end. A step keeps its room meanwhile: it must not wait for
        a saga that waits for room."""
        if not in_saga.get():
            yield
            return
        self._needed[saga_id] = self._needed.get(saga_id, 0) + 1
        try:
            if self.backlog.remove(saga_id):
                self._call(saga_id)
            yield
        finally:
            self._needed[saga_id] -= 1
            if not self._needed[saga_id]:
                del self._needed[saga_id]

    def _call(self, saga_id: str) -> None:
        self._beginning.add(saga_id)
        runner = self._host.awake(saga_id)
        if runner is None or runner.lets_in is None:
            self._beginning.discard(saga_id)  # it is gone, or runs and counts as that
        if runner is not None:
            runner.look_again()

    # --- started ---

    def begun(self, saga_id: str) -> e.CancelRequested | None:
        """It runs, and counts as that from now on. What it was cancelled with while it waited."""
        self._beginning.discard(saga_id)
        if self._waiting.pop(saga_id, None) is None:
            return None
        return self._cancelled.pop(saga_id, None)

    # --- in line ---

    async def wait(
        self, partition: Partition, saga_id: str, saga_name: str, text: str, actor: str
    ) -> None:
        """Put a start in line; returns once it is durable. Raises HandingOver, LogFull; nothing
        stands then."""
        if partition.leaving or partition.closed:
            raise HandingOver(saga_id)
        request = e.StartRequested(
            new_id(), saga_id, self._host.clock.now(), actor, saga_name=saga_name, context=text
        )
        partition.held[request.request_id] = partition.position  # the mark must not pass it
        sent = partition.queue.put(None, [request], len(text) + 300)
        sent.add_done_callback(
            partial(self._sent, partition, request.request_id, saga_id, saga_name)
        )
        try:
            await asyncio.shield(sent)
        except LostOwnership:
            # The partition was given up with it on its way: standing twice, it counts once.
            await self._host.log.append(partition.index, [request])

    def _sent(
        self,
        partition: Partition,
        request_id: str,
        saga_id: str,
        saga_name: str,
        sent: asyncio.Future[int],
    ) -> None:
        if sent.cancelled() or sent.exception() is not None:
            partition.held.pop(request_id, None)
            return
        partition.held[request_id] = offset = sent.result()
        if not partition.leaving:
            self.line_up(Waiting(partition.index, offset, request_id, saga_id, saga_name))

    def line_up(self, waiting: Waiting, request: e.StartRequested | None = None) -> None:
        """A start stands in the log and holds the mark. `request`: where it was just read."""
        if request is not None and not self._lines and self._has_room():
            self._at_hand[waiting.request_id] = request
        self._waiting[waiting.saga_id] = *self._waiting.get(waiting.saga_id, ()), waiting
        line = self._lines.get(waiting.saga_name)
        if line is None:
            line = self._lines[waiting.saga_name] = deque()
        line.append(waiting)
        # One of our own is known once it is confirmed: what stands behind it may be here by then.
        place = len(line) - 1
        while place and waiting.is_before(line[place - 1]):
            line[place], place = line[place - 1], place - 1
        line[place] = waiting
        self.look()

    def forget(self, partition: int, saga_ids: Iterable[str]) -> tuple[str, ...]:
        """The partition is not served here any more: the sagas whose starts waited in it.

        `saga_ids`: those that have begun there.
        """
        for saga_id in saga_ids:
            self.backlog.remove(saga_id)
        gone = [one for line in self._lines.values() for one in line if one.partition == partition]
        for waiting in gone:
            self._waits_no_more(waiting)
            self._cancelled.pop(waiting.saga_id, None)
            self._at_hand.pop(waiting.request_id, None)
        for name, line in list(self._lines.items()):
            stay = deque(one for one in line if one.partition != partition)
            if stay:
                self._lines[name] = stay
            else:
                del self._lines[name]
        return tuple(waiting.saga_id for waiting in gone)

    async def at_once(self, saga_id: str, cancel: e.CancelRequested | None = None) -> bool:
        """Let a waiting start in out of its turn: somebody wants something of the saga. With
        `cancel` it begins and ends, and nothing of it runs. False: it does not wait, or not any
        more."""
        if self.find(saga_id) is None:
            return False
        if cancel is not None:
            self._cancelled[saga_id] = cancel
        # Of one that was asked for twice the first may turn out to be nothing.
        while (waiting := self.find(saga_id)) is not None:
            line = self._lines.get(waiting.saga_name, deque())
            if waiting in line:
                line.remove(waiting)
                if not line:
                    del self._lines[waiting.saga_name]
                await self._let_in(waiting)
            while self.find(saga_id) is waiting:  # noqa: ASYNC110 - it is on its way in
                await asyncio.sleep(0.01)
        return cancel is None or self._cancelled.pop(saga_id, None) is None

    # --- in turn ---

    def look(self) -> None:
        """Somebody has left, or come: let in whom there is room for."""
        if self._feeding or self._host.closing:
            return
        if (self._lines and self._starts_go_on()) or (len(self.backlog) and self._has_space()):
            self._feeding = True
            self._host.spawn(self._feed(), "admission")

    def _starts_go_on(self) -> bool:
        return not self._held_back and self._has_room()

    def _has_room(self) -> bool:
        """For a start: what was found unfinished comes first."""
        return not self._limit or self.in_flight() + len(self.backlog.expected) < self._limit

    def _has_space(self) -> bool:
        """For what was taken over or woken."""
        return not self._limit or self.in_flight() < self._limit

    def _is_crowded(self, saga_name: str) -> bool:
        return self._host.turns.waiting(saga_name) >= CROWD

    async def _feed(self) -> None:
        try:
            while not self._host.closing and await self._let_one_in():
                pass
        finally:
            self._feeding = False

    async def _let_one_in(self) -> bool:
        """A saga of the backlog, or a start: each in its turn while both wait."""
        for backlogs_turn in (self._backlogs_turn, not self._backlogs_turn):
            if backlogs_turn:
                saga_id = self.backlog.next() if self._has_space() else None
                if saga_id is not None:
                    self._backlogs_turn = False
                    self._call(saga_id)
                    return True
            else:
                waiting = self._next() if self._starts_go_on() else None
                if waiting is not None:
                    self._backlogs_turn = True
                    await self._let_in(waiting)
                    return True
        return False

    def _next(self) -> Waiting | None:
        for name in list(self._lines):
            line = self._lines.pop(name)
            self._lines[name] = line  # the others come before it the next time
            if not self._is_crowded(name):
                waiting = line.popleft()
                if not line:
                    del self._lines[name]
                return waiting
        return None

    async def _let_in(self, waiting: Waiting) -> None:
        """Begin it, in a task of its own once it is read."""
        self._beginning.add(waiting.saga_id)
        request = self._at_hand.pop(waiting.request_id, None)
        delay = 0.05
        while request is None:
            try:
                request = await self._read(waiting)
            except HistoryGone as error:
                logger.error("the start of saga %s is lost: %s", waiting.saga_id, error)
                if (partition := self._host.partitions.get(waiting.partition)) is not None:
                    partition.held.pop(waiting.request_id, None)
                self._out(waiting)
                return
            except (SagaError, OSError) as error:
                logger.warning("a start that waits cannot be read: %s; trying again", error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 1.0)
            partition = self._host.partitions.get(waiting.partition)
            if partition is None or waiting.request_id not in partition.held:
                self._out(waiting)  # whoever serves the partition now has it
                return
        self._host.spawn(self._begin(waiting, request), f"start {waiting.saga_id}")

    async def _begin(self, waiting: Waiting, request: e.StartRequested) -> None:
        partition = self._host.partitions.get(waiting.partition)
        try:
            if partition is not None:
                await self.answer(partition, request)
        finally:
            self._out(waiting)
            self.look()

    def _out(self, waiting: Waiting) -> None:
        """It waits no more. Unless it runs here, it had begun long ago, begins elsewhere, or is
        lost: who waits for it asks the log."""
        self._beginning.discard(waiting.saga_id)
        self._waits_no_more(waiting)
        self._host.outcomes.not_here(waiting.saga_id)

    def _waits_no_more(self, waiting: Waiting) -> None:
        left = tuple(one for one in self._waiting.get(waiting.saga_id, ()) if one is not waiting)
        if left:
            self._waiting[waiting.saga_id] = left
        else:
            self._waiting.pop(waiting.saga_id, None)

    async def _read(self, waiting: Waiting) -> e.StartRequested | None:
        """What the start was asked with; others that wait and were read with it are kept at hand.

        None: the log has nothing to read now. Raises what the log raises.
        """
        chunk = await self._host.log.read(
            waiting.partition, waiting.offset, limit=READ_AHEAD, wait_s=1.0
        )
        found: e.StartRequested | None = None
        for record in chunk.records:
            entry = record.entry
            if not isinstance(entry, e.StartRequested):
                continue
            others = self._waiting.get(entry.saga_id, ())
            if record.offset == waiting.offset:
                found = entry
            elif any(other.offset == record.offset for other in others):
                if len(self._at_hand) < AT_HAND and entry.saga_id not in self._beginning:
                    self._at_hand[entry.request_id] = entry
        return found
