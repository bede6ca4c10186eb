"""The projector on a memory log and a memory store: what it keeps, sets aside, and survives."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from sagaz_es.core import events as e
from sagaz_es.core.fold import fold_all
from sagaz_es.core.snapshot import SnapshotPolicy, SnapshotStrategy, dump_policy
from sagaz_es.core.state import load_state
from sagaz_es.errors import (
    LogReplaced,
    LogTruncated,
    StorageFailed,
    StoreOfAnotherLog,
    Unreachable,
)
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Checkpoint, Chunk, ParkedRecord, Projection
from sagaz_es.reading.projection import verify_checkpoint
from sagaz_es.reading.projector import Projector
from sagaz_es.storage.memory import MemoryProjectionStore
from sagaz_es.testing.contracts.histories import NOON, declined_facts, history, order_facts
from sagaz_es.testing.virtual_time import VirtualTimeLoop

BEFORE = dump_policy(SnapshotPolicy(SnapshotStrategy.BEFORE_EACH_STEP))


class Unheard(e.Fact, frozen=True, gc=False):
    """A fact that this version's fold does not know."""


class Shaky(MemoryProjectionStore):
    """A store whose next commits fail, before or after they took effect."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: list[tuple[Exception, bool]] = []

    async def commit(self, projection: Projection, *, expected: int) -> None:
        if self.failing:
            error, stands = self.failing.pop(0)
            if stands:
                await super().commit(projection, expected=expected)
            raise error
        await super().commit(projection, expected=expected)


@pytest.fixture
def log() -> MemoryEventLog:
    return MemoryEventLog(1)


@pytest.fixture
def store() -> Shaky:
    return Shaky()


@contextlib.asynccontextmanager
async def running(projector: Projector) -> AsyncIterator[None]:
    task = asyncio.create_task(projector.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_saga_becomes_its_head_its_archive_and_its_summary(
    log: MemoryEventLog, store: Shaky
) -> None:
    events = history("order-17")
    await log.append(0, events)
    await Projector(log, store).run_until()
    assert await store.heads(["order-17"]) == {"order-17": fold_all(events)}
    assert tuple(a.event for a in await store.archived("order-17")) == events
    (summary,) = await store.summaries()
    assert (summary.saga_id, summary.status, summary.started_at) == ("order-17", "completed", NOON)


async def test_a_second_projector_goes_on_where_the_first_one_stopped(
    log: MemoryEventLog, store: Shaky
) -> None:
    events = history("order-17")
    await log.append(0, events[:4])
    await Projector(log, store).run_until()
    await log.append(0, events[4:])
    await Projector(log, store).run_until()
    assert await store.heads(["order-17"]) == {"order-17": fold_all(events)}


async def test_late_and_foreign_events_are_counted_and_change_nothing(
    log: MemoryEventLog, store: Shaky
) -> None:
    events = history("order-17")
    zombie = history("order-17", writer=b"z" * 16)
    await log.append(0, (*events[:4], *events[:2], *zombie[:3], *events[4:], events[7]))
    projector = Projector(log, store, batch=3)
    await projector.run_until()
    assert await store.heads(["order-17"]) == {"order-17": fold_all(events)}
    assert [a.sequence for a in await store.archived("order-17")] == list(range(1, 9))
    assert await store.rejected() == {"duplicate": 3, "exists": 1, "stale_writer": 2}


async def test_before_each_step_leaves_three_snapshots(log: MemoryEventLog, store: Shaky) -> None:
    await log.append(0, history("order-17", order_facts(policy=BEFORE)))
    await Projector(log, store, batch=2).run_until()
    snapshots = (await store.snapshots("order-17"))[::-1]
    assert [(s.step, s.step_index, s.completed_steps) for s in snapshots] == [
        ("reserve", 0, ()),
        ("charge", 1, ("reserve",)),
        ("ship", 2, ("reserve", "charge")),
    ]
    assert [load_state(s.state).context for s in snapshots] == [
        {"sku": '"A1"'},
        {"sku": '"A1"', "reservation": "1"},
        {"sku": '"A1"', "reservation": "1", "payment": "2"},
    ]


async def test_a_snapshot_and_the_rest_are_the_whole_fold(
    log: MemoryEventLog, store: Shaky
) -> None:
    events = history("order-17", order_facts(policy=BEFORE))
    await log.append(0, events)
    await Projector(log, store).run_until()
    for upto in range(1, 9):
        snapshot = await store.nearest_snapshot("order-17", sequence=upto)
        assert snapshot is not None and snapshot.sequence <= upto
        rest = await store.archived("order-17", after=snapshot.sequence, upto=upto)
        state = fold_all((a.event for a in rest), load_state(snapshot.state))
        assert state == fold_all(events[:upto])


async def test_no_more_snapshots_are_kept_than_the_policy_says(
    log: MemoryEventLog, store: Shaky
) -> None:
    policy = SnapshotPolicy(SnapshotStrategy.BEFORE_EACH_STEP, max_snapshots=2)
    await log.append(0, history("order-17", order_facts(policy=dump_policy(policy))))
    await Projector(log, store, batch=1).run_until()
    assert [s.step for s in await store.snapshots("order-17")] == ["ship", "charge"]


async def test_an_encrypted_snapshot_is_not_kept_without_its_key(
    log: MemoryEventLog, store: Shaky
) -> None:
    policy = SnapshotPolicy(SnapshotStrategy.BEFORE_EACH_STEP, encryption_key_id="k1")
    await log.append(0, history("order-17", order_facts(policy=dump_policy(policy))))
    projector = Projector(log, store)
    await projector.run_until()
    assert await store.snapshots("order-17") == ()
    assert projector.counters["not_captured"] == 3


async def test_an_encrypted_snapshot_is_kept_sealed(log: MemoryEventLog, store: Shaky) -> None:
    policy = SnapshotPolicy(SnapshotStrategy.ON_COMPLETION, encryption_key_id="k1")
    await log.append(0, history("order-17", order_facts(policy=dump_policy(policy))))
    await Projector(log, store, seal=lambda key, data: key.encode() + data[::-1]).run_until()
    (snapshot,) = await store.snapshots("order-17")
    assert snapshot.key_id == "k1"
    assert load_state(snapshot.state.removeprefix(b"k1")[::-1]).status == "completed"


# --- trouble


@pytest.mark.parametrize("stands", [False, True])
@pytest.mark.parametrize("error", [Unreachable("store", "here"), StorageFailed("here", "full")])
async def test_a_store_that_fails_delays_and_loses_nothing(
    log: MemoryEventLog, store: Shaky, error: Exception, stands: bool
) -> None:
    events = history("order-17", order_facts(policy=BEFORE))
    await log.append(0, events)
    store.failing = [(error, False), (error, stands)]
    told: list[Exception] = []
    projector = Projector(log, store, on_failure=told.append)
    await projector.run_until(timeout_s=10)
    assert await store.heads(["order-17"]) == {"order-17": fold_all(events)}
    assert len(await store.snapshots("order-17")) == 3
    assert (told, projector.counters["store_failures"]) == ([error, error], 2)
    assert projector.counters["stepped_back"] == 0


def test_a_store_that_was_away_for_long_is_found_back_soon() -> None:
    loop, store = VirtualTimeLoop(), Shaky()
    asked: list[float] = []

    async def run() -> None:
        log = MemoryEventLog(1)
        await log.append(0, history("order-17"))
        store.failing = [(Unreachable("store", "here"), False)] * 200
        projector = Projector(log, store, on_failure=lambda _: asked.append(loop.time()))
        await projector.run_until()

    loop.run_until_complete(run())
    loop.close()
    waits = [later - sooner for sooner, later in pairwise(asked)]
    assert waits[0] < 0.3
    assert max(waits) <= 1.0
    assert min(waits[10:]) >= 0.5
    assert len(set(waits[10:])) > 100  # partitions that failed together spread


async def test_of_two_projectors_at_one_partition_one_steps_back(
    log: MemoryEventLog, store: Shaky
) -> None:
    events = history("order-17")
    await log.append(0, events[:4])
    first, second = Projector(log, store), Projector(log, store)
    await first.run_until()
    await second.run_until()
    await log.append(0, events[4:])
    await second.run_until()
    await log.append(0, history("order-18"))
    await first.run_until()
    assert first.counters["stepped_back"] == 1
    assert await store.heads(["order-17", "order-18"]) == {
        "order-17": fold_all(events),
        "order-18": fold_all(history("order-18")),
    }
    assert len(await store.archived("order-17")) == len(events)


async def test_a_log_that_lost_its_tail_is_refused(log: MemoryEventLog, store: Shaky) -> None:
    await log.append(0, history("order-17"))
    await Projector(log, store).run_until()
    del log._partitions[0].records[1:]
    with pytest.raises(LogTruncated):
        await Projector(log, store).run_until({0: 1})


async def test_another_log_is_refused(log: MemoryEventLog, store: Shaky) -> None:
    await log.append(0, history("order-17"))
    await Projector(log, store).run_until()
    other = MemoryEventLog(1)
    await other.append(0, (*history("order-18"), *history("order-19")))
    with pytest.raises(LogReplaced, match="another log"):
        await Projector(other, store).run_until()


@pytest.mark.parametrize("sagas", [0, 1, 5], ids=["shorter", "as long", "longer"])
async def test_another_namespace_is_refused_by_its_name(
    log: MemoryEventLog, store: Shaky, sagas: int
) -> None:
    orders, trips = MemoryEventLog(1, "memory://orders"), MemoryEventLog(1, "memory://trips")
    await orders.append(0, history("order-17"))
    await Projector(orders, store).run_until()
    heads = await store.heads(["order-17"])
    for number in range(sagas):
        await trips.append(0, history(f"trip-{number}"))
    with pytest.raises(StoreOfAnotherLog, match="belongs to the log 'orders'") as caught:
        await Projector(trips, store).run_until()
    assert not caught.value.same_namespace
    assert "?schema=" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).log == caught.value.log
    assert await store.heads(["order-17"]) == heads
    assert [summary.saga_id for summary in await store.summaries()] == ["order-17"]


# --- poison


async def test_bytes_that_cannot_be_read_park_their_saga_and_no_other(
    log: MemoryEventLog, store: Shaky
) -> None:
    events, others = history("order-17"), history("order-18")
    await log.append(0, events[:3])
    await log.append_raw(0, "order-17", b"garbage")
    await log.append(0, (*events[3:], *others))
    told: list[ParkedRecord] = []
    await Projector(log, store, batch=4, on_parked=told.append).run_until()
    assert await store.heads(["order-17", "order-18"]) == {
        "order-17": fold_all(events[:3]),
        "order-18": fold_all(others),
    }
    parked = await store.parked()
    assert (parked[0].value, parked[0].offset, parked[0].saga_id) == (b"garbage", 4, "order-17")
    assert [p.offset for p in parked] == [4, 5, 6, 7, 8, 9]
    assert tuple(told) == parked
    assert await store.parked_sagas(0) == {"order-17"}


async def test_a_fact_that_cannot_be_folded_parks_its_saga_with_the_head_before_it(
    log: MemoryEventLog, store: Shaky
) -> None:
    events = list(history("order-17"))
    events[4] = history("order-17", [Unheard()] * 5)[4]
    await log.append(0, events)
    await Projector(log, store).run_until()
    assert await store.heads(["order-17"]) == {"order-17": fold_all(events[:4])}
    assert [a.sequence for a in await store.archived("order-17")] == [1, 2, 3, 4]
    assert "cannot be folded" in (await store.parked())[0].reason


async def test_a_parked_saga_stays_aside_for_the_next_projector(
    log: MemoryEventLog, store: Shaky
) -> None:
    events = history("order-17")
    await log.append(0, events[:3])
    await log.append_raw(0, "order-17", b"garbage")
    await Projector(log, store).run_until()
    await log.append(0, events[3:])
    await Projector(log, store).run_until()
    assert len(await store.parked()) == 6
    assert await store.heads(["order-17"]) == {"order-17": fold_all(events[:3])}


async def test_a_parked_saga_is_driven_on_once_foreign_bytes_are_passed_over(
    log: MemoryEventLog, store: Shaky
) -> None:
    events = history("order-17")
    await log.append(0, events[:3])
    await log.append_raw(0, "order-17", b"garbage")
    await log.append(0, events[3:])
    projector = Projector(log, store)
    await projector.run_until()
    assert await projector.drive("order-17") == 0, "the cause is still there"
    assert await projector.drive("order-17", pass_over_undecodable=True) == 6
    assert await store.heads(["order-17"]) == {"order-17": fold_all(events)}
    assert await store.parked() == ()
    assert await projector.drive("order-17") == 0


# --- replays


async def test_a_replay_is_pending_until_its_branch_ends(log: MemoryEventLog, store: Shaky) -> None:
    begun = e.SagaStarted(
        context="{}",
        replay_id="r-1",
        parent_saga_id="order-17",
        point="charge",
        overrides='{"token":"new"}',
        actor="ada",
    )
    start = e.ReplayBranched(
        "r-1",
        "order-17~1",
        start='{"overrides":"{\\"token\\":\\"new\\"}"}',
        parent_saga_id="order-17",
        point="charge",
        actor="ada",
        reason="mended",
    )
    original = history("order-17", (*declined_facts(), start))
    head = e.Event("order-17", "order", b"n" * 16, 1, 10, NOON + 60, start)
    branch = history("order-17~1", (begun, e.SagaCompleted()), began=NOON + 70, replay_id="r-1")
    await log.append(0, (*original[:9], head))
    projector = Projector(log, store)
    await projector.run_until()
    (pending,) = await store.replays("order-17")
    assert (pending.status, pending.overrides, pending.reason) == (
        "pending",
        '{"token":"new"}',
        "mended",
    )
    await log.append(0, branch)
    await projector.run_until()
    (ended,) = await store.replays("order-17")
    assert (ended.status, ended.new_saga_id, ended.reason, ended.created_at) == (
        "success",
        "order-17~1",
        "mended",
        NOON + 60,
    )
    assert await store.replay("r-1") == ended


async def test_dry_runs_and_refusals_are_listed(log: MemoryEventLog, store: Shaky) -> None:
    dry = e.ReplayLogged("q-1", "order-17", NOON, "ada", replay_id="r-1", dry_run=True)
    no = e.ReplayLogged("q-2", "order-17", NOON + 1, replay_id="r-2", status="refused")
    await log.append(0, (dry, no))
    await Projector(log, store).run_until()
    replays = await store.replays("order-17")
    assert [(r.replay_id, r.dry_run, r.status) for r in replays] == [
        ("r-2", False, "refused"),
        ("r-1", True, ""),
    ]


# --- running


async def test_waiting_ends_once_the_record_is_projected(log: MemoryEventLog, store: Shaky) -> None:
    projector = Projector(log, store)
    async with running(projector):
        base = await log.append(0, history("order-17"))
        await projector.wait_for(0, base + 7, timeout_s=5)
        assert (await store.heads(["order-17"]))["order-17"].status == "completed"
        with pytest.raises(TimeoutError):
            await projector.wait_for(0, base + 8, timeout_s=0.01)
        await log.append(0, history("order-18"))
        await projector.run_until(timeout_s=5)
        assert len(await store.summaries()) == 2


async def test_who_waits_for_a_projector_that_stops_is_told(
    log: MemoryEventLog, store: Shaky
) -> None:
    projector = Projector(log, store)
    async with running(projector):
        await projector.run_until(timeout_s=5)
        waiting = asyncio.create_task(projector.wait_for(0, 99))
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError, match="projected no more"):
        await waiting


async def test_run_until_goes_on_where_a_projector_stops(log: MemoryEventLog, store: Shaky) -> None:
    await log.append(0, history("order-17"))
    store.failing = [(Unreachable("store", "here"), False)]
    projector = Projector(log, store)
    async with running(projector):
        while not projector.counters["store_failures"]:  # noqa: ASYNC110  # it is busy now
            await asyncio.sleep(0)
        waiting = asyncio.create_task(projector.run_until(timeout_s=5))
        await asyncio.sleep(0)
    await waiting
    assert len(await store.archived("order-17")) == 8


async def test_the_status_says_how_far_it_is(log: MemoryEventLog, store: Shaky) -> None:
    await log.append(0, history("order-17"))
    projector = Projector(log, store)
    (status,) = await projector.status()
    assert (status.next_offset, status.log_end, status.lag) == (0, 9, 9)
    await projector.run_until()
    (status,) = await projector.status()
    assert (status.next_offset, status.log_end, status.lag) == (9, 9, 0)


async def until_projected(projector: Projector, log: MemoryEventLog) -> None:
    """Run a partition until it is where the log ends now, then give it up."""
    running = asyncio.create_task(projector.run_partition(0))
    await projector.wait_for(0, (await log.bounds(0)).end - 1, 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_partition_that_comes_back_goes_on_where_the_other_projector_has_left_it(
    log: MemoryEventLog, store: Shaky, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers that are restarted one after the other hand a partition back and forth."""
    ours, others = Projector(log, store), Projector(log, store)
    for number, projector in enumerate([ours, others, ours, others, ours]):
        await log.append(0, history(f"order-{number}"))
        await until_projected(projector, log)
    assert (ours.counters["stepped_back"], others.counters["stepped_back"]) == (0, 0)
    assert ours.counters["records"] + others.counters["records"] == (await log.bounds(0)).end
    assert not caplog.records


