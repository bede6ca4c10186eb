"""`sagaz-es saga …`: start sagas, list them, look at one, cancel one."""

from __future__ import annotations

from typing import Any

import click

from sagaz_es.core.state import SagaStatus
from sagaz_es.core.stuck import waits_for_person
from sagaz_es.engine.engine import Engine
from sagaz_es.errors import SagaError, SagaExecutionError, SagaNotFound, SagaStepError
from sagaz_es.reading.historical import HistoricalState, plain
from sagaz_es.reading.lookup import current_state
from sagaz_es.sagas.result import SagaHandle, SagaResult
from sagaz_es_cli import exits
from sagaz_es_cli.asking import by_whoever_serves, tell, user
from sagaz_es_cli.history import past_of, state_blocks, state_record
from sagaz_es_cli.listed import Listed, go_on, listed, place_of, waiting_sagas
from sagaz_es_cli.opening import Reading, reading, run, unless_interrupted
from sagaz_es_cli.options import (
    LIMIT,
    Group,
    JsonObject,
    Settings,
    actor_option,
    after_option,
    command,
    resources_option,
    timeout_option,
)
from sagaz_es_cli.render import Block, Fields, cells, emit, note
from sagaz_es_cli.tables import Column, Rows
from sagaz_es_cli.times import age, iso, shown


@click.group(cls=Group)
def saga() -> None:
    """Start sagas, list them, look at one, cancel one."""


# --- start ----------------------------------------------------------------------------------------


@command(
    saga,
    "start",
    keys="saga_id, saga_name, status, context, error",
    examples="""
        sagaz-es saga start order --context '{"sku": "A1"}' --app shop.sagas
        sagaz-es saga start order --context @order.json --saga-id order-4711 --app shop.sagas
        sagaz-es saga start order --context '{"price": {"$decimal": "9.90"}}' --app shop.sagas
        """,
)
@click.argument("name")
@click.option(
    "--context",
    type=JsonObject(),
    default="{}",
    help="Data to start with; @file reads a file, - stdin. Tags such as $decimal give types.",
)
@click.option("--saga-id", metavar="ID", help="The same id twice is the same saga; default: new.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    default=30.0,
    show_default=True,
    help="How long to wait for an engine to begin it; for its end there is no limit.",
)
@resources_option
def start(
    settings: Settings,
    name: str,
    context: dict[str, Any],
    saga_id: str | None,
    timeout_s: float,
    resources: str | None,
) -> None:
    """Start a saga NAME, and show how it ended.

    It runs in the engines that serve the log; where there is none, here, and --app is needed.
    Status 1: it did not complete, or no engine began it within --timeout. Its start stays in the
    log then, and is begun by the next engine that has the class; the same command with its
    --saga-id waits on. Interrupted, it goes on in an engine of this log.
    """

    async def work(engine: Engine) -> tuple[dict[str, Any], bool]:
        if saga_id is not None:
            known = await current_state(engine.log, engine.store, saga_id)
            if known is not None:
                note(f"saga {saga_id!r} ({known.saga_name}) was there: it is not started again")
        handle = await engine.start(name, context, saga_id=saga_id, actor=user())
        with unless_interrupted(f"saga {handle.saga_id!r}", here=bool(engine.host.partitions)):
            result = await _ended(engine, handle, timeout_s)
        if not result.success and (why := waits_for_person(await engine.current(result.saga_id))):
            note(f"saga {result.saga_id!r} waits for a person: {why}")
        record = {
            "saga_id": result.saga_id,
            "saga_name": result.saga_name,
            "status": str(result.status),
            "context": plain(dict(result.context)),
            "error": _told(result.error),
        }
        return record, result.success

    record, success = run(by_whoever_serves(settings, name, work, resources, "saga start"))

    def view() -> list[Block]:
        return [
            Fields([(key, record[key]) for key in ("saga_id", "saga_name", "status", "error")]),
            Fields(list(record["context"].items()), title="context", data=True),
        ]

    emit(settings.format, record, view)
    if not success:
        raise click.exceptions.Exit(exits.FAILED)


async def _ended(engine: Engine, handle: SagaHandle, timeout_s: float) -> SagaResult:
    """The end of a saga, whenever it comes. Raises TimeoutError if nobody begins it in time."""
    try:
        return await handle.result(timeout_s)
    except TimeoutError:
        if await engine.status(handle.saga_id) is SagaStatus.PENDING:
            raise
    return await handle.result()


def _told(error: BaseException | None) -> str | None:
    """As `saga list` and `saga show` tell it: the class first."""
    if error is None:
        return None
    if isinstance(error, SagaStepError) and error.error_type:  # the step ran in another process
        return f"{error.error_type}: {error.message}"
    if type(error) is SagaExecutionError:
        return str(error)
    kind = type(error).__name__
    return f"{kind}: {str(error) or kind}"


