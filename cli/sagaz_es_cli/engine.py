"""`sagaz-es engine run`: a worker, which carries sagas on until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import NoReturn

import click

from sagaz_es.connect import INSTANCE_VARIABLE, connect
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.steps.calling import sagas_in_threads
from sagaz_es.errors import MissingDependencyError, SagaError
from sagaz_es_cli import exits, logs, sources
from sagaz_es_cli.ending import end
from sagaz_es_cli.opening import run
from sagaz_es_cli.options import Group, Settings, command, resources_option
from sagaz_es_cli.resources import resources_of

logger = logging.getLogger("sagaz_es.worker")

STOP_SECONDS = 15.0
"""Behind the drain limit: for the last words to a log, a group and a store that do not answer."""

NAMED = 10
"""So many sagas are named in one line."""


@click.group(cls=Group)
def engine() -> None:
    """Workers: processes that carry sagas on."""


@command(
    engine,
    "run",
    examples="""
        sagaz-es engine run --app shop.sagas
        sagaz-es engine run --app shop.sagas --health-port 8080 --log-format json
        sagaz-es engine run --app shop.sagas --resources shop.wiring:resources --instance-id w-1
        """,
)
@click.option(
    "--instance-id",
    metavar="ID",
    envvar=INSTANCE_VARIABLE,
    show_envvar=True,
    help="A name that no other process has: after a crash the next one of this name goes on at "
    "once, without waiting for the session time-out. A clean stop keeps its partitions for that "
    "time, too, unless --leave.",
)
@click.option(
    "--leave",
    is_flag=True,
    help="When it stops, give the place of --instance-id up: the others go on at once. SIGUSR1 "
    "does so once, for a worker that is not to come back.",
)
@click.option(
    "--health-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Answer /healthz and /readyz there; 0: any free port. Default: no endpoint.",
)
@click.option(
    "--health-host",
    metavar="HOST",
    default="127.0.0.1",
    show_default=True,
    help="The address it listens on.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(0),
    metavar="S",
    default=20.0,
    show_default=True,
    help="How long running steps may finish when it stops or loses partitions.",
)
@click.option(
    "--max-in-flight",
    type=click.IntRange(0),
    metavar="N",
    default=EngineConfig().max_in_flight,
    show_default=True,
    help="How many sagas run here at once; starts beyond that wait in the log. 0: any number.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    help="How many plain functions (def) of sagas run at once; others wait for a thread. Default: "
    "four more than there are cores, at most 32.",
)
@click.option("--log-format", type=click.Choice(logs.FORMATS), default="text", show_default=True)
@click.option("--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True)
@resources_option
def run_engine(
    settings: Settings,
    instance_id: str | None,
    leave: bool,
    health_port: int | None,
    health_host: str,
    drain_seconds: float,
    max_in_flight: int,
    threads: int | None,
    log_format: str,
    log_level: str,
    resources: str | None,
) -> None:
    """Serve a share of the log's sagas until told to stop.

    Workers of one log share its partitions. SIGTERM, SIGHUP or Ctrl-C drains: nothing new starts,
    running steps finish, the other workers go on; status 0. SIGUSR1 does, too, and a worker with an
    --instance-id leaves its place to the others at once. What has not finished within
    --drain-seconds is left, also in threads, and runs again. A second signal stops at once, as a
    crash would.
    What is logged goes to stderr; what the code of sagas prints stays on stdout.
    """
    settings.need_code("engine run")

    async def work() -> None:
        if threads is not None:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads))
        async with resources_of(resources) as live:
            worker = connect(
                settings.log,
                store=settings.store,
                sagas=sources.load(settings.apps, prints_to=sys.stdout),
                resources=live,
                instance_id=instance_id,
                config=EngineConfig(drain_seconds=drain_seconds, max_in_flight=max_in_flight),
            )
            with _told_to_stop() as stop:
                async with _probed(worker, health_host, health_port):
                    await _serve(worker, stop, drain_seconds, leave)
        _leave_what_runs_on(worker.host.abandoned)

    with logs.logging_as(log_format, log_level):
        try:
            run(work())
        except (SagaError, OSError) as error:
            # A line like all others: whoever reads JSON reads this, too.
            logger.critical("%s", exits.sentence_of(error))
            raise click.exceptions.Exit(exits.status_of(error)) from error


async def _serve(worker: Engine, stop: Stop, drain_seconds: float, leave: bool) -> None:
    stopping = asyncio.create_task(stop.wait())
    opening = asyncio.create_task(worker.open())
    try:
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            served = ", ".join(map(str, sorted(worker.host.partitions))) or "none yet"
            group = worker.host.config.group
            name = f"{worker.log.name}, group {group}" if group else worker.log.name
            logger.info("serving %s; partitions: %s", name, served)
            await stopping
    finally:
        if stop.is_set():
            logger.info("stopping: running steps may take up to %g s to finish", drain_seconds)
        for task in (opening, stopping):
            task.cancel()
        closing = asyncio.create_task(_closed(worker, opening, leave or stop.for_good))
        _, late = await asyncio.wait({closing}, timeout=drain_seconds + STOP_SECONDS)
        if late:
            _give_up(worker.log.name, drain_seconds + STOP_SECONDS)
        closing.result()
    logger.info("stopped; what is unfinished goes on where another worker runs")


async def _closed(worker: Engine, opening: asyncio.Task[None], for_good: bool) -> None:
    await asyncio.wait({opening})  # it closes what it has opened
    await worker.close(for_good=for_good)


def _give_up(log: str, seconds: float) -> NoReturn:
    """End the process although it is not closed: that is as harmless as any crash."""
    logger.critical(
        "ending without a word to %s, or its store, which have not answered within %g s of the "
        "stop: steps whose end is not recorded run again, and the others have the partitions after "
        "the session time-out",
        *(log, seconds),
    )
    end(exits.FAILED)


def _leave_what_runs_on(abandoned: list[str]) -> None:
    """End the process here if steps still run, in threads or because they do not accept that they
    are cancelled: nothing else would end before them.

    All is closed and recorded by now; to the log they are attempts of a process that stopped.
    """
    threads = sagas_in_threads()
    left = sorted({*threads, *abandoned})
    if not left:
        return
    named = ", ".join(left[:NAMED]) + (", …" if len(left) > NAMED else "")
    how = "in threads" if threads else "although they were cancelled"
    logger.warning("ending while steps still run %s, which run again; sagas: %s", how, named)
    end(exits.DONE)


class Stop(asyncio.Event):
    """Set once the worker is told to stop. `for_good`: no process of its name comes back."""

    for_good = False


@contextmanager
def _told_to_stop() -> Iterator[Stop]:
    """What the first SIGTERM, SIGINT or SIGUSR1 sets; the second one ends the process at once.

    So does SIGHUP, where nobody (nohup) wants it to be passed over: a terminal that closes.
    """
    loop, stop = asyncio.get_running_loop(), Stop()

    def tell(number: int) -> None:
        if stop.is_set():
            os._exit(exits.SIGNALLED + number)
        stop.for_good = number == signal.SIGUSR1
        stop.set()

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, tell, number)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _probed(worker: Engine, host: str, port: int | None) -> AsyncIterator[None]:
    """Answer probes meanwhile, if a port was given. Raises MissingDependencyError."""
    if port is None:
        yield
        return
    try:
        from sagaz_es_cli.health import answering
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            (error.name or "").partition(".")[0], "the health endpoint", "worker"
        ) from error
    async with answering(worker.health, host, port) as url:
        logger.info("health: %s/healthz and %s/readyz", url, url)
        yield
