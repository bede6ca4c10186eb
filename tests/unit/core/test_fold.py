"""The acceptance rule case by case, and what each fact does to a state."""

from __future__ import annotations

import pytest

from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, fold, fold_all, judge
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.state import SagaState, StepState, dump_state, load_state

A, B = b"A" * 16, b"B" * 16
GRAPH = Graph(
    [StepNode("reserve"), StepNode("charge", ("reserve",)), StepNode("ship", ("charge",))]
)
START = e.SagaStarted(graph=GRAPH.text, definition=GRAPH.fingerprint, context='{"sku":"A1"}')
RESERVED = e.StepCompleted("reserve", result='{"r":7}', keys_set='{"r":7}')


def stream(*facts: e.Fact, writer: bytes = A, epoch: int = 0, first: int = 1) -> list[e.Event]:
    """Facts in the envelopes of one writer, a second apart."""
    return [
        e.Event("order-17", "order", writer, epoch, sequence, sequence * 1_000_000, fact)
        for sequence, fact in enumerate(facts, first)
    ]


def recorded(*facts: e.Fact, writer: bytes = A, first: int = 1) -> list[e.Event]:
    return stream(*facts, writer=writer, epoch=e.RECORDED_EPOCH, first=first)


def after(*facts: e.Fact) -> SagaState:
    """The state after these facts of one writer."""
    state = fold_all(stream(*facts))
    assert state.sequence == len(facts)
    return state


RUNNING = after(START, e.StepStarted("reserve"))
ENDED = after(START, RESERVED, e.SagaCompleted())
RECORDED = fold_all(recorded(RESERVED))


# --- the rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "writer", "epoch", "sequence", "fact", "verdict"),
    [
        (SagaState(), A, 0, 1, START, Verdict.ACCEPTED),
        (SagaState(), A, 0, 2, START, Verdict.GAP),
        (SagaState(), A, 1, 1, START, Verdict.GAP),
        (SagaState(), A, 0, 1, RESERVED, Verdict.GAP),
        (SagaState(), A, 1, 1, e.SagaClaimed(), Verdict.GAP),
        (RUNNING, B, 0, 1, START, Verdict.EXISTS),
        (RUNNING, A, 0, 1, START, Verdict.DUPLICATE),
        (RUNNING, A, 0, 3, RESERVED, Verdict.ACCEPTED),
        (RUNNING, A, 0, 2, RESERVED, Verdict.DUPLICATE),
        (RUNNING, A, 0, 4, RESERVED, Verdict.GAP),
        (RUNNING, B, 0, 3, RESERVED, Verdict.STALE_WRITER),
        (RUNNING, A, 1, 3, RESERVED, Verdict.STALE_WRITER),
        (RUNNING, B, 1, 3, e.SagaClaimed(), Verdict.ACCEPTED),
        (RUNNING, A, 1, 3, e.SagaClaimed(), Verdict.ACCEPTED),
        (RUNNING, B, 1, 2, e.SagaClaimed(), Verdict.EXISTS),
        (RUNNING, B, 1, 4, e.SagaClaimed(), Verdict.GAP),
        (RUNNING, B, 2, 3, e.SagaClaimed(), Verdict.GAP),
        (RUNNING, B, 0, 3, e.SagaClaimed(), Verdict.STALE_WRITER),
        (RUNNING, B, 1, 3, e.ReplayBranched("r", "b"), Verdict.STALE_WRITER),
        (ENDED, B, 1, 4, e.ReplayBranched("r", "b"), Verdict.ACCEPTED),
        (ENDED, B, 1, 3, e.ReplayBranched("r", "b"), Verdict.EXISTS),
        (ENDED, B, 1, 4, e.SagaClaimed(), Verdict.ACCEPTED),
        (RUNNING, B, -1, 1, RESERVED, Verdict.STALE_WRITER),
        (SagaState(), A, -1, 1, RESERVED, Verdict.ACCEPTED),
        (SagaState(), A, -1, 2, RESERVED, Verdict.GAP),
        (RECORDED, A, -1, 2, RESERVED, Verdict.ACCEPTED),
        (RECORDED, A, -1, 1, RESERVED, Verdict.DUPLICATE),
        (RECORDED, A, -1, 3, RESERVED, Verdict.GAP),
        (RECORDED, B, -1, 1, RESERVED, Verdict.ACCEPTED),
        (RECORDED, B, 0, 1, START, Verdict.EXISTS),
        (RECORDED, B, 0, 2, e.SagaClaimed(), Verdict.STALE_WRITER),
    ],
)
def test_the_acceptance_rule(
    state: SagaState, writer: bytes, epoch: int, sequence: int, fact: e.Fact, verdict: Verdict
) -> None:
    event = e.Event("order-17", "order", writer, epoch, sequence, 0, fact)
    assert judge(state, event) is verdict
    assert (fold(state, event) is state) == (verdict is not Verdict.ACCEPTED)


