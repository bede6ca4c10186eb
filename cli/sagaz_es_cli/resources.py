"""`--resources`: live objects for steps, such as connection pools, out of a user's module."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sagaz_es.errors import ConfigurationError
from sagaz_es_cli.sources import AppNotUsable, named


class ResourcesNotUsable(ConfigurationError):
    """What `--resources` names cannot be loaded, or gives no mapping."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name, self.why = name, why

    def __str__(self) -> str:
        return f"--resources {self.name}: {self.why}"


@asynccontextmanager
async def resources_of(name: str | None) -> AsyncIterator[Mapping[str, Any]]:
    """What module:name gives: a mapping, or what a function or coroutine function there returns.

    A context manager is entered, and left when the engine has closed. Raises ResourcesNotUsable.
    """
    if name is None:
        yield {}
        return
    async with AsyncExitStack() as stack:
        try:
            found = named(name)
        except AppNotUsable as error:
            raise ResourcesNotUsable(name, error.why) from error
        if callable(found):
            found = found()
        if inspect.isawaitable(found):
            found = await found
        if hasattr(found, "__aenter__"):
            found = await stack.enter_async_context(found)
        elif hasattr(found, "__enter__"):
            found = stack.enter_context(found)
        if not isinstance(found, Mapping):
            kind = type(found).__name__
            raise ResourcesNotUsable(name, f"it gives a {kind}, not a mapping of names to objects")
        yield found
