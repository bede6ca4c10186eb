"""Programs beside the engines: each a process of its own, that comes back when it was killed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from sagaz_es.testing.simulation import Process

if TYPE_CHECKING:
    from tests.simulation.machine import Simulation


class Program(ABC):
    """One program, through all its lives, until it is `done`."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self._simulation, self._name, self._lives = simulation, name, 0
        self.done = False
        self.process = Process(simulation.loop, f"{name}.0")

    def boot(self) -> None:
        """Its next life begins."""
        self._lives += 1
        loop = self._simulation.loop
        process = self.process = Process(loop, f"{self._name}.{self._lives}")
        process.on_change.append(lambda: self._changed(process))
        process.spawn(self._serve(process))

    @abstractmethod
    async def _serve(self, process: Process) -> None:
        """What it does in one life."""

    def _changed(self, process: Process) -> None:
        if not process.alive and not self.done:
            self._simulation.trace(f"{process.name} dies")
            self._simulation.loop.in_world(1.0, self.boot)
