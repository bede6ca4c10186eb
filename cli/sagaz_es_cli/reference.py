"""The page on the command line, out of the commands themselves.

`python -m sagaz_es_cli.reference > docs/reference/cli.md` writes it anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from sagaz_es_cli.exits import MEANINGS
from sagaz_es_cli.main import main
from sagaz_es_cli.options import Command, common_options

HEAD = """\
# sagaz-es: the command line

<!-- Made by `python -m sagaz_es_cli.reference`; a test keeps it current. -->

Results go to stdout, everything else to stderr. On a terminal they are tables, else JSON;
`--format` chooses. Typed values keep their tags in JSON and YAML: `{"$decimal": "9.90"}`. Times
have a zone; one that is given without is UTC.

A command that only looks joins no group, takes no partition and makes no log. One that runs sagas
(`saga start`, `replay run`, `replay undo`) takes the code of that one saga and of its children from
`--app`, and serves the log while it lasts: it also goes on with unfinished sagas of those names.
What is asked of other sagas meanwhile waits for a worker. What their code prints goes to stderr. A
worker (`engine run`) serves all code that `--app` names, until it is stopped.

`--app` names a class, an object, a list or a mapping of factories in a module
(`shop.sagas:OrderSaga`), or a module alone, for all sagas that are defined there. The current
directory is looked in first. A SQLite store that is named without a log is the log, too, unless
there is a `sagaz-es.db`.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    yield "## Exit status\n"
    yield "| status | meaning |\n|---|---|"
    yield from (f"| {number} | {meaning} |" for number, meaning in MEANINGS.items())
    yield "| 130, 143, 141 | interrupted by Ctrl-C, by SIGTERM; the reader of stdout has gone |"
    yield "\nAn error is one sentence on stderr. `SAGAZ_ES_DEBUG=1` adds its traceback.\n"
    yield "## Options of every command\n"
    yield "They stand after the command's name.\n"
    yield from _table(common_options())
    common = {option.name for option in common_options()}
    for name, command in _commands(main, "sagaz-es"):
        yield f"\n## {name}\n"
        context = click.Context(command, info_name=name)
        yield f"```\n{name} {' '.join(command.collect_usage_pieces(context))}\n```\n"
        yield _prose(command.help or "")
        own = [
            param
            for param in command.params
            if isinstance(param, click.Option) and param.name not in common
        ]
        if own:
            yield ""
            yield from _table(own)
        examples = (command.epilog or "").partition("Examples:\n")[2]
        if isinstance(command, Command) and command.keys:
            yield f"\nJSON: {command.keys}."
        yield f"\n```sh\n{inspect.cleandoc(examples)}\n```"


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _prose(text: str) -> str:
    return inspect.cleandoc(text)


def _table(options: list[click.Option]) -> Iterator[str]:
    yield "| option | meaning |\n|---|---|"
    for option in options:
        names = ", ".join(f"`{name}`" for name in option.opts)
        if not option.is_flag:
            context = click.Context(main)
            metavar = option.make_metavar(context).replace("INTEGER RANGE", "N")
            names += f" {metavar}".replace("|", "\\|")
        help_text = (option.help or "").replace("|", "\\|")
        if option.required:
            help_text += " Required."
        elif option.show_default and option.default is not None:
            help_text += f" Default: {option.default}."
        if option.show_envvar:
            help_text += f" Environment: `{option.envvar}`."
        yield f"| {names} | {help_text.strip()} |"


if __name__ == "__main__":
    click.echo(page(), nl=False)
