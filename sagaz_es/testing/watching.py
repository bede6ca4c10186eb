"""The code of a saga's steps, watched: every call is seen, and can be made to fail.

What is watched is a copy of the definition with other functions in it; graph, fingerprint, retries
and time limits stay as they are.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from msgspec import structs

from sagaz_es.engine.registry import Registry, Source
from sagaz_es.sagas.definition import Definition, StepDefinition


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a step's action, or (`undo`) of its compensation."""

    step: str
    undo: bool
    attempt: int
    saga_id: str
    key: str  # its idempotency key
    result: Any = None  # of a compensation: what it was given

    @property
    def name(self) -> str:
        """`charge`, or `undo charge`."""
        return f"undo {self.step}" if self.undo else self.step


class Watcher(Protocol):
    """Sees calls. What it raises is the step's error."""

    async def perform(self, call: Call, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call the function (with `perform`), or not."""


async def perform(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """A step's function, called as the engine would."""
    if inspect.iscoroutinefunction(function):
        return await function(*args)
    value = await asyncio.to_thread(_in_thread, function, args)
    return await value if inspect.isawaitable(value) else value


def _in_thread(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    try:
        return function(*args)
    except StopIteration as error:  # no future can hold it
        raise RuntimeError("the step raised StopIteration") from error


class WatchedRegistry(Registry):
    """A Registry whose definitions are watched."""

    def __init__(
        self,
        sagas: Iterable[Source] | Mapping[str, Callable[..., Any]],
        watcher: Watcher,
        tried_once: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(sagas)
        self._watcher, self._tried_once = watcher, tried_once
        self._watched: dict[int, tuple[Definition, Definition]] = {}

    def resolve(self, saga: Source | str) -> Definition:
        return self._watch(super().resolve(saga))

    def by_name(self, name: str) -> Definition:
        return self._watch(super().by_name(name))

    def _watch(self, definition: Definition) -> Definition:
        if any(definition is watched for _, watched in self._watched.values()):
            return definition
        # The original is kept beside its copy: an id belongs to a living object only.
        known = self._watched.get(id(definition))
        if known is None:
            known = self._watched[id(definition)] = (definition, watch(definition, self._watcher))
            for name in self._tried_once & known[1].steps.keys():
                step = known[1].steps[name]
                retry = structs.replace(step.retry, max_retries=0)
                known[1].steps[name] = replace(step, retry=retry)
        return known[1]


def steps_of(sagas: Iterable[Source]) -> dict[str, StepDefinition]:
    """The steps of these sagas and of their children, by name."""
    return {step.name: step for step in all_steps(Registry(sagas))}


def all_steps(registry: Registry) -> Iterator[StepDefinition]:
    """Of all its sagas; a name may come more than once."""
    seen: set[str] = set()
    while unseen := [name for name in registry.names if name not in seen]:
        for name in unseen:  # children are registered as their parents are looked at
            seen.add(name)
            yield from registry.by_name(name).steps.values()


def watch(definition: Definition, watcher: Watcher) -> Definition:
    """A copy whose steps' functions are called by the watcher."""
    watched = copy.copy(definition)
    watched.steps = {name: _step(step, watcher) for name, step in definition.steps.items()}
    return watched


def _step(step: StepDefinition, watcher: Watcher) -> StepDefinition:
    compensation = step.compensation
    if compensation is not None:
        undo = _function(step.name, compensation.function, watcher, undo=True)
        compensation = replace(compensation, function=undo)
    function = _function(step.name, step.function, watcher, undo=False)
    return replace(step, function=function, compensation=compensation)


def _function(
    name: str, function: Callable[..., Any], watcher: Watcher, *, undo: bool
) -> Callable[..., Any]:
    async def watched(*args: Any) -> Any:
        ctx = args[-1]
        result = args[0] if len(args) > 1 else None
        call = Call(name, undo, ctx.attempt, ctx.saga_id, ctx.idempotency_key, result)
        return await watcher.perform(call, function, args)

    return watched
