"""What operators do beside the engines, each in a process of its own.

They look how far the projector is, bring it to the log's end, and fold what was set aside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagaz_es.errors import HistoryGone, SagaError
from sagaz_es.reading.projector import Projector
from sagaz_es.testing.simulation import Process, SimulatedLog, SimulatedStore

if TYPE_CHECKING:
    from tests.simulation.machine import Simulation

PATIENCE_S = 20.0
"""An operator gives a command up after it."""


class Operator:
    """One command of `sagaz-es projector`, from its start to its end or its crash."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        self._simulation = simulation
        self.process = Process(simulation.loop, f"operator-{number}.1")

    async def work(self, what: str, saga_id: str) -> None:
        """Whatever it raises of our own errors is what the operator reads."""
        simulation = self._simulation
        projector = Projector(
            SimulatedLog(simulation.broker, self.process),
            SimulatedStore(simulation.database, self.process),
            clock=simulation.loop,
            batch=2,
            default_policy=simulation.plan.policy,
        )
        words = f"{self.process.name} {what} {saga_id}".rstrip()
        try:
            if what == "catch_up":
                await projector.run_until(timeout_s=PATIENCE_S)
            elif what == "status":
                self._check(await projector.status())
            else:
                await projector.drive(saga_id, pass_over_undecodable=what == "drive_all")
        except HistoryGone as error:
            simulation.stuck.append(f"{words}: what was set aside is gone: {error}")
        except (SagaError, OSError) as error:
            simulation.trace(f"{words}: {type(error).__name__}")
        else:
            simulation.trace(f"{words}: done")

    def _check(self, told: object) -> None:
        for status in told if isinstance(told, tuple) else ():
            ends = self._simulation.broker.partitions[status.partition].end
            if self._simulation.broker.losses:
                continue  # the store may know more than the log
            if not 0 <= status.next_offset <= status.log_end <= ends:
                self._simulation.stuck.append(f"the projector tells {status}, the end is {ends}")