# --- list -----------------------------------------------------------------------------------------


@command(
    saga,
    "list",
    keys="a list of saga_id, saga_name, status, started_at, updated_at, error, paused, "
    "waits_for_person (what has to be decided or repaired; else null)",
    examples="""
        sagaz-es saga list
        sagaz-es saga list --status failed --name order --limit 20
        sagaz-es saga list --waiting
        sagaz-es saga list --status failed --after order-4711
        sagaz-es saga list --log kafka://broker:9092/orders --store postgresql://db/sagas
        """,
)
@click.option(
    "--status",
    metavar="STATUS",
    type=click.Choice([str(status) for status in SagaStatus]),
    help="Only sagas that are, for instance, pending, executing, completed or failed.",
)
@click.option("--name", metavar="NAME", help="Only sagas of this name.")
@click.option(
    "--waiting", is_flag=True, help="Only sagas that are paused, or wait for a person otherwise."
)
@click.option("--limit", type=LIMIT, default=100, show_default=True)
@after_option
def list_sagas(
    settings: Settings,
    status: str | None,
    name: str | None,
    waiting: bool,
    limit: int,
    after: str | None,
) -> None:
    """List sagas, newest first, a page at a time.

    Those that are pending are starts that wait for room in an engine.

    `error` also says where a saga is set aside: its status is that before the record that cannot be
    read. --waiting looks at each saga that can be waiting: at those unfinished, and at failed ones.
    """

    async def work() -> tuple[list[Listed], dict[str, str], bool]:
        async with reading(settings) as opened:
            store = await opened.up_to_date_store()
            place = await place_of(store, after)
            # One more than asked for tells whether there are more.
            if waiting:
                found = await waiting_sagas(store, status, name, limit + 1, place)
            else:
                some = await store.summaries(
                    status=status, saga_name=name, limit=limit + 1, after=place
                )
                found = await listed(store, some)
            aside = await opened.set_aside([one.summary.saga_id for one in found])
            return found, aside, opened.behind

    all_found, aside, behind = run(work())
    found = all_found[:limit]
    records = [
        {
            "saga_id": summary.saga_id,
            "saga_name": summary.saga_name,
            "status": summary.status,
            "started_at": iso(summary.started_at),
            "updated_at": iso(summary.updated_at),
            "error": aside.get(summary.saga_id) or summary.error or None,
            "paused": one.paused,
            "waits_for_person": one.waits_for or None,
        }
        for one in found
        for summary in (one.summary,)
    ]
    some_wait = any(one.shown for one in found)

    def view() -> list[Block]:
        columns = (
            Column("saga"),
            Column("name"),
            Column("status", status=True),
            Column("started (UTC)", only="wide"),
            Column("age", only="narrow", number=True),
            *((Column("waits", free="cut"),) if some_wait else ()),
            Column("error", free="cut"),
        )
        rows = [
            cells(
                summary.saga_id,
                summary.saga_name,
                summary.status,
                shown(iso(summary.started_at))[:19],
                age(summary.started_at),
                *((one.shown,) if some_wait else ()),
                aside.get(summary.saga_id) or summary.error,
            )
            for one in found
            for summary in (one.summary,)
        ]
        nothing = "the store has no sagas yet" if behind else "there are no sagas yet"
        chosen = "no saga fits" if status or name or waiting or after else nothing
        return [Rows(columns, rows, empty=chosen)]

    emit(settings.format, records, view)
    if len(all_found) > limit:
        note(go_on(limit, found[-1].summary.saga_id, "--limit, --status and --name"))
    if aside:
        note("some are set aside, see their error and `sagaz-es doctor`")


# --- show -----------------------------------------------------------------------------------------


