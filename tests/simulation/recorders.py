"""Services that record sagas of their own, each in a process of its own, beside the engines.

Each has a list of things to tell of one saga. It tells one after the other, the same again when
it does not know whether it stands; killed, it comes back and goes on behind the last that was
confirmed. Two of them may record one saga.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sagaz_es.core import events as e
from sagaz_es.errors import SagaError
from sagaz_es.recording.recorder import SagaRecorder
from sagaz_es.testing.simulation import Process, SimulatedLog
from tests.simulation.programs import Program

if TYPE_CHECKING:
    from tests.simulation.machine import Simulation

NAME = "recorded"


class Recording(Program):
    """One service, through all its lives. `confirmed`: what it was told that it stands."""

    def __init__(
        self, simulation: Simulation, number: int, saga_id: str, facts: int, remembered: int
    ) -> None:
        super().__init__(simulation, f"recorder-{number}")
        self._number = number
        self.saga_id, self._facts, self._remembered = saga_id, facts, remembered
        self.confirmed: list[str] = []  # names of steps

    async def _serve(self, process: Process) -> None:
        simulation = self._simulation
        log = SimulatedLog(simulation.broker, process)
        recorder = SagaRecorder(
            log,
            NAME,
            clock=simulation.loop,
            retry_seconds=3.0,
            remembered_sagas=self._remembered,
        )
        while True:
            try:
                await recorder.__aenter__()
                break
            except (SagaError, OSError):
                await asyncio.sleep(0.5)
        while len(self.confirmed) < self._facts:
            step = f"step-{self._number}-{len(self.confirmed)}"
            try:
                await recorder.step_completed(self.saga_id, step, {step: len(self.confirmed)})
                self.confirmed.append(step)
            except (SagaError, OSError) as error:
                simulation.trace(f"{process.name} {step}: {type(error).__name__}")
            if simulation.random.random() < 0.3:
                # More sagas than it remembers: it begins anew, with another writer's id.
                with contextlib.suppress(SagaError, OSError):
                    await recorder.started(f"{self.saga_id}-aside-{simulation.random.random()}")
            await asyncio.sleep(simulation.random.random() * 0.4)
        self.done = True
        await recorder.close()

    def judge(self, accepted: list[e.Event]) -> Iterator[str]:
        """What was confirmed stands, in its order."""
        told = [one.fact.step for one in accepted if isinstance(one.fact, e.StepCompleted)]
        at = -1
        for step in self.confirmed:
            if step not in told[at + 1 :]:
                yield f"lost record: {self.saga_id}/{step} was confirmed, and is not accepted"
                return
            at = told.index(step, at + 1)


def judge_recorded(
    simulation: Simulation, accepted: dict[str, list[tuple[int, e.Event]]]
) -> Iterator[str]:
    """The fold takes the next number of each writer, and nothing that was confirmed is lost."""
    for saga_id in {recording.saga_id: None for recording in simulation.recordings}:
        if saga_id in simulation.losses.sagas:
            continue
        expected = list(_next_of_each(simulation, saga_id))
        if [event for _, event in accepted.get(saga_id, [])] != expected:
            yield f"fold is not the model: {saga_id}, which is recorded"
        for recording in simulation.recordings:
            if recording.saga_id == saga_id:
                yield from recording.judge(expected)


def _next_of_each(simulation: Simulation, saga_id: str) -> Iterator[e.Event]:
    counts: dict[bytes, int] = {}
    for partition in simulation.broker.partitions:
        for record in partition.of_saga.get(saga_id, ()):
            event = record.entry
            if isinstance(event, e.Event) and event.epoch == e.RECORDED_EPOCH:
                if event.sequence == counts.get(event.writer, 0) + 1:
                    counts[event.writer] = event.sequence
                    yield event
