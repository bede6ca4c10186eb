"""JSON objects and `key=value` as they come from a shell. Tagged values become typed ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sagaz_es.codec.values import from_text
from sagaz_es.errors import InvalidOverride, UndecodableRecord

_INT64 = 2**63


def parse_object(text: str) -> dict[str, Any]:
    """The value of a JSON object. Raises ValueError that says where it is malformed."""
    value = _parse(text)
    if not isinstance(value, dict):
        raise ValueError(
            f"{_shown(text)} is {_kind(value)}, not a JSON object; write it as {EXAMPLE}"
        )
    return value


def parse_value(text: str) -> Any:
    """Any JSON value. Raises ValueError that says where it is malformed."""
    return _parse(text)


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Several overrides in one; of two with one key the later counts. Raises InvalidOverride."""
    merged: dict[str, Any] = {}
    for text in texts:
        merged |= _override(text)
    return merged


EXAMPLE = """'{"token": "new"}'"""


def _override(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            return parse_object(text)
        except _Malformed as error:
            raise InvalidOverride(_shortened(text), error.where) from None
        except ValueError:  # a tagged value: `{"$decimal": "9.90"}` alone is no object
            where = "column 1: a typed value stands behind a key"
            raise InvalidOverride(_shortened(text), where) from None
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidOverride(
            _shortened(text), f"column {len(text) + 1}: there is no '=' and it is no JSON object"
        )
    key = key.strip()
    if not key:
        raise InvalidOverride(_shortened(text), "column 1: there is no key before the '='")
    try:
        return {key: _parse(value)}
    except _Malformed:
        return {key: value}


class _Malformed(ValueError):
    def __init__(self, text: str, where: str) -> None:
        super().__init__(text, where)
        self.text, self.where = text, where

    def __str__(self) -> str:
        return f"{_shown(self.text)} is not usable: {self.where}; write it as {EXAMPLE}"


def _parse(text: str) -> Any:
    try:
        plain = json.loads(text, parse_int=_int, parse_constant=_no_json, object_pairs_hook=_pairs)
        return from_text(json.dumps(plain))
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise _Malformed(text, f"{line}column {error.colno}: {_lower(error.msg)}") from None
    except (_NoJson, UndecodableRecord) as error:
        raise _Malformed(text, str(error)) from None
    except RecursionError:
        raise _Malformed(text, "it is nested too deep") from None


class _NoJson(ValueError):
    pass


def _int(text: str) -> Any:
    # What does not fit into 64 bits would be read as a float.
    if len(text) < 19:
        return int(text)
    return {"$int": text} if len(text) > 20 or not -_INT64 <= int(text) < _INT64 else int(text)


def _no_json(name: str) -> Any:
    raise _NoJson(f"{name} is not JSON")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _NoJson(f"the key {twice!r} stands there twice")
    return found


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names: dict[type, str] = {list: "an array", str: "a text", bool: "a truth value"}
    return names.get(type(value), "a number")


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shown(text: str) -> str:
    return repr(_shortened(text))
