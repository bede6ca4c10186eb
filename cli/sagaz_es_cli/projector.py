"""`sagaz-es projector …`: keep a store up to date with the log, and look after it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from sagaz_es.ports import ProjectionStore
from sagaz_es.reading.projector import PartitionStatus, Projector
from sagaz_es_cli import exits
from sagaz_es_cli.ending import end
from sagaz_es_cli.opening import reading, run, writing
from sagaz_es_cli.options import LIMIT, Group, Settings, command
from sagaz_es_cli.render import Block, Line, cells, counted, emit, note
from sagaz_es_cli.tables import Column, Rows
from sagaz_es_projections import rebuild as making_anew
from sagaz_es_projections import runner
from sagaz_es_projections import verify as comparing

STOP_SECONDS = 10.0
"""For the last words to a log and a store that do not answer."""

Statuses = tuple[PartitionStatus, ...]


@click.group(cls=Group)
def projector() -> None:
    """Keep a store (lists, snapshots, archive) up to date with the log."""


def store_of(store: ProjectionStore | None) -> ProjectionStore:
    """The store that was named. Raises UsageError where there is none."""
    if store is None:
        raise click.UsageError(
            "this log has no store of its own: name one with --store postgresql://… or in "
            "SAGAZ_ES_STORE"
        )
    return store


# --- run ------------------------------------------------------------------------------------------


@command(
    projector,
    "run",
    examples="sagaz-es projector run --log kafka://broker:9092/orders --store postgresql://db/sagas",
)
def run_projector(settings: Settings) -> None:
    """Project the log into the store until told to stop.

    It can be killed at any moment and goes on where it stood; while the store is down it waits.
    Of two at one partition one steps back. An embedded log needs none: engines project it.
    SIGTERM ends it with status 0, within 10 s also where log or store do not answer.
    """

    async def work() -> None:
        if isinstance(logging.lastResort, logging.Handler):
            logging.lastResort.setLevel(logging.WARNING)
        async with writing(settings, opens_store=False) as (log, found):
            store = store_of(found)
            note(f"projecting {log.name} into {store.name}")
            with runner.stop_at_signals(signal.SIGTERM) as stop, _live("projecting") as show:
                limit = asyncio.create_task(_end_after(stop, log.name, store.name))
                await runner.run(log, store, stop=stop, on_progress=show, every_s=1.0)
        limit.cancel()  # closed, too
        note("stopped; the next one goes on from here")

    run(work())


async def _end_after(stop: asyncio.Event, log: str, store: str) -> None:
    """End the process `STOP_SECONDS` after the stop. Nothing is lost: what is projected stands in
    the store together with how far that is."""
    await stop.wait()
    await asyncio.sleep(STOP_SECONDS)
    note(
        f"ending without closing {log} and {store}, which have not answered within "
        f"{STOP_SECONDS:g} s of the stop; the next one goes on from what the store has"
    )
    end(exits.DONE)


@contextmanager
def _live(what: str) -> Iterator[Callable[[Statuses], None]]:
    """A line on stderr that says how far it is, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda statuses: None
        return
    from rich.console import Console

    with Console(stderr=True).status(what) as line:

        def show(statuses: Statuses) -> None:
            lag = sum(status.lag for status in statuses)
            done = sum(status.next_offset for status in statuses)
            behind = f"{counted(lag, 'record')} behind" if lag else "up to date"
            line.update(f"{what}: {behind}, {done:,} done")

        yield show


# --- status ---------------------------------------------------------------------------------------


@command(
    projector,
    "status",
    keys="a list of partition, next_offset, log_end, lag",
    examples="sagaz-es projector status --format json",
)
def status(settings: Settings) -> None:
    """Show how far the store is behind the log, partition by partition."""

    async def work() -> Statuses:
        async with reading(settings, needs_store=True) as opened:
            if opened.missing:
                return ()
            return await Projector(opened.log, store_of(opened.store)).status()

    _emit_statuses(settings, run(work()))


def _emit_statuses(settings: Settings, statuses: Statuses) -> None:
    records = [
        {
            "partition": status.partition,
            "next_offset": status.next_offset,
            "log_end": status.log_end,
            "lag": status.lag,
        }
        for status in statuses
    ]

    def view() -> list[Block]:
        columns = tuple(
            Column(title, number=True) for title in ("partition", "next offset", "log end", "lag")
        )
        lag = sum(status.lag for status in statuses)
        said = f"{counted(lag, 'record')} behind" if lag else "up to date"
        rows = [cells(*record.values()) for record in records]
        table = Rows(columns, rows, empty="nothing is projected yet")
        return [table, Line(said)] if rows else [table]

    emit(settings.format, records, view)


