"""`sagaz-es doctor`: whether log, store and projector are as a history needs them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from sagaz_es.connect import open_log, open_store
from sagaz_es.core.state import SagaStatus
from sagaz_es.errors import SagaError
from sagaz_es.ports import EventLog, ProjectionStore
from sagaz_es_cli import exits, sources
from sagaz_es_cli.exits import sentence_of
from sagaz_es_cli.opening import check_file, inspect, is_made, missing_place, run
from sagaz_es_cli.options import Settings, command
from sagaz_es_cli.render import Block, cells, counted, emit
from sagaz_es_cli.tables import Column, Rows

OK, LOOK, WRONG = "ok", "look", "wrong"
PARKED_SHOWN = 100

ATTENTION = (SagaStatus.FAILED, SagaStatus.FORWARD_RECOVERY)
"""Sagas that wait for a person."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `result`: ok, look (a person may want to), wrong."""

    check: str
    result: str
    found: str
    advice: str = ""


def add_doctor(group: click.Group) -> None:
    """Add `doctor` to a group."""

    @command(
        group,
        "doctor",
        keys="a list of check, result (ok, look, wrong), found, advice",
        examples="""
            sagaz-es doctor
            sagaz-es doctor --log kafka://broker:9092/orders --store postgresql://db/sagas
            """,
    )
    def doctor(settings: Settings) -> None:
        """Check log, store, projector and the code of sagas, and say what to do.

        Status 1: something is wrong.
        """

        async def work() -> list[Check]:
            return [check async for check in checks(settings)]

        found = run(work())

        def view() -> list[Block]:
            columns = (
                Column("check"),
                Column("result", status=True),
                Column("found", free="wrap"),
                Column("what to do", below=True),
            )
            rows = [cells(check.check, check.result, check.found, check.advice) for check in found]
            return [Rows(columns, rows)]

        emit(settings.format, [asdict(check) for check in found], view)
        if any(check.result == WRONG for check in found):
            raise click.exceptions.Exit(exits.FAILED)


async def checks(settings: Settings) -> AsyncIterator[Check]:
    """Everything that can be looked at, in turn."""
    if settings.apps:
        yield _app(settings.apps)
    log = open_log(settings.log, reading=True)
    try:
        if missing := await missing_place(log):
            advice = "the first saga makes it; or is it another --log?"
            yield Check("log", WRONG, f"there is no {missing}", advice)
            return
        async for check in _log(log):
            yield check
            if check.result == WRONG and check.check == "log":
                return
        async for check in _store(open_store(settings.store, log, reading=True), log):
            yield check
    except (SagaError, OSError) as error:
        served = getattr(log, "path", None) is None
        advice = f"is the address right{', and the server running' if served else ''}?"
        yield Check("log", WRONG, sentence_of(error), advice)
    finally:
        await log.close()


def _app(apps: tuple[str, ...]) -> Check:
    try:
        found = sources.load(apps)
    except SagaError as error:
        return Check("app", WRONG, str(error), "mend it, or name another --app")
    return Check("app", OK, f"sagas: {', '.join(found)}")


# --- the log --------------------------------------------------------------------------------------


async def _log(log: EventLog) -> AsyncIterator[Check]:
    if hasattr(log, "topic"):
        async for check in _topic(log):
            yield check
    try:
        await log.open()
        ends = [await log.bounds(partition) for partition in range(log.partitions)]
    except (SagaError, OSError) as error:
        yield Check("log", WRONG, sentence_of(error), "without a log nothing runs")
        return
    records = sum(bound.end - bound.start for bound in ends)
    found = f"{log.name}: {counted(log.partitions, 'partition')}, {counted(records, 'record')}"
    yield Check("log", OK, found + _size(log))
    if getattr(log, "read_only", False):
        yield Check(
            "file",
            LOOK,
            f"this user cannot write {log.name}, or nothing beside it",
            "enough to look; what runs sagas has to write there: the right user, a full disk?",
        )
    gone = [number for number, bound in enumerate(ends) if bound.start]
    if gone:
        yield Check(
            "history",
            LOOK,
            f"partitions {_numbers(gone)} do not begin at offset 0: older records are gone",
            "is the retention of the topic endless? see `sagaz-es topics create --help`",
        )


def _size(log: EventLog) -> str:
    path = getattr(log, "path", None)
    return f", {Path(path).stat().st_size / 1e6:,.1f} MB" if path is not None else ""


