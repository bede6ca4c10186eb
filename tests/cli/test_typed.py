"""Typed contexts on the command line: one that does not fit is wrong usage, told with its path."""

from __future__ import annotations

from typing import Any

import msgspec

from sagaz_es import Saga, action

from .conftest import Shop


class Priced(msgspec.Struct):
    amount: int


class Typed(Saga):
    saga_name = "typed"
    context_type = Priced

    @action("charge", effects=False)
    async def charge(self, ctx: Any) -> dict[str, Any]:
        return {"paid": ctx.typed(Priced).amount}


APP = ("--app", f"{__name__}:Typed")


def test_a_context_that_does_not_fit_starts_nothing(shop: Shop) -> None:
    refused = shop.run("saga", "start", "typed", "--context", '{"amount": "much"}', *APP)
    assert (refused.status, refused.stdout) == (2, "")
    assert refused.error == ("Error: saga 'typed', at its start: amount: found str, expected int")
    assert shop.run("saga", "list").json == []


def test_an_override_that_does_not_fit_is_told_with_its_path(shop: Shop) -> None:
    start = ("saga", "start", "typed", "--context", '{"amount": 3}', "--saga-id", "t-1")
    assert shop.run(*start, *APP).json["context"] == {"amount": 3, "paid": 3}
    for command in ("plan", "run"):
        refused = shop.run("replay", command, "t-1", "-s", "charge", "-o", "amount=much", *APP)
        assert refused.status == 2
        assert "after the override: amount: found str, expected int" in refused.error
    again = shop.run("replay", "run", "t-1", "-s", "charge", "-o", "amount=4", *APP)
    assert (again.status, again.json["status"]) == (0, "success")
