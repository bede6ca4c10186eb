"""Time travel over logs and stores in every condition: the answers are the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest

from sagaz_es.codec.values import BlobRef, to_text
from sagaz_es.core import events as e
from sagaz_es.core.fold import fold_all
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.history import Moment, Step, state_at
from sagaz_es.core.snapshot import OFF, SnapshotPolicy, SnapshotStrategy
from sagaz_es.core.state import SagaState, dump_state
from sagaz_es.errors import (
    BlobMissing,
    ConfigurationError,
    HistoryGone,
    SagaNotFound,
    StateNotFound,
    StepNotFound,
)
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Bounds, EventLog, ProjectionStore, Record, StoredSnapshot
from sagaz_es.reading.historical import as_point
from sagaz_es.reading.projector import Projector
from sagaz_es.reading.saga_time_travel import SagaTimeTravel
from sagaz_es.reading.time_travel import (
    FamilyMember,
    HistoricalState,
    HistoricalStep,
    History,
    KeyNotFound,
    SagaHistory,
)
from sagaz_es.snapshots import SagaSnapshot
from sagaz_es.storage.memory import InMemorySnapshotStorage, MemoryProjectionStore

TEN = datetime(2026, 7, 1, 10, tzinfo=UTC)
TEN_US = int(TEN.timestamp()) * 1_000_000
MINUTE = 60_000_000
WRITER, OTHER = b"W" * 16, b"O" * 16
SAGA = "order/17 №5"
GRAPH = Graph(
    [StepNode("reserve"), StepNode("charge", ("reserve",)), StepNode("ship", ("charge",))]
)
START = e.SagaStarted(
    definition=GRAPH.fingerprint,
    graph=GRAPH.text,
    context='{"sku":"A1","n":0,"gone":{"deep":[1,2]}}',
)
PAST: list[tuple[int, e.Fact]] = [  # minutes after ten; the clock steps back at 5
    (0, START),
    (0, e.StepStarted("reserve")),
    (1, e.StepCompleted("reserve", result="7", keys_set='{"r":{"id":7,"at":{"$decimal":"9.90"}}}')),
    (1, e.StepStarted("charge")),
    (9, e.StepFailed("charge", 1, "IOError", "busy", retry_at=TEN_US)),
    (5, e.StepStarted("charge", 2)),
    (6, e.StepCompleted("charge", 2, keys_set='{"r":{"id":8},"n":null}', keys_deleted='["gone"]')),
    (10, e.StepStarted("ship")),
    (10, e.StepFailed("ship", 1, "NoTruck", "none left")),
    (11, e.CompensationStarted('["charge","reserve"]', reason="none left")),
    (11, e.StepCompensationStarted("charge")),
    (12, e.StepCompensated("charge")),
    (12, e.StepCompensationStarted("reserve")),
    (13, e.StepCompensated("reserve")),
    (13, e.SagaRolledBack("NoTruck", "none left", "ship")),
]


def event(
    sequence: int,
    fact: e.Fact,
    minute: float = 0,
    *,
    saga_id: str = SAGA,
    writer: bytes = WRITER,
    epoch: int = 0,
) -> e.Event:
    at = TEN_US + int(minute * MINUTE)
    return e.Event(saga_id, "order", writer, epoch, sequence, at, fact)


EVENTS = [event(sequence, fact, at) for sequence, (at, fact) in enumerate(PAST, 1)]
LENGTH = len(EVENTS)


def with_noise() -> Iterator[e.Event]:
    """The saga's events among those of others, duplicates, and late ones of a writer that lost."""
    for number, one in enumerate(EVENTS):
        yield one
        yield event(number + 1, e.StepStarted("x"), saga_id=f"other-{number}")
        yield event(number + 2, e.StepCompleted("ship", keys_set='{"n":99}'), writer=OTHER)
        yield EVENTS[number // 2]


def every(events: int) -> SnapshotPolicy:
    return SnapshotPolicy(SnapshotStrategy.EVERY_N_EVENTS, every_events=events)


async def filled(events: list[e.Event] | None = None, partitions: int = 2) -> MemoryEventLog:
    log = MemoryEventLog(partitions)
    for one in with_noise() if events is None else events:
        await log.append(log.partition_of(one.saga_id), [one])
    return log


async def projected(
    log: EventLog, policy: SnapshotPolicy = OFF, upto: int | None = None
) -> MemoryProjectionStore:
    """A store, with the log projected into it as far as `upto` in the saga's partition."""
    store = MemoryProjectionStore()
    partition = log.partition_of(SAGA)
    ends = None if upto is None else {partition: upto}
    await Projector(log, store, default_policy=policy, batch=7).run_until(ends)
    return store


# --- the same answer, whatever is there -----------------------------------------------------------


class Damaged(MemoryProjectionStore):
    """A store that gives out snapshots as a broken disk or a newer version would leave them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    async def nearest_snapshot(
        self, saga_id: str, *, sequence: int | None = None, at: int | None = None
    ) -> StoredSnapshot | None:
        # A snapshot's time may be that of its event, of a clock that had stepped back.
        late = None if self.kind == "late" else at
        found = await super().nearest_snapshot(saga_id, sequence=sequence, at=late)
        if found is None or found.sequence < 4:
            return found
        return msgspec.structs.replace(
            found,
            state={
                "cut": found.state[:-9],
                "foreign": dump_state(SagaState(saga_id="other", sequence=found.sequence)),
            }.get(self.kind, found.state),
            fold_version=99 if self.kind == "version" else found.fold_version,
            key_id="k1" if self.kind == "sealed" else "",
        )


async def forgetful(log: MemoryEventLog) -> MemoryProjectionStore:
    store = await projected(log, every(3))
    await store.forget(SAGA)
    return store


async def damaged(log: MemoryEventLog, kind: str) -> MemoryProjectionStore:
    store = Damaged(kind)
    await Projector(log, store, default_policy=every(2)).run_until()
    return store


class Thin(MemoryProjectionStore):
    """A store that lost part of its archive, and all snapshots."""

    async def archived(
        self, saga_id: str, *, after: int = 0, upto: int | None = None, limit: int = 1000
    ) -> tuple[Any, ...]:
        page = await super().archived(saga_id, after=after, upto=upto, limit=limit)
        return tuple(one for one in page if not 5 <= one.sequence <= 8)


async def thin(log: MemoryEventLog) -> MemoryProjectionStore:
    store = Thin()
    await Projector(log, store, default_policy=OFF).run_until()
    return store


async def parked(log: MemoryEventLog) -> tuple[MemoryEventLog, MemoryProjectionStore]:
    """The saga is set aside in the middle; the projector went on without it."""
    spoilt = MemoryEventLog(2)
    partition = spoilt.partition_of(SAGA)
    for number, one in enumerate(EVENTS):
        if number == 6:
            await spoilt.append_raw(partition, SAGA, b"nonsense")
        await spoilt.append(partition, [one])
    store = await projected(spoilt, every(2))
    assert await store.parked_of(partition, SAGA)
    return spoilt, store


CONDITIONS = (
    "log alone",
    "no snapshots",
    "all snapshots",
    "few snapshots",
    "behind",
    "not begun",
    "cut",
    "foreign",
    "version",
    "sealed",
    "late",
    "forgotten",
    "thin",
    "parked",
)


async def world(condition: str) -> tuple[EventLog, ProjectionStore | None]:
    log = await filled()
    if condition == "log alone":
        return log, None
    if condition in ("cut", "foreign", "version", "sealed", "late"):
        return log, await damaged(log, condition)
    if condition == "parked":
        return await parked(log)
    stores = {
        "no snapshots": lambda: projected(log),
        "all snapshots": lambda: projected(log, every(1)),
        "few snapshots": lambda: projected(log, every(4)),
        "behind": lambda: projected(log, every(2), upto=20),
        "not begun": lambda: projected(log, upto=0),
        "forgotten": lambda: forgetful(log),
        "thin": lambda: thin(log),
    }
    return log, await stores[condition]()


def told(state: HistoricalState) -> dict[str, Any]:
    """All but how it was made."""
    record = state.to_dict()
    del record["source"]
    return record


@pytest.mark.parametrize("page", [1, 2, 1000])
@pytest.mark.parametrize("condition", CONDITIONS)
async def test_every_answer_is_the_same_in_every_condition(condition: str, page: int) -> None:
    log, store = await world(condition)
    past = SagaHistory(SAGA, log, store, page=page)
    plain = SagaHistory(SAGA, await filled(EVENTS), None)
    for sequence in range(1, LENGTH + 1):
        state = await past.state_at(sequence)
        assert told(state) == told(await plain.state_at(sequence))
        assert state.sequence == sequence
        whole = fold_all(EVENTS[:sequence])
        assert (state.status, state.completed_steps) == (whole.status, whole.completed_steps)
        assert state.timestamp == TEN + timedelta(microseconds=whole.updated_at - TEN_US)
    for half_minutes in range(30):
        at = TEN + timedelta(minutes=half_minutes / 2)
        expected = state_at(EVENTS, Moment(TEN_US + half_minutes * MINUTE // 2))
        assert (await past.state_at(at)).sequence == expected.sequence
    for name in ("reserve", "charge", "ship"):
        expected = state_at(EVENTS, Step(name))
        assert (await past.state_at(Step(name))).sequence == expected.sequence
    assert (await past.state_at("step:charge:after")).sequence == 7
    assert await past.changes() == await plain.changes()
    assert [one.event for one in await past.events()] == EVENTS
    assert await past.checkpoints() == await plain.checkpoints()
    assert await past.blame("r.id") == await plain.blame("r.id")
    assert told(await past.now()) == told(await plain.state_at(LENGTH))
    found = await past.bisect(lambda state: "charge" in state.completed_steps or state.error)  # type: ignore[arg-type,return-value]
    assert found is not None and found.sequence == 7
    assert await History(log, store, page=page).current(SAGA) == fold_all(EVENTS)


async def test_an_answer_says_how_it_was_made() -> None:
    log = await filled(EVENTS, partitions=1)
    store = await projected(
        log, every(4), upto=12
    )  # the first ten or so; offset 0 is the log's own
    past = SagaHistory(SAGA, log, store)
    six = (await past.state_at(6)).source
    assert (six.snapshot_sequence, six.events_folded, six.tail_events) == (4, 2, 0)
    assert six.snapshot_id and (six.partition, six.offset) == (0, 6)
    eight = (await past.state_at(8)).source
    assert (eight.snapshot_sequence, eight.events_folded, eight.offset) == (8, 0, 8)
    last = (await past.now()).source
    stored = (await store.heads([SAGA]))[SAGA].sequence
    assert last.snapshot_sequence is not None
    assert last.snapshot_sequence + last.events_folded == LENGTH
    assert last.tail_events == LENGTH - stored > 0
    assert last.offset == LENGTH
    bare = (await SagaHistory(SAGA, log).state_at(3)).source
    assert (bare.snapshot_id, bare.snapshot_sequence, bare.events_folded) == (None, None, 3)


async def test_a_snapshot_that_is_of_no_use_is_told() -> None:
    log = await filled()
    past = SagaHistory(SAGA, log, await damaged(log, "sealed"))
    source = (await past.state_at(7)).source
    assert source.snapshot_sequence == 2
    assert [reason for _, reason in source.passed_over] == ["it is sealed with key 'k1'"] * 2
    opened = SagaHistory(SAGA, log, await damaged(log, "sealed"), opener=lambda key, data: data)
    assert (await opened.state_at(7)).source.snapshot_sequence == 6


# --- points ---------------------------------------------------------------------------------------


async def history(events: list[e.Event] | None = None) -> SagaHistory:
    log = await filled(events)
    return SagaHistory(SAGA, log, await projected(log, every(3)))


@pytest.mark.parametrize(
    ("when", "sequence"),
    [
        (TEN, 2),
        (TEN.replace(tzinfo=None), 2),
        (TEN.astimezone(timezone(timedelta(hours=-7))) + timedelta(minutes=5), 4),
        ("2026-07-01T10:00:00", 2),
        ("2026-07-01 12:05:00+02:00", 4),
        ("2026-07-01T10:09Z", 7),
        ("2026-07-01T09:59:59.999999999+00:00", None),
        ("2026-07-02", LENGTH),
        (datetime(2026, 7, 2).date(), LENGTH),
        ("7", 7),
        (7, 7),
        ("step:charge", 3),
        ("step:charge:after", 7),
        (Step("ship"), 7),
    ],
)
async def test_a_point_can_be_said_in_many_ways(when: Any, sequence: int | None) -> None:
    past = await history()
    if sequence is None:
        with pytest.raises(StateNotFound):
            await past.state_at(when)
    else:
        assert (await past.state_at(when)).sequence == sequence


@pytest.mark.parametrize("text", ["", "yesterday", "10:00", "-3", "1.5", "2026-13-01", "charge"])
def test_a_text_that_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="no point in a saga's past"):
        as_point(text)


@pytest.mark.parametrize("thing", [None, 1.5, float("nan"), True, timedelta(hours=1), TEN.time()])
def test_a_thing_that_is_no_point_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="a point in a saga's past is a time, such as"):
        as_point(thing)


async def test_a_saga_that_does_not_exist_is_not_found() -> None:
    log = await filled()
    for store in (None, await projected(log)):
        past = SagaHistory("nobody", log, store)
        for question in (past.now(), past.state_at(3), past.changes(), past.events()):
            with pytest.raises(SagaNotFound, match="'nobody' in memory"):
                await question
        with pytest.raises(SagaNotFound):
            await past.blame("n")
        with pytest.raises(SagaNotFound):
            await past.bisect(lambda state: True)
        with pytest.raises(SagaNotFound):
            await History(log, store).lineage("nobody")


@pytest.mark.parametrize("when", [0, -1, "2026-07-01T09:59:59Z", "1970-01-01"])
async def test_before_it_began_there_is_no_state(when: Any) -> None:
    past = await history()
    with pytest.raises(StateNotFound) as refused:
        await past.state_at(when)
    assert refused.value.began == "2026-07-01T10:00:00+00:00"


async def test_behind_its_last_event_there_is_no_sequence() -> None:
    with pytest.raises(StateNotFound, match="has no sequence 99 yet; its last is 15"):
        await (await history()).state_at(99)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (Step("shpi"), "has no step 'shpi'"),
        (Step("ship", after=True), "has not completed step 'ship'"),
    ],
)
async def test_a_step_that_was_not_reached_is_not_found(step: Step, why: str) -> None:
    with pytest.raises(StepNotFound, match=why) as refused:
        await (await history()).state_at(step)
    assert refused.value.known == ("reserve", "charge", "ship")


async def test_a_step_of_the_graph_that_never_began_is_not_found() -> None:
    past = await history(EVENTS[:4])
    with pytest.raises(StepNotFound, match="has not reached step 'ship'"):
        await past.state_at("step:ship")


# --- what is shown --------------------------------------------------------------------------------


async def test_a_state_shows_all_there_was() -> None:
    state = await (await history()).state_at(6)
    assert (state.saga_id, state.saga_name, state.status) == (SAGA, "order", "executing")
    assert state.context == {
        "sku": "A1",
        "n": 0,
        "gone": {"deep": [1, 2]},
        "r": {"id": 7, "at": Decimal("9.90")},
    }
    assert (state.completed_steps, state.current_step, state.step_index) == (
        ["reserve"],
        "charge",
        1,
    )
    assert state.steps == {
        "reserve": HistoricalStep("completed", 1),
        "charge": HistoricalStep("executing", 2),
        "ship": HistoricalStep("pending"),
    }
    assert (state.error, state.ended_at) == (None, None)
    assert state.started_at == TEN


async def test_a_saga_that_compensates_shows_it() -> None:
    past = await history()
    seen = [(await past.state_at(sequence)).status for sequence in range(9, LENGTH + 1)]
    assert seen == ["executing", *["compensating"] * 5, "rolled_back"]
    half = await past.state_at(12)
    assert [step.status for step in half.steps.values()] == ["completed", "compensated", "failed"]
    assert half.error == "NoTruck: none left"
    assert half.steps["ship"].error == "NoTruck: none left"
    end = await past.now()
    assert end.ended_at == TEN + timedelta(minutes=13)
    assert (end.completed_steps, end.current_step) == ([], None)


async def test_a_later_change_does_not_show_earlier() -> None:
    past = await history()
    assert (await past.state_at(6)).context["r"] == {"id": 7, "at": Decimal("9.90")}
    later = (await past.state_at(7)).context
    assert later == {"sku": "A1", "n": None, "r": {"id": 8}}


async def test_a_plain_record_is_json_with_zones_and_tags() -> None:
    record = (await (await history()).state_at(3)).to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["timestamp"] == "2026-07-01T10:01:00+00:00"
    assert record["context"]["r"] == {"id": 7, "at": {"$decimal": "9.90"}}
    assert record["current_step"] is None
    assert set(record["source"]) >= {"snapshot_sequence", "events_folded", "partition", "offset"}


async def test_values_are_read_by_path_and_null_is_a_value() -> None:
    past = await history()
    state = await past.state_at(7)
    assert state.value_at("n") is None
    assert state.value_at("r.id") == 8
    assert (await past.state_at(6)).value_at("gone.deep[1]") == 2
    with pytest.raises(KeyNotFound, match=r"has no 'gone\.deep' at sequence 7; its keys: 'sku'"):
        state.value_at("gone.deep")
    with pytest.raises(KeyError):
        state.value_at("nothing")


async def test_every_typed_value_comes_back_as_it_was() -> None:
    value = {"d": Decimal("1.0"), "s": {1, 2}, "t": (1, [b"x"]), "at": TEN, "$own": {"$set": 1}}
    start = e.SagaStarted(context=to_text({"v": value, "$k": 1, "0": 0, "": ""}))
    state = await (await history([event(1, start)])).now()
    assert state.context == {"v": value, "$k": 1, "0": 0, "": ""}
    assert type(state.context["v"]["t"]) is tuple
    assert json.dumps(state.to_dict())


class Blobs:
    """A blob store on a dict."""

    def __init__(self, kept: dict[str, bytes]) -> None:
        self.kept = kept

    async def put(self, data: bytes) -> str:
        raise NotImplementedError

    async def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    async def close(self) -> None:
        pass


async def test_a_large_value_comes_from_the_blob_store() -> None:
    key = "ab" * 32
    start = e.SagaStarted(context=f'{{"big":{{"$blob":"sha256:{key}"}},"small":1}}')
    log = await filled([event(1, start)])
    blobs = Blobs({key: b'[{"$decimal":"1.5"}]'})
    past = SagaHistory(SAGA, log, None, blobs)
    assert (await past.now()).context == {"big": [Decimal("1.5")], "small": 1}
    assert (await past.changes())[0].changes["set"]["big"] == [Decimal("1.5")]
    assert (await SagaHistory(SAGA, log).now()).context["big"] == BlobRef(key)
    with pytest.raises(BlobMissing):
        await SagaHistory(SAGA, log, None, Blobs({})).now()


# --- changes --------------------------------------------------------------------------------------


async def test_changes_are_told_oldest_first_with_what_was_set_and_deleted() -> None:
    told = await (await history()).changes()
    assert [change.sequence for change in told] == list(range(1, LENGTH + 1))
    assert told[6].to_dict() == {
        "sequence": 7,
        "timestamp": "2026-07-01T10:09:00+00:00",
        "type": "StepCompleted",
        "step": "charge",
        "status": "executing",
        "changes": {"set": {"r": {"id": 8}, "n": None}, "deleted": ["gone"]},
        "error": None,
        "actor": None,
        "reason": None,
        "action": None,
    }
    assert told[8].error == "NoTruck: none left"
    assert told[0].step is None
    assert told[0].changes["set"] == {"sku": "A1", "n": 0, "gone": {"deep": [1, 2]}}
    assert json.dumps([change.to_dict() for change in told])


@pytest.mark.parametrize(
    ("after", "before", "limit", "sequences"),
    [
        (None, None, 2, [1, 2]),
        (None, None, 0, []),
        (3, 5, None, [3, 4, 5]),
        (3, None, 2, [3, 4]),
        (TEN, TEN, None, [1, 2]),
        ("2026-07-01T10:01:00", "2026-07-01T10:09:00", None, [3, 4, 5, 6, 7]),
        ("2026-07-01T10:01:00.000001", "2026-07-01T10:09:00", None, [5, 6, 7]),
        ("2026-07-01T10:09", None, 3, [5, 6, 7]),
        ("2026-07-01T10:02", "2026-07-01T10:08", None, []),
        (99, None, None, []),
        (5, 4, None, []),
        ("2027-01-01", None, None, []),
        (None, "2020-01-01", None, []),
        ("step:charge", "step:charge:after", None, [4, 5, 6, 7]),
    ],
)
async def test_the_bounds_of_changes_are_inclusive(
    after: Any, before: Any, limit: int | None, sequences: list[int]
) -> None:
    log = await filled()
    for store in (None, await projected(log, every(4)), await projected(log, upto=15)):
        past = SagaHistory(SAGA, log, store)
        told = await past.changes(after, before, limit)
        assert [change.sequence for change in told] == sequences


async def test_every_change_can_be_reached_page_by_page() -> None:
    past, seen, first = await history(), list[int](), 1
    while page := await past.changes(after=first, limit=4):
        seen += [change.sequence for change in page]
        first = seen[-1] + 1
    assert seen == list(range(1, LENGTH + 1))


async def test_a_difference_goes_both_ways() -> None:
    past = await history()
    told = await past.diff(3, Step("ship"))
    assert told.sequences == (3, 7)
    assert told.set == {"r": {"id": 8}, "n": None}
    assert told.before == {"r": {"id": 7, "at": Decimal("9.90")}, "n": 0}
    assert told.deleted == {"gone": {"deep": [1, 2]}}
    assert told.steps == {"charge": ("pending", "completed")}
    back = await past.diff(7, 3)
    assert back.set == {"r": {"id": 7, "at": Decimal("9.90")}, "n": 0, "gone": {"deep": [1, 2]}}
    assert back.deleted == {}
    assert json.dumps(told.to_dict())


@pytest.mark.parametrize(
    ("path", "sequence"),
    [
        ("sku", 1),
        ("n", 7),
        ("r", 7),
        ("r.id", 7),
        ("r.at", 7),
        ("gone", 7),
        ("gone.deep[0]", 7),
        ("nothing", None),
        ("sku.more", None),
    ],
)
async def test_blame_names_the_event_that_set_it(path: str, sequence: int | None) -> None:
    blamed = await (await history()).blame(path)
    assert (None if blamed is None else blamed.sequence) == sequence


async def test_blame_of_a_part_passes_over_events_that_left_it_alone() -> None:
    facts: list[e.Fact] = [
        e.SagaStarted(context='{"order":{"items":[{"price":1},{"price":2}],"paid":0},"a.b":0}'),
        e.StepCompleted("one", keys_set='{"order":{"items":[{"price":1},{"price":3}],"paid":0}}'),
        e.StepCompleted(
            "two", keys_set='{"order":{"items":[{"price":1},{"price":3}],"paid":true}}'
        ),
        e.StepCompleted("three", keys_set='{"order":{"items":[{"price":1},{"price":3}],"paid":1}}'),
        e.StepCompleted("four", keys_set='{"a.b":0}'),
    ]
    past = await history([event(n, fact) for n, fact in enumerate(facts, 1)])
    paths = ("order", "order.items[0].price", "order.items[1].price", "order.paid", "a.b")
    blamed = [await past.blame(path) for path in paths]
    assert [change.step for change in blamed if change] == ["three", None, "one", "three", "four"]


async def test_bisect_finds_the_first_state_that_fits() -> None:
    past = await history()
    asked: list[int] = []

    async def compensating(state: HistoricalState) -> bool:
        await asyncio.sleep(0)
        asked.append(state.sequence)
        return state.status in ("compensating", "rolled_back")

    found = await past.bisect(compensating)
    assert found is not None and found.sequence == 10
    assert len(asked) <= 4
    assert (await past.bisect(lambda state: True)) == await past.state_at(1)
    assert await past.bisect(lambda state: False) is None


async def test_the_checkpoints_are_the_steps_that_began() -> None:
    steps = [one.to_dict() for one in await (await history()).checkpoints()]
    assert [(one["step"], one["index"], one["status"]) for one in steps] == [
        ("reserve", 0, "compensated"),
        ("charge", 1, "compensated"),
        ("ship", 2, "failed"),
    ]
    assert steps[2]["timestamp"] == "2026-07-01T10:10:00+00:00"
    assert [one["sequence"] for one in steps] == [1, 3, 7]


# --- history that is gone -------------------------------------------------------------------------


class Trimmed(MemoryEventLog):
    """A log whose retention took everything before an offset."""

    start = 0

    async def bounds(self, partition: int) -> Bounds:
        return Bounds(self.start, (await super().bounds(partition)).end)

    async def read_saga(self, saga_id: str, from_offset: int = 0) -> tuple[Record, ...]:
        if from_offset < self.start:
            raise HistoryGone("partition 0", f"offset {from_offset}", f"offset {self.start}")
        return await super().read_saga(saga_id, from_offset)


async def trimmed(events: list[e.Event], start: int) -> Trimmed:
    log = Trimmed(1)
    await log.append(0, events)
    log.start = start
    return log


async def test_a_log_without_its_beginning_gives_no_answer() -> None:
    log = await trimmed(EVENTS, 5)
    past = SagaHistory(SAGA, log)
    for question in (past.now(), past.state_at(2), past.changes(), past.events(), past.blame("n")):
        with pytest.raises(HistoryGone, match="it exists from offset 5 of partition 0 on"):
            await question


async def test_what_the_store_kept_outlives_the_log() -> None:
    log = await trimmed(EVENTS, 0)
    store = await projected(log, every(3), upto=13)
    log.start = 12
    past = SagaHistory(SAGA, log, store)
    for sequence in range(1, LENGTH + 1):
        assert (await past.state_at(sequence)).sequence == sequence
    log.start = 15  # now an event is gone that the projector had not reached
    assert (await past.state_at(12)).sequence == 12
    with pytest.raises(HistoryGone, match="offset 15 of partition 0, but the store ends at 14"):
        await past.now()


async def test_a_checkpointed_state_is_where_history_begins_again() -> None:
    head = fold_all(EVENTS[:6])
    carried = event(7, e.SagaCheckpointed(dump_state(head).decode()), 9)
    rest = [event(8, EVENTS[6].fact, 9), event(9, EVENTS[7].fact, 10)]
    log = await trimmed([*EVENTS[:6], carried, *rest], 0)
    whole = [(await SagaHistory(SAGA, log).state_at(n)).to_dict() for n in (7, 8, 9)]
    log.start = 7
    past = SagaHistory(SAGA, log)
    for sequence, expected in zip((7, 8, 9), whole, strict=True):
        found = (await past.state_at(sequence)).to_dict()
        assert {**found, "source": None} == {**expected, "source": None}
    assert (await past.state_at("step:ship")).sequence == 8
    assert (await past.state_at(6)).sequence == 6, "the carried state itself"
    for early in (3, "2026-07-01T10:00:30Z"):
        with pytest.raises(HistoryGone, match="it exists from sequence 6, 2026-07-01T10:09:00"):
            await past.state_at(early)
    with pytest.raises(HistoryGone, match="it exists from sequence 7, offset 7 of partition 0"):
        await past.events()
    assert [change.sequence for change in await past.changes(after=7)] == [7, 8, 9]


async def test_a_recorder_whose_first_fact_is_gone_leaves_no_answer() -> None:
    facts = [e.StepCompleted(name) for name in ("a", "b", "c")]
    mine = [event(n, fact, epoch=-1) for n, fact in enumerate(facts, 1)]
    other = event(1, e.StepCompleted("d"), epoch=-1, writer=OTHER)
    log = await trimmed([mine[0], other, *mine[1:]], 2)
    with pytest.raises(HistoryGone):
        await SagaHistory(SAGA, log).now()
    log.start = 1
    assert (await SagaHistory(SAGA, log).now()).sequence == 4


async def test_a_store_alone_answers_as_far_as_it_goes() -> None:
    log = await filled()
    past = SagaHistory(SAGA, None, await projected(log, every(4)))
    assert (await past.now()).sequence == LENGTH
    assert (await past.state_at(5)).source.partition is None
    with pytest.raises(SagaNotFound):
        await SagaHistory("nobody", None, MemoryProjectionStore()).now()
    with pytest.raises(HistoryGone, match="sequence 5 is missing in memory"):
        await SagaHistory(SAGA, None, await thin(log)).now()


# --- families -------------------------------------------------------------------------------------


def branch(saga_id: str, parent: str, head: str, replay: str) -> e.Event:
    start = e.SagaStarted(
        replay_id=replay, parent_saga_id=parent, head_saga_id=head, root_saga_id="root", point="x"
    )
    return event(1, start, saga_id=saga_id)


def branched(saga_id: str, sequence: int, to: str) -> e.Event:
    fact = e.ReplayBranched(f"r-{to}", to, parent_saga_id="root")
    return event(sequence, fact, saga_id=saga_id, writer=OTHER, epoch=1)


async def family() -> MemoryEventLog:
    """root → b1 (of root) → b2 (of root again) → b3 (of b1), which is decided, not begun."""
    ended = e.SagaRolledBack()
    return await filled(
        [
            event(1, START, saga_id="root"),
            event(2, ended, saga_id="root"),
            branched("root", 3, "b1"),
            branch("b1", "root", "root", "r-b1"),
            event(2, e.SagaCompleted(), saga_id="b1"),
            branched("b1", 3, "b2"),
            branch("b2", "root", "b1", "r-b2"),
            event(2, ended, saga_id="b2"),
            branched("b2", 3, "b3"),
        ]
    )


async def test_the_head_of_a_family_is_its_newest_branch() -> None:
    log = await family()
    for store in (None, await projected(log)):
        histories = History(log, store)
        for member in ("root", "b1", "b2"):
            assert await histories.head_of_family(member) == "b3"
    assert await History(await filled()).head_of_family(SAGA) == SAGA


async def test_the_lineage_is_listed_both_ways() -> None:
    log = await family()
    lineage = await History(log).lineage("b1")
    assert lineage.members == (
        FamilyMember("root", "rolled_back"),
        FamilyMember("b1", "completed", "root", "r-b1", "x"),
        FamilyMember("b2", "rolled_back", "root", "r-b2", "x"),
        FamilyMember("b3", "pending"),
    )
    assert (lineage.root, lineage.head) == ("root", "b3")
    assert (lineage.ancestors, lineage.branches) == (("root",), ())
    assert (await History(log).lineage("root")).branches == ("b1", "b2")
    alone = await History(await filled()).lineage(SAGA)
    assert (alone.members, alone.ancestors) == ((FamilyMember(SAGA, "rolled_back"),), ())


async def test_a_state_shows_its_place_in_the_family() -> None:
    log = await family()
    state = await SagaHistory("b1", log).now()
    assert (state.parent_saga_id, state.root_saga_id, state.replay_id) == ("root", "root", "r-b1")
    assert state.branch == "b2"
    assert (await SagaHistory("b1", log).state_at(2)).branch is None


# --- length ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [OFF, every(100)])
async def test_a_long_past_is_right_at_every_point(policy: SnapshotPolicy) -> None:
    facts = [e.StepCompleted("tick", keys_set=f'{{"n":{n}}}') for n in range(2, 3001)]
    events = [event(1, e.SagaStarted(context='{"n":1}'))]
    events += [event(n, fact, n / 1000) for n, fact in enumerate(facts, 2)]
    log = await filled(events)
    store = await projected(log, policy, upto=2001)
    stored = (await store.heads([SAGA]))[SAGA].sequence
    past = SagaHistory(SAGA, log, store, page=700)
    for sequence in (1, 2, 699, 700, 701, 1400, 1401, 1999, 2000, 2001, 3000):
        state = await past.state_at(sequence)
        assert (state.sequence, state.context) == (sequence, {"n": sequence})
        assert state.source.tail_events == max(0, sequence - stored)
        assert (await past.state_at(state.timestamp)).sequence == sequence
    assert (await past.bisect(lambda state: state.context["n"] > 1234)).sequence == 1235  # type: ignore[union-attr]
    page = await past.changes(after=1995, limit=10)
    assert [change.changes["set"]["n"] for change in page] == list(range(1995, 2005))


# --- the original design's names ------------------------------------------------------------------


class Engine:
    """As much of an engine as time travel takes."""

    def __init__(self, log: EventLog, store: ProjectionStore | None) -> None:
        self.log, self.store, self.blob_store = log, store, None


async def storages() -> list[Any]:
    log = await filled()
    store = await projected(log, every(3))
    ended = await projected(log)
    return [
        log,
        store,
        Engine(log, None),
        Engine(log, store),
        History(log, store),
        SagaHistory(SAGA, log),
        InMemorySnapshotStorage(ended),
    ]


async def test_both_spellings_answer_from_whatever_knows_the_saga() -> None:
    for storage in await storages():
        travel = SagaTimeTravel(SAGA, storage)
        half_past = TEN + timedelta(minutes=5)
        state = await travel.get_state_at(half_past)
        assert state is not None and state.sequence == 4
        assert await SagaTimeTravel.get_state_at(SAGA, half_past, storage) == state
        assert await SagaTimeTravel.get_state_at(SAGA, storage, timestamp=half_past) == state
        assert await travel.get_state_at(TEN - timedelta(seconds=1)) is None
        told = await travel.list_state_changes(after=TEN, before=half_past, limit=3)
        assert [change.sequence for change in told] == [1, 2, 3]
        static = SagaTimeTravel.list_state_changes
        assert await static(SAGA, snapshot_storage=storage, limit=3) == told
        assert await travel.get_context_at(half_past, "n") == 0
        assert await travel.get_context_at(half_past, key="r.id") == 7
        assert await SagaTimeTravel.get_context_at(SAGA, half_past, storage) == state.context
        assert await travel.get_context_at(TEN.replace(year=2020)) is None
        with pytest.raises(KeyError):
            await travel.get_context_at(half_past, "nothing")
        if not isinstance(storage, SagaHistory):
            nobody = SagaTimeTravel("nobody", storage)
            assert await nobody.get_state_at(half_past) is None
            assert await nobody.list_state_changes() == []
            assert await nobody.get_context_at(half_past, "n") is None


async def test_snapshots_alone_answer_as_well_as_they_can() -> None:
    storage = InMemorySnapshotStorage()
    kept: list[tuple[int, dict[str, Any]]] = [
        (0, {"n": 0, "gone": [1]}),
        (10, {"n": 0}),
        (20, {"n": None, "x": False}),
    ]
    for number, (minute, context) in enumerate(kept, 1):
        await storage.save_snapshot(
            SagaSnapshot.create(
                UUID(int=1),
                "order",
                f"s{number}",
                number,
                "executing",
                context,
                [f"s{done}" for done in range(1, number)],
                sequence=number,
                created_at=TEN + timedelta(minutes=minute),
            )
        )
    travel = SagaTimeTravel(UUID(int=1), storage)
    minutes = (-1, 0, 5, 10, 80)
    states = [await travel.get_state_at(TEN + timedelta(minutes=minute)) for minute in minutes]
    assert [state and state.sequence for state in states] == [None, 1, 1, 2, 3]
    last = states[-1]
    assert last is not None
    assert (last.completed_steps, last.current_step, last.status) == (
        ["s1", "s2"],
        "s3",
        "executing",
    )
    assert last.to_dict()["context"] == {"n": None, "x": False}
    assert await travel.get_context_at(TEN.replace(tzinfo=None), "n") == 0
    assert await travel.get_context_at(TEN + timedelta(hours=1), "n") is None
    with pytest.raises(KeyNotFound):
        await travel.get_context_at(TEN, "x")
    told = await travel.list_state_changes()
    assert [(change.step, change.changes) for change in told] == [
        ("s1", {"set": {"n": 0, "gone": [1]}, "deleted": []}),
        ("s2", {"set": {}, "deleted": ["gone"]}),
        ("s3", {"set": {"n": None, "x": False}, "deleted": []}),
    ]
    ten_past = TEN + timedelta(minutes=10)
    assert await travel.list_state_changes(ten_past, ten_past) == told[1:2]
    assert await travel.list_state_changes(limit=2) == told[:2]


def test_what_knows_no_saga_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="snapshot_storage"):
        SagaTimeTravel(SAGA, object())
    with pytest.raises(ConfigurationError, match="snapshot_storage"):
        SagaTimeTravel.get_state_at(SAGA, TEN, snapshot_storage=object())
