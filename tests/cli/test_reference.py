"""The page on the command line says what the commands say."""

from __future__ import annotations

from pathlib import Path

from sagaz_es_cli.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


def test_the_page_is_current() -> None:
    hint = "run: python -m sagaz_es_cli.reference > docs/reference/cli.md"
    assert PAGE.read_text(encoding="utf-8") == page(), hint