def test_the_loser_of_a_race_to_start_writes_into_the_void() -> None:
    winner = stream(START, e.StepStarted("reserve"))
    loser = stream(START, e.StepStarted("charge"), writer=B)
    assert fold_all([winner[0], *loser, winner[1]]) == fold_all(winner)


def test_a_claim_makes_attempts_that_were_running_interrupted() -> None:
    state = fold_all(stream(e.SagaClaimed(), writer=B, epoch=1, first=3), RUNNING)
    assert (state.writer, state.epoch, state.sequence) == (B, 1, 3)
    assert state.step("reserve") == StepState(status="executing", attempt=1, interrupted=True)
    late = fold_all(stream(RESERVED, first=3), state)
    assert late == state


def test_a_replay_of_a_recorded_saga_that_ended_gives_it_a_writer() -> None:
    past = fold_all(recorded(START, RESERVED, e.SagaCompleted()))
    branched = e.Event("order-17", "order", B, 0, 4, 9_000_000, e.ReplayBranched("r1", "order-17b"))
    state = fold(past, branched)
    assert (state.branch, state.writer, state.epoch, state.sequence) == ("order-17b", B, 0, 4)
    # Its recorders may still have something to add.
    assert fold_all(recorded(e.SignalReceived("seen"), first=4), state).sequence == 5


def test_recorders_count_for_themselves_and_the_log_gives_the_order() -> None:
    mine = recorded(START, RESERVED, e.SagaCompleted())
    other = recorded(e.StepCompleted("charge"), writer=B)
    state = fold_all([mine[0], mine[1], other[0], mine[1], other[0], mine[2]])
    assert state.completed_steps == ["reserve", "charge"]
    assert (state.sequence, state.status) == (4, "completed")
    assert state.recorders == {A.hex(): 3, B.hex(): 1}


# --- texts that other writers may have got wrong --------------------------------------------------


@pytest.mark.parametrize(
    "fact",
    [
        e.StepCompleted("reserve", keys_set='{"a":'),
        e.StepCompleted("reserve", keys_set="[1]"),
        e.StepCompleted("reserve", keys_deleted='{"a":1}'),
        e.StepCompleted("reserve", keys_deleted="[1]"),
        e.StepCompleted("reserve", keys_set="[" * 100_000),
        e.CompensationStarted(steps="reserve"),
        e.RecoveryDecided("reserve", keys_set="null"),
        e.SagaStarted(context="nonsense"),
    ],
)
def test_a_fact_with_an_unreadable_text_is_rejected(fact: e.Fact) -> None:
    (event,) = stream(fact, first=3)
    assert judge(RUNNING, event) is Verdict.UNREADABLE
    assert fold(RUNNING, event) is RUNNING


@pytest.mark.parametrize(
    "fact",
    [
        e.SagaStarted(context="{"),
        e.SagaStarted(graph="{}"),
        e.SagaStarted(graph='[{"name":"a","depends_on":["b"]}]'),
        e.SagaStarted(overrides="[]", replay_id="r"),
        e.SagaStarted(plan='{"a":1}', replay_id="r"),
        e.SagaStarted(standing='[{"step":"a"}]', replay_id="r"),
        e.SagaStarted(standing='[{"step":"a","owner":"x","keys_set":"]"}]', replay_id="r"),
    ],
)
def test_a_start_with_an_unreadable_text_begins_nothing(fact: e.SagaStarted) -> None:
    (event,) = stream(fact)
    state = SagaState()
    assert fold(state, event) is state
    assert judge(state, event) is Verdict.UNREADABLE
    assert fold_all([event, *stream(START, writer=B)]).writer == B


