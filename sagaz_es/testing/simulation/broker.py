"""The cluster of a simulation: what stands in each partition, what is on its way, the group.

It behaves as Kafka does where that is unpleasant: an append whose answer is lost stands or does not
or lands much later, behind what was appended after it; while the leader of a partition is gone
nothing is answered; a leader may come back without what it had acknowledged; old records go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from sagaz_es.core.events import Entry, NamespaceCreated
from sagaz_es.errors import AppendUnknown, LogBusy, Unreachable
from sagaz_es.log.checks import key_of
from sagaz_es.ports import Record, Undecodable
from sagaz_es.testing.simulation.group import SimulatedGroup
from sagaz_es.testing.simulation.points import Points
from sagaz_es.testing.simulation.processes import Process, SimulatedLoop

DEADLINE_S = 1.5
"""After it a client gives a call up."""


@dataclass
class Weather:
    """How often things go wrong (0 to 1) and how long they take (seconds). May change at any time.

    `unknown`: appends whose answer is lost; `errors`: calls that fail at once; `late_s`: how late
    an append that was given up may still land; `short`: reads that give less than there is.
    """

    unknown: float = 0.0
    errors: float = 0.0
    store_errors: float = 0.0
    blob_errors: float = 0.0
    latency_s: float = 0.004
    late_s: float = 8.0
    short: float = 0.0

    def calm(self) -> None:
        """Nothing goes wrong any more; what is under way still is."""
        self.unknown = self.errors = self.store_errors = self.blob_errors = self.short = 0.0

    def copy(self) -> Weather:
        return replace(self)


class SimulatedPartition:
    """One partition: its records, and until when its leader is gone."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.records: list[Record] = []  # at their offsets, also those that are gone
        self.start = 0
        self.down_until = 0.0
        self.refuses_until = 0.0  # too few replicas: it is read, and takes no append
        self.of_saga: dict[str, list[Record]] = {}
        self.waiting: dict[asyncio.Future[None], None] = {}

    @property
    def end(self) -> int:
        return len(self.records)

    def add(self, record: Record) -> None:
        self.records.append(record)
        self.of_saga.setdefault(record.key, []).append(record)

    def wake(self) -> None:
        waiting, self.waiting = self.waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)


@dataclass(frozen=True)
class Loss:
    """A partition's leader came back without its last records."""

    at: float
    partition: int
    end: int  # where the partition ended from then on
    records: tuple[Record, ...]
    acknowledged: int  # how many of `Broker.acknowledged` were told before


