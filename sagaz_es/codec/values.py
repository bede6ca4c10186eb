"""Typed values <-> JSON text: what a saga's context, results and payloads are kept as.

Law (same value, same type): `from_text(to_text(x))` equals x, and so does the type of every part.
Law (comparable): equal values of equal order and types give equal texts, so texts show changes.
Law (loud): what cannot come back as it was is refused with its path; nothing is half written.

What JSON cannot hold is an object with one key that begins with `$`, the tag. A key of the user's
own that begins with `$` gets one more and loses it again, so no data is ever taken for a tag. Of an
aware datetime the offset is kept, not the name of the zone. Source: DESIGN.md §3.
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime
from decimal import Context, Decimal, DecimalException, InvalidOperation
from typing import Any, TypeAlias
from uuid import UUID

import msgspec
from msgspec import Struct

from sagaz_es.codec.refusals import hint_for, path_of
from sagaz_es.errors import UndecodableRecord, UnstorableValue

MAX_DEPTH = 100
"""Containers in containers: well below Python's recursion limit, whatever the caller's stack."""

READ_DEPTH = MAX_DEPTH + 20
"""What is read: more, as the text of a value may stand inside others, such as a whole context."""

MAX_DIGITS = 4300
"""Of an integer: Python's own bound for reading one back (sys.set_int_max_str_digits)."""


class BlobRef(Struct, frozen=True):
    """Stands for a value that is kept in the blob store under `key` (64 hex digits of SHA-256)."""

    key: str

    def __post_init__(self) -> None:
        if len(self.key) != 64 or not set(self.key) <= set("0123456789abcdef"):
            raise ValueError("64 hex digits expected")


class Sealed(Struct, frozen=True):
    """Stands for a value of a data subject: ciphertext that the key `key_id` opens."""

    key_id: str
    ciphertext: bytes
    algorithm: str = "AES-256-GCM"


Trail: TypeAlias = "tuple[Trail | None, str | int, int]"
"""Where a value stands: its container's trail, its key or index, how deep. A path once needed."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

_INT64 = 2**63
_INT_BOUND = 10**MAX_DIGITS
# A context of our own: with the caller's, malformed text could quietly become NaN.
_STRICT = Context(traps=[InvalidOperation])
_FOLD = "[_fold=1]"  # a suffix as RFC 9557 allows them: ISO 8601 cannot say "the second 02:30"


def to_text(value: Any, path: str = "") -> str:
    """The JSON text of `value`; `path` is where it stands, for messages.

    Raises UnstorableValue with the path of what cannot be kept, such as `order.items[3].price`.
    Only exact types are kept: an enum, an OrderedDict or a named tuple would lose its type.
    """
    try:
        # Almost everything is plain: msgspec alone writes it, if no key can be taken for a tag.
        if _is_plain(value, MAX_DEPTH):
            text = _encode(value).decode()
            if '"$' not in text:
                return text
    except UnicodeEncodeError:
        pass  # a lone surrogate: the long way finds out where
    return _encode(_lower(value, (None, path, 0))).decode()


def from_text(text: str) -> Any:
    """The value of a text that `to_text` made. Raises UndecodableRecord for any other text."""
    try:
        value = _decode(text)
        # Each level of nesting has a bracket: few brackets cannot be nested too deep.
        flat = text.count("[") + text.count("{") <= READ_DEPTH
        return value if flat and _has_no_tag(text) else _lift(value, 0)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UndecodableRecord(f"no JSON text of a value: {error}") from None


def _is_plain(value: Any, depth: int) -> bool:
    """Whether JSON itself holds the value, but for keys that look like a tag and surrogates."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        return -_INT64 <= value < _INT64  # type: ignore[no-any-return]  # narrowed by `is`
    if kind is float:
        return math.isfinite(value)
    if depth == 0 or (kind is not dict and kind is not list):
        return False
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return False
        value = value.values()
    for item in value:
        if type(item) is not str and not _is_plain(item, depth - 1):
            return False
    return True


# --- value -> what JSON can hold -----------------------------------------------------------------


def _lower(value: Any, trail: Trail) -> Any:
    lower = _LOWER.get(type(value))
    if lower is None:
        raise UnstorableValue(path_of(trail), type(value).__qualname__, hint_for(value, _LOWER))
    return lower(value, trail)


def _as_is(value: Any, trail: Trail) -> Any:
    return value


def _lower_str(value: str, trail: Trail) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        hint = "it is no Unicode text; keep its bytes"
        raise UnstorableValue(path_of(trail), "str with a lone surrogate", hint) from None
    return value


def _lower_int(value: int, trail: Trail) -> Any:
    if -_INT64 <= value < _INT64:
        return value
    if not -_INT_BOUND < value < _INT_BOUND:
        raise UnstorableValue(path_of(trail), f"int of more than {MAX_DIGITS} digits", "keep bytes")
    return {"$int": str(value)}


def _lower_float(value: float, trail: Trail) -> Any:
    return value if math.isfinite(value) else {"$float": str(value)}


def _lower_dict(value: dict[Any, Any], trail: Trail) -> dict[str, Any]:
    depth = _deeper(trail, value)
    lowered = {}
    for key, item in value.items():
        if type(key) is not str:
            what = f"dict key of type {type(key).__qualname__}"
            raise UnstorableValue(path_of(trail), what, "keys are texts: write str(key)")
        lowered[_escape(_lower_str(key, trail))] = _lower(item, (trail, key, depth))
    return lowered


