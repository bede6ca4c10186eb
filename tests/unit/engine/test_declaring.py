"""What a saga class may not say, and that it is told when the class is made."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper, wraps
from typing import Any

import pytest

from sagaz_es import Saga, action, child, compensate, connect, forward_recovery
from sagaz_es.errors import DefinitionError


class Payment(Saga):
    @action("charge", depends_on=[])
    async def charge(self, ctx: Any) -> dict[str, Any]:
        return {"charged": True}

    @compensate("charge")
    async def refund(self, ctx: Any) -> None: ...

    @forward_recovery("charge")
    async def help_charge(self, ctx: Any, error: BaseException) -> str:
        return "retry"

    @action("mail", depends_on=["charge"])
    async def mail(self, ctx: Any) -> None: ...


def test_an_override_of_a_step_without_its_decorator_is_refused() -> None:
    with pytest.raises(
        DefinitionError,
        match=r"Loud: mail overrides the step 'mail' .* repeat @action\('mail', …\)",
    ):

        class Loud(Payment):
            async def mail(self, ctx: Any) -> None: ...


def test_an_override_of_a_compensation_without_its_decorator_is_refused() -> None:
    with pytest.raises(
        DefinitionError,
        match=r"Gentle: refund overrides the compensation of step 'charge' .* @compensate",
    ):

        class Gentle(Payment):
            async def refund(self, ctx: Any) -> None: ...


def test_an_override_of_a_recovery_handler_without_its_decorator_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"help_charge .* @forward_recovery\('charge'"):

        class Stubborn(Payment):
            async def help_charge(self, ctx: Any, error: BaseException) -> str:
                return "skip"


def test_an_undecorated_override_in_a_mixin_is_told_with_the_mixin() -> None:
    class Mailing:
        async def mail(self, ctx: Any) -> None: ...

    with pytest.raises(DefinitionError, match=r"Mixed: Mailing\.mail overrides the step 'mail'"):

        class Mixed(Mailing, Payment):
            pass


def test_an_override_with_its_decorator_replaces_and_none_drops() -> None:
    class Changed(Payment):
        mail = None  # type: ignore[assignment]

        @compensate("charge", on_unknown=True)
        async def refund(self, ctx: Any) -> None: ...

    steps = Changed().definition().steps
    undo = steps["charge"].compensation
    assert list(steps) == ["charge"]
    assert undo is not None and undo.on_unknown


@pytest.mark.parametrize(
    ("decorator", "form"),
    [
        (action, '@action("charge")'),
        (child, '@child("charge", PaymentSaga)'),
        (compensate, '@compensate("charge")'),
        (forward_recovery, '@forward_recovery("charge")'),
    ],
)
def test_a_decorator_that_is_not_called_shows_its_form(decorator: Any, form: str) -> None:
    async def charge(self: Any, ctx: Any) -> None: ...

    with pytest.raises(DefinitionError) as caught:
        decorator(charge)
    assert form in str(caught.value) and str(caught.value).endswith("above charge")


def test_a_method_is_not_a_step_and_a_compensation_at_once() -> None:
    with pytest.raises(
        DefinitionError, match=r"charge is @action\('charge'\) and @compensate\('charge'\)"
    ):

        class Confused(Saga):
            @action("charge")
            @compensate("charge")
            async def charge(self, ctx: Any) -> None: ...


def test_a_static_method_around_a_step_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"charge is a staticmethod, .* \(self, ctx\)"):

        class Static(Saga):
            @staticmethod
            @action("charge")
            async def charge(ctx: Any) -> None: ...


async def test_a_decorator_above_ours_runs_around_the_step_and_its_undoing() -> None:
    told: list[str] = []

    def loud(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        async def wrapper(*args: Any) -> Any:
            told.append(f"before {function.__name__}")
            return await function(*args)

        return wrapper

    class Counted:
        def __init__(self, function: Callable[..., Any]) -> None:
            self._function = function
            update_wrapper(self, function)

        def __call__(self, *args: Any) -> Any:
            told.append("counted")
            return self._function(*args)

    class Wrapped(Saga):
        @loud
        @action("charge", depends_on=[])
        async def charge(self, ctx: Any) -> dict[str, Any]:
            return {"receipt": 7}

        @loud
        @compensate("charge")
        async def refund(self, result: Any, ctx: Any) -> None:
            told.append(f"refund {result['receipt']}")

        @Counted
        @action("ship", depends_on=["charge"], max_retries=0)
        async def ship(self, ctx: Any) -> None:
            raise ValueError("no van")

    async with connect("memory://", sagas=[Wrapped]) as engine:
        result = await engine.run(Wrapped)
    assert str(result.status) == "rolled_back"
    assert told == ["before charge", "counted", "before refund", "refund 7"]
