"""A picture of a user's world: what it shows, what it leaves out, how two differ."""

from __future__ import annotations

import asyncio
import functools
import io
import socket
import sqlite3
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagaz_es.errors import ConfigurationError
from sagaz_es.testing import worlds
from sagaz_es.testing.worlds import alike, differences, in_text, picture, unseen


class Colour(Enum):
    RED = 1


@dataclass
class Account:
    owner: str
    cents: int = 0


@dataclass
class Bank:
    accounts: dict[str, Account] = field(default_factory=dict)
    log: list[Any] = field(default_factory=list)


class Slotted:
    __slots__ = ("one", "unset")

    def __init__(self) -> None:
        self.one = 1


class Packed(msgspec.Struct):
    two: int = 2


def test_objects_are_shown_by_their_attributes_to_any_depth() -> None:
    bank = Bank({"ann": Account("Ann", 5)}, [Slotted(), Packed()])
    assert picture(bank) == {
        "accounts": {"ann": {"owner": "Ann", "cents": 5}},
        "log": [{"one": 1}, {"two": 2}],
    }


def test_a_picture_does_not_change_with_its_world() -> None:
    bank = Bank({"ann": Account("Ann")})
    before = picture(bank)
    bank.accounts["ann"].cents = 7
    bank.log.append(1)
    assert before == {"accounts": {"ann": {"owner": "Ann", "cents": 0}}, "log": []}


def test_containers_and_values_of_all_kinds_are_shown() -> None:
    plain = (1, 1.5, "a", b"b", None, True, Decimal("1.0"), date(2026, 1, 1), Colour.RED)
    assert picture(plain) == list(plain)
    counted: defaultdict[str, int] = defaultdict(int, {"a": 1})
    assert picture(
        [Counter("aab"), counted, deque([1]), {1, 2}, frozenset("a"), bytearray(b"x")]
    ) == [
        {"a": 2, "b": 1},
        {"a": 1},
        [1],
        {1, 2},
        {"a"},
        b"x",
    ]
    assert picture({(1, 2): 3}) == {"(1, 2)": 3}


def test_what_holds_no_data_is_only_named() -> None:
    class Shop:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.event = threading.Event()
            self.hook = lambda: None
            self.cls = Account
            self.nothing = object()

    one, other = picture(Shop()), picture(Shop())
    assert one == other
    assert one["cls"] == "<Account>"


def counter() -> Callable[[], None]:
    number = 0

    def increase() -> None:
        nonlocal number
        number += 1

    return increase


def test_a_function_shows_what_it_holds_on_to() -> None:
    account, increase = Account("Ann"), counter()
    pay_in = functools.partial(setattr, account)
    world = {
        "closure": increase,
        "partial": pay_in,
        "method": [1].append,
        "plain": len,
    }
    before = picture(world)
    assert before["closure"] == {"number": 0}
    assert before["method"] == {"self": [1]}
    assert before["plain"] == "<len>"
    increase()
    pay_in("cents", 5)
    told = differences(before, picture(world))
    assert told == [
        "world.closure.number is 1; without the crash 0",
        "world.partial.args is [{'cents': 5, 'owner': 'Ann'}]; without the crash "
        "[{'cents': 0, 'owner': 'Ann'}]",
    ]


def test_what_shows_nothing_of_what_it_holds_is_unseen() -> None:
    held = (number for number in range(3))
    with sqlite3.connect(":memory:") as connection, socket.socket() as opened:
        world = {
            "db": connection,
            "deep": [{"file": io.StringIO(), "ids": held}],
            "queue": asyncio.Queue[int](),
            "net": opened,
            "lock": threading.Lock(),
            "nothing": object(),
            "bank": Bank(),
        }
        assert list(unseen(picture(world))) == [
            "world.db (<Connection>)",
            "world.deep[0].file (<StringIO>)",
            "world.deep[0].ids (<generator>)",
            "world.queue (<Queue>)",
            "world.net (<socket>)",
        ]
    connection.close()
    assert list(unseen(picture(world["bank"]))) == []


def test_circles_end() -> None:
    bank = Bank()
    bank.log.append(bank)
    assert picture(bank) == {"accounts": {}, "log": ["(around in a circle)"]}
    shared = Account("Ann")
    assert picture([shared, shared]) == [{"owner": "Ann", "cents": 0}] * 2


def test_a_world_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "MAX_PARTS", 100)
    picture([[] for _ in range(99)])
    with pytest.raises(ConfigurationError, match="more than 100 parts: say what counts by view="):
        picture([[] for _ in range(100)])


def test_differences_are_named_by_their_place() -> None:
    one = {"stock": 3, "paid": [9], "held": {"order/1": 1}, "gone": 1}
    other = {"stock": 2, "paid": [9, 9], "held": {"order/1": 1, "order/2": 1}}
    assert differences(one, other, "shop") == [
        "shop.stock is 2; without the crash 3",
        "shop.paid is [9, 9]; without the crash [9]",
        "shop.held['order/2'] is 1; without the crash it is not there",
        "shop.gone is missing; without the crash it is 1",
    ]


def test_only_the_first_differences_are_told_and_long_ones_are_cut() -> None:
    told = differences({}, {f"k{n}": "x" * 1000 for n in range(8)})
    assert len(told) == 6
    assert told[-1] == "and 3 more"
    assert max(map(len, told)) < 300


def test_the_order_of_a_list_makes_no_difference() -> None:
    assert differences({"a": [1, {"b": [2, 3]}]}, {"a": [{"b": [3, 2]}, 1]}) == []
    assert not alike([1, 1, 2], [1, 2, 2])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(plain, plain)
def test_two_pictures_differ_exactly_when_a_difference_is_told(one: Any, other: Any) -> None:
    assert picture(one) == one
    assert bool(differences(one, other)) == (not alike(one, other))


def test_equal_pictures_have_one_text() -> None:
    some, same = {f"k{n}" for n in range(50)}, {f"k{n}" for n in reversed(range(50))}
    assert in_text({"a": [some], "b": set(), "c": 1.5}) == in_text(
        {"c": 1.5, "b": set(), "a": [same]}
    )
    assert in_text([{1: {"b", "a"}}, set(), "x"]) == "[{1: {'a', 'b'}}, set(), 'x']"
