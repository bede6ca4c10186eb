"""Parents and children on the command line."""

from __future__ import annotations

import textwrap

from .conftest import Project, Shop

APP = "tests.cli.parcels:ParcelSaga"


def started(shop: Shop, weight: int) -> str:
    """A parcel p-1; the id of its child, which depends on how many partitions there are."""
    context = f'{{"weight": {weight}}}'
    shop.run("saga", "start", "parcel", "--saga-id", "p-1", "--context", context, "--app", APP)
    child_id: str = shop.run("saga", "show", "p-1").json["children"][0]["saga_id"]
    assert child_id.startswith("p-1/label")
    return child_id


def test_show_lists_the_children_of_a_parent_and_the_parent_of_a_child(shop: Shop) -> None:
    label = started(shop, 40)
    parent = shop.run("saga", "show", "p-1").json
    assert parent["children"] == [
        {
            "step": "label",
            "saga_id": label,
            "saga_name": "label",
            "status": "rolled_back",
            "branch": None,
        }
    ]
    assert (parent["caller_saga_id"], parent["caller_step"]) == (None, None)
    kid = shop.run("saga", "show", label).json
    assert (kid["caller_saga_id"], kid["caller_step"], kid["children"]) == ("p-1", "label", [])
    table = shop.run("saga", "show", "p-1", "--format", "table").stdout
    assert "child of step" in table and label in table
    table = shop.run("saga", "show", label, "--format", "table").stdout
    assert "child of" in table and "by its step" in table


BY_NAME = """
    from sagaz_es import Saga, action, child

    class Print(Saga):
        saga_name = "print"

        @action("ink")
        async def ink(self, ctx):
            return {"label": f"L-{ctx['weight']}"}

    class Label(Saga):
        saga_name = "label"

        @child("print", "print")
        async def print(self, ctx):
            return {"weight": ctx["weight"]}

    class Parcel(Saga):
        saga_name = "parcel"

        @child("labels", "label", for_each=True)
        async def labels(self, ctx):
            return [{"weight": weight} for weight in ctx["weights"]]

    class Other(Saga):
        saga_name = "other"

        def __init__(self, pool):
            super().__init__()

        @action("any")
        async def any(self, ctx): ...
"""


def test_a_saga_that_names_its_children_finds_their_code_in_the_app(project: Project) -> None:
    (project.path / "post.py").write_text(textwrap.dedent(BY_NAME))
    given = project.run(
        *("saga", "start", "parcel", "--saga-id", "p-1", "--app", "post"),
        *("--context", '{"weights": [4, 5]}'),
    )
    assert (given.status, given.json["status"]) == (0, "completed"), given.stderr
    assert [row["saga_name"] for row in project.run("saga", "list", "--name", "print").json] == [
        "print",
        "print",
    ]


def test_time_travel_shows_the_children_of_that_time(shop: Shop) -> None:
    label = started(shop, 4)
    before = shop.run("replay", "time-travel", "p-1", "--at", "step:label").json
    after = shop.run("replay", "time-travel", "p-1", "--at", "step:post").json
    assert (before["children"], after["children"]) == ({}, {"label": label})
    table = shop.run("replay", "time-travel", "p-1", "--at", "6", "--format", "table").stdout
    assert "child of label" in table


def test_list_changes_tells_of_the_childs_beginning_and_end(shop: Shop) -> None:
    started(shop, 4)
    told = shop.run("replay", "list-changes", "p-1").json
    assert [change["type"] for change in told[2:5]] == [
        "ChildStarted",
        "ChildEnded",
        "StepCompleted",
    ]
    assert told[4]["changes"]["set"] == {"label": "L-4"}


def test_a_plan_is_shown_and_run_with_the_child_in_it(shop: Shop) -> None:
    label = started(shop, 4)
    plan = shop.run("replay", "plan", "p-1", "--from-step", "label").json
    assert [step["verdict"] for step in plan["steps"]] == ["undo_first", "blocked"]
    done = shop.run("replay", "run", "p-1", "--from-step", "label", "--allow", "post", "--app", APP)
    assert (done.status, done.json["status"]) == (0, "success")
    assert shop.run("saga", "show", label).json["status"] == "rolled_back"
