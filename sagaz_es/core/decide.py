"""What a saga does next: pure decisions over a state and its recorded graph.

`decide` says which facts follow now and what may run once they are accepted. The shell appends the
facts, carries its state forward by them, and runs the attempts only after it has seen them accepted
(confirm before effects). Facts of one decision travel in one append.

Law (total): every state has a decision; nothing raises.
Law (ready means ready): a step starts when its own dependencies are done, not when a level is.
Law (no way back behind a pivot): nothing that a completed pivot depends on, nor it, is undone.
Law (no way back beside an open pivot): a saga does not go back while a pivot of it runs, or may
have happened and can still be tried or asked about. Source: docs/decisions/0046.
Law (reverse): a step is undone after everything that depends on it, over steps without
compensation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec
from msgspec import Struct, structs

from sagaz_es.core import events as e
from sagaz_es.core.effects import standing
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.state import DEADLINE, SagaState, StepState
from sagaz_es.core.texts import join_names, names
from sagaz_es.errors import PivotPassed, PivotUndecided, SagaEnded


class ParallelFailureStrategy(StrEnum):
    """What happens to running siblings when a step has failed for good. A pivot that runs is waited
    for, whatever the strategy."""

    FAIL_FAST = "fail_fast"  # they are cancelled
    WAIT_ALL = "wait_all"  # they finish first
    FAIL_FAST_WITH_GRACE = "fail_fast_with_grace"  # they may finish within the grace period

    @classmethod
    def _missing_(cls, value: object) -> ParallelFailureStrategy | None:
        text = str(value).lower()  # sagaz spells it by the member's name, too
        return _STRATEGY.get("fail_fast_with_grace" if text == "fail_fast_grace" else text)


_STRATEGY = {str(strategy): strategy for strategy in ParallelFailureStrategy}


class CompensationFailureStrategy(StrEnum):
    """What happens to the other compensations when one has failed for good.

    What is not tried is a stuck compensation, as the failed one is: it can be retried by a person.
    """

    FAIL_FAST = "fail_fast"  # the first failure is final, and no further one is begun
    CONTINUE_ON_ERROR = "continue_on_error"  # a failure is final at once, the others go on
    RETRY_THEN_CONTINUE = "retry_then_continue"  # it is repeated, then the others go on
    SKIP_DEPENDENTS = "skip_dependents"  # final at once; what was to be undone after it is not


class Attempt(Struct, frozen=True, gc=False):
    """Something to run once its start is accepted."""

    step: str
    attempt: int
    undo: bool = False  # the compensation, not the action
    ask: str = ""  # "recover" or "resolve": a handler that decides, instead of the action
    # "child": begin the child, or hear how it ended; "take_back": lead it back, or hear of that


class Wait(Struct, frozen=True, gc=False):
    """What a step waits for once its dependencies are done."""

    signal: str = ""  # empty: only for the time
    limit_us: int = 0  # how long it waits for the signal; 0: for ever
    delay_us: int = 0  # how long it waits without a signal


class Rules(Struct, frozen=True, gc=False):
    """What decides beside the recorded graph; the code's, not the record's."""

    failure_strategy: ParallelFailureStrategy = ParallelFailureStrategy.FAIL_FAST_WITH_GRACE
    grace_us: int = 5_000_000
    recoverable: frozenset[str] = frozenset()  # steps with a forward recovery handler
    waits: Mapping[str, Wait] = {}
    resolvable: frozenset[str] = frozenset()  # at-most-once steps that can find out what happened
    compensation_failure: CompensationFailureStrategy = (
        CompensationFailureStrategy.RETRY_THEN_CONTINUE
    )
    manual: frozenset[str] = frozenset()  # steps that a person has to have undone


DEFAULT_RULES = Rules()


class Decision(Struct, frozen=True, gc=False):
    """Facts to append now, attempts to run once they are accepted, when to ask again at the latest.

    `stop_running`: attempts under way are to be cancelled, except those of pivots; their outcomes
    come first.
    """

    facts: tuple[e.Fact, ...] = ()
    run: tuple[Attempt, ...] = ()
    wake_at: int = 0  # µs; 0: only when something happens
    stop_running: bool = False


IDLE = Decision()


def decide(state: SagaState, graph: Graph, now: int, rules: Rules = DEFAULT_RULES) -> Decision:
    """What follows now. An ended saga has nothing to do."""
    if state.status == "executing":
        deadline = state.deadline_at
        if deadline and completed_pivots(state, graph):
            deadline = 0  # behind a pivot a saga only goes forward
        if deadline and now >= deadline:
            return _too_late(state, graph, now, rules)
        decision = IDLE if state.paused else _forward(state, graph, now, rules)
        if deadline and not 0 < decision.wake_at <= deadline:
            return structs.replace(decision, wake_at=deadline)
        return decision
    if state.status == "compensating":
        return _backward(state, graph, now, rules)
    return IDLE


def _too_late(state: SagaState, graph: Graph, now: int, rules: Rules) -> Decision:
    """The saga's deadline has passed, and no completed pivot forbids to go back."""
    if open_pivots(state, graph):
        return settle_pivots(state, graph, now, rules)
    if _running(state):
        return Decision(run=_children(state, graph), stop_running=True)
    return Decision(_lost(state, graph, DEADLINE) or (go_back(state, graph, reason=DEADLINE),))


