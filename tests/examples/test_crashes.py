"""The sagas of the examples stand crashes: with the providers' own ledger, which honours keys."""

from __future__ import annotations

from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

from examples.payment_failure_recovery import GOOD_TOKEN, OrderSaga, Providers, read_ledger
from sagaz_es.testing import crash_everywhere, replay, wait

DONE, UNDONE = ("reserve", "charge", "ship"), ("release", "refund", "recall")


def test_the_order_of_the_demo_stands_a_crash_at_every_point(tmp_path: Path) -> None:
    numbers = count()

    def ledger() -> Path:
        return tmp_path / f"{next(numbers)}.db"

    def entries(file: Path) -> list[str]:
        return [entry.kind for entry in read_ledger(file, ["order-25"])]

    def nothing_paid_is_not_sent(file: Path) -> None:
        stands = {kind: entries(file).count(kind) for kind in (*DONE, *UNDONE)}
        held, paid, sent = (
            stands[done] - stands[undone] for done, undone in zip(DONE, UNDONE, strict=True)
        )
        assert held == paid == sent in (0, 1), stands

    context: dict[str, Any] = {
        "order": "order-25",  # the answer to its first charge is lost
        "token": GOOD_TOKEN,
        "amount": Decimal("9.90"),
    }
    crash_everywhere(
        OrderSaga,
        context,
        world=ledger,
        resources=lambda file: {"providers": Providers(file)},
        view=entries,
        invariant=nothing_paid_is_not_sent,
        when=[wait(days=1), replay("charge", {"amount": Decimal("8.90")}, allow=["notify"])],
        failures=False,
        pairs=False,
    )
