"""Typed contexts: a msgspec.Struct, a dataclass, a TypedDict or a pydantic model that says what a
saga's context holds.

The log keeps plain values; a type is only looked at through them, so it may change as code does.
pydantic is never imported here: a model is known by what it can.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import re
import typing
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias

import msgspec

from sagaz_es.codec.values import from_text
from sagaz_es.errors import ContextMismatch, DefinitionError


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Model(Protocol):
    def model_dump(self, *, by_alias: Any = None) -> dict[str, Any]: ...


Contents: TypeAlias = Mapping[str, Any] | msgspec.Struct | _Dataclass | _Model
"""What a saga can be started with: a mapping, or a Struct, a dataclass, a pydantic model."""

_known: dict[Any, ContextType] = {}
_MOST_KNOWN = 1000  # classes; far above what one process declares
_PLAIN = (
    bytes,
    bytearray,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)


class ContextType:
    """A type that contexts are checked against, and read as. Raises DefinitionError for a class
    that is none of those."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self.is_model = _is_model(kind)
        self.keys = _keys_of(kind)
        """The keys of the context that it looks at."""

    def read(self, values: Mapping[str, Any], saga_name: str, where: str) -> Any:
        """The context as this type. Raises ContextMismatch: path, what was found, what expected."""
        try:
            if self.is_model:
                return self.kind.model_validate(dict(values))
            return msgspec.convert(dict(values), self.kind)
        except msgspec.ValidationError as error:
            path, expected, found = _in_words(str(error), values)
        except ValueError as error:  # pydantic's ValidationError is one
            if not self.is_model:
                raise
            path, expected, found = _of_model(error)
        raise ContextMismatch(saga_name, where, path, expected, found)


def context_type(kind: Any) -> ContextType:
    """The same for the same class."""
    known = _known.get(kind)
    if known is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        known = _known[kind] = ContextType(kind)
    return known


def check_texts(
    kind: ContextType | None, texts: Mapping[str, str], saga_name: str, where: str
) -> None:
    """Raises ContextMismatch where a recorded context, large values loaded, is not of the type."""
    if kind is not None:
        kind.read({key: from_text(text) for key, text in texts.items()}, saga_name, where)


def as_mapping(value: Any) -> Mapping[str, Any] | None:
    """The keys and plain values of a Struct, dataclass or model; None: it is none of these."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, type):
        return None
    if isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value):
        made = msgspec.to_builtins(value, builtin_types=_PLAIN, str_keys=True)
        return made if isinstance(made, dict) else None
    if _is_model(type(value)):
        dumped: dict[str, Any] = value.model_dump(by_alias=True)
        return dumped
    return None


def _is_model(kind: Any) -> bool:
    return (
        isinstance(kind, type) and hasattr(kind, "model_validate") and hasattr(kind, "model_dump")
    )


def _keys_of(kind: Any) -> frozenset[str]:
    if _is_model(kind):
        fields: Mapping[str, Any] = kind.model_fields
        return frozenset(
            key for name, field in fields.items() for key in (name, field.alias) if key
        )
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return frozenset(field.encode_name for field in msgspec.structs.fields(kind))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return frozenset(field.name for field in dataclasses.fields(kind))
    if typing.is_typeddict(kind):
        return frozenset(kind.__annotations__)
    raise DefinitionError(
        "context_type: a msgspec.Struct, a dataclass, a TypedDict or a pydantic model, not "
        f"{kind!r}"
    )


# --- what does not fit, in words ------------------------------------------------------------------

_PLACE = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_GOT = re.compile(r"Expected (?P<expected>.+), got (?P<found>.+)", re.DOTALL)
_FIELD = re.compile(r"Object (?P<how>missing required|contains unknown) field `(?P<name>.*)`")
_PART = re.compile(r"\.?([^.\[\]]+)")


def _in_words(message: str, values: Mapping[str, Any]) -> tuple[str, str, str]:
    """Path, what was expected and what was found, out of msgspec's sentence."""
    match = _PLACE.fullmatch(message)
    assert match is not None
    what, path = match["what"], (match["path"] or "").removeprefix(".")
    if field := _FIELD.fullmatch(what):
        path = f"{path}.{field['name']}" if path else field["name"]
        if field["how"] == "missing required":
            return path, "a value", "nothing"
        return path, "no such key", _kind_at(values, path)
    if got := _GOT.fullmatch(what):
        return path, _bare(got["expected"]), _bare(got["found"])
    expected = what.removeprefix("Expected ").replace("Invalid ", "a ", 1)
    return path, _bare(expected), _kind_at(values, path)


def _bare(text: str) -> str:
    return text.replace("`", "")


def _kind_at(values: Any, path: str) -> str:
    """The type of what stands there: a message holds no value."""
    for part in _PART.findall(path):
        try:
            values = values[part] if isinstance(values, Mapping) else list(values)[int(part)]
        except (KeyError, ValueError, IndexError, TypeError):
            return "something else"
    return type(values).__name__


def _of_model(error: Any) -> tuple[str, str, str]:
    """The same out of the first error of pydantic."""
    told: list[Mapping[str, Any]] = error.errors(include_url=False, include_context=False)
    first = told[0]
    kind, path = first["type"], _path(first["loc"])
    if kind == "missing":
        return path, "a value", "nothing"
    expected = "no such key" if kind == "extra_forbidden" else _expected(first["msg"])
    return path, expected, type(first.get("input")).__name__


def _expected(sentence: str) -> str:
    expected = sentence.removeprefix("Input should be ")
    if expected != sentence:
        return expected
    # A rule of its own: it is about the value, not its type.
    return f"another value: {sentence.removeprefix('Value error, ')}"


def _path(parts: Iterable[Any]) -> str:
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path
