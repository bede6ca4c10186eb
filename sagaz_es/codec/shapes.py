"""Entries <-> the flat dicts that stand for Avro records, by code made once from the Structs.

One dict literal a type: the same with loops over the names costs 0.8 µs more an event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from sagaz_es.core.events import FACTS, REQUESTS, Entry, Event, NamespaceCreated

Fields: TypeAlias = dict[str, Any]

TYPES: tuple[type[Any], ...] = (*FACTS, *REQUESTS, NamespaceCreated)
"""Whatever has a schema of its own."""

ENVELOPE = ("saga_id", "saga_name", "writer", "epoch", "sequence", "occurred_at")
"""The fields of an Event that stand in the record, before those of its fact."""


def fields_of(cls: type[Any]) -> Callable[[Any, Any], Fields]:
    """For a type with a schema: from (event, its fact), or twice a request, to its record."""
    parts = [f"{name!r}: own.{name}" for name in cls.__struct_fields__]
    if cls in FACTS:
        parts = [f"{name!r}: event.{name}" for name in ENVELOPE] + parts
    function: Callable[[Any, Any], Fields] = eval(f"lambda event, own: {{{', '.join(parts)}}}")
    return function


def entry_of(cls: type[Any]) -> Callable[[Fields, str], Entry]:
    """For a type with a schema: from its record and a replay id to the entry."""
    own = ", ".join(f"d[{name!r}]" for name in cls.__struct_fields__)
    envelope = ", ".join(f"d[{name!r}]" for name in ENVELOPE)
    body = f"Event({envelope}, Own({own}), replay_id)" if cls in FACTS else f"Own({own})"
    function: Callable[[Fields, str], Entry] = eval(
        f"lambda d, replay_id: {body}", {"Event": Event, "Own": cls}
    )
    return function


def entry_by_name(cls: type[Any], fields: Fields, replay_id: str) -> Entry:
    """The entry of a record that may lack fields or have others: defaults fill, the rest falls."""
    own: Any = cls(**{name: fields[name] for name in cls.__struct_fields__ if name in fields})
    if cls not in FACTS:
        entry: Entry = own
        return entry
    envelope = {name: fields[name] for name in ENVELOPE}
    return Event(**envelope, fact=own, replay_id=replay_id)
