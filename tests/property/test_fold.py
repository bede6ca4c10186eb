"""The laws of the fold over generated histories, and over random schedules of racing engines."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sagaz_es.core import events as e
from sagaz_es.core import fold as rule
from sagaz_es.core.fold import Verdict, fold, fold_all, fold_into
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.state import SagaState, dump_state, load_state

WRITERS = tuple(bytes([number]) * 16 for number in range(1, 5))
STEPS = st.sampled_from(["reserve", "charge", "ship", "åäö 🚚", ""])
KEYS = st.sampled_from(["a", "b", "$$dollar", "", "ключ"])
JSON = st.sampled_from(["1", "null", '"x"', "[1,{}]", '{"$decimal":"9.90"}', "0", '""', "false"])
OBJECTS = st.dictionaries(KEYS, JSON, max_size=3).map(
    lambda items: (
        "{" + ",".join(f"{msgspec.json.encode(k).decode()}:{v}" for k, v in items.items()) + "}"
    )
)
NAMES = st.lists(STEPS, max_size=3).map(lambda names: msgspec.json.encode(names).decode())
KEY_NAMES = st.lists(KEYS, max_size=2).map(lambda names: msgspec.json.encode(names).decode())
GRAPH = Graph(
    [StepNode("reserve"), StepNode("charge", ("reserve",)), StepNode("ship", ("charge",))]
)
STANDING = '[{"step":"reserve","owner":"root","result":"1","keys_set":"{\\"a\\":2}"}]'

# Texts of these fields hold JSON of a certain form; every other text is free.
FORMS: dict[str, st.SearchStrategy[str]] = {
    "context": OBJECTS,
    "overrides": st.just("") | OBJECTS,
    "keys_set": st.just("") | OBJECTS,
    "keys_deleted": st.just("") | KEY_NAMES,
    "reads": st.just("") | KEY_NAMES,
    "steps": NAMES,
    "standing": st.just("") | st.just(STANDING),
    "boundary": NAMES,
    "plan": st.sampled_from(["", '[["reserve","reuse",""]]', '[["reserve","undo_first","stale"]]']),
    "graph": st.sampled_from(["", GRAPH.text]),
    "state": st.just(""),
    "step": STEPS,
    "replay_id": st.sampled_from(["", "r1"]),
}
FREE: dict[str, st.SearchStrategy[Any]] = {
    "str": st.sampled_from(["", "x"]),
    "int": st.integers(0, 3),
    "bool": st.booleans(),
}


def facts_of(kind: type[e.Fact]) -> st.SearchStrategy[e.Fact]:
    """Facts of one type with every field drawn."""
    fields = {
        field.name: FORMS[field.name] if field.name in FORMS else FREE[field.type.__name__]
        for field in msgspec.structs.fields(kind)
    }
    if "standing" in fields and kind is not e.SagaStarted:
        fields["standing"] = NAMES
    return st.builds(kind, **fields)


def dirty_facts_of(kind: type[e.Fact]) -> st.SearchStrategy[e.Fact]:
    """Facts as a writer in another language may get them wrong: any text anywhere."""
    texts = OBJECTS | NAMES | JSON | st.sampled_from(["", "{", STANDING, "null"]) | st.text()
    fields = {
        field.name: texts if field.type is str else FREE[field.type.__name__]
        for field in msgspec.structs.fields(kind)
    }
    return st.builds(kind, **fields)


FACTS = st.sampled_from(e.FACTS).flatmap(facts_of)
DIRTY = st.sampled_from(e.FACTS).flatmap(dirty_facts_of)
MOVES = st.tuples(
    st.sampled_from(
        ["next"] * 8
        + ["again", "start", "claim", "branch", "stray", "gap", "stale", "recorded", "any"]
    ),
    st.integers(0, 30),
    FACTS,
)


def history(moves: Iterable[tuple[str, int, e.Fact]]) -> list[e.Event]:
    """Events as engines, recorders and late producers may put them into one saga's stream."""
    events: list[e.Event] = []
    state = SagaState()
    for kind, number, fact in moves:
        writer = WRITERS[number % len(WRITERS)]
        own = partial(e.Event, "saga", "order", occurred_at=number * 7 % 20)
        count = state.recorders.get(writer.hex(), 0)
        ahead = state.sequence + 1
        if (kind == "next" and state.recorded) or kind == "recorded":
            event = own(writer, -1, count + 1, fact=fact)
        elif kind == "next" and state.sequence:
            event = own(state.writer, state.epoch, ahead, fact=fact)
        elif kind == "again" and events:
            event = events[number % len(events)]
        elif kind == "claim":
            event = own(writer, state.epoch + 1, ahead, fact=e.SagaClaimed())
        elif kind == "branch":
            event = own(writer, state.epoch + 1, ahead, fact=e.ReplayBranched("r", f"b{number}"))
        elif kind == "stray":  # a claim or start whose epoch or number may not fit
            claims = (e.SagaClaimed(), e.ReplayBranched("r", "b"), e.SagaStarted())
            epoch, sequence = state.epoch + number % 4, ahead + number // 4 % 3 - 1
            event = own(writer, epoch, sequence, fact=claims[number % 3])
        elif kind == "gap":
            event = own(state.writer or writer, state.epoch, ahead + 1 + number % 3, fact=fact)
        elif kind == "stale":
            event = own(writer, state.epoch - number % 3, ahead - number % 2, fact=fact)
        elif kind == "any":
            event = own(writer, number % 5 - 2, number % 7 - 1, fact=fact)
        else:
            event = own(writer, 0, 1, fact=e.SagaStarted(context='{"a":0}'))
        events.append(event)
        fold_into(state, event)
    return events


