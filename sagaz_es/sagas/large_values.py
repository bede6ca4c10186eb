"""Large values leave their event for the blob store, and come back when a step reads them."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from msgspec import Struct

from sagaz_es.errors import (
    BlobMissing,
    ConfigurationError,
    LargePayloadWarning,
    MemoryFootprintError,
    StorageFailed,
)
from sagaz_es.ports import BlobStore

logger = logging.getLogger("sagaz_es.engine")

T = TypeVar("T")

RETRY_S, MAX_RETRY_S = 0.1, 10.0

_PREFIX = '{"$blob":"sha256:'
_MAX_TOLD = 1000  # a program that makes up its keys gets no list without end
_MOST_INLINE = 400_000  # a record holds less than a megabyte, and a mapping result stands twice


class Limits(Struct, frozen=True):
    """How large a value may be, in bytes of its JSON text: over `warn` it is told of, over
    `inline` kept outside the event (where there is a store), over `most` refused."""

    warn: int = 64 * 1024
    inline: int = 256 * 1024
    most: int = 64 * 1024 * 1024

    def check(self, prefix: str) -> None:
        """Raises ConfigurationError that names the setting, `prefix` and ours."""
        allowed = {
            "warn_bytes": (self.warn, 0, None),
            "inline_bytes": (self.inline, 1, _MOST_INLINE),
            "max_bytes": (self.most, 1, None),
        }
        for name, (value, least, most) in allowed.items():
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or value < least or (most is not None and value > most):
                bound = f"{least} to {most:,}" if most else f"{least} or more"
                raise ConfigurationError(f"{prefix}{name}: {bound} bytes, not {value!r}")


DEFAULT_LIMITS = Limits()


class PatientBlobStore:
    """A blob store whose outages are waited out. What a step has done is not undone, and no
    compensation is given up, because its values cannot be put away or fetched for a while.

    A value that is missing or damaged is no outage: it is told at once.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self.name = getattr(blobs, "name", "the blob store")

    async def put(self, data: bytes) -> str:
        return await self._insist(lambda: self._blobs.put(data))

    async def get(self, key: str) -> bytes | None:
        return await self._insist(lambda: self._blobs.get(key))

    async def close(self) -> None:
        """Whoever opened the other one closes it."""

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        delay = RETRY_S
        while True:
            try:
                return await call()
            except (StorageFailed, OSError) as error:
                logger.warning("%s: %s; trying again", self.name, error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_RETRY_S)


class LargeValues:
    """Keeps values over the inline limit under their hash; refuses those over the largest one.

    Without a store large values stay in their event, within the same limits.
    """

    def __init__(self, store: BlobStore | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        self._blobs, self._limits = store, limits
        self._told: set[tuple[str, str, str]] = set()
        # What is shorter needs no look: a character takes one byte at least and four at most.
        self._unseen = min(limits.warn or limits.inline, limits.inline, limits.most) // 4

    def patient(self) -> LargeValues:
        """The same for whoever would rather wait than hear that the store is away."""
        store = None if self._blobs is None else PatientBlobStore(self._blobs)
        return LargeValues(store, self._limits)

    async def off_load(
        self, texts: Mapping[str, str], saga_name: str = "", step: str = ""
    ) -> dict[str, str]:
        """The same keys, large texts replaced by references. Raises MemoryFootprintError."""
        kept = dict(texts)
        for key, text in texts.items():
            if len(text) > self._unseen:
                kept[key] = await self.off_load_one(text, key, saga_name, step)
        return kept

    async def off_load_completed(
        self, keys_set: Mapping[str, str], result: str, saga_name: str, step: str
    ) -> tuple[dict[str, str], str]:
        """The same for what a step has set and returned.

        Law (told of once): of a large value that was returned and is merged into the context, its
        key is told of; the result it stands in is not, too.
        """
        kept = await self.off_load(keys_set, saga_name, step)
        told = any(self._is_told_of(text) and text in result for text in keys_set.values())
        return kept, await self.off_load_one(result, "result", saga_name, step, told=told)

    def _is_told_of(self, text: str) -> bool:
        return len(text) > self._unseen and 0 < self._limits.warn < len(text.encode())

    async def off_load_one(
        self,
        text: str,
        key: str = "result",
        saga_name: str = "",
        step: str = "",
        *,
        told: bool = False,
    ) -> str:
        """The text, or a reference to it. `told`: nobody is told that it is large."""
        if len(text) <= self._unseen:
            return text
        limits = self._limits
        data = text.encode()
        size = len(data)
        if size > limits.most:
            raise MemoryFootprintError(key, size, limits.most)
        if 0 < limits.warn < size and not told:
            self._tell(saga_name, step, key, size)
        if self._blobs is None or size <= limits.inline:
            return text
        return f'{_PREFIX}{await self._blobs.put(data)}"}}'

    def check(self, text: str, key: str) -> None:
        """For what cannot be moved out of its record. Raises MemoryFootprintError."""
        if len(text) > self._unseen and (size := len(text.encode())) > self._limits.inline:
            raise MemoryFootprintError(key, size, self._limits.inline)

    def _tell(self, saga_name: str, step: str, key: str, size: int) -> None:
        """Once a key of a step."""
        place = (saga_name, step, key)
        if place in self._told or len(self._told) >= _MAX_TOLD:
            return
        self._told.add(place)
        saga = f"saga {saga_name!r}, " if saga_name else ""
        where = f"step {step!r}, " if step else ""
        text = f"{saga}{where}key {key!r}: {size} bytes; keep large values elsewhere, or raise "
        text += f"value_warn_bytes ({self._limits.warn})"
        try:
            warnings.warn(text, LargePayloadWarning, stacklevel=2)
        except LargePayloadWarning:  # made an error by a filter: the step has done its work
            logger.warning(text)

    def refers(self, texts: Mapping[str, str]) -> bool:
        """Whether any of them is a reference, so that there is something to load."""
        if self._blobs is None:
            return False
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
        data = None if self._blobs is None else await self._blobs.get(key)
        if data is None:
            raise BlobMissing(key, getattr(self._blobs, "name", "the log's store"))
        return data.decode()
