"""The flat dicts that stand for Avro records -> entries, by code made once from the Structs: with
loops over the names an event costs 0.3 µs more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from sagaz_es.core.events import FACTS, REQUESTS, Entry, Event, NamespaceCreated

Fields: TypeAlias = dict[str, Any]

TYPES: tuple[type[Any], ...] = (*FACTS, *REQUESTS, NamespaceCreated)
"""Whatever has a schema of its own."""

ENVELOPE = ("saga_id", "saga_name", "writer", "epoch", "sequence", "occurred_at")
"""The fields of an Event that stand in the record, before those of its fact."""


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