# --- forward --------------------------------------------------------------------------------------


def test_a_start_gives_name_definition_times_and_context() -> None:
    state = after(START)
    assert (state.saga_id, state.saga_name, state.status) == ("order-17", "order", "executing")
    assert (state.definition, state.graph) == (GRAPH.fingerprint, GRAPH.text)
    assert (state.started_at, state.updated_at, state.ended_at) == (1_000_000, 1_000_000, 0)
    assert state.start == state.context == {"sku": '"A1"'}


def test_a_step_sets_changes_and_deletes_keys_of_the_context() -> None:
    charged = e.StepCompleted(
        "charge", keys_set='{"r":8,"paid":{"eur":[1]}}', keys_deleted='["sku","no"]'
    )
    state = after(START, RESERVED, charged)
    assert state.context == {"r": "8", "paid": '{"eur":[1]}'}
    assert state.start == {"sku": '"A1"'}
    assert state.completed_steps == ["reserve", "charge"]
    assert state.step("reserve") == StepState(
        status="completed", attempt=1, done_at=2, result='{"r":7}', keys_set='{"r":7}'
    )


def test_the_current_step_is_the_one_that_runs() -> None:
    assert after(START).current == ""
    assert RUNNING.current == "reserve"
    assert after(START, e.StepStarted("reserve"), RESERVED).current == ""


def test_parallel_steps_complete_in_the_order_of_the_log() -> None:
    state = after(
        START,
        e.StepStarted("reserve"),
        e.StepStarted("charge"),
        e.StepCompleted("charge", keys_set='{"x":1}'),
        e.StepCompleted("reserve", keys_set='{"x":2}'),
    )
    assert state.completed_steps == ["charge", "reserve"]
    assert state.context["x"] == "2"


def test_a_failed_attempt_waits_for_the_next_and_the_last_one_fails_the_saga() -> None:
    retry = e.StepFailed("reserve", 1, "IOError", "busy", retry_at=5)
    state = after(START, e.StepStarted("reserve"), retry)
    assert state.step("reserve").status == "pending"
    assert (state.step("reserve").failures, state.failed_step) == (1, "")
    last = e.StepFailed("reserve", 2, "IOError", "gone")
    state = after(START, e.StepStarted("reserve"), retry, e.StepStarted("reserve", 2), last)
    assert (state.step("reserve").status, state.step("reserve").failures) == ("failed", 2)
    assert (state.failed_step, state.error_type, state.error_message) == (
        "reserve",
        "IOError",
        "gone",
    )
    assert state.failed_at == 5_000_000


def test_the_first_of_two_failures_is_the_sagas_error() -> None:
    state = after(START, e.StepFailed("reserve", 1, "A", "1"), e.StepFailed("charge", 1, "B", "2"))
    assert (state.failed_step, state.error_type) == ("reserve", "A")


@pytest.mark.parametrize(
    "goes_on", [e.StepStarted("reserve", 2), RESERVED, e.StepSkipped("reserve")]
)
def test_a_failed_step_that_goes_on_after_all_is_no_error_any_more(goes_on: e.Fact) -> None:
    failed = e.StepFailed("reserve", 1, "A", "1")
    state = after(START, failed, goes_on)
    assert (state.failed_step, state.error_type, state.error_message) == ("", "", "")
    other = e.StepFailed("charge", 1, "B", "2")
    state = after(START, failed, other, goes_on)
    assert (state.failed_step, state.error_type, state.error_message) == ("charge", "B", "2")
    assert after(START, failed, goes_on, other).error_type == "B"


def test_a_skipped_step_counts_as_done_but_not_as_completed() -> None:
    state = after(START, e.StepStarted("reserve"), e.StepSkipped("reserve", "by hand", "ann"))
    assert state.step("reserve").status == "skipped"
    assert (state.completed_steps, state.current) == ([], "")


def test_an_unknown_outcome_stays_so() -> None:
    state = after(START, e.StepStarted("charge"), e.StepOutcomeUnknown("charge", 1, "crash"))
    assert state.step("charge") == StepState(status="outcome_unknown", attempt=1, unknown=True)


