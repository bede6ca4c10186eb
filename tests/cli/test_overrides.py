"""What people type as overrides."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest

from sagaz_es.errors import InvalidOverride
from sagaz_es_cli.overrides import parse_object, parse_overrides


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("k=v", {"k": "v"}),
        ("k=1", {"k": 1}),
        ("k=1.5", {"k": 1.5}),
        ("k=true", {"k": True}),
        ("k=null", {"k": None}),
        ('k="1"', {"k": "1"}),
        ("k=007", {"k": "007"}),
        ("k=NaN", {"k": "NaN"}),
        ("k=", {"k": ""}),
        ("k=a=b", {"k": "a=b"}),
        ("k= padded ", {"k": " padded "}),
        (" k=v", {"k": "v"}),
        ("k={not json", {"k": "{not json"}),
        ('k={"a": [1, 2]}', {"k": {"a": [1, 2]}}),
        ('k={"$decimal": "9.90"}', {"k": Decimal("9.90")}),
        ('{"k": 1}', {"k": 1}),
        (' {"k": {"$decimal": "9.90"}, "l": null}', {"k": Decimal("9.90"), "l": None}),
        ("k=123456789012345678901234567890", {"k": 123456789012345678901234567890}),
        ("k=-9223372036854775809", {"k": -9223372036854775809}),
        ("ключ=значение", {"ключ": "значение"}),
    ],
)
def test_an_override_is_a_json_object_or_a_key_and_a_value(text: str, expected: Any) -> None:
    found = parse_overrides([text])
    assert found == expected
    assert [type(value) for value in found.values()] == [type(v) for v in expected.values()]


def test_of_two_overrides_of_one_key_the_later_counts() -> None:
    assert parse_overrides(['{"a": 1, "b": 1}', "b=2", "c=3"]) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("abc", "column 4: there is no '='"),
        ("=v", "column 1: there is no key"),
        ("", "column 1: there is no '='"),
        ('{"a": 1', "column 8: expecting ',' delimiter"),
        ('{"a": nope}', "column 7: expecting value"),
        ('{"a": 1,\n "b" 2}', "line 2, column 6: expecting ':' delimiter"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": {"$decimal": "x"}}', "damaged $decimal"),
        ('{"a": {"$future": 1}}', "unknown tag '$future'"),
        ('{"a": 1, "a": 2}', "the key 'a' stands there twice"),
    ],
)
def test_a_malformed_override_says_where_and_shows_the_right_form(text: str, where: str) -> None:
    with pytest.raises(InvalidOverride, match=re.escape(where)) as caught:
        parse_overrides([text])
    assert """write a JSON object such as '{"token": "new"}', or key=value""" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[1]", "an array"),
        ("1", "a number"),
        ('"x"', "a text"),
        ("null", "null"),
        ("true", "a truth value"),
    ],
)
def test_a_context_that_is_no_object_is_named(text: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"is {kind}, not a JSON object"):
        parse_object(text)


def test_what_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(InvalidOverride, match="deep"):
        parse_overrides(['{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"])
