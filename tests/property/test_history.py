"""Laws of time travel over generated histories: every point, any base, clocks that step back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sagaz_es.core import events as e
from sagaz_es.core.fold import fold_all
from sagaz_es.core.history import (
    MISSING,
    Moment,
    Point,
    Step,
    bisection,
    changes,
    diff,
    parse_path,
    reached,
    state_at,
    value_at,
)
from sagaz_es.core.state import SagaState, dump_state

WRITER = b"W" * 16
STEPS = st.sampled_from(["reserve", "charge", "ship"])
KEYS = st.sampled_from(["a", "b", "c"])
TEXTS = st.sampled_from(["1", "2", '"x"', "null", "false", '{"n":[1]}'])
OBJECTS = st.dictionaries(KEYS, TEXTS, max_size=2).map(
    lambda items: "{" + ",".join(f'"{key}":{text}' for key, text in items.items()) + "}"
)
GONE = st.lists(KEYS, max_size=2, unique=True).map(
    lambda keys: "[" + ",".join(f'"{key}"' for key in keys) + "]"
)
FACTS: st.SearchStrategy[e.Fact] = st.one_of(
    st.builds(e.StepStarted, STEPS),
    st.builds(e.StepCompleted, STEPS, keys_set=OBJECTS, keys_deleted=GONE),
    st.builds(e.StepFailed, STEPS, error_type=st.just("IOError"), retry_at=st.integers(0, 1)),
    st.builds(e.StepSkipped, STEPS),
    st.builds(e.CompensationStarted, st.just('["reserve"]')),
    st.builds(e.StepCompensated, STEPS),
    st.builds(e.RecoveryDecided, STEPS, keys_set=OBJECTS),
    st.builds(e.SagaStarted, context=OBJECTS),
    st.sampled_from([e.SagaClaimed(), e.SagaCompleted(), e.SagaRolledBack()]),
)
TIMES = st.integers(-4, 9)  # few, so that equal times and steps back are common


def stream(parts: list[tuple[e.Fact, int, bool]], epoch: int) -> list[e.Event]:
    """Events of one writer; some of them come twice."""
    events = []
    first: e.Fact = e.SagaStarted(context='{"a":0}')
    for sequence, (fact, at, twice) in enumerate([(first, -2, False), *parts], 1):
        event = e.Event("saga", "order", WRITER, epoch, sequence, at, fact)
        events += [event, event] if twice else [event]
    return events


PARTS = st.lists(st.tuples(FACTS, TIMES, st.booleans()), max_size=20)
STREAMS = st.builds(stream, PARTS, st.sampled_from([0, e.RECORDED_EPOCH]))


def states_of(events: list[e.Event]) -> list[SagaState]:
    """The state at each sequence, the naive way; index 0: before the saga began."""
    states = [SagaState()]
    for end in range(1, len(events) + 1):
        state = fold_all(events[:end])
        if state.sequence == len(states):
            states.append(state)
    return states


def expected(events: list[e.Event], point: Point) -> SagaState:
    """The definition of each point, word by word."""
    states = states_of(events)
    if isinstance(point, int):
        return states[min(max(point, 0), len(states) - 1)]
    accepted = list(dict.fromkeys(events))
    if isinstance(point, Moment):
        clock, last = accepted[0].occurred_at, 0
        for sequence, event in enumerate(accepted, 1):
            clock = max(clock, event.occurred_at)
            if clock <= point.at:
                last = sequence
        return states[last]
    for sequence, event in enumerate(accepted, 1):
        about = isinstance(event.fact, e.StepStarted | e.StepFailed | e.StepSkipped)
        completed = isinstance(event.fact, e.StepCompleted)
        if (about or completed) and getattr(event.fact, "step", "") == point.name:
            if not point.after:
                return states[sequence - 1]
            if completed:
                return states[sequence]
    return states[-1]


POINTS: st.SearchStrategy[Point] = st.one_of(
    st.integers(-1, 25), TIMES.map(Moment), st.builds(Step, STEPS, st.booleans())
)


@settings(deadline=None)
@given(STREAMS, POINTS)
def test_a_point_means_what_it_says(events: list[e.Event], point: Point) -> None:
    assert dump_state(state_at(events, point)) == dump_state(expected(events, point))


@settings(deadline=None)
@given(STREAMS, POINTS, st.data())
def test_any_base_before_the_point_gives_the_same_answer(
    events: list[e.Event], point: Point, data: st.DataObject
) -> None:
    answer = state_at(events, point)
    base = states_of(events)[data.draw(st.integers(0, answer.sequence), label="base")]
    before = dump_state(base)
    assert dump_state(state_at(events, point, base)) == dump_state(answer)
    assert dump_state(base) == before


def test_a_base_that_is_the_point_is_the_answer() -> None:
    done = e.StepCompleted("reserve", keys_set="{}", keys_deleted="[]")
    events = stream([(done, 0, False), (e.CompensationStarted('["reserve"]'), 0, False)], 0)
    base = states_of(events)[2]
    assert state_at(events, Step("reserve", after=True), base) == base
    assert base.status == "executing"


@settings(deadline=None)
@given(STREAMS)
def test_the_changes_lead_from_each_state_to_the_next(events: list[e.Event]) -> None:
    states = states_of(events)
    told = list(changes(events))
    assert [change.sequence for change in told] == list(range(1, len(states)))
    context: dict[str, str] = {}
    for change, state in zip(told, states[1:], strict=True):
        assert not set(change.set) & set(change.deleted)
        assert set(change.deleted) <= set(context)
        context = {**context, **change.set}
        for key in change.deleted:
            del context[key]
        assert context == state.context
        assert (change.at, change.status) == (state.updated_at, state.status)
    for base in states:
        assert list(changes(events, base)) == told[base.sequence :]


@settings(deadline=None)
@given(STREAMS, st.data())
def test_a_difference_is_what_is_otherwise(events: list[e.Event], data: st.DataObject) -> None:
    states = states_of(events)
    a, b = (data.draw(st.sampled_from(states)) for _ in "ab")
    told = diff(a, b)
    context = {**a.context, **{key: after for key, (_, after) in told.set.items()}}
    for key in told.deleted:
        del context[key]
    assert context == b.context
    assert all(was != now for was, now in told.set.values())
    assert diff(b, a).steps == {name: (now, was) for name, (was, now) in told.steps.items()}
    assert diff(a, a) == diff(a, a.copy())
    assert not (diff(a, a).set or diff(a, a).deleted or diff(a, a).steps)


@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 60))
def test_a_bisection_finds_the_first_in_few_looks(first: int, length: int, edge: int) -> None:
    last, looks = first + length - 1, 0
    search = bisection(first, last)
    found = None
    try:
        place = next(search)
        while True:
            looks += 1
            place = search.send(place >= edge)
    except StopIteration as stop:
        found = stop.value
    assert found == (max(edge, first) if edge <= last and length else None)
    assert looks <= length.bit_length()


@settings(deadline=None)
@given(STREAMS)
def test_every_step_that_began_is_listed_once_with_the_state_before_it(
    events: list[e.Event],
) -> None:
    states = states_of(events)
    steps = reached(events)
    assert [step.index for step in steps] == list(range(len(steps)))
    assert len({step.step for step in steps}) == len(steps)
    assert [step.sequence for step in steps] == sorted(step.sequence for step in steps)
    for step in steps:
        assert states[step.sequence] == state_at(events, Step(step.step))
        assert step.at == states[step.sequence + 1].updated_at
        assert step.status == states[-1].step(step.step).status


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.lists(st.integers(), max_size=3)))
def test_every_key_can_be_reached_by_its_own_spelling_or_quoted(
    context: dict[str, int | list[int]],
) -> None:
    for key, value in context.items():
        assert value_at(context, key) == value
        if "']" not in key:
            assert value_at({"in": context}, f"in['{key}']") == value


@given(st.text(alphabet="ab.[]'\"0-", max_size=8))
def test_any_text_is_a_path_or_leads_nowhere(path: str) -> None:
    context = {"a": {"b": [1, {"a": None}]}, "b": [0]}
    value_at(context, path)
    if path == "a.b[1].a":
        assert value_at(context, path) is None
    assert value_at({}, path) is MISSING


def test_paths_are_read_as_messages_write_them() -> None:
    assert parse_path("order.items[3].price") == ["order", "items", 3, "price"]
    assert parse_path("['a.b'][0]") == ["a.b", 0]
    assert parse_path("items[-1]") == ["items", -1]
    context = {"order": {"items": [1, 2, {"price": 9}], "a.b": (5,), "3": "x"}, "a.b": 7}
    assert value_at(context, "order.items[2].price") == 9
    assert value_at(context, "order.items[-1].price") == 9
    assert value_at(context, "order.items.2.price") == 9
    assert value_at(context, "order['a.b'][0]") == 5
    assert value_at(context, "order[3]") == "x"
    assert value_at(context, "a.b") == 7
    assert value_at(context, "order.items[3]") is MISSING
    assert value_at(context, "order.items.price") is MISSING
    assert value_at(context, "order[") is MISSING
