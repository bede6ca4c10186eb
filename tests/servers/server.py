"""What all servers have in common: to run, to be killed, to come back."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

T = TypeVar("T")


class Box(Protocol):
    """Where a server runs, a process or a container; its data is kept until `remove`."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def running(self) -> bool: ...
    def log(self) -> str: ...
    def remove(self) -> None: ...


class Server(ABC):
    """A real server on 127.0.0.1:`port`; port and data stay the same for its whole life."""

    name: str

    def __init__(self) -> None:
        self.port = free_port()
        self._box: Box | None = None
        self._paused = False

    @abstractmethod
    def prepare(self) -> None:
        """Fetch what it needs, once; later that takes a moment. `start` does it, too."""

    @abstractmethod
    def _make_box(self) -> Box: ...

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server serves requests now; takes a few seconds at most."""

    @property
    def box(self) -> Box:
        if self._box is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._box

    def start(self, *, timeout_s: float = 60.0) -> Self:
        """Start it and wait until it serves requests."""
        if self._box is None:
            self._box = self._make_box()
        self._box.start()
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if not self._box.running():
                raise RuntimeError(f"{self.name} ended while starting:\n{self._box.log()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: no answer in {timeout_s} s:\n{self._box.log()}")
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """Let it end in order, and forget its data."""
        if self._box is not None:
            self.resume()
            self._box.stop()
            self._box.remove()
            self._box = None

    def kill(self) -> None:
        """What a crash does, SIGKILL: nothing is flushed, nobody is told. The data stays."""
        self.box.kill()
        self._paused = False

    def restart(self) -> None:
        """Start it again on its port and data; if it still runs, it is let end in order first."""
        self.resume()
        self.box.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing answers, until `resume`."""
        self.box.pause()
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self.box.resume()
            self._paused = False

    def ensure_running(self) -> None:
        """Whatever was done to a started server, make it serve again."""
        self.resume()
        if not self.box.running():
            self.start()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_port() -> int:
    """A port that nothing listens on, outside the range used for outgoing connections.

    Inside that range a client that reconnects to a dead server can be given the server's own port,
    connect to itself, and keep the server from coming back.
    """
    first_ephemeral = 32768
    if (setting := Path("/proc/sys/net/ipv4/ip_local_port_range")).exists():
        first_ephemeral = int(setting.read_text().split()[0])
    for _ in range(100):
        port = random.randrange(10_000, max(first_ephemeral, 20_000))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no free port found in 100 tries")


def in_own_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of `work`, run in an event loop of a thread of its own: callable from anywhere."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(lambda: asyncio.run(work())).result()
