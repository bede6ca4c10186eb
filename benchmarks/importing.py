"""An event log of 100,000 rows into SQLite."""

from __future__ import annotations

import csv
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.goals import Goal, below
from benchmarks.table import markdown
from sagaz_es.connect import open_log
from sagaz_es.recording.importing import import_csv

ROWS = 100_000


def write(path: Path, count: int) -> None:
    """Cases of five steps, a few columns each."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "step", "time", "amount", "clerk", "note"])
        for number in range(count):
            when = at + timedelta(seconds=number)
            rows.writerow(
                [
                    f"case-{number // 5}",
                    f"step-{number % 5}",
                    when.isoformat(),
                    number % 997,
                    f"clerk-{number % 31}",
                    "",
                ]
            )


async def run(scale: float = 1.0) -> tuple[str, list[Goal]]:
    """The table, and what of the goals is met."""
    rows = round(ROWS * scale)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "cases.csv"
        write(path, rows)
        log = open_log(f"sqlite:///{directory}/log.db")
        await log.open()
        began = time.perf_counter()
        result = await import_csv(
            log,
            path,
            saga_name="case",
            saga_id_column="case",
            step_column="step",
            time_column="time",
        )
        seconds = time.perf_counter() - began
        await log.close()
    assert result.events == rows
    table = markdown(
        "Import of a CSV into SQLite",
        ("rows", "seconds", "rows/s"),
        ((f"{rows:,}", f"{seconds:.1f}", f"{rows / seconds:.0f}"),),
    )
    return table, [below("Import of 100,000 rows into SQLite", seconds / scale, 30, "s")]
