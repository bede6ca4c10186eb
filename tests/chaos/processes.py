"""Engines and projectors as processes: started, frozen, killed, their memory measured."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from msgspec import Struct

ROOT = Path(__file__).parents[2]
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""As the guide advises (docs/how-to/run-a-worker.md): what is freed goes back to the system."""


class Memory(Struct, frozen=True):
    """What a process took, in bytes, at a time of `time.monotonic`."""

    at: float
    pid: int
    size: int


class Process:
    """A worker that can be started again under its name; its standard output goes to a file."""

    def __init__(self, name: str, role: str, directory: Path, **settings: Any) -> None:
        self.name, self.role = name, role
        self.memory: list[Memory] = []
        self.starts = 0
        self._log = directory / f"{name}.log"
        self._skew = directory / f"{name}.skew"
        self._skew.write_bytes(bytes(8))
        skew = {"skew": str(self._skew), "name": name}
        self._settings = settings | skew
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: psutil.Process | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> float:
        """When it was started."""
        self._end_pipe()
        self.starts += 1
        command = [sys.executable, "-m", "tests.chaos.worker", self.role]
        command.append(json.dumps(self._settings))
        began = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | MALLOC,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        self._seen = psutil.Process(self._process.pid)
        return began

    def send(self, number: signal.Signals) -> None:
        if self.running:
            assert self._process is not None
            self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.send(signal.SIGKILL)
        self._wait()

    def stop(self, timeout_s: float = 30.0) -> bool:
        """SIGTERM; whether it ended in time (else it is killed)."""
        self.send(signal.SIGTERM)
        try:
            if self._process is not None:
                self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def skew(self, seconds: float) -> None:
        """Let its clock go wrong by so much, from now on."""
        with self._skew.open("r+b") as file:
            file.write(struct.pack("<q", int(seconds * 1e9)))

    def measure(self) -> None:
        """Note what it takes now."""
        if self.running and self._seen is not None:
            try:
                size = self._seen.memory_info().rss
            except psutil.Error:
                return
            self.memory.append(Memory(time.monotonic(), self.pid, size))

    def said(self) -> str:
        """The end of what it printed."""
        return self._log.read_text(errors="replace")[-3000:] if self._log.exists() else ""

    def end(self) -> None:
        self.kill()
        self._end_pipe()

    def _wait(self) -> None:
        if self._process is not None:
            self._process.wait()

    def _end_pipe(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
