"""given / when / then: what it runs, what it compares, and what it says when that differs."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from sagaz_es import Saga, SagaStatus, action, child, compensate, forward_recovery
from sagaz_es.errors import ConfigurationError, PivotPassed, PlanBlocked, SagaEnded
from sagaz_es.testing import (
    InjectedFailure,
    WaitsForReality,
    cancel,
    crash,
    given,
    pause,
    processes,
    recover,
    replay,
    resolve,
    resume,
    signal,
    wait,
)
from tests.helpers import Ledger, OrderSaga


class Trip(Saga):
    """book → approve (waits for a signal, a day at most) → pay (a plain function) → mail."""

    saga_name = "trip"

    @action("book")
    async def book(self, ctx: Any) -> dict[str, str]:
        return {"seat": "12A"}

    @compensate("book")
    async def give_back(self, result: Any, ctx: Any) -> None:
        assert result == {"seat": "12A"}

    @action("approve", wait_for="approved", wait_seconds=86_400)
    async def approve(self, ctx: Any) -> dict[str, str]:
        return {"by": ctx.signal["by"]}

    @action("pay", max_retries=2, timeout_seconds=10)
    def pay(self, ctx: Any) -> dict[str, int]:
        return {"paid": ctx["price"], "attempts": ctx.attempt}

    @compensate("pay", on_unknown=True)
    async def refund(self, ctx: Any) -> None:
        await asyncio.sleep(20)

    @action("mail", pivot=True)
    async def mail(self, ctx: Any) -> None: ...


APPROVED = signal("approved", {"by": "Ann"})
PRICE = {"price": 9}


def trip() -> given:
    return given(Trip, PRICE)


def test_a_saga_is_run_to_its_end() -> None:
    trip().when(APPROVED).then(
        status=SagaStatus.COMPLETED,
        context={"seat": "12A", "by": "Ann", "paid": 9},
        calls=["book", "approve", "pay", "mail"],
        completed=["book", "approve", "pay", "mail"],
        compensated=[],
        failed="",
        stuck=[],
        unknown=[],
        refused=None,
    )


async def test_it_is_run_in_a_test_that_is_a_coroutine_too() -> None:
    trip().when(APPROVED).then(status="completed")


def test_steps_find_their_resources() -> None:
    ledger = Ledger()
    given(OrderSaga, resources={"ledger": ledger}).then(status="completed")
    assert ledger.standing == ["reserve", "charge", "ship"]


def test_a_saga_built_by_hand_is_run() -> None:
    saga = Saga("by hand").add_step("one", lambda ctx: {"a": 1}).add_step("two", lambda ctx: None)
    given(saga).fails("two", attempts=1).then(context={"a": 1}, calls=["one", "two", "two"])


# --- failures by step and attempt ---


def test_named_attempts_of_a_step_fail() -> None:
    trip().fails("pay", attempts=[1, 2]).when(APPROVED).then(
        status="completed",
        calls=["book", "approve", "pay", "pay", "pay", "mail"],
        context={"attempts": 3},
    )


def test_without_attempts_a_step_fails_for_good_and_what_was_done_is_undone() -> None:
    trip().fails("pay", error=OSError("no line")).when(APPROVED).then(
        status="rolled_back",
        failed="pay",
        error=OSError,
        calls=["book", "approve", "pay", "pay", "pay", "undo book"],
        compensated=["book"],
    )


def test_an_error_can_be_made_anew_for_each_attempt() -> None:
    made = []

    def refusal() -> OSError:
        made.append(1)
        return OSError(f"refusal {len(made)}")

    outcome = trip().fails("pay", error=refusal).when(APPROVED).then(error=OSError)
    assert str(outcome.result.error) == "refusal 3"


def test_a_step_can_fail_after_its_effect() -> None:
    ledger = Ledger()
    given(OrderSaga, resources={"ledger": ledger}).fails("charge", after=True).then(
        status="rolled_back", compensated=["reserve"], error=InjectedFailure
    )
    assert ledger.standing == ["charge"]


def test_a_compensation_that_fails_for_good_is_stuck() -> None:
    trip().fails("pay").fails("book", compensation=True).when(APPROVED).then(
        status="failed", stuck=["book"], calls=["book", "approve", *["pay"] * 3, *["undo book"] * 3]
    )


def test_a_step_that_times_out_is_undone_if_its_compensation_says_so() -> None:
    outcome = trip().times_out("pay", after=True).when(APPROVED)
    outcome.then(status="rolled_back", failed="pay", compensated=["pay", "book"])


def test_a_step_whose_process_dies_runs_again_with_the_same_key() -> None:
    ledger = Ledger()
    outcome = (
        given(OrderSaga, resources={"ledger": ledger})
        .dies("charge")
        .then(status="completed", calls=["reserve", "charge", "charge", "ship"])
    )
    first, second = outcome.calls[1:3]
    assert (first.key, first.attempt, second.key, second.attempt) == (
        "saga-1/charge",
        1,
        "saga-1/charge",
        2,
    )
    assert ledger.standing == ["reserve", "charge", "charge", "ship"]


def test_a_process_can_die_before_the_effect_and_in_a_compensation() -> None:
    ledger = Ledger()
    (
        given(OrderSaga, resources={"ledger": ledger})
        .dies("charge", after=False)
        .fails("ship")
        .dies("charge", after=False, compensation=True)
        .then(status="rolled_back", compensated=["charge", "reserve"])
    )
    assert ledger.order == ["reserve", "charge", "undo charge", "undo reserve"]


# --- what is done to it ---


def test_time_passes_only_where_it_is_waited_for() -> None:
    began = time.monotonic()
    outcome = trip().when(wait(hours=23), APPROVED).then(status="completed")
    assert time.monotonic() - began < 3600
    assert " 23 h  SignalReceived approved" in outcome.history


def test_a_step_that_is_not_told_in_time_fails() -> None:
    trip().when(wait(days=1)).then(status="rolled_back", failed="approve", compensated=["book"])


def test_a_cancelled_saga_is_undone() -> None:
    trip().when(cancel("changed my mind")).then(status="cancelled", compensated=["book"])


def test_a_refused_action_is_expected_by_name() -> None:
    trip().when(APPROVED, cancel()).then(status="completed", refused=SagaEnded)
    with pytest.raises(AssertionError, match="refused: expected 'PivotPassed', found 'SagaEnded'"):
        trip().when(APPROVED, cancel()).then(status="completed", refused=PivotPassed)
    with pytest.raises(AssertionError, match="refused: expected 'SagaEnded', found None"):
        trip().when(APPROVED).then(status="completed", refused=SagaEnded)


def test_a_refused_action_that_nobody_expects_is_a_difference() -> None:
    with pytest.raises(AssertionError, match="refused: cancel: saga 'saga-1' is completed"):
        trip().when(APPROVED, cancel()).then(status="completed")


def test_a_saga_is_paused_and_goes_on() -> None:
    trip().when(pause(), APPROVED).then(waits_for="paused", calls=["book"])
    trip().when(pause(), APPROVED, resume()).then(status="completed")


def test_between_two_actions_its_process_can_die() -> None:
    trip().when(crash(), APPROVED, crash()).then(
        status="completed", calls=["book", "approve", "pay", "mail"]
    )


def test_a_saga_that_has_failed_is_replayed() -> None:
    outcome = (
        given(OrderSaga, {"card": "old"}, resources={"ledger": (ledger := Ledger())})
        .fails("charge", attempts=1)
        .when(replay("charge", {"card": "new"}))
        .run()
    )
    # The first attempt of the branch fails as well: it is told of steps, not of sagas.
    assert (outcome.status, ledger.standing) == ("rolled_back", [])

    ledger.fails("charge", OSError())
    given(OrderSaga, {"card": "old"}, resources={"ledger": ledger}).when(
        replay("charge", {"card": "new"})
    ).then(status="completed", context={"card": "new"})
    assert ledger.standing == ["reserve", "charge", "ship"]


def test_a_branch_is_crashed_and_signalled_like_its_original() -> None:
    trip().when(APPROVED, replay("approve", allow=["mail", "approve"]), crash(), APPROVED).then(
        status="completed", completed=["approve", "pay", "mail"]
    )


def test_a_replay_can_be_refused() -> None:
    trip().when(APPROVED, replay("pay")).then(status="completed", refused=PlanBlocked)


class Shipment(Saga):
    """pack → leave (a pivot) → deliver, which asks a person when it fails; at most once."""

    @action("pack")
    async def pack(self, ctx: Any) -> None: ...

    @action("leave", pivot=True)
    async def leave(self, ctx: Any) -> None: ...

    @action("deliver", max_retries=0)
    async def deliver(self, ctx: Any) -> dict[str, str]:
        return {"to": ctx["address"]}

    @forward_recovery("deliver")
    async def ask(self, ctx: Any, error: BaseException) -> str:
        return "manual_intervention"


def test_a_person_decides_how_it_goes_on() -> None:
    failing = given(Shipment, {"address": "old"}).fails("deliver", attempts=1)
    failing.then(status="forward_recovery", waits_for="a person has to decide")
    failing.when(recover("deliver", "retry_with_alternate", {"address": "new"})).then(
        status="completed", context={"to": "new"}
    )


class Payment(Saga):
    @action("pay", at_most_once=True)
    async def pay(self, ctx: Any) -> None: ...


def test_a_person_says_what_became_of_a_step() -> None:
    given(Payment).dies("pay").then(
        status="executing", unknown=["pay"], waits_for="whether step 'pay' happened"
    )
    told = resolve("pay", happened=True, result={"receipt": 7})
    given(Payment).dies("pay").when(told).then(status="completed", context={"receipt": 7})
    told = resolve("pay", happened=False)
    given(Payment).dies("pay").when(told).then(status="rolled_back")


# --- what it says ---


def test_a_difference_is_told_with_the_whole_story() -> None:
    with pytest.raises(AssertionError) as raised:
        trip().fails("pay", attempts=1).times_out("book", compensation=True).when(
            wait(minutes=90), APPROVED
        ).then(
            status="rolled_back",
            calls=["book", "pay", "mail"],
            context={"paid": 8, "seat": "12A", "gift": True},
        )
    assert str(raised.value) == (
        "Trip did not end as it should:\n"
        "  status: expected 'rolled_back', found 'completed'\n"
        "  calls: (- expected, + found)\n"
        "      book\n"
        "    + approve\n"
        "    + pay\n"
        "      pay\n"
        "      mail\n"
        "  context['paid']: expected 8, found 9\n"
        "  context['gift']: expected True, found '(missing)'\n"
        "  this never happened: undo book times out\n"
        "given:\n"
        "  pay fails in attempt 1\n"
        "  undo book times out\n"
        "when:\n"
        "  90 min pass\n"
        "  signal approved\n"
        "its history:\n"
        "  1        0 s  SagaStarted\n"
        "  2        0 s  StepStarted book\n"
        '  3        0 s  StepCompleted book {"seat":"12A"}\n'
        "  4        0 s  StepWaiting approve\n"
        "  5     90 min  SignalReceived approved\n"
        "  6     90 min  StepStarted approve\n"
        '  7     90 min  StepCompleted approve {"by":"Ann"}\n'
        "  8     90 min  StepStarted pay\n"
        "  9     90 min  StepFailed pay: InjectedFailure: pay fails in this test (tried again)\n"
        " 10  5400.11 s  StepStarted pay\n"
        ' 11  5400.11 s  StepCompleted pay {"paid":9,"attempts":2}\n'
        " 12  5400.11 s  StepStarted mail\n"
        " 13  5400.11 s  StepCompleted mail\n"
        " 14  5400.11 s  SagaCompleted"
    )


class Waits(Saga):
    @action("approve", wait_for="approved")
    async def approve(self, ctx: Any) -> None: ...


def test_a_saga_that_waits_for_ever_is_a_difference_unless_the_test_says_so() -> None:
    wrong = "it has not ended: step 'approve' waits for the signal 'approved'"
    expected: list[dict[str, Any]] = [{}, {"status": "completed"}, {"calls": []}]
    for then in expected:
        with pytest.raises(AssertionError, match=wrong):
            given(Waits).then(**then)
    given(Waits).then(status="executing")
    given(Waits).then(waits_for="'approved'")
    with pytest.raises(AssertionError, match="waits_for: expected 'Godot'"):
        given(Waits).then(waits_for="Godot")


def test_an_action_that_it_never_comes_to_is_a_difference() -> None:
    with pytest.raises(AssertionError, match="it never came to this: signal late"):
        # The replay waits for the end of a saga that waits for ever.
        given(Waits).when(replay("approve"), signal("late")).then(status="executing")


def test_a_fault_that_never_happened_is_a_difference() -> None:
    late = trip().fails("pay", attempts=1).fails("pay", attempts=[9]).when(APPROVED)
    with pytest.raises(AssertionError, match="this never happened: pay fails in attempt 9"):
        late.then(status="completed")
    assert late.run().status == "completed"


def test_a_step_that_nobody_knows_is_refused_with_those_there_are() -> None:
    for wrong in (given(Payment).fails, given(Payment).times_out, given(Payment).dies):
        with pytest.raises(ConfigurationError, match="no step 'charge'; there are 'pay'"):
            wrong("charge")


def test_the_same_test_twice_has_the_same_history() -> None:
    def history() -> str:
        return trip().fails("pay", attempts=[1, 2]).when(APPROVED).run().history

    assert history() == history()


# --- misuse ---


async def test_a_step_that_blocks_its_thread_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "DEADLINE_SECONDS", 0.2)
    go_on = threading.Event()

    def plain(ctx: Any) -> None:
        go_on.wait()

    async def coroutine(ctx: Any) -> None:
        go_on.wait()

    functions: list[Callable[..., Any]] = [plain, coroutine]
    try:
        for function in functions:
            saga = Saga("blocks").add_step("block", function)
            with pytest.raises(
                TimeoutError, match=rf"blocked its thread for 0.2 s \(.*, in {function.__name__}\)"
            ):
                given(saga).then(status="completed")
    finally:
        go_on.set()


def test_a_saga_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "DEADLINE_SECONDS", 0.2)

    async def poll(ctx: Any) -> None:
        while True:  # noqa: ASYNC110 - that is the mistake
            await asyncio.sleep(0.001)

    saga = Saga("polls").add_step("poll", poll, timeout_seconds=1e9)
    with pytest.raises(TimeoutError, match=r"not ended within 0\.2 s: does a step wait"):
        given(saga).then(status="completed")
    for thread in threading.enumerate():
        if thread.name == "sagaz-es life":
            thread.join(60)
            assert not thread.is_alive()


def test_a_step_that_waits_for_a_socket_is_an_error_not_a_time_out() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        async def ask(ctx: Any) -> None:
            reader, writer = await asyncio.open_connection(*server.getsockname())
            try:
                await reader.read()
            finally:
                writer.close()

        with pytest.raises(WaitsForReality, match="time is virtual"):
            given(Saga("asks").add_step("ask", ask)).then(status="completed")


def test_a_step_that_always_kills_its_process_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="100 processes have died over one saga"):
        given(OrderSaga, resources={"ledger": Ledger()}).dies(
            "charge", attempts=range(1, 200)
        ).run()


# --- children -------------------------------------------------------------------------------------


class Payment3(Saga):
    """authorise → capture; a child."""

    saga_name = "payment-3"

    @action("authorise")
    async def authorise(self, ctx: Any) -> dict[str, int]:
        return {"authorised": ctx["cents"]}

    @compensate("authorise")
    async def void(self, ctx: Any) -> None: ...

    @action("capture", max_retries=0)
    async def capture(self, ctx: Any) -> dict[str, int]:
        return {"captured": ctx["cents"]}


class Order3(Saga):
    """hold → pay (a child saga) → send."""

    saga_name = "order-3"

    @action("hold")
    async def hold(self, ctx: Any) -> None: ...

    @compensate("hold")
    async def give_back(self, ctx: Any) -> None: ...

    @child("pay", Payment3)
    async def pay(self, ctx: Any) -> dict[str, int]:
        return {"cents": 9}

    @action("send", max_retries=0)
    async def send(self, ctx: Any) -> None: ...


def test_children_run_with_their_parents() -> None:
    outcome = given(Order3).then(
        status="completed",
        calls=["hold", "pay", "authorise", "capture", "send"],
        completed=["hold", "pay", "send"],
    )
    assert "saga-1/pay   1        0 s  SagaStarted" in outcome.history


def test_steps_of_children_fail_and_their_processes_die() -> None:
    given(Order3).fails("capture").then(
        status="rolled_back",
        failed="pay",
        calls=["hold", "pay", "authorise", "capture", "undo authorise", "undo hold"],
    )
    given(Order3).dies("capture").fails("send").then(
        status="rolled_back",
        compensated=["pay", "hold"],
        calls=[
            *("hold", "pay", "authorise", "capture", "capture", "send"),
            *("undo authorise", "undo hold"),
        ],
    )


def test_a_child_that_is_only_named_is_given_beside_its_parent() -> None:
    saga = Saga("by hand").add_step("pay", lambda ctx: {"cents": 1}, child="payment-3")
    given(saga, sagas=[Payment3]).then(status="completed", calls=["pay", "authorise", "capture"])


SAID: list[Any] = ["approved"]


class _Any:
    """ANY[x] is x, of no type that is checked."""

    def __getitem__(self, value: Any) -> Any:
        return value


ANY = _Any()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (r"^wait: time passes forward", lambda: wait(days=-1)),
        (r"^when: actions such as signal", lambda: given(OrderSaga).when(*SAID)),
        (r"^wait: hours is a number", lambda: wait(hours=ANY["1"])),
        (r"^wait: days is a number", lambda: wait(days=float("nan"))),
        (r"^attempts: numbers from 1", lambda: given(OrderSaga).dies("charge", attempts=[-1])),
        (r"^attempts: numbers from 1", lambda: given(OrderSaga).fails("charge", attempts=0)),
        (r"^attempts: numbers from 1", lambda: given(OrderSaga).fails("charge", attempts=[])),
        (r"^attempts: numbers from 1", lambda: given(OrderSaga).fails("charge", attempts=ANY[1.5])),
        (
            r"^step 'pay' has no compensation",
            lambda: given(Payment).fails("pay", compensation=True),
        ),
        (r"^error: an exception, its class", lambda: given(Payment).fails("pay", error=ANY["no"])),
    ],
)
def test_what_cannot_be_said_of_a_saga_is_refused_at_once(told: str, said: Any) -> None:
    with pytest.raises(ConfigurationError, match=told):
        said()
