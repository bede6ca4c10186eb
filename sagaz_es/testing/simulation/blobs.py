"""BlobStore of one simulated process: slow, with outages, and with blobs that somebody deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from sagaz_es.blobs.hashing import key_of
from sagaz_es.errors import StorageFailed, Unreachable
from sagaz_es.testing.simulation.broker import DEADLINE_S, Broker
from sagaz_es.testing.simulation.points import caller
from sagaz_es.testing.simulation.processes import Process
from sagaz_es.testing.simulation.server import Server


class Bucket(Server):
    """What all processes' blob stores stand on. `gone`: keys that it does not find."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        self.kept: dict[str, bytes] = {}  # whatever was put, for whoever judges
        self.gone: set[str] = set()


class SimulatedBlobs:
    """BlobStore of one process on a Bucket. A put whose answer is lost has happened."""

    name = "simulated://blobs"

    def __init__(self, bucket: Bucket, process: Process) -> None:
        self._bucket, self._process = bucket, process

    async def close(self) -> None:
        """Nothing to disconnect."""

    def put(self, data: bytes) -> Coroutine[Any, Any, str]:
        return self._put(f"{caller(2)}: blobs.put", data)

    async def _put(self, point: str, data: bytes) -> str:
        await self._past(f"{point}, before")
        await self._travel("put")
        key = key_of(data)
        self._bucket.kept[key] = data
        self._bucket.gone.discard(key)
        await self._answers("put")
        await self._past(f"{point}, after")
        return key

    def get(self, key: str) -> Coroutine[Any, Any, bytes | None]:
        return self._get(f"{caller(2)}: blobs.get", key)

    async def _get(self, point: str, key: str) -> bytes | None:
        await self._past(f"{point}, before")
        await self._travel("get")
        data = None if key in self._bucket.gone else self._bucket.kept.get(key)
        await self._past(f"{point}, after")
        return data

    async def _past(self, point: str) -> None:
        broker = self._bucket.broker
        if not broker.points.reach(self._process, point):
            await broker.loop.create_future()

    async def _travel(self, what: str) -> None:
        broker = self._bucket.broker
        if self._process.cut or self._bucket.is_down:
            broker.faults += 1
            await asyncio.sleep(DEADLINE_S)
            raise Unreachable("the blob store", self.name, what)
        if broker.weather.blob_errors and broker.random.random() < broker.weather.blob_errors:
            broker.faults += 1
            raise StorageFailed(self.name, f"{what} failed")
        await asyncio.sleep(broker.latency())

    async def _answers(self, what: str) -> None:
        broker = self._bucket.broker
        if broker.weather.blob_errors and broker.random.random() < broker.weather.blob_errors:
            broker.faults += 1
            raise Unreachable("the blob store", self.name, f"the answer to {what} was lost")
