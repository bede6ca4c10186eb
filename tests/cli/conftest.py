"""The command line in this process, on a log in memory; and as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from sagaz_es import SagaResult, connect
from sagaz_es_cli.main import main

from .shop import OrderSaga

APP = "tests.cli.shop:OrderSaga"


@dataclass(frozen=True)
class Output:
    """What a command gave."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The last line of stderr."""
        return self.stderr.strip().splitlines()[-1]


class TickingClock:
    """Each look at it is a second later than the one before; nobody waits."""

    def __init__(self, start_us: int = 1_767_261_600_000_000) -> None:  # 2026-01-01 10:00 UTC
        self._now = start_us

    def now(self) -> int:
        self._now += 1_000_000
        return self._now

    async def sleep_until(self, when: int) -> None:
        self._now = max(self._now, when)


@dataclass
class Shop:
    """A log in memory, commands on it in this process, and sagas to have there."""

    log: str
    env: dict[str, str | None] = field(default_factory=dict)
    clock: TickingClock = field(default_factory=TickingClock)

    def run(self, *arguments: str, input: str | None = None) -> Output:
        """A command on this log; without a terminal."""
        env = {"SAGAZ_ES_LOG": self.log, "SAGAZ_ES_STORE": None, "SAGAZ_ES_APP": None} | self.env
        result = CliRunner().invoke(main, arguments, env=env, input=input, prog_name="sagaz-es")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Output(result.exit_code, result.stdout, result.stderr)

    def order(self, saga_id: str, **context: Any) -> SagaResult:
        """An order that has run to its end; `token="good"` is paid."""

        async def work() -> SagaResult:
            async with connect(self.log, sagas=[OrderSaga], clock=self.clock) as engine:
                return await engine.run(OrderSaga, {"token": "good"} | context, saga_id=saga_id)

        return asyncio.run(work())


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What the shop did in this test so far."""
    path = tmp_path / "ledger"
    monkeypatch.setenv("SHOP_LEDGER", str(path))
    return lambda: path.read_text(encoding="utf-8").split() if path.exists() else []


@pytest.fixture
def shop() -> Shop:
    """A log of its own."""
    return Shop(f"memory://{uuid4().hex}")


@dataclass(frozen=True)
class Project:
    """A directory with shop.py; commands run there as processes of their own."""

    path: Path
    env: Mapping[str, str]

    @contextmanager
    def start(
        self,
        *arguments: str,
        stdout: int | IO[str] = subprocess.PIPE,
        code: str = "",
        **env: str,
    ) -> Iterator[subprocess.Popen[str]]:
        """A command that runs beside the test, not longer than the test needs it. `code`: what
        runs it, if it is not the program as it is."""
        program = ("-c", code) if code else ("-m", "sagaz_es_cli")
        with subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=self.path,
            env=dict(self.env) | env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str, stdout: int | IO[str] = subprocess.PIPE, **env: str) -> Output:
        """A command, and what it gave."""
        with self.start(*arguments, stdout=stdout, **env) as process:
            told = process.communicate(timeout=60)
        return Output(process.returncode, told[0] or "", told[1])


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with nothing configured: log and store are one file there."""
    directory = tmp_path / "project"
    directory.mkdir()
    shutil.copy(Path(__file__).with_name("shop.py"), directory)
    env = {name: value for name, value in os.environ.items() if not name.startswith("SAGAZ_ES_")}
    return Project(directory, env | {"SHOP_LEDGER": str(tmp_path / "ledger")})
