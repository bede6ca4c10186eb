"""What a log of sagas may look like: a second, small reading of the rules, written for the judge.

It shares nothing with `sagaz_es.core` but the facts themselves. `read_log` accepts and rejects by
DESIGN §4, carries each saga on by what was accepted, and notes every fact that may not stand where
it stands.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sagaz_es import CompensationFailureStrategy, ParallelFailureStrategy
from sagaz_es.core import events as e
from sagaz_es.log.partitioning import partition_of
from sagaz_es.ports import Record
from sagaz_es.testing.simulation import Broker
from tests.simulation.sagas import REGISTRY

ENDINGS: dict[type[e.Fact], str] = {
    e.SagaCompleted: "completed",
    e.SagaRolledBack: "rolled_back",
    e.SagaFailed: "failed",
    e.SagaPartiallyCommitted: "partially_committed",
    e.SagaCancelled: "cancelled",
    e.ReplayUndone: "rolled_back",
}


DEADLINE = "deadline has passed"
"""Of what is wrong: by its writer's clock, which may have jumped."""


STOPPED = "was stopped for a failure beside it"
"""The same; or by a cancel that is gone with the log's tail."""


@dataclass(slots=True)
class Step:
    """A step as the log has it. `status`: pending waiting started completed failed skipped unknown
    stale undoing undone undo_failed."""

    needs: tuple[str, ...]
    compensable: bool = False
    on_unknown: bool = False
    at_most_once: bool = False
    pivot: bool = False
    effects: bool = True
    status: str = "pending"
    attempt: int = 0
    undo_attempt: int = 0
    interrupted: bool = False  # another writer came while it was started, or being undone
    maybe: bool = False  # an attempt may have had its effect, and none has completed
    owner: str = ""  # whose effect it is, where a branch inherited it
    forced: bool = False  # its failure was asked for; what starts beside it may start
    let_be: bool = False  # a person said so of its undoing
    not_before: int = 0  # µs: when its next attempt, or the next one to undo it, may begin
    max_retries: int = 0
    tries: int = 0  # how often it was to be tried again
    max_undo_retries: int = 0
    undo_tries: int = 0  # the same of its compensation
    child: str = ""  # the name of the saga that it is
    child_id: str = ""  # the last one that it started
    child_runs: bool = False  # it waits for that, and has not heard
    heard: str = ""  # how that has ended, by ChildEnded

    def __repr__(self) -> str:
        return self.status + ("?" if self.maybe else "") + ("~" if self.interrupted else "")

    @property
    def done(self) -> bool:
        return self.status in ("completed", "skipped")

    @property
    def settled(self) -> bool:
        return self.status in ("undone", "undo_failed") or self.let_be


@dataclass(slots=True)
class Placed:
    """An accepted event, with its place in the log."""

    offset: int
    event: e.Event


@dataclass
class Saga:
    """A saga as the log has it."""

    saga_id: str
    name: str = ""
    writer: bytes = b""
    epoch: int = 0
    sequence: int = 0
    status: str = "executing"
    steps: dict[str, Step] = field(default_factory=dict)
    undo: tuple[str, ...] = ()
    goal: str = ""
    paused: bool = False
    deadline_at: int = 0  # µs; 0: none
    pivots_released: bool = False
    answered: set[str] = field(default_factory=set)
    branch: str = ""
    branch_reason: str = ""
    parent: str = ""  # the head that it branched from
    replay_id: str = ""
    undone: bool = False
    done_anew: set[tuple[str, str]] = field(default_factory=set)
    """(step, owner) of what stands, and is neither kept nor undone first: by its own plan."""
    reason: str = ""  # of the replay whose branch it is: in the words of who asked for it
    stopped: str = ""  # a step that was stopped in a saga that waits for all of them
    reopened: bool = False  # claimed after its end: something about it is decided anew
    caller: tuple[str, str] = ("", "")  # of a child: the saga and its step that started it
    ends: list[str] = field(default_factory=list)  # every status that it has ended with
    accepted: list[Placed] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.status in ENDINGS.values()

    @property
    def branched(self) -> bool:
        return bool(self.replay_id)

    @property
    def gone_back(self) -> bool:
        """It has ended, and nothing of it stands that it could undo."""
        if self.status not in ("rolled_back", "cancelled"):
            return False
        stands = (s for s in self.steps.values() if s.status in ("completed", "stale"))
        return not self.undone or not any(step.compensable for step in stands)

    def ancestors(self, name: str) -> set[str]:
        found: set[str] = set()
        todo = list(self.steps[name].needs)
        while todo:
            need = todo.pop()
            if need not in found:
                found.add(need)
                todo += self.steps[need].needs
        return found

    def dependents(self, name: str) -> set[str]:
        return {other for other in self.steps if name in self.ancestors(other)}

    def locked(self) -> set[str]:
        """Completed pivots and what they depend on."""
        if self.pivots_released:
            return set()
        pivots = {n for n, s in self.steps.items() if s.pivot and s.status == "completed"}
        return pivots.union(*(self.ancestors(pivot) for pivot in pivots))


