"""Events of sagas to test stores and projectors with."""

from __future__ import annotations

from collections.abc import Iterable

from sagaz_es.core import events as e
from sagaz_es.core.fold import fold_all
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.snapshot import state_hash
from sagaz_es.core.state import FOLD_VERSION, SagaState, dump_state
from sagaz_es.ports import ArchivedEvent, Checkpoint, Projection, ReplayEntry, StoredSnapshot

WRITER = b"writer-of-tests."
SECOND = 1_000_000
NOON = 1_767_268_800 * SECOND  # 2026-01-01 12:00 UTC

ORDER = Graph(
    [
        StepNode("reserve", compensable=True),
        StepNode("charge", ("reserve",), compensable=True),
        StepNode("ship", ("charge",), compensable=True),
    ]
)


def order_facts(sku: str = "A1", policy: str = "") -> tuple[e.Fact, ...]:
    """The order saga: reserve, charge, ship, completed."""
    return (
        e.SagaStarted(ORDER.fingerprint, ORDER.text, f'{{"sku":"{sku}"}}', policy),
        e.StepStarted("reserve"),
        e.StepCompleted("reserve", result='{"reservation":1}', keys_set='{"reservation":1}'),
        e.StepStarted("charge"),
        e.StepCompleted("charge", result='{"payment":2}', keys_set='{"payment":2}'),
        e.StepStarted("ship"),
        e.StepCompleted("ship", result='{"parcel":3}', keys_set='{"parcel":3}'),
        e.SagaCompleted(),
    )


def declined_facts(policy: str = "") -> tuple[e.Fact, ...]:
    """The order saga whose charge fails for good, rolled back."""
    return (
        *order_facts(policy=policy)[:4],
        e.StepFailed("charge", error_type="Declined", error_message="no money"),
        e.CompensationStarted('["reserve"]', reason="no money"),
        e.StepCompensationStarted("reserve"),
        e.StepCompensated("reserve"),
        e.SagaRolledBack("Declined", "no money", "charge"),
    )


def history(
    saga_id: str,
    facts: Iterable[e.Fact] = (),
    *,
    saga_name: str = "order",
    began: int = NOON,
    writer: bytes = WRITER,
    replay_id: str = "",
) -> tuple[e.Event, ...]:
    """The facts (of a whole order saga, unless given) as one saga's events, a second apart."""
    return tuple(
        e.Event(saga_id, saga_name, writer, 0, place, began + (place - 1) * SECOND, fact, replay_id)
        for place, fact in enumerate(facts or order_facts(), 1)
    )


def archived(events: Iterable[e.Event], first_offset: int = 0) -> tuple[ArchivedEvent, ...]:
    """Events of one saga as the projector keeps them."""
    return tuple(
        ArchivedEvent(place, first_offset + place - 1, event)
        for place, event in enumerate(events, 1)
    )


def head_of(events: Iterable[e.Event]) -> SagaState:
    """What a fresh fold makes of them."""
    return fold_all(events)


def projected(
    events: tuple[e.Event, ...], *, partition: int = 0, first_offset: int = 0
) -> Projection:
    """One saga's events as one batch."""
    return Projection(
        checkpoint=Checkpoint(partition, first_offset + len(events), f"{first_offset}/x"),
        heads=(head_of(events),),
        archive=archived(events, first_offset),
    )


def replay_entry(
    replay_id: str, original_saga_id: str = "order-17", **fields: object
) -> ReplayEntry:
    """A replay that is under way, unless `fields` say otherwise."""
    return ReplayEntry(
        **{  # type: ignore[arg-type]  # fields of any type, by name
            "replay_id": replay_id,
            "original_saga_id": original_saga_id,
            "new_saga_id": f"{original_saga_id}~{replay_id}",
            "point": "charge",
            "overrides": '{"token":"new"}',
            "actor": "ada",
            "reason": "mended",
            "dry_run": False,
            "status": "pending",
            "created_at": NOON,
            **fields,
        }
    )


class SetClock:
    """A Clock that stands where it was set."""

    def __init__(self, now: int = NOON) -> None:
        self.at = now

    def now(self) -> int:
        return self.at

    async def sleep_until(self, when: int) -> None:
        self.at = max(self.at, when)


def snapshot_row(
    snapshot_id: str,
    saga_id: str = "order-17",
    sequence: int = 3,
    *,
    data: bytes | None = None,
    fold_version: int = FOLD_VERSION,
    **fields: object,
) -> StoredSnapshot:
    """A sound row of the order saga after `sequence` events, unless `fields` say otherwise."""
    state = head_of(history(saga_id)[:sequence])
    state.sequence = sequence
    data = dump_state(state) if data is None else data
    at = NOON + (sequence - 1) * SECOND
    return StoredSnapshot(
        **{  # type: ignore[arg-type]  # fields of any type, by name
            "snapshot_id": snapshot_id,
            "saga_id": saga_id,
            "saga_name": "order",
            "sequence": sequence,
            "occurred_at": at,
            "created_at": at,
            "step": "charge",
            "step_index": 1,
            "status": state.status,
            "completed_steps": tuple(state.completed_steps),
            "state": data,
            "fold_version": fold_version,
            "state_hash": state_hash(saga_id, sequence, fold_version, data),
            **fields,
        }
    )


ODD_IDS = (
    "order/2026-07 №5",
    "order/2026-07 №5 ",
    " order/2026-07 №5",
    "ORDER/2026-07 №5",
    "order%2F2026-07 №5",
    "a\0b",
    "a\\0b",
    "a",
    "a\0",
    "a\\",
    "a%",
    "a_",
    "a'b",
    'a"b',
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "e\N{COMBINING ACUTE ACCENT}",
    "\N{SHOPPING TROLLEY}",
    "x" * 5000,
    "x" * 4999 + "y",
    "x:1",
    "x~1",
    "1",
    "01",
    "NULL",
)
"""Saga ids that somebody might mix up."""
