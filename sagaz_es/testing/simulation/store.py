"""ProjectionStore of one simulated process: the memory store, with outages and lost answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from sagaz_es.errors import StorageFailed, Unreachable
from sagaz_es.storage.memory import MemoryProjectionStore
from sagaz_es.testing.simulation.broker import DEADLINE_S, Broker
from sagaz_es.testing.simulation.points import PORTS, caller
from sagaz_es.testing.simulation.processes import Process
from sagaz_es.testing.simulation.server import Server

WRITES = frozenset({"commit", "save_snapshot", "delete_snapshot", "save_replay", "forget"})


class Database(Server):
    """What all processes' stores stand on; what it had committed it has after an outage, too."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self.kept = MemoryProjectionStore(clock=broker.loop)


class SimulatedStore:
    """ProjectionStore of one process on a Database. A write whose answer is lost may stand."""

    name = "simulated://store"

    def __init__(self, database: Database, process: Process) -> None:
        self._database, self._process = database, process

    async def open(self) -> None:
        await self._travel("open")

    async def close(self) -> None:
        """Nothing to disconnect."""

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if name not in PORTS["store"]:
            raise AttributeError(name)

        def call(*args: Any, **options: Any) -> Coroutine[Any, Any, Any]:
            return self._call(f"{caller(2)}: store.{name}", name, args, options)

        self.__dict__[name] = call
        return call

    async def _call(
        self, point: str, name: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        database, process = self._database, self._process
        points = database.broker.points
        if not points.reach(process, f"{point}, before"):
            await database.broker.loop.create_future()
        await self._travel(name)
        answer = await getattr(database.kept, name)(*args, **options)
        weather = database.broker.weather
        if name in WRITES and weather.store_errors:
            if database.broker.random.random() < weather.store_errors:
                database.broker.faults += 1
                raise Unreachable("the store", self.name, "its answer was lost")
        if not points.reach(process, f"{point}, after"):
            await database.broker.loop.create_future()
        return answer

    async def _travel(self, what: str) -> None:
        database, broker = self._database, self._database.broker
        if self._process.cut or database.is_down:
            broker.faults += 1
            await asyncio.sleep(DEADLINE_S)
            raise Unreachable("the store", self.name, what)
        if broker.weather.store_errors and broker.random.random() < broker.weather.store_errors:
            broker.faults += 1
            raise StorageFailed(self.name, f"{what} failed")
        if broker.random.random() < 0.5:
            await asyncio.sleep(broker.latency())
