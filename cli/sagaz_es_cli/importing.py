"""`sagaz-es import`: histories from a CSV file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from sagaz_es.recording.importing import END_STATUSES, ImportResult, Progress, import_csv
from sagaz_es_cli import exits
from sagaz_es_cli.opening import run, writing
from sagaz_es_cli.options import Settings, command
from sagaz_es_cli.render import Block, Fields, cells, emit
from sagaz_es_cli.tables import Column, Rows

ERRORS_SHOWN = 20


def add_import(group: click.Group) -> None:
    """Add `import` to a group."""

    @command(
        group,
        "import",
        keys="sagas, events, skipped, ended, errors (a list of line, reason)",
        examples="""
            sagaz-es import fines.csv --saga-name fine --saga-id-column case \\
                --step-column activity --time-column when --infer-types
            sagaz-es import orders.csv --saga-name order --saga-id-column order \\
                --step-column step --time-column at \\
                --ends ship --ends refund=rolled_back
            """,
    )
    @click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
    @click.option("--saga-name", metavar="NAME", required=True, help="What the sagas are called.")
    @click.option("--saga-id-column", metavar="COLUMN", required=True, help="One value, one saga.")
    @click.option("--step-column", metavar="COLUMN", required=True, help="The step that was done.")
    @click.option("--time-column", metavar="COLUMN", required=True, help="When; UTC if no zone.")
    @click.option("--infer-types", is_flag=True, help="Read numbers and truth values as such.")
    @click.option(
        "--ends",
        metavar="STEP[=STATUS]",
        multiple=True,
        help="A case whose last row is STEP ('*': any) has ended: completed, or as STATUS says "
        "(rolled_back, failed, cancelled). Repeatable.",
    )
    def import_(
        settings: Settings,
        file: Path,
        saga_name: str,
        saga_id_column: str,
        step_column: str,
        time_column: str,
        infer_types: bool,
        ends: tuple[str, ...],
    ) -> None:
        """Import the histories in a CSV FILE: a row is a step that was done.

        The other columns become the context; an empty cell sets nothing. Importing a file twice
        adds nothing. Without --ends all cases stay `executing`, and what executes is not replayed;
        imported again with it, only the ends are added. Status 5: there were rows that could not
        be imported; the others are.
        """
        ended = dict(map(_end_of, ends))

        async def work() -> ImportResult:
            async with writing(settings, makes_log=True) as (log, store):
                with progress_bar(file) as progress:
                    return await import_csv(
                        log,
                        file,
                        saga_name=saga_name,
                        saga_id_column=saga_id_column,
                        step_column=step_column,
                        time_column=time_column,
                        infer_types=infer_types,
                        ends=ended,
                        progress=progress,
                        store=store,
                    )

        record = run(work()).to_dict()
        errors = record["errors"]

        def view() -> list[Block]:
            counts = Fields([(key, record[key]) for key in ("sagas", "events", "skipped", "ended")])
            columns = (Column("line", number=True), Column("reason", free="wrap"))
            rows = [cells(error["line"], error["reason"]) for error in errors[:ERRORS_SHOWN]]
            more = len(errors) - len(rows)
            title = (
                f"not imported, the first {len(rows)} of {len(errors)}" if more else "not imported"
            )
            return [counts, Rows(columns, rows, title=title)] if errors else [counts]

        emit(settings.format, record, view)
        if errors:
            raise click.exceptions.Exit(exits.PARTLY)


def _end_of(text: str) -> tuple[str, str]:
    """Step and status; a step may hold a `=` of its own."""
    step, equals, status = text.rpartition("=")
    if equals and status in END_STATUSES:
        return step, status
    if equals and status.isidentifier():
        raise click.BadParameter(f"--ends: one of {', '.join(END_STATUSES)}, not {status!r}")
    return text, "completed"


@contextmanager
def progress_bar(file: Path) -> Iterator[Progress | None]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"reading {file.name}", total=None)

        def advance(doing: str, done: int, total: int) -> None:
            name = f"{doing} {file.name}"
            progress.update(task, description=name, completed=done, total=total or None)

        yield advance
