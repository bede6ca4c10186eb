"""How a child step is declared, and what code that runs one has to have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from sagaz_es import (
    RecoveryAction,
    Saga,
    action,
    child,
    compensate,
    connect,
    forward_recovery,
)
from sagaz_es.core.evolution import obstacles
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.registry import Registry
from sagaz_es.errors import ConfigurationError, DefinitionError
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.sagas.triggers import trigger
from sagaz_es.testing import given
from tests.helpers import Declined, Ledger, LedgerSaga, engine_on


class Leaf(Saga):
    saga_name: ClassVar[str | None] = "leaf"

    @action("grow")
    async def grow(self, ctx: Any) -> Any:
        return {"size": ctx.get("size", 0) + 1, "text": ctx.get("text", "")}


class Tree(Saga):
    saga_name: ClassVar[str | None] = "tree"

    @child("leaf", Leaf, result_keys=["size"])
    async def leaf(self, ctx: Any) -> Any:
        return {"size": ctx.get("size", 0)}


def test_a_child_step_is_undone_by_its_saga_alone() -> None:
    with pytest.raises(DefinitionError, match="taking its saga 'leaf' back"):

        class Wrong(Saga):
            @child("leaf", Leaf)
            async def leaf(self, ctx: Any) -> Any: ...

            @compensate("leaf")
            async def fell(self, ctx: Any) -> Any: ...

    with pytest.raises(DefinitionError, match="taking its saga 'leaf' back"):
        Saga("wrong").add_step("leaf", dict, lambda ctx: None, child=Leaf)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"result_keys": ["size"]}, "goes with child"),
        ({"child": Leaf, "result_keys": "size"}, "list of keys"),
        ({"child": 7}, "a Saga class, a Saga object, or a saga's name"),
        ({"child": Leaf, "at_most_once": True}, "said of that saga's steps"),
        ({"child": Leaf, "effects": False}, "said of that saga's steps"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Saga("wrong").add_step("leaf", dict, **options)


def test_the_childs_name_is_part_of_the_recorded_definition() -> None:
    def graph(name: str) -> Graph:
        return Graph([StepNode("leaf", child=name)])

    assert graph("leaf").differences(graph("twig")) == (
        "step 'leaf' has child=twig instead of leaf",
    )
    assert obstacles(["leaf"], graph("leaf"), graph("twig"))
    assert graph("").fingerprint == Graph([StepNode("leaf")]).fingerprint


def test_who_has_a_parent_has_its_children() -> None:
    class Forest(Saga):
        @child("tree", Tree)
        async def tree(self, ctx: Any) -> Any: ...

    assert Registry([Forest]).names == ("Forest", "tree", "leaf")
    made = Registry({"Forest": lambda name: Forest()})
    made.by_name("Forest")
    assert made.names == ("Forest", "tree", "leaf")
    by_name = Saga("by name").add_step("tree", dict, child="tree")
    assert Registry([by_name]).names == ("by name",)


async def test_a_saga_that_is_run_by_itself_runs_its_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGAZ_ES_LOG", f"sqlite:///{tmp_path}/log.db")
    tree = Tree()
    assert (await tree.run({"size": 4}))["size"] == 5
    assert [(step.name, step.can_compensate()) for step in tree.steps] == [("leaf", True)]


async def test_large_values_of_a_child_come_back_whole() -> None:
    class Big(Saga):
        @child("leaf", Leaf)
        async def leaf(self, ctx: Any) -> Any:
            return {"text": ctx["text"]}

        @child("again", Leaf, result_keys=["text"])
        async def again(self, ctx: Any) -> Any:
            return {"text": ctx.result_of("leaf")["text"]}

    config = EngineConfig(value_warn_bytes=0, value_inline_bytes=1000)
    async with connect("memory://", sagas=[Big], config=config) as engine:
        result = await engine.run(Big, {"text": "x" * 5000}, saga_id="b")
        assert result.context["text"] == "x" * 5000
        children = (await engine.history("b").now()).children
        fix = await engine.plan_replay(
            children["again"], "grow", context_override={"text": "y" * 6000}, allow=["grow"]
        )
        assert (await engine.replay(fix)).success
        plan = await engine.plan_replay("b", "again")
        assert "behind" not in plan.steps[1].reason
        assert len(plan.start) < 20_000  # the new result is kept beside it
    assert str(plan.steps[1].verdict) == "undo_first"


async def test_a_missing_result_key_fails_the_step_and_takes_the_child_back() -> None:
    class Wrong(LedgerSaga):
        @child("one", "one", result_keys=["nothing"])
        async def one(self, ctx: Any) -> Any: ...

    class One(LedgerSaga):
        saga_name: ClassVar[str | None] = "one"

        @action("a", max_retries=0)
        async def a(self, ctx: Any) -> Any:
            return await self.do(ctx)

        @compensate("a")
        async def undo_a(self, result: Any, ctx: Any) -> Any:
            return await self.undo(ctx, result)

    ledger = Ledger()
    async with engine_on(MemoryEventLog(2), Wrong, One, ledger=ledger) as engine:
        result = await engine.run(Wrong)
    assert result.status == "rolled_back" and "no 'nothing'" in str(result.error)
    assert ledger.order == ["a", "undo a"]


async def test_a_retry_behind_a_pivot_starts_a_new_child() -> None:
    class Two(LedgerSaga):
        saga_name: ClassVar[str | None] = "two"

        @action("b", max_retries=0)
        async def b(self, ctx: Any) -> Any:
            return await self.do(ctx)

    class Forward(LedgerSaga):
        @action("pay", pivot=True)
        async def pay(self, ctx: Any) -> Any:
            return await self.do(ctx)

        @child("two", Two)
        async def two(self, ctx: Any) -> Any: ...

        @forward_recovery("two")
        async def recover(self, ctx: Any, error: Exception) -> RecoveryAction:
            return RecoveryAction.RETRY

    ledger, log = Ledger(), MemoryEventLog(1)
    ledger.fails("b", Declined())
    async with engine_on(log, Forward, ledger=ledger) as engine:
        result = await engine.run(Forward, saga_id="f")
        assert str(await engine.status("f/two")) == "rolled_back"
        assert str(await engine.status("f/two~2")) == "completed"
    assert result.success and ledger.standing == ["pay", "b"]


async def test_a_saga_that_starts_its_own_kind_waits_for_no_turn() -> None:
    class Nested(Saga):
        saga_name: ClassVar[str | None] = "nested"

        @trigger("nested", max_concurrent=1)
        def on_nested(self, event: Any) -> Any:
            return event

        @child("inner", "nested", max_retries=0)
        async def inner(self, ctx: Any) -> Any:
            if not ctx["depth"]:
                raise Declined("deep enough")
            return {"depth": ctx["depth"] - 1}

    async with engine_on(MemoryEventLog(1), Nested) as engine:
        result = await engine.run(Nested, {"depth": 3}, saga_id="n")
        assert str(await engine.status("n/inner/inner/inner")) == "rolled_back"
    assert result.status == "rolled_back" and "deep enough" in str(result.error)


def test_given_when_then_knows_the_children() -> None:
    given(Tree, {"size": 1}).fails("grow", attempts=1).then(
        status="completed", calls=["leaf", "grow", "grow"], context={"size": 2}
    )
    waits = Saga("waits").add_step("a", dict, wait_for="go")
    parent = Saga("parent").add_step("b", dict, child=waits)
    given(parent).then(waits_for="step 'b' waits for its saga 'saga-1/b'")
