"""`sagaz-es replay time-travel` and `list-changes`: the past of one saga."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from sagaz_es.core.history import Step
from sagaz_es.errors import SagaSetAside
from sagaz_es.reading.historical import HistoricalState, StateChange, plain
from sagaz_es.reading.time_travel import SagaHistory
from sagaz_es_cli import exits
from sagaz_es_cli.opening import Reading, reading, run
from sagaz_es_cli.options import LIMIT, Settings, Time, When, command
from sagaz_es_cli.render import Block, Fields, Line, cells, counted, emit, human, note
from sagaz_es_cli.tables import Column, Rows
from sagaz_es_cli.times import shown


def past_of(opened: Reading, saga_id: str) -> SagaHistory:
    """The history of a saga, from the log and the store that are open."""
    return SagaHistory(saga_id, opened.log, opened.store, opened.blobs)


# --- the state at a point -------------------------------------------------------------------------


def add_time_travel(group: click.Group) -> None:
    """Add `time-travel` to a group."""

    @command(
        group,
        "time-travel",
        keys="saga_id, saga_name, status, sequence, timestamp, context, "
        "completed_steps, current_step, source (snapshot_id, snapshot_sequence, "
        "events_folded, tail_events, partition, offset, passed_over), "
        "children (step to saga id); with "
        "--key the value",
        examples="""
            sagaz-es replay time-travel order-4711 --at 2026-07-01T10:00:00Z
            sagaz-es replay time-travel order-4711 --at 12 --format yaml
            sagaz-es replay time-travel order-4711 --at step:charge:after --key order.items[0].price
            """,
    )
    @click.argument("saga_id", metavar="ID")
    @click.option(
        "-t",
        "--at",
        type=When(),
        required=True,
        help="A time (without a zone it is UTC); a sequence; step:NAME, just before the step first "
        "began; or step:NAME:after.",
    )
    @click.option("-k", "--key", metavar="PATH", help="That value only, such as order.items[0].")
    def time_travel(
        settings: Settings, saga_id: str, at: datetime | int | Step, key: str | None
    ) -> None:
        """Show saga ID as it was at a time, a sequence or a step."""

        async def work() -> HistoricalState:
            async with reading(settings) as opened:
                return await past_of(opened, saga_id).state_at(at)

        state = run(work())
        if key is None:
            record = state_record(state)
            emit(settings.format, record, lambda: state_blocks(record))
            return
        found = plain(state.value_at(key))
        emit(settings.format, found, lambda: [Line(human(found))])


KEYS = (
    "saga_id",
    "saga_name",
    "status",
    "sequence",
    "timestamp",
    "context",
    "completed_steps",
    "current_step",
    "source",
    "children",
)


def state_record(state: HistoricalState) -> dict[str, Any]:
    """A state as JSON holds it."""
    record = state.to_dict()
    return {key: record[key] for key in KEYS}


def _children(record: dict[str, Any]) -> list[tuple[str, str]]:
    return list(record["children"].items()) if isinstance(record["children"], dict) else []


def state_blocks(record: dict[str, Any]) -> list[Block]:
    """A state for people: what it is, then its context, then how it was found."""
    source = record["source"]
    snapshot = source["snapshot_sequence"]
    events = counted(source["events_folded"], "event")
    head = Fields(
        [
            ("saga", record["saga_id"]),
            ("name", record["saga_name"]),
            ("status", record["status"]),
            ("sequence", record["sequence"]),
            ("at (UTC)", shown(record["timestamp"])),
            ("completed", ", ".join(record["completed_steps"])),
            ("current step", record["current_step"]),
            *((f"child of {step}", child) for step, child in _children(record)),
            ("made from", f"the snapshot at {snapshot} and {events}" if snapshot else events),
        ]
    )
    return [head, Fields(list(record["context"].items()), title="context", data=True)]


# --- what changed ---------------------------------------------------------------------------------


def add_list_changes(group: click.Group) -> None:
    """Add `list-changes` to a group."""

    @command(
        group,
        "list-changes",
        keys="a list of sequence, timestamp, type, step, status, changes (set, deleted), error, "
        "actor, reason, action (what was decided about a step)",
        examples="""
            sagaz-es replay list-changes order-4711
            sagaz-es replay list-changes order-4711 --after 2026-07-01T10:00:00Z --limit 20
            """,
    )
    @click.argument("saga_id", metavar="ID")
    @click.option("-a", "--after", type=Time(), help="From this time on; without a zone it is UTC.")
    @click.option("-b", "--before", type=Time(), help="Up to this time; it counts too.")
    @click.option("-l", "--limit", type=LIMIT, help="At most so many, the oldest ones.")
    def list_changes(
        settings: Settings,
        saga_id: str,
        after: datetime | None,
        before: datetime | None,
        limit: int | None,
    ) -> None:
        """List what happened to saga ID, oldest first.

        Status 5: a record that cannot be read stands in the way of the rest.
        """

        async def work() -> tuple[list[StateChange], SagaSetAside | None]:
            async with reading(settings) as opened:
                past = past_of(opened, saga_id)
                try:
                    return await past.changes(after=after, before=before, limit=limit), None
                except SagaSetAside as error:
                    if not error.sequence:
                        raise
                    known = await past.changes(after=after, before=error.sequence, limit=limit)
                    return known, error

        found, broken = run(work())
        records = [change_record(change) for change in found]

        def view() -> list[Block]:
            columns = (
                Column("seq", number=True),
                Column("time (UTC)", only="wide"),
                Column("time (UTC)", only="narrow"),
                Column("what"),
                Column("step"),
                Column("status", status=True),
                Column("changes", free="cut"),
            )
            rows = [
                cells(
                    record["sequence"],
                    shown(record["timestamp"]),
                    shown(record["timestamp"])[:19],
                    record["type"],
                    record["step"],
                    record["status"],
                    _told(record),
                )
                for record in records
            ]
            ranged = " in this range" if after or before else ""
            return [Rows(columns, rows, empty=f"nothing happened to the saga{ranged}")]

        emit(settings.format, records, view)
        if broken is not None:
            note(str(broken))
            raise click.exceptions.Exit(exits.PARTLY)


CHANGE_KEYS = (
    "sequence",
    "timestamp",
    "type",
    "step",
    "status",
    "changes",
    "error",
    "actor",
    "reason",
    "action",
)


def change_record(change: StateChange) -> dict[str, Any]:
    """A change as JSON holds it."""
    record = change.to_dict()
    return {key: record[key] for key in CHANGE_KEYS}


def _told(record: dict[str, Any]) -> str:
    """Who did what and why, then what came of it."""
    by = f"by {record['actor']}" if record["actor"] else ""
    decided = " ".join(part for part in (record["action"], by) if part)
    asked = ": ".join(part for part in (decided, record["reason"]) if part)
    came = record["error"] or _changes_shown(record["changes"])
    return "; ".join(part for part in (asked, came) if part)


def _changes_shown(changes: dict[str, Any]) -> str:
    parts = [f"{key} = {human(value)}" for key, value in changes.get("set", {}).items()]
    parts += [f"{key} deleted" for key in changes.get("deleted", ())]
    return ", ".join(parts)
