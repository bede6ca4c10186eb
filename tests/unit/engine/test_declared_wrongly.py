"""What authors write and cannot be meant is refused when the class is made, by its name."""

from __future__ import annotations

import asyncio
import math
import types
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest

from sagaz_es import Saga, action, child, compensate, connect, forward_recovery
from sagaz_es.errors import ConfigurationError, DefinitionError


def method() -> Callable[..., Any]:
    async def step(self: Any, ctx: Any) -> None: ...

    return step


NO_SECONDS = [-1, None, "1", math.nan, math.inf, 1e30, True]
NO_COUNT = [-1, None, "3", 1.5, True]
NO_ERRORS = ["ValueError", [1], None]

WRONG: list[tuple[Callable[..., Any], str, list[Any]]] = [
    (action, "timeout_seconds", [0, *NO_SECONDS]),
    (action, "retry_delay_seconds", NO_SECONDS),
    (action, "max_retry_delay_seconds", [0, *NO_SECONDS]),
    (action, "max_retries", NO_COUNT),
    (action, "pivot", ["yes", None, 1]),
    (action, "at_most_once", ["yes"]),
    (action, "effects", [None]),
    (action, "depends_on", ["reserve", 5]),
    (action, "idempotency_key", ["", 5]),
    (action, "wait_for", ["", 5]),
    (action, "retry_on", NO_ERRORS),
    (action, "no_retry", NO_ERRORS),
    (action, "on_enter", ["log"]),
    (action, "resolve", ["ask"]),
    (compensate, "max_retries", NO_COUNT),
    (compensate, "timeout_seconds", [0, *NO_SECONDS]),
    (compensate, "retry_delay_seconds", NO_SECONDS),
    (compensate, "on_unknown", ["yes"]),
    (compensate, "compensation_type", ["weird", None]),
    (forward_recovery, "max_retries", NO_COUNT),
    (forward_recovery, "timeout_seconds", [0, *NO_SECONDS]),
]


@pytest.mark.parametrize(
    ("decorator", "option", "value"),
    [(decorator, option, value) for decorator, option, values in WRONG for value in values],
)
def test_an_option_that_cannot_be_meant_is_refused_by_step_and_name(
    decorator: Callable[..., Any], option: str, value: Any
) -> None:
    with pytest.raises(ConfigurationError, match=rf"^step 'charge': {option}\b"):
        decorator("charge", **{option: value})(method())


@pytest.mark.parametrize("kinds", [ValueError, [ValueError], (ValueError, OSError)])
async def test_one_class_of_errors_or_several_can_be_named(kinds: Any) -> None:
    calls = []

    class Charges(Saga):
        @action("charge", no_retry=kinds, retry_delay_seconds=0)
        async def charge(self, ctx: Any) -> None:
            calls.append(ctx.attempt)
            raise ValueError("no money")

    async with connect("memory://", sagas=[Charges]) as engine:
        result = await engine.run(Charges)
    assert (calls, str(result.error)) == ([1], "no money")


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("saga_name", 5),
        ("saga_name", "\ud800"),
        ("failure_strategy", "nope"),
        ("compensation_failure_strategy", "nope"),
        ("grace_seconds", -1),
        ("deadline_seconds", 0),
        ("deadline_seconds", "60"),
        ("listeners", print),
        ("replay_config", {"enable_snapshots": True}),
    ],
)
def test_what_a_class_says_wrongly_is_refused_by_its_name(attribute: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^Orders: {attribute}\b"):
        type("Orders", (Saga,), {attribute: value, "charge": action("charge")(method())})


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("name", 5),
        ("failure_strategy", "nope"),
        ("compensation_failure_strategy", "nope"),
        ("grace_seconds", -1),
        ("replay_config", 5),
    ],
)
def test_what_is_given_to_an_object_is_checked_too(attribute: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=attribute):
        Saga(**{attribute: value})


def test_a_method_that_lacks_the_context_is_refused_with_its_form() -> None:
    def lonely() -> Callable[..., Any]:
        async def alone(self: Any) -> None: ...

        return alone

    def methods(**more: Any) -> dict[str, Any]:
        return {"charge": action("charge")(method()), **more}

    with pytest.raises(
        DefinitionError, match=r"^Orders: step 'ship': .*write def alone\(self, ctx\)"
    ):
        type("Orders", (Saga,), methods(ship=action("ship")(lonely())))
    with pytest.raises(DefinitionError, match=r"the compensation of step 'charge': alone\(self"):
        type("Orders", (Saga,), methods(refund=compensate("charge")(lonely())))
    with pytest.raises(DefinitionError, match=r"write def step\(self, ctx, error\)"):
        type("Orders", (Saga,), methods(recover=forward_recovery("charge")(method())))
    with pytest.raises(DefinitionError, match=r"write def step\(ctx\)"):
        Saga("orders").add_step("charge", method())
    with pytest.raises(DefinitionError, match="5 is no function"):
        Saga("orders").add_step("charge", 5)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="the compensation of step 'charge'"):
        Saga("orders").add_step("charge", lambda ctx: None, lambda: None)


async def test_a_decorator_may_give_a_method_more_than_the_context() -> None:
    def with_clock(function: Any) -> Any:
        @wraps(function)
        async def wrapper(self: Any, ctx: Any) -> Any:
            return await function(self, ctx, "noon")

        return wrapper

    class Below(Saga):
        @action("charge")
        @with_clock
        async def charge(self, ctx: Any, clock: str) -> dict[str, str]:
            return {"below": clock}

    class Above(Saga):
        @with_clock
        @action("charge")
        async def charge(self, ctx: Any, clock: str) -> dict[str, str]:
            return {"above": clock}

    async with connect("memory://", sagas=[Below, Above]) as engine:
        assert (await engine.run(Below)).context == {"below": "noon"}
        assert (await engine.run(Above)).context == {"above": "noon"}


async def yields_here(ctx: Any) -> Any:
    yield 1


def yields_in_a_thread(ctx: Any) -> Any:
    yield 1


@pytest.mark.parametrize("function", [yields_here, yields_in_a_thread])
def test_a_generator_which_would_do_nothing_when_it_is_called_is_refused(function: Any) -> None:
    with pytest.raises(DefinitionError, match=r"step 'a': yields_\w+ yields, .* return instead"):
        Saga("s").add_step("a", function)
    with pytest.raises(DefinitionError, match="yields"):
        Saga("s").add_step("a", print, function)
    with pytest.raises(DefinitionError, match="yields"):

        class Yields(Saga):
            @action("a")
            async def a(self, ctx: Any) -> Any:
                yield 1


async def test_a_generator_that_is_a_coroutine_is_a_step() -> None:
    @types.coroutine
    def step(ctx: Any) -> Any:
        yield from asyncio.sleep(0).__await__()
        return {"done": True}

    saga = Saga("s").add_step("a", step)
    async with connect("memory://", sagas=[saga]) as engine:
        assert (await engine.run(saga)).context == {"done": True}


@pytest.mark.parametrize("value", ["yes", None, 1])
def test_for_each_is_said_or_not(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="step 'a': for_each is True or False, not"):
        Saga("s").add_step("a", print, child="other", for_each=value)


def test_a_child_without_a_saga_is_no_plain_step() -> None:
    with pytest.raises(ConfigurationError, match="step 'pay': a child is a Saga class"):
        child("pay", None)(method())  # type: ignore[arg-type]