class Broker:
    """All servers of the log. `acknowledged` and `landed` are for whoever judges the run."""

    def __init__(
        self,
        loop: SimulatedLoop,
        random: Random,
        *,
        partitions: int = 1,
        weather: Weather | None = None,
        points: Points | None = None,
        name: str = "simulated://log",
    ) -> None:
        self.loop, self.random, self.name = loop, random, name
        self.weather = weather or Weather()
        self.points = points or Points()
        self.partitions = [SimulatedPartition(index) for index in range(partitions)]
        for partition in self.partitions:
            created = NamespaceCreated("log", partition.index, partitions, loop.now())
            partition.add(Record(partition.index, 0, loop.now(), "", created))
        self.marks = [(0, "")] * partitions
        self.groups: dict[str, SimulatedGroup] = {}
        self.acknowledged: list[tuple[int, int, tuple[Entry, ...]]] = []
        """Partition, offset and entries of every append that its process was told of."""
        self.faults = 0  # how many there were
        self.under_way = 0  # appends that were given up, and land much later
        self.on_landed: list[Callable[[Sequence[Record]], None]] = []
        self.losses: list[Loss] = []
        self.on_lost: list[Callable[[Loss], None]] = []

    # --- from processes ---

    def latency(self) -> float:
        """How long one way takes: mostly short, at times ten times that."""
        latency = self.random.expovariate(1.0) * self.weather.latency_s
        return latency * 10 if self.random.random() < 0.05 else latency

    def is_down(self, partition: int) -> bool:
        return self.loop.time() < self.partitions[partition].down_until

    def send(
        self, process: Process, partition: int, entries: tuple[Entry, ...]
    ) -> asyncio.Future[int]:
        """An append sets out; the future has its answer, or none for ever if the process dies."""
        answer: asyncio.Future[int] = self.loop.create_future()
        weather, chance = self.weather, self.random.random()
        if process.cut or self.is_down(partition):
            self.faults += 1
            self._give_up(partition, answer)
            return answer
        if self.loop.time() < self.partitions[partition].refuses_until:
            self.faults += 1
            busy = LogBusy(partition, "it has too few replicas")
            self.loop.in_world(self.latency(), _fail, answer, busy)
            return answer
        if chance < weather.unknown:
            self.faults += 1
            fate = self.random.randrange(3)
            self._give_up(partition, answer)
            if fate == 1:  # it lands, the answer is lost
                self.loop.in_world(self.latency(), self._land, partition, entries, None)
            elif fate == 2:  # it was still in some buffer
                late = DEADLINE_S + self.random.random() * weather.late_s
                self.under_way += 1
                self.loop.in_world(late, self._land_late, partition, entries)
            return answer
        if chance < weather.unknown + weather.errors / 4:
            self.faults += 1
            self.loop.in_world(
                self.latency(), _fail, answer, LogBusy(partition, "another append goes first")
            )
            return answer
        self.loop.in_world(self.latency(), self._land, partition, entries, answer)
        return answer

    def _give_up(self, partition: int, answer: asyncio.Future[int]) -> None:
        after = DEADLINE_S * (0.1 if self.random.random() < 0.3 else 1.0)
        self.loop.in_world(after, _fail, answer, AppendUnknown(partition, "no answer came"))

    def _land_late(self, index: int, entries: tuple[Entry, ...]) -> None:
        self.under_way -= 1
        self._land(index, entries, None)

    def _land(
        self, index: int, entries: tuple[Entry, ...], answer: asyncio.Future[int] | None
    ) -> None:
        partition = self.partitions[index]
        refuses = self.loop.time() < partition.refuses_until
        if self.is_down(index) or refuses:  # its leader went while it was on its way
            if answer is not None:
                self._give_up(index, answer)
            return
        base = self.append(index, entries)
        if answer is not None and not answer.done():
            self.acknowledged.append((index, base, entries))
            answer.set_result(base)
        partition.wake()

    def append(self, index: int, entries: Sequence[Entry]) -> int:
        """Put entries into a partition, now."""
        partition, now = self.partitions[index], self.loop.now()
        base = partition.end
        records = [
            Record(index, offset, now, key_of(entry), entry)
            for offset, entry in enumerate(entries, base)
        ]
        for record in records:
            partition.add(record)
        for tell in self.on_landed:
            tell(records)
        return base

    def add_foreign(self, index: int, key: str, value: bytes, reason: str) -> None:
        """Put bytes that are no record of ours into a partition: a poison record."""
        partition = self.partitions[index]
        damaged = Undecodable(reason)
        partition.add(Record(index, partition.end, self.loop.now(), key, damaged, value))
        partition.wake()

    async def travel(self, process: Process, what: str, partition: int = -1) -> None:
        """A call to the servers and back. Raises Unreachable."""
        if process.cut or (partition >= 0 and self.is_down(partition)):
            self.faults += 1
            await asyncio.sleep(DEADLINE_S)
            raise Unreachable("the log", self.name, what)
        if self.weather.errors and self.random.random() < self.weather.errors:
            self.faults += 1
            raise Unreachable("the log", self.name, what)
        if self.random.random() < 0.5:
            await asyncio.sleep(self.latency())

    # --- what goes wrong in it ---

    def lead_elsewhere(self, index: int, seconds: float) -> None:
        """The leader of a partition is gone; after a while there is another one."""
        self.partitions[index].down_until = self.loop.time() + seconds
        self.loop.in_world(seconds, self.partitions[index].wake)

    def restart(self, seconds: float) -> None:
        """All servers are gone for a while."""
        for partition in self.partitions:
            self.lead_elsewhere(partition.index, seconds)

    def lose_tail(self, index: int, records: int, *, refuses_s: float = 0.0) -> None:
        """The promise is broken: the last records of a partition are gone, acknowledged or not.

        `refuses_s`: how long the new leader takes no append, for it has too few replicas yet: the
        time in which who had read further finds the end before its place.
        """
        partition = self.partitions[index]
        end = max(partition.start, 1, partition.end - records)
        lost = tuple(partition.records[end:])
        for record in lost:
            partition.of_saga[record.key].remove(record)
        del partition.records[end:]
        partition.refuses_until = self.loop.time() + refuses_s
        loss = Loss(self.loop.time(), index, end, lost, len(self.acknowledged))
        self.losses.append(loss)
        for tell in self.on_lost:
            tell(loss)
        partition.wake()

    def forget_before(self, index: int, offset: int) -> None:
        """Retention: records before an offset are gone."""
        partition = self.partitions[index]
        partition.start = max(partition.start, min(offset, partition.end))

    def group(self, name: str) -> SimulatedGroup:
        if name not in self.groups:
            self.groups[name] = SimulatedGroup(self.loop, self.random, len(self.partitions))
        return self.groups[name]


def _fail(answer: asyncio.Future[int], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # whoever asked may be gone
