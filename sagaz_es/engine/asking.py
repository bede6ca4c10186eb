"""A request to the engine that has a saga: put into the log, and its answer waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from sagaz_es import errors
from sagaz_es.core import events as e
from sagaz_es.errors import RequestRefusedError, SagaError

if TYPE_CHECKING:
    from sagaz_es.engine.host import Host
    from sagaz_es.ports import Record

LINE_SECONDS = 2.0
"""Who has heard nothing of a start for so long goes on: it stands, and waits for its turn, or for
somebody to serve it."""


async def ask(
    host: Host,
    request: e.Request,
    answer: Callable[[e.Fact], bool],
    stands: Callable[[], Awaitable[bool]] | None = None,
    confirmed: Callable[[], Awaitable[bool]] | None = None,
    *,
    patience_s: float | None = None,
) -> e.Fact | None:
    """Append a request and wait for the fact that answers it. None: `stands`, which is asked
    once nothing can be missed any more, knows that it was answered before; or nobody has
    answered within `patience_s`. `confirmed` is asked when a fact answers: an engine that had
    lost the saga may have written it, and then the fold rejects it.

    Raises what the saga's writer refused it with; TimeoutError after `request_seconds`, when no
    engine serves the partition (the request stays in the log).
    """
    partition = host.log.partition_of(request.saga_id)
    loop = asyncio.get_running_loop()
    found: asyncio.Future[e.Fact] = loop.create_future()

    def hear(record: Record | None) -> None:
        entry = record.entry if record is not None else None
        if found.done():
            return
        if isinstance(entry, e.RequestRefused) and entry.request_id == request.request_id:
            found.set_exception(refusal(entry))
        elif isinstance(entry, e.Event) and answer(entry.fact):
            found.set_result(entry.fact)

    offset = (await host.log.bounds(partition)).end
    tail = host.tail(partition)
    tail.listen(request.saga_id, offset, hear)
    try:
        if stands is not None and await stands():
            return None
        await host.log.append(partition, [request])
        if patience_s is not None:
            await asyncio.wait([found], timeout=min(patience_s, host.config.request_seconds))
            if not found.done():
                return None
        async with asyncio.timeout(host.config.request_seconds):
            while True:
                fact = await found
                found = loop.create_future()  # what comes while one looks is heard, too
                if confirmed is None or await confirmed():
                    return fact
    except TimeoutError:
        raise TimeoutError(
            f"no engine answered within {host.config.request_seconds:g} s: is one running that "
            f"serves partition {partition} of {host.log.name}, and has the saga's class? The "
            "request stays in the log"
        ) from None
    finally:
        tail.ignore(request.saga_id, hear)
        if found.done() and not found.cancelled():
            found.exception()  # a refusal behind the answer is nobody's affair


def refusal(answer: e.RequestRefused) -> SagaError:
    """The error that a request was refused with, by its class and sentence."""
    kind = getattr(errors, answer.error, RequestRefusedError)
    if not (isinstance(kind, type) and issubclass(kind, SagaError)):
        kind = RequestRefusedError

    class Refused(kind):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            Exception.__init__(self, answer.message)

        def __str__(self) -> str:
            return answer.message

    Refused.__name__ = Refused.__qualname__ = kind.__name__
    return Refused()
