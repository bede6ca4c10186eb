"""The group of commands, and what becomes of an error: a sentence on stderr and an exit status."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import click

from sagaz_es_cli import exits
from sagaz_es_cli.compensations import compensations
from sagaz_es_cli.decisions import add_decisions
from sagaz_es_cli.doctor import add_doctor
from sagaz_es_cli.engine import engine
from sagaz_es_cli.importing import add_import
from sagaz_es_cli.options import Group
from sagaz_es_cli.projector import projector
from sagaz_es_cli.render import printable
from sagaz_es_cli.replay import replay
from sagaz_es_cli.saga import saga
from sagaz_es_cli.start import missing_part
from sagaz_es_cli.topics import topics
from sagaz_es_cli.versions import add_versions

DEBUG_VARIABLE = "SAGAZ_ES_DEBUG"


class _Group(Group):
    """Turns every error into its exit status, once."""

    def invoke(self, ctx: click.Context) -> Any:
        with _speaking():
            try:
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
            except (click.ClickException, click.exceptions.Exit):
                raise
            except (KeyboardInterrupt, click.Abort):
                ctx.exit(exits.SIGNALLED + signal.SIGINT)
            except BrokenPipeError:
                _forget_stdout()
                ctx.exit(exits.SIGNALLED + signal.SIGPIPE)
            except Exception as error:
                ctx.exit(_tell(exits.root_of(error)))


def _tell(error: BaseException) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    error = missing_part(error) or error
    click.echo(f"Error: {printable(exits.sentence_of(error))}", err=True)
    return exits.status_of(error)


def _forget_stdout() -> None:
    """Whoever read it has gone: what is left would raise again when the process ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- what libraries say ---------------------------------------------------------------------------


class _OneLine(logging.StreamHandler[TextIO]):
    """Log records on stderr, for programs that configure no logging; tracebacks only to debug.

    Errors alone: what the engine warns of, such as other sagas whose code is not here, is not what
    a single command was asked for. A command that stays (`projector run`) lowers the level.
    """

    def __init__(self) -> None:
        super().__init__()
        self.debug = bool(os.environ.get(DEBUG_VARIABLE))
        self.setLevel(logging.INFO if self.debug else logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text}: {exits.sentence_of(exits.root_of(record.exc_info[1]))}"
            if self.debug:
                text += "\n" + "".join(traceback.format_exception(*record.exc_info))
        # The level as a word; the stream as it is now, not as it was when this was made.
        click.echo(f"{record.levelname.capitalize()}: {text}", err=True)


@contextmanager
def _speaking() -> Iterator[None]:
    """Let libraries speak in single lines; logging that a program configures comes first."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo(f"Warning: {message}", err=True)

    last_resort = logging.lastResort
    logging.lastResort = _OneLine()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logging.lastResort = last_resort


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sagaz-es")
def main() -> None:
    """Durable sagas on a Kafka log: run, look at, replay and repair them.

    Results go to stdout, everything else to stderr. `sagaz-es COMMAND --help` has examples.

    \b
    Exit status:
      0  done
      1  failed
      2  wrong usage
      3  refused: a plan is blocked, a saga still runs, the log has moved
      4  not found: no such saga, step, replay, or state at that time
      5  partly done: an import with bad lines
    """


add_decisions(saga)
main.add_command(saga)
main.add_command(replay)
main.add_command(compensations)
main.add_command(engine)
main.add_command(projector)
main.add_command(topics)
add_doctor(main)
add_import(main)
add_versions(main)
