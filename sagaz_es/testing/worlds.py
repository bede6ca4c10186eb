"""What a world under test looks like: a picture of it that can be kept, compared and told.

A world is whatever the steps change in a test: an object of the user's, a dict of stand-ins. A
picture is made of dicts, lists, sets and plain values, and changes no more when the world does.
"""

from __future__ import annotations

import enum
import functools
import io
from collections import deque
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from types import ModuleType
from typing import Any
from uuid import UUID

from sagaz_es.errors import ConfigurationError

MAX_PARTS = 100_000
MAX_DIFFERENCES = 5
MAX_CHARS = 200

_PLAIN = (
    *(str, bytes, int, float, complex, bool, type(None)),
    *(Decimal, Fraction, date, time, timedelta, tzinfo, UUID, PurePath, enum.Enum),
)
# Of these it matters that they are there, not what they hold.
_OPAQUE_MODULES = {"asyncio", "threading", "_thread", "logging", "concurrent", "weakref"}
_UNSEEN_MODULES = {"socket", "asyncio.queues", "multiprocessing.queues"}


_IMMUTABLE_TYPE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE: a class that is written in C


class Unseen(str):
    """Stands in a picture for something that shows nothing of what it holds: a connection, a
    generator. It is the same whatever happens."""

    __slots__ = ()


def picture(world: Any) -> Any:
    """The world as it is now: attributes, items and elements, and what functions hold on to, to
    any depth.

    Locks, modules, connections and the like are only named; see `unseen`. Raises ConfigurationError
    if it is too large to look at again and again.
    """
    return _Painter().paint(world)


def unseen(painted: Any, name: str = "world") -> Iterator[str]:
    """The places of a picture of which nothing can be compared, with what stands there."""
    if isinstance(painted, Unseen):
        yield f"{name} ({painted})"
    elif isinstance(painted, dict):
        for key, item in painted.items():
            yield from unseen(item, _place(name, key))
    elif isinstance(painted, list):
        for number, item in enumerate(painted):
            yield from unseen(item, f"{name}[{number}]")


class _Painter:
    def __init__(self) -> None:
        self._parts = 0
        self._around: set[int] = set()  # what is being painted: a circle ends there

    def paint(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return value
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ConfigurationError(
                f"the world has more than {MAX_PARTS} parts: say what counts by view=…"
            )
        if id(value) in self._around:
            return "(around in a circle)"
        self._around.add(id(value))
        try:
            return self._parts_of(value)
        finally:
            self._around.discard(id(value))

    def _parts_of(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {_key(key): self.paint(item) for key, item in value.items()}
        if isinstance(value, list | tuple | deque):
            return [self.paint(item) for item in value]
        if isinstance(value, AbstractSet):
            return {_key(item) for item in value}
        if isinstance(value, bytearray):
            return bytes(value)
        kind = type(value)
        if isinstance(value, io.IOBase) or kind.__module__ in _UNSEEN_MODULES:
            return Unseen(f"<{kind.__qualname__}>")
        if kind.__module__.partition(".")[0] in _OPAQUE_MODULES:
            return f"<{kind.__qualname__}>"
        if isinstance(value, type | ModuleType):
            return f"<{value.__name__}>"
        if callable(value) and (held := dict(_held(value))):
            return {name: self.paint(item) for name, item in held.items()}
        if hasattr(value, "__code__") or kind.__name__ in _BUILT_IN:
            return f"<{value.__name__}>"
        attributes = dict(_attributes(value))
        if attributes:
            return {name: self.paint(item) for name, item in attributes.items()}
        told = repr(value)
        nameless = " at 0x" in told  # an address says nothing
        if nameless and any(cls.__flags__ & _IMMUTABLE_TYPE for cls in kind.__mro__[:-1]):
            return Unseen(f"<{kind.__qualname__}>")
        if hasattr(value, "__dict__"):
            return {}
        return f"<{kind.__qualname__}>" if nameless else told


_BUILT_IN = {"builtin_function_or_method", "method-wrapper", "method_descriptor"}


def _held(function: Any) -> Iterator[tuple[str, Any]]:
    """What a function can change when it is called, beside what it is given."""
    if isinstance(function, functools.partial):
        yield from (("func", function.func), ("args", function.args), ("kw", function.keywords))
        return
    if not hasattr(function, "__code__") and type(function).__name__ not in _BUILT_IN:
        return
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType | type):
        yield "self", owner
    inner = getattr(function, "__func__", function)
    for name, cell in zip(
        getattr(getattr(inner, "__code__", None), "co_freevars", ()),
        getattr(inner, "__closure__", None) or (),
        strict=False,
    ):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from getattr(inner, "__dict__", {}).items()


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()
    for name in getattr(type(value), "__struct_fields__", ()):  # of msgspec
        yield name, getattr(value, name)
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _key(key: Any) -> Any:
    return key if isinstance(key, _PLAIN) else repr(key)


def differences(
    expected: Any, found: Any, name: str = "world", *, otherwise: str = "without the crash"
) -> list[str]:
    """Where two pictures differ, in words; nothing where only the order of a list does."""
    told = list(_differ(expected, found, name, otherwise))
    if len(told) > MAX_DIFFERENCES:
        return [*told[:MAX_DIFFERENCES], f"and {len(told) - MAX_DIFFERENCES} more"]
    return told


def _differ(expected: Any, found: Any, name: str, otherwise: str) -> Iterator[str]:
    if alike(expected, found):
        return
    if not (isinstance(expected, dict) and isinstance(found, dict)):
        yield f"{name} is {short(found)}; {otherwise} {short(expected)}"
        return
    for key in {**expected, **found}:
        where = _place(name, key)
        if key not in found:
            yield f"{where} is missing; {otherwise} it is {short(expected[key])}"
        elif key not in expected:
            yield f"{where} is {short(found[key])}; {otherwise} it is not there"
        else:
            yield from _differ(expected[key], found[key], where, otherwise)


def _place(name: str, key: Any) -> str:
    return f"{name}.{key}" if str(key).isidentifier() else f"{name}[{key!r}]"


def alike(one: Any, other: Any) -> bool:
    """Whether two pictures are the same but for the order of lists: crashes delay, and what runs
    side by side may come in another order."""
    return bool(one == other) or _unordered(one) == _unordered(other)


def _unordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unordered(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((_unordered(item) for item in value), key=repr)
    return value


def in_text(value: Any) -> str:
    """A picture as text; the same for equal ones, whatever the order of their sets and dicts."""
    if isinstance(value, dict):
        items = sorted((repr(key), in_text(item)) for key, item in value.items())
        return "{" + ", ".join(f"{key}: {item}" for key, item in items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(in_text, value)) + "]"
    if isinstance(value, AbstractSet):
        return "{" + ", ".join(sorted(map(repr, value))) + "}" if value else "set()"
    return repr(value)


def short(value: Any) -> str:
    """A picture as text for people: what goes on for long ends in …"""
    text = in_text(value)
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}…"
