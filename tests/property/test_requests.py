"""Requests come again: after a crash, or from an asker who heard nothing."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sagaz_es.core import events as e
from sagaz_es.core.fold import MAX_ANSWERED, Verdict, fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.engine.decisions import Decision, fact_of
from sagaz_es.errors import ConfigurationError, StepNotFound

WRITER = bytes(16)


class Writer:
    """A saga's writer, as far as requests go: what it answered or refused it passes over."""

    def __init__(self) -> None:
        self.state = SagaState()
        self.refused: set[str] = set()
        self.write(e.SagaStarted())
        self.write(e.StepOutcomeUnknown("wire"))
        self.write(e.StepFailed("ship", error_type="ValueError"))
        self.write(e.RecoveryDecided("ship", "manual_intervention"))

    def write(self, fact: e.Fact) -> None:
        sequence = self.state.sequence + 1
        event = e.Event("s-1", "s", WRITER, 0, sequence, 1, fact)
        assert fold_into(self.state, event) is Verdict.ACCEPTED

    def hear(self, request: Decision) -> None:
        if request.request_id in self.refused or request.request_id in self.state.answered:
            return
        try:
            self.write(fact_of(self.state, request))
        except (StepNotFound, ConfigurationError):
            self.refused.add(request.request_id)
        if self.state.step("ship").status == "pending":  # it is tried again, and fails again
            self.write(e.StepStarted("ship"))
            self.write(e.StepFailed("ship", error_type="ValueError"))
            self.write(e.RecoveryDecided("ship", "manual_intervention"))


def requests() -> st.SearchStrategy[Decision]:
    kinds: list[st.SearchStrategy[Decision]] = [
        st.builds(e.SignalSent, st.just("id"), st.just("s-1"), name=st.sampled_from("ab")),
        st.builds(e.PauseRequested, st.just("id"), st.just("s-1")),
        st.builds(e.ResumeRequested, st.just("id"), st.just("s-1")),
        st.builds(
            e.RecoveryRequested,
            st.just("id"),
            st.just("s-1"),
            step=st.sampled_from(["ship", "pack"]),
            action=st.sampled_from(["retry", "skip", "explode"]),
            keys_set=st.sampled_from(["", '{"carrier":1}']),
        ),
        st.builds(
            e.OutcomeReported,
            st.just("id"),
            st.just("s-1"),
            step=st.sampled_from(["wire", "ship"]),
            happened=st.booleans(),
            result=st.sampled_from(["", "7", '{"reference":1}']),
        ),
    ]
    return st.one_of(kinds)


@st.composite
def deliveries(draw: st.DrawFn) -> list[Decision]:
    """Requests, each with an id of its own; some come again, then or later."""
    asked = [
        msgspec.structs.replace(request, request_id=f"r-{number}")
        for number, request in enumerate(draw(st.lists(requests(), min_size=1, max_size=8)))
    ]
    places = draw(st.lists(st.integers(0, len(asked) - 1), max_size=12))
    return [*asked[:4], *(asked[at] for at in places), *asked[4:]]


def heard(delivered: Iterable[Decision]) -> SagaState:
    writer = Writer()
    for request in delivered:
        writer.hear(request)
    return writer.state


def first_ones(delivered: Iterable[Decision]) -> list[Decision]:
    seen: dict[str, Decision] = {}
    for request in delivered:
        seen.setdefault(request.request_id, request)
    return list(seen.values())


@given(deliveries())
def test_requests_that_come_again_fold_to_the_state_of_coming_once(
    delivered: list[Decision],
) -> None:
    assert heard(delivered) == heard(first_ones(delivered))


@given(deliveries())
def test_a_second_fact_of_one_request_changes_nothing_but_the_count(
    delivered: list[Decision],
) -> None:
    """Should a writer ever answer twice, no reader is misled by it."""
    writer = Writer()
    for request in first_ones(delivered):
        before = writer.state.sequence
        try:
            fact = fact_of(writer.state, request)
        except (StepNotFound, ConfigurationError):
            continue
        writer.hear(request)
        assert writer.state.sequence > before
        state = writer.state.copy()
        writer.write(fact)
        assert msgspec.structs.replace(writer.state, sequence=state.sequence) == state


def test_what_the_state_remembers_of_requests_is_bounded() -> None:
    writer = Writer()
    for number in range(MAX_ANSWERED + 10):
        writer.hear(e.SignalSent(f"r-{number}", "s-1", name="a"))
    assert len(writer.state.answered) == MAX_ANSWERED
    assert writer.state.answered[-1] == f"r-{MAX_ANSWERED + 9}"