def is_too_late(state: SagaState, graph: Graph, now: int) -> bool:
    """Whether its deadline makes it go back."""
    return 0 < state.deadline_at <= now and not completed_pivots(state, graph)


# --- forward --------------------------------------------------------------------------------------


def _forward(state: SagaState, graph: Graph, now: int, rules: Rules) -> Decision:
    steps = state.steps
    if state.failed_step and any(
        step.status in ("failed", "compensation_failed") for step in steps.values()
    ):
        return _after_failure(state, graph, now, rules)
    stale = [name for name, step in steps.items() if step.status in _TO_UNDO_FIRST]
    if stale:
        return _undo_wave(stale, state, graph, now, rules)
    return _go_on(graph.steps, state, graph, now, rules)


def _go_on(
    nodes: Iterable[StepNode], state: SagaState, graph: Graph, now: int, rules: Rules
) -> Decision:
    """What these steps can do now. The saga has completed if all of them are done."""
    steps = state.steps
    facts: list[e.Fact] = []
    run: list[Attempt] = []
    wake_at = 0
    open_steps = False
    for node in nodes:
        step = steps.get(node.name)
        status = "pending" if step is None else step.status
        if status == "completed" or status == "skipped":
            continue
        open_steps = True
        if step is not None and status == "executing":
            if not step.interrupted:
                continue
            if node.at_most_once:
                facts.append(
                    e.StepOutcomeUnknown(
                        node.name, step.attempt, "its process stopped while it ran"
                    )
                )
                continue
        elif status == "outcome_unknown" and node.name in rules.resolvable and step is not None:
            run.append(Attempt(node.name, step.attempt, ask="resolve"))
            continue
        elif status == "waiting" and step is not None and step.child_start:
            run.append(Attempt(node.name, step.attempt, ask="child"))
            continue
        elif status == "waiting" and step is not None:
            over, wake_at = _waited(state, step, now, wake_at)
            if over is None:
                continue
            if over:
                facts.append(e.StepFailed(node.name, 0, "SignalTimeout", over))
                continue
        elif status != "pending":
            continue
        # In a branch what stands may rest on something that runs again: wait for that, too.
        needs = graph.ancestors[node.name] if state.replay_id else node.depends_on
        if not _done(needs, steps):
            continue
        if step is not None and step.retry_at > now:
            wake_at = min(wake_at or step.retry_at, step.retry_at)
            continue
        attempt = 1 if step is None else step.attempt + 1
        wait = rules.waits.get(node.name)
        if wait is not None and status == "pending" and (step is None or not step.attempt):
            pause = wait.limit_us if wait.signal else wait.delay_us
            facts.append(e.StepWaiting(node.name, wait.signal, now + pause if pause else 0))
            continue
        if state.force_failure and node.name == state.point:
            facts.append(e.StepStarted(node.name, attempt))
            facts.append(
                e.StepFailed(
                    node.name,
                    attempt,
                    error_type="ForcedFailure",
                    error_message=f"step {node.name!r} was made to fail by the replay",
                    forced=True,
                )
            )
            continue
        facts.append(e.StepStarted(node.name, attempt))
        run.append(Attempt(node.name, attempt))
    if not open_steps:
        return Decision((e.SagaCompleted(),))
    return Decision(tuple(facts), tuple(run), wake_at)


