"""A TCP proxy in front of a server, which does to connections what networks do.

    async with Proxy(server.port) as proxy:
        proxy.port  # connect here
        proxy.hold(Way.TO_SERVER)  # a black hole one way; `release` lets the bytes come late
        proxy.cut_after(1000)  # every connection is reset after so many more bytes
        proxy.reset()  # every connection is reset now
        proxy.delay_s = 0.2  # each chunk of bytes comes that much later

Kafka tells its clients where it is: they reach it through a proxy by `KafkaServer.through_proxy`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from enum import Enum
from typing import Any, Self

CHUNK_BYTES = 65_536


class Way(Enum):
    """Which of the two ways bytes go."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class Proxy:
    """Listens on 127.0.0.1:`port` (0: a free one) for a server on 127.0.0.1:`target`.

    For one event loop. A server that is not there refuses connections here, too, at once.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self.port = port
        self.delay_s = 0.0
        self.connections = 0  # that were made since the start
        self._target = target
        self._server: asyncio.Server | None = None
        self._pumping: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._gates = {way: asyncio.Event() for way in Way}
        self._left: int | None = None  # bytes until connections are reset
        self.release()

    # --- what it does to connections --------------------------------------------------------------

    def hold(self, *ways: Way) -> None:
        """Pass nothing on that goes these ways (both, if none is named): nobody is told."""
        for way in ways or tuple(Way):
            self._gates[way].clear()

    def cut_after(self, count: int) -> None:
        """Reset every connection once so many more bytes went through, in the middle of whatever
        they say."""
        self._left = count

    def reset(self) -> None:
        """Reset every connection, as a router does that has forgotten them."""
        for writer in tuple(self._writers):
            _reset(writer)

    def release(self) -> None:
        """The network is well again: what was held is delivered, late."""
        self._left, self.delay_s = None, 0.0
        for gate in self._gates.values():
            gate.set()

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Take no connections any more, and reset those that there are."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self.reset()
        for task in tuple(self._pumping):
            task.cancel()
        await asyncio.gather(*self._pumping, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._keep(asyncio.ensure_future(self._serve(reader, writer)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._pumping.add(task)
        task.add_done_callback(self._pumping.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)
            return
        ends = (writer, to_server)
        self._writers.update(ends)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, to_server, Way.TO_SERVER))
                group.create_task(self._pump(from_server, writer, Way.TO_CLIENT))
        except* OSError:
            pass
        finally:
            for end in ends:
                _reset(end)
            self._writers.difference_update(ends)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._gates[way].wait()
            if self._left is not None:
                if len(data) >= self._left:
                    writer.write(data[: self._left])
                    await writer.drain()
                    self._left = None
                    self.reset()
                    raise ConnectionResetError
                self._left -= len(data)
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close it such that the other end gets an error instead of an orderly end."""
    raw: Any = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
