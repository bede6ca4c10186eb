"""The proxy that stands between clients and servers in other tests: what it does to bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from tests.servers import Proxy, Way
from tests.servers.server import free_port

PATIENCE_S = 20.0


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """The port of a server that says everything twice."""

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1000):
                writer.write(data * 2)
                await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(twice, "127.0.0.1")
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def proxy(echo: int) -> AsyncIterator[Proxy]:
    async with Proxy(echo) as proxy:
        yield proxy


class Client:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, proxy: Proxy) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    async def heard(self, count: int) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.readexactly(count)

    async def hears_nothing(self) -> bool:
        try:
            async with asyncio.timeout(0.2):
                return not await self._reader.read(1)
        except TimeoutError:
            return True

    async def is_reset(self) -> bytes:
        """What was heard until the connection was reset."""
        data = b""
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(ConnectionResetError):
                while more := await self._reader.read(1000):
                    data += more
        self._writer.transport.abort()
        return data

    def close(self) -> None:
        self._writer.transport.abort()


async def test_bytes_go_both_ways(proxy: Proxy) -> None:
    client = await Client.of(proxy)
    client.say(b"abc")
    assert await client.heard(6) == b"abcabc"
    assert proxy.connections == 1
    client.close()


@pytest.mark.parametrize("way", Way)
async def test_what_a_black_hole_held_comes_late_and_whole(proxy: Proxy, way: Way) -> None:
    client = await Client.of(proxy)
    proxy.hold(way)
    client.say(b"abc")
    assert await client.hears_nothing()
    proxy.release()
    assert await client.heard(6) == b"abcabc"
    client.close()


async def test_a_connection_is_cut_in_the_middle_of_what_it_says(proxy: Proxy) -> None:
    client = await Client.of(proxy)
    proxy.cut_after(7)
    client.say(b"abcde")  # five there, two of ten back
    assert b"abcdeabcde".startswith(await client.is_reset())
    client = await Client.of(proxy)
    client.say(b"abc")
    assert await client.heard(6) == b"abcabc"
    client.close()


async def test_all_connections_are_reset_at_once(proxy: Proxy) -> None:
    clients = [await Client.of(proxy) for _ in range(3)]
    for client in clients:
        client.say(b"a")
        await client.heard(2)
    proxy.reset()
    for client in clients:
        assert await client.is_reset() == b""


async def test_a_server_that_is_not_there_refuses(proxy: Proxy) -> None:
    async with Proxy(free_port()) as nobody:
        assert await (await Client.of(nobody)).is_reset() == b""
