"""The order saga of shop.py, with a step more."""

from __future__ import annotations

from typing import Any

from sagaz_es import action

from .shop import OrderSaga as Before


class OrderSaga(Before):
    """reserve → charge → ship → pack."""

    saga_name = "order"

    @action("pack")
    async def pack(self, ctx: Any) -> None:
        """Nothing."""
