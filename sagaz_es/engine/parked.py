"""Sagas that wait without a task: for a time, a signal, a child, or for a person to decide."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sagaz_es.core.state import SagaState
from sagaz_es.core.stuck import waits_for_person
from sagaz_es.engine.alarms import Alarms

if TYPE_CHECKING:
    from sagaz_es.engine.host import Host
    from sagaz_es.engine.runner import SagaRunner

logger = logging.getLogger("sagaz_es.engine")


class Parked:
    """The sagas of a host that nothing runs of until they are woken."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.alarms = Alarms(host.clock, host.awake)
        # Sagas that only a person can carry on, and what they wait for; empty: for such a child.
        self._stuck: dict[str, str] = {}

    def add(self, runner: SagaRunner) -> None:
        """Nothing of the saga runs until it is woken. Where only a person can do that, who waits
        for the saga is told how it stands."""
        state, outcomes = runner.state, self._host.outcomes
        if runner.wake_at:
            self.alarms.set(runner.wake_at, state.saga_id)
        needs = needs_nobody_else(state) or self._has_stuck_child(state)
        outcome = outcomes.take(state.saga_id)
        if outcome is not None and not outcome.done():
            if needs:
                self._host.spawn(outcomes.tell(outcome, state.copy(), runner.error), "parked")
            else:
                outcomes.expect(state.saga_id, outcome)
        if needs:
            self._stuck[state.saga_id] = waits_for_person(state)
            warn_of_person(state, runner.in_vain)
            if state.caller_saga_id:
                self._host.awake(state.caller_saga_id)  # who waits for its parent is told, too
        runner.cell.put_aside()

    def woken(self, saga_id: str) -> None:
        """It runs, and will say anew whether it waits for a person."""
        if self._stuck:
            self._stuck.pop(saga_id, None)

    def waiting_for_person(self) -> int:
        """How many sagas in the partitions served here only a person can carry on."""
        served = self._host.partitions.values()
        return sum(
            1
            for saga_id, why in self._stuck.items()
            if why and any(saga_id in partition.cells for partition in served)
        )

    def _has_stuck_child(self, state: SagaState) -> bool:
        """Whether it waits for a child that only a person can carry on."""
        return bool(self._stuck) and any(
            step.child_start and step.child in self._stuck for step in state.steps.values()
        )


def warn_of_person(state: SagaState, in_vain: Mapping[str, str] | None = None) -> None:
    """Log what a person has to decide or repair about a saga, if anything. `in_vain`: why the
    `resolve` of a step could not say what became of it."""
    why = waits_for_person(state)
    if why and in_vain:
        asked = [said for step, said in in_vain.items() if state.step(step).unresolved]
        why = ": ".join(filter(None, (why, "; ".join(asked))))
    if why:
        about = {"saga_id": state.saga_id}
        logger.warning(
            "saga %s (%s) waits for a person: %s",
            state.saga_id,
            state.saga_name,
            why,
            extra=about,
        )


def is_asked(host: Host, state: SagaState) -> bool:
    """Whether the `resolve` of a step of unknown outcome has yet to answer, wherever the saga
    runs. Of a class that this engine does not have nobody can tell."""
    if state.ended or state.paused or state.saga_name not in host.registry:
        return False
    resolvable = host.registry.by_name(state.saga_name).rules.resolvable
    return any(
        step.status == "outcome_unknown" and not step.unresolved and name in resolvable
        for name, step in state.steps.items()
    )


def needs_nobody_else(state: SagaState) -> bool:
    """It has ended, or only a person can carry it on."""
    if state.ended or state.status == "forward_recovery":
        return True
    steps = state.steps.values()
    return any(step.status == "outcome_unknown" for step in steps) and not any(
        step.status in ("executing", "compensating") for step in steps
    )