HISTORIES = st.lists(MOVES, min_size=1, max_size=25).map(history)


def accepted_by_the_book(events: Iterable[e.Event]) -> list[e.Event]:
    """DESIGN §4 once more, word by word, with nothing but the accepted facts to remember."""
    taken: list[e.Event] = []
    for event in events:
        numbers = [one.sequence for one in taken if one.epoch == -1 and one.writer == event.writer]
        owner = next((one for one in reversed(taken) if one.epoch != -1), None)
        recorded = bool(taken) and taken[0].epoch == -1
        next_number = len(taken) + 1
        if event.epoch == -1:
            good = (recorded or not taken) and event.sequence == len(numbers) + 1
        elif not taken:
            good = type(event.fact) is e.SagaStarted and (event.epoch, event.sequence) == (0, 1)
        elif owner and (event.writer, event.epoch) == (owner.writer, owner.epoch):
            good = event.sequence == next_number
        else:
            claims = type(event.fact) is e.SagaClaimed and not recorded
            claims |= type(event.fact) is e.ReplayBranched and fold_all(taken).ended
            epoch = owner.epoch if owner else -1
            good = claims and (event.epoch, event.sequence) == (epoch + 1, next_number)
        if good:
            taken.append(event)
    return taken


LEAPS = history([("start", 0, e.SagaStarted()), ("stray", 9, e.SagaPaused())])
"""A claim whose epoch is the next one, and whose sequence is the next but one."""


@settings(deadline=None)
@given(HISTORIES)
@example(LEAPS)
def test_a_history_folds_to_the_same_state_as_what_the_rule_accepts_of_it(
    events: list[e.Event],
) -> None:
    taken = accepted_by_the_book(events)
    assert dump_state(fold_all(events)) == dump_state(fold_all(taken))
    assert fold_all(events).sequence == len(taken)


@settings(deadline=None)
@given(HISTORIES)
def test_an_epoch_has_one_writer_and_no_sequence_comes_twice(events: list[e.Event]) -> None:
    state = SagaState()
    writers: dict[int, bytes] = {}
    sequences: list[int] = []
    counts: Counter[bytes] = Counter()
    for event in events:
        if fold_into(state, event) is not Verdict.ACCEPTED:
            continue
        sequences.append(state.sequence)
        if event.epoch == e.RECORDED_EPOCH:
            counts[event.writer] += 1
            assert event.sequence == counts[event.writer]
        else:
            assert writers.setdefault(event.epoch, event.writer) == event.writer
            assert event.sequence == state.sequence
            assert event.epoch == max(writers)
    assert sequences == list(range(1, len(sequences) + 1))


