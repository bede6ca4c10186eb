"""aiokafka's log lines, while a log of ours is open: what repeats is said once in a while.

A broker that is down makes 70 lines a second. While we connect, nothing is said: what is wrong then
stands in the error that we raise. No handler is installed and no level is changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

REPEAT_S = 30.0
"""The same line is not said again within this time, in seconds."""

_NAMES = ("client", "cluster", "conn", "helpers", "producer.producer", "producer.sender")
# aiokafka.client logs as "aiokafka". A filter counts for its own logger only, not for those below.
_LOGGERS = [logging.getLogger("aiokafka")]
_LOGGERS += [logging.getLogger(f"aiokafka.{name}") for name in _NAMES]


class _Repeats(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.users = 0
        self.connecting = 0
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or record.levelno >= logging.CRITICAL:
            return True
        if self.connecting:
            return False
        now, line = time.monotonic(), (record.name, str(record.msg))
        if now - self._said.get(line, -REPEAT_S) < REPEAT_S:
            return False
        self._said[line] = now  # the texts are aiokafka's templates: there are a few dozen
        return True


_repeats = _Repeats()


def begin() -> None:
    """Filter from now on; `end` must follow. Several logs may do so at once."""
    _repeats.users += 1
    for logger in _LOGGERS:
        logger.addFilter(_repeats)  # adding it again is harmless


def end() -> None:
    _repeats.users -= 1
    if not _repeats.users:
        for logger in _LOGGERS:
            logger.removeFilter(_repeats)


@contextmanager
def connecting() -> Iterator[None]:
    """Nothing below CRITICAL is said meanwhile."""
    begin()
    _repeats.connecting += 1
    try:
        yield
    finally:
        _repeats.connecting -= 1
        end()