def test_whether_its_resolve_could_not_say_is_remembered_until_another_owner_asks() -> None:
    unknown = e.StepOutcomeUnknown("charge", 1, "crash")
    begun = (START, e.StepStarted("charge"), unknown)
    assert [
        after(*begun, *more).step("charge").unresolved
        for more in [(), (unknown,), (unknown, unknown), (unknown, e.SagaClaimed())]
    ] == [False, True, True, False]


def test_an_interrupted_attempt_is_remembered_until_one_completes() -> None:
    def after_a_crash(*outcome: e.Fact) -> tuple[str, bool]:
        second = (e.SagaClaimed(), e.StepStarted("charge", 2), *outcome)
        state = fold_all(
            [*stream(START, e.StepStarted("charge")), *stream(*second, writer=B, epoch=1, first=3)]
        )
        return state.step("charge").status, state.step("charge").unknown

    assert after_a_crash() == ("executing", True)
    assert after_a_crash(e.StepFailed("charge", 2, "E")) == ("failed", True)
    assert after_a_crash(e.StepCompleted("charge", 2)) == ("completed", False)


def test_a_recovery_may_change_the_context() -> None:
    state = after(START, e.RecoveryDecided("ship", "retry_with_alternate", '{"carrier":"B"}'))
    assert state.context == {"sku": '"A1"', "carrier": '"B"'}


def test_time_never_falls_within_a_saga() -> None:
    events = stream(START, e.StepStarted("reserve"), RESERVED)
    back = e.Event("order-17", "order", A, 0, 2, 0, e.StepStarted("reserve"))
    assert fold_all([events[0], back]).updated_at == 1_000_000
    assert fold_all([events[0], back, events[2]]).updated_at == 3_000_000


def test_a_saga_may_have_begun_before_1970() -> None:
    early = [
        e.Event("order-17", "order", A, 0, sequence, at, fact)
        for sequence, at, fact in ((1, -9, START), (2, -12, RESERVED), (3, -5, e.SagaCompleted()))
    ]
    states = [fold_all(early[:end]) for end in (1, 2, 3)]
    assert [state.updated_at for state in states] == [-9, -9, -5]
    assert (states[2].started_at, states[2].ended_at) == (-9, -5)


# --- backward -------------------------------------------------------------------------------------

CHARGED = e.StepCompleted("charge")
FAILED = e.StepFailed("ship", 1, "NoTruck", "none left")
BACK = e.CompensationStarted('["charge","reserve"]', reason="none left")


def test_a_saga_goes_back_step_by_step_and_ends_rolled_back() -> None:
    undoing = after(START, RESERVED, CHARGED, FAILED, BACK, e.StepCompensationStarted("charge"))
    assert (undoing.status, undoing.undo) == ("compensating", ("charge", "reserve"))
    assert (undoing.step("charge").status, undoing.current) == ("compensating", "charge")
    half = after(START, RESERVED, CHARGED, FAILED, BACK, e.StepCompensated("charge", 1, "1"))
    assert half.completed_steps == ["reserve"]
    assert half.step("charge").undo_result == "1"
    end = e.SagaRolledBack("NoTruck", "none left", "ship")
    whole = after(
        START,
        RESERVED,
        CHARGED,
        FAILED,
        BACK,
        e.StepCompensated("charge"),
        e.StepCompensated("reserve"),
        end,
    )
    assert (whole.status, whole.completed_steps, whole.ended) == ("rolled_back", [], True)
    assert (whole.failed_step, whole.error_type) == ("ship", "NoTruck")
    assert whole.ended_at == whole.updated_at == 8_000_000


def test_a_compensation_that_failed_for_good_leaves_the_effect_and_can_be_tried_again() -> None:
    stuck = e.StepCompensationFailed("charge", 1, "IOError", "bank is down")
    ended = e.SagaFailed("IOError", "bank is down", "charge", '["charge"]')
    past = (START, RESERVED, CHARGED, FAILED, BACK, e.StepCompensationStarted("charge"), stuck)
    state = after(*past, ended)
    assert (state.status, state.step("charge").status) == ("failed", "compensation_failed")
    again = after(*past, ended, e.CompensationStarted('["charge"]', reason="bank is up"))
    assert (again.status, again.ended_at) == ("compensating", 0)
    assert (again.step("charge").status, again.step("charge").undo_failures) == ("completed", 0)
    skipped = after(*past, e.StepSkipped("charge", "refunded by hand"))
    assert skipped.step("charge").undo_skipped == "refunded by hand"


