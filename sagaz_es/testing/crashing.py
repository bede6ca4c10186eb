"""A user's saga with a crash at every point: do its steps and compensations stand that?

A process may die at any moment, so a step may be run again after its effect has happened, and a
compensation too; both get the same idempotency key again. Here the saga is run once for each point
at which its process can die, and for pairs of them (the process that takes over dies as well), on
the path without a failure and on those where a step fails and what was done is undone. In the end
the world has to look as if there had been no crash.

Law (same again): the same call tries the same schedules and finds the same.
Law (bounded): it makes at most `max_runs` runs, and each ends, or is an error.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sagaz_es.engine.registry import Source
from sagaz_es.errors import ConfigurationError
from sagaz_es.testing.crash_report import (
    CrashReport,
    Found,
    Kind,
    Violation,
    blamed,
    hint,
    schedule_of,
)
from sagaz_es.testing.faults import ATTEMPTS_AFTER_THE_FIRST, Fault, Faults
from sagaz_es.testing.runs import Action, Body, Outcome, Run
from sagaz_es.testing.watching import steps_of
from sagaz_es.testing.worlds import alike, differences, picture, short, unseen

W = TypeVar("W")

MAX_RUNS = 1000


def crash_everywhere(
    saga: Source,
    context: Mapping[str, Any] | None = None,
    *,
    world: Callable[[], W] = dict,  # type: ignore[assignment]
    resources: Callable[[W], Mapping[str, Any]] | None = None,
    invariant: Callable[[W], object] | None = None,
    view: Callable[[W], Any] = picture,
    when: Sequence[Action] = (),
    status: str = "completed",
    sagas: Sequence[Source] = (),
    failures: bool | Iterable[str] = True,
    pairs: bool = True,
    lines: bool = False,
    max_runs: int = MAX_RUNS,
    check: bool = True,
) -> CrashReport:
    """Run a saga with a crash at every point; SagaNotCrashProof (an AssertionError) unless the
    world ends as it does without the crash and the invariant holds.

    `world` makes a new world for every run; `resources` says what steps find of it in
    `ctx.resources` (default: the world itself where it is a mapping, else `{"world": world}`).
    `invariant(world)` is asked when the saga has ended: it raises AssertionError, or gives False or
    a text, if something is wrong. `view(world)` is what is compared; by default all of it.
    `when`: what is done to the saga, as in `given`. `status`: how it ends if nothing goes wrong.
    `failures`: also the paths on which a step fails for good, of all steps or of those named.
    `pairs`: also a second crash, in the process that took over. `lines`: also between the lines of
    the steps' code; then the world has to be in memory, as a dead process gives nothing back.
    `check=False`: the report is given, whatever it says.

    Raises ConfigurationError where the saga, the world or the invariant cannot be judged: with
    no `invariant` also where a part of what is compared shows nothing of what it holds (a
    connection), and where nothing was found and nothing that is compared ever changed. With an
    invariant the report names such parts (`unseen`).
    """
    __tracebackhide__ = True
    test = _Test(saga, context, world, resources, invariant, view, when, sagas, lines, max_runs)
    report = test.run(status, failures, pairs)
    if check:
        report.check()
    return report


@dataclass(slots=True)
class _Path:
    """What fails, and how the saga ends then without a crash."""

    faults: tuple[Fault, ...]
    plain: Run
    seen: Any  # its world in the end
    wrong: str  # what is wrong with the world, even without a crash

    @property
    def end(self) -> Outcome:
        assert self.plain.outcome is not None
        return self.plain.outcome

    @property
    def points(self) -> int:
        return len(self.plain.lives[0].points.reached)


@dataclass(slots=True)
class _Test:
    saga: Source
    context: Mapping[str, Any] | None
    world: Callable[[], Any]
    resources: Callable[[Any], Mapping[str, Any]] | None
    invariant: Callable[[Any], object] | None
    view: Callable[[Any], Any]
    when: Sequence[Action]
    sagas: Sequence[Source]
    lines: bool
    max_runs: int
    runs: int = 0
    crashes: int = 0
    waiting: int = 0
    left_out: int = 0
    changed: bool = False  # something of the world that is compared, in some run
    unseen: tuple[str, ...] = ()  # parts of it of which nothing is compared
    found: Found = field(default_factory=Found)

    def run(self, status: str, failures: bool | Iterable[str], pairs: bool) -> CrashReport:
        __tracebackhide__ = True
        for what in ("world", "resources", "invariant", "view"):
            function = getattr(self, what)
            if function is not None and not callable(function):
                raise ConfigurationError(f"{what}: a function, not {function!r}")
        if not isinstance(self.max_runs, int) or self.max_runs < 3:
            raise ConfigurationError(f"max_runs: at least 3, not {self.max_runs!r}")
        steps = steps_of((self.saga, *self.sagas))
        paths = [self._first_path(status)]
        called = dict.fromkeys(b.call.step for b in paths[0].plain.bodies if not b.call.undo)
        failing = _failing(failures, list(called), list(steps))
        paths += [
            self._path((Fault(step),)) for step in failing[: self._room // 2]
        ]  # the rest: crashes
        self.left_out = len(failing) + 1 - len(paths)
        # After a crash such a step is not run again, and the saga may go another way.
        at_most_once = {step.name for step in steps.values() if step.at_most_once}
        singles = [(path, (at,)) for path in paths for at in range(1, path.points + 1)]
        second = self._all(singles, careful=bool(at_most_once))
        self._fail_after_crash([step for step in failing if step not in at_most_once])
        if pairs:
            self._all(second, careful=bool(at_most_once))
        if not (self.found.violations or self.changed or self.invariant is not None):
            raise ConfigurationError(self._nothing_changed(paths[0].seen))
        return CrashReport(
            saga=self.saga.__name__ if isinstance(self.saga, type) else self.saga.name,
            paths=len(paths),
            points=len(singles),
            runs=self.runs,
            crashes=self.crashes,
            waiting=self.waiting,
            left_out=self.left_out,
            unseen=self.unseen,
            violations=self.found.listed(),
        )

    # --- runs ---

    @property
    def _room(self) -> int:
        return self.max_runs - self.runs

    def _all(self, schedules: Sequence[_Schedule], *, careful: bool) -> list[_Schedule]:
        """Run each, as far as max_runs allows; those with one crash more than these."""
        if len(schedules) > self._room:  # some of all, and always the same ones
            self.left_out += len(schedules) - self._room
            chosen = random.Random(0).sample(range(len(schedules)), self._room)
            schedules = [schedules[at] for at in sorted(chosen)]
        longer: list[_Schedule] = []
        known: set[tuple[int, str]] = set()
        for path, crashes in schedules:
            with self._play(path.faults, crashes) as (run, world):
                self._judge(path, run, world, careful)
            if len(run.deaths) < len(crashes):
                continue  # it ended before it came there: another one has shown this
            # Two places with nothing between them leave the same behind.
            left = (id(path), run.left_behind[-1])
            if left not in known:
                known.add(left)
                reached = len(run.lives[-1].points.reached)
                longer += [(path, (*crashes, at)) for at in range(1, reached + 1)]
        return longer

    def _fail_after_crash(self, failing: Sequence[str]) -> None:
        """A process dies in each step, after its effect, and the next one cannot do it: nobody
        knows then whether it happened."""
        self.left_out += max(0, len(failing) - self._room)
        for step in failing[: self._room]:
            faults = (Fault(step, attempts=ATTEMPTS_AFTER_THE_FIRST),)
            with self._play(faults, (f"in {step}, after its effect",)) as (run, world):
                assert run.outcome is not None
                if not run.deaths:
                    continue  # its first attempt failed by itself
                if run.outcome.waits_for:
                    self.waiting += 1
                elif wrong := self._wrong(world):
                    self._add("unknown", run.bodies[-1], run, faults, [wrong], step)

    @contextmanager
    def _play(
        self, faults: tuple[Fault, ...], crashes: Sequence[int | str]
    ) -> Iterator[tuple[Run, Any]]:
        """One run and its world; what died in it stands still until both are judged."""
        world = self.world()
        run = Run(
            self.saga,
            self.context,
            lambda: self._resources_of(world),
            self.sagas,
            Faults(list(faults)),
            self.when,
            picture=lambda: self._look(world),
            lines=self.lines,
            blames=True,
            tried_once=frozenset(fault.step for fault in faults),
        )
        self.runs += 1
        try:
            run.play(crashes)
            self.crashes += len(run.deaths)
            self.changed = self.changed or _changed(run)
            yield run, world
        finally:
            run.bury()

    def _resources_of(self, world: Any) -> Mapping[str, Any]:
        if self.resources is not None:
            return self.resources(world)
        return world if isinstance(world, Mapping) else {"world": world}

    def _look(self, world: Any) -> Any:
        return picture(world if self.view is picture else self.view(world))

    # --- without a crash ---

    def _first_path(self, status: str) -> _Path:
        """Nothing goes wrong. Raises ConfigurationError where it does, or differs each time."""
        one = self.world()
        if one is self.world() and picture(one) not in ({}, None):
            raise ConfigurationError(
                "world: it gives the same object twice; every run needs a new one, such as "
                "world=Shop or world=lambda: Shop(stock=3)"
            )
        path = self._path(())
        self._look_for_unseen(path.seen)
        end = path.end
        if end.waits_for:
            raise ConfigurationError(
                f"without a crash the saga does not end: {end.waits_for}; say what is done to it "
                "by when=[…], as in given(…).when(…)"
            )
        if [*end.refused, *end.not_done]:
            told = [f"{action} was refused: {error}" for action, error in end.refused]
            told += [f"it never came to this: {action}" for action in end.not_done]
            raise ConfigurationError(f"without a crash, {'; '.join(told)}")
        if end.status != status:
            error = end.result.error
            why = f" ({end.failed_step}: {type(error).__name__}: {error})" if error else ""
            raise ConfigurationError(
                f"without a crash the saga ends {end.status}, not {status}{why}; if that is meant, "
                f"say status={end.status!r}"
            ) from error
        again = self._path(())
        if told := differences(path.seen, again.seen, self._compared, otherwise="the other time"):
            raise ConfigurationError(
                "the world ends differently each time, even without a crash (a clock, a random "
                "number, something that all runs share?): "
                f"{told[0]}; say what counts by view=…"
            )
        return path

    def _nothing_changed(self, seen: Any) -> str:
        if self.view is picture:
            return (
                "world: nothing of it that is compared was changed by a step, so nothing is known "
                f"about crashes; {_SAY_WHAT_COUNTS}"
            )
        return (
            f"view: it gave {short(seen)} before and after every step of every run, so nothing is "
            "known about crashes; let it give what the steps change, or say by invariant=… what "
            "has to hold in the end"
        )

    @property
    def _compared(self) -> str:
        """What pictures show, as people know it."""
        return "world" if self.view is picture else "view"

    def _look_for_unseen(self, seen: Any) -> None:
        """Raises ConfigurationError if there is nothing else to judge the run by."""
        self.unseen = tuple(unseen(seen, self._compared))
        if self.unseen and self.invariant is None:
            raise ConfigurationError(
                f"{self._compared}: nothing can be compared of {', '.join(self.unseen)}; "
                f"{_SAY_WHAT_COUNTS}"
            )

    def _path(self, faults: tuple[Fault, ...]) -> _Path:
        with self._play(faults, ()) as (run, world):
            path = _Path(faults, run, self._look(world), self._wrong(world, strict=not faults))
        if path.wrong and not path.end.waits_for:
            stands = ", ".join(map(repr, path.end.result.committed_step_names)) or "none"
            self.found.add(
                Violation(
                    "invariant",
                    faults[0].step if faults else "",
                    False,
                    schedule_of(run, faults),
                    (path.wrong,),
                    f"this needs no crash; steps whose effect stands in the end: {stands}",
                )
            )
        return path

    def _wrong(self, world: Any, *, strict: bool = False) -> str:
        """What the invariant says; empty if it holds. `strict`: other errors are mistakes in it."""
        if self.invariant is None:
            return ""
        try:
            answer = self.invariant(world)
        except AssertionError as error:
            # Behind what the user says pytest writes how it came to that, over several lines.
            said = str(error).partition("\nassert ")[0].replace("\n", "\n      ")
            return f"the invariant does not hold: {said}" if said else "the invariant fails"
        except Exception as error:
            if strict:
                raise ConfigurationError(
                    f"the invariant raised {type(error).__name__}: {error}; it raises "
                    "AssertionError, or gives False or a text, where something is wrong"
                ) from error
            return f"the invariant raised {type(error).__name__}: {error}"
        if inspect.isawaitable(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            raise ConfigurationError("the invariant is a coroutine; it has to be a plain function")
        if isinstance(answer, str):
            return f"the invariant does not hold: {answer}" if answer else ""
        return "" if answer is None or answer else "the invariant does not hold"

    # --- with crashes ---

    def _judge(self, path: _Path, run: Run, world: Any, careful: bool) -> None:
        end, plain = run.outcome, path.end
        assert end is not None
        seen = self._look(world)
        same_end = (end.status, end.waits_for) == (plain.status, plain.waits_for)
        problems: list[str] = []
        if not same_end:
            if end.needs_person or (careful and end.waits_for):
                self.waiting += 1
                return
            if not careful:
                problems += _ended_otherwise(end, plain)
        # With a crash, what runs side by side may have come to less or more when a step fails.
        if (same_end or not careful) and _done(run) == _done(path.plain):
            problems += differences(path.seen, seen, self._compared)
        if not end.waits_for and not (path.wrong and alike(path.seen, seen)):
            problems += filter(None, [self._wrong(world)])
        if not problems:
            return
        kind, body = blamed(run, path.plain, hangs=bool(end.waits_for))
        self._add(kind, body, run, path.faults, problems)

    def _add(
        self,
        kind: Kind,
        body: Body | None,
        run: Run,
        faults: tuple[Fault, ...],
        problems: Sequence[str],
        step: str = "",
    ) -> None:
        if body is not None and not step:
            step, undo = body.call.step, body.call.undo
        else:
            undo = False
        told = schedule_of(run, faults)
        self.found.add(Violation(kind, step, undo, told, tuple(problems), hint(kind, body)))


_SAY_WHAT_COUNTS = (
    "let the steps work on stand-ins that keep what was done (world=…, found in ctx.resources), or "
    "say by view=… what counts of the world, or by invariant=… what has to hold in the end"
)


def _changed(run: Run) -> bool:
    """Whether the world looked otherwise at any time than before the first step."""
    return any(run.bodies[0].before != seen for b in run.bodies for seen in (b.before, b.after))


_Schedule = tuple[_Path, tuple[int, ...]]  # for each process: the point where it dies


def _done(run: Run) -> set[str]:
    return {b.call.step for b in run.bodies if b.ended == "returned" and not b.call.undo}


def _failing(failures: bool | Iterable[str], called: list[str], steps: list[str]) -> list[str]:
    """The steps to fail, one on each path."""
    if isinstance(failures, bool):
        return called if failures else []
    names = [failures] if isinstance(failures, str) else list(failures)
    for name in names:
        if name not in called:
            why = "is never called" if name in steps else "does not exist"
            known = ", ".join(map(repr, called))
            raise ConfigurationError(f"failures: step {name!r} {why}; those that are: {known}")
    return names


def _ended_otherwise(end: Outcome, plain: Outcome) -> list[str]:
    how = end.waits_for or f"the saga ends {end.status}"
    told = [f"{how}; without the crash it ends {plain.status}"]
    error = end.result.error
    if error is not None and not end.waits_for:
        told.append(f"{end.failed_step}: {type(error).__name__}: {error}")
    told += [f"{stuck}: {error}" for stuck, error in _stuck(end)]
    return told


def _stuck(end: Outcome) -> list[tuple[str, str]]:
    return [(f"the compensation of {e.step!r}", str(e)) for e in end.result.compensation_errors]