@settings(deadline=None)
@given(HISTORIES)
def test_a_rejected_event_changes_nothing_and_gives_the_very_same_state(
    events: list[e.Event],
) -> None:
    state = SagaState()
    for event in events:
        before = dump_state(state)
        after = fold(state, event)
        assert dump_state(state) == before, "fold is pure"
        own = state.copy()
        verdict = fold_into(own, event)
        assert dump_state(own) == dump_state(after)
        assert (after is state) == (verdict is not Verdict.ACCEPTED)
        state = after


@settings(deadline=None)
@given(HISTORIES, HISTORIES)
def test_an_event_that_comes_late_changes_nothing(
    events: list[e.Event], others: list[e.Event]
) -> None:
    state = fold_all(events)
    before = dump_state(state)
    for event in accepted_by_the_book(events):
        assert fold_into(state, event) is not Verdict.ACCEPTED
    assert dump_state(state) == before


@settings(deadline=None)
@given(HISTORIES, st.integers(0, 25))
def test_a_state_kept_at_any_point_goes_on_as_the_whole_fold(
    events: list[e.Event], point: int
) -> None:
    head = fold_all(events[:point])
    kept = dump_state(head)
    copied = head.copy()
    for event in events[point:]:
        fold_into(copied, event)
    assert dump_state(head) == kept, "a copy shares nothing that changes"
    whole = fold_all(events)
    assert copied == whole
    assert fold_all(events[point:], load_state(kept)) == whole
    assert dump_state(fold_all(events[point:], load_state(kept))) == dump_state(whole)


@settings(deadline=None)
@given(HISTORIES | st.just([]), FACTS | DIRTY)
def test_every_fact_can_follow_every_state(events: list[e.Event], fact: e.Fact) -> None:
    state = fold_all(events)
    counted = state.recorders.get(state.writer.hex(), 0)
    sequence = counted + 1 if state.recorded else state.sequence + 1
    epoch = state.epoch if state.sequence else 0
    event = e.Event("saga", "order", state.writer, epoch, sequence, 5, fact)
    after = fold(state, event)
    assert load_state(dump_state(after)) == after
    assert after.updated_at >= state.updated_at
    assert isinstance(after.ended, bool)
    assert set(after.completed_steps) <= set(after.steps)
    assert after.step_graph.by_name is not None


# --- racing engines -------------------------------------------------------------------------------

DONE = 3  # steps of the raced saga


class Engine:
    """An engine that starts, claims, runs and crashes as it pleases, on the real fold."""

    count = 0

    def __init__(self, world: World) -> None:
        self.world = world
        self.may_crash = True
        self.boot()

    def boot(self) -> None:
        """A new incarnation: what was in memory is gone, and the writer is another one."""
        Engine.count += 1
        self.writer = Engine.count.to_bytes(16, "big")
        self.state = SagaState()
        self.read = 0
        self.sent: e.Event | None = None
        self.running: tuple[int, int, int] | None = None  # step, epoch, sequence of its start

    def act(self, rng: random.Random) -> None:
        chance = rng.random()
        if chance < 0.02 and self.may_crash:
            self.boot()
        elif chance < 0.55 and self.read < len(self.world.log):
            event = self.world.log[self.read]
            self.read += 1
            fold_into(self.state, event)
            if event == self.sent:
                self.sent = None
        elif self.running and chance < 0.7:
            self.finish(rng)
        elif not (self.sent or self.running or self.state.ended):
            self.go_on(rng)

    def finish(self, rng: random.Random) -> None:
        """The effect happened: its completion and the next start travel together."""
        assert self.running
        step, epoch, sequence = self.running
        self.running = None
        self.world.effects.append((self.writer, step))
        if self.world.renumbers:
            sequence = self.state.sequence
        following: e.Fact = e.StepStarted(str(step + 1)) if step + 1 < DONE else e.SagaCompleted()
        self.append([e.StepCompleted(str(step)), following], epoch, sequence + 1, rng)

    def go_on(self, rng: random.Random) -> None:
        state, done = self.state, len(self.state.completed_steps)
        begin: list[e.Fact] = [e.StepStarted(str(done))] if done < DONE else []
        if not state.sequence:
            self.append([e.SagaStarted(), *begin], 0, 1, rng)
        elif state.writer != self.writer:
            if rng.random() < self.world.greed:
                claim = [e.SagaClaimed(), *begin]
                self.append(claim, state.epoch + 1, state.sequence + 1, rng)
        elif state.current and not state.step(state.current).interrupted:
            self.running = (int(state.current), state.epoch, state.sequence)
        else:
            self.append(begin or [e.SagaCompleted()], state.epoch, state.sequence + 1, rng)

    def append(self, facts: Sequence[e.Fact], epoch: int, first: int, rng: random.Random) -> None:
        events = [
            e.Event("saga", "order", self.writer, epoch, sequence, 0, fact)
            for sequence, fact in enumerate(facts, first)
        ]
        self.sent = events[-1]
        late = rng.random() < 0.15
        # Now and then a crash of the broker leaves the first of a batch alone.
        kept = events[:1] if rng.random() < 0.1 else events
        (self.world.late if late else self.world.log).extend(kept)
        if rng.random() < 0.1:
            self.world.late.extend(events)  # the identical events again
        if rng.random() < 0.1:
            self.sent = None  # an unknown outcome: the fold will tell


