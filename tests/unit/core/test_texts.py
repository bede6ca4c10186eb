"""JSON texts cut and joined."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sagaz_es.codec.values import from_text, to_text
from sagaz_es.core.texts import join_names, join_object, names, split_object

KEYS = st.text(st.characters(codec="utf-8"))


@given(st.dictionaries(KEYS, st.integers(-5, 5)))
def test_what_is_joined_is_split_again(values: dict[str, int]) -> None:
    texts = {key: to_text(value) for key, value in values.items()}
    assert split_object(join_object(texts)) == texts


@given(st.dictionaries(KEYS, st.integers(-5, 5)))
def test_a_joined_object_is_the_text_of_the_whole_value(values: dict[str, int]) -> None:
    joined = join_object({key: to_text(value) for key, value in values.items()})
    assert from_text(joined) == values


def test_a_key_that_looks_like_a_tag_stays_a_key() -> None:
    assert from_text(join_object({"$decimal": '"9.90"'})) == {"$decimal": "9.90"}


@given(st.lists(KEYS))
def test_names_come_back(values: list[str]) -> None:
    assert names(join_names(values)) == values