class OfKin(str):
    """A reason that lies in another saga's stream, where a log that loses its tail may lose it."""


class Log:
    """All sagas of a log, and what is wrong with it."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.sagas: dict[str, Saga] = {}
        self.children: dict[str, e.ChildStarted] = {}
        """What decided about each child, by its id."""
        self.wrong: list[str] = []
        self.wrong_among_kin: list[str] = []
        self.starts: dict[tuple[str, str, str, int], list[Placed]] = {}
        """Accepted starts of attempts, by (do or undo, saga, step, attempt)."""
        self.completions: list[tuple[Saga, Placed]] = []
        self.rejected = 0
        self.requests: dict[str, int] = {}  # id -> accepted facts that answer it
        self.asked: dict[str, e.Request] = {}
        self.places: dict[str, list[int]] = {}  # request -> the offsets at which it stands
        self.refused: set[str] = set()

    @property
    def unanswered(self) -> list[e.Request]:
        """Requests that came to nothing yet."""
        return [request for request in self.asked.values() if not self._is_answered(request)]

    def _is_answered(self, request: e.Request) -> bool:
        if request.request_id in self.requests or request.request_id in self.refused:
            return True
        saga = self.sagas.get(request.saga_id)
        if isinstance(request, e.StartRequested):
            return saga is not None
        if isinstance(request, e.CancelRequested):
            return saga is not None and (saga.ended or saga.status == "compensating")
        if isinstance(request, e.UndoRequested) and request.caller_saga_id:
            return saga is not None and (self._went_back(saga) or not _takes_back(self, saga))
        if isinstance(request, e.UndoRequested):
            return saga is not None and saga.undone
        return isinstance(request, e.ReplayLogged)

    def _went_back(self, saga: Saga | None) -> bool:
        """Whether its family did so at any time; it may have been replayed since."""
        while saga is not None:
            if not {"rolled_back", "cancelled"}.isdisjoint(saga.ends):
                return True
            saga = self.sagas.get(saga.branch) if saga.branch else None
        return False

    def head(self, saga: Saga) -> Saga:
        """The newest branch of its family."""
        while saga.branch and saga.branch in self.sagas:
            saga = self.sagas[saga.branch]
        return saga

    def hear(self, request: e.Request, offset: int) -> None:
        if isinstance(request, e.RequestRefused):
            self.refused.add(request.request_id)
        else:
            self.asked.setdefault(request.request_id, request)
            self.places.setdefault(request.request_id, []).append(offset)

    def take(self, event: e.Event, offset: int) -> None:
        saga = self.sagas.get(event.saga_id)
        if not _accepts(saga, event):
            self.rejected += 1
            return
        if saga is None:
            saga = self.sagas[event.saga_id] = Saga(event.saga_id, event.saga_name)
        before, saga.epoch = saga.epoch, event.epoch
        if event.epoch != before or not saga.sequence:
            saga.writer = event.writer
        saga.sequence += 1
        placed = Placed(offset, event)
        saga.accepted.append(placed)
        fact = event.fact
        # A claim's cause is a word, a start's is that of the fact that decided it.
        other = isinstance(fact, e.SagaClaimed | e.SagaReleased | e.SagaStarted)
        request = "" if other else e.request_of(fact)
        if request:
            if request.startswith("take back "):  # whoever is the family's head answers it
                self.requests.setdefault(request, 1)
            else:
                self.requests[request] = self.requests.get(request, 0) + 1
            if request in saga.answered:
                return  # it answers a request that was answered: nothing changes
            saga.answered.add(request)
        reason = _RULES[type(fact)](self, saga, fact, placed)
        if reason:
            words = f"{type(fact).__name__} {getattr(fact, 'step', '')}".rstrip()
            place = f"{saga.saga_id} ({saga.name}) #{saga.sequence}"
            wrong = self.wrong_among_kin if isinstance(reason, OfKin) else self.wrong
            wrong.append(f"illegal transition: {place} {words}: {reason}")


class Truth:
    """What is accepted, kept up while records land: which sequence each saga had at an offset."""

    def __init__(self) -> None:
        self._sagas: dict[str, Saga] = {}
        self._offsets: dict[str, list[int]] = {}

    def take(self, records: Sequence[Record]) -> None:
        for record in records:
            event = record.entry
            if not isinstance(event, e.Event):
                continue
            saga = self._sagas.get(event.saga_id)
            if not _accepts(saga, event):
                continue
            if saga is None:
                saga = self._sagas[event.saga_id] = Saga(event.saga_id)
            saga.writer, saga.epoch, saga.sequence = event.writer, event.epoch, event.sequence
            kind = type(event.fact)
            if kind in ENDINGS:
                saga.status = ENDINGS[kind]
            elif kind in (e.CompensationStarted, e.StepCompensationStarted):
                saga.status = "compensating"
            self._offsets.setdefault(event.saga_id, []).append(record.offset)

    def begin_anew(self, broker: Broker) -> None:
        """A log has lost its tail: what stood there was never accepted."""
        self._sagas, self._offsets = {}, {}
        for partition in broker.partitions:
            self.take(partition.records)

    def sequence_of(self, saga_id: str, position: int) -> int:
        """Its last accepted sequence before an offset."""
        return bisect_left(self._offsets.get(saga_id, []), position)


def read_log(broker: Broker) -> Log:
    """Every saga of a log."""
    log = Log(len(broker.partitions))
    for partition in broker.partitions:
        for record in partition.records:
            if isinstance(record.entry, e.Event):
                log.take(record.entry, record.offset)
            elif isinstance(record.entry, e.Request):
                log.hear(record.entry, record.offset)
    return log


def _accepts(saga: Saga | None, event: e.Event) -> bool:
    fact = event.fact
    if saga is None:
        return isinstance(fact, e.SagaStarted) and (event.epoch, event.sequence) == (0, 1)
    if event.sequence != saga.sequence + 1:
        return False
    if (event.writer, event.epoch) == (saga.writer, saga.epoch):
        return True
    claims = isinstance(fact, e.SagaClaimed) or (isinstance(fact, e.ReplayBranched) and saga.ended)
    return claims and event.epoch == saga.epoch + 1


# --- what each fact may do ------------------------------------------------------------------------

Reason = str | None


def _started(log: Log, saga: Saga, fact: e.SagaStarted, _: Placed) -> Reason:
    if saga.sequence > 1:
        return "it had begun"
    steps = REGISTRY.by_name(saga.name).steps
    for node in json.loads(fact.graph):
        compensation = steps[node["name"]].compensation
        saga.steps[node["name"]] = Step(
            tuple(node.get("depends_on", ())),
            node.get("compensable", False),
            node.get("on_unknown", False),
            node.get("at_most_once", False),
            node.get("pivot", False),
            node.get("effects", True),
            child=node.get("child", ""),
            max_retries=steps[node["name"]].retry.max_retries,
            max_undo_retries=compensation.retry.max_retries if compensation else 0,
        )
    saga.caller = fact.caller_saga_id, fact.caller_step
    saga.replay_id, saga.parent = fact.replay_id, fact.head_saga_id
    saga.deadline_at = fact.deadline_at
    if not fact.replay_id:
        return _begun_as_child(log, saga, fact) if fact.caller_saga_id else None
    verdicts = {step: verdict for step, verdict, _ in json.loads(fact.plan)}
    for effect in json.loads(fact.standing or "[]"):
        step = saga.steps[effect["step"]]
        if verdicts[effect["step"]] in ("reuse", "undo_first"):
            step.status = "completed" if verdicts[effect["step"]] == "reuse" else "stale"
            step.owner, step.maybe = effect["owner"], effect.get("unknown", False)
            step.attempt = effect.get("attempt", 1)
            step.child_id = effect.get("child", "")
        else:
            saga.done_anew.add((effect["step"], effect["owner"]))
    parent = log.sagas.get(fact.head_saga_id)
    if parent is None or parent.branch != saga.saga_id:
        return "its head was not branched"
    saga.reason = parent.branch_reason
    return None


def _begun_as_child(log: Log, saga: Saga, fact: e.SagaStarted) -> Reason:
    parent = log.sagas.get(fact.caller_saga_id)
    step = parent.steps.get(fact.caller_step) if parent is not None else None
    decided = log.children.get(saga.saga_id)
    if parent is None or step is None or decided is None or step.child_id != saga.saga_id:
        return OfKin("no ChildStarted has decided it")
    if parent.ended or not (step.child_runs or step.status == "undoing"):
        return OfKin(f"its parent is {parent.status}, the step {step.status}")
    if (saga.name, fact.context) != (decided.child_saga_name, decided.context):
        return OfKin(f"it starts as {saga.name} with {fact.context}, decided was {decided}")
    return None


def _claimed(log: Log, saga: Saga, fact: e.SagaClaimed, _: Placed) -> Reason:
    for step in saga.steps.values():
        if step.status in ("started", "undoing"):
            step.interrupted = True
    saga.reopened = saga.ended
    return None


def _step_waiting(log: Log, saga: Saga, fact: e.StepWaiting, _: Placed) -> Reason:
    step = saga.steps[fact.step]
    before, step.status = step.status, "waiting"
    step.tries = 0
    step.not_before = 0 if fact.signal else fact.until
    return None if before == "pending" else f"the step is {before}"


def _step_started(log: Log, saga: Saga, fact: e.StepStarted, placed: Placed) -> Reason:
    step = saga.steps[fact.step]
    log.starts.setdefault(("do", saga.saga_id, fact.step, fact.attempt), []).append(placed)
    before, attempt = step.status, step.attempt
    again = before == "started" and step.interrupted
    step.status, step.attempt = "started", fact.attempt
    step.maybe, step.interrupted = step.maybe or (again and not step.child), False
    if saga.status != "executing":
        return f"the saga is {saga.status}"
    if saga.paused:
        return "the saga is paused"
    if before not in ("pending", "waiting") and not again:
        return f"the step is {before}"
    if step.at_most_once and attempt:
        return "it may run at most once"
    if fact.attempt != attempt + 1:
        return f"attempt {fact.attempt} follows {attempt}"
    if placed.event.occurred_at < step.not_before:
        return "it does not wait for its time"
    if 0 < saga.deadline_at <= placed.event.occurred_at and not saga.locked():
        return f"its saga's {DEADLINE}"
    needs = saga.ancestors(fact.step) if saga.branched else set(step.needs)
    missing = sorted(need for need in needs if not saga.steps[need].done)
    if missing:
        return f"{missing} are not done"
    if step.pivot and step.maybe:
        return None  # whatever has failed: until it is known there is no telling the way
    for name, other in saga.steps.items():
        if other.status in ("failed", "stale", "undoing", "undo_failed") and not other.forced:
            return f"step {name} is {other.status}"
    return None


def _step_completed(log: Log, saga: Saga, fact: e.StepCompleted, placed: Placed) -> Reason:
    step = saga.steps[fact.step]
    log.completions.append((saga, placed))
    before, interrupted = step.status, step.interrupted
    step.status, step.owner, step.maybe = "completed", "", False
    if step.child:
        ran, step.child_runs = step.child_runs, False
        return None if ran and step.heard == "completed" else f"its child is {step.heard or 'on'}"
    if before == "unknown" and step.at_most_once:
        return None
    if before != "started" or interrupted or step.attempt != fact.attempt:
        return f"attempt {fact.attempt}, but the step is {before}, attempt {step.attempt}"
    return None


def _step_failed(log: Log, saga: Saga, fact: e.StepFailed, _: Placed) -> Reason:
    step = saga.steps[fact.step]
    before, interrupted = step.status, step.interrupted
    step.status, step.interrupted = ("pending" if fact.retry_at else "failed"), False
    step.not_before = fact.retry_at
    step.tries += bool(fact.retry_at)
    siblings = REGISTRY.by_name(saga.name).rules.failure_strategy
    if fact.error_type == "Cancelled" and siblings is ParallelFailureStrategy.WAIT_ALL:
        saga.stopped = fact.step
    step.forced = fact.forced
    step.maybe = fact.unknown or (step.maybe and fact.error_type != "NotHappened")
    if step.tries > step.max_retries:
        return f"it may be tried again {step.max_retries} times"
    if step.pivot and fact.unknown and fact.error_type in ("Cancelled", "Interrupted"):
        return "a pivot is left to its end"
    if before == "waiting" and fact.error_type == "SignalTimeout":
        return None
    if before == "waiting" and step.child_runs:
        step.child_runs = False
        if step.heard == "completed" and fact.error_type == "BlobMissing":
            return None  # what it left behind cannot be read: it stands
        if step.heard and fact.unknown != (step.heard in ("failed", "partially_committed")):
            return f"its child is {step.heard}, and unknown is {fact.unknown}"
        return None
    if before == "unknown" and fact.error_type == "NotHappened":
        return None
    if before != "started" or step.attempt != fact.attempt:
        return f"attempt {fact.attempt}, but the step is {before}, attempt {step.attempt}"
    if interrupted and not fact.unknown and not step.child:  # a child not begun did nothing
        return "nobody knows how the attempt ended"
    return None


def _step_unknown(log: Log, saga: Saga, fact: e.StepOutcomeUnknown, _: Placed) -> Reason:
    step = saga.steps[fact.step]
    before, step.status, step.maybe = step.status, "unknown", True
    step.interrupted = False
    again = before == "unknown" and step.attempt == fact.attempt  # who was asked could not say
    if not step.at_most_once or not (before == "started" or again):
        return f"the step is {before}"
    return None


def _resolved(log: Log, saga: Saga, fact: e.OutcomeResolved, _: Placed) -> Reason:
    step = saga.steps[fact.step]
    before, step.status = step.status, "completed" if fact.happened else "failed"
    step.maybe = False
    return None if before == "unknown" else f"the step is {before}"


def _skipped(log: Log, saga: Saga, fact: e.StepSkipped, _: Placed) -> Reason:
    step = saga.steps[fact.step]
    if step.status != "undo_failed" or not saga.reopened:
        return f"the step is {step.status}"
    step.let_be = True
    return None


def _going_back(log: Log, saga: Saga, fact: e.CompensationStarted, _: Placed) -> Reason:
    names = tuple(json.loads(fact.steps))
    before, saga.status, saga.undo, saga.goal = saga.status, "compensating", names, fact.goal
    reopened, saga.reopened = saga.reopened, False
    for name, step in saga.steps.items():
        if step.status == "started" and not step.interrupted:
            return f"step {name} runs"
    if saga.stopped and fact.goal == "rolled_back" and not fact.cause:
        return f"{saga.stopped} {STOPPED}"
    if list(names) != _reverse(saga, names):
        return f"{names} are not in reverse order"
    taken_back = fact.cause.startswith("take back ")
    if taken_back and not _takes_back(log, saga):
        return OfKin("no step of its caller goes back")
    behind = sorted(saga.locked() & set(names))
    if behind and fact.goal == "undone":
        return f"{behind} are behind a completed pivot"
    stuck = [name for name in names if saga.steps[name].status == "undo_failed"]
    for name in stuck:
        saga.steps[name].status, saga.steps[name].undo_tries = "completed", 0
    if reopened and not taken_back:
        if fact.goal == "undone":
            wanted = {n for n, s in saga.steps.items() if _stands(s) and not s.owner and s.effects}
            return None if wanted == set(names) else f"it is {sorted(wanted)} that it executed"
        return None if stuck == list(names) else "its compensations are not stuck"
    if before not in ("executing", "forward_recovery") and not (reopened and taken_back):
        return f"the saga is {before}"
    locked = saga.locked()
    for name, step in saga.steps.items():
        if step.pivot and (
            (step.status in ("started", "unknown") and not step.child)
            or (step.status == "pending" and step.maybe and not step.child)
            or step.child_runs
        ):
            return f"pivot {name} is {step!r}: nobody knows whether it happened"
        certain = step.status in ("completed", "stale", "undoing") or step.child_runs
        maybe = step.on_unknown and (
            (step.maybe and step.status in ("failed", "unknown", "pending"))
            or (step.status == "started" and step.interrupted and not step.child)
        )
        wanted_here = step.compensable and name not in locked and (certain or maybe)
        if wanted_here and name not in names:
            return f"{name} is {step!r}, and is not undone"
        if name in names and not wanted_here:
            return f"{name} is {step!r}, and is to be undone"
    return None


def _takes_back(log: Log, saga: Saga) -> bool:
    """Whether a step whose child this is, or the family of this, is being undone."""
    family = {saga.saga_id}
    while saga.parent and saga.parent in log.sagas:
        saga = log.sagas[saga.parent]
        family.add(saga.saga_id)
    return any(
        step.child_id in family and step.status == "undoing"
        for caller in log.sagas.values()
        for step in caller.steps.values()
    )


def _stands(step: Step) -> bool:
    if step.let_be or step.status in ("completed", "stale", "undoing", "undo_failed"):
        return True
    return step.status not in ("undone", "skipped") and (
        step.maybe or step.status in ("unknown", "started")
    )


def _reverse(saga: Saga, names: tuple[str, ...]) -> list[str]:
    """The same names if dependents come before what they depend on."""
    seen: set[str] = set()
    for name in names:
        if saga.ancestors(name) & seen:
            return []
        seen.add(name)
    return list(names)


def _undo_started(log: Log, saga: Saga, fact: e.StepCompensationStarted, placed: Placed) -> Reason:
    step = saga.steps[fact.step]
    log.starts.setdefault(("undo", saga.saga_id, fact.step, fact.attempt), []).append(placed)
    before, attempt = step.status, step.undo_attempt
    again = before == "undoing" and step.interrupted
    step.status, step.undo_attempt, step.interrupted = "undoing", fact.attempt, False
    if placed.event.occurred_at < step.not_before and attempt:
        return "it does not wait for its time"
    if fact.attempt != attempt + 1:
        return f"attempt {fact.attempt} follows {attempt}"
    if saga.status == "executing":  # a branch undoes what it inherited
        todo = {name for name, other in saga.steps.items() if other.owner and not other.done}
        if before != "stale" and not again:
            return f"the step is {before}"
    elif saga.status == "compensating":
        todo = set(saga.undo)
        wanted = ("completed", "stale", "failed", "unknown", "pending")
        if before not in wanted and not again and not step.child_runs:
            if not (before == "started"):
                return f"the step is {before}"
    else:
        return f"the saga is {saga.status}"
    if fact.step not in todo:
        return "it is not to be undone"
    given_up = _given_up_for(saga, fact.step) if saga.status == "compensating" else []
    if given_up:
        return f"the compensation of {given_up} has failed, and it is not to be tried then"
    for other in saga.dependents(fact.step) & todo:
        if not saga.steps[other].settled and other != fact.step:
            if saga.status == "compensating" or saga.steps[other].status in ("stale", "undoing"):
                return f"{other}, which depends on it, is {saga.steps[other].status}"
    return None


def _given_up_for(saga: Saga, name: str) -> list[str]:
    """Failed compensations for which, by the saga's strategy, that of the step is not begun."""
    strategy = REGISTRY.by_name(saga.name).rules.compensation_failure
    failed = [n for n in saga.undo if saga.steps[n].status == "undo_failed"]
    failed = [n for n in failed if not saga.steps[n].let_be]
    if strategy is CompensationFailureStrategy.FAIL_FAST:
        return failed
    if strategy is CompensationFailureStrategy.SKIP_DEPENDENTS:
        return [n for n in failed if n in saga.dependents(name)]
    return []


