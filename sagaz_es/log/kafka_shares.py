"""Who of a group serves which partition: what each member says that it has, what each gets."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from sagaz_es.log.assignment import assign


class Claim(msgspec.Struct, frozen=True):
    """What a member says of itself as it joins: the partitions that it has, and for each of them
    the last generation whose word gave it to this member. `generation`: the last one it was in."""

    has: tuple[int, ...] = ()
    generation: int = -1
    since: tuple[int, ...] | None = None  # None: of a version that does not say

    def words(self) -> Mapping[int, int]:
        """The generation by whose word it has each."""
        if self.since is None or len(self.since) != len(self.has):
            return dict.fromkeys(self.has, self.generation)
        return dict(zip(self.has, self.since, strict=True))


class Holding:
    """What one member has: given to it, and not handed over yet."""

    def __init__(self) -> None:
        self._since: dict[int, int] = {}

    @property
    def partitions(self) -> frozenset[int]:
        return frozenset(self._since)

    def take(self, share: Collection[int], generation: int) -> None:
        """The word of a generation. What it has beyond its share it is to hand over."""
        self._since |= dict.fromkeys(share, generation)

    def keep(self, partitions: Collection[int]) -> None:
        """Everything else is handed over."""
        self._since = {each: since for each, since in self._since.items() if each in partitions}

    def claim(self, generation: int) -> Claim:
        has = tuple(sorted(self._since))
        return Claim(has, generation, tuple(self._since[each] for each in has))


def shares(claims: Mapping[str, Claim], partitions: int) -> dict[str, frozenset[int]]:
    """What each member gets now.

    Law (kept or free): a member gets only what it has or what nobody has.
    Law (settles): when everybody has let go of what they did not get, all is given out, fairly.
    Law (later word): of two that have one partition the one has it that was given it last. The
    other was out of the group meanwhile, and has not let go yet: also when it has joined since.
    """
    words: dict[int, tuple[int, str]] = {}
    for member, claim in claims.items():
        for each, since in claim.words().items():
            words[each] = max(words.get(each, (since, member)), (since, member))
    owners = {each: member for each, (_, member) in words.items()}
    wanted = assign(sorted(claims), owners, partitions)
    return {
        member: frozenset(each for each in share if owners.get(each, member) == member)
        for member, share in wanted.items()
    }
