"""What the values of a saga are, by the log: a second, small reading of the rules, as in `model`.

Context, results, reads and signals of each saga, from its accepted facts alone; and the laws on
them: the fold has the same, each step saw them, and what an effect had read is still so where it
stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sagaz_es.core import events as e
from sagaz_es.core.state import SagaState
from tests.simulation.model import Log, Saga
from tests.simulation.world import Execution


@dataclass
class Values:
    """The values of one saga, as its facts leave them."""

    start: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    done: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Result and reads of each step that has completed, as they were told."""
    signals: dict[str, list[Any]] = field(default_factory=dict)  # received, and not yet taken
    taken: dict[str, Any] = field(default_factory=dict)  # by the step that started with it
    awaited: dict[str, str] = field(default_factory=dict)  # step -> signal
    versions: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """The context from each sequence at which it changed."""
    payloads: dict[tuple[str, int], Any] = field(default_factory=dict)
    """By step and attempt: the payload that it started with."""
    graph: tuple[str, ...] = ()  # its steps, in their order
    inherited: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Of a branch, by step: the keys that an effect of another saga has set, and deleted."""
    going_back: bool = False
    undone_with: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By the sequence of its start: the context that a compensation sees."""

    def change(self, sequence: int, keys_set: str, keys_deleted: str = "") -> None:
        if keys_set or keys_deleted:
            kept = self.context | _object(keys_set)
            for key in _object(keys_deleted):
                kept.pop(key, None)
            self.context = kept
            self.versions.append((sequence, kept))

    def at(self, sequence: int) -> dict[str, Any]:
        """The context at a sequence."""
        return next(context for at, context in reversed(self.versions) if at <= sequence)


def _object(text: str) -> Any:
    return json.loads(text) if text else {}


def values_of(saga: Saga) -> Values:
    """The values of a saga at its end."""
    values, answered = Values(), set[str]()
    for sequence, placed in enumerate(saga.accepted, 1):
        fact = placed.event.fact
        take = _RULES.get(type(fact))
        request = getattr(fact, "request_id", "")
        if take is None or (request and request in answered):
            continue
        answered.add(request)
        take(values, fact, sequence)
    return values


def _started(values: Values, fact: e.SagaStarted, sequence: int) -> None:
    values.start, values.overrides = _object(fact.context), _object(fact.overrides)
    context = dict(values.start)
    values.graph = tuple(node["name"] for node in json.loads(fact.graph))
    verdicts = {step: verdict for step, verdict, _ in _object(fact.plan)}
    for effect in _object(fact.standing):
        verdict = verdicts[effect["step"]]
        if verdict in ("reuse", "undo_first"):
            told = effect.get("result", ""), effect.get("reads", "")
            values.done[effect["step"]] = told
            keys = effect.get("keys_set", ""), effect.get("keys_deleted", "")
            values.inherited[effect["step"]] = keys
        if verdict == "reuse":
            context |= _object(effect.get("keys_set", ""))
            for key in _object(effect.get("keys_deleted", "")):
                context.pop(key, None)
    values.context = context | values.overrides
    values.versions.append((sequence, values.context))


def _claimed(values: Values, fact: e.SagaClaimed | e.RecoveryDecided, sequence: int) -> None:
    values.change(sequence, fact.keys_set)


def _completed(values: Values, fact: e.StepCompleted, sequence: int) -> None:
    values.done[fact.step] = fact.result, fact.reads
    values.inherited.pop(fact.step, None)
    values.change(sequence, fact.keys_set, fact.keys_deleted)


def _resolved(values: Values, fact: e.OutcomeResolved, sequence: int) -> None:
    if fact.happened:
        values.done[fact.step] = fact.result, ""
        values.change(sequence, fact.keys_set)


def _waiting(values: Values, fact: e.StepWaiting, _: int) -> None:
    values.taken.pop(fact.step, None)
    values.awaited[fact.step] = fact.signal


def _step_started(values: Values, fact: e.StepStarted, _: int) -> None:
    values.done.pop(fact.step, None)
    signal = values.awaited.pop(fact.step, "")
    if signal and values.signals.get(signal):
        values.taken[fact.step] = values.signals[signal].pop(0)
    values.payloads[fact.step, fact.attempt] = values.taken.get(fact.step)


def _step_failed(values: Values, fact: e.StepFailed, _: int) -> None:
    values.awaited.pop(fact.step, None)


def _received(values: Values, fact: e.SignalReceived, _: int) -> None:
    values.signals.setdefault(fact.name, []).append(json.loads(fact.payload or "null"))


def _going_back(values: Values, fact: e.CompensationStarted, _: int) -> None:
    values.going_back = True


def _undo_started(values: Values, fact: e.StepCompensationStarted, sequence: int) -> None:
    if values.going_back:
        # An override may stand where the step had kept what its undoing needs.
        kept, _ = values.inherited.get(fact.step, ("", ""))
        values.undone_with[sequence] = values.context | _object(kept)
        return
    context = dict(values.start)  # in which it was made: overrides are meant for what comes
    for name in values.graph:
        keys_set, keys_deleted = values.inherited.get(name, ("", ""))
        context |= _object(keys_set)
        for key in _object(keys_deleted):
            context.pop(key, None)
    values.undone_with[sequence] = context


