"""`sagaz-es replay …`: plan a replay, run it, take it back; and the past of a saga."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from sagaz_es.core.plan import ReplayPlan, Verdict
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.replayer import ReplayResult
from sagaz_es_cli import exits
from sagaz_es_cli.asking import by_whoever_serves, need_engines_or_code, user
from sagaz_es_cli.history import add_list_changes, add_time_travel
from sagaz_es_cli.opening import asking, reading, run, unless_interrupted
from sagaz_es_cli.options import AnyFunction, Group, Settings, command, resources_option
from sagaz_es_cli.overrides import parse_overrides
from sagaz_es_cli.render import Block, Fields, Line, cells, emit, note
from sagaz_es_cli.tables import Column, Rows


@click.group(cls=Group)
def replay() -> None:
    """Plan and run replays, take them back, and look at the past of a saga."""


def _point_options(function: AnyFunction) -> AnyFunction:
    """What `plan` and `run` both need to make the plan."""
    for option in (
        click.option(
            "--force-failure",
            is_flag=True,
            help="Let that step fail without calling its action, to rehearse the compensation.",
        ),
        click.option(
            "--allow",
            metavar="STEP",
            multiple=True,
            help="Let a blocked step happen again, although its effect stands. Repeatable.",
        ),
        click.option(
            "-o",
            "--override",
            "overrides",
            metavar="JSON|KEY=VALUE",
            multiple=True,
            help="Change the context: a JSON object, or key=value, where the value is JSON if it "
            "reads as such, else text. Repeatable.",
        ),
        click.option(
            "-s", "--from-step", metavar="STEP", required=True, help="The first step to run again."
        ),
        click.argument("saga_id", metavar="ID"),
    ):
        function = option(function)
    return function


# --- plan -----------------------------------------------------------------------------------------


@command(
    replay,
    "plan",
    keys="saga_id, from_step, digest, blocked, steps (a list of step, verdict, reason)",
    examples="""
        sagaz-es replay plan order-4711 --from-step charge
        sagaz-es replay plan order-4711 -s charge --override '{"token": "new"}' -o amount=12
        """,
)
@_point_options
def plan(
    settings: Settings,
    saga_id: str,
    from_step: str,
    overrides: tuple[str, ...],
    allow: tuple[str, ...],
    force_failure: bool,
) -> None:
    """Show what a replay of saga ID would do with each step; nothing happens.

    Status 0 also for a plan that is blocked: running it would be refused.
    """
    override = parse_overrides(overrides)

    async def work() -> ReplayPlan:
        async with asking(settings, reading=True) as engine:
            return await engine.plan_replay(
                saga_id,
                from_step,
                context_override=override or None,
                allow=allow,
                force_failure=force_failure,
            )

    made = run(work())
    emit(settings.format, plan_record(made), lambda: plan_blocks(made))


def plan_record(plan: ReplayPlan) -> dict[str, Any]:
    """A plan as JSON holds it."""
    return {
        "saga_id": plan.saga_id,
        "from_step": plan.from_step,
        "digest": plan.digest,
        "blocked": plan.blocked,
        "steps": [
            {"step": step.step, "verdict": str(step.verdict), "reason": step.reason}
            for step in plan.steps
        ],
    }


def plan_blocks(plan: ReplayPlan) -> list[Block]:
    """A plan for people: a line for each step, and what it comes to."""
    columns = (
        Column("step"),
        Column("verdict", status=True),
        Column("reason", free="wrap"),
    )
    rows = [cells(step.step, str(step.verdict), step.reason) for step in plan.steps]
    counts = Counter(step.verdict for step in plan.steps)
    total = [f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]]
    blocks: list[Block] = [
        Rows(columns, rows, title=f"replay of {plan.saga_id} from {plan.from_step}"),
        Line(f"{', '.join(total)}; plan {plan.digest}"),
    ]
    if plan.blocked:
        allowed = " ".join(f"--allow {step}" for step in plan.blockers)
        blocks.append(
            Line(f"running it is refused; if these may happen again: {allowed}", "bold red")
        )
    return blocks


# --- run ------------------------------------------------------------------------------------------


@command(
    replay,
    "run",
    keys="status, replay_id, original_saga_id, new_saga_id, plan, error",
    examples="""
        sagaz-es replay run order-4711 --from-step charge --dry-run
        sagaz-es replay run order-4711 --from-step charge --app shop.sagas:OrderSaga
        sagaz-es replay run order-4711 -s charge --override '{"token": "new"}' --app shop.sagas
        sagaz-es replay run order-4711 -s ship --allow ship --reason "parcel lost" --app shop.sagas
        """,
)
@_point_options
@click.option("-d", "--dry-run", is_flag=True, help="Show the plan, check it, run nothing.")
@click.option("--reason", default="", help="Recorded in the log.")
@click.option("--actor", metavar="WHO", help="Recorded too; default: your user name.")
@resources_option
def run_replay(
    settings: Settings,
    saga_id: str,
    from_step: str,
    overrides: tuple[str, ...],
    allow: tuple[str, ...],
    force_failure: bool,
    dry_run: bool,
    reason: str,
    actor: str | None,
    resources: str | None,
) -> None:
    """Replay saga ID from a step, as a branch with an id of its own, and show how it ended.

    The history of ID stays as it is. Where engines serve the log the branch runs there; where none
    does, this process runs it, and needs the saga's code (--app).
    """
    override = parse_overrides(overrides)

    async def plan_in(engine: Engine) -> ReplayPlan:
        return await engine.plan_replay(
            saga_id,
            from_step,
            context_override=override or None,
            allow=allow,
            force_failure=force_failure,
        )

    async def replay_in(engine: Engine, plan: ReplayPlan) -> ReplayResult:
        who = actor or user()
        return await engine.replay(plan, actor=who, reason=reason, dry_run=dry_run)

    async def work() -> ReplayResult:
        if not dry_run:
            await need_engines_or_code(settings, "replay run")
        async with asking(settings) as engine:
            plan = await plan_in(engine)
            if dry_run:
                if plan.saga_name not in engine.registry:
                    note(
                        f"without --app it is not checked whether the code of {plan.saga_name} fits"
                    )
                return await replay_in(engine, plan)

        async def run_in(engine: Engine) -> ReplayResult:
            with unless_interrupted(f"the replay of {saga_id!r}, if it has begun,"):
                return await replay_in(engine, await plan_in(engine))

        return await by_whoever_serves(settings, plan.saga_name, run_in, resources, "replay run")

    result = run(work())
    record = result_record(result)
    emit(settings.format, record, lambda: result_blocks(result, record))
    if dry_run and _refused(result):
        raise click.exceptions.Exit(exits.REFUSED)
    if not result.success:
        raise click.exceptions.Exit(exits.FAILED)


_RUNNING = {"pending", "executing", "compensating", "forward_recovery"}


def _refused(result: ReplayResult) -> bool:
    """Whether the plan itself says that running it would be refused."""
    plan = result.plan
    return plan is not None and (plan.blocked or plan.head_status in _RUNNING)


def result_record(result: ReplayResult) -> dict[str, Any]:
    """What became of a replay, as JSON holds it."""
    return {
        "status": str(result.status),
        "replay_id": result.replay_id,
        "original_saga_id": result.original_saga_id,
        "new_saga_id": result.new_saga_id,
        "plan": plan_record(result.plan) if result.plan is not None else None,
        "error": result.error_message,
    }


def result_blocks(result: ReplayResult, record: dict[str, Any]) -> list[Block]:
    """What became of a replay, for people: the plan, then the outcome."""
    blocks = plan_blocks(result.plan) if result.plan is not None else []
    fields = [
        ("status", record["status"]),
        ("replay", record["replay_id"]),
        ("original saga", record["original_saga_id"]),
        ("new saga", record["new_saga_id"]),
        ("it ended", str(result.saga_status) if result.saga_status else None),
        ("error", record["error"]),
    ]
    if result.dry_run:
        return [*blocks, Line("dry run: nothing has run"), Fields(fields[:2] + fields[-1:])]
    return [*blocks, Fields(fields)]


# --- undo -----------------------------------------------------------------------------------------


@command(
    replay,
    "undo",
    keys="as `replay run`; plan is null",
    examples="""
        sagaz-es replay undo 5b1f… --app shop.sagas
        sagaz-es replay undo 5b1f… --reason "wrong address" --app shop.sagas
        """,
)
@click.argument("replay_id", metavar="REPLAY_ID")
@click.option("--reason", default="", help="Recorded in the log.")
@click.option("--actor", metavar="WHO", help="Recorded too; default: your user name.")
@resources_option
def undo(
    settings: Settings, replay_id: str, reason: str, actor: str | None, resources: str | None
) -> None:
    """Compensate what the branch of a replay did; what it only reused stays.

    REPLAY_ID is the replay's id or its branch's saga id. A second undo does nothing. Done by the
    engines that serve the log; where none does, by this process with the saga's code (--app).
    """

    async def work() -> ReplayResult:
        await need_engines_or_code(settings, "replay undo")
        async with reading(settings) as opened:
            branch = await opened.branch(replay_id)

        async def undo_in(engine: Engine) -> ReplayResult:
            # By the branch's id, which is found at once: this process may have no store.
            return await engine.undo_replay(branch.saga_id, actor=actor or user(), reason=reason)

        return await by_whoever_serves(
            settings, branch.saga_name, undo_in, resources, "replay undo"
        )

    result = run(work())
    record = result_record(result)
    emit(settings.format, record, lambda: result_blocks(result, record))
    if not result.success:
        raise click.exceptions.Exit(exits.FAILED)


add_time_travel(replay)
add_list_changes(replay)
