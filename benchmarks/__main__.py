"""`python -m benchmarks [NAME …] [--quick] [--save]`: those of NAMES; all without a name.

Kafka: SAGAZ_ES_LOG if that is a kafka:// URL, else a broker started for the run. `--quick` takes a
tenth of everything, to see that it works. What was aimed at stands beside what was found, at the
end; nothing fails for it: a machine may be busy.
"""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import core, goals, importing, memory, profile, recovery, sagas

NAMES = ("core", "sagas", "profile", "recovery", "import", "memory")
QUICK = 0.1


def machine() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} × {model}, {platform.system()}, Python {platform.python_version()}, "
        f"load {load}; commit {commit}; {datetime.now(UTC):%Y-%m-%d}. A shared machine with the "
        "broker on it: compare within the run."
    )


def main() -> None:
    arguments = [name for name in sys.argv[1:] if not name.startswith("-")] or list(NAMES)
    unknown = sorted(set(arguments) - set(NAMES))
    if unknown:
        sys.exit(f"unknown benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}")
    scale = QUICK if "--quick" in sys.argv else 1.0
    report: list[str] = []
    wanted: list[goals.Goal] = []

    def add(table: str) -> None:
        report.append(table)
        print(table, flush=True)

    add(f"# Benchmarks\n\n{machine()}\n")
    if "core" in arguments:
        add(core.run())
    if "sagas" in arguments:
        with ExitStack() as servers:
            tables, found = asyncio.run(sagas.run(_broker(servers), scale))
            for table in tables:
                add(table)
            wanted += found
    if "profile" in arguments:
        add(profile.run(scale))
    if "recovery" in arguments:
        with ExitStack() as servers:
            table, found = recovery.run(_broker(servers))
            add(table)
            wanted += found
    if "import" in arguments:
        table, found = asyncio.run(importing.run(scale))
        add(table)
        wanted += found
    if "memory" in arguments:
        table, found = memory.run(scale)
        add(table)
        wanted += found
    if wanted:
        add(goals.table(wanted))
    if "--save" in sys.argv:
        path = Path(__file__).parent / "results" / f"{datetime.now(UTC):%Y-%m-%d}.md"
        path.write_text("\n".join(report))
        print(f"written to {path.relative_to(Path.cwd())}")


def _broker(servers: ExitStack) -> str:
    url = os.environ.get("SAGAZ_ES_LOG", "")
    if url.startswith("kafka://"):
        return url.removeprefix("kafka://").partition("/")[0]
    from tests.servers import KafkaServer

    return servers.enter_context(KafkaServer()).bootstrap


if __name__ == "__main__":
    main()
