"""Which partition a saga stands in: murmur2 of its id, as every Kafka client places a key.

Source: `org.apache.kafka.common.utils.Utils.murmur2`, `BuiltInPartitioner.partitionForKey`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container
from functools import lru_cache

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit hash of a key, unsigned."""
    length = len(data)
    words, rest = divmod(length, 4)
    h = _SEED ^ length
    for k in struct.unpack_from(f"<{words}I", data):
        k = k * _M & _MASK
        h = h * _M & _MASK ^ (k ^ k >> 24) * _M & _MASK
    if rest:
        h = (h ^ int.from_bytes(data[-rest:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


# A hash costs 3 µs and a hit 0.1; a saga is asked for several times while it runs,
# and never again: 2,048 ids are 0.5 MiB.
@lru_cache(maxsize=2048)
def partition_of(saga_id: str, partitions: int) -> int:
    """Where the entries of this saga stand, of `partitions`. Law: keys stay."""
    return (murmur2(saga_id.encode()) & 0x7FFFFFFF) % partitions


def id_for_partition(make_id: Callable[[], str], wanted: Container[int], partitions: int) -> str:
    """The first id that `make_id` makes for one of the `wanted` partitions.

    Raises ValueError if none turns up, which means that no partition of that number exists.
    """
    # Not through the cache: ids that are thrown away would push out those in use.
    for _ in range(64 * partitions):  # with one partition wanted, this many fail once in e^64
        saga_id = make_id()
        if (murmur2(saga_id.encode()) & 0x7FFFFFFF) % partitions in wanted:
            return saga_id
    raise ValueError(f"no id falls into {wanted!r} of {partitions} partitions")
