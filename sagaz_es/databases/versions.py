"""Tables have a version, one a component: stores and blobs may share a database."""

from __future__ import annotations

from sagaz_es.errors import StorageFailed


def other_version(where: str, component: str, found: int, known: int) -> StorageFailed:
    """The error for tables of another version of this library."""
    return StorageFailed(
        where,
        f"the tables of its {component} are of version {found}, this library knows {known}; use "
        "the library that made them, or another place",
    )