# --- rebuild --------------------------------------------------------------------------------------


@command(projector, "rebuild", keys="as `projector status`", examples="sagaz-es projector rebuild")
@click.option(
    "--lose-older",
    is_flag=True,
    help="Also where the log has lost its beginning: what only the store knows is gone then.",
)
def rebuild(settings: Settings, lose_older: bool) -> None:
    """Make the store anew from the log, in place, and show how far it came.

    Meanwhile lists fill up again; time travel and replays answer from the log. Broken off, any
    projector goes on. Snapshots saved by hand stay.
    """

    async def work() -> Statuses:
        async with writing(settings) as (log, store):
            with _live("rebuilding") as show:
                return await making_anew.rebuild(
                    log, store_of(store), on_progress=show, lose_older=lose_older
                )

    _emit_statuses(settings, run(work()))


# --- verify ---------------------------------------------------------------------------------------


@command(
    projector,
    "verify",
    keys="ok, sagas, events, unknown_beginning, set_aside, differences (a list of saga_id, what, "
    "detail)",
    examples="sagaz-es projector verify",
)
@click.option(
    "--limit",
    type=LIMIT,
    default=100,
    show_default=True,
    help="How many differences are listed at most.",
)
def verify(settings: Settings, limit: int) -> None:
    """Compare every saga in the store with a fresh fold of the log.

    Only as far as the log is projected (`projector status`). Status 1: something differs.
    """

    async def work() -> comparing.Verified:
        async with reading(settings, needs_store=True) as opened:
            store = store_of(opened.store)
            return await comparing.verify(opened.log, store, max_differences=limit)

    found = run(work())
    record: dict[str, Any] = {
        "ok": found.ok,
        "sagas": found.sagas,
        "events": found.events,
        "unknown_beginning": found.unknown_beginning,
        "set_aside": found.set_aside,
        "differences": [
            {"saga_id": one.saga_id, "what": one.what, "detail": one.detail}
            for one in found.differences
        ],
    }

    def view() -> list[Block]:
        compared = f"compared: {counted(found.sagas, 'saga')}, {counted(found.events, 'event')}"
        if found.unknown_beginning:
            compared += f", {found.unknown_beginning:,} more have lost their beginning"
        if found.set_aside:
            compared += f", {found.set_aside:,} are set aside (`sagaz-es doctor`)"
        if found.ok:
            return [Line(f"{compared}: the store is what the log says", "green")]
        columns = (Column("saga"), Column("what"), Column("detail", free="wrap"))
        rows = [cells(one.saga_id, one.what, one.detail) for one in found.differences]
        advice = "make the store anew: sagaz-es projector rebuild"
        return [Line(f"{compared}; these differ:"), Rows(columns, rows), Line(advice)]

    emit(settings.format, record, view)
    if not found.ok:
        raise click.exceptions.Exit(exits.FAILED)


# --- drive ----------------------------------------------------------------------------------------


@command(
    projector,
    "drive",
    keys="saga_id, folded, set_aside (records)",
    examples="""
        sagaz-es projector drive order-4711
        sagaz-es projector drive order-4711 --pass-over
        """,
)
@click.argument("saga_id", metavar="ID")
@click.option(
    "--pass-over",
    is_flag=True,
    help="Pass over bytes that cannot be read: they were never a fact of the saga.",
)
def drive(settings: Settings, saga_id: str, pass_over: bool) -> None:
    """Fold what was set aside of saga ID: its records in the log, read again.

    Status 1: something is still set aside.
    """

    async def work() -> dict[str, Any]:
        async with writing(settings) as (log, found):
            store = store_of(found)
            folded = await Projector(log, store).drive(saga_id, pass_over_undecodable=pass_over)
            left = await store.parked_of(log.partition_of(saga_id), saga_id)
            return {"saga_id": saga_id, "folded": folded, "set_aside": len(left)}

    record = run(work())

    def view() -> list[Block]:
        if not record["folded"] and not record["set_aside"]:
            return [Line(f"nothing of saga {saga_id} is set aside")]
        return [Line(f"saga {saga_id}: {record['folded']} folded, {record['set_aside']} set aside")]

    emit(settings.format, record, view)
    if record["set_aside"]:
        raise click.exceptions.Exit(exits.FAILED)
