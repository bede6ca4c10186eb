"""One `Saga` with both entry points: `run` gives a context or raises, `execute` gives a result."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from sagaz_es import ParallelFailureStrategy, Saga, SagaStatus, action, compensate
from sagaz_es.core.state import SagaStepStatus
from sagaz_es.errors import (
    ConfigurationError,
    LargePayloadWarning,
    MemoryFootprintError,
    SagaCompensationError,
    SagaStepError,
    SagaTimeoutError,
    UnstorableValue,
)
from sagaz_es.sagas.context import SagaContext, StepContext


class Order(Saga):
    saga_name = "order"

    @action("reserve")
    async def reserve(self, ctx: Any) -> dict[str, Any]:
        return {"reservation": f"r-{ctx['sku']}"}

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        pass

    @action("charge", ["reserve"], max_retries=0, timeout_seconds=10, description="take the money")
    async def charge(self, ctx: Any) -> dict[str, Any]:
        if ctx.get("poor"):
            raise SagaStepError("card refused")
        return {"paid": True}

    @action("ship", depends_on=["charge"], pivot=True)
    async def ship(self, ctx: Any) -> None:
        pass


def by_hand(*, broken: bool = False) -> Saga:
    async def reserve(ctx: Any) -> dict[str, Any]:
        return {"reservation": ctx.get("sku")}

    async def release(result: Any, ctx: Any) -> None:
        if broken:
            raise ValueError("cannot release")

    async def charge(ctx: Any) -> None:
        if ctx.has("poor"):
            raise ValueError("card refused")

    saga = Saga("by hand", "2.0", retry_backoff_base=0.0)
    saga.add_step("reserve", reserve, release)
    return saga.add_step("charge", charge, max_retries=1)


# --- run ------------------------------------------------------------------------------------------


async def test_run_gives_the_context_with_the_id_and_leaves_the_callers_alone() -> None:
    given = {"sku": "A1"}
    context = await Order().run(given)
    assert given == {"sku": "A1"}
    assert context == {
        "sku": "A1",
        "reservation": "r-A1",
        "paid": True,
        "saga_id": context["saga_id"],
    }
    assert UUID(context["saga_id"]).version == 4
    assert isinstance(context, SagaContext)


async def test_run_raises_the_steps_own_error() -> None:
    with pytest.raises(SagaStepError) as caught:
        await Order().run({"sku": "A1", "poor": True})
    assert str(caught.value) == "card refused"


async def test_one_object_runs_many_sagas() -> None:
    saga = Order()
    contexts = await asyncio.gather(*(saga.run({"sku": f"A{n}"}) for n in range(5)))
    assert [context["reservation"] for context in contexts] == [f"r-A{n}" for n in range(5)]
    assert len({context["saga_id"] for context in contexts}) == 5


async def test_the_same_id_is_the_same_saga_in_another_object_too() -> None:
    first = await Order().run({"sku": "A1"}, saga_id="order-1")
    assert await Order().run({"sku": "B2"}, saga_id="order-1") == first


async def test_sagas_built_alike_run_side_by_side() -> None:
    sagas = [by_hand() for _ in range(3)]
    results = await asyncio.gather(*(saga.execute() for saga in sagas))
    assert [result.status for result in results] == [SagaStatus.COMPLETED] * 3


# --- execute --------------------------------------------------------------------------------------


async def test_execute_starts_with_what_was_set_and_gives_a_result() -> None:
    saga = by_hand()
    saga.context.set("sku", "A1")
    result = await saga.execute()
    assert (result.success, result.status) == (True, SagaStatus.COMPLETED)
    assert (result.completed_steps, result.total_steps) == (2, 2)
    assert result.saga_id == saga.saga_id
    assert result.context.get("reservation") == "A1"
    assert result.context["reservation"] == saga.context.data["reservation"]


async def test_execute_does_not_raise_when_a_step_fails() -> None:
    saga = by_hand()
    saga.context.set("poor", True)
    result = await saga.execute()
    assert (result.success, result.status) == (False, SagaStatus.ROLLED_BACK)
    assert str(result.error) == "card refused"
    assert result.is_rolled_back


async def test_a_decorated_saga_executes_too() -> None:
    saga = Order()
    saga.context.set("sku", "A1")
    assert (await saga.execute()).context["reservation"] == "r-A1"


async def test_executed_twice_it_is_one_saga() -> None:
    saga = by_hand()
    first = await saga.execute()
    second = await saga.execute()
    assert (second.saga_id, second.execution_time) == (first.saga_id, first.execution_time)


async def test_steps_are_built_when_there_are_none() -> None:
    class Built(Saga):
        async def build(self) -> None:
            async def step(ctx: Any) -> dict[str, Any]:
                return {"built": True}

            await self.add_step("step", step)

    assert (await Built().execute()).context == {"built": True}
    assert [step.name for step in Built().get_steps()] == ["step"]


async def test_a_build_that_waits_for_something_is_refused_where_nobody_can_wait() -> None:
    class Slow(Saga):
        async def build(self) -> None:
            await asyncio.sleep(1)

    with pytest.raises(ConfigurationError, match=r"build\(\) waits"):
        Slow().definition()


async def test_a_saga_without_steps_completes() -> None:
    result = await Saga(name="nothing").execute()
    assert (result.status, result.total_steps) == (SagaStatus.COMPLETED, 0)


# --- the constructor ------------------------------------------------------------------------------


def test_the_constructor_takes_the_arguments_of_both_classes() -> None:
    saga = Saga("order", "1.3", ParallelFailureStrategy.WAIT_ALL, 0.5)
    assert (saga.name, saga.version) == ("order", "1.3")
    assert saga.failure_strategy is ParallelFailureStrategy.WAIT_ALL
    named = Saga(name="order", version="1.3", failure_strategy="FAIL_FAST", snapshot_storage=None)
    assert named.definition().rules.failure_strategy is ParallelFailureStrategy.FAIL_FAST


def test_the_base_of_the_backoff_is_for_steps_that_name_none() -> None:
    async def step(ctx: Any) -> None: ...

    saga = Saga("order", retry_backoff_base=0.5)
    saga.add_step("a", step).add_step("b", step, retry_delay_seconds=0.1)
    steps = saga.definition().steps
    assert [steps[name].retry.base_us for name in "ab"] == [500_000, 100_000]


@pytest.mark.parametrize(
    "text", ["fail_fast_grace", "FAIL_FAST_WITH_GRACE", "Fail_Fast_With_Grace"]
)
def test_a_failure_strategy_is_known_by_its_name_and_by_sagaz_value(text: str) -> None:
    saga = Order()
    saga.set_failure_strategy(text)
    assert saga.failure_strategy is ParallelFailureStrategy.FAIL_FAST_WITH_GRACE


def test_attributes_of_a_subclass_go_before_what_the_class_tells() -> None:
    class Own(Order):
        def __init__(self) -> None:
            super().__init__()
            self.steps = 7  # type: ignore[assignment]
            self.status = "mine"  # type: ignore[assignment]

    saga = Own()
    assert vars(saga)["steps"] == saga.steps
    assert vars(saga)["status"] == saga.status
    assert saga.get_status()["status"] == "pending"


# --- asking ---------------------------------------------------------------------------------------


def test_steps_are_shown_as_declared() -> None:
    saga = Order()
    assert [step.step_id for step in saga.get_steps()] == ["reserve", "charge", "ship"]
    charge = saga.get_step("charge")
    assert charge is not None
    assert (charge.depends_on, charge.max_retries, charge.timeout_seconds, charge.description) == (
        ("reserve",),
        0,
        10.0,
        "take the money",
    )
    assert saga.get_step("nothing") is None
    assert saga.get_pivot_steps() == ["ship"]
    levels = [[step.name for step in level] for level in saga.get_execution_order()]
    assert levels == [["reserve"], ["charge"], ["ship"]]


def test_before_a_run_everything_is_pending() -> None:
    saga = Order()
    assert (saga.status, saga.current_state) == (SagaStatus.PENDING, "Pending")
    assert {step.status for step in saga.steps} == {SagaStepStatus.PENDING}
    assert (saga.completed_steps, saga.error, saga.started_at) == ([], None, None)
    assert UUID(saga.saga_id)


async def test_after_a_run_the_object_tells_how_it_ended() -> None:
    saga, before = Order(), datetime.now(UTC)
    with pytest.raises(SagaStepError):
        await saga.run({"sku": "A1", "poor": True}, saga_id="order-1")
    assert (saga.saga_id, saga.status) == ("order-1", SagaStatus.ROLLED_BACK)
    assert saga.current_state == "RolledBack"
    assert [(step.name, str(step.status)) for step in saga.steps] == [
        ("reserve", "compensated"),
        ("charge", "failed"),
        ("ship", "pending"),
    ]
    assert saga.steps[0].result == {"reservation": "r-A1"}
    assert saga.steps[1].error is saga.error
    assert [step.name for step in saga.completed_steps] == ["reserve"]
    assert saga.started_at is not None and saga.completed_at is not None
    # Clocks of a test machine are read twice: whole milliseconds are enough.
    assert before - timedelta(milliseconds=1) <= saga.started_at <= saga.completed_at
    status = saga.get_status()
    assert (status["name"], status["status"], status["completed_steps"]) == (
        "order",
        "rolled_back",
        1,
    )
    assert status["error"] == "card refused"
    assert status["steps"][1]["status"] == "failed"
    assert datetime.fromisoformat(status["started_at"]).tzinfo is not None


async def test_behind_a_pivot_steps_are_shown_as_locked() -> None:
    saga = Order()
    await saga.run({"sku": "A1"})
    assert [(step.name, step.tainted, step.can_compensate()) for step in saga.steps] == [
        ("reserve", True, False),
        ("charge", True, False),
        ("ship", False, False),
    ]


async def test_a_compensation_that_failed_is_among_the_errors() -> None:
    saga = by_hand(broken=True)
    saga.context.set("poor", True)
    result = await saga.execute()
    assert result.status is SagaStatus.FAILED
    assert [type(error) for error in result.compensation_errors] == [SagaCompensationError]
    assert str(saga.compensation_errors[0]) == "reserve: ValueError: cannot release"


# --- errors and contexts --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SagaStepError, SagaCompensationError, SagaTimeoutError])
def test_errors_of_steps_can_be_raised_with_a_sentence(error: type[Exception]) -> None:
    assert str(error("out of stock")) == "out of stock"


@pytest.mark.parametrize("context", [SagaContext({"a": 1}), StepContext({"a": "1"})])
async def test_a_context_is_a_mapping_with_sagaz_spellings(context: SagaContext) -> None:
    context.set("b", 2)
    await context.set_async("c", 3)
    await context.store_external("d", 4)
    assert context.data == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert (context.has("b"), context.has("x"), context.get("x", 0)) == (True, False, 0)
    assert (await context.get_async("c"), await context.load_external("d")) == (3, 4)


def test_a_stream_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnstorableValue, match="keep its address"):
        SagaContext().register_stream("rows", iter(()))


# --- what files written for sagaz rely on ---------------------------------------------------------


async def test_results_are_read_by_their_steps_name_in_the_final_context_too() -> None:
    saga = Saga("by hand")
    saga.add_step("price", lambda ctx: {"amount": 100})
    saga.add_step("double", lambda ctx: {"amount": ctx.get("price")["amount"] * 2})
    saga.add_step("word", lambda ctx: "done")
    result = await saga.execute()
    assert saga.context.get("price") == {"amount": 100}
    assert saga.context["double"] == {"amount": 200}
    assert result.context["word"] == "done" and "word" in result.context
    assert dict(result.context) == {"amount": 200}
    assert saga.context.get("nothing", 7) == 7


async def test_an_id_in_the_context_is_the_sagas_and_every_step_reads_it() -> None:
    seen: list[Any] = []
    saga = Saga("by hand").add_step("a", lambda ctx: seen.append((ctx["saga_id"], ctx.saga_id)))
    final = await saga.run({"saga_id": "order-7"})
    other = await Saga("by hand").add_step("a", lambda ctx: seen.append(ctx.get("saga_id"))).run()
    assert seen == [("order-7", "order-7"), other["saga_id"]]
    assert final["saga_id"] == saga.saga_id == "order-7"
    assert other["saga_id"] != "order-7"


async def test_a_saga_tells_where_it_stands_while_it_runs() -> None:
    seen: list[Any] = []

    class Watched(Saga):
        @action("first")
        async def first(self, ctx: Any) -> None:
            seen.append((self.status, [step.name for step in self.completed_steps]))

        @compensate("first")
        async def undo(self, ctx: Any) -> None:
            seen.append((self.status, [step.name for step in self.completed_steps]))

        @action("second", max_retries=0)
        async def second(self, ctx: Any) -> None:
            raise ValueError("no")

    saga = Watched()
    await saga.execute()
    assert seen == [
        (SagaStatus.EXECUTING, []),
        (SagaStatus.COMPENSATING, ["first"]),
    ]
    assert saga.status is SagaStatus.ROLLED_BACK


def test_a_name_that_is_given_is_the_sagas_name_unless_the_class_has_one() -> None:
    class Unnamed(Saga):
        @action("a")
        async def a(self, ctx: Any) -> None: ...

    class Named(Unnamed):
        saga_name = "named"

    assert Unnamed("given").saga_name == "given"
    assert Unnamed().saga_name is None
    assert Named("given").saga_name == "named"


def test_a_context_keeps_the_limits_it_is_configured_with() -> None:
    context = SagaContext()
    with pytest.raises(ConfigurationError, match="auto_offload"):
        context.configure("s", auto_offload=True)
    context.configure("s", warn_threshold=10, strict_limit=100)
    context.set("small", "x")
    with pytest.warns(LargePayloadWarning, match="'large': 22 bytes"):
        context.set("large", "x" * 20)
    with pytest.raises(MemoryFootprintError, match=r"'larger' takes 202 bytes.*100"):
        context.set("larger", "x" * 200)
    assert "larger" not in context
