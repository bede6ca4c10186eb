"""Store = fold: for any events, in any batches, through failures and races."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, fold_into
from sagaz_es.core.snapshot import SnapshotPolicy, SnapshotStrategy, dump_policy
from sagaz_es.core.state import SagaState, load_state
from sagaz_es.errors import StorageFailed, Unreachable
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Projection
from sagaz_es.reading import projector as projecting
from sagaz_es.reading.projector import Projector
from sagaz_es.storage.memory import MemoryProjectionStore
from sagaz_es.testing.contracts.histories import NOON, declined_facts, order_facts

WRITERS = (b"a" * 16, b"b" * 16)
POLICIES = (
    "",
    '"off"',
    dump_policy(SnapshotPolicy(SnapshotStrategy.BEFORE_EACH_STEP)),
    dump_policy(SnapshotPolicy(SnapshotStrategy.EVERY_N_EVENTS, every_events=2)),
)


@dataclass(frozen=True)
class Story:
    """What stands in a log, and how the projectors of it fare."""

    entries: tuple[e.Entry, ...]
    seed: int
    batch: int
    projectors: int


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Sagas told by writers that own them, and by others; late, early, twice, and out of order."""
    entries: list[e.Entry] = []
    for number in range(draw(st.integers(1, 4))):
        policy = draw(st.sampled_from(POLICIES))
        facts = list(draw(st.sampled_from((order_facts(policy=policy), declined_facts(policy)))))
        recorded = draw(st.booleans())
        writer = draw(st.sampled_from(WRITERS))
        told: list[e.Entry] = [
            e.Event(
                f"order-{number}",
                "order",
                writer,
                e.RECORDED_EPOCH if recorded else 0,
                place,
                NOON + place,
                fact,
            )
            for place, fact in enumerate(facts, 1)
        ]
        told += draw(st.lists(st.sampled_from(told), max_size=4))  # again
        if draw(st.booleans()):
            taken = draw(st.integers(2, len(facts)))
            told.append(
                e.Event(f"order-{number}", "order", b"n" * 16, 1, taken, NOON, e.SagaClaimed())
            )
        if draw(st.booleans()):
            told.append(e.ReplayLogged(f"q-{number}", f"order-{number}", NOON, replay_id="r"))
        if draw(st.booleans()):
            told = draw(st.permutations(told))
        entries += told
    if draw(st.booleans()):
        entries = draw(st.permutations(entries))
    return Story(
        tuple(entries),
        draw(st.integers(0, 1000)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 3)),
    )


class Unsteady(MemoryProjectionStore):
    """Fails now and then, before or after a commit took effect, and takes its time."""

    def __init__(self, chosen: random.Random) -> None:
        super().__init__()
        self._chosen = chosen
        self.steady = False

    async def commit(self, projection: Projection, *, expected: int) -> None:
        await asyncio.sleep(0)
        luck = 0.5 if self.steady else self._chosen.random()
        if luck < 0.15:
            raise StorageFailed("here", "full")
        await super().commit(projection, expected=expected)
        if luck > 0.85:
            raise Unreachable("store", "here")

    async def heads(self, saga_ids: object) -> dict[str, SagaState]:
        await asyncio.sleep(0)
        if not self.steady and self._chosen.random() < 0.1:
            raise Unreachable("store", "here")
        return await super().heads(saga_ids)  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def no_waiting() -> object:
    patch = pytest.MonkeyPatch()
    patch.setattr(projecting, "BACKOFF_S", 0.0)
    yield
    patch.undo()


async def project(story: Story) -> Unsteady:
    log = MemoryEventLog(1)
    await log.append(0, story.entries)
    store = Unsteady(random.Random(story.seed))
    projectors = [Projector(log, store, batch=story.batch) for _ in range(story.projectors)]
    await asyncio.gather(*(projector.run_until() for projector in projectors))
    store.steady = True
    return store


@settings(max_examples=150, deadline=None)
@given(stories())
def test_store_is_fold(story: Story) -> None:
    store = asyncio.run(project(story))
    states: dict[str, SagaState] = {}
    accepted: dict[str, list[e.Event]] = {}
    rejected: dict[str, int] = {}
    reached: dict[tuple[str, int], SagaState] = {}
    for event in story.entries:
        if isinstance(event, e.Event):
            state = states.setdefault(event.saga_id, SagaState())
            verdict = fold_into(state, event)
            if verdict is Verdict.ACCEPTED:
                accepted.setdefault(event.saga_id, []).append(event)
                reached[event.saga_id, state.sequence] = state.copy()
            else:
                rejected[verdict.value] = rejected.get(verdict.value, 0) + 1
    expected = {saga_id: state for saga_id, state in states.items() if state.sequence}
    assert asyncio.run(store.heads(states)) == expected
    assert asyncio.run(store.rejected()) == rejected
    assert asyncio.run(store.parked()) == ()
    for saga_id in states:
        archived = asyncio.run(store.archived(saga_id))
        assert [a.event for a in archived] == accepted.get(saga_id, [])
        assert [a.sequence for a in archived] == list(range(1, len(archived) + 1))
        for snapshot in asyncio.run(store.snapshots(saga_id)):
            assert load_state(snapshot.state) == reached[saga_id, snapshot.sequence]
