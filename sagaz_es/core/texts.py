"""JSON texts cut into their top-level values, and put together again.

The context is kept as one JSON text a key: what changed is found by comparing texts, and a step
decodes only its own copy. Values inside stay as they are; tags are the codec's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

_encode = msgspec.json.encode
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NAMES = msgspec.json.Decoder(list[str])


def split_object(text: str) -> dict[str, str]:
    """`{"a":1,"b":[2]}` as `{"a": "1", "b": "[2]"}`; an empty text is an empty object."""
    if not text or text == "{}":
        return {}
    if '"$' in text:
        # A key that looks like a tag has one more `$` in the text, as inside of values.
        return {_unescaped(key): bytes(raw).decode() for key, raw in _OBJECT.decode(text).items()}
    return {key: bytes(raw).decode() for key, raw in _OBJECT.decode(text).items()}


def _unescaped(key: str) -> str:
    return key[1:] if key.startswith("$") else key


def join_object(texts: Mapping[str, str]) -> str:
    """The reverse of `split_object`."""
    if not texts:
        return "{}"
    members = [
        f"{_encode('$' + key if key[:1] == '$' else key).decode()}:{text}"
        for key, text in texts.items()
    ]
    return "{" + ",".join(members) + "}"


def names(text: str) -> list[str]:
    """A JSON array of texts; an empty text is an empty array."""
    return _NAMES.decode(text) if text else []


def join_names(values: Iterable[str]) -> str:
    """The reverse of `names`; an empty array is an empty text."""
    values = list(values)
    return _encode(values).decode() if values else ""
