"""Recorders: what they write, in which order, and what becomes of appends of unknown outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, fold_all, fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.errors import (
    AppendRefused,
    AppendUnknown,
    ConfigurationError,
    MemoryFootprintError,
    UnstorableValue,
)
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.reading.time_travel import SagaHistory
from sagaz_es.recording.recorder import MAX_BATCH_ENTRIES, SagaRecorder

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000


class Clock:
    """A clock that stands at noon."""

    def now(self) -> int:
        return NOON_US

    async def sleep_until(self, when: int) -> None:
        raise NotImplementedError


async def events_of(log: MemoryEventLog, saga_id: str) -> list[e.Event]:
    return [r.entry for r in await log.read_saga(saga_id) if isinstance(r.entry, e.Event)]


async def state_of(log: MemoryEventLog, saga_id: str) -> SagaState:
    """The fold of what stands in the log; nothing in it is rejected."""
    state = SagaState()
    for event in await events_of(log, saga_id):
        assert fold_into(state, event) is Verdict.ACCEPTED
    return state


async def test_a_saga_is_recorded_as_it_happened() -> None:
    log = MemoryEventLog()
    async with SagaRecorder(log, "order", clock=Clock()) as recorder:
        await recorder.started("o1", {"sku": "A1", "price": Decimal("9.90")}, at=NOON)
        await recorder.step_started("o1", "reserve", at="2026-07-01T14:00:01+02:00")
        await recorder.step_completed("o1", "reserve", {"r": 7}, {"stock": {"left": 2}})
        await recorder.step_completed("o1", "charge", "receipt", deleted=["sku"])
        await recorder.step_failed("o1", "ship", ValueError("no truck"))
        await recorder.compensated("o1", "charge", result=b"refund")
        await recorder.compensated("o1", "reserve")
        await recorder.rolled_back("o1")
    events = await events_of(log, "o1")
    assert [event.sequence for event in events] == list(range(1, 9))
    assert {(event.epoch, event.saga_name) for event in events} == {(-1, "order")}
    assert len({event.writer for event in events}) == 1
    assert len(events[0].writer) == 16
    assert [event.occurred_at - NOON_US for event in events[:3]] == [0, 1_000_000, 0]
    past = SagaHistory("o1", log)
    charged = await past.state_at("step:charge:after")
    assert charged.context == {"price": Decimal("9.90"), "r": 7, "stock": {"left": 2}}
    assert charged.completed_steps == ["reserve", "charge"]
    statuses = [(await past.state_at(n)).status for n in range(4, 9)]
    assert statuses == ["executing", "executing", "compensating", "compensating", "rolled_back"]
    end = await past.now()
    assert [step.status for step in end.steps.values()] == ["compensated", "compensated", "failed"]
    assert (end.error, end.recorded) == ("ValueError: no truck", True)


@pytest.mark.parametrize(
    ("end", "status"),
    [("completed", "completed"), ("failed", "failed"), ("cancelled", "cancelled")],
)
async def test_every_end_can_be_recorded(end: str, status: str) -> None:
    log = MemoryEventLog()
    async with SagaRecorder(log, "order") as recorder:
        await recorder.step_completed(UUID(int=1), "a")
        await getattr(recorder, end)(UUID(int=1), at=NOON)
    assert (await state_of(log, str(UUID(int=1)))).status == status


async def test_what_went_wrong_is_kept_with_its_traceback() -> None:
    log = MemoryEventLog()
    async with SagaRecorder(log, "order") as recorder:
        try:
            raise OSError("bad \ud800 bytes")
        except OSError as error:
            await recorder.step_failed("o1", "ship", error, unknown=True, attempt=2)
        await recorder.step_failed("o1", "ship", "no truck", retry_at="2026-07-01T12:00:00Z")
        await recorder.compensation_failed("o1", "charge", TimeoutError())
        await recorder.failed("o1", RuntimeError("gave up"), step="charge")
    first, second, third, end = (event.fact for event in await events_of(log, "o1"))
    assert isinstance(first, e.StepFailed)
    assert (first.error_type, first.error_message) == ("OSError", "bad ? bytes")
    assert first.traceback.startswith("Traceback") and "raise OSError" in first.traceback
    assert (first.unknown, first.attempt) == (True, 2)
    assert second == e.StepFailed("ship", error_message="no truck", retry_at=NOON_US)
    assert third == e.StepCompensationFailed("charge", error_type="TimeoutError")
    assert end == e.SagaFailed("RuntimeError", "gave up", "charge")


async def test_a_step_of_which_nothing_is_said_may_have_read_everything() -> None:
    log = MemoryEventLog()
    async with SagaRecorder(log, "order") as recorder:
        await recorder.step_completed("o1", "a")
        await recorder.step_completed("o1", "b", reads=["sku"])
        await recorder.step_completed("o1", "c", reads=[])
    facts = [event.fact for event in await events_of(log, "o1")]
    assert facts == [
        e.StepCompleted("a", reads='["*"]'),
        e.StepCompleted("b", reads='["sku"]'),
        e.StepCompleted("c"),
    ]


async def test_values_come_back_with_their_types_and_any_key() -> None:
    log = MemoryEventLog()
    value = {"t": (1, {2}), "u": UUID(int=3), "$set": [b"x"]}
    async with SagaRecorder(log, "order") as recorder:
        await recorder.started("o1", {"$decimal": value, "": None})
        await recorder.step_completed("o1", "a", changes={"$": value}, deleted=["$decimal", ""])
    past = SagaHistory("o1", log)
    assert (await past.state_at(1)).context == {"$decimal": value, "": None}
    assert (await past.now()).context == {"$": value}


# --- refusals -------------------------------------------------------------------------------------


async def test_what_cannot_be_kept_is_refused_with_its_path_and_nothing_is_written() -> None:
    log = MemoryEventLog()
    async with SagaRecorder(log, "order") as recorder:
        with pytest.raises(UnstorableValue, match=r"^client\.session: an object cannot be kept"):
            await recorder.started("o1", {"client": {"session": object()}})
        with pytest.raises(UnstorableValue, match=r"^result\[1\]: "):
            await recorder.step_completed("o1", "a", [1, object()])
        with pytest.raises(UnstorableValue, match=r"^live: "):
            await recorder.step_completed("o1", "a", changes={"live": open})
    assert await events_of(log, "o1") == []


@pytest.mark.parametrize("saga_id", ["", None, 7, "\ud800", "x" * 2000])
async def test_an_unusable_saga_id_is_refused(saga_id: Any) -> None:
    async with SagaRecorder(MemoryEventLog(), "order") as recorder:
        with pytest.raises(ConfigurationError, match="saga_id"):
            await recorder.completed(saga_id)


@pytest.mark.parametrize("step", ["", None, "\ud800"])
async def test_an_unusable_step_is_refused(step: Any) -> None:
    async with SagaRecorder(MemoryEventLog(), "order") as recorder:
        with pytest.raises(ConfigurationError, match="step"):
            await recorder.step_started("o1", step)


async def test_a_recorder_works_between_its_opening_and_its_close() -> None:
    recorder = SagaRecorder(MemoryEventLog(), "order")
    with pytest.raises(RuntimeError, match="async with"):
        await recorder.completed("o1")
    async with recorder:
        await recorder.completed("o1")
    await recorder.close()
    with pytest.raises(RuntimeError, match="async with"):
        await recorder.completed("o1")


async def test_a_url_is_opened_by_the_opener_and_closed_again() -> None:
    calls: list[str] = []

    class Counted(MemoryEventLog):
        async def open(self) -> None:
            calls.append("open")

        async def close(self) -> None:
            calls.append("close")

    with pytest.raises(ConfigurationError, match="opener"):
        SagaRecorder("memory://", "order")
    async with SagaRecorder("memory://", "order", opener=lambda url: Counted(name=url)) as recorder:
        await recorder.completed("o1")
    assert calls == ["open", "close"]
    async with SagaRecorder(Counted(), "order"):
        pass
    assert calls == ["open", "close", "open"], "a log that was given stays open"


# --- many writers ---------------------------------------------------------------------------------


async def test_two_recorders_of_one_saga_are_both_kept_in_log_order() -> None:
    log = MemoryEventLog()
    async with SagaRecorder(log, "order") as stock, SagaRecorder(log, "order") as bank:
        await bank.step_completed("o1", "charge", changes={"paid": True})
        await stock.started("o1", {"sku": "A1", "paid": False})
        await stock.step_completed("o1", "reserve")
        await bank.completed("o1")
    state = await state_of(log, "o1")
    assert (state.status, state.completed_steps) == ("completed", ["charge", "reserve"])
    assert state.context == {"paid": "true", "sku": '"A1"'}
    assert sorted(state.recorders.values()) == [2, 2]


async def test_facts_of_one_saga_keep_the_order_of_the_calls() -> None:
    log = MemoryEventLog(1)
    async with SagaRecorder(log, "order") as recorder:
        calls = [recorder.step_completed(f"o{n % 3}", str(n)) for n in range(300)]
        await asyncio.gather(*calls)
    for saga in range(3):
        steps = [event.fact.step for event in await events_of(log, f"o{saga}")]  # type: ignore[attr-defined]
        assert steps == [str(n) for n in range(300) if n % 3 == saga]
        assert (await state_of(log, f"o{saga}")).sequence == 100


class Watched(MemoryEventLog):
    """A log that counts its appends, and whose next ones may fail: before or after they stand."""

    def __init__(self, partitions: int = 1) -> None:
        super().__init__(partitions)
        self.sizes: list[int] = []
        self.failing: list[tuple[Exception, bool]] = []
        self.refused = ""

    async def append(self, partition: int, entries: Sequence[e.Entry]) -> int:
        await asyncio.sleep(0)
        facts = [entry.fact for entry in entries if isinstance(entry, e.Event)]
        if self.refused and any(getattr(fact, "step", "") == self.refused for fact in facts):
            raise AppendRefused(partition, "too large")
        if self.failing:
            error, stands = self.failing.pop(0)
            if stands:
                await super().append(partition, entries)
            raise error
        self.sizes.append(len(entries))
        return await super().append(partition, entries)


async def test_callers_that_wait_together_share_an_append() -> None:
    log = Watched()
    async with SagaRecorder(log, "order") as recorder:
        await asyncio.gather(*(recorder.completed(f"o{n}") for n in range(1200)))
    assert max(log.sizes) == MAX_BATCH_ENTRIES
    assert len(log.sizes) <= 4
    assert sum(log.sizes) == 1200


async def test_large_facts_are_spread_over_appends() -> None:
    log = Watched()
    async with SagaRecorder(log, "order") as recorder:
        text = "x" * 100_000
        await asyncio.gather(*(recorder.started(f"o{n}", {"t": text}) for n in range(4)))
    assert log.sizes == [1, 1, 1, 1]


UNKNOWN = AppendUnknown(0, "timed out")


@pytest.mark.parametrize("stands", [False, True])
@pytest.mark.parametrize("error", [UNKNOWN, ConnectionError("reset")])
async def test_after_an_unknown_outcome_the_identical_facts_go_out_again(
    error: Exception, stands: bool
) -> None:
    log = Watched()
    async with SagaRecorder(log, "order", clock=Clock()) as recorder:
        await recorder.started("o1")
        log.failing = [(error, stands), (error, False)]
        await recorder.step_completed("o1", "a", changes={"n": 1})
        await recorder.completed("o1")
    events = await events_of(log, "o1")
    assert len(events) == 3 + stands
    assert len(set(events)) == 3, "the second one stands twice, the very same"
    state = fold_all(events)
    assert (state.sequence, state.status) == (3, "completed")


@pytest.mark.parametrize("stands", [False, True])
async def test_an_outcome_that_stays_unknown_is_told_and_does_not_stop_the_saga(
    stands: bool,
) -> None:
    log = Watched()
    async with SagaRecorder(log, "order", retry_seconds=0.0) as recorder:
        await recorder.started("o1")
        log.failing = [(UNKNOWN, stands)]
        with pytest.raises(AppendUnknown, match="still so after 0 s"):
            await recorder.step_completed("o1", "a")
        await recorder.step_completed("o1", "b")
        await recorder.completed("o1")
    state = await state_of(log, "o1")
    assert state.completed_steps == (["a", "b"] if stands else ["b"])
    assert (state.status, len(state.recorders)) == ("completed", 2)


async def test_what_was_refused_after_an_unknown_outcome_stays_unknown() -> None:
    log = Watched()
    async with SagaRecorder(log, "order") as recorder:
        await recorder.started("o1")
        log.failing = [(UNKNOWN, True), (AppendRefused(0, "full"), False)]
        with pytest.raises(AppendUnknown, match="it was refused"):
            await recorder.step_completed("o1", "a")
        await recorder.completed("o1")
    assert (await state_of(log, "o1")).completed_steps == ["a"]


async def test_of_facts_that_share_an_append_only_the_refused_one_fails() -> None:
    log = Watched()
    log.refused = "huge"
    async with SagaRecorder(log, "order") as recorder:
        steps = ["a", "huge", "b"]
        calls = [recorder.step_completed("o1", step) for step in steps]
        results = await asyncio.gather(*calls, recorder.completed("o2"), return_exceptions=True)
    assert [type(result) for result in results] == [
        type(None),
        AppendRefused,
        type(None),
        type(None),
    ]
    assert (await state_of(log, "o1")).completed_steps == ["a", "b"]
    assert (await state_of(log, "o2")).status == "completed"


async def test_a_defect_fails_its_callers_and_no_others() -> None:
    log = Watched()
    async with SagaRecorder(log, "order") as recorder:
        await recorder.started("o1")
        log.failing = [(KeyError("codec"), False)]
        with pytest.raises(KeyError):
            await recorder.step_completed("o1", "a")
        await recorder.completed("o1")
    assert (await state_of(log, "o1")).status == "completed"


async def test_the_counts_that_are_remembered_are_bounded() -> None:
    log = Watched()
    async with SagaRecorder(log, "order", remembered_sagas=10) as recorder:
        for _ in range(3):
            for saga in range(25):
                await recorder.step_completed(f"o{saga}", "a")
        assert all(len(lane._counts) <= 10 for lane in recorder._lanes.values())
    for saga in range(25):
        assert (await state_of(log, f"o{saga}")).sequence == 3


async def test_a_caller_that_gives_up_in_time_writes_nothing() -> None:
    log = Watched()
    async with SagaRecorder(log, "order") as recorder:
        log.failing = [(UNKNOWN, False)]
        first = asyncio.create_task(recorder.completed("o1"))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(recorder.completed("o2"))
        await asyncio.sleep(0)
        waiting.cancel()
        await first
    assert await events_of(log, "o2") == []
    assert len(await events_of(log, "o1")) == 1


async def test_leaving_waits_for_what_is_on_its_way() -> None:
    log = Watched()
    async with SagaRecorder(log, "order") as recorder:
        log.failing = [(UNKNOWN, False)]
        task = asyncio.create_task(recorder.completed("o1"))
        await asyncio.sleep(0.01)
    assert task.done()
    assert len(await events_of(log, "o1")) == 1


async def test_a_large_value_goes_to_the_blob_store() -> None:
    class Blobs:
        def __init__(self) -> None:
            self.kept: dict[str, bytes] = {}

        async def put(self, data: bytes) -> str:
            self.kept["ab" * 32] = data
            return "ab" * 32

        async def get(self, key: str) -> bytes | None:
            return self.kept.get(key)

        async def close(self) -> None:
            pass

    log, blobs, text = MemoryEventLog(), Blobs(), "x" * 300_000
    async with SagaRecorder(log, "order", blobs=blobs) as recorder:
        await recorder.started("o1", {"text": text})
        await recorder.step_completed("o1", "a", changes={"more": text})
        with pytest.raises(MemoryFootprintError):
            await recorder.step_completed("o1", "b", changes={"most": "x" * 70_000_000})
    assert all(len(str(event.fact)) < 1000 for event in await events_of(log, "o1"))
    assert (await SagaHistory("o1", log, None, blobs).now()).context == {"text": text, "more": text}


@pytest.mark.parametrize(
    ("named", "call"),
    [
        ("at", lambda recorder: recorder.started("o1", at="yesterday")),
        ("at", lambda recorder: recorder.completed("o1", at=NOON.date())),
        ("at", lambda recorder: recorder.completed("o1", at=5)),
        ("retry_at", lambda recorder: recorder.step_failed("o1", "a", retry_at="soon")),
        ("actor", lambda recorder: recorder.started("o1", actor=None)),
        ("reason", lambda recorder: recorder.cancelled("o1", reason=5)),
        ("step", lambda recorder: recorder.step_started("o1", None)),
        ("attempt", lambda recorder: recorder.step_started("o1", "a", attempt=0)),
        ("attempt", lambda recorder: recorder.step_completed("o1", "a", attempt="1")),
        ("attempt", lambda recorder: recorder.compensated("o1", "a", attempt=True)),
        ("error", lambda recorder: recorder.step_failed("o1", "a", ValueError)),
        ("error", lambda recorder: recorder.failed("o1", 5)),
    ],
)
async def test_what_cannot_be_recorded_is_refused_by_its_name_and_nothing_is_written(
    named: str, call: Any
) -> None:
    log = MemoryEventLog()
    async with SagaRecorder(log, "order") as recorder:
        with pytest.raises(ConfigurationError, match=f"^{named}: "):
            await call(recorder)
    assert await events_of(log, "o1") == []
