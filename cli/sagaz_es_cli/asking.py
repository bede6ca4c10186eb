"""Asking the engine that serves a saga for something, and what becomes of it where none does.

The request is in the log before anybody answers it. If no engine answers soon, and the saga's code
is at hand, this process joins, finds the request like any other engine, and carries the saga on.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from typing import Any

from sagaz_es.core.state import SagaState
from sagaz_es.engine.engine import Engine
from sagaz_es_cli.opening import asking, run, serving, unless_interrupted
from sagaz_es_cli.options import Settings
from sagaz_es_cli.render import Line, emit, note

Ask = Callable[[Engine], Awaitable[object]]

PATIENCE_SECONDS = 2.0
"""An engine that runs answers sooner. To join beside one would take its sagas away from it."""

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
    failed = state.error_type or state.failed_step
    return {
        "saga_id": state.saga_id,
        "saga_name": state.saga_name,
        "status": state.status,
        "error": f"{state.failed_step}: {state.error_type}: {state.error_message}"
        if failed
        else None,
    }


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