def _waited(state: SagaState, step: StepState, now: int, wake_at: int) -> tuple[str | None, int]:
    """Whether a wait is over: None: not yet; empty: the step starts; else why it failed."""
    if step.waits_for and state.signals.get(step.waits_for):
        return "", wake_at
    if step.wait_until and now >= step.wait_until:
        return (f"no signal {step.waits_for!r} came in time" if step.waits_for else ""), wake_at
    if step.wait_until:
        wake_at = min(wake_at or step.wait_until, step.wait_until)
    return None, wake_at


def _done(needs: Iterable[str], steps: dict[str, StepState]) -> bool:
    for need in needs:
        step = steps.get(need)
        if step is None or step.status not in ("completed", "skipped"):
            return False
    return True


_TO_UNDO_FIRST = frozenset({"stale", "compensating"})


def _running(state: SagaState) -> list[str]:
    return [
        name
        for name, step in state.steps.items()
        if step.status in ("executing", "compensating") and not step.interrupted
    ]


def _children(state: SagaState, graph: Graph) -> tuple[Attempt, ...]:
    """What to ask about children under way: whether they have ended, or are taken back."""
    asked = []
    for name, step in state.steps.items():
        if step.status == "waiting" and step.child_start:
            asked.append(Attempt(name, step.attempt, ask="child"))
        elif step.status == "compensating" and _is_child(graph, name):
            asked.append(Attempt(name, step.undo_attempt, undo=True, ask="take_back"))
    return tuple(asked)


def _after_failure(state: SagaState, graph: Graph, now: int, rules: Rules) -> Decision:
    running, children = _running(state), _children(state, graph)
    if running or children:
        if rules.failure_strategy is ParallelFailureStrategy.WAIT_ALL:
            return Decision(run=children)
        until = state.failed_at
        if rules.failure_strategy is ParallelFailureStrategy.FAIL_FAST_WITH_GRACE:
            until += rules.grace_us
        if now < until:
            return Decision(run=children, wake_at=until)
        undecided = open_pivots(state, graph)
        if not undecided.issuperset(running):
            return Decision(run=children, stop_running=True)
    if open_pivots(state, graph):
        settling = settle_pivots(state, graph, now, rules)
        return structs.replace(settling, run=tuple(dict.fromkeys((*children, *settling.run))))
    lost = _lost(state, graph)
    if lost:
        return Decision(lost)
    recover = _behind_pivots(state, graph) & rules.recoverable
    if recover:
        asked = [Attempt(n, state.step(n).attempt, ask="recover") for n in sorted(recover)]
        return Decision(run=tuple(asked))
    return Decision((go_back(state, graph, reason=state.error_message),))


def _lost(state: SagaState, graph: Graph, why: str = "") -> tuple[e.Fact, ...]:
    """What ran when its process stopped has an unknown outcome; who goes back does not run it
    again. `why` it goes back, unless a failure or a request says so already."""
    message = "its process stopped while it ran"
    return tuple(
        e.StepFailed(
            name,
            step.attempt,
            error_type="Interrupted",
            error_message=f"{message}; {why}" if why else message,
            unknown=not _is_child(graph, name),  # which has only said what its child starts with
        )
        for name, step in state.steps.items()
        if step.status == "executing" and step.interrupted
    )


