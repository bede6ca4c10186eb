"""The projector as a program: all partitions, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from sagaz_es.errors import AccessRefused, SagaError, Unreachable
from sagaz_es.ports import EventLog, ProjectionStore
from sagaz_es.reading.projector import PartitionStatus, Projector

logger = logging.getLogger("sagaz_es.projector")

Progress = Callable[[tuple[PartitionStatus, ...]], None]
"""Told now and then how far each partition is."""

LAST_LOOK_S = 1.0
"""Who is told to stop does not wait longer to say how far it came: the next one finds out."""


async def run(
    log: EventLog,
    store: ProjectionStore,
    *,
    stop: asyncio.Event | None = None,
    partitions: Iterable[int] | None = None,
    projector: Projector | None = None,
    on_progress: Progress | None = None,
    every_s: float = 5.0,
) -> tuple[PartitionStatus, ...]:
    """Project until `stop` is set; how far it came, or was when log and store last told. Both are
    opened, and left open.

    While the store is down it waits and loses nothing, also at the beginning. Killing it at any
    moment is safe, too. Raises Unreachable if the log cannot be opened; of the store AccessRefused
    and StorageFailed, which do not pass by themselves; else what `Projector.run` raises.
    """
    await log.open()
    await _open_unless_away(store)
    projector = projector or Projector(log, store)
    reached: tuple[PartitionStatus, ...] = ()
    work = asyncio.create_task(projector.run(partitions))
    stopped = asyncio.create_task(_until(stop))
    try:
        while True:
            done, _ = await asyncio.wait(
                {work, stopped}, timeout=every_s, return_when=asyncio.FIRST_COMPLETED
            )
            if work in done:
                _raise_first(work)
            if done:
                break
            if on_progress is not None:
                reached = await _reached(projector, reached)
                on_progress(reached)
    finally:
        for task in (work, stopped):
            task.cancel()
        await asyncio.gather(work, stopped, return_exceptions=True)
    try:
        async with asyncio.timeout(LAST_LOOK_S):
            return await _reached(projector, reached)
    except TimeoutError:
        return reached


async def _open_unless_away(store: ProjectionStore) -> None:
    try:
        await store.open()
    except AccessRefused:
        raise
    except Unreachable as error:  # each call of the projector connects anew, until one succeeds
        logger.warning("the projector waits: %s", error)


async def _reached(
    projector: Projector, before: tuple[PartitionStatus, ...]
) -> tuple[PartitionStatus, ...]:
    """How far it is; while log or store do not tell, how far it was."""
    try:
        return await projector.status()
    except (SagaError, OSError):
        return before


async def _until(stop: asyncio.Event | None) -> None:
    await (stop or asyncio.Event()).wait()


def _raise_first(work: asyncio.Task[None]) -> None:
    """What made the projector end, and not the group that it happened in."""
    error = work.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error


@contextmanager
def stop_at_signals(*signals: signal.Signals) -> Iterator[asyncio.Event]:
    """An event that SIGINT or SIGTERM sets, for `run(stop=…)`; in a running event loop."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    chosen = signals or (signal.SIGINT, signal.SIGTERM)
    for number in chosen:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in chosen:
            loop.remove_signal_handler(number)
