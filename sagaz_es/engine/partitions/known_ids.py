"""Which ids were there, of very many: for an engine that no store answers."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

_SHARDS = 256  # each grows by itself: putting all of millions into a larger table takes seconds
_SMALLEST = 8


class KnownIds:
    """A set of ids that keeps 64 bits of each: 12 to 24 bytes an id, where a set of texts has 120.

    Law: an id that was added is in it. One that was not is taken for one once in 10^12, of ten
    million. `since`, `upto`: whoever gathers them has read the log from here to there; `start`:
    where the log began then.
    """

    def __init__(self, since: int = 0) -> None:
        self.since = self.upto = since
        self.start = 0
        self._count = 0
        self._shards = [_Shard() for _ in range(_SHARDS)]

    def __len__(self) -> int:
        return self._count

    def __contains__(self, saga_id: str) -> bool:
        value = _value_of(saga_id)
        shard = self._shards[value % _SHARDS]
        return shard.slots[shard.place_of(value)] != 0

    def update(self, saga_ids: Iterable[str]) -> None:
        for saga_id in saga_ids:
            value = _value_of(saga_id)
            self._count += self._shards[value % _SHARDS].add(value)


def _value_of(saga_id: str) -> int:
    return hash(saga_id) or 1  # 0 is a free slot


class _Shard:
    """A hash table with open addressing."""

    __slots__ = ("slots", "used")

    def __init__(self) -> None:
        self.slots = array("q", bytes(8 * _SMALLEST))
        self.used = 0

    def place_of(self, value: int) -> int:
        """Where a value is, or would be put."""
        slots = self.slots
        mask = len(slots) - 1
        place = (value >> 8) & mask  # the low bits are the same for all of a shard
        while (found := slots[place]) and found != value:
            place = (place + 1) & mask
        return place

    def add(self, value: int) -> bool:
        """Whether it was not there."""
        place = self.place_of(value)
        if self.slots[place]:
            return False
        self.slots[place] = value
        self.used += 1
        if self.used * 3 > len(self.slots) * 2:
            before = self.slots
            self.slots = array("q", bytes(8 * len(before) * 2))
            for kept in before:
                if kept:
                    self.slots[self.place_of(kept)] = kept
        return True