def _is_child(graph: Graph, name: str) -> bool:
    node = graph.by_name.get(name)
    return node is not None and bool(node.child)


def _behind_pivots(state: SagaState, graph: Graph) -> frozenset[str]:
    """Failed steps from which there is no way back, only forward."""
    if state.pivots_released:
        return frozenset()
    pivots = frozenset(completed_pivots(state, graph))
    return frozenset(
        name
        for name, step in state.steps.items()
        if step.status == "failed" and not pivots.isdisjoint(graph.ancestors.get(name, ()))
    )


def open_pivots(state: SagaState, graph: Graph) -> frozenset[str]:
    """Pivots that run, or that may have happened and can still be tried again or asked about: until
    their outcome is known there is no telling whether there is a way back."""
    return frozenset(name for name in graph.pivots if _is_open(graph, name, state.step(name)))


def _is_open(graph: Graph, name: str, step: StepState) -> bool:
    if graph.by_name[name].child:
        return step.status == "waiting" and bool(step.child_start)
    if step.status == "pending":  # until its next attempt
        return step.unknown
    return step.status in ("executing", "outcome_unknown")


def settle_pivots(
    state: SagaState, graph: Graph, now: int, rules: Rules = DEFAULT_RULES
) -> Decision:
    """What brings the outcome of the open pivots to light, and nothing else. A paused saga tries
    nothing."""
    if state.paused:
        return IDLE
    undecided = open_pivots(state, graph)
    return _go_on([graph.by_name[name] for name in sorted(undecided)], state, graph, now, rules)


def locked_by_pivots(state: SagaState, graph: Graph) -> frozenset[str]:
    """Completed pivots and all that they depend on: there is no way back to before them."""
    if state.pivots_released:
        return frozenset()
    locked: set[str] = set()
    for name, step in state.steps.items():
        node = graph.by_name.get(name)
        if node is not None and node.pivot and step.status == "completed":
            locked |= graph.ancestors[name] | {name}
    return frozenset(locked)


def completed_pivots(state: SagaState, graph: Graph) -> tuple[str, ...]:
    """Names of the pivots that have completed, in the order of running."""
    if not graph.has_pivot:
        return ()
    return tuple(
        name
        for name in graph.order
        if graph.by_name[name].pivot and state.step(name).status == "completed"
    )


def go_back(
    state: SagaState,
    graph: Graph,
    *,
    goal: str = "",
    reason: str = "",
    actor: str = "",
    cause: str = "",
) -> e.CompensationStarted:
    """The fact with which a saga goes back: it names what is undone, dependents first."""
    locked = locked_by_pivots(state, graph)
    wanted = []
    for name, step in state.steps.items():
        node = graph.by_name.get(name)
        if node is None or name in locked or not node.compensable:
            continue
        certain = step.status in ("completed", "stale", "compensating")
        certain |= bool(step.child_start)  # a child that runs is taken back as it stands
        maybe = step.unknown and step.status in ("failed", "outcome_unknown", "pending")
        maybe |= step.status == "executing" and step.interrupted and not node.child
        if certain or (maybe and node.on_unknown):
            wanted.append(name)
    return e.CompensationStarted(
        steps=join_names(graph.undo_order(wanted)) or "[]",
        goal=goal or ("partially_committed" if locked else "rolled_back"),
        reason=reason,
        actor=actor,
        cause=cause,
    )


def has_gone_back(state: SagaState) -> bool:
    """Whether it has ended with nothing left that could be undone. What an undone replay only
    reused is left."""
    if state.status not in ("rolled_back", "cancelled"):
        return False
    return not state.undone or go_back(state, state.step_graph).steps == "[]"


