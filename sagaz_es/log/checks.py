"""What every log refuses in the same words."""

from __future__ import annotations

from sagaz_es.core.events import Entry, NamespaceCreated
from sagaz_es.errors import AppendRefused, HistoryGone, LogTruncated

MAX_VALUE_BYTES = 1_000_000
"""The largest record. A broker's usual limit, so that what one log takes the others take too."""


def key_of(entry: Entry) -> str:
    """A record's key: the saga id; empty for NamespaceCreated."""
    return "" if type(entry) is NamespaceCreated else entry.saga_id  # type: ignore[union-attr]


def check_partition(partition: int, partitions: int) -> None:
    """Raises ValueError: a number that is none of the log's partitions is the caller's mistake."""
    if not 0 <= partition < partitions:
        raise ValueError(f"there is no partition {partition}; there are 0 to {partitions - 1}")


def check_size(partition: int, key: str, value: bytes, limit_bytes: int) -> None:
    """Raises AppendRefused for a value over the limit; the message names the saga."""
    if len(value) > limit_bytes:
        raise AppendRefused(
            partition,
            f"a record of saga {key!r} takes {len(value)} bytes, more than the limit of "
            f"{limit_bytes}; keep large values elsewhere",
        )


def check_position(partition: int, offset: int, start: int, end: int) -> None:
    """Raises HistoryGone before the start, LogTruncated beyond the end."""
    if offset < start:
        raise HistoryGone(f"partition {partition}", f"offset {offset}", f"offset {start}")
    if offset > end:
        raise LogTruncated(partition, offset, end)
