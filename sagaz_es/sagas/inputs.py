"""What callers hand in, checked: ids and contexts."""

from __future__ import annotations

import uuid
from typing import Any

from sagaz_es.codec.values import to_text
from sagaz_es.errors import ConfigurationError, UnstorableValue
from sagaz_es.sagas.typed import Contents, as_mapping

MAX_ID_BYTES = 1024


def new_id() -> str:
    """A random saga or request id."""
    return str(uuid.uuid4())


def check_id(saga_id: Any) -> str:
    """A saga id as text. Raises ConfigurationError."""
    text = str(saga_id) if isinstance(saga_id, uuid.UUID) else saga_id
    if not isinstance(text, str) or not text:
        raise ConfigurationError(f"saga_id: a text that is not empty, not {saga_id!r}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"saga_id: {text!r} is no valid Unicode text") from error
    if size > MAX_ID_BYTES:
        raise ConfigurationError(f"saga_id: {size} bytes are more than {MAX_ID_BYTES}")
    return text


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
        if not isinstance(key, str):
            raise UnstorableValue(repr(key), type(key).__name__, "the keys of a context are texts")
        texts[key] = to_text(value, key)
    return texts
