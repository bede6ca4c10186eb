"""The page on the command line says what the commands say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sagaz_es_cli.main import main
from sagaz_es_cli.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


def test_the_page_is_current() -> None:
    hint = "run: python -m sagaz_es_cli.reference > docs/reference/cli.md"
    assert PAGE.read_text(encoding="utf-8") == page(), hint


def _all(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _all(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(_all(main)), ids=" ".join)
def test_the_help_of_a_command_fits_a_terminal_of_80_columns(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(main, [*path, "--help"], env={"COLUMNS": "80"}).output
    lines = shown.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert [line for line in lines[1:] if line.endswith("...")] == [], "a sentence is cut off"
