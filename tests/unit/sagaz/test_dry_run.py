"""A saga looked at before it runs: DryRunEngine, as sagaz spells it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sagaz_es import (
    ConfigurationError,
    DryRunEngine,
    DryRunMode,
    InMemorySagaStorage,
    Saga,
    SagaConfig,
    action,
    compensate,
)


class Diamond(Saga):
    saga_name = "diamond"
    called: list[str] = []  # noqa: RUF012 - what a dry run must leave empty

    @action("top", depends_on=[])
    async def top(self, ctx: Any) -> None:
        self.called.append("top")

    @compensate("top")
    async def undo_top(self, ctx: Any) -> None: ...

    @action("left", depends_on=["top"])
    async def left(self, ctx: Any) -> None: ...

    @compensate("left")
    async def undo_left(self, ctx: Any) -> None: ...

    @action("right", depends_on=["top"])
    async def right(self, ctx: Any) -> None: ...

    @action("bottom", depends_on=["left", "right"], pivot=True)
    async def bottom(self, ctx: Any) -> None: ...

    @action("last", depends_on=["bottom"])
    async def last(self, ctx: Any) -> None: ...


async def test_a_simulation_lays_the_steps_out_and_runs_none() -> None:
    result = await DryRunEngine().run(Diamond(), {"a": 1}, DryRunMode.SIMULATE)
    assert result.success and not result.validation_errors
    assert result.steps_planned == ["top", "left", "right", "bottom", "last"]
    assert result.execution_order == ["top", "left", "right", "bottom", "last"]
    assert result.parallel_groups == [["top"], ["left", "right"], ["bottom"], ["last"]]
    assert [layer.steps for layer in result.backward_layers] == [["left"], ["top"]]
    assert result.forward_layers[2].dependencies == {"left", "right"}
    assert (result.total_layers, result.max_parallel_width) == (4, 2)
    assert len(result.critical_path) == 4 and result.critical_path[0] == "top"
    assert (result.sequential_complexity, result.parallel_complexity) == (5, 4)
    assert result.parallelization_ratio == 4 / 5
    assert result.metadata["pivots"] == ["bottom"]
    assert Diamond.called == []


async def test_a_validation_says_what_there_is_and_what_will_stand() -> None:
    result = await DryRunEngine().run(Diamond, {}, "validate")
    assert result.success and result.execution_order == []
    assert result.validation_checks["step_count"] == 5
    assert result.validation_checks["has_compensation"] is True
    assert result.validation_checks["fingerprint"] == Diamond.fingerprint()
    assert result.validation_warnings == [
        "step 'right' has no compensation: its effect stands if a later step fails"
    ]


class Wanted(msgspec.Struct):
    sku: str


def by_hand(**options: Any) -> Saga:
    return Saga("by hand", **options).add_step("a", lambda ctx: None)


@pytest.mark.parametrize(
    ("saga", "context", "error"),
    [
        (lambda: Saga("none"), {}, "no steps"),
        (by_hand, {"a": {"b": object()}}, "a.b: an object cannot be kept"),
        (lambda: by_hand(context_type=Wanted), {"sku": 1}, "sku: found int, expected str"),
        (lambda: by_hand().add_step("b", print, depends_on=["c"]), {}, "'b' depends on 'c'"),
        (
            lambda: by_hand(config=SagaConfig(InMemorySagaStorage(), value_max_bytes=9)),
            {"big": "x" * 10},
            "'big' takes 12 bytes, more than the limit of 9",
        ),
        (by_hand, 17, "a mapping"),
    ],
)
async def test_what_a_start_would_be_refused_with_is_an_error(
    saga: Any, context: Any, error: str
) -> None:
    result = await DryRunEngine().run(saga(), context, DryRunMode.SIMULATE)
    assert not result.success
    assert len(result.validation_errors) == 1 and error in result.validation_errors[0]
    assert result.execution_order == []


async def test_steps_that_build_adds_are_seen_and_fields_that_are_required_named() -> None:
    class Built(Saga):
        required_context_fields = ("sku", "amount")

        async def build(self) -> None:
            await self.add_step("one", lambda ctx: None)
            await self.add_step("two", lambda ctx: None)

    result = await DryRunEngine().run(Built(), {"sku": "A1"}, DryRunMode.SIMULATE)
    assert result.validation_errors == ["missing required context fields: ['amount']"]
    whole = await DryRunEngine().run(Built(), {"sku": "A1", "amount": 1}, DryRunMode.SIMULATE)
    assert whole.execution_order == ["one", "two"]


async def test_another_mode_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="validate, simulate"):
        await DryRunEngine().run(Diamond(), {}, "guess")
