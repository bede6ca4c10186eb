"""README and docs: what they show as Python runs and prints what they say; what they show for a
shell names commands, options and targets that exist.

Each block marked `python` is a program. The programs of one page run in its order in one empty
directory; a block marked `text` that follows directly is what the program prints.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest

from sagaz_es_cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)  # also in a list
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
FILE = re.compile(r"`([\w/]+/\w+\.py)(?:::\w+)?`")
PACKAGES = (
    ROOT,
    ROOT / "sagaz_es",
    ROOT / "cli/sagaz_es_cli",
    ROOT / "projections/sagaz_es_projections",
)
OTHER_PROGRAMS = {"cd", "docker", "export", "git", "kill", "pip", "python", "sqlite3", "psql"}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block; "output" where a text follows a block directly."""
    text = page.read_text()
    found = []
    end = 0
    for match in FENCE.finditer(text):
        follows = end > 0 and not text[end : match.start()].strip()
        language, shown = match[2], textwrap.dedent(match[3])
        found.append(("output" if follows and language == "text" else language, shown))
        end = match.end()
    return found


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=named)
def test_what_a_page_shows_as_python_runs_and_prints_what_it_says(
    page: Path, tmp_path: Path
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SAGAZ_")}
    shown = blocks(page)
    for number, (language, code) in enumerate(shown):
        if language != "python":
            continue
        program = tmp_path / f"block_{number}.py"
        program.write_text(code)
        done = subprocess.run(
            [sys.executable, "-W", "error", program.name],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        # A warning in the log that a reader will see stands on the page, too.
        unsaid = [line for line in done.stderr.splitlines() if f"`{line}`" not in page.read_text()]
        assert unsaid == [], f"{code}\n{done.stderr}"
        following = shown[number + 1 : number + 2]
        if following and following[0][0] == "output":
            assert done.stdout == following[0][1]


def shell_lines() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for language, text in blocks(page):
            if language in ("sh", "shell", "bash", "console"):
                lines = text.replace("\\\n", " ").splitlines()
                found += [(named(page), line.strip()) for line in lines if line.strip()]
    return found


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_what_a_page_shows_for_a_shell_exists(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in re.findall(r"[\w/-]+\.(?:json|csv)\b", line):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    words = shlex.split(line.removeprefix("$ "), comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if not words:
        return  # a comment, or a variable set
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        for target in rest:
            if "=" not in target:
                assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.M)
    elif program == "sagaz-es":
        parse(main, rest)
    else:
        assert program in OTHER_PROGRAMS, line


def parse(command: click.Command, words: list[str]) -> None:
    """Parse a command line to its end; raises click's error where the program would."""
    context = click.Context(command, info_name="sagaz-es")
    while isinstance(command, click.Group):
        if not words:
            return
        name, *words = words
        if name in ("--help", "--version"):
            return
        found = command.get_command(context, name)
        assert found is not None, f"no command {name!r}"
        command = found
        context = click.Context(command, info_name=name, parent=context)
    if "--help" not in words:
        command.make_context(context.info_name, words, parent=context.parent)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    missing = [t for t in LINK.findall(page.read_text()) if not (page.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_a_page_names_exist(page: Path) -> None:
    files = FILE.findall(page.read_text())
    assert not [file for file in files if not any((base / file).exists() for base in PACKAGES)]
