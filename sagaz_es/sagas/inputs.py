"""What callers hand in, checked: ids, texts and contexts.

What is refused here never reaches the log: an event that no codec can write would come back from it
as an error in the middle of a saga, not as an answer to who called.
"""

from __future__ import annotations

import uuid
from typing import Any

from sagaz_es.codec.values import to_text
from sagaz_es.errors import ConfigurationError, UnstorableValue
from sagaz_es.sagas.typed import Contents, as_mapping

MAX_ID_BYTES = 1024
"""Of ids, and of the names of steps, signals and actors."""

MAX_REASON_BYTES = 16 * 1024


def new_id() -> str:
    """A random saga or request id."""
    return str(uuid.uuid4())


def check_id(saga_id: Any) -> str:
    """A saga id as text. Raises ConfigurationError."""
    return check_text("saga_id", str(saga_id) if isinstance(saga_id, uuid.UUID) else saga_id)


def check_request_id(request_id: Any) -> str:
    """A request's id as text; None: a new one. Raises ConfigurationError."""
    if request_id is None:
        return new_id()
    given = str(request_id) if isinstance(request_id, uuid.UUID) else request_id
    return check_text("request_id", given)


def check_text(what: str, value: Any, *, empty: bool = False, most: int = MAX_ID_BYTES) -> str:
    """The value, if it is a text of at most `most` bytes. Raises ConfigurationError."""
    if not isinstance(value, str) or not (value or empty):
        kind = "a text" if empty else "a text that is not empty"
        raise ConfigurationError(f"{what}: {kind}, not {value!r}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{what}: {value!r} is no valid Unicode text") from error
    if size > most:
        raise ConfigurationError(f"{what}: {size} bytes are more than {most}")
    return value


def check_said(actor: Any, reason: Any = "") -> None:
    """Who asks for something, and why. Raises ConfigurationError."""
    check_text("actor", actor, empty=True)
    check_text("reason", reason, empty=True, most=MAX_REASON_BYTES)


def check_key(key: Any) -> str:
    """A key of a context. Raises UnstorableValue."""
    if not isinstance(key, str):
        raise UnstorableValue(repr(key), type(key).__name__, "the keys of a context are texts")
    try:
        key.encode()
    except UnicodeEncodeError:
        what = "key with a lone surrogate"
        raise UnstorableValue(repr(key), what, "it is no Unicode text") from None
    return key


def context_texts(context: Contents | None) -> dict[str, str]:
    """A context (None: an empty one) as key -> JSON text.

    Raises UnstorableValue with the path of the key.
    """
    if context is None:
        return {}
    mapping = as_mapping(context)
    if mapping is None:
        raise UnstorableValue("context", type(context).__name__, "a context is a mapping")
    texts: dict[str, str] = {}
    for key, value in mapping.items():
        texts[check_key(key)] = to_text(value, key)
    return texts
