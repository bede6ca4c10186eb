"""Old versions of a record lifted to the newest: pure functions, from one version to the next.

A field that was added needs none of them: it takes the default of its Struct. They are for what a
default cannot say, such as a value that moved from one field to another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Fields: TypeAlias = dict[str, Any]
Upcast: TypeAlias = Callable[[Fields], Fields]
"""From the fields of one version, with the envelope, to those of the next. Raises nothing."""

Upcasts: TypeAlias = Mapping[tuple[str, int], Upcast]
"""(name of the fact, version) -> the step from that version to the next one."""

UPCASTS: Upcasts = {}


def lift(
    fields: Fields, name: str, version: int, newest: int, upcasts: Upcasts = UPCASTS
) -> Fields:
    """What the fields of an old version of a record are in the newest one."""
    for old in range(version, newest):
        if step := upcasts.get((name, old)):
            fields = step(fields)
    return fields
