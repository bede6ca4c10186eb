"""The small examples print what they, or the README, say."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def printed_by(name: str, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SAGAZ_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_recorded_services_and_their_replay(tmp_path: Path) -> None:
    text = ast.get_docstring(ast.parse((EXAMPLES / "recorder.py").read_text()))
    assert text is not None

    expected = dedent(text.partition("It prints:")[2]).strip()

    assert printed_by("recorder.py", tmp_path).strip() == expected


def test_the_quickstart_is_the_saga_of_the_readme(tmp_path: Path) -> None:
    program = (EXAMPLES / "quickstart.py").read_text().split('"""', 2)[2].lstrip()
    readme = (ROOT / "README.md").read_text()

    assert f"```python\n{program}```" in readme
    assert f"```text\n{printed_by('quickstart.py', tmp_path)}```" in readme
