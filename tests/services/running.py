"""Processes of tests: started, waited for, ended with the test; and what their steps write down."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
APP = "tests.services.takeover_worker:Order"
PATIENCE_S = 60.0


class Ledger:
    """What the steps did, as they wrote it down themselves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, what: str) -> list[list[str]]:
        if not self.path.exists():
            return []
        rows = [line.split("\t") for line in self.path.read_text().splitlines()]
        return [row for row in rows if row[0] == what]

    def count(self, what: str) -> Counter[str]:
        return Counter(row[1] for row in self.rows(what))


class Processes:
    """Programs of `tests.services`, each in a process of its own."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def start(self, program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`environment` comes to ours; what it prints can be read from `stdout`."""
        process = subprocess.Popen(
            [sys.executable, "-m", f"tests.services.{program}", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def worker(
    processes: Processes,
    url: str,
    ledger: Ledger,
    orders: int,
    seconds: float,
    pause: float = 0.0,
    **more: str,
) -> subprocess.Popen[str]:
    """An engine that starts so many orders; each charge takes `seconds`."""
    return processes.start(
        "takeover_worker",
        url,
        str(orders),
        LEDGER=str(ledger.path),
        CHARGE_SECONDS=str(seconds),
        START_PAUSE_SECONDS=str(pause),
        **more,
    )


async def said(process: subprocess.Popen[str], word: str) -> str:
    """The line that it prints which begins so."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = await asyncio.to_thread(process.stdout.readline)
                assert line, f"the process ended before it said {word!r}"
                if line.startswith(word):
                    return line
    except TimeoutError:
        process.kill()  # or the thread that reads would hold up the end of the test for ever
        raise AssertionError(f"it did not say {word!r} within {PATIENCE_S:g} s") from None


async def until(ledger: Ledger, what: str, orders: int) -> None:
    """Until this has happened to so many orders."""
    async with asyncio.timeout(PATIENCE_S):
        while len(ledger.count(what)) < orders:  # noqa: ASYNC110 - a file of other processes
            await asyncio.sleep(0.05)


async def charges(ledger: Ledger, process: subprocess.Popen[str], more: int) -> None:
    """Until this process has charged so many more orders than now."""
    pid = str(process.pid)

    def count() -> int:
        return sum(row[4] == pid for row in ledger.rows("charge"))

    wanted = count() + more
    async with asyncio.timeout(100):
        while count() < wanted:  # noqa: ASYNC110 - a file of other processes
            await asyncio.sleep(0.05)


class Workers:
    """Starts workers on one log; their charges take `seconds`."""

    def __init__(self, log: str, ledger: Ledger) -> None:
        self.log, self.ledger = log, ledger
        self.started: list[Worker] = []

    def start(self, seconds: float, *options: str, app: str = APP) -> Worker:
        run = ("engine", "run", "--log", self.log, "--app", app, "--health-port", "0", *options)
        process = subprocess.Popen(
            [sys.executable, "-m", "sagaz_es_cli", *run, "--log-format", "json"],
            cwd=ROOT,
            env={
                **os.environ,
                "LEDGER": str(self.ledger.path),
                "CHARGE_SECONDS": str(seconds),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(Worker(process))
        return self.started[-1]


class Worker:
    """A process that was told `engine run`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.process, self.lines = process, process.stderr
        self.url = self._said("health: ").split()[1].removesuffix("/healthz")

    def _said(self, start: str) -> str:
        for line in self.lines:
            message: str = json.loads(line)["message"]
            if message.startswith(start):
                return message
        raise AssertionError(f"the worker ended before it said {start!r}")

    async def probe(self, page: str) -> tuple[int, dict[str, Any]]:
        return await asyncio.to_thread(self._probe, page)

    def _probe(self, page: str) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(self.url + page, timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as refused:
            return refused.code, json.load(refused)

    async def ready(self) -> dict[str, Any]:
        """Its health, once it serves."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                status, body = await self.probe("/readyz")
                if status == 200:
                    return body

    async def serves(self, partitions: int) -> None:
        """Wait until it has so many."""
        async with asyncio.timeout(20):
            while len((await self.ready())["partitions"]) != partitions:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def ended(self) -> int:
        """Its exit status."""
        status, _ = await self.last_words()
        return status

    async def last_words(self) -> tuple[int, list[str]]:
        """Its exit status, and what it logged until then."""
        async with asyncio.timeout(PATIENCE_S):
            text = await asyncio.to_thread(self.lines.read)
            status = await asyncio.to_thread(self.process.wait)
        return status, [json.loads(line)["message"] for line in text.splitlines()]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.lines.close()
