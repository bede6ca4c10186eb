"""crash_everywhere on sagas of any shape: careful ones stand, a careless step is named."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sagaz_es import Saga
from sagaz_es.testing import CrashReport, crash_everywhere

Graph = dict[str, list[str]]
World = Counter[str]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Up to four steps, each after some of those before it."""
    names = ["a", "b", "c", "d"][: draw(st.integers(1, 4))]
    return {
        name: draw(st.lists(st.sampled_from(names[:at]), unique=True)) if at else []
        for at, name in enumerate(names)
    }


def saga_of(graph: Graph, careless: tuple[str, bool] | None, slow: frozenset[str]) -> Saga:
    """Each step stands in the world, once for its key; `slow` ones take their time before that
    (`"a-"`), or behind it (`"-a"`)."""
    saga = Saga("any")

    def step(name: str) -> Any:
        async def do(ctx: Any) -> None:
            if f"{name}-" in slow:
                await asyncio.sleep(1)
            world = ctx.resources["world"]
            world[name] = world[name] + 1 if careless == (name, False) else 1
            if f"-{name}" in slow:
                await asyncio.sleep(1.5)

        async def undo(ctx: Any) -> None:
            world = ctx.resources["world"]
            if careless == (name, True):
                world[f"undo {name}"] += 1
            world.pop(name, None)

        return do, undo

    for name, after in graph.items():
        do, undo = step(name)
        saga.add_step(name, do, undo, depends_on=after, on_unknown=True, max_retries=0)
    return saga


def crashed(saga: Saga) -> CrashReport:
    return crash_everywhere(
        saga,
        world=Counter,
        resources=lambda world: {"world": world},
        pairs=False,
        max_runs=400,
        check=False,
    )


SLOW = st.frozensets(st.sampled_from(["a-", "b-", "c-", "d-", "-a", "-b", "-c", "-d"]))


@settings(deadline=None, max_examples=15)
@given(graphs(), SLOW)
def test_careful_sagas_of_any_shape_stand_every_crash(graph: Graph, slow: frozenset[str]) -> None:
    report = crashed(saga_of(graph, None, slow))
    assert report.ok, str(report)


@settings(deadline=None, max_examples=15)
@given(graphs(), SLOW, st.data())
def test_a_careless_step_of_any_saga_is_named_and_no_other(
    graph: Graph, slow: frozenset[str], data: st.DataObject
) -> None:
    careless = data.draw(st.sampled_from(sorted(graph)))
    report = crashed(saga_of(graph, (careless, False), slow))
    assert not report.ok
    assert {(v.step, v.undo) for v in report.violations} == {(careless, False)}, str(report)


@settings(deadline=None, max_examples=15)
@given(graphs().filter(lambda graph: any(graph.values())), st.data())
def test_a_careless_compensation_of_any_saga_is_named_and_no_other(
    graph: Graph, data: st.DataObject
) -> None:
    followed = sorted({before for after in graph.values() for before in after})
    careless = data.draw(st.sampled_from(followed))
    report = crashed(saga_of(graph, (careless, True), frozenset()))
    assert not report.ok
    assert {(v.step, v.undo) for v in report.violations} == {(careless, True)}, str(report)
