"""Large values leave their event for the blob store, and come back when a step reads them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from sagaz_es.errors import BlobMissing, LargePayloadWarning, MemoryFootprintError
from sagaz_es.ports import BlobStore

WARN_BYTES = 64 * 1024
INLINE_BYTES = 256 * 1024
MAX_BYTES = 64 * 1024 * 1024
_PREFIX = '{"$blob":"sha256:'


class LargeValues:
    """Keeps values over `INLINE_BYTES` of JSON under their hash; refuses those over `MAX_BYTES`."""

    def __init__(
        self, store: BlobStore, *, inline_bytes: int = INLINE_BYTES, max_bytes: int = MAX_BYTES
    ) -> None:
        self._store = store
        self._inline_bytes, self._max_bytes = inline_bytes, max_bytes

    async def off_load(self, texts: Mapping[str, str]) -> dict[str, str]:
        """The same keys, large texts replaced by references. Raises MemoryFootprintError."""
        kept = dict(texts)
        for key, text in texts.items():
            if len(text) > WARN_BYTES:
                kept[key] = await self.off_load_one(text, key)
        return kept

    async def off_load_one(self, text: str, key: str = "result") -> str:
        """The text, or a reference to it."""
        size = len(text)
        if size <= WARN_BYTES:  # characters are at most bytes: the common case needs no encoding
            return text
        data = text.encode()
        size = len(data)
        if size > self._max_bytes:
            raise MemoryFootprintError(key, size, self._max_bytes)
        if size <= self._inline_bytes:
            warnings.warn(
                f"{key!r} takes {size} bytes in the log; keep large values elsewhere",
                LargePayloadWarning,
                stacklevel=2,
            )
            return text
        return f'{_PREFIX}{await self._store.put(data)}"}}'

    def refers(self, texts: Mapping[str, str]) -> bool:
        """Whether any of them is a reference, so that there is something to load."""
        for text in texts.values():
            if text.startswith(_PREFIX):
                return True
        return False

    async def load(self, texts: Mapping[str, str]) -> Mapping[str, str]:
        """The same keys, references replaced by what they stand for. Raises BlobMissing."""
        found: dict[str, str] | None = None
        for key, text in texts.items():
            if text.startswith(_PREFIX):
                found = dict(texts) if found is None else found
                found[key] = await self.load_one(text)
        return texts if found is None else found

    async def load_one(self, text: str) -> str:
        """The text that a reference stands for; any other text as it is."""
        if not text.startswith(_PREFIX):
            return text
        key = text[len(_PREFIX) : -2]
        data = await self._store.get(key)
        if data is None:
            raise BlobMissing(key, getattr(self._store, "name", type(self._store).__name__))
        return data.decode()
