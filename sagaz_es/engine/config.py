"""Settings of an engine, and the clock it goes by."""

from __future__ import annotations

import asyncio
import re
import time

from msgspec import Struct

from sagaz_es.errors import ConfigurationError
from sagaz_es.sagas.large_values import Limits

_GROUP = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ZERO = ("drain_seconds", "request_seconds")  # at once
_TIMES = ("takeover_seconds", "housekeeping_seconds", "checkpoint_seconds", *_ZERO)


class EngineConfig(Struct, frozen=True, kw_only=True):
    """Settings of an engine; times in seconds."""

    drain_seconds: float = 5.0  # how long running steps may finish on close or hand-over
    takeover_seconds: float = 10.0  # how long a foreign saga in our partition may be silent
    housekeeping_seconds: float = 1.0  # marks, forgetting, take-over of silent sagas
    checkpoint_seconds: float = 86_400.0  # an unfinished saga older than that is carried forward
    request_seconds: float = (
        30.0  # how long another engine may take to answer; a start waits 2 s at most
    )
    max_in_flight: int = 1000
    """How many sagas run here at once. Starts beyond that wait, as requests in the log. 0: any."""
    projector: bool | None = None  # run one in this process; None: where log and store are embedded
    value_warn_bytes: int = 64 * 1024
    """A value of a context, or a result, that takes more is told of: LargePayloadWarning, once a
    saga name, step and key. 0: never."""
    value_inline_bytes: int = 256 * 1024
    """One that takes more is kept in the blob store, and its event refers to it."""
    value_max_bytes: int = 64 * 1024 * 1024
    """One that takes more is refused: MemoryFootprintError names key, size and limit."""
    group: str = ""
    """Engines of one group share the partitions. One of a named group serves only sagas of classes
    that it has, and leaves all others to other groups; without a name it answers for all."""
    refuse_unknown: bool = True
    """Without a group: whether it refuses what is asked of sagas whose class it does not have.
    False: that stays in the log for the next engine that serves the partition. For a program that
    has one class of many and serves the log for a moment."""

    def __post_init__(self) -> None:
        self.limits.check("value_")
        for name in _TIMES:
            seconds = getattr(self, name)
            number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
            least = "0 or more" if name in _ZERO else "above 0"
            if not number or not (seconds > 0 or (seconds == 0 and name in _ZERO)):
                raise ConfigurationError(f"{name} is a number of seconds {least}, not {seconds!r}")
        if not isinstance(self.group, str) or not _GROUP.fullmatch(self.group or "none"):
            raise ConfigurationError(
                f"group {self.group!r}: up to 64 letters, digits, '.', '_' and '-'"
            )
        most = self.max_in_flight
        if not isinstance(most, int) or isinstance(most, bool) or most < 0:
            raise ConfigurationError(
                f"max_in_flight is 1 or more, or 0 for any number, not {most!r}"
            )

    @property
    def limits(self) -> Limits:
        """How large values may be."""
        return Limits(self.value_warn_bytes, self.value_inline_bytes, self.value_max_bytes)


class SystemClock:
    """The system's clock."""

    def now(self) -> int:
        """µs since 1970 UTC."""
        return time.time_ns() // 1000

    async def sleep_until(self, when: int) -> None:
        """Until `now()` is at least `when`."""
        while (left := when - self.now()) > 0:  # noqa: ASYNC110 - the clock may step
            await asyncio.sleep(left / 1e6)
