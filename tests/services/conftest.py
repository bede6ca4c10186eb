"""Fixtures of the tests with real servers and processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.running import Ledger, Processes, Workers


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Of what steps in other processes did."""
    return Ledger(tmp_path / "ledger")


@pytest.fixture(params=["sqlite", "kafka"])
def log_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new log on a file, and one on Kafka; with the PARTITIONS of the test's module, or 4."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    namespace = request.getfixturevalue("kafka_namespace")
    bootstrap = request.getfixturevalue("kafka_bootstrap")
    partitions = getattr(request.module, "PARTITIONS", 4)
    return f"kafka://{bootstrap}/{namespace}?partitions={partitions}"


@pytest.fixture
def processes() -> Iterator[Processes]:
    started = Processes()
    yield started
    started.end()


@pytest.fixture
def workers(log_url: str, ledger: Ledger) -> Iterator[Workers]:
    """Workers on the log, as the command line runs them."""
    found = Workers(log_url, ledger)
    yield found
    for worker in found.started:
        worker.end()
