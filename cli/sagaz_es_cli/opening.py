"""Opening what a command needs: the log and the store for reading, or an engine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, redirect_stdout, suppress
from typing import Any, TypeVar

import click

from sagaz_es.connect import connect, open_blobs, open_log, open_store
from sagaz_es.core.state import SagaState
from sagaz_es.databases.sqlite import tables_in
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.registry import Registry
from sagaz_es.engine.replayer import ReplayNotFound
from sagaz_es.engine.steps.containment import contain_exits
from sagaz_es.errors import SagaSetAside, StorageFailed, UnknownSagaName
from sagaz_es.log import sqlite_file
from sagaz_es.ports import BlobStore, EventLog, ProjectionStore
from sagaz_es.reading.lookup import STORE_DOWN, current_state, find_branch
from sagaz_es.reading.projection import verify_store
from sagaz_es.reading.projector import Projector
from sagaz_es_cli import exits, sources
from sagaz_es_cli.options import Settings
from sagaz_es_cli.render import counted, note, waiting
from sagaz_es_cli.resources import resources_of

T = TypeVar("T")

CATCH_UP_SECONDS = 60.0
"""How long a command projects what an embedded store lacks before it answers without it."""

WAIT_SECONDS = 2.0
"""How long it waits for a projector elsewhere to reach where the log ended."""

FAILURES = 3
"""So often in a row, within half a second, a store may fail before a command goes on without."""

BRIEFLY = EngineConfig(refuse_unknown=False)
"""For an engine that stands in for workers, which have more classes than it."""

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
        contain_exits(loop)
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
        self.behind = False
        """The store has less than the log, and that was said."""

    async def branch(self, replay_id: str) -> SagaState:
        """The branch of a replay, by the replay's id or by its own. Raises ReplayNotFound."""
        state = await find_branch(self.log, await self.up_to_date_store(), replay_id)
        if state is None:
            raise ReplayNotFound(replay_id)
        return state

    async def set_aside(self, saga_ids: Collection[str]) -> dict[str, str]:
        """Which of these sagas the store keeps only up to a record that cannot be read, and why."""
        if self.store is None:
            return {}
        found: dict[str, str] = {}
        for partition in {self.log.partition_of(saga_id) for saga_id in saga_ids}:
            for saga_id in (await self.store.parked_sagas(partition)).intersection(saga_ids):
                try:
                    await current_state(self.log, self.store, saga_id)
                except SagaSetAside as error:
                    found[saga_id] = str(error)
                else:
                    parked = await self.store.parked_of(partition, saga_id)
                    place = f" from offset {parked[0].offset} on" if parked else ""
                    found[saga_id] = f"records of partition {partition}{place} are set aside"
        return found

    async def up_to_date_store(self) -> ProjectionStore:
        """The store, at least as far as the log is now; where that takes too long, says so."""
        from sagaz_es.storage.memory import MemoryProjectionStore

        if self.store is None:  # nothing keeps lists of this log: fold it here
            self.store = MemoryProjectionStore()
        projector = Projector(self.log, self.store)
        ours = getattr(self.log, "indexed", False) or isinstance(self.store, MemoryProjectionStore)
        if await self._caught_up(projector, IDLE_SECONDS if ours else WAIT_SECONDS):
            return self.store
        # Nobody is at it. (Beside a projector that is, this one would only get in its way.)
        why = ""
        if ours:
            if getattr(self.store, "read_only", False):  # made anew, in memory
                self.store = MemoryProjectionStore()
                projector = Projector(self.log, self.store)
            with waiting("the store catches up with the log"):
                why = await catch_up(self.log, self.store)
        lag = sum(status.lag for status in await projector.status())
        self.behind = bool(lag)
        if lag:
            how = why if ours else "is `sagaz-es projector run` running?"
            more = f"; {how}" if how else ""
            note(
                f"the store is {counted(lag, 'record')} behind the log: newer changes are "
                f"missing{more}"
            )
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


async def catch_up(log: EventLog, store: ProjectionStore) -> str:
    """Project what an embedded store lacks; why that did not succeed, empty: it did."""
    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        if len(failures) >= FAILURES:
            work.cancel()

    projector = Projector(log, store, on_failure=failed)
    work = asyncio.create_task(projector.run_until(timeout_s=CATCH_UP_SECONDS))
    try:
        await asyncio.wait({work})
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    error = None if work.cancelled() else work.exception()
    if error is not None and not isinstance(error, TimeoutError):
        raise error
    if failures and (error is not None or work.cancelled()):
        return exits.sentence_of(failures[-1])
    return f"it was not done within {CATCH_UP_SECONDS:g} s" if error is not None else ""


@asynccontextmanager
async def reading(settings: Settings, *, needs_store: bool = False) -> AsyncIterator[Reading]:
    """The log and the store of a command that only asks; closed at the end.

    `needs_store`: what is asked for is in no log, so that a store that is down is an error.
    """
    log, store, missing = await adapters(settings, reading=True)
    parts: list[Any] = [log, store]
    try:
        await log.open()
        store = await _opened_store(log, store, needs_store)
        blobs = open_blobs(store)
        parts += [store, blobs]
        yield Reading(log, store, blobs, missing)
    finally:
        for part in reversed(parts):
            if part is not None:
                await part.close()


async def _opened_store(
    log: EventLog, store: ProjectionStore | None, needed: bool
) -> ProjectionStore | None:
    """The store, seen to be this log's; an empty one in its place if it is down, or not made yet:
    then the log answers. Raises StoreOfAnotherLog."""
    if store is None:
        return None
    try:
        if not await is_made(store):
            return nothing_yet(store)
        await store.open()
        await verify_store(log, store)
    except STORE_DOWN as error:
        if needed:
            raise
        from sagaz_es.storage.memory import MemoryProjectionStore

        sentence = exits.sentence_of(error)
        end = "" if sentence.endswith("?") else "."
        note(f"{sentence}{end} The log answers alone, from its beginning")
        return MemoryProjectionStore()
    return store


