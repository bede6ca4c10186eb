"""Ids of very many sagas in little memory."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from sagaz_es.engine.partitions.known_ids import KnownIds


@given(st.lists(st.text()), st.lists(st.text()))
def test_it_holds_what_was_added_and_nothing_else(added: list[str], asked: list[str]) -> None:
    ids = KnownIds()
    ids.update(added)
    assert all(saga_id in ids for saga_id in added)
    assert [saga_id in ids for saga_id in asked] == [saga_id in added for saga_id in asked]
    assert len(ids) == len(set(added))


def test_an_id_takes_at_most_24_bytes_and_what_is_added_twice_nothing() -> None:
    ids = KnownIds()
    for _ in range(2):
        ids.update(f"order-{n}" for n in range(100_000))
    assert len(ids) == 100_000
    assert sum(sys.getsizeof(shard.slots) for shard in ids._shards) < 24 * len(ids)
