"""A pytest plugin: an engine in memory, a virtual clock and crashes for the tests of sagas.

It is loaded into every pytest run of an environment, so it lives in a package that imports nothing,
and imports `sagaz_es` when a test asks for one of its fixtures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sagaz_es.testing import CrashReport, MemoryEngine, VirtualClock


# The suites of the contracts say what differs, like tests of the user's own.
pytest.register_assert_rewrite("sagaz_es.testing.contracts")

_SUMMARY = "crash_everywhere"
"""The name of a test's property that holds a line of the summary. A property, because tests may run
in processes of their own (pytest-xdist), from which only their reports come back."""


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    # pytest rewrites the assertions of all that a plugin is installed with. Here that is a whole
    # engine, and a second of every run that begins without caches.
    marked = getattr(getattr(pluginmanager, "rewrite_hook", None), "_must_rewrite", None)
    if isinstance(marked, set):
        marked -= {"sagaz_es", "sagaz_es_cli", "sagaz_es_projections"}
    group = parser.getgroup("sagaz-es", "crashes of sagas (fixture crash_everywhere)")
    group.addoption(
        "--saga-crash-runs",
        type=int,
        metavar="N",
        help="runs that a test with crash_everywhere makes at most (default: what the test says)",
    )
    group.addoption(
        "--saga-crash-lines",
        action="store_true",
        help="let crash_everywhere also crash between the lines of the steps",
    )


@pytest.fixture
def saga_clock() -> VirtualClock:
    """The clock of this test's engines; `await saga_clock.elapse(seconds)` moves it."""
    from sagaz_es.testing import VirtualClock

    return VirtualClock()


@pytest.fixture
def saga_engine(saga_clock: VirtualClock) -> Callable[..., MemoryEngine]:
    """Makes engines in memory: `async with saga_engine(OrderSaga, resources={…}) as engine`.

    All engines of a test go by `saga_clock` and share one log: a second one takes over.
    """
    from sagaz_es.log.memory import MemoryEventLog
    from sagaz_es.testing import memory_engine

    log = MemoryEventLog(1)

    def make(*sagas: Any, **options: Any) -> MemoryEngine:
        return memory_engine(*sagas, **{"log": log, "clock": saga_clock, **options})

    return make


@pytest.fixture
def crash_everywhere(request: pytest.FixtureRequest) -> Callable[..., CrashReport]:
    """As `sagaz_es.testing.crash_everywhere`, with what the command line says about it."""
    from sagaz_es import testing

    config = request.config

    def run(saga: Any, context: Any = None, **options: Any) -> CrashReport:
        __tracebackhide__ = True
        check = options.pop("check", True)
        if (runs := config.getoption("--saga-crash-runs")) is not None:
            options["max_runs"] = runs
        if config.getoption("--saga-crash-lines"):
            options["lines"] = True
        report = testing.crash_everywhere(saga, context, check=False, **options)
        line = f"crash_everywhere({report.saga}): {report.summary}"
        request.node.user_properties.append((_SUMMARY, line))
        if check:
            report.check()
        return report

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":  # the last of a test's: it has them all
                for name, value in report.user_properties:
                    if name == _SUMMARY:
                        terminalreporter.write_line(value)