def _undone(log: Log, saga: Saga, fact: e.StepCompensated, _: Placed) -> Reason:
    step = saga.steps[fact.step]
    before, interrupted = step.status, step.interrupted
    attempt = step.undo_attempt
    if saga.status == "compensating":
        step.status = "undone"
    else:  # a branch goes forward from here
        step.status, step.owner, step.attempt, step.undo_attempt = "pending", "", 0, 0
        step.tries = step.undo_tries = 0
    step.maybe = step.child_runs = False
    if step.child:
        child, step.child_id = log.sagas.get(step.child_id), ""
        begun = child is not None and child.caller[1] == fact.step
        if child is not None and begun and not log.head(child).gone_back:
            return OfKin(f"its child {child.saga_id} is {log.head(child).status}")
        interrupted = False  # who takes over asks on
    if before != "undoing" or interrupted or attempt != fact.attempt:
        return f"attempt {fact.attempt}, but the step is {before}, attempt {attempt}"
    return None


def _undo_failed(log: Log, saga: Saga, fact: e.StepCompensationFailed, _: Placed) -> Reason:
    step = saga.steps[fact.step]
    before, attempt = step.status, step.undo_attempt
    step.not_before = fact.retry_at
    step.undo_tries += bool(fact.retry_at)
    if fact.retry_at:
        step.interrupted = True  # it may start again
    else:
        step.status = "undo_failed"
    strategy = REGISTRY.by_name(saga.name).rules.compensation_failure
    if fact.retry_at and strategy is not CompensationFailureStrategy.RETRY_THEN_CONTINUE:
        return f"by its strategy, {strategy}, it is not tried again"
    if step.undo_tries > step.max_undo_retries:
        return f"it may be tried again {step.max_undo_retries} times"
    if fact.error_type == "CompensationSkipped":
        return None if saga.status == "compensating" else f"the saga is {saga.status}"
    if before != "undoing" or attempt != fact.attempt:
        return f"attempt {fact.attempt}, but the step is {before}, attempt {attempt}"
    return None