def test_a_compensation_that_will_be_tried_again_is_still_compensating() -> None:
    failed = e.StepCompensationFailed("charge", 1, "IOError", "busy", retry_at=9)
    state = after(START, CHARGED, BACK, e.StepCompensationStarted("charge"), failed)
    step = state.step("charge")
    assert (step.status, step.interrupted, step.retry_at) == ("compensating", True, 9)


@pytest.mark.parametrize(
    ("fact", "status"),
    [
        (e.SagaCompleted(), "completed"),
        (e.SagaRolledBack(), "rolled_back"),
        (e.SagaFailed(), "failed"),
        (e.SagaCancelled(), "cancelled"),
        (e.SagaPartiallyCommitted(), "partially_committed"),
        (e.ReplayUndone("r1"), "rolled_back"),
    ],
)
def test_every_ending_ends_the_saga(fact: e.Fact, status: str) -> None:
    state = after(START, fact)
    assert (state.status, state.ended, state.ended_at) == (status, True, 2_000_000)


# --- recorded sagas -------------------------------------------------------------------------------


def test_the_first_fact_of_an_unknown_saga_begins_it() -> None:
    assert (RECORDED.status, RECORDED.started_at) == ("executing", 1_000_000)
    assert (RECORDED.saga_name, RECORDED.completed_steps) == ("order", ["reserve"])
    assert RECORDED.recorded


def test_a_recorded_start_that_comes_late_takes_nothing_back() -> None:
    late = recorded(e.SagaStarted(context='{"r":0,"sku":"A1"}'), writer=B)
    state = fold_all(late, RECORDED)
    assert state.context == {"r": "7", "sku": '"A1"'}
    assert state.start == {"r": "0", "sku": '"A1"'}
    again = fold_all(recorded(e.SagaStarted(context='{"sku":"B2"}'), writer=b"C" * 16), state)
    assert again.context == state.context
    assert again.completed_steps == ["reserve"]


def test_a_recorded_step_may_be_done_again_and_keeps_its_place() -> None:
    state = fold_all(recorded(RESERVED, CHARGED, e.StepCompleted("reserve", keys_set='{"r":8}')))
    assert state.completed_steps == ["reserve", "charge"]
    assert state.context == {"r": "8"}


def test_a_recorded_compensation_shows_that_the_saga_goes_back() -> None:
    state = fold_all(recorded(RESERVED, CHARGED, e.StepCompensated("charge")))
    assert (state.status, state.goal) == ("compensating", "rolled_back")
    assert state.step("charge").status == "compensated"
    assert state.completed_steps == ["reserve"]
    late = fold_all(recorded(RESERVED, e.SagaRolledBack(), e.StepCompensated("reserve")))
    assert (late.status, late.step("reserve").status) == ("rolled_back", "compensated")


# --- branches -------------------------------------------------------------------------------------

BRANCH = e.SagaStarted(
    graph=GRAPH.text,
    context='{"sku":"A1"}',
    replay_id="r1",
    parent_saga_id="order-17",
    head_saga_id="order-17",
    root_saga_id="order-17",
    point="charge",
    plan='[["reserve","reuse",""],["charge","undo_first",""],["ship","redo",""]]',
    overrides='{"token":"new"}',
    standing=(
        '[{"step":"reserve","owner":"order-17","result":"7","keys_set":"{\\"r\\":7,\\"token\\":1}"},'
        '{"step":"charge","owner":"order-17","keys_set":"{\\"paid\\":true}"}]'
    ),
)


def test_a_branch_begins_with_what_it_inherits_and_overrides_come_last() -> None:
    state = after(BRANCH)
    assert state.context == {"sku": '"A1"', "r": "7", "token": '"new"'}
    assert state.step("reserve").status == "completed"
    assert state.step("reserve").owner == "order-17"
    assert state.step("charge").status == "stale"
    assert state.completed_steps == ["reserve"]
    assert (state.replay_id, state.parent_saga_id, state.point) == ("r1", "order-17", "charge")


def test_a_stale_step_that_is_undone_can_run_again() -> None:
    state = after(BRANCH, e.StepCompensationStarted("charge"), e.StepCompensated("charge"))
    assert (state.status, state.step("charge")) == ("executing", StepState())


