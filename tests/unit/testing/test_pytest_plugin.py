"""The pytest plugin, as a user's test run has it."""

from __future__ import annotations

import re

import pytest

pytest_plugins = ["pytester"]

SAGA = """
import asyncio
import pytest
from sagaz_es import Saga, action

class Order(Saga):
    saga_name = "order"

    @action("hold")
    async def hold(self, ctx): ...

    @action("pay", delay_seconds=86_400)
    async def pay(self, ctx):
        ctx.resources.get("cash", []).append(9)
"""


@pytest.fixture
def user(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory of a user's, whose pytest has this plugin and no other."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(orders=SAGA)
    pytester.makeini("[pytest]\npythonpath = .\nfilterwarnings = error\n")
    return pytester


def run(user: pytest.Pytester, *options: str) -> pytest.RunResult:
    return user.runpytest_subprocess("-p", "sagaz_es_cli.pytest_plugin", *options)


def test_its_fixtures_and_options_are_listed(user: pytest.Pytester) -> None:
    fixtures = run(user, "--fixtures").stdout.str()
    for name in ("saga_clock", "saga_engine", "crash_everywhere"):
        assert re.search(rf"^{name} -- .*pytest_plugin.py", fixtures, re.MULTILINE)
    assert "--saga-crash-runs=N" in run(user, "--help").stdout.str()


def test_a_test_has_engines_on_one_log_with_one_clock(user: pytest.Pytester) -> None:
    user.makepyfile(
        """
        import asyncio
        from orders import Order

        def test_engines(saga_engine, saga_clock):
            async def test():
                async with saga_engine(Order) as first:
                    assert first.clock is saga_clock
                    await first.start(Order, saga_id="o-1")
                before = saga_clock.now()
                async with saga_engine(Order, resources={"cash": (cash := [])}) as second:
                    assert (await (await second.handle("o-1")).result()).success
                assert saga_clock.now() - before >= 86_400e6
                assert [call.step for call in second.calls] == ["pay"]
                assert cash == [9]
            asyncio.run(test())

        def test_another_test_has_another_log(saga_engine):
            async def test():
                async with saga_engine(Order) as engine:
                    await engine.handle("o-1")
            from sagaz_es.errors import SagaNotFound
            try:
                asyncio.run(test())
            except SagaNotFound:
                return
            assert False
        """
    )
    run(user).assert_outcomes(passed=2)


def test_crashes_fail_a_test_with_the_report(user: pytest.Pytester) -> None:
    user.makepyfile(
        """
        from orders import Order

        def test_crashes(crash_everywhere):
            crash_everywhere(Order, world=lambda: {"cash": []})

        def test_report(crash_everywhere):
            assert not crash_everywhere(Order, world=lambda: {"cash": []}, check=False).ok
        """
    )
    result = run(user)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*    def test_crashes(crash_everywhere):",
            "*SagaNotCrashProof: Order: 1 violation (*",
            "E*1. step 'pay' does its work again when it is run again",
        ]
    )
    assert "crashing.py" not in result.stdout.str(), "the traceback ends in the user's test"
    counts = r"^crash_everywhere\(Order\): 1 violation \(\d+ runs, \d+ crashes, .*\)$"
    assert len(re.findall(counts, result.stdout.str(), re.MULTILINE)) == 2


def test_what_crashes_found_is_told_of_tests_in_processes_of_their_own(
    user: pytest.Pytester,
) -> None:
    user.makeconftest(  # of such a test nothing but its reports comes back, as with pytest-xdist
        """
        import json, os
        import pytest
        from _pytest.runner import runtestprotocol

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_protocol(item):
            hook, reading, writing = item.config.hook, *os.pipe()
            if (child := os.fork()) == 0:
                reports = [
                    hook.pytest_report_to_serializable(config=item.config, report=report)
                    for report in runtestprotocol(item, log=False)
                ]
                os.write(writing, json.dumps(reports).encode())
                os._exit(0)
            os.close(writing)
            with open(reading) as pipe:
                reports = json.load(pipe)
            os.waitpid(child, 0)
            for data in reports:
                report = hook.pytest_report_from_serializable(config=item.config, data=data)
                item.ihook.pytest_runtest_logreport(report=report)
            return True
        """
    )
    user.makepyfile(
        """
        from orders import Order

        def test_report(crash_everywhere):
            assert not crash_everywhere(Order, world=lambda: {"cash": []}, check=False).ok
        """
    )
    result = run(user)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["crash_everywhere(Order): 1 violation (*"])


def test_the_command_line_says_how_much_is_tried(user: pytest.Pytester) -> None:
    user.makepyfile(
        """
        from orders import Order

        def test_crashes(crash_everywhere):
            report = crash_everywhere(Order, world=lambda: {"cash": []}, check=False)
            print("runs", report.runs, "points", report.points)
        """
    )

    def counts(*options: str) -> list[int]:
        found = re.search(r"runs (\d+) points (\d+)", run(user, "-s", *options).stdout.str())
        assert found is not None
        return [int(count) for count in found.groups()]

    runs, points = counts()
    few = run(user, "-s", "--saga-crash-runs=4")
    few.stdout.fnmatch_lines(["*runs 4 points*", "crash_everywhere(Order): *, 1 crash, *left out*"])
    assert counts("--saga-crash-runs=7")[0] == 7
    assert counts("--saga-crash-lines")[1] > points
    assert runs > points


def test_without_a_test_of_a_saga_nothing_of_it_is_imported(user: pytest.Pytester) -> None:
    user.makepyfile(
        """
        import sys

        def test_modules():
            assert "sagaz_es_cli.pytest_plugin" in sys.modules
            assert "sagaz_es" not in sys.modules
        """
    )
    run(user).assert_outcomes(passed=1)
