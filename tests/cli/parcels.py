"""A saga with a child, for the tests of the command line."""

from __future__ import annotations

from typing import Any

from sagaz_es import Saga, action, child, compensate


class LabelSaga(Saga):
    saga_name = "label"

    @action("print")
    async def print(self, ctx: Any) -> dict[str, Any]:
        return {"label": f"L-{ctx['weight']}"}

    @compensate("print")
    async def shred(self, ctx: Any) -> None:
        pass


class ParcelSaga(Saga):
    saga_name = "parcel"

    @child("label", LabelSaga, result_keys=["label"])
    async def label(self, ctx: Any) -> dict[str, Any]:
        return {"weight": ctx["weight"]}

    @action("post", max_retries=0)
    async def post(self, ctx: Any) -> None:
        if ctx["weight"] > 30:
            raise ValueError("too heavy")
