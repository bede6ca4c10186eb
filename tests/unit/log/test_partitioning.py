"""Partitions are those that every Kafka client computes."""

from __future__ import annotations

from collections import Counter
from itertools import count
from uuid import uuid4

import pytest
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as kafka_murmur2
from hypothesis import given
from hypothesis import strategies as st

from sagaz_es.log.partitioning import id_for_partition, murmur2, partition_of
from sagaz_es.testing.contracts.event_log import MURMUR2


@pytest.mark.parametrize(("text", "signed"), MURMUR2.items())
def test_murmur2_of_kafkas_own_vectors(text: str, signed: int) -> None:
    assert murmur2(text.encode()) == signed & 0xFFFFFFFF


@given(st.binary(max_size=70))
def test_murmur2_is_that_of_another_client(data: bytes) -> None:
    assert murmur2(data) == kafka_murmur2(data)


@given(st.text(), st.integers(1, 50))
def test_a_saga_stands_where_a_kafka_client_puts_its_key(saga_id: str, partitions: int) -> None:
    every = list(range(partitions))
    assert partition_of(saga_id, partitions) == DefaultPartitioner()(saga_id.encode(), every, every)


def test_random_ids_spread_over_the_partitions() -> None:
    counts = Counter(partition_of(str(uuid4()), 8) for _ in range(8000))
    assert set(counts) == set(range(8))
    assert min(counts.values()) > 800


def test_an_id_is_made_for_a_wanted_partition() -> None:
    for wanted in ({0}, {7}, {2, 5}, set(range(8))):
        saga_id = id_for_partition(lambda: str(uuid4()), wanted, 8)
        assert partition_of(saga_id, 8) in wanted


def test_ids_are_drawn_only_until_one_fits() -> None:
    numbers = count()
    saga_id = id_for_partition(lambda: f"saga-{next(numbers)}", {3}, 8)
    first = next(n for n in count() if partition_of(f"saga-{n}", 8) == 3)
    assert saga_id == f"saga-{first}"


def test_a_partition_that_does_not_exist_is_not_looked_for_for_ever() -> None:
    with pytest.raises(ValueError, match="8 partitions"):
        id_for_partition(lambda: str(uuid4()), {8}, 8)