def _recovery(log: Log, saga: Saga, fact: e.RecoveryDecided, _: Placed) -> Reason:
    step = saga.steps[fact.step]
    before, status = saga.status, step.status
    locked = saga.locked()
    behind = any(
        saga.steps[need].pivot and saga.steps[need].status == "completed"
        for need in saga.ancestors(fact.step)
    )
    if fact.action == "manual_intervention":
        saga.status = "forward_recovery"
    else:
        saga.status = "executing"
        if fact.action == "compensate_pivot":
            saga.pivots_released = True
        elif fact.action == "skip":
            step.status = "skipped"
        else:
            step.status, step.tries = "pending", 0
    if status != "failed" or before not in ("executing", "forward_recovery"):
        return f"the step is {status}, the saga {before}"
    return None if behind and locked else "it is not behind a pivot"


def _ended(log: Log, saga: Saga, fact: e.Fact, _: Placed) -> Reason:
    before, reopened = saga.status, saga.reopened
    saga.status, saga.reopened = ENDINGS[type(fact)], False
    saga.ends.append(saga.status)
    saga.undone |= isinstance(fact, e.ReplayUndone)
    for step in saga.steps.values():
        child = log.sagas.get(step.child_id)
        if child is not None and not child.ends and child.caller[0] == saga.saga_id:
            return OfKin(f"its child {child.saga_id} is {child.status}")
    if isinstance(fact, e.SagaCompleted):
        left = sorted(name for name, step in saga.steps.items() if not step.done)
        return f"{left} are not done" if left or before != "executing" else None
    left = sorted(name for name in saga.undo if not saga.steps[name].settled)
    if left:
        return f"{left} are not undone"
    if before != "compensating" and not reopened:
        return f"the saga is {before}"
    failed = [name for name, step in saga.steps.items() if step.status == "undo_failed"]
    if isinstance(fact, e.SagaFailed) != bool(failed):
        return f"the compensations of {failed} failed"
    return None