@command(
    saga,
    "show",
    keys="as `replay time-travel`, and steps (a list of step, status, attempts, "
    "error), error, started_at, ended_at, parent_saga_id, replay_id, branch, "
    "caller_saga_id, caller_step, paused, pause (reason, actor, since; null: it is not paused), "
    "waits_for_person (what has to be decided or repaired); children is a list of step, saga_id, "
    "saga_name, status, branch",
    examples="sagaz-es saga show order-4711",
)
@click.argument("saga_id", metavar="ID")
def show(settings: Settings, saga_id: str) -> None:
    """Show a saga as it is now: status, context and steps, its children, and whose child it is."""

    async def work() -> dict[str, Any]:
        async with reading(settings) as opened:
            state = await _now(opened, saga_id)
            record = show_record(state, await children_of(opened, state))
            return record | {"pause": await _pause(opened, state)}

    record = run(work())

    def view() -> list[Block]:
        head, *rest = state_blocks(record)
        assert isinstance(head, Fields)
        fields = [
            *head.fields,
            ("error", record["error"]),
            ("paused", _paused_shown(record["pause"])),
            ("waits for a person", record["waits_for_person"]),
            ("branch of", record["parent_saga_id"]),
            ("by replay", record["replay_id"]),
            ("replayed as", record["branch"]),
            ("child of", record["caller_saga_id"]),
            ("by its step", record["caller_step"]),
        ]
        columns = (
            Column("step"),
            Column("status", status=True),
            Column("attempts", number=True),
            Column("error", free="wrap"),
        )
        rows = [
            cells(step["step"], step["status"], step["attempts"] or None, step["error"])
            for step in record["steps"]
        ]
        blocks: list[Block] = [Fields(fields), Rows(columns, rows, empty="no step has begun")]
        if record["children"]:
            kin = (
                Column("child of step"),
                Column("saga"),
                Column("name"),
                Column("status", status=True),
                Column("replayed as"),
            )
            blocks.append(Rows(kin, [cells(*child.values()) for child in record["children"]]))
        return [*blocks, *rest]

    emit(settings.format, record, view)


async def _now(opened: Reading, saga_id: str) -> HistoricalState:
    past = past_of(opened, saga_id)
    try:
        return await past.now()
    except SagaNotFound:
        waiting = await past.waiting()
        if waiting is None:
            raise
        note("its start waits in the log until an engine that has the class has room for it")
        return waiting


async def _pause(opened: Reading, state: HistoricalState) -> dict[str, Any] | None:
    """Since when the saga is paused, and by whom and why it was last; the history says so."""
    if not state.paused:
        return None
    try:
        changes = await past_of(opened, state.saga_id).changes(before=state.sequence)
    except SagaError:  # some of it is gone, or cannot be read
        changes = []
    pause: dict[str, Any] = {"reason": None, "actor": None, "since": None}
    for change in changes:  # who pauses it again has another reason; it stands still all along
        if change.type == "SagaResumed":
            pause["since"] = None
        elif change.type == "SagaPaused":
            since = pause["since"] or change.timestamp.isoformat()
            pause = {"reason": change.reason, "actor": change.actor, "since": since}
    return pause


def _paused_shown(pause: dict[str, Any] | None) -> str | None:
    if pause is None:
        return None
    by = f" by {pause['actor']}" if pause["actor"] else ""
    why = f": {pause['reason']}" if pause["reason"] else ""
    since = f"since {shown(pause['since'])[:19]}" if pause["since"] else "yes"
    return f"{since}{by}{why}"


async def children_of(opened: Reading, state: HistoricalState) -> list[dict[str, Any]]:
    """The children of a saga as they are now."""
    found = []
    for step, child in state.children.items():
        now = await current_state(opened.log, opened.store, child)
        found.append(
            {
                "step": step,
                "saga_id": child,
                "saga_name": now.saga_name if now is not None else None,
                "status": now.status if now is not None else "pending",
                "branch": (now.branch if now is not None else "") or None,
            }
        )
    return found


MORE_KEYS = (
    "error",
    "started_at",
    "ended_at",
    "parent_saga_id",
    "replay_id",
    "branch",
    "caller_saga_id",
    "caller_step",
)


def show_record(state: HistoricalState, children: list[dict[str, Any]]) -> dict[str, Any]:
    """A saga now, as JSON holds it: the state, its steps, and where it belongs."""
    steps = [
        {"step": name, "status": step.status, "attempts": step.attempt, "error": step.error}
        for name, step in state.steps.items()
    ]
    whole = state.to_dict()
    record = state_record(state) | {"steps": steps, "children": children}
    record |= {"paused": state.paused, "waits_for_person": state.waits_for_person}
    return record | {key: whole[key] or None for key in MORE_KEYS}


# --- cancel ---------------------------------------------------------------------------------------


@command(
    saga,
    "cancel",
    keys="saga_id, saga_name, status, error",
    examples='sagaz-es saga cancel order-4711 --reason "the customer called"',
)
@click.argument("saga_id", metavar="ID")
@click.option("--reason", required=True, help="Recorded in the log, shown in the history.")
@actor_option
@timeout_option
@resources_option
def cancel(
    settings: Settings,
    saga_id: str,
    reason: str,
    actor: str | None,
    timeout_s: float,
    resources: str | None,
) -> None:
    """Stop a running saga and undo what it did.

    The engine that runs it decides; the command waits for that, not for the undoing.
    """

    async def cancel_in(engine: Engine) -> None:
        await engine.cancel(saga_id, reason=reason, actor=actor or user())

    tell(settings, saga_id, cancel_in, timeout_s=timeout_s, resources=resources)
