"""What stands beside a group's mark; and an engine of no group, which answers for all classes."""

from __future__ import annotations

import pytest

from sagaz_es import connect
from sagaz_es.core import events as e
from sagaz_es.engine.groups import MAX_NOTE_BYTES, next_note, read_note, start_of
from sagaz_es.errors import UnknownSagaName
from tests.helpers import OrderSaga


def test_a_note_says_for_which_classes_a_mark_holds() -> None:
    first = read_note(next_note(0, read_note(""), ["order"]))
    assert start_of(50, first, ["order"], 0) == 50
    assert start_of(50, first, ["order", "invoice"], 7) == 7, "never looked for: from the beginning"
    left = read_note(next_note(50, first, ["invoice"]))
    assert start_of(90, left, ["invoice"], 0) == 90
    assert start_of(90, left, ["invoice", "order"], 0) == 50, "where the class left"
    assert start_of(90, left, ["order"], 60) == 60
    assert start_of(90, read_note("not ours"), ["order"], 3) == 3
    many = [f"class-{number}" for number in range(1000)]
    assert next_note(1, first, many) == ""
    assert len(next_note(1, read_note(""), many[:100])) < MAX_NOTE_BYTES


async def test_an_engine_without_a_group_still_refuses_what_nobody_has() -> None:
    async with connect("memory://", sagas=[OrderSaga]) as engine:
        request = e.StartRequested("r-1", "i-1", 0, saga_name="invoice", context="{}")
        with pytest.raises(UnknownSagaName, match="invoice"):
            await engine.host.ask(request, lambda fact: True)
