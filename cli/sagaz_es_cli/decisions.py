"""`sagaz-es saga signal, pause, resume, recover, resolve`: what a person tells a saga."""

from __future__ import annotations

from typing import Any

import click

from sagaz_es.engine.engine import Engine
from sagaz_es.sagas.definition import RecoveryAction
from sagaz_es_cli.asking import STATE_KEYS, tell, user
from sagaz_es_cli.options import (
    AnyFunction,
    JsonValue,
    Settings,
    actor_option,
    command,
    resources_option,
    timeout_option,
)
from sagaz_es_cli.overrides import parse_overrides

ACTIONS = [str(a) for a in RecoveryAction if a is not RecoveryAction.MANUAL_INTERVENTION]


def add_decisions(group: click.Group) -> None:
    """Add them to a group."""
    for add in (_add_signal, _add_pause, _add_resume, _add_recover, _add_resolve):
        add(group)


def _asking_options(function: AnyFunction) -> AnyFunction:
    for option in (resources_option, timeout_option, actor_option):
        function = option(function)
    return click.argument("saga_id", metavar="ID")(function)


def _add_signal(group: click.Group) -> None:
    @command(
        group,
        "signal",
        keys=STATE_KEYS,
        examples="""
            sagaz-es saga signal order-4711 approved --payload '{"by": "olga"}'
            sagaz-es saga signal order-4711 approved --app shop.sagas
            """,
    )
    @_asking_options
    @click.argument("name")
    @click.option(
        "--payload",
        type=JsonValue(),
        help="What the step finds in ctx.signal; @file reads a file, - stdin.",
    )
    def signal(
        settings: Settings,
        saga_id: str,
        name: str,
        payload: Any,
        actor: str | None,
        timeout_s: float,
        resources: str | None,
    ) -> None:
        """Tell saga ID something that a step of it waits for, or will wait for.

        The engine that serves the saga records it. Where none answers and --app names the code,
        this process carries the saga on until it waits again, or ends.
        """

        async def send(engine: Engine) -> None:
            await engine.signal(saga_id, name, payload, actor=actor or user())

        tell(settings, saga_id, send, timeout_s=timeout_s, resources=resources)


def _add_pause(group: click.Group) -> None:
    @command(
        group,
        "pause",
        keys=STATE_KEYS,
        examples='sagaz-es saga pause order-4711 --reason "the carrier is on strike"',
    )
    @_asking_options
    @click.option("--reason", required=True, help="Recorded in the log, shown in the history.")
    def pause(
        settings: Settings,
        saga_id: str,
        reason: str,
        actor: str | None,
        timeout_s: float,
        resources: str | None,
    ) -> None:
        """Start no further step of saga ID until it is resumed; what runs may end."""

        async def send(engine: Engine) -> None:
            await engine.pause(saga_id, reason=reason, actor=actor or user())

        tell(settings, saga_id, send, timeout_s=timeout_s, resources=resources)


def _add_resume(group: click.Group) -> None:
    @command(group, "resume", keys=STATE_KEYS, examples="sagaz-es saga resume order-4711")
    @_asking_options
    @click.option("--reason", default="", help="Recorded in the log, shown in the history.")
    def resume(
        settings: Settings,
        saga_id: str,
        reason: str,
        actor: str | None,
        timeout_s: float,
        resources: str | None,
    ) -> None:
        """Let a paused saga go on."""

        async def send(engine: Engine) -> None:
            await engine.resume(saga_id, reason=reason, actor=actor or user())

        tell(settings, saga_id, send, timeout_s=timeout_s, resources=resources)


def _add_recover(group: click.Group) -> None:
    @command(
        group,
        "recover",
        keys=STATE_KEYS,
        examples="""
            sagaz-es saga recover order-4711 --step ship --action retry --reason "the van is back"
            sagaz-es saga recover order-4711 --step ship --action retry_with_alternate \\
                --override carrier=courier --reason "the post is on strike"
            """,
    )
    @_asking_options
    @click.option("--step", metavar="STEP", required=True, help="The step that it waits about.")
    @click.option("--action", type=click.Choice(ACTIONS), required=True)
    @click.option(
        "-o",
        "--override",
        "overrides",
        metavar="JSON|KEY=VALUE",
        multiple=True,
        help="Change the context, for retry_with_alternate. Repeatable.",
    )
    @click.option("--reason", required=True, help="Recorded in the log, shown in the history.")
    def recover(
        settings: Settings,
        saga_id: str,
        step: str,
        action: str,
        overrides: tuple[str, ...],
        reason: str,
        actor: str | None,
        timeout_s: float,
        resources: str | None,
    ) -> None:
        """Decide how saga ID, in forward_recovery behind its pivot, goes on."""
        changed = parse_overrides(overrides)

        async def send(engine: Engine) -> None:
            await engine.decide_recovery(
                saga_id,
                step,
                action,
                actor=actor or user(),
                reason=reason,
                context_override=changed or None,
            )

        tell(settings, saga_id, send, timeout_s=timeout_s, resources=resources)


def _add_resolve(group: click.Group) -> None:
    @command(
        group,
        "resolve",
        keys=STATE_KEYS,
        examples="""
            sagaz-es saga resolve order-4711 --step charge --not-happened
            sagaz-es saga resolve order-4711 --step charge --happened --result '{"payment": "p-1"}'
            """,
    )
    @_asking_options
    @click.option("--step", metavar="STEP", required=True, help="The step of unknown outcome.")
    @click.option("--happened", is_flag=True, help="Its effect is in the world.")
    @click.option("--not-happened", is_flag=True, help="It is not. One of both is required.")
    @click.option(
        "--result",
        type=JsonValue(),
        help="What the step would have returned; @file reads a file, - stdin.",
    )
    @click.option("--reason", default="", help="Recorded in the log, shown in the history.")
    def resolve(
        settings: Settings,
        saga_id: str,
        step: str,
        happened: bool,
        not_happened: bool,
        result: Any,
        reason: str,
        actor: str | None,
        timeout_s: float,
        resources: str | None,
    ) -> None:
        """Say what became of a step of unknown outcome; saga ID goes on from there."""
        if happened == not_happened:
            raise click.UsageError("say either --happened or --not-happened")
        if result is not None and not happened:
            raise click.UsageError("--result is of a step that happened")

        async def send(engine: Engine) -> None:
            await engine.resolve_outcome(
                saga_id,
                step,
                happened=happened,
                result=result,
                actor=actor or user(),
                reason=reason,
            )

        tell(settings, saga_id, send, timeout_s=timeout_s, resources=resources)
