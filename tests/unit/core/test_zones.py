"""Zones: where steps stand to the pivots, over any number of levels."""

from __future__ import annotations

from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.zones import PivotInfo, StepZone, TaintPropagator, pivots_of, zones_of

GRAPH = Graph(
    (
        StepNode("check"),
        StepNode("reserve", ("check",)),
        StepNode("charge", ("reserve",), pivot=True),
        StepNode("pack", ("charge",)),
        StepNode("ship", ("pack",), pivot=True),
        StepNode("mail", ("check",)),
    )
)


def zone(completed: tuple[str, ...]) -> dict[str, StepZone]:
    return {name: zones_of(GRAPH, completed).get_zone(name) for name in GRAPH.by_name}


def test_before_a_pivot_has_completed_everything_can_be_undone() -> None:
    assert set(zone(("check", "reserve")).values()) == {StepZone.REVERSIBLE, StepZone.PIVOT}


def test_a_completed_pivot_locks_what_it_depends_on_and_commits_what_follows() -> None:
    assert zone(("charge",)) == {
        "check": StepZone.TAINTED,
        "reserve": StepZone.TAINTED,
        "charge": StepZone.PIVOT,
        "pack": StepZone.COMMITTED,
        "ship": StepZone.PIVOT,
        "mail": StepZone.REVERSIBLE,
    }


def test_undoing_stops_at_the_nearest_pivot() -> None:
    zones = zones_of(GRAPH, ("charge",))
    assert (zones.get_rollback_boundary("pack"), zones.get_rollback_boundary("mail")) == (
        "charge",
        None,
    )
    assert [zones.is_rollback_allowed(name) for name in ("check", "charge", "pack", "mail")] == [
        False,
        False,
        True,
        True,
    ]


def test_pivots_know_what_they_lock() -> None:
    charge = PivotInfo("charge", True, frozenset({"check", "reserve"}))
    ship = PivotInfo("ship", False, frozenset({"check", "reserve", "charge", "pack"}))
    assert pivots_of(GRAPH, ("charge",)) == (charge, ship)


def test_a_propagator_over_plain_names() -> None:
    names = {"a": set(), "b": {"a"}, "c": {"b"}}  # type: dict[str, set[str]]
    taint = TaintPropagator(names, names, pivots={"b"})
    assert taint.propagate_taint("b") == {"a"}
    assert not taint.is_tainted("a")  # it says what would be, and changes nothing
    done = TaintPropagator(names, names, {"b"}, {"b"})
    assert (done.is_tainted("a"), done.can_compensate("b"), done.can_compensate("c")) == (
        True,
        False,
        True,
    )
    assert done.get_rollback_boundary("c") == "b"