@asynccontextmanager
async def writing(
    settings: Settings, *, makes_log: bool = False, opens_store: bool = True
) -> AsyncIterator[tuple[EventLog, ProjectionStore | None]]:
    """The log and its store, for what writes without an engine; the log is made if it is missing.

    Unless `makes_log`, it is not made in a file that holds something else. Unless `opens_store`,
    the store is not opened yet.
    """
    log = open_log(settings.log)
    if not makes_log:
        await missing_place(log)
    store = open_store(settings.store, log)
    if store is not None:
        check_file(store, log)
    try:
        await log.open()
        if store is not None and opens_store:
            await store.open()
        yield log, store
    finally:
        if store is not None:
            await store.close()
        await log.close()


@asynccontextmanager
async def asking(
    settings: Settings, timeout_s: float | None = None, *, reading: bool = False
) -> AsyncIterator[Engine]:
    """An engine that serves no partition: what it is asked to change, others do, in that time.

    `reading`: it is asked to change nothing.
    """
    log, store, _ = await adapters(settings, reading=reading)
    if store is not None and store.name != log.name:
        await log.open()
        store = await _opened_store(log, store, False)
    config = EngineConfig() if timeout_s is None else EngineConfig(request_seconds=timeout_s)
    made = connect(log, store=store, sagas=sources.load(settings.apps), config=config)
    async with _opened(made, join=False) as it:
        yield it


@asynccontextmanager
async def serving(
    settings: Settings, saga_name: str, resources: str | None = None
) -> AsyncIterator[Engine]:
    """An engine that runs sagas of one name, and those that they start, also unfinished ones.

    Of all code that `--app` names it has only this: what else is unfinished, or asked for, it
    leaves to others.
    `resources`: where they are, as module:name.
    """
    found = sources.load(settings.apps)
    with redirect_stdout(sys.stderr):
        code = Registry(found)
        if saga_name not in code:
            raise UnknownSagaName(saga_name, tuple(found))
        sagas = {name: found[name] for name in code.needed_by(saga_name) if name in found}
        async with resources_of(resources) as live:
            made = connect(
                settings.log, store=settings.store, sagas=sagas, resources=live, config=BRIEFLY
            )
            async with _opened(made, join=True) as it:
                yield it


@contextmanager
def unless_interrupted(what: str, *, here: bool = True) -> Iterator[None]:
    """Say what becomes of `what`, when the wait for it is broken off. `here`: it runs here."""
    try:
        yield
    except asyncio.CancelledError:
        note(f"{what} is unfinished: an engine of this log goes on with it")
        if not here:
            raise
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


async def adapters(
    settings: Settings, *, reading: bool = False
) -> tuple[EventLog, ProjectionStore | None, bool]:
    """Log and store, not opened yet, of a command that only asks, and whether they are missing.

    A log is not made by asking: an empty one stands for it. `reading`: nothing is written, so that
    read-only files will do.
    """
    log = open_log(settings.log, reading=reading)
    missing = await missing_place(log)
    from sagaz_es.log.memory import MemoryEventLog
    from sagaz_es.storage.memory import MemoryProjectionStore

    if not missing:
        store = open_store(settings.store, log, reading=reading)
        if store is not None and not check_file(store, log):
            store = nothing_yet(store)
        return log, store, False
    note(f"there is no {missing} yet; the first saga makes it")
    return MemoryEventLog(name=log.name), MemoryProjectionStore(), True


async def is_made(store: ProjectionStore) -> bool:
    """Whether a store on a server has its tables; who only looks does not make them."""
    exists = getattr(store, "exists", None)
    return exists is None or await exists()


def nothing_yet(store: ProjectionStore) -> ProjectionStore:
    """An empty store in the place of one that nobody has made yet."""
    from sagaz_es.storage.memory import MemoryProjectionStore

    note(f"there is no store {store.name} yet: the log answers alone")
    return MemoryProjectionStore()


async def missing_place(log: EventLog) -> str:
    """The file or topic of a log that does not exist yet; empty: it does. Nothing is made.

    Raises Unreachable; NotALog where the file holds something else.
    """
    topic = getattr(log, "topic", None)
    if topic is not None:
        _, facts = await inspect(log)
        return "" if facts.partitions else f"topic {topic!r}"
    path = getattr(log, "path", None)
    return f"log file {path!r}" if path is not None and _can_be_made(path) else ""


def _can_be_made(path: str) -> bool:
    # Where its directory is missing too, opening it says so.
    return os.path.exists(os.path.dirname(path)) and not sqlite_file.exists(path)


def check_file(store: ProjectionStore, log: EventLog) -> bool:
    """Whether the file of a SQLite store is there. Raises StorageFailed: it holds something else.

    In the log's own file a store is made when it is first needed.
    """
    path = getattr(store, "path", None)
    if path is None or os.path.realpath(path) == getattr(log, "path", None):
        return True
    tables = tables_in(path)
    if tables is not None and not tables & {"sagaz_versions", "sagaz_log"}:
        raise StorageFailed(
            path, "it is not a sagaz store; nothing was changed there; name another with --store"
        )
    return tables is not None


async def inspect(log: Any) -> Any:
    """What makes the topic of a Kafka log unsuitable, and what it is like. Raises Unreachable."""
    from sagaz_es.log.kafka_admin import inspect_topic

    return await inspect_topic(log.access, log.topic)
