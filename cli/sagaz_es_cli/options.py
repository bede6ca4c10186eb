"""What every command accepts after its name, and the kinds of values that options take."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import click

from sagaz_es.connect import DEFAULT_LOG, LOG_VARIABLE, STORE_VARIABLE
from sagaz_es.core.history import Step
from sagaz_es_cli.exits import MEANINGS
from sagaz_es_cli.overrides import parse_object, parse_value
from sagaz_es_cli.times import EXAMPLE, parse_time

APP_VARIABLE = "SAGAZ_ES_APP"
RESOURCES_VARIABLE = "SAGAZ_ES_RESOURCES"
FORMATS = ("table", "json", "yaml", "text")
COMMON = "Common options"

AnyFunction: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """The common options of one call."""

    log: str | None
    store: str | None
    apps: tuple[str, ...]
    format: str

    def need_code(self, what: str) -> None:
        """Raises UsageError unless `--app` was given."""
        if not self.apps:
            raise click.UsageError(
                f"{what} runs the code of the saga: name it with --app module:Class, or in "
                f"{APP_VARIABLE}"
            )


# --- kinds of values ------------------------------------------------------------------------------


class _Names(click.ParamType[Any]):
    name = "module:class"

    def split_envvar_value(self, rv: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in rv.split(",") if part.strip())


class Time(click.ParamType[Any]):
    """An ISO 8601 time; without a zone it is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse_time(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class When(click.ParamType[Any]):
    """A time, a sequence, or a step: what SagaHistory calls `when`."""

    name = "time|sequence|step:name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        text = value.strip()
        kind, colon, name = text.partition(":")
        if colon and kind in ("step", "after"):
            after = kind == "after" or name.endswith(":after")
            name = name.removesuffix(":after") if kind == "step" else name
            if not name:
                self.fail(f"{value!r} names no step; write step:charge", param, ctx)
            return Step(name, after=after)
        if text.isdecimal() and len(text) < 20:
            return int(text)
        try:
            return parse_time(text)
        except ValueError:
            self.fail(
                f"{value!r} is neither a time ({EXAMPLE}; without a zone it is UTC), nor a "
                "sequence (12), nor a step (step:charge, or step:charge:after)",
                param,
                ctx,
            )


LIMIT = click.IntRange(1, 2**31 - 1)
"""How many of something: what every store can count."""


def after_option(function: AnyFunction) -> AnyFunction:
    """For lists that are longer than a page."""
    option = click.option(
        "--after",
        metavar="ID",
        help="Go on behind this saga: the last one of the page before, with the same options.",
    )
    return option(function)


class JsonValue(click.ParamType[Any]):
    """JSON; `@file` reads it from a file, `-` from stdin."""

    name = "json"
    parse = staticmethod(parse_value)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            if value == "-":
                value = sys.stdin.read()
            elif value.startswith("@"):
                with open(value[1:], encoding="utf-8") as file:
                    value = file.read()
            return self.parse(value)
        except (ValueError, OSError) as error:
            self.fail(str(error), param, ctx)


class JsonObject(JsonValue):
    """A JSON object, from the same places."""

    parse = staticmethod(parse_object)


def timeout_option(function: AnyFunction) -> AnyFunction:
    """For commands that ask the engine which serves a saga."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(0, min_open=True),
        metavar="S",
        default=30.0,
        show_default=True,
        help="How long to wait for the engine that serves the saga.",
    )(function)


def actor_option(function: AnyFunction) -> AnyFunction:
    """For commands that are recorded in a saga's history."""
    return click.option(
        "--actor", metavar="WHO", help="Recorded in the log; default: your user name."
    )(function)


def resources_option(function: AnyFunction) -> AnyFunction:
    """For commands that run the code of sagas: what their steps find in `ctx.resources`."""
    return click.option(
        "--resources",
        metavar="MODULE:NAME",
        envvar=RESOURCES_VARIABLE,
        show_envvar=True,
        help="Live objects for the steps (ctx.resources): a mapping, or a function that gives one.",
    )(function)


# --- commands -------------------------------------------------------------------------------------


def common_options() -> list[click.Option]:
    """New ones for each command."""
    return [
        click.Option(
            ["--log"],
            metavar="URL",
            envvar=LOG_VARIABLE,
            show_envvar=True,
            help="kafka://host:port/namespace or sqlite:///file.db; default: sagaz-es.db here.",
        ),
        click.Option(
            ["--store", "--storage"],
            metavar="URL",
            envvar=STORE_VARIABLE,
            show_envvar=True,
            help="postgresql://… or sqlite:///…; default: a SQLite log's own file.",
        ),
        click.Option(
            ["--app", "apps"],
            type=_Names(),
            multiple=True,
            metavar="MODULE[:NAME]",
            envvar=APP_VARIABLE,
            show_envvar=True,
            help="Code of sagas: a class, an object, or a module with classes. Repeatable.",
        ),
        click.Option(
            ["--format", "-f"],
            type=click.Choice(FORMATS),
            help="Default: table on a terminal, else json.",
        ),
    ]


def _log_beside(store: str | None) -> str | None:
    """Log and store are one file by default: a SQLite store that is named alone is the log, too.

    Not where the default log exists: a program that names only a store writes there.
    """
    alone = store is not None and store.startswith("sqlite:")
    return store if alone and not Path(DEFAULT_LOG.removeprefix("sqlite:///")).exists() else None


class Group(click.Group):
    """A group that says of each command its whole first sentence, over two lines if need be."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [
            (name, self.commands[name].get_short_help_str(limit=1000))
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Command(click.Command):
    """A command with the common options, shown apart from its own. `keys`: those of its JSON."""

    keys = ""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        names = {option.name for option in common_options()}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                (common if param.name in names else own).append(record)
        for title, records in (("Options", own), (COMMON, common)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.keys:
            formatter.write_paragraph()
            formatter.write_text(f"JSON: {self.keys}.")
        formatter.write_paragraph()
        statuses = (f"{number} {meaning}" for number, meaning in MEANINGS.items())
        formatter.write_text(f"Exit status: {', '.join(statuses)}.")


EXAMPLE_COLUMNS = 74
"""Beside their indentation and a backslash."""


def command(
    group: click.Group, name: str, *, examples: str, keys: str = ""
) -> Callable[[AnyFunction], Command]:
    """Add a command to a group. The function gets Settings first, then its own options.

    `keys`: those of its JSON, for people.
    """

    def decorate(function: AnyFunction) -> Command:
        @functools.wraps(function)
        def call(
            log: str | None,
            store: str | None,
            apps: tuple[str, ...],
            format: str | None,
            **own: Any,
        ) -> None:
            chosen = format or ("table" if sys.stdout.isatty() else "json")
            log = log or _log_beside(store)
            function(Settings(log or None, store or None, apps, chosen), **own)

        folded = [part for line in inspect.cleandoc(examples).splitlines() for part in _fold(line)]
        lines = "\n".join(f"  {line}" for line in folded)
        made = click.command(name, cls=Command, epilog=f"\b\nExamples:\n{lines}")(call)
        made.keys = " ".join(keys.split())
        made.params.extend(common_options())
        group.add_command(made)
        return made

    return decorate


def _fold(line: str) -> list[str]:
    """A command line as a terminal of 80 columns shows it, with `\\` before options."""
    lines = [""]
    for part in re.split(r" (?=--?[a-z])", line):
        joined = f"{lines[-1]} {part}" if lines[-1] else part
        if len(joined.removesuffix(" \\")) <= EXAMPLE_COLUMNS or not lines[-1].strip():
            lines[-1] = joined
        else:
            lines[-1] += " \\"
            lines.append(f"    {part}")
    return lines
