"""Rows of figures, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table under a heading."""
    lines = [f"## {title}", "", "| " + " | ".join(header) + " |"]
    lines.append("|" + "---|" * len(header))
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values, the one below which `share` of them lie."""
    return values[min(len(values) - 1, int(len(values) * share))]
