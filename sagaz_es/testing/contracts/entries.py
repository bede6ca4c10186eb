"""Entries for contract tests: one of every kind, with every field filled."""

from __future__ import annotations

from typing import TypeVar
from uuid import uuid4

import msgspec

from sagaz_es.core.events import FACTS, REQUESTS, Event, Fact, Request, StepCompleted

WRITER = bytes(range(16))
_FILLED: dict[object, object] = {
    str: 'text, {"é": "№5 😀"}',
    int: 1_700_000_000_123_456,
    bool: True,
}
_T = TypeVar("_T", bound=msgspec.Struct)


def new_id() -> str:
    """A saga id that nobody else uses."""
    return str(uuid4())


def event(saga_id: str, fact: Fact, sequence: int = 1, replay_id: str = "") -> Event:
    """A fact in an envelope."""
    at = 1_700_000_000_000_000 + sequence
    return Event(saga_id, "OrderSaga", WRITER, 0, sequence, at, fact, replay_id)


def steps(saga_id: str, count: int, first: int = 1) -> list[Event]:
    """So many events of a saga, told apart by their sequence."""
    fact = StepCompleted("charge", result='{"paid": true}')
    return [event(saga_id, fact, sequence) for sequence in range(first, first + count)]


def every_fact() -> list[Fact]:
    """One fact of each type, no field at its default."""
    return [_filled(cls) for cls in FACTS]


def every_request(saga_id: str) -> list[Request]:
    """One request of each type to a saga, no field at its default."""
    return [msgspec.structs.replace(_filled(cls), saga_id=saga_id) for cls in REQUESTS]


def _filled(cls: type[_T]) -> _T:
    return cls(**{field.name: _FILLED[field.type] for field in msgspec.structs.fields(cls)})
