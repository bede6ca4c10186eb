"""Asking the engine that serves a saga for something, and what becomes of it where none does.

The request is in the log before anybody answers it. If no engine answers soon, and the saga's code
is at hand, this process joins, finds the request like any other engine, and carries the saga on.

To join beside engines that run would take partitions away from them, and give them back at the
command's end: who only wants something done asks.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from sagaz_es.connect import group_of, open_log
from sagaz_es.core.state import SagaState
from sagaz_es.engine.engine import Engine
from sagaz_es_cli.opening import asking, missing_place, run, serving, unless_interrupted
from sagaz_es_cli.options import Settings
from sagaz_es_cli.render import Line, emit, note

T = TypeVar("T")
Ask = Callable[[Engine], Awaitable[object]]

PATIENCE_SECONDS = 2.0
"""An engine that runs answers sooner. To join beside one would take its sagas away from it."""

LOOK_SECONDS = 1.0
"""How often a command that waits for a saga looks whether anybody serves the log."""

STATE_KEYS = "saga_id, saga_name, status, error"


def user() -> str:
    """Who gives a command, for the record."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a user of that number
        return ""


def tell(
    settings: Settings,
    saga_id: str,
    ask: Ask,
    *,
    timeout_s: float,
    resources: str | None,
) -> None:
    """Ask for something, and show how the saga stands then."""

    state = run(asked(settings, saga_id, ask, timeout_s=timeout_s, resources=resources))
    record = state_record(state)
    emit(settings.format, record, lambda: [Line(f"saga {saga_id} is {state.status}")])


def state_record(state: SagaState) -> dict[str, Any]:
    """How a saga stands, in short, as JSON holds it."""
    return {
        "saga_id": state.saga_id,
        "saga_name": state.saga_name,
        "status": state.status,
        "error": state.error_text or None,
    }


async def members(settings: Settings) -> int:
    """How many engines serve the log, in the group that its URL names."""
    log = open_log(settings.log)
    if await missing_place(log):
        return 0
    await log.open()
    try:
        return await log.members(group=group_of(settings.log))
    finally:
        await log.close()


async def need_engines_or_code(settings: Settings, command: str) -> int:
    """How many engines serve the log. Raises UsageError if none does and no code was named."""
    count = await members(settings)
    if not count:
        named = group_of(settings.log)
        where = f"group {named!r} of the log" if named else "the log"
        hint = "" if named else " (if those of a named group do, add ?group=NAME to its URL)"
        settings.need_code(f"no engine serves {where}{hint}; {command}")
    return count


async def by_whoever_serves(
    settings: Settings,
    saga_name: str,
    work: Callable[[Engine], Awaitable[T]],
    resources: str | None,
    command: str,
) -> T:
    """What `work` gives, which starts a saga and waits for it: by an engine that asks, as long as
    engines serve the log; else by one that joins and runs it here."""
    count = await need_engines_or_code(settings, command)
    if not count:
        async with serving(settings, saga_name, resources) as own:
            return await work(own)
    serve = "engines serve" if count > 1 else "engine serves"
    note(f"{count} {serve} this log: the saga runs there")
    group = group_of(settings.log)
    async with asking(settings) as engine:
        answer = asyncio.ensure_future(work(engine))
        told = False
        try:
            while not answer.done():
                await asyncio.wait({answer}, timeout=LOOK_SECONDS)
                if answer.done() or told or await engine.log.members(group=group):
                    continue
                told = True
                if settings.apps:
                    note("no engine serves the log any more: this process joins and runs the saga")
                    async with serving(settings, saga_name, resources):
                        await asyncio.wait({answer})
                else:
                    note("no engine serves the log any more: the saga goes on when one starts")
            return await answer
        finally:
            answer.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(answer, return_exceptions=True)


async def asked(
    settings: Settings,
    saga_id: str,
    ask: Ask,
    *,
    timeout_s: float,
    resources: str | None,
) -> SagaState:
    """Ask, by an engine that serves nothing; the saga as it stands then.

    Raises TimeoutError where nobody answered: the request stays in the log.
    """
    async with asking(settings, timeout_s) as engine:
        saga_name = (await engine.current(saga_id)).saga_name
        answer = asyncio.ensure_future(ask(engine))
        try:
            patience = PATIENCE_SECONDS if settings.apps else None
            await asyncio.wait({answer}, timeout=patience)
            if not answer.done() and settings.apps:
                note("no engine has answered yet: this process joins and carries the saga on")
                async with serving(settings, saga_name, resources) as own:
                    with unless_interrupted(f"saga {saga_id!r}"):
                        await answer
                        while own.host.runner_of(saga_id):  # noqa: ASYNC110 - or until it parks
                            await asyncio.sleep(0.02)
            await answer
            return await engine.current(saga_id)
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
