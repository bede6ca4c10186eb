"""Values in files, under sagaz's names: for programs that keep them by hand.

A saga needs none of this: large values leave their events by themselves (`engine.blobs`). Values
keep their types as in a context; nothing is pickled, so reading a file runs no code.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from sagaz_es.blobs.hashing import checked, key_of
from sagaz_es.codec.values import from_text, to_text


@dataclass(frozen=True, slots=True)
class ExternalReference:
    """Where a value is kept. `checksum`: SHA-256 of its bytes, 64 hex digits."""

    uri: str
    size_bytes: int
    content_type: str
    checksum: str
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ttl_seconds: int | None = None  # kept for the caller: nothing is removed by itself


class ExternalStorage(Protocol):
    """Keeps values outside of a saga's context."""

    async def store(
        self, saga_id: str, key: str, value: Any, ttl_seconds: int | None = None
    ) -> ExternalReference:
        """Raises UnstorableValue with the path of what cannot be kept."""

    async def load(self, uri: str) -> Any:
        """Raises FileNotFoundError, ValueError (no such kind of address), CorruptBlob."""

    async def delete(self, uri: str) -> None:
        """What is not there is no error."""


class FileSystemExternalStorage:
    """ExternalStorage on a directory: `saga-<id>/<SHA-256>`; the same value twice is one file."""

    def __init__(self, base_path: str | Path) -> None:
        self.base_path = Path(base_path).absolute()
        self.base_path.mkdir(parents=True, exist_ok=True)

    async def store(
        self, saga_id: str, key: str, value: Any, ttl_seconds: int | None = None
    ) -> ExternalReference:
        data = to_text(value, key).encode()
        checksum = key_of(data)
        # A saga's id may hold anything; quoted, it is one name, and leads nowhere else.
        path = self.base_path / f"saga-{quote(str(saga_id), safe='')}" / checksum
        await asyncio.to_thread(_write, path, data)
        return ExternalReference(
            path.as_uri(), len(data), "application/json", checksum, ttl_seconds=ttl_seconds
        )

    async def load(self, uri: str) -> Any:
        path = self._path(uri)
        data = await asyncio.to_thread(path.read_bytes)
        return from_text(checked(path.name, data, str(path.parent)).decode())

    async def delete(self, uri: str) -> None:
        await asyncio.to_thread(self._path(uri).unlink, missing_ok=True)

    def _path(self, uri: str) -> Path:
        parts = urlsplit(uri)
        path = Path(os.path.normpath(unquote(parts.path)))
        if parts.scheme != "file" or not path.is_relative_to(self.base_path):
            raise ValueError(f"{uri!r} is no address in {self.base_path}")
        return path


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: a crash leaves no half file under the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.part")
    half.write_bytes(data)
    half.replace(path)
