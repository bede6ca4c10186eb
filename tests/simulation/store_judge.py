"""The judge of stores: what a projector keeps, and answers about the past, against the fold."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from random import Random

from sagaz_es.codec.values import from_text
from sagaz_es.core import events as e
from sagaz_es.core.fold import fold_all
from sagaz_es.core.state import SagaState, load_state
from sagaz_es.errors import SagaError
from sagaz_es.reading.historical import HistoricalState
from sagaz_es.reading.projector import Projector
from sagaz_es.reading.time_travel import SagaHistory
from sagaz_es.snapshots import from_us
from sagaz_es.testing.simulation import Database, Process, SimulatedLog, SimulatedStore
from tests.simulation.machine import Simulation

States = dict[str, SagaState]
Accepted = dict[str, list[tuple[int, e.Event]]]


async def judge_stores(simulation: Simulation, states: States, accepted: Accepted) -> list[str]:
    """Bring the store up to the log's end, as a projector that comes anew would; compare. At times
    also make a store from nothing."""
    random = Random(f"{simulation.plan.seed} judge")
    process = Process(simulation.loop, "judge")
    databases = [] if simulation.plan.store == "none" else [simulation.database]
    if random.random() < 0.2 and not simulation.counts["retentions"]:
        databases.append(Database(simulation.broker))
    found: list[str] = []
    for database in databases:
        judge = _StoreJudge(simulation, process, database, random, states, accepted)
        task = process.spawn(judge.judge())
        found += await task
    return found


class _StoreJudge:
    def __init__(
        self,
        simulation: Simulation,
        process: Process,
        database: Database,
        random: Random,
        states: States,
        accepted: Accepted,
    ) -> None:
        self._log = SimulatedLog(simulation.broker, process)
        self._store, self._kept = SimulatedStore(database, process), database.kept
        self._random, self._simulation = random, simulation
        self._states, self._accepted = states, accepted

    async def judge(self) -> list[str]:
        projector = Projector(
            self._log,
            self._store,
            clock=self._simulation.loop,
            batch=self._random.choice((2, 100)),
            default_policy=self._simulation.plan.policy,
        )
        try:
            await projector.run_until(timeout_s=60)
            for parked in await self._kept.parked(1000):
                if parked.saga_id in self._states:
                    await projector.drive(parked.saga_id, pass_over_undecodable=True)
        except (SagaError, TimeoutError, ExceptionGroup) as error:
            return [f"projection is not the fold: the projector ends with {error!r}"]
        found = [found async for found in self._compare()]
        for parked in await self._kept.parked(1000):
            if parked.saga_id in self._states:
                found.append(f"set aside for ever: {parked.saga_id} at {parked.offset}")
        return found

    async def _compare(self) -> AsyncIterator[str]:
        heads = await self._kept.heads(self._states)
        for saga_id, state in self._states.items():
            if heads.get(saga_id, SagaState()) != state:
                head = heads.get(saga_id)
                told = None if head is None else (head.sequence, head.status)
                yield f"projection is not the fold: {saga_id}: {told}"
            archive = await self._kept.archived(saga_id)
            if [(a.offset, a.event) for a in archive] != self._accepted.get(saga_id, []):
                yield f"archive is not what was accepted: {saga_id}"
            for snapshot in await self._kept.snapshots(saga_id, limit=1000):
                if load_state(snapshot.state) != self._at(saga_id, snapshot.sequence):
                    yield f"snapshot is not the fold: {saga_id} at {snapshot.sequence}"
        summaries = await self._kept.summaries(limit=1000)
        for summary in summaries:
            state = self._states.get(summary.saga_id, SagaState())
            if (summary.status, summary.sequence) != (state.status, state.sequence):
                yield f"summary is not the fold: {summary}"
        known = sorted(saga_id for saga_id, state in self._states.items() if state.sequence)
        for saga_id in self._random.sample(known, min(2, len(known))):
            async for wrong in self._travel(saga_id):
                yield wrong

    def _at(self, saga_id: str, sequence: int) -> SagaState:
        return fold_all(event for _, event in self._accepted[saga_id][:sequence])

    async def _travel(self, saga_id: str) -> AsyncIterator[str]:
        events = [event for _, event in self._accepted[saga_id]]
        sequence = self._random.randint(1, len(events))
        times = [self._at(saga_id, n).updated_at for n in range(1, len(events) + 1)]
        at = self._random.choice(times)
        last = max(n for n, time in enumerate(times, 1) if time <= at)
        for words, point, expected in (
            ("time travel", sequence, sequence),
            ("time travel by time", from_us(at), last),
        ):
            told = await self._told(saga_id, point)
            if isinstance(told, SagaError) or not _same(told, self._at(saga_id, expected)):
                said = repr(told) if isinstance(told, SagaError) else told.sequence
                yield f"{words} is not the fold: {saga_id} at {point}: {said}"

    async def _told(self, saga_id: str, point: int | datetime) -> HistoricalState | SagaError:
        """The answer of the one who is judged, which may be that there is none."""
        try:
            return await SagaHistory(saga_id, self._log, self._store).state_at(point)
        except SagaError as error:
            return error


def _same(told: HistoricalState, state: SagaState) -> bool:
    values = {key: from_text(text) for key, text in state.context.items()}
    answer = told.sequence, str(told.status), told.context
    return answer == (state.sequence, state.status, values)
