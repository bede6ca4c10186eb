"""`sagaz-es compensations …`: effects that should have been undone and still stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from sagaz_es.core.state import SagaState, SagaStatus
from sagaz_es.core.stuck import stuck_steps
from sagaz_es.engine.engine import Engine
from sagaz_es.ports import ProjectionStore
from sagaz_es_cli import exits
from sagaz_es_cli.asking import STATE_KEYS, asked, state_record, user
from sagaz_es_cli.listed import go_on, place_of
from sagaz_es_cli.opening import reading, run
from sagaz_es_cli.options import (
    LIMIT,
    AnyFunction,
    Group,
    Settings,
    actor_option,
    after_option,
    command,
    resources_option,
    timeout_option,
)
from sagaz_es_cli.render import Block, Line, cells, emit, note
from sagaz_es_cli.tables import Column, Rows
from sagaz_es_cli.times import age, iso, shown

PAGE = 100
"""Failed sagas asked of the store at a time."""


@click.group(cls=Group)
def compensations() -> None:
    """Compensations that are stuck: look at them, try them again, let them be."""


# --- list -----------------------------------------------------------------------------------------


@command(
    compensations,
    "list",
    keys="a list of saga_id, saga_name, step, error, since",
    examples="""
        sagaz-es compensations list
        sagaz-es compensations list --name order --format json
        sagaz-es compensations list --after order-4711
        """,
)
@click.option("--name", metavar="NAME", help="Only of sagas of this name.")
@click.option("--limit", type=LIMIT, default=100, show_default=True)
@after_option
def list_stuck(settings: Settings, name: str | None, limit: int, after: str | None) -> None:
    """List compensations that failed for good, of the newest sagas first, a page at a time:
    as many as --limit says, and all of the last saga.

    `since` is when their saga ended. Those that were let be, or that a branch of their saga has to
    do now, are not among them.
    """

    async def work() -> tuple[list[_Stuck], bool]:
        async with reading(settings) as opened:
            store = await opened.up_to_date_store()
            return await _page(store, name, limit, await place_of(store, after))

    found, more = run(work())
    records = [
        {
            "saga_id": one.saga_id,
            "saga_name": one.saga_name,
            "step": one.step,
            "error": one.error,
            "since": iso(one.ended_at),
        }
        for one in found
    ]

    def view() -> list[Block]:
        columns = (
            Column("saga"),
            Column("name"),
            Column("step"),
            Column("since (UTC)", only="wide"),
            Column("age", only="narrow", number=True),
            Column("error", free="cut"),
        )
        rows = [
            cells(
                record["saga_id"],
                record["saga_name"],
                record["step"],
                shown(record["since"])[:19],
                age(one.ended_at),
                record["error"],
            )
            for record, one in zip(records, found, strict=True)
        ]
        return [Rows(columns, rows, empty="no compensation is stuck")]

    emit(settings.format, records, view)
    if more:
        note(go_on(len(found), found[-1].saga_id, "--limit and --name"))


@dataclass(frozen=True, slots=True)
class _Stuck:
    saga_id: str
    saga_name: str
    step: str
    error: str
    ended_at: int


async def _page(
    store: ProjectionStore, name: str | None, limit: int, after: tuple[int, str] | None
) -> tuple[list[_Stuck], bool]:
    """Those of whole sagas, and whether there are more. Law (memory): no more is held at a time
    than they are, and the heads of one page of failed sagas."""
    found: list[_Stuck] = []
    while page := await store.summaries(
        status=SagaStatus.FAILED, saga_name=name, limit=PAGE, after=after
    ):
        heads = await store.heads([summary.saga_id for summary in page])
        for summary in page:
            state = heads.get(summary.saga_id)
            steps = () if state is None or state.branch else stuck_steps(state)
            if steps and len(found) >= limit:
                return found, True
            found += [_stuck(state, step) for step in steps if state is not None]
        after = page[-1].place
    return found, False


def _stuck(state: SagaState, step: str) -> _Stuck:
    now = state.step(step)
    error = f"{now.error_type}: {now.error_message}"
    return _Stuck(state.saga_id, state.saga_name, step, error, state.ended_at)


# --- retry, skip ----------------------------------------------------------------------------------


def _stuck_options(function: AnyFunction) -> AnyFunction:
    for option in (
        resources_option,
        timeout_option,
        actor_option,
        click.option("--reason", required=True, help="Recorded in the log, shown in the history."),
        click.option("--step", metavar="STEP", required=True, help="The step to undo."),
        click.argument("saga_id", metavar="ID"),
    ):
        function = option(function)
    return function


@command(
    compensations,
    "retry",
    keys=f"{STATE_KEYS}, stuck (the steps that are)",
    examples="""
        sagaz-es compensations retry order-4711 --step charge --reason "the bank is back"
        sagaz-es compensations retry order-4711 --step charge --reason "fixed" --app shop.sagas
        """,
)
@_stuck_options
def retry(
    settings: Settings,
    saga_id: str,
    step: str,
    reason: str,
    actor: str | None,
    timeout_s: float,
    resources: str | None,
) -> None:
    """Try to undo a step of saga ID once more, and show what became of it.

    Done by the engine that serves the saga, or, where none answers, with --app by this process.
    Status 1: it is still stuck.
    """

    async def retry_in(engine: Engine) -> None:
        await engine.retry_compensation(saga_id, step, reason=reason, actor=actor or user())

    state = run(asked(settings, saga_id, retry_in, timeout_s=timeout_s, resources=resources))
    _emit(settings, state)
    if step in stuck_steps(state):
        raise click.exceptions.Exit(exits.FAILED)


@command(
    compensations,
    "skip",
    keys="as `compensations retry`",
    examples='sagaz-es compensations skip order-4711 --step charge --reason "refunded by hand"',
)
@_stuck_options
def skip(
    settings: Settings,
    saga_id: str,
    step: str,
    reason: str,
    actor: str | None,
    timeout_s: float,
    resources: str | None,
) -> None:
    """Let the effect of a step of saga ID stand, although it should have been undone.

    Done by the engine that serves the saga, or, where none answers, with --app by this process.
    """

    async def skip_in(engine: Engine) -> None:
        await engine.skip_compensation(saga_id, step, reason=reason, actor=actor or user())

    state = run(asked(settings, saga_id, skip_in, timeout_s=timeout_s, resources=resources))
    _emit(settings, state)


def _emit(settings: Settings, state: SagaState) -> None:
    stuck = stuck_steps(state)
    record: dict[str, Any] = state_record(state) | {"stuck": list(stuck)}
    said = f"; stuck: {', '.join(stuck)}" if stuck else "; nothing is stuck"
    emit(settings.format, record, lambda: [Line(f"saga {state.saga_id} is {state.status}{said}")])
