"""The texts that typed values become, what comes back, and what is refused where."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Context, Decimal, InvalidOperation, localcontext
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest

from sagaz_es.codec.values import MAX_DEPTH, READ_DEPTH, BlobRef, Sealed, from_text, to_text
from sagaz_es.errors import UndecodableRecord, UnstorableValue

KEY = "ab" * 32
EAST = timezone(timedelta(hours=5, minutes=30))

GOLDEN: list[tuple[Any, str]] = [
    (None, "null"),
    (True, "true"),
    ("ünï\n\0", '"ünï\\n\\u0000"'),
    (-0.0, "-0.0"),
    (1.0, "1.0"),
    (1e22, "1e22"),
    (2**63 - 1, "9223372036854775807"),
    (-(2**63), "-9223372036854775808"),
    ({"b": [1, {}], "a": []}, '{"b":[1,{}],"a":[]}'),
    (2**63, '{"$int":"9223372036854775808"}'),
    (-(2**63) - 1, '{"$int":"-9223372036854775809"}'),
    (math.inf, '{"$float":"inf"}'),
    (-math.inf, '{"$float":"-inf"}'),
    (Decimal("9.90"), '{"$decimal":"9.90"}'),
    (Decimal("-0E+7"), '{"$decimal":"-0E+7"}'),
    (Decimal("Infinity"), '{"$decimal":"Infinity"}'),
    (datetime(2025, 1, 2, 3, 4, 5, 6), '{"$datetime":"2025-01-02T03:04:05.000006"}'),
    (datetime(2025, 1, 2, tzinfo=UTC), '{"$datetime":"2025-01-02T00:00:00+00:00"}'),
    (datetime(2025, 1, 2, tzinfo=EAST), '{"$datetime":"2025-01-02T00:00:00+05:30"}'),
    (datetime(2025, 1, 2, fold=1), '{"$datetime":"2025-01-02T00:00:00[_fold=1]"}'),
    (
        datetime(2025, 1, 2, tzinfo=timezone(timedelta(seconds=-1))),
        '{"$datetime":"2025-01-02T00:00:00-00:00:01"}',
    ),
    (date(2025, 1, 2), '{"$date":"2025-01-02"}'),
    (UUID(int=7), '{"$uuid":"00000000-0000-0000-0000-000000000007"}'),
    (b"\x00\xff", '{"$bytes":"AP8="}'),
    ({"b", "a"}, '{"$set":["a","b"]}'),
    ({10, 9}, '{"$set":[10,9]}'),
    ((1, (Decimal(1),)), '{"$tuple":[1,{"$tuple":[{"$decimal":"1"}]}]}'),
    (BlobRef(KEY), f'{{"$blob":"sha256:{KEY}"}}'),
    (
        Sealed("anna/1", b"\x00"),
        '{"$sealed":{"algorithm":"AES-256-GCM","key_id":"anna/1","ciphertext":"AA=="}}',
    ),
    ({"$decimal": "1"}, '{"$$decimal":"1"}'),
    ({"$": 1, "$$a": [{"$b": ()}]}, '{"$$":1,"$$$a":[{"$$b":{"$tuple":[]}}]}'),
    ("$decimal", '"$decimal"'),
]


@pytest.mark.parametrize(("value", "text"), GOLDEN, ids=[text[:40] for _, text in GOLDEN])
def test_a_value_has_this_text_and_comes_back_from_it(value: Any, text: str) -> None:
    assert to_text(value) == text
    back = from_text(text)
    assert (back, type(back)) == (value, type(value))
    assert to_text(back) == text  # tells 1 from True and 0.0 from -0.0, at any depth


@pytest.mark.parametrize("text", ["NaN", "-NaN", "sNaN12", "NaN3"])
def test_a_decimal_that_is_no_number_comes_back_exactly(text: str) -> None:
    assert str(from_text(to_text(Decimal(text)))) == text


def test_a_float_that_is_no_number_comes_back() -> None:
    assert to_text([math.nan]) == '[{"$float":"nan"}]'
    assert math.isnan(from_text('{"$float":"nan"}'))


def test_the_second_half_past_two_of_the_night_is_told_from_the_first() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    first, second = (datetime(2025, 10, 26, 2, 30, tzinfo=berlin, fold=fold) for fold in (0, 1))
    assert from_text(to_text(first)).isoformat() == "2025-10-26T02:30:00+02:00"
    back = from_text(to_text(second))
    assert (back.isoformat(), back.fold) == ("2025-10-26T02:30:00+01:00", 1)


def test_the_callers_decimal_context_changes_nothing() -> None:
    with localcontext(Context(prec=2, traps=[])):
        assert from_text('{"$decimal":"1.2345"}') == Decimal("1.2345")
        with pytest.raises(UndecodableRecord):
            from_text('{"$decimal":"much"}')
    with localcontext(Context(prec=2, traps=[InvalidOperation])):
        assert to_text(Decimal("1.2345")) == '{"$decimal":"1.2345"}'


class Colour(enum.StrEnum):
    RED = "red"


class Name(str):
    pass


class Struct(msgspec.Struct):
    x: int = 0


@dataclasses.dataclass
class Data:
    x: int = 0


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "path", "type_name", "hint"),
    [
        ({"items": [{}, {"price": object()}]}, "order.items[1].price", "object", ""),
        ({"a b": {"c": 1j}}, "order['a b'].c", "complex", ""),
        ({"a": {1, 2, Colour.RED}}, "order.a[*]", "Colour", "write its .value"),
        ((1, OrderedDict()), "order[1]", "OrderedDict", "write dict(value)"),
        ([Pair(1, 2)], "order[0]", "Pair", "write tuple(value)"),
        (Name("x"), "order", "Name", "write str(value)"),
        (frozenset(), "order", "frozenset", "write set(value)"),
        (bytearray(), "order", "bytearray", "write bytes(value)"),
        (timedelta(1), "order", "timedelta", "value.total_seconds()"),
        (time(1), "order", "time", "value.isoformat()"),
        (Data(), "order", "Data", "dataclasses.asdict(value)"),
        (Struct(), "order", "Struct", "msgspec.structs.asdict(value)"),
        (Decimal, "order", "type", ""),
        ({"a": {1: 2}}, "order.a", "dict key of type int", "str(key)"),
        ({"a": {Name("x"): 2}}, "order.a", "dict key of type Name", "str(key)"),
        ({"a": ["\ud800"]}, "order.a[0]", "str with a lone surrogate", "bytes"),
        ({"\ud800": 1}, "order", "str with a lone surrogate", "bytes"),
        (
            [datetime(2025, 1, 2, tzinfo=timezone(timedelta(microseconds=1)))],
            "order[0]",
            "datetime with parts of a second in its offset",
            "no time zone",
        ),
        ([10**4300], "order[0]", "int of more than 4300 digits", "bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_come_back_as_it_was_is_refused_with_its_path(
    value: Any, path: str, type_name: str, hint: str
) -> None:
    with pytest.raises(UnstorableValue) as caught:
        to_text(value, "order")
    assert (caught.value.path, caught.value.type_name) == (path, type_name)
    assert hint in caught.value.hint and bool(hint) == bool(caught.value.hint)


def test_a_missing_await_is_suspected() -> None:
    coroutine = asyncio.sleep(0)
    with pytest.raises(UnstorableValue, match="`await` missing"):
        to_text({"paid": coroutine})
    coroutine.close()


def test_a_path_without_a_prefix_begins_with_the_key() -> None:
    with pytest.raises(UnstorableValue, match=r"^items\[0\]: an object cannot be kept; plain data"):
        to_text({"items": [object()]})
    with pytest.raises(UnstorableValue, match=r"^the value: an object cannot be kept"):
        to_text(object())


def test_a_list_that_holds_itself_is_refused_with_a_short_path() -> None:
    endless: list[Any] = []
    endless.append([endless])
    with pytest.raises(UnstorableValue, match="does it hold itself") as caught:
        to_text({"a": endless})
    assert caught.value.path == "a" + "[0]" * 11 + "…"


def nested(depth: int, value: Any = 1) -> Any:
    for level in range(depth):
        value = [(value,), [value], {"a": value}, {"$a": value}][level % 4]
    return value


def lists(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("make", [nested, lists])
def test_as_deep_as_the_bound_comes_back_and_deeper_is_refused(make: Callable[[int], Any]) -> None:
    value = make(MAX_DEPTH)
    assert from_text(to_text(value)) == value
    with pytest.raises(UnstorableValue, match="inside 100 others"):
        to_text(make(MAX_DEPTH + 1))


@pytest.mark.parametrize("inner", ["1", '{"$set":[]}'])
def test_a_text_is_read_also_inside_some_others_but_no_deeper(inner: str) -> None:
    bound = READ_DEPTH - (inner != "1")
    from_text("[" * bound + inner + "]" * bound)
    with pytest.raises(UndecodableRecord, match="nested deeper than 120"):
        from_text("[" * (bound + 1) + inner + "]" * (bound + 1))


def test_a_text_with_many_shallow_containers_is_not_too_deep() -> None:
    assert from_text("[" + ",".join(["[]"] * 500) + "]") == [[]] * 500


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nul",
        "1 2",
        "NaN",
        "[" * 100_000,
        '"\ud800"',
        '"\\ud800"',
        '{"$new":"1"}',
        '{"$":"1"}',
        '{"$decimal":"1","other":2}',
        '{"a":1,"$b":2}',
        '{"$decimal":9.9}',
        '{"$decimal":"much"}',
        '{"$int":"x"}',
        '{"$int":"' + "9" * 5000 + '"}',
        '{"$float":"1.0"}',
        '{"$datetime":"soon"}',
        '{"$date":"2025-13-01"}',
        '{"$uuid":"1"}',
        '{"$bytes":"?"}',
        '{"$bytes":"é"}',
        '{"$set":{}}',
        '{"$set":[[]]}',
        '{"$tuple":1}',
        '{"$blob":"md5:00"}',
        '{"$blob":"sha256:AB"}',
        '{"$sealed":1}',
        '{"$sealed":{"key_id":"a"}}',
        '{"$sealed":{"key_id":1,"ciphertext":"","algorithm":"x"}}',
        '{"$sealed":{"key_id":"a","ciphertext":1,"algorithm":"x"}}',
        '{"\\u0024decimal":"much"}',
    ],
    ids=lambda text: text[:40].encode("ascii", "replace").decode(),
)
def test_a_text_that_to_text_never_makes_is_undecodable(text: str) -> None:
    with pytest.raises(UndecodableRecord):
        from_text(text)


def test_a_tag_that_another_writer_escaped_is_a_tag() -> None:
    assert from_text('{"\\u0024decimal":"1"}') == Decimal(1)


def test_an_unknown_tag_is_named() -> None:
    with pytest.raises(UndecodableRecord, match="unknown tag '\\$new': written by a newer version"):
        from_text('[{"$new":1}]')