def _lower_list(value: list[Any] | tuple[Any, ...], trail: Trail) -> list[Any]:
    depth = _deeper(trail, value)
    return [_lower(item, (trail, index, depth)) for index, item in enumerate(value)]


def _lower_tuple(value: tuple[Any, ...], trail: Trail) -> Any:
    return {"$tuple": _lower_list(value, trail)}


def _lower_set(value: set[Any], trail: Trail) -> Any:
    depth = _deeper(trail, value)
    # Sorted by text: the order of a set differs from process to process.
    return {"$set": sorted((_lower(item, (trail, -1, depth)) for item in value), key=_encode)}


def _lower_datetime(value: datetime, trail: Trail) -> Any:
    offset = value.utcoffset()
    if offset is not None and offset.microseconds:
        # Python writes such an offset, but does not read it back where it is below a second.
        what = "datetime with parts of a second in its offset"
        raise UnstorableValue(path_of(trail), what, "no time zone has them")
    return {"$datetime": value.isoformat() + (_FOLD if value.fold else "")}


def _lower_sealed(value: Sealed, trail: Trail) -> Any:
    data = b64encode(value.ciphertext).decode()
    return {"$sealed": {"algorithm": value.algorithm, "key_id": value.key_id, "ciphertext": data}}


def _deeper(trail: Trail, value: Any) -> int:
    if trail[2] >= MAX_DEPTH:
        what = f"{type(value).__qualname__} inside {MAX_DEPTH} others"
        raise UnstorableValue(path_of(trail), what, "keep it flatter; does it hold itself?")
    return trail[2] + 1


def _escape(key: str) -> str:
    return f"${key}" if key.startswith("$") else key


_LOWER: dict[type, Callable[[Any, Trail], Any]] = {
    type(None): _as_is,
    bool: _as_is,
    str: _lower_str,
    int: _lower_int,
    float: _lower_float,
    dict: _lower_dict,
    list: _lower_list,
    tuple: _lower_tuple,
    set: _lower_set,
    Decimal: lambda value, trail: {"$decimal": str(value)},
    datetime: _lower_datetime,
    date: lambda value, trail: {"$date": value.isoformat()},
    UUID: lambda value, trail: {"$uuid": str(value)},
    bytes: lambda value, trail: {"$bytes": b64encode(value).decode()},
    BlobRef: lambda value, trail: {"$blob": f"sha256:{value.key}"},
    Sealed: _lower_sealed,
}


# --- what JSON held -> value ---------------------------------------------------------------------


def _lift(raw: Any, depth: int) -> Any:
    kind = type(raw)
    if kind is not dict and kind is not list:
        return raw
    if kind is dict and len(raw) == 1:
        ((tag, body),) = raw.items()
        if tag.startswith("$") and not tag.startswith("$$"):
            return _lift_tag(tag, body, depth)
    if depth >= READ_DEPTH:
        raise UndecodableRecord(f"a value nested deeper than {READ_DEPTH}")
    if kind is list:
        return [_lift(item, depth + 1) for item in raw]
    return {_unescape(key): _lift(item, depth + 1) for key, item in raw.items()}


def _lift_tag(tag: str, body: Any, depth: int) -> Any:
    try:
        if lift_text := _LIFT_TEXT.get(tag):
            if type(body) is not str:
                raise ValueError("text expected")
            return lift_text(body)
        if tag in ("$set", "$tuple"):
            if type(body) is not list:
                raise ValueError("array expected")
            items = _lift(body, depth)
            return set(items) if tag == "$set" else tuple(items)
        if tag == "$sealed":
            return _lift_sealed(**body)
    except UndecodableRecord:
        raise
    except (ValueError, TypeError, DecimalException) as error:
        raise UndecodableRecord(f"a damaged {tag}: {error}") from None
    raise UndecodableRecord(f"an unknown tag {tag!r}: written by a newer version?")


def _lift_datetime(body: str) -> datetime:
    if body.endswith(_FOLD):
        return datetime.fromisoformat(body.removesuffix(_FOLD)).replace(fold=1)
    return datetime.fromisoformat(body)


def _lift_decimal(body: str) -> Decimal:
    try:
        return Decimal(body, _STRICT)
    except InvalidOperation:
        raise ValueError(f"{body!r} is no decimal number, such as 9.90") from None


def _lift_float(body: str) -> float:
    if body not in ("nan", "inf", "-inf"):
        raise ValueError("nan, inf or -inf expected")
    return float(body)


def _lift_blob(body: str) -> BlobRef:
    if not body.startswith("sha256:"):
        raise ValueError("sha256: expected")
    return BlobRef(body.removeprefix("sha256:"))


def _lift_sealed(algorithm: str, key_id: str, ciphertext: str) -> Sealed:
    if type(algorithm) is not str or type(key_id) is not str:
        raise ValueError("texts expected")
    return Sealed(key_id, b64decode(ciphertext, validate=True), algorithm)


def _unescape(key: str) -> str:
    if not key.startswith("$"):
        return key
    if not key.startswith("$$"):
        raise UndecodableRecord(f"a tag {key!r} beside other keys")
    return key[1:]


def _has_no_tag(text: str) -> bool:
    # Others may write a `$` as an escape; we never do.
    return '"$' not in text and '"\\u0024' not in text


_LIFT_TEXT: dict[str, Callable[[str], Any]] = {
    "$decimal": _lift_decimal,
    "$datetime": _lift_datetime,
    "$date": date.fromisoformat,
    "$uuid": UUID,
    "$bytes": lambda body: b64decode(body, validate=True),
    "$int": int,
    "$float": _lift_float,
    "$blob": _lift_blob,
}
