"""Tables that fit the terminal: whole where there is room, then narrower, then over two lines.

Of one column, the free one, values are cut or wrapped to the room that the others leave; where that
is too little to read, they stand in a line of their own below the row. All other columns, such as
ids and statuses, stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

GAP = 2
LEAST = 24
"""A free column that is narrower is not worth reading."""

WIDEST = 44
"""A longer id has a line for itself: it would push everything else aside."""

STYLES = {
    # statuses of sagas and steps
    "completed": "green",
    "executing": "cyan",
    "pending": "dim",
    "compensating": "yellow",
    "compensated": "yellow",
    "rolled_back": "yellow",
    "cancelled": "yellow",
    "failed": "bold red",
    "compensation_failed": "bold red",
    "partially_committed": "bold magenta",
    "forward_recovery": "bold magenta",
    "outcome_unknown": "bold magenta",
    "stale": "magenta",
    "skipped": "dim",
    # verdicts
    "reuse": "green",
    "redo": "cyan",
    "undo_first": "yellow",
    "blocked": "bold red",
    # of replays and checks
    "success": "green",
    "ok": "green",
    "look": "yellow",
    "wrong": "bold red",
    # whether code fits
    "yes": "green",
    "declared": "cyan",
    "no": "bold red",
    "no code": "yellow",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column. `free`: cut or wrapped to the room there is; one a table, the last but for `below`.

    `only`: in wide or in narrow tables alone. `below`: always in a line of its own, after an arrow.
    """

    title: str
    free: Literal["", "cut", "wrap"] = ""
    only: Literal["", "wide", "narrow"] = ""
    below: bool = False
    number: bool = False
    status: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """A table of texts; an empty one is no value. `empty` is said where there are no rows."""

    columns: tuple[Column, ...]
    rows: Sequence[Sequence[str]]
    empty: str = ""
    title: str = ""


def table_lines(table: Rows, console: Console) -> Iterator[Text]:
    """The lines of a table that has rows, not wider than the console where that can be."""
    layout = _Layout(table, "narrow", console)
    if layout.fixed <= console.width:
        layout = _Layout(table, "wide", console)
        if layout.fixed > console.width:
            layout = _Layout(table, "narrow", console)
    yield from layout.lines()


class _Layout:
    """Which columns of a table are shown, and how wide."""

    def __init__(self, table: Rows, kind: str, console: Console) -> None:
        self.table, self.console = table, console
        shown = [
            (number, column)
            for number, column in enumerate(table.columns)
            # A column in which nothing stands takes no room.
            if column.only in ("", kind) and any(row[number] for row in table.rows)
        ]
        self.plain = [(n, column) for n, column in shown if not column.free and not column.below]
        self.free = next(((n, column) for n, column in shown if column.free), None)
        self.below = [number for number, column in shown if column.below]
        self.widths = {
            number: min(WIDEST, self._widest(number, column)) for number, column in self.plain
        }
        self.fixed = sum(self.widths.values()) + GAP * (len(self.plain) - 1)
        room = console.width - self.fixed - GAP
        self.free_width = 0
        if self.free is not None:
            widest = self._widest(*self.free)
            self.free_width = min(widest, room) if room >= min(widest, LEAST) else 0

    def _widest(self, number: int, column: Column) -> int:
        return max(cell_len(column.title), *(cell_len(row[number]) for row in self.table.rows))

    def lines(self) -> Iterator[Text]:
        titles = [(self.widths[number], column, column.title) for number, column in self.plain]
        if self.free is not None and self.free_width:
            titles.append((self.free_width, self.free[1], self.free[1].title))
        yield Text(_spaced(titles), style="bold")
        width = sum(width for width, _, _ in titles) + GAP * (len(titles) - 1)
        yield Text("─" * min(width, self.console.width), style="dim")
        for row in self.table.rows:
            yield from self._row(row)

    def _row(self, row: Sequence[str]) -> Iterator[Text]:
        line = Text()
        for place, (number, column) in enumerate(self.plain):
            if place:
                line.append(" " * GAP)
            cell = row[number]
            if cell_len(cell) > self.widths[number]:
                yield Text(f"{line.plain}{cell}")
                line = Text(" " * (cell_len(line.plain) + self.widths[number]))
                continue
            style = STYLES.get(cell, "") if column.status else ""
            line.append(_sized(cell, self.widths[number], column), style=style)
        rest = row[self.free[0]] if self.free is not None else ""
        if rest and self.free_width:
            indent = cell_len(line.plain) + GAP
            first, *more = self._fitted(rest, self.free_width)
            yield Text.assemble(line, " " * GAP, first)
            yield from (Text(" " * indent + part) for part in more)
        else:
            line.rstrip()
            yield line
            if rest:
                yield from (Text(f"  {part}", style="dim") for part in self._below(rest))
        for number in self.below:
            parts = self._below(f"→ {row[number]}") if row[number] else []
            yield from (Text(f"  {part}", style="dim") for part in parts)

    def _below(self, text: str) -> list[str]:
        return self._fitted(text, max(LEAST, self.console.width - 2))

    def _fitted(self, text: str, width: int) -> list[str]:
        if self.free is not None and self.free[1].free == "cut":
            return [cut(text, width)]
        wrapped = Text(text).wrap(self.console, width)
        return [part.plain.rstrip() for part in wrapped]


def _spaced(cells: Sequence[tuple[int, Column, str]]) -> str:
    return (" " * GAP).join(_sized(text, width, column) for width, column, text in cells).rstrip()


def _sized(text: str, width: int, column: Column) -> str:
    if column.number:
        return " " * (width - cell_len(text)) + text
    return set_cell_size(text, width)


def cut(text: str, width: int) -> str:
    """The text, or what of it fits, with an ellipsis."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 1)).rstrip() + "…"
