"""Times and points as people write them; a time without a zone is UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from sagaz_es.snapshots import from_us

EXAMPLE = "2026-07-01T10:00:00Z"


def parse_time(text: str) -> datetime:
    """An ISO 8601 time. Raises ValueError that names it."""
    try:
        moment = datetime.fromisoformat(text.strip())
        # Near the ends of the calendar a zone leads out of it.
        utc = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is not a time; write it as {EXAMPLE} (without a zone it is UTC)"
        ) from None
    return utc


def iso(us: int) -> str | None:
    """µs since 1970 UTC as text with a zone; 0 is no time."""
    return from_us(us).isoformat() if us else None


def age(us: int) -> str:
    """How long ago that was, in its largest unit."""
    seconds = max(0, int((datetime.now(UTC) - from_us(us)).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def shown(moment: datetime | str | None) -> str:
    """A time for people: in UTC, and exact, as it may be typed again (`--at`)."""
    if moment is None:
        return ""
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return moment.astimezone(UTC).isoformat(" ").removesuffix("+00:00")
