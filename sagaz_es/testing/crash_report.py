"""What `crash_everywhere` found, in words: schedules, the step to blame, what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from sagaz_es.testing.faults import Fault
from sagaz_es.testing.runs import Body, Run

Kind = Literal[
    "done again", "half done", "raised", "lost", "unknown", "undone", "stuck", "invariant"
]

MAX_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Violation:
    """One way in which a saga does not stand crashes; shown by its shortest schedule."""

    kind: Kind
    step: str  # to blame; empty: none in particular
    undo: bool  # it is the step's compensation
    schedule: tuple[str, ...]  # what happened, line by line
    problems: tuple[str, ...]  # what is wrong then
    hint: str
    others: int = 0  # schedules that show the same

    @property
    def title(self) -> str:
        """What is wrong, and with which step."""
        whose = f"the compensation of {self.step!r}" if self.undo else f"step {self.step!r}"
        return {
            "done again": f"{whose} does its work again when it is run again",
            "raised": f"{whose} fails when it is run after a crash",
            "half done": f"{whose} leaves half of its work when its process dies in the middle",
            "lost": f"{whose if self.step else 'something'} misses what was lost in a crash",
            "undone": f"{whose} undoes what did not happen",
            "unknown": f"{whose} may have happened, and nothing undoes it",
            "stuck": f"{whose if self.step else 'the saga'} does not end any more after a crash",
            "invariant": "the invariant does not hold",
        }[self.kind]

    def __str__(self) -> str:
        lines = [self.title, *(f"    {line}" for line in (*self.schedule, *self.problems))]
        if self.others:
            lines.append(f"    ({self.others} more schedules show the same)")
        return "\n".join([*lines, f"  fix: {self.hint}"])


@dataclass(frozen=True, slots=True)
class CrashReport:
    """How a saga stood its crashes. `str()` says it all; `check()` raises it."""

    saga: str
    paths: int  # without a failure, and one for each step that fails
    points: int  # where a process can die on those paths
    runs: int
    crashes: int
    waiting: int  # runs that ended in a question to a person, and were not judged
    left_out: int  # schedules for which max_runs did not suffice
    unseen: tuple[str, ...] = ()  # parts of the world of which nothing was compared
    violations: tuple[Violation, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.violations

    def check(self) -> None:
        """Raise SagaNotCrashProof (an AssertionError) unless it is ok."""
        __tracebackhide__ = True
        if not self.ok:
            raise SagaNotCrashProof(self)

    @property
    def summary(self) -> str:
        """`1 violation (12 runs, 8 crashes, 5 points on 2 paths)`; with what was left out."""
        counts = [
            _count(self.runs, "run"),
            _count(self.crashes, "crash", "es"),
            f"{_count(self.points, 'point')} on {_count(self.paths, 'path')}",
        ]
        if self.waiting:
            counts.append(f"{_count(self.waiting, 'run')} waiting for a person")
        if self.left_out:
            counts.append(f"{_count(self.left_out, 'schedule')} left out (max_runs)")
        found = _count(len(self.violations), "violation") if self.violations else "no violation"
        return f"{found} ({', '.join(counts)})"

    def __str__(self) -> str:
        lines = [f"{self.saga}: {self.summary}"]
        lines += [f"nothing is compared of {part}" for part in self.unseen]
        for number, violation in enumerate(self.violations[:MAX_SHOWN], 1):
            lines += ["", f"{number}. {violation}"]
        if len(self.violations) > MAX_SHOWN:
            lines += ["", f"and {len(self.violations) - MAX_SHOWN} more"]
        return "\n".join(lines)


class SagaNotCrashProof(AssertionError):
    """A saga under test does not stand crashes; `report` says how."""

    def __init__(self, report: CrashReport) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return str(self.report)


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}{plural if number != 1 else ''}"


@dataclass(slots=True)
class Found:
    """Violations, each kind of each step once: the first schedule is the shortest."""

    violations: dict[tuple[str, str, bool], Violation] = field(default_factory=dict)
    others: dict[tuple[str, str, bool], int] = field(default_factory=dict)

    def add(self, violation: Violation) -> None:
        """Remember it, or count it."""
        key = (violation.kind, violation.step, violation.undo)
        if key in self.violations:
            self.others[key] = self.others.get(key, 0) + 1
        else:
            self.violations[key] = violation

    def listed(self) -> tuple[Violation, ...]:
        """In the order in which they were found."""
        return tuple(replace(v, others=self.others.get(k, 0)) for k, v in self.violations.items())


# --- a run in words -----------------------------------------------------------------------------


def schedule_of(run: Run, faults: Sequence[Fault]) -> tuple[str, ...]:
    """One line a process: what it called, and where it died."""
    assert run.outcome is not None
    lines = [f"{fault}" for fault in faults]
    lines += [f"then {action}" for action in run.actions]
    for number, life in enumerate(run.lives):
        called = [body.call.name for body in run.bodies if body.life == number]
        did = ", ".join(called) or "nothing"
        if life.points.died_at:
            lines.append(f"process {number + 1}: {did}; it dies {life.points.died_at}")
        else:
            end = run.outcome.status if not run.outcome.waits_for else run.outcome.waits_for
            who = f"process {number + 1}: " if len(run.lives) > 1 else "no crash: "
            lines.append(f"{who}{did}; the saga ends {end}")
    return tuple(lines)


def blamed(run: Run, plain: Run, *, hangs: bool) -> tuple[Kind, Body | None]:
    """The call that is to blame for a run that ends otherwise than the one without a crash."""
    if hangs:
        last = len(run.lives) - 1
        inside = [body for body in run.bodies if body.life == last and body.ended == "died"]
        return "stuck", inside[0] if inside else None
    groups: dict[tuple[str, str], list[Body]] = {}
    for body in run.bodies:
        groups.setdefault((body.call.key, body.call.name), []).append(body)
    # What runs side by side changes the world meanwhile, and so may a task of a step's own.
    changed = [body for body in run.bodies if body.own]
    changed += [body for body in run.bodies if not body.own and body.before != body.after]
    twice = [
        (earlier.own and later.own, later)
        for group in groups.values()
        for earlier, later in pairwise(group)
        if {id(earlier), id(later)} <= {id(body) for body in changed}
    ]
    twice.sort(key=lambda found: not found[0])
    raised = {body.call.name for body in plain.bodies if body.ended == "raised"}
    failed = [b for b in run.bodies if b.ended == "raised" and b.call.name not in raised]
    if failed:
        first = failed[0]
        again = groups[first.call.key, first.call.name][0].life < first.life
        return "raised" if again else "lost", first
    if twice:
        return "done again", twice[0][1]
    for body in changed:
        if body.ended == "died":
            return "half done", body
    undone = {body.call.name for body in plain.bodies if body.call.undo}
    for body in changed:
        if body.call.undo and body.call.name not in undone:
            return "undone", body
    assert run.outcome is not None
    for body in run.bodies:
        if body.call.step in run.outcome.result.unknown_step_names and not body.call.undo:
            return "unknown", body
    return "lost", None


def hint(kind: Kind, body: Body | None) -> str:
    """What to do about it."""
    key = body.call.key if body is not None else ""
    whose = "its compensation" if body is not None and body.call.undo else "the step"
    if kind == "done again":
        return (
            f"after a crash {whose} is called again with the same key {key!r}: hand "
            "ctx.idempotency_key to whoever does the work, so that they do it once; in a database "
            "of your own, do it in `with once(ctx, connection)`"
        )
    if kind == "half done":
        return (
            "make its work one step of the world (one statement, one transaction), or let the next "
            "call find what is missing and do that"
        )
    if kind == "raised":
        return (
            f"after a crash {whose} is called again with the same key {key!r}: let it find what "
            "the earlier call has done, and give that one's result instead of an error"
        )
    if kind == "undone":
        return (
            "it says on_unknown=True, so it is also called where nobody knows whether the step "
            "happened: let it look, by the step's key, before it undoes anything"
        )
    if kind == "unknown":
        return (
            "the process died behind its effect, and no later attempt could say so: let its "
            "compensation look for the effect, and declare it with on_unknown=True"
        )
    if kind == "stuck":
        return (
            "what a dead process holds in the world (a lock, a lease) has to come free without it"
        )
    if kind == "invariant":
        return (
            "look at what stands then: a step without a compensation, or one that undoes something "
            "else"
        )
    return (
        "what a step keeps in its object or its process is gone after a crash: return from the "
        "step what later ones need, or set it in ctx"
    )
