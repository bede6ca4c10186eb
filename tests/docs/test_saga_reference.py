"""The reference of what a saga declares is whole: every option stands there, with its default."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import (
    RecoveryAction,
    Saga,
    SagaListener,
    SnapshotStrategy,
    action,
    child,
    compensate,
    forward_recovery,
)
from sagaz_es.core.decide import CompensationFailureStrategy, ParallelFailureStrategy
from sagaz_es.sagas.definition import CompensationType, Hooks
from sagaz_es.snapshots import ReplayConfig

PAGE = (Path(__file__).parents[2] / "docs/reference/saga.md").read_text()
NOT_OF_CHILDREN = {
    "at_most_once",
    "effects",
    "idempotency_key",
    "resolve",
    "aggregate_type",
    "event_type",
}


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def rows(title: str) -> dict[str, list[str]]:
    """The table rows under a heading whose first cell is a name: the other cells, by name."""
    cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in section(title).splitlines()]
    return {row[0].strip("`"): row[1:] for row in cells if len(row) > 1 and row[0].startswith("`")}


def defaults(title: str) -> dict[str, str]:
    """What the page says, without the rows of tables that have no such column."""
    return {name: cells[1].strip("`") for name, cells in rows(title).items() if len(cells) == 3}


def shown(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "({})".format(", ".join(kind.__name__ for kind in value) + "," * (len(value) == 1))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    return str(value)


def signature(function: Callable[..., Any]) -> dict[str, str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: shown(p.default) for p in parameters if p.name != "self"}


def normal(said: dict[str, str]) -> dict[str, str]:
    """`5.0` and `5` are one default."""
    return {name: text.removesuffix(".0") for name, text in said.items()}


@pytest.mark.parametrize(
    ("title", "function"),
    [
        ("action", action),
        ("compensate", compensate),
        ("forward_recovery", forward_recovery),
        ("Arguments of the constructor", Saga.__init__),
        ("ReplayConfig", ReplayConfig),
    ],
)
def test_every_option_is_there_with_its_default(title: str, function: Callable[..., Any]) -> None:
    assert normal(defaults(title)) == signature(function)


def test_a_child_step_differs_from_an_action_by_what_the_page_says() -> None:
    said = normal(defaults("action") | defaults("child"))
    takes = {name: text for name, text in said.items() if name not in NOT_OF_CHILDREN}
    assert takes == signature(child) | {"saga": "required"}


def test_every_attribute_of_a_class_is_there_with_its_default() -> None:
    declared = [name for name in Saga.__annotations__ if not name.startswith("_")]
    attributes = {name: shown(getattr(Saga, name)) for name in declared}
    assert normal(defaults("Attributes of the class")) == attributes


@pytest.mark.parametrize(
    ("title", "members"),
    [
        ("failure_strategy", {f'"{each}"' for each in ParallelFailureStrategy}),
        ("compensation_failure_strategy", {f'"{each}"' for each in CompensationFailureStrategy}),
        ("Hooks", set(Hooks.__struct_fields__)),
        ("Listeners", {name for name in vars(SagaListener) if name.startswith("on_")}),
    ],
)
def test_every_strategy_hook_and_method_is_there(title: str, members: set[str]) -> None:
    assert set(rows(title)) == members


def test_every_answer_of_a_handler_and_every_kind_is_there() -> None:
    table = {name for name, cells in rows("forward_recovery").items() if len(cells) == 1}
    assert table == {each.name for each in RecoveryAction} | {"RecoveryAction"}
    kinds = rows("compensate")["compensation_type"][-1]
    assert all(f'`"{each}"`' in kinds for each in CompensationType)
    strategies = rows("ReplayConfig")["snapshot_strategy"][-1]
    assert all(f"`{each}`" in strategies for each in SnapshotStrategy)
