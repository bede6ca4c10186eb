"""Values that a program keeps in files by hand, under sagaz's names."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from sagaz_es import FileSystemExternalStorage
from sagaz_es.errors import CorruptBlob, UnstorableValue

VALUE = {"rows": [1, 2], "price": Decimal("9.90"), "tags": {"a", "b"}}


async def test_a_value_comes_back_equal_and_is_kept_once(tmp_path: Path) -> None:
    storage = FileSystemExternalStorage(str(tmp_path / "kept"))
    one = await storage.store("order/2026 №5", "table", VALUE, ttl_seconds=60)
    two = await storage.store("order/2026 №5", "again", VALUE)
    assert (one.uri, one.checksum) == (two.uri, two.checksum)
    assert one.ttl_seconds == 60 and one.size_bytes > 10 and one.created_at.tzinfo is not None
    assert await storage.load(one.uri) == VALUE
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert [path.name for path in files] == [one.checksum]
    await storage.delete(one.uri)
    await storage.delete(one.uri)
    with pytest.raises(FileNotFoundError):
        await storage.load(one.uri)


async def test_damage_and_foreign_addresses_are_refused(tmp_path: Path) -> None:
    storage = FileSystemExternalStorage(tmp_path / "kept")
    kept = await storage.store("s", "k", VALUE)
    path = next((tmp_path / "kept").rglob(kept.checksum))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptBlob):
        await storage.load(kept.uri)
    (tmp_path / "secret").write_text("1")
    for uri in ((tmp_path / "secret").as_uri(), f"{kept.uri}/../../../secret", "s3://b/k"):
        with pytest.raises(ValueError, match="no address"):
            await storage.load(uri)


async def test_what_cannot_be_kept_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(UnstorableValue, match=r"k\.a"):
        await FileSystemExternalStorage(tmp_path).store("s", "k", {"a": object()})
