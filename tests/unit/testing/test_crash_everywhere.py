"""A user's saga with a crash at every point: what is found, what is not, and how it is told."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sagaz_es import Saga, action, child, compensate
from sagaz_es.errors import ConfigurationError, UnstorableValue
from sagaz_es.exactly_once import create_once_table, once
from sagaz_es.testing import (
    CrashReport,
    SagaNotCrashProof,
    Violation,
    cancel,
    crash_everywhere,
    replay,
    signal,
    wait,
)


@dataclass
class Shop:
    """A stand-in for the world, with calls that know a key and calls that know none."""

    stock: int = 3
    held: set[str] = field(default_factory=set)
    paid: dict[str, int] = field(default_factory=dict)
    cash: list[int] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)

    def hold(self, key: str) -> None:
        if key not in self.held:
            self.held.add(key)
            self.stock -= 1

    def give_back(self, key: str) -> None:
        if key in self.held:
            self.held.discard(key)
            self.stock += 1


class Order(Saga):
    """hold → pay → send; each step and compensation may be called again."""

    @action("hold")
    async def hold(self, ctx: Any) -> dict[str, str]:
        ctx.resources["shop"].hold(ctx.idempotency_key)
        return {"held": ctx.idempotency_key}

    @compensate("hold", on_unknown=True)
    async def give_back(self, ctx: Any) -> None:
        ctx.resources["shop"].give_back(ctx.idempotency_key.removesuffix("/compensation"))

    @action("pay")
    async def pay(self, ctx: Any) -> None:
        ctx.resources["shop"].paid[ctx.idempotency_key] = 9

    @compensate("pay", on_unknown=True)
    async def refund(self, ctx: Any) -> None:
        ctx.resources["shop"].paid.pop(ctx.idempotency_key.removesuffix("/compensation"), None)

    @action("send")
    def send(self, ctx: Any) -> None:
        ctx.resources["shop"].sent.add(ctx["held"])

    @compensate("send", on_unknown=True)
    def call_back(self, ctx: Any) -> None:
        ctx.resources["shop"].sent.discard(ctx["held"])


def paid_for_what_is_sent(shop: Shop) -> bool:
    return sum(shop.paid.values()) + sum(shop.cash) == 9 * len(shop.sent)


def crashed(saga: type[Saga] | Saga, **options: Any) -> CrashReport:
    """Without raising; the world is a Shop."""
    options = {"world": Shop, "resources": lambda shop: {"shop": shop}, "check": False, **options}
    return crash_everywhere(saga, **options)


def only(report: CrashReport) -> Violation:
    assert len(report.violations) == 1, str(report)
    return report.violations[0]


def saga_of(**steps: Callable[..., Any]) -> Saga:
    """Steps by name, each a function of (shop, ctx); `undo_…` is the compensation of another."""

    def on_shop(function: Callable[..., Any]) -> Callable[..., Any]:
        async def step(ctx: Any) -> Any:
            return function(ctx.resources["shop"], ctx)

        return step

    saga = Saga("by hand")
    for name, function in steps.items():
        undo = steps.get(f"undo_{name}")
        if not name.startswith("undo_"):
            saga.add_step(name, on_shop(function), on_shop(undo) if undo else None)
    return saga


# --- what stands crashes ---


def test_a_saga_whose_steps_heed_their_keys_stands_every_crash() -> None:
    report = crash_everywhere(
        Order, world=Shop, resources=lambda shop: {"shop": shop}, invariant=paid_for_what_is_sent
    )
    assert report.ok
    assert (report.saga, report.paths, report.violations) == ("Order", 4, ())
    assert report.points > 30
    assert report.crashes > report.runs > 2 * report.points
    assert (report.left_out, report.waiting) == (0, 0)
    assert str(report).startswith("Order: no violation (")


def test_the_same_call_makes_the_same_runs() -> None:
    bad = saga_of(pay=lambda shop, ctx: shop.cash.append(9), send=lambda shop, ctx: None)
    assert str(crashed(bad)) == str(crashed(bad))


def test_a_crash_comes_before_and_after_each_fact_and_behind_each_effect() -> None:
    saga = saga_of(pay=lambda shop, ctx: shop.cash.append(9))
    report = crashed(saga, pairs=False, failures=False)
    # Around SagaStarted and StepStarted, behind the effect, around StepCompleted, SagaCompleted.
    assert (report.points, report.runs, report.crashes) == (5, 7, 5)
    violation = only(report)
    assert (
        violation.schedule[0]
        == "process 1: pay; it dies in pay, after its effect, before that is recorded"
    )
    assert violation.others == 1  # before StepCompleted is in the log


def test_the_process_that_takes_over_dies_as_well() -> None:
    def once_more(shop: Shop, ctx: Any) -> None:
        """Two crashes are one too many for it."""
        if len(shop.cash) < 2:
            shop.cash[:] = [9] if not shop.cash else [9, 0]
        else:
            shop.cash.append(9)

    saga = saga_of(pay=once_more)
    view = {"view": lambda shop: sum(shop.cash)}
    assert crashed(saga, pairs=False, **view).ok
    violation = only(crashed(saga, **view))
    assert [line.partition(";")[0] for line in violation.schedule] == [
        "process 1: pay",
        "process 2: pay",
        "process 3: pay",
    ]
    assert violation.problems == ("view is 18; without the crash 9",)


# --- what does not ---


def test_a_step_without_a_key_is_found() -> None:
    class Careless(Order):
        @action("pay")
        async def pay(self, ctx: Any) -> None:
            ctx.resources["shop"].cash.append(9)

        @compensate("pay", on_unknown=True)
        async def refund(self, ctx: Any) -> None:
            ctx.resources["shop"].cash.clear()

    violation = only(crashed(Careless, invariant=paid_for_what_is_sent, pairs=False))
    assert (violation.kind, violation.step, violation.undo) == ("done again", "pay", False)
    assert violation.schedule == (
        "process 1: hold, pay; it dies in pay, after its effect, before that is recorded",
        "process 2: pay, send; the saga ends completed",
    )
    assert violation.problems == (
        "world.cash is [9, 9]; without the crash [9]",
        "the invariant does not hold",
    )
    assert "'saga-1/pay': hand ctx.idempotency_key" in violation.hint


def test_what_an_assertion_says_is_told_without_what_pytest_adds() -> None:
    class Careless(Order):
        @action("pay")
        async def pay(self, ctx: Any) -> None:
            ctx.resources["shop"].cash.append(9)

    def paid_once(shop: Shop) -> None:
        assert len(shop.cash) < 2, f"paid {len(shop.cash)} times:\n{shop.cash}"

    violation = crashed(Careless, failures=False, invariant=paid_once, pairs=False).violations[0]
    said = [line.strip() for line in violation.problems[-1].splitlines()]
    assert said == ["the invariant does not hold: paid 2 times:", "[9, 9]"]


def test_a_compensation_that_undoes_twice_is_found() -> None:
    class Careless(Order):
        @compensate("hold", on_unknown=True)
        async def give_back(self, ctx: Any) -> None:
            ctx.resources["shop"].stock += 1
            ctx.resources["shop"].held.clear()

    violation = only(crashed(Careless, failures=["pay"]))
    assert (violation.kind, violation.step, violation.undo) == ("done again", "hold", True)
    assert violation.title == "the compensation of 'hold' does its work again when it is run again"
    assert violation.schedule == (
        "pay fails",
        "process 1: hold, pay, undo hold; it dies in undo hold, after its effect, before that is "
        "recorded",
        "process 2: undo hold; the saga ends rolled_back",
    )
    assert violation.problems == ("world.stock is 4; without the crash 3",)


def test_a_step_that_refuses_its_own_work_is_found() -> None:
    def hold(shop: Shop, ctx: Any) -> None:
        if ctx.idempotency_key in shop.held:
            raise ValueError("held already")
        shop.hold(ctx.idempotency_key)

    violation = only(crashed(saga_of(hold=hold)))
    assert (violation.kind, violation.step) == ("raised", "hold")
    assert violation.problems[:2] == (
        "the saga ends rolled_back; without the crash it ends completed",
        "hold: ValueError: held already",
    )


def test_a_compensation_that_is_stuck_after_a_crash_is_found() -> None:
    violation = only(
        crashed(
            saga_of(
                hold=lambda shop, ctx: shop.hold("a"),
                undo_hold=lambda shop, ctx: shop.held.remove("a"),
                pay=lambda shop, ctx: None,
            ),
            failures=["pay"],
        )
    )
    assert (violation.kind, violation.step, violation.undo) == ("raised", "hold", True)
    assert violation.problems == (
        "the saga ends failed; without the crash it ends rolled_back",
        "pay: InjectedFailure: pay fails in this test",
        "the compensation of 'hold': hold: KeyError: 'a'",
    )


def test_what_a_step_keeps_in_its_object_is_found() -> None:
    class Forgetful(Saga):
        @action("hold")
        async def hold(self, ctx: Any) -> None:
            self.key = "a"

        @action("send")
        async def send(self, ctx: Any) -> None:
            ctx.resources["shop"].sent.add(self.key)

    first = crashed(Forgetful, pairs=False).violations[0]
    assert (first.kind, first.step) == ("lost", "send")
    assert first.title == "step 'send' misses what was lost in a crash"
    assert "set it in ctx" in first.hint


def test_what_is_lost_without_an_error_is_found() -> None:
    class Forgetful(Saga):
        key = ""

        @action("hold")
        async def hold(self, ctx: Any) -> None:
            self.key = "a"

        @action("send")
        async def send(self, ctx: Any) -> None:
            ctx.resources["shop"].sent = {self.key}

    violation = crashed(Forgetful).violations[0]
    assert (violation.kind, violation.step) == ("lost", "")
    assert violation.problems == ("world.sent is {''}; without the crash {'a'}",)


def test_a_crash_in_the_middle_of_a_step_is_found_between_its_lines() -> None:
    class Halves(Saga):
        @action("hold")
        async def hold(self, ctx: Any) -> None:
            shop = ctx.resources["shop"]
            if "a" not in shop.held:
                shop.held.add("a")
                shop.stock -= 1

    assert crashed(Halves).ok
    violation = only(crashed(Halves, lines=True))
    assert (violation.kind, violation.step) == ("half done", "hold")
    (died, went_on) = violation.schedule
    assert died.endswith(": shop.stock -= 1")
    assert died.startswith("process 1: hold; it dies in hold, before line ")
    assert went_on == "process 2: hold; the saga ends completed"
    assert violation.problems == ("world.stock is 3; without the crash 2",)


def test_lines_of_plain_functions_and_helpers_are_followed_too() -> None:
    class Halves(Saga):
        @action("hold")
        def hold(self, ctx: Any) -> None:
            self._hold(ctx.resources["shop"])

        def _hold(self, shop: Shop) -> None:
            if "a" not in shop.held:
                shop.held.add("a")
                shop.stock -= 1

    violation = only(crashed(Halves, lines=True))
    assert "it dies in _hold, before line " in violation.schedule[0]


def test_an_effect_that_nobody_knows_of_and_nothing_undoes_is_found() -> None:
    class Unsure(Order):
        @compensate("pay")
        async def refund(self, ctx: Any) -> None:
            ctx.resources["shop"].paid.clear()

    violation = only(crashed(Unsure, invariant=paid_for_what_is_sent, pairs=False))
    assert (violation.kind, violation.step) == ("unknown", "pay")
    assert violation.schedule == (
        "pay fails in every attempt but the first",
        "process 1: hold, pay; it dies in pay, after its effect, before that is recorded",
        "process 2: pay, undo hold; the saga ends rolled_back",
    )
    assert "on_unknown=True" in violation.hint


def test_a_saga_that_hangs_after_a_crash_is_found() -> None:
    class Locks(Saga):
        @action("lock", timeout_seconds=1e8)
        async def lock(self, ctx: Any) -> None:
            held = ctx.resources["shop"].held
            if held:
                await asyncio.Event().wait()
            held.add("lock")

        @action("send")
        async def send(self, ctx: Any) -> None:
            ctx.resources["shop"].held.discard("lock")

    violation = only(crashed(Locks, failures=False, pairs=False, invariant=lambda shop: True))
    assert (violation.kind, violation.step) == ("raised", "lock")

    class LocksForEver(Locks):
        @action("lock", timeout_seconds=3.1e9)
        async def lock(self, ctx: Any) -> None:
            await super().lock(ctx)

    violation = only(crashed(LocksForEver, failures=False, pairs=False))
    assert (violation.kind, violation.step) == ("stuck", "lock")
    assert "come free" in violation.hint


def test_an_invariant_that_fails_without_any_crash_is_told_once() -> None:
    saga = saga_of(
        pay=lambda shop, ctx: shop.paid.update(a=9), send=lambda shop, ctx: shop.sent.add("a")
    )
    violation = crashed(saga, invariant=paid_for_what_is_sent).violations[0]
    assert (violation.kind, violation.step, violation.others) == ("invariant", "send", 0)
    assert violation.schedule == ("send fails", "no crash: pay, send; the saga ends rolled_back")
    assert violation.hint.endswith("steps whose effect stands in the end: 'pay'")


# --- what is not judged ---


def test_steps_beside_each_other_may_end_in_any_order() -> None:
    class Beside(Saga):
        @action("one", depends_on=[])
        async def one(self, ctx: Any) -> None:
            self.add(ctx.resources["shop"].cash, 1)

        @action("two", depends_on=[])
        async def two(self, ctx: Any) -> None:
            await asyncio.sleep(1)
            self.add(ctx.resources["shop"].cash, 2)

        @action("end", depends_on=["one", "two"])
        async def end(self, ctx: Any) -> None: ...

        @staticmethod
        def add(cash: list[int], number: int) -> None:
            if number not in cash:
                cash.append(number)

    assert crashed(Beside, pairs=False).ok


def test_a_question_to_a_person_is_counted_not_judged() -> None:
    class Careful(Saga):
        @action("pay", at_most_once=True)
        async def pay(self, ctx: Any) -> None:
            ctx.resources["shop"].cash.append(9)

    report = crashed(Careful, invariant=lambda shop: len(shop.cash) <= 1)
    assert report.ok
    assert 0 < report.waiting < report.runs
    assert f"{report.waiting} runs waiting for a person" in str(report)


def test_a_step_that_finds_out_for_itself_may_end_otherwise() -> None:
    class Careful(Saga):
        @action("pay", at_most_once=True, resolve=lambda ctx: bool(ctx.resources["shop"].cash))
        async def pay(self, ctx: Any) -> None:
            ctx.resources["shop"].cash.append(9)

    report = crashed(Careful, invariant=lambda shop: len(shop.cash) <= 1)
    assert (report.ok, report.waiting) == (True, 0)


def test_steps_may_wait_in_every_way_that_asyncio_has() -> None:
    async def late(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    class Waits(Saga):
        @action("wait", timeout_seconds=100)
        async def wait(self, ctx: Any) -> dict[str, Any]:
            try:
                async with asyncio.timeout(5):
                    await asyncio.Event().wait()
            except TimeoutError:
                pass
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(late(9), 1)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(late(seconds)) for seconds in (2, 1)]
            told = await asyncio.gather(late(3), asyncio.to_thread(sum, [1, 2]))
            ctx.resources["shop"].sent.add("waited")
            return {"told": [*told, *(task.result() for task in tasks)]}

        @action("hang", timeout_seconds=1, max_retries=1)
        async def hang(self, ctx: Any) -> None:
            if ctx.attempt == 1:
                await asyncio.Event().wait()
            assert ctx["told"] == [3, 3, 2, 1]

    assert crashed(Waits, pairs=False).ok


# --- from outside ---


class Approved(Saga):
    """hold → send, when somebody says so."""

    @action("hold")
    async def hold(self, ctx: Any) -> None:
        ctx.resources["shop"].hold("a")

    @compensate("hold")
    async def give_back(self, ctx: Any) -> None:
        ctx.resources["shop"].give_back("a")

    @action("send", wait_for="approved")
    async def send(self, ctx: Any) -> None:
        ctx.resources["shop"].sent.add(ctx.signal["to"])

    @compensate("send")
    async def call_back(self, ctx: Any) -> None:
        ctx.resources["shop"].sent.clear()


def test_what_is_done_to_a_saga_is_done_once_in_spite_of_crashes() -> None:
    told = [wait(days=2), signal("approved", {"to": "Ann"})]
    assert crashed(Approved, when=told, pairs=False).ok
    assert crashed(Approved, when=[cancel()], status="cancelled", pairs=False).ok
    again = [*told, replay("hold"), signal("approved", {"to": "Ann"})]
    assert crashed(Approved, when=again, pairs=False).ok


def test_the_world_can_be_the_resources_and_the_context_is_given() -> None:
    async def pay(ctx: Any) -> None:
        ctx.resources["bank"][ctx.idempotency_key] = ctx["cents"]

    saga = Saga("pays").add_step("pay", pay)
    report = crash_everywhere(
        saga,
        {"cents": 9},
        world=lambda: {"bank": {}},
        invariant=lambda world: sum(world["bank"].values()) in (0, 9),
    )
    assert report.ok


class Paid(Saga):
    """pay; a child."""

    @action("pay")
    async def pay(self, ctx: Any) -> None:
        ctx.resources["shop"].paid[ctx.idempotency_key] = ctx["cents"]

    @compensate("pay", on_unknown=True)
    async def refund(self, ctx: Any) -> None:
        ctx.resources["shop"].cash.append(-9)


class Parent(Saga):
    """settle (a child saga) → send."""

    @child("settle", Paid)
    async def settle(self, ctx: Any) -> dict[str, int]:
        return {"cents": 9}

    @action("send")
    async def send(self, ctx: Any) -> None: ...


def test_children_crash_with_their_parents() -> None:
    violation = only(crashed(Parent, pairs=False, failures=["send"]))
    assert (violation.kind, violation.step, violation.undo) == ("done again", "pay", True)
    assert violation.schedule[0] == "send fails"
    assert violation.schedule[1].startswith("process 1: settle, pay, send, undo pay; it dies in un")


def test_an_undoing_of_what_did_not_happen_is_found() -> None:
    violation = only(crashed(Parent, pairs=False, failures=["pay"]))
    assert (violation.kind, violation.step, violation.undo) == ("undone", "pay", True)
    assert violation.schedule == (
        "pay fails",
        "process 1: settle; it dies after SagaStarted, StepStarted pay is in the log",
        "process 2: pay, undo pay; the saga ends rolled_back",
    )
    assert "let it look, by the step's key" in violation.hint


# --- how it is told ---


def test_it_raises_an_assertion_error_with_the_report() -> None:
    saga = saga_of(pay=lambda shop, ctx: shop.cash.append(9), send=lambda shop, ctx: None)
    with pytest.raises(AssertionError) as raised:
        crashed(saga, pairs=False, check=True)
    assert isinstance(raised.value, SagaNotCrashProof)
    assert raised.value.report.violations
    assert str(raised.value) == (
        "by hand: 1 violation (25 runs, 21 crashes, 19 points on 3 paths)\n"
        "\n"
        "1. step 'pay' does its work again when it is run again\n"
        "    process 1: pay; it dies in pay, after its effect, before that is recorded\n"
        "    process 2: pay, send; the saga ends completed\n"
        "    world.cash is [9, 9]; without the crash [9]\n"
        "    (3 more schedules show the same)\n"
        "  fix: after a crash the step is called again with the same key 'saga-1/pay': hand "
        "ctx.idempotency_key to whoever does the work, so that they do it once; in a database of "
        "your own, do it in `with once(ctx, connection)`"
    )


def test_no_more_runs_are_made_than_allowed_and_what_is_left_out_is_said() -> None:
    for most in (3, 4, 10, 60):
        report = crashed(Order, max_runs=most)
        assert report.runs == most
        assert report.crashes > 0
        assert report.left_out > 0
        assert f"{report.left_out:,} schedules left out (max_runs)" in str(report)
    whole = crashed(Order, pairs=False, max_runs=60)
    assert (whole.left_out, whole.runs < 60) == (0, True)


# --- misuse ---

THE_ONE = Shop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"resources": lambda shop: {}},
            "ends rolled_back, not completed (hold: ResourceMissing: there is no resource 'shop'",
        ),
        ({"status": "rolled_back"}, "ends completed, not rolled_back"),
        ({"invariant": lambda shop: shop.money}, "the invariant raised AttributeError"),
        ({"invariant": lambda shop: asyncio.sleep(0)}, "the invariant is a coroutine"),
        ({"failures": ["post"]}, "step 'post' does not exist; those that are: 'hold', 'pay', 's"),
        ({"max_runs": 1}, "max_runs: at least 3, not 1"),
        ({"when": [signal("paid"), cancel()]}, "cancel was refused: saga 'saga-1' is completed"),
        ({"world": lambda: THE_ONE}, "it gives the same object twice"),
    ],
)
def test_what_cannot_be_judged_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        crashed(Order, **options)
    assert message in str(raised.value)


def test_a_saga_that_waits_is_refused_until_somebody_tells_it() -> None:
    with pytest.raises(
        ConfigurationError, match="waits for the signal 'approved'; say what is done"
    ):
        crashed(Approved)


def test_a_world_that_is_never_the_same_is_refused() -> None:
    saga = saga_of(send=lambda shop, ctx: shop.sent.add(uuid.uuid4().hex))
    with pytest.raises(ConfigurationError, match=r"world ends differently each time.*world\.sent"):
        crashed(saga)
    assert crashed(saga, view=lambda shop: len(shop.sent) > 0).ok


def test_a_context_that_cannot_be_stored_is_refused_as_by_an_engine() -> None:
    with pytest.raises(UnstorableValue, match="clock"):
        crashed(Order, context={"clock": object()})


# --- with once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("heeds_its_key", [True, False])
def test_work_in_a_database_of_ones_own_stands_crashes_with_once(
    tmp_path: Path, heeds_its_key: bool
) -> None:
    numbers = count()

    def book(connection: sqlite3.Connection, cents: int) -> None:
        connection.execute("INSERT INTO moves VALUES (?)", (cents,))

    class Bookkeeping(Saga):
        @action("debit")
        def debit(self, ctx: Any) -> None:
            self.move(ctx, -9)

        @compensate("debit")
        def credit(self, ctx: Any) -> None:
            self.move(ctx, 9)

        @action("report")
        def report(self, ctx: Any) -> None: ...

        @staticmethod
        def move(ctx: Any, cents: int) -> None:
            connection = sqlite3.connect(ctx.resources["file"])
            if not heeds_its_key:
                with connection:
                    book(connection, cents)
            else:
                with once(ctx, connection) as done:
                    if done.first:
                        book(connection, cents)
            connection.close()

    def database() -> Path:
        file = tmp_path / f"{next(numbers)}.db"
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("CREATE TABLE moves (cents)")
            asyncio.run(create_once_table(connection))
        return file

    def moves(file: Path) -> list[int]:
        with closing(sqlite3.connect(file)) as connection:
            return [cents for (cents,) in connection.execute("SELECT cents FROM moves")]

    report = crash_everywhere(
        Bookkeeping,
        world=database,
        resources=lambda file: {"file": file},
        view=moves,
        invariant=lambda file: sum(moves(file)) in (-9, 0),
        pairs=False,
        check=False,
    )
    blamed = [(v.kind, v.step, v.undo) for v in report.violations]
    twice = [("done again", "debit", False), ("done again", "debit", True)]
    assert blamed == ([] if heeds_its_key else twice)


@pytest.mark.parametrize(
    ("option", "value"),
    [("world", {}), ("resources", {}), ("invariant", True), ("view", "orders"), ("max_runs", "9")],
)
def test_an_option_that_cannot_be_meant_is_refused_by_its_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{option}: "):
        crash_everywhere(Saga("none"), **{option: value})


# --- a world that cannot be seen is no proof ---


def books() -> dict[str, Any]:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("CREATE TABLE moves (cents)")
    return {"db": connection, "mails": []}


def moved(world: dict[str, Any]) -> int:
    (found,) = world["db"].execute("SELECT count(*) FROM moves").fetchone()
    return int(found)


class Booking(Saga):
    """Books each time it is called."""

    @action("book")
    async def book(self, ctx: Any) -> None:
        ctx.resources["db"].execute("INSERT INTO moves VALUES (1)")


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_a_connection_in_the_world_asks_for_what_counts() -> None:
    with pytest.raises(
        ConfigurationError, match=r"of world\.db \(<Connection>\);.*view="
    ) as raised:
        crash_everywhere(Booking, world=books)
    assert "invariant=" in str(raised.value)
    seen = crash_everywhere(Booking, world=books, view=moved, check=False)
    assert only(seen).kind == "done again"
    asked = crash_everywhere(Booking, world=books, invariant=lambda world: True)
    assert asked.unseen == ("world.db (<Connection>)",)
    assert "\nnothing is compared of world.db (<Connection>)" in str(asked)


def test_a_closure_in_the_world_is_looked_into() -> None:
    def world() -> dict[str, Any]:
        done: list[str] = []
        return {"note": lambda key: done.append(key)}

    saga = Saga("noting")

    async def note(ctx: Any) -> None:
        ctx.resources["note"](ctx.idempotency_key)

    saga.add_step("note", note)
    assert only(crash_everywhere(saga, world=world, check=False)).kind == "done again"


def test_a_run_that_compares_nothing_is_no_proof() -> None:
    done: list[int] = []  # the world never sees it
    saga = Saga("elsewhere")

    async def step(ctx: Any) -> None:
        done.append(1)

    saga.add_step("step", step)
    for world in (dict, Shop):
        with pytest.raises(ConfigurationError, match=r"^world: nothing of it .* was changed"):
            crash_everywhere(saga, world=world, check=False)
    assert crash_everywhere(saga, invariant=lambda world: True).ok


@pytest.mark.parametrize(
    ("view", "gave"),
    [
        (lambda shop: None, "None"),  # its return was forgotten
        (lambda shop: shop.sent, "set()"),  # of another step's work
        (lambda shop: [n for n in shop.cash if n < 0], "[]"),  # what is wrong, and never is
        (lambda shop: "x" * 500, "x…"),
    ],
)
def test_a_view_that_never_changes_is_no_proof(view: Callable[[Shop], Any], gave: str) -> None:
    saga = Saga("paying")

    async def pay(ctx: Any) -> None:
        ctx.resources["shop"].cash.append(9)

    saga.add_step("pay", pay)
    with pytest.raises(ConfigurationError, match=r"^view: it gave") as raised:
        crashed(saga, view=view)
    assert f"{gave} before and after every step of every run" in str(raised.value)
    assert "invariant=" in str(raised.value)
    assert crashed(saga, view=view, invariant=lambda shop: True).ok
    assert only(crashed(saga, view=lambda shop: sum(shop.cash))).kind == "done again"


def test_resources_cannot_be_assigned_to() -> None:
    class Count(Saga):
        @action("count")
        async def count(self, ctx: Any) -> None:
            ctx.resources["n"] += 1

    with pytest.raises(ConfigurationError, match=r"count: TypeError: ctx\.resources cannot"):
        crash_everywhere(Count, world=lambda: {"n": 0})
