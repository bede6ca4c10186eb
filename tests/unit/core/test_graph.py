"""The step graph: what is refused, the order of running and undoing, what makes it another."""

from __future__ import annotations

import pytest

from sagaz_es.core.graph import Graph, StepNode, parse_graph
from sagaz_es.errors import CircularDependencyError, DefinitionError, SagaDependencyError

#      reserve ──► charge ──► ship
#         └─────► notify ──────┘
RESERVE = StepNode("reserve", compensable=True)
CHARGE = StepNode("charge", ("reserve",), compensable=True)
NOTIFY = StepNode("notify", ("reserve",), effects=False)
SHIP = StepNode("ship", ("charge", "notify"), pivot=True)
ORDER = Graph([RESERVE, CHARGE, NOTIFY, SHIP])


def test_steps_run_after_what_they_depend_on_else_as_written() -> None:
    assert Graph([SHIP, NOTIFY, CHARGE, RESERVE]).order == ("reserve", "notify", "charge", "ship")
    assert ORDER.order == ("reserve", "charge", "notify", "ship")


def test_dependents_and_ancestors_reach_over_all_levels() -> None:
    assert ORDER.dependents["reserve"] == {"charge", "notify", "ship"}
    assert ORDER.dependents["ship"] == frozenset()
    assert ORDER.ancestors["ship"] == {"reserve", "charge", "notify"}
    assert ORDER.ancestors["reserve"] == frozenset()


def test_steps_are_undone_before_what_they_depend_on() -> None:
    assert ORDER.undo_order(["reserve", "ship", "charge"]) == ["ship", "charge", "reserve"]
    assert ORDER.undo_order(["gone", "reserve"]) == ["reserve"]


def test_a_chain_of_a_thousand_steps_is_ordered() -> None:
    chain = [StepNode(str(n), (str(n - 1),) if n else ()) for n in range(1000)]
    assert Graph(chain).order == tuple(str(n) for n in range(1000))
    assert len(Graph(chain).ancestors["999"]) == 999


def test_no_steps_are_a_graph_too() -> None:
    assert Graph().order == ()
    assert parse_graph("").order == parse_graph("[]").order == ()


def test_a_step_declared_twice_is_refused() -> None:
    with pytest.raises(DefinitionError, match="'reserve' is declared twice"):
        Graph([RESERVE, RESERVE])


def test_a_dependency_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(SagaDependencyError) as refused:
        Graph([RESERVE, StepNode("ship", ("chrage",))])
    error = refused.value
    assert (error.step, error.missing, error.known) == ("ship", "chrage", ("reserve", "ship"))


@pytest.mark.parametrize(
    ("edges", "cycle"),
    [
        ({"a": ("a",)}, ["a", "a"]),
        ({"a": ("b",), "b": ("a",)}, ["a", "b", "a"]),
        ({"root": (), "x": ("a", "root"), "a": ("b",), "b": ("c",), "c": ("a",)}, list("abca")),
    ],
)
def test_a_circle_is_refused_and_shown(edges: dict[str, tuple[str, ...]], cycle: list[str]) -> None:
    with pytest.raises(CircularDependencyError) as refused:
        Graph([StepNode(name, needs) for name, needs in edges.items()])
    assert refused.value.cycle == cycle


def test_the_recorded_text_gives_the_same_graph_back() -> None:
    again = parse_graph(ORDER.text)
    assert again.steps == ORDER.steps
    assert again.fingerprint == ORDER.fingerprint
    assert parse_graph(ORDER.text) is again


def test_the_order_of_writing_is_not_part_of_the_fingerprint() -> None:
    turned = StepNode("ship", ("notify", "charge"), pivot=True)
    assert Graph([turned, CHARGE, NOTIFY, RESERVE]).fingerprint == ORDER.fingerprint


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (StepNode("charge", (), compensable=True), "depends on [] instead of ['reserve']"),
        (StepNode("charge", ("reserve",)), "compensable=False instead of True"),
        (StepNode("charge", ("reserve",), pivot=True, compensable=True), "pivot=True"),
        (StepNode("charge", ("reserve",), at_most_once=True, compensable=True), "at_most_once"),
        (StepNode("charge", ("reserve",), effects=False, compensable=True), "effects=False"),
        (StepNode("charge", ("reserve",), compensable=True, on_unknown=True), "on_unknown=True"),
    ],
)
def test_whatever_decides_the_meaning_of_facts_makes_another_graph(
    step: StepNode, told: str
) -> None:
    other = Graph([RESERVE, step, NOTIFY, SHIP])
    assert other.fingerprint != ORDER.fingerprint
    (difference,) = ORDER.differences(other)
    assert told in difference


def test_a_step_renamed_is_one_missing_and_one_new() -> None:
    other = Graph([RESERVE, StepNode("bill", ("reserve",))])
    assert Graph([RESERVE, StepNode("charge", ("reserve",))]).differences(other) == (
        "step 'charge' is missing",
        "step 'bill' is new",
    )
    assert ORDER.differences(ORDER) == ()
