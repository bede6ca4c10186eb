"""Results on stdout: json and yaml for programs, tables and text for people; notes on stderr.

A view is a list of blocks. Tables fit the terminal; only they shorten values.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import click
from rich.cells import cell_len, set_cell_size

from sagaz_es_cli.tables import STYLES, Rows, cut, table_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PIPED_WIDTH = 120
"""Of a table that goes to a file or a pipe."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Names and values, one a line. Those without a value are left out, unless they are `data`."""

    fields: Sequence[tuple[str, Any]]
    title: str = ""
    data: bool = False

    @property
    def shown(self) -> list[tuple[str, str]]:
        """The names and values that are there to be shown, as texts."""
        return [
            (printable(name), human(value))
            for name, value in self.fields
            if self.data or (value is not None and value != "")
        ]


@dataclass(frozen=True, slots=True)
class Line:
    """A sentence."""

    text: str
    style: str = ""


Block: TypeAlias = Rows | Fields | Line
View: TypeAlias = Callable[[], Iterable[Block]]


def note(sentence: str) -> None:
    """Tell a person something that is no result."""
    click.echo(printable(sentence), err=True)


def counted(number: int, thing: str) -> str:
    """`1 record`, `1,200 records`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A line on stderr that moves, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def emit(format: str, data: Any, view: View) -> None:
    """The result, in the format that was asked for. `data` is what JSON can hold."""
    if data == [] and format in ("json", "yaml"):
        note(next((block.empty for block in view() if isinstance(block, Rows)), ""))
    if format == "json":
        ascii_only = not _encoding().startswith("utf")
        click.echo(json.dumps(data, indent=2, ensure_ascii=ascii_only))
    elif format == "yaml":
        import yaml

        ascii_only = not _encoding().startswith("utf")
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=not ascii_only, width=100)
        click.echo(text.removesuffix("...\n"), nl=False)
    elif format == "text":
        click.echo("\n".join(_lines(view())))
    else:
        _draw(view())


def _encoding() -> str:
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower()


# --- values for people ----------------------------------------------------------------------------


def human(value: Any) -> str:
    """A value as a person reads it; `value` as `plain` gives it: tags fall away."""
    bare = _untagged(value)
    return printable(bare if isinstance(bare, str) else json.dumps(bare, ensure_ascii=False))


def cells(*values: Any) -> tuple[str, ...]:
    """The cells of a row; no value, no text."""
    return tuple("" if value is None else human(value) for value in values)


def _untagged(value: Any) -> Any:
    if isinstance(value, list):
        return [_untagged(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, body),) = value.items()
        if key in ("$set", "$tuple"):
            return _untagged(body)
        if key == "$sealed":
            return "(sealed)"
        if key.startswith("$") and not key.startswith("$$"):
            return body
    return {
        key[1:] if key.startswith("$$") else key: _untagged(item) for key, item in value.items()
    }


def printable(text: str) -> str:
    """The text without what would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


# --- tables ---------------------------------------------------------------------------------------


def _draw(blocks: Iterable[Block]) -> None:
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout,
        width=None if terminal else _piped_width(),
        force_terminal=terminal,
        no_color=None if terminal else True,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for number, block in enumerate(blocks):
        if number and not isinstance(block, Line):
            console.print()
        for line in _block_lines(block, console):
            # Lines are as wide as they are to be; an id that is wider stays whole.
            console.print(line, soft_wrap=True)
    sys.stdout.flush()


def _piped_width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return max(40, int(columns)) if columns.isdecimal() else PIPED_WIDTH


def _block_lines(block: Block, console: Console) -> Iterator[Text]:
    from rich.text import Text

    if isinstance(block, Line):
        yield Text(printable(block.text), style=block.style)
        return
    if block.title:
        yield Text(printable(block.title), style="bold")
    if isinstance(block, Fields):
        yield from _field_lines(block, console)
    elif block.rows:
        yield from table_lines(block, console)
    else:
        yield Text(block.empty, style="dim")


def _field_lines(block: Fields, console: Console) -> Iterator[Text]:
    from rich.text import Text

    fields = block.shown
    longest = max((cell_len(name) for name, _ in fields), default=0)
    indent = min(longest, console.width // 2) + 2
    for name, value in fields:
        style = STYLES.get(value, "") if name == "status" else ""
        label = set_cell_size(name, max(indent, cell_len(name) + 2))
        room = console.width - cell_len(label)
        # An id has to stay whole: it is there to be copied.
        shown = value if " " not in value and len(value) < 200 else cut(value, max(20, room))
        yield Text.assemble((label, "dim"), (shown, style))


# --- text -----------------------------------------------------------------------------------------


def _lines(blocks: Iterable[Block]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, Line):
            yield printable(block.text)
        elif isinstance(block, Fields):
            prefix = f"{block.title}." if block.title else ""
            yield from (f"{prefix}{name}: {value}" for name, value in block.shown)
        elif block.rows:
            yield from _aligned(block)
        elif block.empty:
            yield block.empty


def _aligned(block: Rows) -> Iterator[str]:
    shown = [number for number, column in enumerate(block.columns) if column.only != "narrow"]
    rows = [[block.columns[number].title for number in shown]]
    rows += [[row[number] for number in shown] for row in block.rows]
    widths = [max(cell_len(row[place]) for row in rows) for place in range(len(shown))]
    for row in rows:
        cells = (set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
