"""`sagaz-es versions`: how many sagas there are of each definition, and which of them code fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from sagaz_es.core.graph import Graph, parse_graph
from sagaz_es.core.state import ENDED
from sagaz_es.engine.registry import Registry
from sagaz_es.ports import BlobStore, DefinitionCount, ProjectionStore
from sagaz_es.sagas.definition import Definition
from sagaz_es_cli import exits, sources
from sagaz_es_cli.opening import reading, run
from sagaz_es_cli.options import LIMIT, Settings, command
from sagaz_es_cli.refusals import Looked, look
from sagaz_es_cli.render import Block, cells, emit, note
from sagaz_es_cli.tables import Column, Rows

FITS, DECLARED, DIFFERS, NO_CODE = "yes", "declared", "no", "no code"


@dataclass
class Version:
    """The sagas of one name and recorded definition. `fits` is empty where no code was named."""

    saga_name: str
    fingerprint: str  # empty: they were recorded, no engine ran them
    graph: str = ""
    statuses: dict[str, int] = field(default_factory=dict)
    fits: str = ""
    differences: tuple[str, ...] = ()
    looked: Looked | None = None  # at those unfinished, where the code declares to carry them on

    @property
    def refused(self) -> int:
        """How many of the unfinished this code would not carry on; of those looked at."""
        if self.fits in (DIFFERS, NO_CODE):
            return self.unfinished
        return self.looked.refused if self.looked is not None else 0

    @property
    def passed_by(self) -> int:
        """How many of the unfinished would have to be looked at, and were not."""
        if self.looked is None or not self.looked.cut:
            return 0
        return max(0, self.unfinished - self.looked.at)

    @property
    def unfinished(self) -> int:
        return sum(count for status, count in self.statuses.items() if status not in ENDED)

    @property
    def replayable(self) -> int:
        """Those that have ended, however: only they are replayed."""
        return sum(count for status, count in self.statuses.items() if status in ENDED)


def add_versions(group: click.Group) -> None:
    """Add `versions` to a group."""

    @command(
        group,
        "versions",
        keys="a list of saga_name, fingerprint (null: recorded without an engine), unfinished, "
        "replayable, statuses, fits (yes, declared, no, no code; null without --app), differences, "
        "refused (how many of the unfinished this code would not carry on; null without --app), "
        "looked_at (how many of them were tried, where fits is declared; else null), why (of the "
        "first one refused)",
        examples="""
            sagaz-es versions
            sagaz-es versions --app shop.sagas
            sagaz-es versions --name order --app shop.sagas --check
            """,
    )
    @click.option("--name", metavar="NAME", help="Only sagas of this name.")
    @click.option(
        "--check",
        is_flag=True,
        help="Status 3 if there are unfinished sagas that the code of --app would refuse; 5 if "
        "none was found, and not all were looked at.",
    )
    @click.option(
        "--limit",
        type=LIMIT,
        default=10_000,
        show_default=True,
        help="Of each declared definition, look at most at so many unfinished sagas.",
    )
    def versions(settings: Settings, name: str | None, check: bool, limit: int) -> None:
        """Count unfinished and replayable sagas by definition, and say which of them code fits.

        A definition is the step graph that a saga began with, known by its fingerprint. With --app:
        yes: the code has that definition; declared: it names it in compatible_with, and carries on
        what has not begun differently; no: its sagas are refused, and why. Of a declared definition
        each unfinished saga is looked at as an engine would, which calls its class's `migrate`, and
        those that would be refused are counted. Replays are not looked at: their plan tells.
        """
        if check:
            settings.need_code("versions --check")
        registry = Registry(sources.load(settings.apps)) if settings.apps else None

        async def work() -> list[Version]:
            async with reading(settings) as opened:
                store = await opened.up_to_date_store()
                found = versions_of(await store.count_by_definition(), registry)
                found = [version for version in found if name in (None, version.saga_name)]
                if registry is not None:
                    await _look(found, registry, store, opened.blobs, limit)
                return found

        found = run(work())
        emit(settings.format, [_record(version) for version in found], lambda: _blocks(found))
        _say(found)
        if check:
            _judge(found)


async def _look(
    versions: list[Version],
    registry: Registry,
    store: ProjectionStore,
    blobs: BlobStore | None,
    limit: int,
) -> None:
    """Look at the unfinished sagas of definitions that the code declares."""
    declared = [one for one in versions if one.fits == DECLARED and one.unfinished]
    for name in sorted({one.saga_name for one in declared}):
        ours = {one.fingerprint: one for one in declared if one.saga_name == name}
        most = {one.fingerprint: min(limit, one.unfinished) for one in ours.values()}
        looked = await look(store, blobs, registry.by_name(name), name, most)
        for fingerprint, version in ours.items():
            version.looked = looked[fingerprint]
            version.looked.cut = version.looked.at >= limit


def _say(versions: list[Version]) -> None:
    for version in versions:
        looked = version.looked
        if looked is None:
            continue
        of = f"{version.unfinished} unfinished sagas of {version.saga_name} {version.fingerprint}"
        if looked.refused:
            note(f"{looked.refused} of {of} would be refused, one of them so: {looked.why}")
        if version.passed_by:
            note(f"only {looked.at} of {of} were looked at; see --limit")


def _judge(versions: list[Version]) -> None:
    """Raises Exit unless the code carries on whatever is unfinished."""
    refused = sum(version.refused for version in versions)
    if refused:
        note(f"{refused} unfinished sagas are refused by this code")
        raise click.exceptions.Exit(exits.REFUSED)
    if any(version.passed_by for version in versions):
        raise click.exceptions.Exit(exits.PARTLY)


def versions_of(counts: Iterable[DefinitionCount], registry: Registry | None) -> list[Version]:
    """By name and fingerprint; the code's own definitions stand there, too, with no sagas."""
    found: dict[tuple[str, str], Version] = {}
    for count in counts:
        place = (count.saga_name, count.definition)
        version = found.setdefault(place, Version(*place, count.graph))
        version.statuses[count.status] = version.statuses.get(count.status, 0) + count.count
    if registry is not None:
        # Some are made from their names: those that start a child for each item.
        made = {name for name, _ in found if name in registry}
        code = {name: registry.by_name(name) for name in (*registry.names, *made)}
        for name, definition in code.items():
            place = (name, definition.graph.fingerprint)
            found.setdefault(place, Version(*place, definition.graph.text))
        for version in found.values():
            _compare(version, code)
    return [found[place] for place in sorted(found)]


