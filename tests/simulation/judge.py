"""The judge: what the log, the ledger, the store and the clients of a run say of each other.

Each law that is broken is one line, `law: what`. The judge believes the log's records, the world's
ledger and what clients were told; of our own code it uses only what is to be judged.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.log.partitioning import partition_of
from tests.simulation.machine import Simulation
from tests.simulation.model import DEADLINE, ENDINGS, STOPPED, Saga, read_log
from tests.simulation.recorders import judge_recorded
from tests.simulation.store_judge import judge_stores
from tests.simulation.values import (
    lost_overrides,
    stale_effects,
    unlike_the_fold,
    unlike_what_was_seen,
    values_of,
)
from tests.simulation.world import Execution


class Judge:
    """Judges one run, on its loop, after it has healed."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.events = self.sagas = 0
        self.done = False

    async def __call__(self, simulation: Simulation) -> None:
        self.simulation, self.lost = simulation, simulation.losses
        self.log = read_log(simulation.broker)
        self.sagas = len(self.log.sagas)
        self.events = sum(len(saga.accepted) for saga in self.log.sagas.values())
        for check in (
            self._log,
            self._beliefs,
            self._outages,
            self._lost_writes,
            self._ledger,
            self._children,
            self._turns,
            self._released,
            self._standing,
            self._folds,
            self._values,
            self._engines,
            self._promises,
            simulation.losses.unnoticed,
        ):
            self.violations += check()
        self.violations += await judge_stores(simulation, self.states, self.accepted)
        self.done = True

    # --- the log ---

    def _log(self) -> Iterator[str]:
        yield from (words for words in self.log.wrong if not self._is_excused(words))
        yield from (f"wrong in the world: {wrong}" for wrong in self.simulation.world.wrong)
        yield from (f"stuck after healing: {words}" for words in self.simulation.stuck)
        gone = self.simulation.counts["retentions"]  # who was paused finds that it is too late
        for words in self.simulation.alarms:
            if not (gone and "is gone" in words) and not self.simulation.losses.is_cause_of(words):
                yield f"alarm without cause: {words}"

    def _outages(self) -> Iterator[str]:
        """An outage of ours fails no step; only a value that is gone does."""
        away = {"Unreachable", "StorageFailed"}
        if not self.simulation.counts["deleted blobs"]:
            away.add("BlobMissing")
        for saga in self.log.sagas.values():
            for placed in saga.accepted:
                fact = placed.event.fact
                if isinstance(fact, e.StepFailed | e.StepCompensationFailed):
                    if fact.error_type in away:
                        yield f"outage told as a failure: {saga.saga_id}/{fact.step}: {fact}"

    def _beliefs(self) -> Iterator[str]:
        yield from (f"engine's fold is not the log's: {what}" for what in self.simulation.beliefs)

    def _lost_writes(self) -> Iterator[str]:
        broker = self.simulation.broker
        for number, (index, base, entries) in enumerate(broker.acknowledged):
            records = broker.partitions[index].records
            stands = tuple(r.entry for r in records[base : base + len(entries)]) == entries
            if not stands and not any(
                loss.partition == index and loss.end < base + len(entries)
                for loss in broker.losses
                if number < loss.acknowledged
            ):
                yield f"lost write: what was acknowledged at {index}/{base} does not stand there"

    # --- the ledger ---

    def _ledger(self) -> Iterator[str]:
        seen: Counter[tuple[object, ...]] = Counter()
        for run in self.simulation.world.executions:
            what = "undo" if run.what == "undo" else "do"
            place = (what, run.saga_id, run.step, run.attempt)
            words = f"{what} {run.saga_id}/{run.step} attempt {run.attempt} in {run.process}"
            seen[*place, run.writer] += 1
            starts = [p for p in self.log.starts.get(place, ()) if p.event.writer == run.writer]
            if (*place, run.writer) in self.lost.starts:
                continue
            if not starts:
                yield f"effect without its event: {words} has no accepted start"
            elif all(start.offset >= run.seen for start in starts):
                yield f"act before confirm: {words} began before its start stood in the log"
            elif seen[*place, run.writer] > len(starts):
                yield f"effect twice: {words} ran {seen[*place, run.writer]} times"
            if what == "undo" and run.given is None and self._completed(run):
                yield f"compensation without the result: {words}"
        returned = {
            (run.saga_id, run.step, run.attempt): run.token
            for run in self.simulation.world.executions
            if run.what == "do" and run.token
        }
        for saga, placed in self.log.completions:
            fact = placed.event.fact
            assert isinstance(fact, e.StepCompleted)
            if saga.steps[fact.step].child:
                yield from self._handed_on(saga, fact)
            elif saga.steps[fact.step].effects and saga.saga_id not in self.lost.sagas:
                told = json.loads(fact.keys_set or "{}").get(fact.step)
                place_of = (saga.saga_id, fact.step, fact.attempt)
                if told is None or told != returned.get(place_of):
                    yield (
                        f"event without its effect: {saga.saga_id}/{fact.step} completed with "
                        f"{told}, the world has {returned.get(place_of)}"
                    )

    def _handed_on(self, saga: Saga, fact: e.StepCompleted) -> Iterator[str]:
        """The result of a step that is a saga is what that saga's steps did in the world."""
        told = self._whole(json.loads(fact.result))
        (started,) = (
            p.event.fact.child_saga_id
            for p in saga.accepted
            if isinstance(p.event.fact, e.ChildStarted)
            and (p.event.fact.step, p.event.fact.attempt) == (fact.step, fact.attempt)
        )
        if isinstance(told, list):
            yield from self._gathered(saga, fact.step, told, self.log.sagas[started])
            return
        for name, step in self.log.sagas[started].steps.items():
            effect = self.simulation.world.effects.get(f"{started}/{name}")
            if (
                effect is not None
                and not step.child
                and told.get(name, effect.token) != effect.token
            ):
                yield (
                    f"event without its effect: {saga.saga_id}/{fact.step} completed with "
                    f"{told}, {name} of its child made {effect.token}"
                )

    def _gathered(self, saga: Saga, step: str, told: list[Any], each: Saga) -> Iterator[str]:
        """The result of one for each item of a list is what each has ended with, in its order."""
        ended = {
            placed.event.fact.step: self._whole(json.loads(placed.event.fact.result))
            for placed in each.accepted
            if isinstance(placed.event.fact, e.StepCompleted)
        }
        expected = [ended[name] for name in each.steps if each.steps[name].child]
        if told != expected:
            yield (
                f"event without its effect: {saga.saga_id}/{step} completed with {told}, "
                f"its children with {expected}"
            )

    def _whole(self, value: Any) -> Any:
        """A value, from the blob store if it is kept there."""
        key = value.get("$blob", "").removeprefix("sha256:") if isinstance(value, dict) else ""
        return json.loads(self.simulation.bucket.kept[key]) if key else value

    def _children(self) -> Iterator[str]:
        """What a family's head has of its children is what these are."""
        if self.simulation.broker.losses:
            return
        for child_id, decided in self.log.children.items():
            child = self.log.sagas.get(child_id)
            if child is None or child.caller[1] != decided.step or child.branch:
                continue  # never begun; or replayed on its own since, which its parent ignores
            head = self.log.head(self.log.sagas[child.caller[0]])
            step = head.steps[decided.step]
            holds = step.child_id == child_id
            known = holds and (step.status in ("completed", "stale", "undo_failed") or step.let_be)
            again = any(
                self._allows(m, decided.step, child.caller[0]) for m in self._family(head.saga_id)
            )
            if child.status == "completed" and head.ended and not known and not again:
                yield f"orphan: {child_id} stands, and {head.saga_id} ({head.status}) has {step!r}"
            if holds and step.status == "completed" and head.ended and child.status != "completed":
                yield f"orphan: {child_id} is {child.status}, for {head.saga_id} it is done"

    def _turns(self) -> Iterator[str]:
        """Where one saga runs at a time, of two starts of a class that wait the first begins first,
        unless somebody wants something of the second."""
        if self.simulation.plan.in_flight != 1:
            return
        asked = (doing.args for doing in self.simulation.plan.doings if doing.what == "ask")
        wanted = {args[2] for args in asked if args[1] != "run"}
        begun: dict[tuple[object, ...], list[tuple[list[int], Saga]]] = {}
        for saga in self.log.sagas.values():
            first = saga.accepted[0].event
            places = self.log.places.get(getattr(first.fact, "cause", ""))
            if places:
                index = partition_of(saga.saga_id, self.log.partitions)
                line = begun.setdefault((index, saga.name, first.writer), [])
                line.append((places, saga))
        for line in begun.values():
            line.sort(key=lambda one: one[1].accepted[0].offset)
            for number, (places, saga) in enumerate(line):
                for earlier, other in line[number + 1 :]:
                    if max(earlier) < min(places) and saga.saga_id not in wanted:
                        yield f"out of turn: {saga.saga_id} began before {other.saga_id}"

    def _released(self) -> Iterator[str]:
        """Who has let a saga go has nothing of it running any more."""
        for run in self.simulation.world.executions:
            saga = self.log.sagas.get(run.saga_id)
            if run.saga_id in self.lost.sagas:
                continue
            for placed in saga.accepted if saga is not None and run.token else ():
                event = placed.event
                let_go = isinstance(event.fact, e.SagaReleased) and event.writer == run.writer
                if let_go and run.seen <= placed.offset < run.effect_seen:
                    yield f"at work after its release: {run.what} {run.saga_id}/{run.step}"

    def _completed(self, run: Execution) -> bool:
        """Whether the step whose compensation this is had completed, here or where its effect comes
        from."""
        owner = self.log.sagas.get(run.key.rpartition("/")[0])
        return owner is not None and any(
            isinstance(p.event.fact, e.StepCompleted) and p.event.fact.step == run.step
            for p in owner.accepted
        )

    # --- what stands at the end ---

    def _standing(self) -> Iterator[str]:
        stands: dict[tuple[str, str], list[str]] = {}
        for effect in self.simulation.world.effects.values():
            if not effect.undone and not self._lost_some(effect.saga_id):
                root = self._root(effect.saga_id)
                stands.setdefault((root, effect.step), []).append(effect.saga_id)
        for (root, name), owners in stands.items():
            head = self._head(root)
            step = head.steps[name]
            expected = step.owner or head.saga_id
            known = step.status in ("completed", "stale", "undo_failed") or step.let_be
            if owners.count(expected) > 1 and not self._family_is_allowed(name, expected):
                yield f"family ledger: {name} of {expected} stands {owners.count(expected)} times"
            others = [owner for owner in owners if owner != expected or not known]
            for owner in others:
                if not self._excused(owner, name, head):
                    yield (
                        f"family ledger: {name} of {owner} stands, and its head {head.saga_id} "
                        f"({head.status}) has it {step!r}"
                    )
        for saga in self.log.sagas.values():
            if saga.branch or not saga.ended or self._lost_some(saga.saga_id):
                continue
            for name, step in saga.steps.items():
                owner = step.owner or saga.saga_id
                root = self._root(saga.saga_id)
                if step.status == "completed" and step.effects and not step.child:
                    if owner not in stands.get((root, name), ()):
                        yield f"family ledger: {name} of {saga.saga_id} is done and does not stand"

    def _is_excused(self, words: str) -> bool:
        """Whether it is wrong because of a clock, or of what else was lost: a branch that was begun
        in the first append after its head was gone, a parent whose child was, or a saga whose
        cancel was."""
        if self.simulation.counts["clock jumps"] and words.endswith(DEADLINE):
            return True  # an event's time never falls, its writer's clock may have
        if not self.lost.sagas:
            return False
        saga_id = words.removeprefix("illegal transition: ").partition(" ")[0]
        if words.endswith(STOPPED) and saga_id in self.lost.sagas:
            return True
        children = any(lost.startswith(f"{saga_id}/") for lost in self.lost.sagas)
        return children or words.endswith("its head was not branched")

    def _lost_some(self, saga_id: str) -> bool:
        """Whether the log lost something of its family, with its tail."""
        if not self.lost.sagas:
            return False
        return saga_id not in self.log.sagas or any(
            member.saga_id in self.lost.sagas for member in self._family(saga_id)
        )

    def _excused(self, owner: str, name: str, head: Saga) -> bool:
        """An effect that nobody could know of: of unknown outcome, with no compensation for that,
        or of an attempt that was taken over before it did anything."""
        saga = self.log.sagas[owner]
        step = saga.steps[name]
        if (step.maybe or step.interrupted or step.status == "unknown") and not step.on_unknown:
            return True
        if head.steps[name].maybe:
            return True
        if self._family_is_allowed(name, owner):
            return True
        return self._came_late(owner, name)

    def _family_is_allowed(self, name: str, owner: str) -> bool:
        """Whether a person allowed a step to happen again."""
        return any(self._allows(member, name, owner) for member in self._family(owner))

    def _allows(self, branch: Saga, name: str, owner: str) -> bool:
        """Whether the client whose replay this is has named the step, and it was done anew: what a
        plan says of itself allows nothing."""
        named = self.simulation.allowed.get(branch.reason, ())
        return name in named and (name, owner) in branch.done_anew

    def _family(self, saga_id: str) -> Iterator[Saga]:
        member = self.log.sagas.get(self._root(saga_id))
        while member is not None:
            yield member
            member = self.log.sagas.get(member.branch)

    def _came_late(self, saga_id: str, name: str) -> bool:
        """Whether the effect was made by a process that had lost the saga by then."""
        saga = self.log.sagas[saga_id]
        for run in self.simulation.world.executions:
            if (run.what, run.saga_id, run.step) == ("do", saga_id, name) and run.token:
                if not run.again:
                    claims = (
                        placed.offset
                        for placed in saga.accepted
                        if placed.event.epoch > self._epoch_of(run.writer, saga)
                    )
                    return any(offset < run.effect_seen for offset in claims)
        return False

    def _epoch_of(self, writer: bytes, saga: Saga) -> int:
        return max((p.event.epoch for p in saga.accepted if p.event.writer == writer), default=-1)

    def _root(self, saga_id: str) -> str:
        while (parent := self.log.sagas[saga_id].parent) and parent in self.log.sagas:
            saga_id = parent
        return saga_id

    def _head(self, saga_id: str) -> Saga:
        while (saga := self.log.sagas[saga_id]).branch in self.log.sagas:
            saga_id = saga.branch
        return saga

    # --- our own folds ---

    def _folds(self) -> Iterator[str]:
        self.states: dict[str, SagaState] = {}
        self.accepted: dict[str, list[tuple[int, e.Event]]] = {}
        for partition in self.simulation.broker.partitions:
            for record in partition.records:
                event = record.entry
                if not isinstance(event, e.Event):
                    continue
                state = self.states.setdefault(event.saga_id, SagaState())
                before = (state.writer, state.epoch)
                if fold_into(state, event) is Verdict.ACCEPTED:
                    self.accepted.setdefault(event.saga_id, []).append((record.offset, event))
                    if state.epoch == before[1] and state.sequence > 1 and not state.recorded:
                        if event.writer != before[0]:
                            yield f"two writers in an epoch: {event.saga_id} #{state.sequence}"
        for saga_id, state in self.states.items():
            saga = self.log.sagas.get(saga_id)
            if saga is None:
                if state.sequence and not state.recorded:
                    yield f"fold: {saga_id} exists, by the model it does not"
                continue
            told = _as_model(state)
            if told != _told(saga):
                yield f"fold is not the model: {saga_id}: {told}, the model: {_told(saga)}"

        yield from judge_recorded(self.simulation, self.accepted)
        for imported in self.simulation.imports:
            yield from imported.judge(self.accepted)

    def _values(self) -> Iterator[str]:
        """Contexts, results, reads and signals: in the fold, and as the steps saw them."""
        values = {saga_id: values_of(saga) for saga_id, saga in self.log.sagas.items()}
        for saga_id, ours in values.items():
            for what in unlike_the_fold(ours, self.states[saga_id]):
                yield f"fold is not the model: {saga_id}: {what}"
        yield from lost_overrides(self.log, values, self.simulation.overridden)
        if self.simulation.broker.losses:
            return  # a step may have seen what is lost
        executions = self.simulation.world.executions
        yield from unlike_what_was_seen(self.log, values, executions, self._whole)
        heads = [s for s in self.log.sagas.values() if s.status == "completed" and not s.branch]
        yield from stale_effects(heads, values, executions, self._whole)

    def _engines(self) -> Iterator[str]:
        for node in self.simulation.nodes:
            if node.engine is None or not node.process.alive:
                continue
            for partition in node.engine.host.partitions.values():
                for saga_id, cell in partition.cells.items():
                    if cell.ours and not cell.lost and cell.state != self.states.get(saga_id):
                        yield (
                            f"engine's fold is not the whole fold: {saga_id} in "
                            f"{node.process.name}: {cell.state.sequence} {cell.state.status}"
                        )

    # --- what clients were told ---

    def _promises(self) -> Iterator[str]:
        for promise in self.simulation.promises:
            saga = self.log.sagas.get(promise.saga_id)
            if self._lost_some(promise.saga_id):
                continue
            if saga is None:
                if promise.kind == "started" and self._was_refused(promise.saga_id):
                    continue  # it stood in line, and was refused in the end
                yield f"promise: {promise.kind} {promise.saga_id}, which does not exist"
            elif promise.kind == "nothing ran":
                if any(
                    isinstance(p.event.fact, e.ReplayBranched)
                    and p.event.fact.reason == promise.detail
                    for member in self._family(saga.saga_id)
                    for p in member.accepted
                ):
                    yield f"promise: a replay of {saga.saga_id} was refused, and ran"
            elif promise.kind == "undone":
                if not saga.undone and saga.status != "failed":
                    yield f"promise: {saga.saga_id} was undone, and is {saga.status}"
            elif promise.kind in ("signalled", "asked"):
                if self.log.requests.get(promise.detail, 0) < 1:
                    yield f"promise: request {promise.detail} of {saga.saga_id} has no fact"
            elif promise.kind == "cancelled":
                if not any(
                    isinstance(p.event.fact, e.CompensationStarted | e.SagaCancelled)
                    for p in saga.accepted
                ):
                    yield f"promise: {saga.saga_id} was cancelled, and never goes back"
            elif promise.kind == "result":
                told = str(promise.detail.status)
                ends = set(self._ends(saga))
                if told not in ends:
                    yield f"promise: {saga.saga_id} ended {told}, the log says {sorted(ends)}"
        for request, count in self.log.requests.items():
            if count > 1:
                yield f"asked once: request {request} led to {count} facts"

    def _ends(self, saga: Saga) -> Iterator[str]:
        """Every status at which who waited may have been told of it."""
        for placed in saga.accepted:
            fact = placed.event.fact
            if type(fact) in ENDINGS:
                yield ENDINGS[type(fact)]
            elif isinstance(fact, e.RecoveryDecided):
                yield "forward_recovery"
            elif isinstance(fact, e.StepOutcomeUnknown) or self._is_stuck(fact):
                yield "executing"
                yield "compensating"  # a saga may go back with a step whose outcome nobody knows

    def _is_stuck(self, fact: e.Fact) -> bool:
        """Whether it starts a child that waits for a person at some time."""
        child = self.log.sagas.get(fact.child_saga_id) if type(fact) is e.ChildStarted else None
        return child is not None and not {"forward_recovery", "executing"}.isdisjoint(
            self._ends(child)
        )

    def _was_refused(self, saga_id: str) -> bool:
        starts = [r for r in self.log.asked.values() if isinstance(r, e.StartRequested)]
        return any(r.saga_id == saga_id and r.request_id in self.log.refused for r in starts)


_STEPS = {
    "executing": "started",
    "outcome_unknown": "unknown",
    "compensating": "undoing",
    "compensated": "undone",
    "compensation_failed": "undo_failed",
}


def _as_model(state: SagaState) -> tuple[int, str, dict[str, str]]:
    steps = {name: _STEPS.get(step.status, step.status) for name, step in state.steps.items()}
    return state.sequence, state.status, {n: s for n, s in sorted(steps.items()) if s != "pending"}


def _told(saga: Saga) -> tuple[int, str, dict[str, str]]:
    steps = {name: step.status for name, step in sorted(saga.steps.items())}
    return saga.sequence, saga.status, {n: s for n, s in steps.items() if s != "pending"}