def _undone(values: Values, fact: e.StepCompensated, _: int) -> None:
    if not values.going_back:  # a branch does it again now
        values.inherited.pop(fact.step, None)


_RULES: Mapping[type[e.Fact], Any] = {
    e.SagaStarted: _started,
    e.SagaClaimed: _claimed,
    e.RecoveryDecided: _claimed,
    e.StepCompleted: _completed,
    e.OutcomeResolved: _resolved,
    e.StepWaiting: _waiting,
    e.StepStarted: _step_started,
    e.StepFailed: _step_failed,
    e.SignalReceived: _received,
    e.CompensationStarted: _going_back,
    e.StepCompensationStarted: _undo_started,
    e.StepCompensated: _undone,
}


# --- the laws -------------------------------------------------------------------------------------


def unlike_the_fold(values: Values, state: SagaState) -> Iterator[str]:
    """Where the fold has other values than the model."""
    for what, ours, theirs in (
        ("start", values.start, _loaded(state.start)),
        ("context", values.context, _loaded(state.context)),
        ("overrides", values.overrides, _loaded(state.overrides)),
        (
            "signals",
            {name: payloads for name, payloads in values.signals.items() if payloads},
            {name: [json.loads(text) for text in texts] for name, texts in state.signals.items()},
        ),
    ):
        if ours != theirs:
            yield f"{what} {theirs}, the model: {ours}"
    for name, step in state.steps.items():
        if step.status in ("completed", "stale"):
            told = values.done.get(name)
            if told != (step.result, step.reads):
                yield f"{name} with {step.result} and {step.reads}, the model: {told}"


def _loaded(texts: Mapping[str, str]) -> dict[str, Any]:
    return {key: json.loads(text) for key, text in texts.items()}


Whole = Callable[[Any], Any]
"""Gives a value, from the blob store if that is where it is kept."""


def unlike_what_was_seen(
    log: Log, values: Mapping[str, Values], executions: list[Execution], whole: Whole
) -> Iterator[str]:
    """Steps that saw another context, or another signal, than the log has for them."""

    def of_whole(context: Mapping[str, Any]) -> dict[str, Any]:
        return {key: whole(value) for key, value in context.items()}

    for run in executions:
        if run.saga_id not in values:
            continue
        what = "undo" if run.what == "undo" else "do"
        place = (what, run.saga_id, run.step, run.attempt)
        starts = [p for p in log.starts.get(place, ()) if p.event.writer == run.writer]
        # A branch may count its compensations of one step twice: what it inherited, and its own.
        sequence = max((p.event.sequence for p in starts if p.offset < run.seen), default=0)
        if not sequence:
            continue
        ours = values[run.saga_id]
        words = f"{run.saga_id}/{run.step} attempt {run.attempt}"
        if what == "undo":
            expected = of_whole(ours.undone_with[sequence])
            if run.context != expected:
                yield f"context: undo {words} saw {run.context}, the model: {expected}"
            continue
        # Not one of later: an outcome beside it may never come to stand.
        if run.context != of_whole(ours.at(sequence)):
            yield f"context: {words} saw {run.context}, the model: {ours.versions}"
        payload = whole(ours.payloads.get((run.step, run.attempt)))
        if run.signal != payload:
            yield f"signal: {words} was given {run.signal!r}, the model: {payload!r}"


def lost_overrides(
    log: Log, values: Mapping[str, Values], asked: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Branches that begin without a value that their client gave, or that the client of an earlier
    branch gave and no step of that has written since."""
    for saga in log.sagas.values():
        first = saga.accepted[0].event.fact
        if not saga.branched or not isinstance(first, e.SagaStarted):
            continue
        named = log.sagas.get(first.parent_saga_id)
        if named is None or saga.reason not in asked:
            continue
        kept = {
            key: value
            for key, value in values[named.saga_id].overrides.items()
            if key not in _written_by(named)
        }
        begun = values[saga.saga_id].versions[0][1]
        for key, value in (kept | dict(asked[saga.reason])).items():
            if begun.get(key) != value:
                yield f"override: {saga.saga_id} has {key} {begun.get(key)!r}, not {value!r}"


def _written_by(saga: Saga) -> set[str]:
    """Keys that its own steps have set or deleted."""
    keys = set[str]()
    for placed in saga.accepted:
        fact = placed.event.fact
        if isinstance(fact, e.StepCompleted | e.OutcomeResolved):
            keys |= set(_object(fact.keys_set))
            keys |= set(_object(getattr(fact, "keys_deleted", "")))
    return keys


def stale_effects(
    heads: list[Saga], values: Mapping[str, Values], executions: list[Execution], whole: Whole
) -> Iterator[str]:
    """Effects that stand in a saga that has completed, and were made with other values than it
    has."""
    read = {(run.saga_id, run.step): run.read for run in executions if run.ended == "returned"}
    for head in heads:
        context = values[head.saga_id].context
        for name, step in head.steps.items():
            if step.status != "completed" or not step.effects or step.child:
                continue
            for key, value in read.get((step.owner or head.saga_id, name), {}).items():
                ours = key not in head.steps  # or else the step of that name has left another
                if ours and value is not None and value != whole(context.get(key)):
                    yield (
                        f"stale effect: {name} of {step.owner or head.saga_id} stands in "
                        f"{head.saga_id}, made with {key} {value!r}; it is {context.get(key)!r}"
                    )
