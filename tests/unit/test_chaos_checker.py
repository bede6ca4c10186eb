"""The checker of `make chaos` sees what must not be: each of these stories has one thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from sagaz_es.core import events as e
from sagaz_es.ports import Record
from tests.chaos.checker import Checker
from tests.chaos.shop import STEPS, Line

A, B = b"a" * 16, b"b" * 16


class Story:
    """What an order does, told to a checker as log and ledger tell it."""

    def __init__(self) -> None:
        self.checker = Checker()
        self._offsets, self._writer, self._epoch, self._sequence = count(), A, 0, 0

    def fact(self, fact: e.Fact) -> None:
        if isinstance(fact, e.SagaClaimed):
            self._writer, self._epoch = B, self._epoch + 1
        self._sequence += 1
        event = e.Event("o-1", "order", self._writer, self._epoch, self._sequence, 0, fact)
        self.checker.take(Record(0, next(self._offsets), 0, "o-1", event))

    def line(
        self, what: str, step: str, *, undo: bool = False, attempt: int = 1, by: bytes = b""
    ) -> None:
        at, writer = float(next(self._offsets)), (by or self._writer).hex()
        line = Line(at, what, writer, "o-1", step, undo, attempt, f"o-1/{step}")
        self.checker.hear(line)

    def step(self, step: str, *, attempt: int = 1) -> None:
        self.fact(e.StepStarted(step, attempt))
        self.line("begin", step, attempt=attempt)
        self.line("done", step, attempt=attempt)
        self.fact(e.StepCompleted(step, attempt))

    def undo(self, step: str) -> None:
        self.fact(e.StepCompensationStarted(step))
        self.line("begin", step, undo=True)
        self.line("done", step, undo=True)
        self.fact(e.StepCompensated(step))

    def steps(self, *steps: str) -> None:
        self.fact(e.SagaStarted())
        for step in steps:
            self.step(step)

    def wrong(self) -> list[str]:
        self.checker.check_end()
        return self.checker.violations


def well(story: Story) -> None:
    story.steps(*STEPS)
    story.fact(e.SagaCompleted())


def rolled_back(story: Story) -> None:
    story.steps("reserve", "charge", "pack")
    story.fact(e.CompensationStarted())
    for step in ("pack", "charge", "reserve"):
        story.undo(step)
    story.fact(e.SagaRolledBack())


def lost_in_a_crash(story: Story) -> None:
    story.steps("reserve", "charge")
    story.fact(e.StepStarted("pack"))
    story.line("begin", "pack")
    story.line("done", "pack")
    story.checker.hit([A.hex()], 0.0, 20.0)
    story.fact(e.SagaClaimed())
    for step in ("pack", "ship", "thank"):
        story.step(step, attempt=2 if step == "pack" else 1)
    story.fact(e.SagaCompleted())


@pytest.mark.parametrize("told", [well, rolled_back, lost_in_a_crash])
def test_what_may_be_is_not_complained_of(told: Callable[[Story], None]) -> None:
    story = Story()
    told(story)
    assert story.wrong() == []


def wrong_stories() -> Iterator[tuple[str, Callable[[Story], None]]]:
    def twice_without_a_fault(story: Story) -> None:
        lost_in_a_crash(story)
        story.checker._hits.clear()

    def a_zombie_begins_a_step(story: Story) -> None:
        lost_in_a_crash(story)
        story.line("begin", "ship", by=A)

    def never_undone(story: Story) -> None:
        story.steps("reserve", "charge")
        story.fact(e.CompensationStarted())
        story.undo("charge")
        story.fact(e.SagaRolledBack())

    def undone_forwards(story: Story) -> None:
        story.steps("reserve", "charge")
        story.fact(e.CompensationStarted())
        story.undo("reserve")
        story.undo("charge")
        story.fact(e.SagaRolledBack())

    def never_begun_and_undone(story: Story) -> None:
        story.steps("reserve")
        story.fact(e.CompensationStarted())
        story.undo("charge")
        story.undo("reserve")
        story.fact(e.SagaRolledBack())

    def unpaid(story: Story) -> None:
        story.steps("reserve", "pack", "ship", "charge", "thank")
        story.fact(e.SagaCompleted())

    def without_its_effect(story: Story) -> None:
        story.steps("reserve")
        story.fact(e.StepStarted("charge"))
        story.fact(e.StepCompleted("charge"))
        for step in ("pack", "ship", "thank"):
            story.step(step)
        story.fact(e.SagaCompleted())

    def a_step_is_missing(story: Story) -> None:
        story.steps("reserve", "charge", "pack", "ship")
        story.fact(e.SagaCompleted())

    def stuck(story: Story) -> None:
        story.steps("reserve")

    def lost(story: Story) -> None:
        story.checker.acknowledge("o-2")

    def not_projected(story: Story) -> None:
        well(story)
        story.checker.check_end({"o-1": (3, "executing")})

    yield "a second time, without a fault", twice_without_a_fault
    yield "begin ship, attempt 1, without an accepted start", a_zombie_begins_a_step
    yield "reserve still stands", never_undone
    yield "reserve was undone before what depends on it", undone_forwards
    yield "charge was undone and never begun", never_begun_and_undone
    yield "shipped unpaid", unpaid
    yield "the world does not", without_its_effect
    yield "completed without thank", a_step_is_missing
    yield "stuck after StepCompleted", stuck
    yield "o-2: its start was acknowledged, and the log has it not", lost
    yield "the store says (3, 'executing')", not_projected


@pytest.mark.parametrize(("complaint", "told"), tuple(wrong_stories()))
def test_what_must_not_be_is_found(complaint: str, told: Callable[[Story], None]) -> None:
    story = Story()
    told(story)
    assert complaint in "\n".join(story.wrong())


def test_what_the_fold_rejects_counts_for_nothing() -> None:
    story = Story()
    story.steps("reserve")
    story._sequence = 7
    story.fact(e.SagaCompleted())
    assert story.checker.unfinished == ["o-1"]
    assert story.checker.counts["rejected"] == 1