def test_a_branch_may_be_the_head_and_may_be_undone() -> None:
    state = after(BRANCH, e.SagaCompleted(), e.ReplayUndone("r1"))
    assert (state.undone, state.status) == (True, "rolled_back")
    assert after(BRANCH, e.ReplayBranched("r2", "b2")).branch == "b2"


@pytest.mark.parametrize(
    "fact",
    [
        e.SagaReleased(),
        e.SagaCheckpointed("{}"),
        e.ChildEnded("ship", "c"),
        e.SubjectErased("ann"),
    ],
)
def test_some_facts_only_take_their_place(fact: e.Fact) -> None:
    state, plain = after(START, fact), after(START)
    plain.sequence, plain.updated_at, plain.released = 2, 2_000_000, state.released
    assert state == plain
    assert state.released == isinstance(fact, e.SagaReleased)


def test_signals_are_kept_in_order_until_a_waiting_step_takes_the_first() -> None:
    got = (e.SignalReceived("paid", "1"), e.SignalReceived("paid", "2"))
    state = after(START, e.StepWaiting("charge", "paid", 9), *got)
    assert state.signals == {"paid": ("1", "2")}
    assert state.step("charge") == StepState(status="waiting", waits_for="paid", wait_until=9)
    state = after(START, e.StepWaiting("charge", "paid", 9), *got, e.StepStarted("charge"))
    assert (state.signals, state.step("charge").signal) == ({"paid": ("2",)}, "1")


def test_a_retry_keeps_the_signal_that_the_first_attempt_took() -> None:
    failed = e.StepFailed("charge", 1, "E", "m", "", 5)
    begun = (
        e.StepWaiting("charge", "paid"),
        e.SignalReceived("paid", "1"),
        e.StepStarted("charge"),
    )
    state = after(START, *begun, failed, e.StepStarted("charge", 2))
    assert state.step("charge").signal == "1"


def test_a_pause_lasts_until_the_saga_is_resumed() -> None:
    assert after(START, e.SagaPaused()).paused
    assert not after(START, e.SagaPaused(), e.SagaResumed()).paused


# --- states ---------------------------------------------------------------------------------------


def test_a_state_survives_its_bytes() -> None:
    state = fold_all(recorded(START, RESERVED, FAILED))
    assert load_state(dump_state(state)) == state
    assert dump_state(load_state(dump_state(state))) == dump_state(state)


def test_a_copy_shares_nothing_that_changes() -> None:
    state = after(START)
    before = dump_state(state)
    copy = state.copy()
    copy.context["x"] = "1"
    copy.start["x"] = "1"
    copy.steps["x"] = StepState()
    copy.recorders["x"] = 1
    copy.overrides["x"] = "1"
    assert dump_state(state) == before


def test_a_step_waits_for_its_child_and_keeps_its_id_when_it_is_done() -> None:
    began = e.ChildStarted("ship", "s/ship", "parcel", 2, '{"to":"Oslo"}', '["to"]')
    waiting = after(START, e.StepStarted("ship", 2), began)
    assert waiting.step("ship") == StepState(
        status="waiting", attempt=2, reads='["to"]', child="s/ship", child_start='{"to":"Oslo"}'
    )
    ended = e.ChildEnded("ship", "s/ship", "completed")
    done = after(START, e.StepStarted("ship", 2), began, ended, e.StepCompleted("ship", 2))
    assert done.step("ship") == StepState(status="completed", attempt=2, done_at=5, child="s/ship")
    failed = e.StepFailed("ship", 2, "ChildSagaFailed")
    assert after(START, began, failed, e.StepStarted("ship", 3)).step("ship").child == "s/ship"


def test_a_child_knows_its_caller() -> None:
    state = after(e.SagaStarted(caller_saga_id="order-17", caller_step="pay"))
    assert (state.caller_saga_id, state.caller_step) == ("order-17", "pay")


def test_a_signal_that_is_told_twice_counts_once() -> None:
    told = e.SignalReceived("paid", '"7"', "request-1")
    assert after(START, told, told).signals == {"paid": ('"7"',)}
    another = e.SignalReceived("paid", '"8"', "request-2")
    assert after(START, told, told, another).signals == {"paid": ('"7"', '"8"')}
