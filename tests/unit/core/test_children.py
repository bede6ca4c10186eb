"""The ids of children."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sagaz_es.core.children import MAX_BYTES, child_id, next_child_id

texts = st.text(st.sampled_from("ab/~%2é"), min_size=1, max_size=6)


def anywhere(saga_id: str) -> bool:
    return True


def test_an_id_is_the_parents_and_the_step() -> None:
    assert child_id("order-17", "payment") == "order-17/payment"
    assert child_id("order-17", "payment", 3) == "order-17/payment~3"
    assert child_id("a/b", "50% off/~") == "a/b/50%25 off%2F%7E"


@given(texts, texts, st.integers(1, 30), texts, texts, st.integers(1, 30))
def test_no_two_children_share_an_id(
    parent: str, step: str, number: int, parent2: str, step2: str, number2: int
) -> None:
    same = child_id(parent, step, number) == child_id(parent2, step2, number2)
    assert same == ((parent, step, number) == (parent2, step2, number2))


def test_children_of_children_keep_short_ids() -> None:
    name = "order-17"
    for _ in range(300):
        name = child_id(name, "payment", 2)
        assert len(name.encode()) <= MAX_BYTES + 10


@given(texts, texts, st.integers(0, 20))
def test_the_next_id_is_one_that_was_not_used_and_fits(parent: str, step: str, skip: int) -> None:
    seen: list[str] = []
    used = ""
    every = itertools.cycle([False] * skip + [True])
    for _ in range(5):
        used = next_child_id(parent, step, used, lambda _: next(every))
        seen.append(used)
    assert seen == [child_id(parent, step, 1 + skip + n * (skip + 1)) for n in range(5)]


def test_the_first_id_is_the_plain_one() -> None:
    assert next_child_id("a", "b", "", anywhere) == "a/b"
    assert next_child_id("a", "b", "a/b", anywhere) == "a/b~2"
    assert next_child_id("a", "b~7", "a/b%7E7", anywhere) == "a/b%7E7~2"
