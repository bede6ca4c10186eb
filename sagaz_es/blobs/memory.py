"""BlobStore in memory: for tests and for `memory://`."""

from __future__ import annotations

from sagaz_es.blobs.hashing import checked, key_of


class MemoryBlobStore:
    """BlobStore on a dict. What it holds ends with the process."""

    def __init__(self) -> None:
        self.name = "memory://"
        self._blobs: dict[str, bytes] = {}

    async def put(self, data: bytes) -> str:
        key = key_of(data)
        self._blobs.setdefault(key, bytes(data))
        return key

    async def get(self, key: str) -> bytes | None:
        data = self._blobs.get(key)
        return None if data is None else checked(key, data, self.name)

    async def close(self) -> None:
        """What is kept stays: another engine of this process may go on with it."""