class World:
    """One saga's stream, what is still on its way to it, and what happened outside."""

    def __init__(self, *, renumbers: bool = False) -> None:
        self.log: list[e.Event] = []
        self.late: list[e.Event] = []
        self.effects: list[tuple[bytes, int]] = []
        self.greed = 0.1
        self.renumbers = renumbers


def violations(seed: int, *, renumbers: bool = False) -> set[str]:
    """What one random schedule of three engines breaks; the seed brings it back."""
    rng = random.Random(seed)
    world = World(renumbers=renumbers)
    engines = [Engine(world) for _ in range(3)]
    for _ in range(400):
        rng.choice(engines).act(rng)
        if world.late and rng.random() < 0.2:
            world.log.append(world.late.pop(rng.randrange(len(world.late))))
    world.log += world.late
    world.late, world.greed = [], 0.5
    healer = engines[0]
    healer.boot()
    healer.may_crash = False
    for _ in range(600):
        if healer.read == len(world.log):
            healer.sent = None
        healer.act(rng)
        if world.late:
            world.log.append(world.late.pop(0))
    return _broken_laws(world)


def _broken_laws(world: World) -> set[str]:
    state, broken = SagaState(), set()
    writers: dict[int, bytes] = {}
    completed: Counter[str] = Counter()
    begun: set[tuple[bytes, int]] = set()
    for event in world.log:
        if fold_into(state, event) is not Verdict.ACCEPTED:
            continue
        if writers.setdefault(event.epoch, event.writer) != event.writer:
            broken.add("two writers in an epoch")
        if isinstance(event.fact, e.StepCompleted):
            completed[event.fact.step] += 1
        elif isinstance(event.fact, e.StepStarted):
            begun.add((event.writer, int(event.fact.step)))
    if any(count > 1 for count in completed.values()):
        broken.add("completed twice")
    if not state.ended:
        broken.add("stuck")
    if not begun.issuperset(world.effects):
        broken.add("effect without its accepted start")
    return broken


def all_violations(schedules: int, **bug: bool) -> set[str]:
    return {broken for seed in range(schedules) for broken in violations(seed, **bug)}


def test_no_schedule_of_racing_engines_breaks_a_law() -> None:
    assert all_violations(150) == set()


Judge = Callable[[SagaState, e.Event], Verdict]


def without_writer(judge: Judge) -> Judge:
    return lambda state, event: judge(
        state, msgspec.structs.replace(event, writer=state.writer) if state.sequence else event
    )


def without_sequence(judge: Judge) -> Judge:
    return lambda state, event: judge(
        state, msgspec.structs.replace(event, sequence=state.sequence + 1)
    )


@pytest.mark.parametrize("bug", [without_writer, without_sequence])
def test_the_schedules_find_a_rule_that_lacks_a_part(
    bug: Callable[[Judge], Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, "judge", bug(rule.judge))
    assert all_violations(150) - {"stuck"}


def test_the_schedules_find_an_engine_that_renumbers_a_retried_event() -> None:
    assert "completed twice" in all_violations(150, renumbers=True)