def take_back(
    state: SagaState, graph: Graph, *, reason: str, actor: str, cause: str
) -> e.CompensationStarted:
    """The fact with which an ended saga goes back after all, because its caller does: all of it,
    what could not be undone before, too. Raises PivotPassed."""
    pivots = () if state.pivots_released else completed_pivots(state, graph)
    if pivots:
        raise PivotPassed(state.saga_id, pivots[-1])
    back = go_back(state, graph, goal="rolled_back", reason=reason, actor=actor, cause=cause)
    stuck = [
        name
        for name, step in state.steps.items()
        if step.status == "compensation_failed" and not step.undo_skipped
    ]
    steps = graph.undo_order([*names(back.steps), *stuck])
    return structs.replace(back, steps=join_names(steps) or "[]")


# --- backward -------------------------------------------------------------------------------------


def _undo_wave(
    todo: Sequence[str], state: SagaState, graph: Graph, now: int, rules: Rules
) -> Decision:
    """Start every compensation of `todo` whose dependents in `todo` are undone."""
    facts: list[e.Fact] = []
    run: list[Attempt] = []
    wake_at = 0
    waiting = {name for name in todo if not _settled(state.step(name))}
    for name in todo:
        if name not in waiting:
            continue
        step = state.step(name)
        if step.status == "compensating" and _is_child(graph, name):
            run.append(Attempt(name, step.undo_attempt, undo=True, ask="take_back"))
            continue
        if step.status == "compensating" and not step.interrupted:
            continue
        if name in graph.dependents and not graph.dependents[name].isdisjoint(waiting):
            continue
        if step.undo_attempt and step.retry_at > now:  # before, it is the next attempt's
            wake_at = min(wake_at or step.retry_at, step.retry_at)
            continue
        facts.append(e.StepCompensationStarted(name, step.undo_attempt + 1))
        if name in rules.manual and not step.undo_attempt:
            why = "a person has to undo it: retry the compensation, or skip it"
            facts.append(e.StepCompensationFailed(name, 1, "ManualCompensation", why))
            continue
        ask = "take_back" if _is_child(graph, name) else ""
        run.append(Attempt(name, step.undo_attempt + 1, undo=True, ask=ask))
    return Decision(tuple(facts), tuple(run), wake_at)


def _settled(step: StepState) -> bool:
    return step.status in ("compensated", "compensation_failed") or bool(step.undo_skipped)


def _backward(state: SagaState, graph: Graph, now: int, rules: Rules) -> Decision:
    if all(_settled(state.step(name)) for name in state.undo):
        return Decision((_ending(state, graph),))
    given_up = _given_up(state, graph, rules.compensation_failure)
    if given_up:
        return Decision(given_up)
    return _undo_wave(state.undo, state, graph, now, rules)


def _given_up(
    state: SagaState, graph: Graph, strategy: CompensationFailureStrategy
) -> tuple[e.Fact, ...]:
    """Compensations that are not begun because others have failed; those under way may end."""
    failed = [n for n in state.undo if state.step(n).status == "compensation_failed"]
    if not failed or strategy not in _GIVING_UP:
        return ()
    facts: list[e.Fact] = []
    for name in state.undo:
        step = state.step(name)
        if _settled(step) or (step.status == "compensating" and not step.interrupted):
            continue
        if step.child_start or (step.status == "compensating" and _is_child(graph, name)):
            continue  # it runs on, or back, whether anybody waits for it or not
        first = failed[0]
        if strategy is CompensationFailureStrategy.SKIP_DEPENDENTS:
            first = next((n for n in failed if n in graph.dependents.get(name, ())), "")
        if first:
            why = f"not tried: the compensation of {first!r} failed before"
            facts.append(e.StepCompensationFailed(name, step.undo_attempt, GIVEN_UP, why))
    return tuple(facts)


GIVEN_UP = "CompensationSkipped"
"""The error type of a compensation that was not tried because another one had failed."""

_GIVING_UP = (CompensationFailureStrategy.FAIL_FAST, CompensationFailureStrategy.SKIP_DEPENDENTS)


