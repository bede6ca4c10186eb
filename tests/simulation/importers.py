"""Imports of a file beside the engines: killed and run again, and by two people at once.

The file's rows stand in the log once each, in the order of time, however often it is imported.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from sagaz_es.core import events as e
from sagaz_es.errors import SagaError
from sagaz_es.recording.importing import import_csv
from sagaz_es.testing.simulation import Process, SimulatedLog, SimulatedStore
from tests.simulation.programs import Program

if TYPE_CHECKING:
    from tests.simulation.machine import Simulation

NAME = "imported"
FILES = Path(tempfile.mkdtemp(prefix="sagaz-es-simulation-"))
"""Made as this is imported: within a run, names of temporary files would use up its chances."""
atexit.register(shutil.rmtree, FILES, ignore_errors=True)


class Import(Program):
    """A file and who imports it, through all lives. `rows`: saga, step and second of each."""

    def __init__(self, simulation: Simulation, number: int, seed: int) -> None:
        super().__init__(simulation, f"importer-{number}")
        random = Random(f"{seed} rows")
        self.rows = [
            (f"{NAME}-{seed}-{random.randrange(3)}", f"row-{row}", random.randrange(20))
            for row in range(random.choice((3, 10, 30)))
        ]
        # A row of a saga that others record may stand or be refused, by who was first.
        self.others = [("recorded-0", "of-others", 5)] if seed == 1 else []
        self._seed = seed

    @property
    def path(self) -> Path:
        return FILES / f"{self._simulation.plan.seed}-{self._seed}.csv"

    def boot(self) -> None:
        rows = self.rows + self.others
        lines = [f"{saga},{step},2025-06-01T10:00:{at:02}" for saga, step, at in rows]
        self.path.write_text("\n".join(["case,step,at", *lines]))
        super().boot()

    async def _serve(self, process: Process) -> None:
        simulation = self._simulation
        log = SimulatedLog(simulation.broker, process)
        store = None
        if simulation.plan.store != "none":
            store = SimulatedStore(simulation.database, process)
        while not self.done:
            try:
                result = await import_csv(
                    log,
                    self.path,
                    saga_name=NAME,
                    saga_id_column="case",
                    step_column="step",
                    time_column="at",
                    store=store,
                    retry_seconds=3.0,
                )
                self.done = True
                simulation.trace(f"{process.name} {result.events} rows, {result.skipped} stood")
            except (SagaError, OSError) as error:
                simulation.trace(f"{process.name}: {type(error).__name__}")
                await asyncio.sleep(0.5)

    def judge(self, accepted: dict[str, list[tuple[int, e.Event]]]) -> Iterator[str]:
        """Each row stands once, in the order of time, those of one time as in the file."""
        for saga_id in sorted({saga_id for saga_id, _, _ in self.rows}):
            if saga_id in self._simulation.losses.sagas:
                continue
            mine = [row for row in self.rows if row[0] == saga_id]
            expected = [step for _, step, _ in sorted(mine, key=lambda row: row[2])]
            facts = [event.fact for _, event in accepted.get(saga_id, [])]
            told = [fact.step for fact in facts if isinstance(fact, e.StepCompleted)]
            if told != expected:
                yield f"import: {saga_id} has {told}, the file {expected}"