def _branched(log: Log, saga: Saga, fact: e.ReplayBranched, _: Placed) -> Reason:
    before, saga.branch = saga.branch, fact.branch_saga_id
    saga.branch_reason = fact.reason
    if before:
        return f"it is branched as {before}"
    return None if saga.ended else f"the saga is {saga.status}"


def _child_started(log: Log, saga: Saga, fact: e.ChildStarted, _: Placed) -> Reason:
    step = saga.steps[fact.step]
    before, interrupted = step.status, step.interrupted
    step.status, step.child_id, step.child_runs = "waiting", fact.child_saga_id, True
    step.maybe, step.heard = False, ""
    used = fact.child_saga_id in log.children
    log.children[fact.child_saga_id] = fact
    if before != "started" or interrupted or step.attempt != fact.attempt:
        return f"attempt {fact.attempt}, but the step is {before}, attempt {step.attempt}"
    many = len(json.loads(fact.context)) if step.child.endswith("*") else ""
    if fact.child_saga_name != f"{step.child}{many}":
        return f"the step is a saga {step.child}{many}"
    if partition_of(saga.saga_id, log.partitions) != partition_of(
        fact.child_saga_id, log.partitions
    ):
        return "it lives in another partition"
    if "*" in saga.name and "$blob" not in fact.context:  # one for each item of a list
        first = saga.accepted[0].event.fact
        assert isinstance(first, e.SagaStarted)
        item = json.loads(first.context)[fact.step]
        if "$blob" not in item and json.loads(fact.context) != item:
            return f"it starts with {fact.context}, its item is {item}"
    return "another child has its id" if used else None


