"""The published Avro schemas, every version ever: what may stand in the log.

They are data of the package: `schemas/history/<snake_case_name>/<version>.avsc`, copied into the
wheel, beside the package in a checkout. Only what is published is ever written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeAlias

from fastavro import parse_schema
from fastavro.schema import fingerprint, to_parsing_canonical_form
from msgspec import Struct


class Published(Struct, frozen=True):
    """One version of the schema of one fact or request."""

    name: str  # of the fact's class
    version: int  # 1, 2, 3 …; the highest is the one that is written
    text: str  # as it was published, with docs and logical types
    fingerprint: bytes  # CRC-64-AVRO of the canonical form, little-endian
    parsed: Any  # the canonical form, parsed: without logical types, which cost a datetime each


Schemas: TypeAlias = Mapping[str, tuple[Published, ...]]
"""By name of the fact's class: every version, oldest first."""


def read_schema(text: str) -> tuple[bytes, Any]:
    """The fingerprint and the parsed canonical form of a schema. Raises what fastavro raises."""
    canonical = to_parsing_canonical_form(parse_schema(json.loads(text)))
    return bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO")), parse_schema(json.loads(canonical))


@cache
def published() -> Schemas:
    """All that is published, read and parsed once a process."""
    return versions_in(schema_folder() / "history")


def versions_in(history: Traversable) -> Schemas:
    """All versions of a folder with one folder a schema."""
    folders = sorted(history.iterdir(), key=lambda folder: folder.name)
    return dict(_versions(folder) for folder in folders if folder.is_dir())


def schema_folder() -> Traversable:
    """Where the schemas are: in the package (a wheel), or beside it (a checkout)."""
    package = files("sagaz_es")
    inside = package / "schemas"
    return inside if inside.is_dir() else Path(str(package)).parent / "schemas"


def _versions(folder: Traversable) -> tuple[str, tuple[Published, ...]]:
    versions: list[Published] = []
    while (file := folder / f"{len(versions) + 1}.avsc").is_file():
        text = file.read_text(encoding="utf-8")
        mark, parsed = read_schema(text)
        name = str(parsed["name"]).rpartition(".")[2]
        versions.append(Published(name, len(versions) + 1, text, mark, parsed))
    return versions[0].name, tuple(versions)
