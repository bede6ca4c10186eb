"""Opening what a command needs: the log and the store for reading, or an engine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, redirect_stdout, suppress
from typing import Any, TypeVar

import click

from sagaz_es.connect import connect, open_blobs, open_log, open_store
from sagaz_es.core.state import SagaState
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.lookup import current_state
from sagaz_es.engine.projector import Projector
from sagaz_es.engine.replayer import ReplayNotFound
from sagaz_es.errors import UnknownSagaName
from sagaz_es.ports import BlobStore, EventLog, ProjectionStore
from sagaz_es_cli import exits, sources
from sagaz_es_cli.options import Settings
from sagaz_es_cli.render import note
from sagaz_es_cli.resources import resources_of

T = TypeVar("T")

CATCH_UP_SECONDS = 60.0
"""How long a command projects what an embedded store lacks before it answers without it."""

WAIT_SECONDS = 2.0
"""How long it waits for a projector elsewhere to reach where the log ended."""

IDLE_SECONDS = 0.25
"""An embedded store that does not move for so long has no projector at work."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work. Ctrl-C and SIGTERM end it tidily, a second one at once.

    That is as harmless as any crash: what was acknowledged stands in the log.
    """
    stopped_by: list[int] = []

    def stop(task: asyncio.Task[Any], number: int) -> None:
        if stopped_by:
            os._exit(exits.SIGNALLED + number)
        stopped_by.append(number)
        task.cancel()

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop, task, number)
        return await work

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        if not stopped_by:
            raise
        raise click.exceptions.Exit(exits.SIGNALLED + stopped_by[0]) from None


class Reading:
    """A log and its store, opened to be asked: no partition is taken, no saga is run."""

    def __init__(
        self, log: EventLog, store: ProjectionStore | None, blobs: BlobStore | None, missing: bool
    ) -> None:
        self.log, self.store, self.blobs = log, store, blobs
        self.missing = missing
        """There is no such log yet: this is an empty one."""

    async def branch(self, replay_id: str) -> SagaState:
        """The branch of a replay, by the replay's id or by its own. Raises ReplayNotFound."""
        entry = await (await self.up_to_date_store()).replay(replay_id)
        saga_id = entry.new_saga_id if entry is not None else replay_id
        state = await current_state(self.log, self.store, saga_id)
        if state is None or not state.replay_id:
            raise ReplayNotFound(replay_id)
        return state

    async def up_to_date_store(self) -> ProjectionStore:
        """The store, at least as far as the log is now; where that takes too long, says so."""
        from sagaz_es.storage.memory import MemoryProjectionStore

        if self.store is None:  # nothing keeps lists of this log: fold it here
            self.store = MemoryProjectionStore()
        projector = Projector(self.log, self.store)
        ours = getattr(self.log, "indexed", False) or isinstance(self.store, MemoryProjectionStore)
        if await self._caught_up(projector, IDLE_SECONDS if ours else WAIT_SECONDS):
            return self.store
        if ours:
            # Nobody is at it. (Beside a projector that is, this one would only get in its way.)
            with suppress(TimeoutError):
                await projector.run_until(timeout_s=CATCH_UP_SECONDS)
        lag = sum(status.lag for status in await projector.status())
        if lag:
            how = "" if ours else "; is `sagaz-es projector run` running?"
            note(f"the store is {lag} records behind the log: newer changes are missing{how}")
        return self.store

    async def _caught_up(self, projector: Projector, idle_s: float) -> bool:
        """Wait for the store to reach where the log ends now, while it comes nearer."""
        loop = asyncio.get_running_loop()
        statuses = await projector.status()
        ends = {status.partition: status.log_end for status in statuses}
        place, moved_at = -1, loop.time()
        end = loop.time() + WAIT_SECONDS
        while any(status.next_offset < ends[status.partition] for status in statuses):
            now = sum(status.next_offset for status in statuses)
            if now > place:
                place, moved_at = now, loop.time()
            if loop.time() > min(end, moved_at + idle_s):
                return False
            await asyncio.sleep(0.05)
            statuses = await projector.status()
        return True


@asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[Reading]:
    """The log and the store of a command that only asks; closed at the end."""
    log, store, missing = await adapters(settings)
    blobs = open_blobs(store)
    parts: tuple[Any, ...] = (store, blobs, log)
    try:
        await log.open()
        if store is not None:
            await store.open()
        yield Reading(log, store, blobs, missing)
    finally:
        for part in parts:
            if part is not None:
                await part.close()


@asynccontextmanager
async def writing(settings: Settings) -> AsyncIterator[tuple[EventLog, ProjectionStore | None]]:
    """The log, made if it is missing, and its store, for what writes without an engine."""
    log = open_log(settings.log)
    store = open_store(settings.store, log)
    try:
        await log.open()
        if store is not None:
            await store.open()
        yield log, store
    finally:
        if store is not None:
            await store.close()
        await log.close()


@asynccontextmanager
async def asking(settings: Settings, timeout_s: float | None = None) -> AsyncIterator[Engine]:
    """An engine that serves no partition: what it is asked to change, others do, in that time."""
    log, store, _ = await adapters(settings)
    config = EngineConfig() if timeout_s is None else EngineConfig(request_seconds=timeout_s)
    made = connect(log, store=store, sagas=sources.load(settings.apps), config=config)
    async with _opened(made, join=False) as it:
        yield it


@asynccontextmanager
async def serving(
    settings: Settings, saga_name: str, resources: str | None = None
) -> AsyncIterator[Engine]:
    """An engine that runs sagas of one name, also those that it finds unfinished.

    Of all code that `--app` names it has only this: what else is unfinished it leaves to others.
    `resources`: where they are, as module:name.
    """
    found = sources.load(settings.apps)
    if saga_name not in found:
        raise UnknownSagaName(saga_name, tuple(found))
    sagas = {saga_name: found[saga_name]}
    with redirect_stdout(sys.stderr):
        async with resources_of(resources) as live:
            made = connect(settings.log, store=settings.store, sagas=sagas, resources=live)
            async with _opened(made, join=True) as it:
                yield it


@contextmanager
def unless_interrupted(what: str) -> Iterator[None]:
    """Say what becomes of `what`, when the wait for it is broken off."""
    try:
        yield
    except asyncio.CancelledError:
        note(f"{what} is unfinished: an engine of this log goes on with it")
        drain = EngineConfig().drain_seconds
        note(f"waiting up to {drain:g} s for the step that runs; once more to stop at once")
        raise


@asynccontextmanager
async def _opened(made: Engine, *, join: bool) -> AsyncIterator[Engine]:
    # What the code of sagas prints goes to stderr: stdout is for the result.
    with redirect_stdout(sys.stderr):
        await made.open(join=join)
        try:
            yield made
        finally:
            await made.close()


async def adapters(settings: Settings) -> tuple[EventLog, ProjectionStore | None, bool]:
    """Log and store, not opened yet, of a command that only asks, and whether they are missing.

    A log is not made by asking: an empty one stands for it.
    """
    log = open_log(settings.log)
    missing = await missing_place(log)
    if not missing:
        return log, open_store(settings.store, log), False
    from sagaz_es.log.memory import MemoryEventLog
    from sagaz_es.storage.memory import MemoryProjectionStore

    note(f"there is no {missing} yet; the first saga makes it")
    return MemoryEventLog(name=log.name), MemoryProjectionStore(), True


async def missing_place(log: EventLog) -> str:
    """The file or topic of a log that does not exist yet; empty: it does. Raises Unreachable."""
    topic = getattr(log, "topic", None)
    if topic is not None:
        _, facts = await inspect(log)
        return "" if facts.partitions else f"topic {topic!r}"
    path = getattr(log, "path", None)
    return f"log file {path!r}" if path is not None and _can_be_made(path) else ""


def _can_be_made(path: str) -> bool:
    # Where its directory is missing too, opening it says so.
    return not os.path.exists(path) and os.path.exists(os.path.dirname(path))


async def inspect(log: Any) -> Any:
    """What makes the topic of a Kafka log unsuitable, and what it is like. Raises Unreachable."""
    from sagaz_es.log.kafka_admin import inspect_topic

    return await inspect_topic(log.access, log.topic)
