"""Who serves which partition: the same answer for everybody who asks with the same facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def assign(
    members: Sequence[str], owners: Mapping[int, str], partitions: int
) -> dict[str, frozenset[int]]:
    """Each member's share of `partitions`; `owners` says who has which one now.

    Law (each has one): every partition is in exactly one share, if there is a member at all.
    Law (fair): two shares differ by one partition at most.
    Law (sticky): a member keeps what it has, up to its fair share.
    """
    if not members:
        return {}
    shares: dict[str, list[int]] = {member: [] for member in members}
    for partition in range(partitions):
        share = shares.get(owners.get(partition, ""))
        if share is not None:
            share.append(partition)
    # Who has most gets the larger shares: so the fewest partitions move.
    order = sorted(members, key=lambda member: -len(shares[member]))
    fair, larger = divmod(partitions, len(members))
    quotas = {member: fair + (place < larger) for place, member in enumerate(order)}
    for member in order:
        del shares[member][quotas[member] :]
    taken = {partition for share in shares.values() for partition in share}
    free = (partition for partition in range(partitions) if partition not in taken)
    for member in order:
        while len(shares[member]) < quotas[member]:
            shares[member].append(next(free))
    return {member: frozenset(share) for member, share in shares.items()}
