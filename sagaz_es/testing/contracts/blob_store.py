"""The laws of `sagaz_es.ports.BlobStore` as tests. Needs pytest and pytest-asyncio.

class TestMyBlobs(BlobStoreContract):
    @pytest.fixture
    async def store(self):
        store = MyBlobs(...)
        yield store
        await store.close()

    async def damage(self, store, key):
        ...  # change one byte of what is stored under this key
"""

from __future__ import annotations

import asyncio
from hashlib import sha256

import pytest

from sagaz_es.errors import CorruptBlob
from sagaz_es.ports import BlobStore


class BlobStoreContract:
    """What every blob store promises; subclass it, give the fixture `store` and the helper."""

    pytestmark = pytest.mark.asyncio

    async def damage(self, store: BlobStore, key: str) -> None:
        """Change one byte of what is stored under this key."""
        raise NotImplementedError

    async def test_same_bytes_same_key(self, store: BlobStore) -> None:
        data = "ärger №\0".encode() * 100
        key = await store.put(data)
        assert key == sha256(data).hexdigest()
        assert await store.put(bytes(bytearray(data))) == key
        assert await store.put(data + b"x") != key
        assert await store.get(key) == data

    @pytest.mark.parametrize("size", [0, 1, 5_000_000])
    async def test_whole_or_absent(self, store: BlobStore, size: int) -> None:
        data = bytes(range(256)) * (size // 256) + b"\xff" * (size % 256)
        key = sha256(data).hexdigest()
        assert await store.get(key) is None
        assert await store.put(data) == key
        assert await store.get(key) == data

    async def test_damage_is_loud(self, store: BlobStore) -> None:
        key, other = await store.put(b"order-17" * 50), await store.put(b"order-18")
        await self.damage(store, key)
        with pytest.raises(CorruptBlob) as damage:
            await store.get(key)
        assert damage.value.key == key
        assert await store.get(other) == b"order-18"

    async def test_a_key_that_is_none_finds_nothing(self, store: BlobStore) -> None:
        for key in ("", "x", "../../etc/passwd", "A" * 64, "№"):
            assert await store.get(key) is None

    async def test_many_at_once_are_all_there(self, store: BlobStore) -> None:
        blobs = [f"order-{number % 40}".encode() for number in range(120)]
        keys = await asyncio.gather(*map(store.put, blobs))
        assert len(set(keys)) == 40
        assert list(await asyncio.gather(*map(store.get, keys))) == blobs

    async def test_it_may_be_closed_twice(self, store: BlobStore) -> None:
        key = await store.put(b"order-17")
        await store.close()
        await store.close()
        assert await store.get(key) == b"order-17"