def _child_ended(log: Log, saga: Saga, fact: e.ChildEnded, _: Placed) -> Reason:
    step, child = saga.steps[fact.step], log.sagas.get(fact.child_saga_id)
    step.heard = fact.status
    if not step.child_runs or step.child_id != fact.child_saga_id:
        return f"it waits for {step.child_id if step.child_runs else 'none'}"
    if child is None or fact.status not in child.ends:
        return OfKin(f"it is {child.status if child else 'not begun'}")
    return None


def _paused(log: Log, saga: Saga, fact: Any, _: Placed) -> Reason:
    saga.paused = isinstance(fact, e.SagaPaused)
    return f"the saga is {saga.status}" if saga.ended else None


def _free(log: Log, saga: Saga, fact: e.Fact, _: Placed) -> Reason:
    return None


def _while_running(log: Log, saga: Saga, fact: e.Fact, _: Placed) -> Reason:
    return f"the saga is {saga.status}" if saga.ended else None


_RULES: dict[type[e.Fact], Any] = {
    e.SagaStarted: _started,
    e.SagaClaimed: _claimed,
    e.SagaReleased: _while_running,
    e.SagaCheckpointed: _while_running,
    e.StepWaiting: _step_waiting,
    e.StepStarted: _step_started,
    e.StepCompleted: _step_completed,
    e.StepFailed: _step_failed,
    e.StepOutcomeUnknown: _step_unknown,
    e.OutcomeResolved: _resolved,
    e.StepSkipped: _skipped,
    e.CompensationStarted: _going_back,
    e.StepCompensationStarted: _undo_started,
    e.StepCompensated: _undone,
    e.StepCompensationFailed: _undo_failed,
    e.RecoveryDecided: _recovery,
    e.ReplayBranched: _branched,
    e.SagaPaused: _paused,
    e.SagaResumed: _paused,
    e.SignalReceived: _while_running,
    e.ChildStarted: _child_started,
    e.ChildEnded: _child_ended,
    e.SubjectErased: _free,
    **{ending: _ended for ending in ENDINGS},
}
