"""No saga goes back beside a pivot of which nobody knows yet whether it has happened.

A small engine plays `decide`, `settle_pivots` and `cancel` over generated graphs: attempts end in
every way and in any order, other writers take over, time passes, a deadline comes, somebody cancels
or pauses. At each CompensationStarted the law is looked at, in words of its own.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sagaz_es.core import events as e
from sagaz_es.core.decide import (
    Attempt,
    ParallelFailureStrategy,
    Rules,
    cancel,
    decide,
    settle_pivots,
)
from sagaz_es.core.fold import advance
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.state import SagaState
from sagaz_es.errors import PivotPassed, PivotUndecided, SagaEnded

NAMES = ("a", "b", "c", "d", "e")
ENDS = ("completes", "fails", "fails, again later", "times out", "times out, again later")
DOINGS = ("decide", "decide", "end", "end", "end", "take over", "cancel", "time", "pause", "resume")
CANCEL = e.CancelRequested("request", "s")


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    nodes = []
    for index, name in enumerate(NAMES):
        needs = tuple(
            sorted(draw(st.sets(st.sampled_from(NAMES[:index])) if index else st.just(())))
        )
        nodes.append(
            StepNode(
                name,
                needs,
                compensable=draw(st.booleans()),
                on_unknown=draw(st.booleans()),
                pivot=draw(st.booleans()),
                at_most_once=draw(st.booleans()),
            )
        )
    return Graph(nodes)


class World:
    """One saga, what runs of it, and what really happened."""

    def __init__(self, graph: Graph, rules: Rules, deadline_at: int) -> None:
        self.graph, self.rules = graph, rules
        self.state, self.epoch, self.now = SagaState(), 0, 1
        self.running: dict[str, Attempt] = {}
        self.asked: set[str] = set()
        self.wants_cancel = False
        self.refused: list[str] = []
        self.open: set[str] = set()  # pivots begun, and not known to have ended
        self.append(e.SagaStarted(graph=graph.text, deadline_at=deadline_at))

    def append(self, fact: e.Fact) -> None:
        if isinstance(fact, e.SagaClaimed):
            self.epoch += 1
        step = getattr(fact, "step", "")
        if step and self.graph.by_name[step].pivot:
            if isinstance(fact, e.StepStarted | e.StepOutcomeUnknown):
                self.open.add(step)
            elif isinstance(fact, e.StepCompleted):
                self.open.discard(step)
            elif isinstance(fact, e.OutcomeResolved):
                self.open.discard(step)
            elif isinstance(fact, e.StepFailed):
                assert fact.error_type != "Cancelled", f"pivot {step} was stopped"
                # For certain, or for good: its own rules have given up.
                if not fact.retry_at or (not self.state.step(step).unknown and not fact.unknown):
                    self.open.discard(step)
        if isinstance(fact, e.CompensationStarted):
            assert not self.open, f"it goes back, and {self.open} may have happened"
        sequence = self.state.sequence + 1
        writer = bytes([self.epoch]) * 16
        event = e.Event("s", "saga", writer, self.epoch, sequence, self.now, fact)
        advance(self.state, event)

    # --- what the runner does ---

    def decide(self) -> None:
        for _ in range(1000):
            if self.state.ended:
                return
            if self.wants_cancel and not self._cancel():
                decision = settle_pivots(self.state, self.graph, self.now, self.rules)
            else:
                if self.wants_cancel:
                    return  # what runs is being stopped
                decision = decide(self.state, self.graph, self.now, self.rules)
            for fact in decision.facts:
                self.append(fact)
            new = [each for each in decision.run if not (each.ask and each.step in self.asked)]
            for attempt in new:
                if attempt.ask:
                    self.asked.add(attempt.step)
                self.running[attempt.step] = attempt
            if decision.stop_running:
                self._stop()
            if not (decision.facts or new or decision.stop_running):
                return
        raise AssertionError(f"it turns without an end: {self.state}")

    def _cancel(self) -> bool:
        """False: a pivot comes first. Without an answer what runs is stopped."""
        try:
            facts = cancel(self.state, self.graph, CANCEL)
        except PivotUndecided:
            decision = settle_pivots(self.state, self.graph, self.now, self.rules)
            runs = any(self.graph.by_name[name].pivot for name in self.running)
            asks = [each for each in decision.run if each.step not in self.asked]
            if not (decision.facts or asks or decision.wake_at or runs):
                self.refused.append("undecided")
                self.wants_cancel = False
                return True
            return False
        except (PivotPassed, SagaEnded) as error:
            self.refused.append(type(error).__name__)
            self.wants_cancel = False
            return True
        if self.running and facts:
            self._stop()
        if not self.running or not facts:
            for fact in facts:
                self.append(fact)
            self.wants_cancel = False
        return True

    def _stop(self) -> None:
        for name, attempt in list(self.running.items()):
            if not attempt.undo and not attempt.ask and not self.graph.by_name[name].pivot:
                del self.running[name]
                self.append(e.StepFailed(name, attempt.attempt, "Cancelled", unknown=True))

    def end(self, attempt: Attempt, how: str) -> None:
        del self.running[attempt.step]
        name, number = attempt.step, attempt.attempt
        if attempt.undo:
            self.append(e.StepCompensated(name, number))
        elif attempt.ask:
            if how in ("completes", "fails"):
                self.append(e.OutcomeResolved(name, number, how == "completes"))
        elif how == "completes":
            self.append(e.StepCompleted(name, number))
        else:
            unknown, again = how.startswith("times"), how.endswith("later")
            if self.graph.by_name[name].at_most_once:
                if unknown:
                    self.append(e.StepOutcomeUnknown(name, number))
                    return
                again = False
            retry_at = self.now + 2 if again else 0
            self.append(e.StepFailed(name, number, "Error", retry_at=retry_at, unknown=unknown))

    def take_over(self) -> None:
        self.running.clear()
        self.asked.clear()
        self.append(e.SagaClaimed())


@settings(max_examples=500)
@given(
    graphs(),
    st.sampled_from(ParallelFailureStrategy),
    st.frozensets(st.sampled_from(NAMES)),
    st.sampled_from((0, 5)),
    st.lists(
        st.tuples(st.sampled_from(DOINGS), st.sampled_from(ENDS), st.integers(0, 9)), min_size=8
    ),
)
def test_no_saga_goes_back_beside_a_pivot_that_may_have_happened(
    graph: Graph,
    strategy: ParallelFailureStrategy,
    resolvable: frozenset[str],
    deadline_at: int,
    doings: list[tuple[str, str, int]],
) -> None:
    world = World(graph, Rules(strategy, grace_us=2, resolvable=resolvable), deadline_at)
    for doing, how, number in doings:
        if world.state.ended:
            break
        if doing == "end" and world.running:
            world.end([*world.running.values()][number % len(world.running)], how)
        elif doing == "take over":
            world.take_over()
        elif doing == "cancel":
            world.wants_cancel = True
        elif doing == "time":
            world.now += number
        elif doing in ("pause", "resume") and world.state.status == "executing":
            world.append(e.SagaPaused() if doing == "pause" else e.SagaResumed())
        world.decide()
    # What hinders it ends: it goes to its end then, and who wanted to cancel has an answer.
    for _ in range(100):
        if world.state.paused and world.state.status == "executing":
            world.append(e.SagaResumed())
        world.asked.clear()
        world.decide()
        if world.state.ended:
            break
        for attempt in list(world.running.values()):
            world.end(attempt, "completes")
        for name, step in list(world.state.steps.items()):
            if step.status == "outcome_unknown" and name not in world.running:
                world.append(e.OutcomeResolved(name, step.attempt, True))
        world.now += 10
    assert world.state.ended, world.state
