"""Real servers for the tests: started when one is first asked for, stopped at the end of the run.

A test that uses one of these fixtures is marked `services` by itself. A server that cannot be had
is a failure of the test, never a skip.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest

from tests.servers import KafkaServer, PostgreSQLServer, describe

# As the plugin does it for users: the suites of the contracts say what differs.
pytest.register_assert_rewrite("sagaz_es.testing.contracts")

SERVERS = {"kafka_server", "postgresql_server"}

# A change is judged by the same examples as the one before it; `make search` looks for new ones.
hypothesis.settings.register_profile("landing", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("search", max_examples=2000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("landing")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    # What asyncio still has to tell of lost tasks it tells when they are collected: now. In the
    # middle of a late import a traceback is an error of CPython 3.11, and the end of the run.
    gc.collect()


def pytest_report_header() -> str:
    return f"servers: {describe()}"


@pytest.hookimpl(tryfirst=True)  # before -m chooses by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and SERVERS & set(item.fixturenames):
            item.add_marker("services")


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[KafkaServer]:
    """One broker for the whole run; a test may kill, pause and restart it."""
    with KafkaServer() as server:
        yield server


@pytest.fixture(scope="session")
def kafka_bootstrap(kafka_server: KafkaServer) -> str:
    """Its address, "127.0.0.1:port"."""
    return kafka_server.bootstrap


@pytest.fixture
def kafka_namespace(kafka_server: KafkaServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """A prefix for topics that no other test has; what begins with it is deleted after the test."""
    kafka_server.ensure_running()
    namespace = f"{_name_of(request)}-{uuid4().hex[:8]}"
    yield namespace
    kafka_server.ensure_running()
    kafka_server.delete_topics(namespace)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQLServer]:
    """One PostgreSQL for the whole run; a test may kill, pause and restart it."""
    with PostgreSQLServer() as server:
        yield server


@pytest.fixture
def postgresql_url(
    postgresql_server: PostgreSQLServer, request: pytest.FixtureRequest
) -> Iterator[str]:
    """The URL of a new, empty database, dropped after the test."""
    postgresql_server.ensure_running()
    database = f"{_name_of(request)}-{uuid4().hex[:8]}"
    yield postgresql_server.create_database(database)
    postgresql_server.ensure_running()
    postgresql_server.drop_database(database)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def _name_of(request: pytest.FixtureRequest) -> str:
    """The test's name, as far as topics, databases and URLs take it."""
    name: str = request.node.name
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("test_"))[:40].strip("-")
