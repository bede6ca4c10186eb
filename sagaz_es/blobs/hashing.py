"""The key of a blob: the SHA-256 of its bytes."""

from __future__ import annotations

from hashlib import sha256

from sagaz_es.errors import CorruptBlob


def key_of(data: bytes) -> str:
    """64 hex digits."""
    return sha256(data).hexdigest()


def checked(key: str, data: bytes, where: str) -> bytes:
    """The bytes, if they are those of the key. Raises CorruptBlob."""
    if key_of(data) != key:
        raise CorruptBlob(key, where)
    return data
