"""Engines of another group that run a class of ours: told of, because nothing else would show it.

One group's engines share the partitions, and a class belongs to one group. Two groups that list one
class take its sagas from each other as soon as they are silent, and steps run twice; the acceptance
rule keeps the log right, not the world. Source: docs/decisions/0048.

Law (no false alarm): an engine of our own group that was cut off writes into our partitions only
until it hears of that; so one that goes on for longer than a take-over waits is no such engine.
"""

from __future__ import annotations

import asyncio
import logging

from msgspec import Struct

logger = logging.getLogger("sagaz_es.engine")

LULL = 10
"""So many take-over times without a word from others end a series."""


class _Series(Struct):
    first: float  # loop time
    last: float
    told: bool = False


class OtherOwners:
    """What is heard of them in the partitions that this engine serves. `seconds`: how long a
    foreign saga may be silent before it is taken over."""

    def __init__(self, group: str, seconds: float) -> None:
        self._group, self._seconds = group, seconds
        self._series: dict[str, _Series] = {}  # by class

    def heard(self, saga_name: str, saga_id: str) -> None:
        """Another engine has begun or claimed a saga of this class, in a partition of ours."""
        now = asyncio.get_running_loop().time()
        series = self._series.get(saga_name)
        if series is None or now - series.last > LULL * self._seconds:
            series = self._series[saga_name] = _Series(now, now)
        series.last = now
        if series.told or now - series.first <= self._seconds:
            return
        series.told = True
        ours = f"group {self._group!r}" if self._group else "no named group"
        logger.error(
            "class %r is run by another engine, too, in partitions that this one serves (saga %s, "
            "for one): is it listed in two groups of this log, or by one beside engines without a "
            "group? They take its sagas from each other, and steps run twice. This engine belongs "
            "to %s; list a class in one group only",
            *(saga_name, saga_id, ours),
            extra={"saga_id": saga_id},
        )

    def forget(self) -> None:
        """Partitions have changed hands: what others write now may be what they had on its way."""
        self._series = {name: each for name, each in self._series.items() if each.told}