def _ending(state: SagaState, graph: Graph) -> e.Fact:
    left = [effect.step for effect in standing(state)]
    error = (*state.failure, state.failed_step)
    failed = [name for name, s in state.steps.items() if s.status == "compensation_failed"]
    if failed:
        return e.SagaFailed(*error, standing=join_names(left) or "[]")
    if state.goal == "cancelled":
        return e.SagaCancelled(state.undo_reason, state.undo_actor)
    if state.goal == "undone":
        return e.ReplayUndone(
            state.replay_id, join_names(state.undo) or "[]", state.undo_actor, state.undo_reason
        )
    if state.goal == "partially_committed":
        return e.SagaPartiallyCommitted(
            *error,
            boundary=join_names(completed_pivots(state, graph)) or "[]",
            standing=join_names(left) or "[]",
        )
    return e.SagaRolledBack(*error)


# --- outcomes of attempts -------------------------------------------------------------------------


class Retry(Struct, frozen=True, gc=False):
    """How often and how fast an attempt is repeated. Delays: base, 2·base, 4·base …, capped."""

    max_retries: int = 3
    base_us: int = 100_000
    cap_us: int = 30_000_000

    def next_at(self, now: int, failures: int, jitter: float = 1.0) -> int:
        """When to try again after the `failures`-th failure; 0: not again."""
        if failures > self.max_retries:
            return 0
        delay = int((self.base_us << min(failures - 1, 40)) * jitter)
        return now + max(1, min(delay, self.cap_us))


def failed_attempt(
    state: SagaState,
    attempt: Attempt,
    now: int,
    retry: Retry,
    *,
    error_type: str,
    error_message: str,
    traceback: str = "",
    unknown: bool = False,
    may_retry: bool = True,
    jitter: float = 1.0,
) -> e.Fact:
    """The fact for an attempt that failed, with the time of the next one, if there is one."""
    step = state.step(attempt.step)
    failures = (step.undo_failures if attempt.undo else step.failures) + 1
    retry_at = retry.next_at(now, failures, jitter) if may_retry else 0
    if attempt.undo:
        return e.StepCompensationFailed(
            attempt.step, attempt.attempt, error_type, error_message, traceback, retry_at
        )
    return e.StepFailed(
        attempt.step, attempt.attempt, error_type, error_message, traceback, retry_at, unknown
    )


# --- requests -------------------------------------------------------------------------------------


def cancel(state: SagaState, graph: Graph, request: e.CancelRequested) -> tuple[e.Fact, ...]:
    """The facts that follow from a request to cancel, once nothing runs any more.

    None if the saga already goes back. Raises PivotPassed, SagaEnded (unless it is cancelled), and
    PivotUndecided while `settle_pivots` comes first.
    """
    if state.ended:
        if state.status == "cancelled":
            return ()
        raise SagaEnded(state.saga_id, state.status, "cancelled")
    pivots = completed_pivots(state, graph)
    if pivots:
        raise PivotPassed(state.saga_id, pivots[-1], state.status)
    if state.status == "compensating":
        return ()
    if undecided := open_pivots(state, graph):
        raise PivotUndecided(state.saga_id, min(undecided))
    return (
        *_lost(state, graph),
        go_back(
            state,
            graph,
            goal="cancelled",
            reason=request.reason,
            actor=request.actor,
            cause=request.request_id,
        ),
    )


def executed_effects(state: SagaState, graph: Graph) -> tuple[str, ...]:
    """Steps whose standing effect this saga executed itself (not inherited), dependents first."""
    own = {
        effect.step
        for effect in standing(state)
        if effect.owner == state.saga_id and graph.by_name[effect.step].effects
    }
    return tuple(graph.undo_order(own))


def dump_plan_steps(steps: Sequence[tuple[str, str, str]]) -> str:
    """JSON array of [step, verdict, reason], as SagaStarted carries it."""
    return msgspec.json.encode(list(steps)).decode()
