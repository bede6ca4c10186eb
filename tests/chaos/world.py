"""One shop: its log, its store, its engines and projector, its customers, and who checks them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from sagaz_es import Engine, connect
from sagaz_es.connect import open_log, open_store
from sagaz_es.engine.config import EngineConfig
from sagaz_es.errors import SagaError
from sagaz_es.ports import EventLog, ProjectionStore
from sagaz_es_projections.verify import verify
from tests.chaos.checker import Checker
from tests.chaos.processes import Process
from tests.chaos.shop import FATES, WELL, LedgerReader, Order
from tests.chaos.worker import takes

NORMAL_WITHIN_S = 60.0
"""What takes longer than that to work again is stuck."""

REST_WITHIN_S = 120.0


class World:
    """`direct` are log and store for us, who are not to be disturbed; `served` those of the
    processes, by name: some of them behind proxies."""

    def __init__(self, name: str, directory: Path, direct: tuple[str, str]) -> None:
        self.name, self.directory = name, directory
        self.checker = Checker()
        self.engines: list[Process] = []
        self.projectors: list[Process] = []
        self.writers: dict[str, list[str]] = defaultdict(list)  # by process, the newest last
        self.ready: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.ledger = directory / "ledger.jsonl"
        self._lines = LedgerReader(self.ledger)
        self._urls = direct
        self._log: EventLog | None = None
        self._store: ProjectionStore | None = None
        self._customer: Engine | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ordering: asyncio.Task[Any] | None = None
        self._positions: dict[int, int] = {}
        self._numbers = iter(range(10**9))
        self.error: BaseException | None = None

    # --- life ---

    def add_engine(self, name: str, log: str, store: str, rate: float, instance: str = "") -> None:
        settings = {"log": log, "store": store, "rate": rate, "instance_id": instance}
        engine = Process(name, "engine", self.directory, ledger=str(self.ledger), **settings)
        self.engines.append(engine)

    def add_projector(self, name: str, log: str, store: str) -> None:
        self.projectors.append(Process(name, "projector", self.directory, log=log, store=store))

    @property
    def processes(self) -> list[Process]:
        return [*self.engines, *self.projectors]

    @property
    def log(self) -> EventLog:
        assert self._log is not None
        return self._log

    @property
    def store(self) -> ProjectionStore:
        assert self._store is not None
        return self._store

    async def open(self, seed: int, rate: float) -> None:
        """Start everything; customers order `rate` times a second."""
        log, store = self._urls
        self._log = open_log(log)
        await self._log.open()
        self._store = open_store(store, self._log)
        await self.store.open()
        for process in (*self.engines, *self.projectors[:1]):  # of projectors the others are rivals
            process.start()
        await self.until(lambda: all(self.ready[each.name] for each in self.engines))
        # Its own log: what a customer does must not wait for what the checker reads.
        self._customer = connect(log, store=store, config=EngineConfig(request_seconds=20.0))
        await self._customer.open(join=False)
        for partition in range(self.log.partitions):
            self._positions[partition] = 0
            self._spawn(self._follow(partition))
        self._spawn(self._listen())
        self._ordering = self._spawn(self._order(random.Random(seed), rate))

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in self.processes:
            await asyncio.to_thread(process.end)
        for part in (self._customer, self._store, self._log):
            if part is not None:
                await part.close()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.error = self.error or task.exception()

    # --- following log and ledger ---

    async def _follow(self, partition: int) -> None:
        while True:
            try:
                chunk = await self.log.read(partition, self._positions[partition], wait_s=0.2)
            except (SagaError, OSError):
                await asyncio.sleep(0.05)  # it is away, too
                continue
            for record in chunk.records:
                self.checker.take(record)
            self._positions[partition] = chunk.next_offset
            await asyncio.sleep(0.02)

    async def _listen(self) -> None:
        while True:
            self.listen()
            await asyncio.sleep(0.05)

    def listen(self) -> None:
        for line in self._lines.more():
            if line.what == "born":
                self.writers[line.name].append(line.writer)
            elif line.what == "ready":
                self.ready[line.name] += 1
            else:
                self.checker.hear(line)

    def said(self) -> str:
        """The end of what each process printed, for whoever looks for the cause."""
        return "\n".join(f"--- {each.name}\n{each.said()}" for each in self.processes)

    # --- customers ---

    async def _order(self, chosen: random.Random, rate: float) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(chosen.expovariate(rate))
                if self.asked["ordered"] - self.asked["taken"] < 100:
                    group.create_task(self._order_one(chosen))

    async def _order_one(self, chosen: random.Random) -> None:
        saga_id = f"o-{next(self._numbers)}"
        order = {"fate": chosen.choice(FATES), "takes": takes(chosen)}
        cancelled = chosen.random() < 0.1
        after = chosen.uniform(0, 1.0)
        await self._ask(saga_id, order)
        if cancelled:
            await asyncio.sleep(after)
            self.asked["cancelled"] += 1
            assert self._customer is not None
            with contextlib.suppress(SagaError, OSError):  # it has ended, or shipped; or no answer
                await self._customer.cancel(saga_id, reason="changed my mind")

    async def _ask(self, saga_id: str, order: dict[str, object]) -> None:
        """Order until somebody takes it, always under the same number."""
        assert self._customer is not None
        self.asked["ordered"] += 1
        while True:
            try:
                await self._customer.start(Order, order, saga_id=saga_id)
            except (SagaError, OSError):
                await asyncio.sleep(0.2)
            else:
                self.asked["taken"] += 1
                self.checker.acknowledge(saga_id)
                return

    async def stop_ordering(self) -> None:
        """Nobody orders any more, neither here nor at the engines."""
        (self.directory / "closed").touch()
        if self._ordering is not None:
            self._ordering.cancel()
            await asyncio.gather(self._ordering, return_exceptions=True)

    # --- asking how it is ---

    async def until(self, holds: Callable[[], bool], within_s: float = NORMAL_WITHIN_S) -> bool:
        """Wait until something holds; whether it did in time."""
        end = time.monotonic() + within_s
        while not holds():
            if self.error is not None:
                raise self.error
            if time.monotonic() > end:
                return False
            self.listen()
            await asyncio.sleep(0.02)
        return True

    async def normal(self) -> bool:
        """Whether an order that is placed now, one in each partition, is done and projected."""
        orders = {partition: self._number_in(partition) for partition in self._positions}
        order = {"fate": WELL, "takes": 0.0}
        for saga_id in orders.values():
            self._spawn(self._ask(saga_id, order))
        stories = self.checker.stories
        well = await self.until(lambda: all(stories[each].status for each in orders.values()))
        return well and await self._projected(
            {p: stories[each].offset for p, each in orders.items()}
        )

    def _number_in(self, partition: int) -> str:
        while True:
            saga_id = f"c-{next(self._numbers)}"
            if self.log.partition_of(saga_id) == partition:
                return saga_id

    async def _projected(self, offsets: dict[int, int]) -> bool:
        end = time.monotonic() + NORMAL_WITHIN_S
        while time.monotonic() < end:
            with contextlib.suppress(SagaError, OSError):
                found = [await self.store.checkpoint(partition) for partition in offsets]
                if all(
                    each is not None and each.next_offset > offset
                    for each, offset in zip(found, offsets.values(), strict=True)
                ):
                    return True
            await asyncio.sleep(0.02)
        return False

    async def check(self) -> None:
        """The checker's look at what ended, and the store's heads of it, as far as they are
        projected."""
        judged = self.checker.check()
        # In this order: a projector goes on meanwhile.
        reached = [await self.store.checkpoint(p) for p in range(self.log.partitions)]
        heads = await self.store.heads(judged)
        for saga_id in judged:
            story, head = self.checker.stories[saga_id], heads.get(saga_id)
            checkpoint = reached[story.partition]
            if checkpoint is None or checkpoint.next_offset <= story.offset:
                continue  # an order of the last moment
            self.checker.counts["heads"] += 1
            found = (head.sequence, head.status) if head is not None else None
            if found != (story.sequence, story.status):
                self.checker.violations.append(
                    f"{saga_id}: the store says {found}, the log {story.sequence, story.status}"
                )

    async def rest(self) -> None:
        """No order any more: wait until all have ended and are projected, then check everything."""
        checker = self.checker
        await self.until(lambda: not checker.unfinished, REST_WITHIN_S)
        ends = {p: (await self.log.bounds(p)).end - 1 for p in self._positions}
        if not await self._projected(ends):
            checker.violations.append("the projector did not come to the end of the log")
        await self.until(lambda: all(self._positions[p] > end for p, end in ends.items()))
        self.listen()
        verified = await verify(self.log, self.store)
        for each in verified.differences:
            checker.violations.append(f"projection: {each.saga_id} {each.what}: {each.detail}")
        heads = await self.store.heads(list(checker.stories))
        checker.check_end({key: (head.sequence, head.status) for key, head in heads.items()})
        checker.counts["verified"] = verified.events