def _compare(version: Version, code: Mapping[str, Definition]) -> None:
    definition = code.get(version.saga_name)
    if definition is None:
        version.fits = NO_CODE
    elif version.fingerprint in ("", definition.graph.fingerprint):
        version.fits = FITS  # what was recorded without a definition takes the code's
    else:
        declared = version.fingerprint in definition.compatible_with
        version.fits = DECLARED if declared else DIFFERS
        recorded: Graph = parse_graph(version.graph)
        version.differences = recorded.differences(definition.graph)


def _record(version: Version) -> dict[str, Any]:
    return {
        "saga_name": version.saga_name,
        "fingerprint": version.fingerprint or None,
        "unfinished": version.unfinished,
        "replayable": version.replayable,
        "statuses": version.statuses,
        "fits": version.fits or None,
        "differences": list(version.differences),
        "refused": version.refused if version.fits else None,
        "looked_at": version.looked.at if version.looked is not None else None,
        "why": (version.looked.why if version.looked is not None else "") or None,
    }


def _blocks(versions: list[Version]) -> list[Block]:
    columns = (
        Column("saga"),
        Column("fingerprint"),
        Column("unfinished", number=True),
        Column("replayable", number=True),
        Column("code fits", status=True),
        Column("refused", number=True),
        Column("differences", free="wrap"),
    )
    rows = [
        cells(
            version.saga_name,
            version.fingerprint or "(recorded)",
            version.unfinished,
            version.replayable,
            version.fits,
            version.refused if version.fits else None,
            "; ".join(version.differences),
        )
        for version in versions
    ]
    return [Rows(columns, rows, empty="there are no sagas yet")]