async def _topic(log: Any) -> AsyncIterator[Check]:
    problems, facts = await inspect(log)
    for problem in problems:
        yield Check("topic", WRONG, f"{log.topic}: {problem}", "change it with kafka-configs")
    if facts.without_leader:
        numbers = _numbers(facts.without_leader)
        yield Check("topic", WRONG, f"partitions {numbers} have no leader", "is a broker down?")
    if not problems and not facts.without_leader:
        found = (
            f"{log.topic}: {facts.partitions} partitions, {facts.replication} replica(s) on "
            f"{facts.brokers} broker(s)"
        )
        alone = facts.replication < 2
        advice = "one replica: what its disk loses is lost" if alone else ""
        yield Check("topic", LOOK if alone else OK, found, advice)


# --- store and projector --------------------------------------------------------------------------


async def _store(store: ProjectionStore | None, log: EventLog) -> AsyncIterator[Check]:
    if store is None:
        yield Check(
            "store",
            LOOK,
            "none: lists and snapshots are made anew from the log each time",
            "name one with --store, and let `sagaz-es projector run` keep it",
        )
        return
    try:
        if not check_file(store, log) or not await is_made(store):
            yield Check("store", LOOK, f"there is no {store.name} yet", "a projector makes it")
            return
        await store.open()
    except (SagaError, OSError) as error:
        yield Check(
            "store", WRONG, sentence_of(error), "sagas run without it; lists and snapshots do not"
        )
        return
    try:
        yield Check("store", OK, store.name)
        for look in (_projector, _parked, _attention):
            yield await _tried(look, store, log)
    finally:
        await store.close()


Look = Callable[[ProjectionStore, EventLog], Awaitable[Check]]


async def _tried(look: Look, store: ProjectionStore, log: EventLog) -> Check:
    try:
        return await look(store, log)
    except (SagaError, OSError) as error:
        return Check("store", WRONG, sentence_of(error), "see above, and the log of the server")


async def _projector(store: ProjectionStore, log: EventLog) -> Check:
    lag = 0
    for partition in range(log.partitions):
        bounds = await log.bounds(partition)
        checkpoint = await store.checkpoint(partition)
        next_offset = checkpoint.next_offset if checkpoint is not None else 0
        if next_offset > bounds.end:
            return Check(
                "projector",
                WRONG,
                f"partition {partition}: the store is at {next_offset}, the log ends at "
                f"{bounds.end}: it is another log, or it lost its tail",
                "name the log's own store; or make it anew with `sagaz-es projector rebuild`",
            )
        if next_offset < bounds.start and checkpoint is not None:
            return Check(
                "projector",
                WRONG,
                f"partition {partition}: the store is at {next_offset}, the log begins at "
                f"{bounds.start}: what lay between is lost to the store",
                "make retention endless, then `sagaz-es projector rebuild`",
            )
        lag += bounds.end - max(next_offset, bounds.start)
    if not lag:
        return Check("projector", OK, "the store is up to date")
    found = f"the store is {counted(lag, 'record')} behind the log"
    if getattr(log, "indexed", False):
        return Check("projector", OK, f"{found}: the next engine or command catches up")
    advice = "does it grow? is `sagaz-es projector run` running?"
    return Check("projector", LOOK, found, advice)


async def _parked(store: ProjectionStore, log: EventLog) -> Check:
    parked = await store.parked(PARKED_SHOWN)
    if not parked:
        return Check("parked records", OK, "none")
    first = parked[0]
    many = f"{len(parked)} or more" if len(parked) == PARKED_SHOWN else str(len(parked))
    return Check(
        "parked records",
        WRONG,
        f"{many}, the first of saga {first.saga_id!r} in partition {first.partition} at offset "
        f"{first.offset}: {first.reason}",
        f"its saga is set aside; `sagaz-es projector drive {first.saga_id}` once a newer version "
        "reads it, with --pass-over if the bytes were never ours",
    )


async def _attention(store: ProjectionStore, log: EventLog) -> Check:
    counts = await store.count_by_status()
    waiting = {str(status): counts[status] for status in ATTENTION if counts.get(status)}
    if not waiting:
        total = sum(counts.values())
        return Check("sagas", OK, f"{total:,}; none waits for a person")
    found = ", ".join(f"{count:,} {status}" for status, count in waiting.items())
    return Check("sagas", LOOK, found, f"sagaz-es saga list --status {next(iter(waiting))}")


def _numbers(numbers: Any) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