async def test_two_projectors_that_stay_at_one_partition_are_an_error(
    log: MemoryEventLog, store: Shaky, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Projector(log, store), Projector(log, store)
    for number in range(10):
        await log.append(0, history(f"order-{number}"))
        await (first, second)[number % 2].run_until()
    assert {record.levelname for record in caplog.records} == {"ERROR"}
    assert "another projector is at work" in caplog.text


async def test_what_another_projector_committed_meanwhile_is_not_taken_for_ours(
    log: MemoryEventLog, store: Shaky
) -> None:
    events = history("order-17")
    await log.append(0, events)
    other = Projector(log, store)

    async def commit(projection: Projection, *, expected: int) -> None:
        del store.commit  # once
        await other.run_until({0: 9})
        await log.append(0, history("order-18"))
        await other.run_until()
        raise Unreachable("store", "here")

    store.commit = commit  # type: ignore[method-assign]
    projector = Projector(log, store, batch=4)
    await projector.run_until()
    assert projector.counters["stepped_back"] == 1
    assert projector.counters["records"] == 0, "the other one did it all"
    assert [status.next_offset for status in await projector.status()] == [17]


async def test_asked_twice_at_once_it_projects_each_record_once(log: MemoryEventLog) -> None:
    class Slow(MemoryProjectionStore):
        async def commit(self, projection: Projection, *, expected: int) -> None:
            await asyncio.sleep(0.001)
            await super().commit(projection, expected=expected)

    store = Slow()
    for number in range(10):
        await log.append(0, history(f"order-{number}"))
    projector = Projector(log, store, batch=7)
    for together in (contextlib.nullcontext(), running(projector)):
        async with together:
            await asyncio.gather(*(projector.run_until(timeout_s=5) for _ in range(5)))
        await log.append(0, history("order-99"))
    assert projector.counters["records"] == 81 + 8
    assert await store.rejected() == {}


async def test_only_unfinished_heads_are_kept_at_hand_and_no_more_than_asked(
    log: MemoryEventLog, store: Shaky
) -> None:
    ids = [f"order-{number}" for number in range(20)]
    for saga_id in ids:
        await log.append(0, history(saga_id)[:3])
    projector = Projector(log, store, cached_heads=5, batch=7)
    await projector.run_until()
    batch = projector._lanes[0].batch
    assert batch is not None and list(batch.heads) == ids[-5:]
    for saga_id in ids:
        await log.append(0, history(saga_id)[3:])
    await projector.run_until()
    assert batch.heads == {}
    assert await store.heads(ids) == {saga_id: fold_all(history(saga_id)) for saga_id in ids}


async def test_a_start_waits_in_the_lists_until_it_has_begun_or_was_refused(
    log: MemoryEventLog, store: Shaky
) -> None:
    asked = [
        e.StartRequested(f"r-{name}", name, NOON, saga_name="order", context='{"sku":"A1"}')
        for name in ("waits", "begins", "refused")
    ]
    await log.append(0, asked)
    await Projector(log, store).run_until()
    assert await store.count_by_status() == {"pending": 3}
    events = history("begins")
    await log.append(0, events)
    await log.append(0, [e.RequestRefused("r-refused", "refused", NOON, error="X", message="no")])
    await log.append(0, [e.RequestRefused("a signal", "waits", NOON, error="X", message="no")])
    # Asked for and answered in one batch, and asked for again once it was there.
    gone = e.StartRequested("r-gone", "gone", NOON, saga_name="order")
    await log.append(0, [gone, e.RequestRefused("r-gone", "gone", NOON, error="X", message="no")])
    await log.append(0, [e.StartRequested("again", "begins", NOON, saga_name="order")])
    await Projector(log, store).run_until()
    listed = {summary.saga_id: summary.status for summary in await store.summaries()}
    assert listed == {"waits": "pending", "begins": "completed"}
    assert await store.heads(["waits", "begins"]) == {"begins": fold_all(events)}


class Silent(MemoryEventLog):
    """Its next reads give nothing, as those of a broker that has no time."""

    silent = 0

    async def read(
        self, partition: int, offset: int, *, limit: int = 1000, wait_s: float = 0.0
    ) -> Chunk:
        if self.silent:
            self.silent -= 1
            return Chunk((), offset)
        return await super().read(partition, offset, limit=limit, wait_s=wait_s)


async def test_a_read_that_gives_nothing_is_not_taken_for_another_log(store: Shaky) -> None:
    log = Silent(1)
    await log.append(0, history("order-17"))
    await Projector(log, store).run_until()
    (checkpoint,) = [await store.checkpoint(0)]
    assert checkpoint is not None
    log.silent = 2
    await verify_checkpoint(log, Checkpoint(0, checkpoint.next_offset, checkpoint.last_identity))
    assert log.silent == 0
    del log._partitions[0].records[-1:]
    with pytest.raises(LogTruncated):
        await verify_checkpoint(log, checkpoint)


async def test_who_was_away_notices_a_log_that_grew_beyond_its_place_again(
    log: MemoryEventLog, store: Shaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagaz_es.reading.projector.AWAY_S", -1.0)
    await log.append(0, history("order-17"))
    projector = Projector(log, store)
    await projector.run_until()
    del log._partitions[0].records[-2:]
    await log.append(0, history("order-18"))
    with pytest.raises(LogReplaced):
        await projector.run_until()
