"""Who serves which partition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sagaz_es.log.assignment import assign

NAMES = st.sampled_from("abcdefg")
MEMBERS = st.lists(NAMES, unique=True, min_size=1)
OWNERS = st.dictionaries(st.integers(0, 12), NAMES)


@given(MEMBERS, OWNERS, st.integers(1, 12))
def test_each_partition_has_one_member(
    members: list[str], owners: dict[int, str], partitions: int
) -> None:
    shares = assign(members, owners, partitions)
    assert list(shares) == members
    assert sorted(p for share in shares.values() for p in share) == list(range(partitions))


@given(MEMBERS, OWNERS, st.integers(1, 12))
def test_shares_are_fair(members: list[str], owners: dict[int, str], partitions: int) -> None:
    sizes = [len(share) for share in assign(members, owners, partitions).values()]
    assert max(sizes) - min(sizes) <= 1


@given(MEMBERS, OWNERS, st.integers(1, 12))
def test_a_member_keeps_what_it_has_up_to_its_share(
    members: list[str], owners: dict[int, str], partitions: int
) -> None:
    for member, share in assign(members, owners, partitions).items():
        had = {p for p, owner in owners.items() if owner == member and p < partitions}
        assert had <= share or share <= had


@given(MEMBERS, OWNERS, st.integers(1, 12))
def test_what_is_assigned_stays_assigned(
    members: list[str], owners: dict[int, str], partitions: int
) -> None:
    shares = assign(members, owners, partitions)
    settled = {p: member for member, share in shares.items() for p in share}
    assert assign(members, settled, partitions) == shares


def test_without_members_nothing_is_assigned() -> None:
    assert assign([], {0: "a"}, 4) == {}


def test_the_fewest_partitions_move() -> None:
    settled = {0: "a", 1: "a", 2: "a", 3: "b", 4: "b"}
    shares = assign(["a", "b", "c"], settled, 5)
    assert shares == {"a": frozenset({0, 1}), "b": frozenset({3, 4}), "c": frozenset({2})}
