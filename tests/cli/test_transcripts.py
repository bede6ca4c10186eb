"""What people see, at two widths: `tests/golden/cli/`, rewritten on purpose only.

SAGAZ_ES_REWRITE=1 .venv/bin/python -m pytest tests/cli/test_transcripts.py
"""

from __future__ import annotations

import os
import pty
import re
from pathlib import Path

import pytest

from .conftest import Project, Shop

GOLDEN = Path(__file__).parents[1] / "golden" / "cli"

COMMANDS = {
    "saga-list": ("saga", "list"),
    "saga-show": ("saga", "show", "order-2"),
    "replay-plan": ("replay", "plan", "order-1", "--from-step", "charge"),
    "replay-dry-run": ("replay", "run", "order-2", "-s", "charge", "-o", "token=good", "-d"),
    "time-travel": ("replay", "time-travel", "order-1", "--at", "step:ship"),
    "list-changes": ("replay", "list-changes", "order-2"),
    "projector-status": ("projector", "status"),
    "doctor": ("doctor",),
}


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("name", COMMANDS)
def test_tables_are_as_they_were(name: str, width: int) -> None:
    shop = Shop(f"memory://{name}-{width}")
    shop.order("order-1", note="a text that is longer than any terminal is wide " * 4)
    shop.order("order-2", token="a token that nobody would ever accept, whatever it may be for")
    shop.order("1f0c9d52-6c1e-4d6a-9a70-5b1f8f2f3c11")
    shop.env["COLUMNS"] = str(width)
    told = shop.run(*COMMANDS[name], "--format", "table")
    text = told.stdout
    for pattern, shown in (
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$", "(a new id)"),
        (r"(?<=plan )[0-9a-f]{16}", "(its digest)"),
        (r"10:00:\d\d", "10:00:xx"),  # how often the engine looks at its clock is its own affair
    ):
        text = re.sub(pattern, shown, text, flags=re.MULTILINE)
    path = GOLDEN / f"{name}-{width}.txt"
    if os.environ.get("SAGAZ_ES_REWRITE"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    lines = told.stdout.splitlines()
    assert max(len(line) for line in lines) <= width
    assert not any(line != line.rstrip() for line in lines)


def test_where_times_do_not_fit_there_are_ages(shop: Shop) -> None:
    shop.order("o-1")
    shop.env["COLUMNS"] = "40"
    title, _, row = shop.run("saga", "list", "--format", "table").stdout.splitlines()
    assert title.split() == ["saga", "name", "status", "age"]
    assert re.fullmatch(r"o-1   order  completed  +\d+d", row)


def test_a_terminal_gets_colours_and_tables_and_a_pipe_json(project: Project) -> None:
    start = ("saga", "start", "order", "--app", "shop", "--context", '{"token": "good"}')
    project.run(*start)
    mine, theirs = pty.openpty()
    given = project.run("saga", "list", stdout=theirs, TERM="xterm-256color")
    os.close(theirs)
    shown = os.read(mine, 100_000).decode()
    os.close(mine)
    assert given.status == 0
    assert "\x1b[32mcompleted" in shown
    piped = project.run("saga", "list")
    assert piped.json[0]["status"] == "completed"
    table = project.run("saga", "list", "--format", "table")
    assert "\x1b" not in table.stdout and "completed" in table.stdout


def test_what_would_steer_a_terminal_is_shown_and_not_done(shop: Shop) -> None:
    shop.order("o-\x1b[2J\n1", note="\x1b]0;title\x07", token="\x1b[31m")
    for command in (("saga", "list"), ("saga", "show", "o-\x1b[2J\n1")):
        for format in ("table", "text"):
            told = shop.run(*command, "--format", format)
            assert "\x1b" not in told.stdout + told.stderr
            assert "o-\\x1b[2J\\n1" in told.stdout
    missing = shop.run("saga", "show", "\x1b[2J")
    assert "\x1b" not in missing.stderr


def test_markup_in_data_is_data(shop: Shop) -> None:
    shop.order("[red]o-1[/red]", note="[bold]:smile:[/nope]")
    told = shop.run("saga", "show", "[red]o-1[/red]", "--format", "table").stdout
    assert "[red]o-1[/red]" in told and "[bold]:smile:[/nope]" in told


def test_an_id_that_is_too_wide_stays_whole(shop: Shop) -> None:
    long = "order/2026-07 №5 " * 10
    shop.order(long)
    shop.order("o-1")
    shop.env["COLUMNS"] = "80"
    told = shop.run("saga", "list", "--format", "table").stdout
    assert long.strip() in told
    assert max(len(line) for line in told.splitlines() if long.strip() not in line) <= 80
