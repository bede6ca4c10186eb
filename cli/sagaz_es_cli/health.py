"""The health endpoint of a worker, on the event loop that its sagas run on.

Where that loop does not turn, nobody answers: a probe's time-out is the right answer then.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sagaz_es.engine.health import Health

STUCK_SECONDS = 30.0
"""A process whose append waits for longer is better started anew."""

MAX_REQUESTS = 32
"""Answered at once; more are told to come again."""

Look = Callable[[], Awaitable[Health]]


def record_of(health: Health) -> dict[str, Any]:
    """An engine's health as JSON holds it."""
    oldest = health.oldest_pending_append_s
    return {
        "why_not": health.why_not or None,
        "partitions": list(health.partitions),
        "sagas_in_flight": health.sagas_in_flight,
        "starts_waiting": health.starts_waiting,
        "takeovers_waiting": health.takeovers_waiting,
        "sagas_unfinished": health.sagas_unfinished,
        "sagas_waiting_for_person": health.sagas_waiting_for_person,
        "oldest_pending_append_s": round(oldest, 3) if oldest else None,
        "projector_lag": health.projector_lag,
    }


def alive(health: Health) -> tuple[int, dict[str, Any]]:
    """Whether the process is worth keeping: status and body of `/healthz`."""
    stuck = health.oldest_pending_append_s > STUCK_SECONDS
    return (503 if stuck else 200), {"status": "stuck" if stuck else "ok"} | record_of(health)


def ready(health: Health) -> tuple[int, dict[str, Any]]:
    """Whether it carries sagas on: status and body of `/readyz`."""
    said = "ready" if health.serving else "not ready"
    return (200 if health.serving else 503), {"status": said} | record_of(health)


def application(look: Look) -> Starlette:
    """The two pages; `look` asks the engine."""

    def page(judge: Callable[[Health], tuple[int, dict[str, Any]]]) -> Any:
        async def answer(request: Request) -> JSONResponse:
            status, body = judge(await look())
            return JSONResponse(body, status, headers={"cache-control": "no-store"})

        return answer

    return Starlette(routes=[Route("/healthz", page(alive)), Route("/readyz", page(ready))])


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the worker's: while it drains, the endpoint says so


@asynccontextmanager
async def answering(look: Look, host: str, port: int) -> AsyncIterator[str]:
    """Answer probes meanwhile; gives the URL. Port 0: any that is free. Raises OSError."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=kind)
    except OSError as error:
        why = error.strerror or str(error)
        raise OSError(f"the health endpoint cannot listen on {host}, port {port}: {why}") from error
    server = _Server(
        uvicorn.Config(
            application(look),
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            limit_concurrency=MAX_REQUESTS,
            timeout_graceful_shutdown=1,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listening]), name="sagaz-es health")
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        listening.close()
