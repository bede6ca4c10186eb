"""Bytes packed for keeping: a byte that names the form, then the bytes in it.

Law (round trip): `unpack(pack(data))` is data.
Law (damage is loud): bytes that were changed or cut off raise CorruptData, whatever they claim;
they never give other data than was packed.
"""

from __future__ import annotations

import threading
from zlib import crc32

import zstandard

from sagaz_es.errors import CorruptData, MemoryFootprintError

LIMIT = 64 << 20
"""Bytes that are packed and unpacked at most: a few can claim to be any number of them."""

PLAIN, ZSTD = b"\0", b"\1"
"""The forms: CRC-32 (big-endian) and the bytes; a zstd frame with size and checksum."""


class _Zstd(threading.local):
    """One of each a thread: making them costs four times their work, sharing them is not safe."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=3, write_checksum=True).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


_zstd = _Zstd()


def pack(data: bytes) -> bytes:
    """The bytes in the shorter form. Raises MemoryFootprintError for more than LIMIT."""
    if len(data) > LIMIT:
        raise MemoryFootprintError("what is to be packed", len(data), LIMIT)
    plain = PLAIN + crc32(data).to_bytes(4, "big") + data
    packed = ZSTD + _zstd.compress(data)
    return min(plain, packed, key=len)


def unpack(data: bytes) -> bytes:
    """What was packed. Raises CorruptData."""
    form, body = data[:1], data[1:]
    if form == ZSTD:
        return _decompressed(body)
    if form != PLAIN:
        raise CorruptData(f"no packed data: it begins with {form.hex() or 'nothing'}")
    if crc32(body[4:]).to_bytes(4, "big") != body[:4]:
        raise CorruptData("packed data is damaged: its checksum does not match")
    return body[4:]


def _decompressed(body: bytes) -> bytes:
    try:
        # zstandard trusts the size in the frame, even over `max_output_size`; -1: there is none.
        size = zstandard.frame_content_size(body)
        if not 0 <= size <= LIMIT:
            raise CorruptData(f"packed data claims {size} bytes, allowed are {LIMIT}")
        return _zstd.decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptData(f"packed data is damaged: {error}") from None
