"""What changed code may not change of a saga that has begun."""

from __future__ import annotations

import pytest

from sagaz_es.core.evolution import begun_steps, obstacles
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.state import SagaState, StepState

RESERVE = StepNode("reserve")
CHARGE = StepNode("charge", ("reserve",), compensable=True)
SHIP = StepNode("ship", ("charge",))
RECORDED = Graph([RESERVE, CHARGE, SHIP])
CHECK = StepNode("check", ("reserve",))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ([RESERVE, CHARGE, SHIP], ()),
        ([RESERVE, CHARGE], ()),
        ([RESERVE, CHARGE, StepNode("ship", ("reserve",), pivot=True)], ()),
        ([RESERVE, CHARGE, CHECK, StepNode("ship", ("charge", "check"))], ()),
        ([StepNode("reserve", compensable=True, on_unknown=True), CHARGE, SHIP], ()),
        ([RESERVE, StepNode("ship")], ("step 'charge' has begun and is missing",)),
        (
            [RESERVE, CHECK, StepNode("charge", ("check",), compensable=True), SHIP],
            ("step 'charge' has begun and depends on ['check'] instead of ['reserve']",),
        ),
        (
            [RESERVE, StepNode("charge", ("reserve",)), SHIP],
            ("step 'charge' has begun and has compensable=False instead of True",),
        ),
        (
            [StepNode("reserve", pivot=True), CHARGE, SHIP],
            ("step 'reserve' has begun and has pivot=True instead of False",),
        ),
    ],
)
def test_only_what_has_not_begun_is_free_to_change(
    code: list[StepNode], told: tuple[str, ...]
) -> None:
    assert obstacles(("reserve", "charge"), RECORDED, Graph(code)) == told


def test_a_step_has_begun_if_anything_stands_recorded_of_it() -> None:
    state = SagaState(
        steps={
            "reserve": StepState(status="completed", attempt=1),
            "charge": StepState(attempt=1, failures=1, retry_at=5),
            "ship": StepState(),  # inherited, and undone before the branch goes forward
        }
    )
    assert begun_steps(state) == ("reserve", "charge")
