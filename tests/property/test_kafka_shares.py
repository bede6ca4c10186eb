"""Members of a group come, are lost, come back late and hand over: no partition has two of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

from hypothesis import example, given
from hypothesis import strategies as st

from sagaz_es.log.kafka_shares import Claim, Holding, shares

PARTITIONS = 4
NAMES = "abc"


@dataclass
class Member:
    """`served`: what it has and nobody else may have been given, as it was not lost meanwhile."""

    holding: Holding = field(default_factory=Holding)
    generation: int = -1
    share: frozenset[int] = frozenset()
    served: set[int] = field(default_factory=set)
    there: bool = False

    def hands_over(self) -> None:
        self.holding.keep(self.share)
        self.served &= self.share


EVENTS = st.lists(
    st.tuples(st.sampled_from(["comes", "is lost", "hands over"]), st.sampled_from(NAMES))
    | st.just(("all join", "")),
    max_size=40,
)
LATE = [
    *(("comes", name) for name in "ab"),
    *[("all join", ""), ("hands over", "a"), ("all join", "")],
    *[("is lost", "b"), ("all join", "")],  # what b had is a's now
    *[("comes", "b"), ("all join", "")],  # b hears that, and has not let go yet
    ("all join", ""),
]


@given(EVENTS)
@example(LATE)
def test_of_two_members_one_has_a_partition_unless_it_was_lost_and_does_not_know(
    events: list[tuple[str, str]],
) -> None:
    members = {name: Member() for name in NAMES}
    generation = 0
    for event, name in events:
        if event == "comes":
            members[name].there = True
        elif event == "is lost":
            members[name].there = False
            members[name].served.clear()  # it goes on all the same, and the fold decides
        elif event == "hands over":
            members[name].hands_over()
        elif there := {each: member for each, member in members.items() if member.there}:
            generation += 1
            claims = {each: m.holding.claim(m.generation) for each, m in there.items()}
            for each, share in shares(claims, PARTITIONS).items():
                member = there[each]
                member.share, member.generation = share, generation
                member.holding.take(share, generation)
                member.served |= share
            for one, other in combinations(there.values(), 2):
                assert not one.served & other.served


def test_the_claim_of_a_version_that_knows_no_words_counts_by_its_generation() -> None:
    assert shares({"a": Claim((0,), 3), "b": Claim((0,), 2, (2,))}, 1)["a"] == {0}
    assert shares({"a": Claim((0,), 1), "b": Claim((0,), 2, (2,))}, 1)["b"] == {0}
