"""`make demo`: its story ends well, its commands work on what it leaves, its proof can fail."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "examples" / "payment_failure_recovery.py"
COMMAND = str(Path(sys.executable).with_name("sagaz-es"))
LEDGER = "sagaz-es-demo-providers.db"


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SAGAZ_")}
    return subprocess.run(
        words, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=100
    )


def demo(*options: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-W", "error", str(PROGRAM), *options, cwd=cwd, **environment)


@pytest.fixture
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("payment_failure_recovery", PROGRAM)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


def test_the_demo_replays_what_failed_and_its_commands_look_further(tmp_path: Path) -> None:
    told = demo("--orders", "120", "--outage-from", "41", "--outage-to", "60", cwd=tmp_path)

    assert (told.returncode, told.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in told.stdout.splitlines()]
    assert "completed 100" in lines
    assert "rolled_back 20 charge: token 'tok-2025' has expired" in lines
    assert "success 20" in lines
    assert "reserve redo its effect was undone" in lines
    assert "charge redo it failed (TokenExpired)" in lines
    assert "charge 100 120" in lines
    assert "reserve 120 140" in lines
    assert "✓ each of 120 orders was charged exactly once" in lines

    further = told.stdout.partition("Look further")[2].splitlines()
    commands = [shlex.split(line) for line in further if line.startswith("  ")]
    (_, setting), *commands = commands
    name, _, value = setting.partition("=")
    answers: dict[str, Any] = {}
    for command in commands:
        done = run(*command, cwd=tmp_path, **{name: value})
        assert done.returncode == 0, done.stderr
        answers[" ".join(command[1:3])] = json.loads(done.stdout)
    failed = answers["saga list"]
    assert [saga["status"] for saga in failed] == ["rolled_back"] * 5
    before = answers["replay time-travel"]
    assert (before["saga_id"], before["status"]) == ("order-0041", "executing")
    assert before["completed_steps"] == ["reserve"]
    assert before["context"]["token"] == "tok-2025"
    assert answers["replay list-changes"][-1]["type"] == "ReplayBranched"
    assert answers["saga show"]["status"] == "completed"
    assert answers["saga show"]["parent_saga_id"] == "order-0041"
    verdicts = [step["verdict"] for step in answers["replay plan"]["steps"]]
    assert verdicts == ["reuse", "undo_first", "undo_first", "blocked"]


def test_the_commands_that_the_pages_show_work_on_what_make_demo_leaves(tmp_path: Path) -> None:
    told = demo(cwd=tmp_path)
    assert told.returncode == 0, told.stderr

    shown = []
    for page in ("README.md", "docs/how-to/look-into-a-failed-saga.md"):
        for block in re.findall(r"^```sh\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S):
            shown += [line for line in block.splitlines() if "sagaz-es " in line]
    ours = [line for line in dict.fromkeys(shown) if "order-4711" not in line]
    assert len(ours) >= 8
    for line in ours:
        command = [COMMAND, *shlex.split(line)[1:]]
        done = run(*command, cwd=tmp_path, SAGAZ_ES_LOG="sqlite:///sagaz-es-demo.db")
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        told_of = json.loads(done.stdout)
        if "compensations list" in line or "--waiting" in line:
            assert told_of == []  # the demo leaves none that is stuck, or waits
        else:
            assert told_of, line


def test_a_second_run_begins_anew_and_one_on_a_file_of_yours_adds_to_it(tmp_path: Path) -> None:
    runs = [
        demo("--orders", "30", *options, cwd=tmp_path)
        for options in ((), (), ("--db", "mine.db"), ("--db", "mine.db"))
    ]

    assert [told.returncode for told in runs] == [0] * 4
    listed = "saga", "list", "--limit", "1000", "--log"
    sagas = []
    for log in ("sqlite:///sagaz-es-demo.db", "sqlite:///mine.db"):
        done = run(COMMAND, *listed, log, cwd=tmp_path)
        sagas.append(len(json.loads(done.stdout)))
    assert sagas[1] == 2 * sagas[0]


def test_it_runs_on_servers_again_and_again(
    kafka_bootstrap: str, kafka_namespace: str, postgresql_url: str, tmp_path: Path
) -> None:
    servers = {
        "SAGAZ_ES_LOG": f"kafka://{kafka_bootstrap}/{kafka_namespace}",
        "SAGAZ_ES_STORE": postgresql_url,
    }

    for _ in range(2):
        told = demo("--orders", "50", cwd=tmp_path, **servers)

        assert (told.returncode, told.stderr) == (0, "")
        assert "✓ each of 50 orders was charged exactly once" in told.stdout
        assert "export" not in told.stdout
    listed = run(COMMAND, "saga", "list", "--status", "rolled_back", cwd=tmp_path, **servers)
    assert len(json.loads(listed.stdout)) == 2 * 4


def test_without_an_outage_there_is_nothing_to_replay(tmp_path: Path) -> None:
    told = demo("--orders", "10", "--outage-from", "0", "--outage-to", "0", cwd=tmp_path)

    assert told.returncode == 0
    assert "replay of" not in told.stdout
    assert "each of 10 orders was charged exactly once" in told.stdout


def test_a_provider_that_ignores_its_keys_breaks_the_proof(
    module: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    honest = module.Providers._do
    calls = iter(range(1_000_000))

    async def careless(self: Any, kind: str, order: str, key: str) -> Any:
        name, _ = await honest(self, kind, order, f"{key}/{next(calls)}")
        # The answer to a first call is what gets lost: let the second one's arrive.
        return name, len(module.read_ledger(Path(LEDGER), [order])) - 1

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.Providers, "_do", careless)
    monkeypatch.setattr(sys, "argv", ["demo", "--orders", "30"])
    monkeypatch.delenv("SAGAZ_ES_LOG", raising=False)

    assert module.main() == 1
    assert "- order-0025: charged 2 times instead of once" in capsys.readouterr().out


REST = ("reserve", "ship", "mail")


@pytest.mark.parametrize(
    ("done", "wrong"),
    [
        (["reserve", "charge", "ship", "mail"], []),
        (["reserve", "release", "reserve", "charge", "ship", "mail"], []),
        (["reserve", "ship", "charge", "mail"], ["shipped unpaid"]),
        (
            ["reserve", "charge", "refund", "ship", "charge", "mail"],
            ["shipped unpaid", "charged 2"],
        ),
        (["reserve", "charge", "ship"], ["notified 0"]),
        (["charge", "ship", "mail"], ["reserved, releases taken off, 0"]),
        (["reserve", "charge", "ship", "recall", "mail"], ["shipped, recalls taken off, 0"]),
        ([], ["charged 0", "charged, ", "reserved, ", "shipped, ", "notified 0"]),
    ],
)
def test_the_proof_says_what_is_wrong(
    module: ModuleType, done: list[str], wrong: list[str]
) -> None:
    entries = [module.Entry(kind, "order-1", 1) for kind in done]

    found = module.violations(entries, ["order-1"])

    assert len(found) == len(wrong)
    assert all(line.startswith(f"order-1: {text}") for line, text in zip(found, wrong, strict=True))
