"""Packed bytes: short, bounded, and loud about damage."""

from __future__ import annotations

import threading

import pytest
import zstandard

from sagaz_es.codec import compress
from sagaz_es.codec.compress import pack, unpack
from sagaz_es.errors import CorruptData, MemoryFootprintError

STATE = b'{"order":"17","items":[{"sku":"A1"},{"sku":"A1"},{"sku":"A1"},{"sku":"A1"}]}' * 20


def test_what_repeats_itself_becomes_short() -> None:
    assert pack(STATE)[:1] == compress.ZSTD
    assert len(pack(STATE)) < len(STATE) / 10
    assert unpack(pack(STATE)) == STATE


def test_what_zstd_makes_longer_is_kept_as_it_is() -> None:
    assert pack(b"abc") == b"\0\x35\x24\x41\xc2abc"
    assert unpack(b"\0\x35\x24\x41\xc2abc") == b"abc"


def test_packed_bytes_of_this_version_are_read_for_ever() -> None:
    golden = "0128b52ffd6458015d00002061626364010051ae1c11a6aa5b5e"
    assert unpack(bytes.fromhex(golden)) == b"abcd" * 150


@pytest.mark.parametrize("data", [b"abc", STATE], ids=["plain", "zstd"])
def test_bytes_that_were_changed_or_cut_off_are_corrupt(data: bytes) -> None:
    packed = pack(data)
    for place in range(len(packed)):
        for bit in range(8):
            changed = bytearray(packed)
            changed[place] ^= 1 << bit
            try:
                # zstd ignores one bit of its header: then the data is what it was.
                assert unpack(bytes(changed)) == data
            except CorruptData:
                pass
        with pytest.raises(CorruptData):
            unpack(packed[:place])
    with pytest.raises(CorruptData):
        unpack(packed + b"\0")


@pytest.mark.parametrize("size", [compress.LIMIT + 1, 2**40, 2**62])
def test_a_frame_that_claims_too_much_is_corrupt_and_costs_no_memory(size: int) -> None:
    claim = b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\0\0"
    with pytest.raises(CorruptData, match=f"claims {size} bytes"):
        unpack(compress.ZSTD + claim)


def test_a_frame_that_does_not_say_its_size_is_corrupt() -> None:
    endless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    with pytest.raises(CorruptData, match="claims -1 bytes"):
        unpack(compress.ZSTD + endless)


@pytest.mark.parametrize("data", [b"", b"\2abc", b"{}"])
def test_bytes_of_an_unknown_form_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptData, match="no packed data: it begins with"):
        unpack(data)


def test_more_than_can_be_unpacked_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "LIMIT", 1000)
    assert unpack(pack(bytes(1000))) == bytes(1000)
    with pytest.raises(MemoryFootprintError):
        pack(bytes(1001))


def test_threads_do_not_disturb_each_other() -> None:
    data = [bytes([n]) * 200_000 + STATE for n in range(8)]
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(50):
            if unpack(pack(data[n])) != data[n]:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
