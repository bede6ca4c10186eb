"""What a person is told of a value that cannot be kept: where it stands, what to write instead."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Iterable
from dataclasses import is_dataclass
from datetime import time, timedelta
from typing import Any

import msgspec

_SHOWN = 12
"""Parts of a path: that of a value that holds itself would be as long as the bound on depth."""


def path_of(trail: tuple[Any, str | int, int]) -> str:
    """Such as `order.items[3].price`; an element of a set, which has no index, is `[*]`."""
    parts: list[str] = []
    parent, part, _ = trail
    while parent is not None:
        if isinstance(part, int):
            parts.append("[*]" if part < 0 else f"[{part}]")
        else:
            parts.append(f".{part}" if part.isidentifier() else f"[{part!r}]")
        parent, part, _ = parent
    parts.reverse()
    cut = ["…"] if len(parts) > _SHOWN else []
    return f"{part}{''.join(parts[:_SHOWN] + cut)}".removeprefix(".")


def hint_for(value: Any, kept: Iterable[type]) -> str:
    """What to write instead of `value`, of a type that is not `kept`; empty: nothing known."""
    if isinstance(value, enum.Enum):
        return "write its .value"
    for base in kept:
        if isinstance(value, base):
            again = "UUID(str(value))" if base.__name__ == "UUID" else f"{base.__name__}(value)"
            return f"it would come back as a {base.__name__}: write {again} if that is meant"
    if isinstance(value, bytearray | memoryview):
        return "write bytes(value)"
    if isinstance(value, frozenset):
        return "write set(value)"
    if isinstance(value, timedelta):
        return "write value.total_seconds()"
    if isinstance(value, time):
        return "write value.isoformat()"
    if is_dataclass(value):
        return "write dataclasses.asdict(value)"
    if isinstance(value, msgspec.Struct):
        return "write msgspec.structs.asdict(value)"
    if isinstance(value, Awaitable):
        return "is an `await` missing?"
    return ""
