"""The time of day that another machine tells: libfaketime, loaded into a process beforehand."""

from __future__ import annotations

from pathlib import Path

from tests.servers import local


def off_by(hours: float) -> dict[str, str]:
    """The environment of a process whose clock is so many hours ahead (negative: behind).

    As on a real machine with a wrong clock, what measures durations (the monotonic clock) is right.
    `time.sleep` is not to be used in there: libfaketime 0.9.10 has it fail with EINVAL.
    """
    (library,) = Path(local.fetched("faketime")).rglob("libfaketimeMT.so.1")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{hours:+g}h",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",  # the files of the machine keep their times
    }
