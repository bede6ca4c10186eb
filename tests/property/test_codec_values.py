"""Laws of the value texts over generated input."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sagaz_es.codec.values import BlobRef, Sealed, from_text, to_text
from sagaz_es.errors import UndecodableRecord

TAGS = "$decimal $datetime $date $uuid $bytes $set $tuple $int $float $blob $sealed $ $$ $$set a"
OFFSETS = st.integers(-86399, 86399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
KEYS = st.text(max_size=5) | st.sampled_from(TAGS.split())
HASHABLE = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.decimals()
    | st.datetimes()
    | st.builds(datetime.replace, st.datetimes(timezones=st.none() | OFFSETS), fold=st.just(1))
    | st.datetimes(timezones=OFFSETS)
    | st.dates()
    | st.uuids()
    | st.binary()
    | st.builds(BlobRef, st.text("0123456789abcdef", min_size=64, max_size=64))
    | st.builds(Sealed, st.text(), st.binary())
)
FROZEN = st.recursive(
    HASHABLE, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5
).filter(lambda value: "sNaN" not in repr(value))  # a signalling NaN has no hash
VALUES: st.SearchStrategy[Any] = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(FROZEN, max_size=4)
    ),
    max_leaves=12,
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("nan"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def exactly(value: Any) -> Any:
    """A value as something that equals another's only if type and content are the same."""
    if isinstance(value, dict):
        return dict, [(key, exactly(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [exactly(item) for item in value]
    if isinstance(value, set):
        return set, sorted(repr(exactly(item)) for item in value)
    if isinstance(value, datetime):
        return datetime, value.isoformat(), value.fold
    return type(value), repr(value)


@given(VALUES)
def test_what_comes_back_has_the_same_value_and_type(value: Any) -> None:
    assert exactly(from_text(to_text(value))) == exactly(value)


@given(VALUES)
def test_the_text_of_what_comes_back_is_the_same(value: Any) -> None:
    text = to_text(value)
    assert to_text(from_text(text)) == text


@given(st.text() | JUNK.map(json.dumps))
def test_any_text_is_a_value_or_undecodable(text: str) -> None:
    try:
        from_text(text)
    except UndecodableRecord:
        pass
