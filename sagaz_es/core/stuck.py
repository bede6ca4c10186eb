"""Sagas that only a person can carry on: what each waits for."""

from __future__ import annotations

from sagaz_es.core.state import SagaState


def stuck_steps(state: SagaState) -> tuple[str, ...]:
    """Steps whose compensation failed for good and was not let be."""
    return tuple(
        name
        for name, step in state.steps.items()
        if step.status == "compensation_failed" and not step.undo_skipped
    )


def waits_for_person(state: SagaState) -> str:
    """What a person has to decide or repair, as a sentence; empty: nothing, or not yet.

    A step of unknown outcome counts once nothing else of the saga runs; whether its `resolve` has
    yet to answer, the state cannot say. What belongs to a branch now is the branch's affair.
    """
    if state.branch or state.recorded:
        return ""
    if state.status == "forward_recovery":
        failed = [name for name, step in state.steps.items() if step.status == "failed"]
        return f"how to go on from {_steps(failed)} (saga recover)"
    if state.ended:
        stuck = stuck_steps(state) if state.status == "failed" else ()
        return f"the compensation of {_steps(stuck)} failed (compensations retry)" if stuck else ""
    statuses = [step.status for step in state.steps.values()]
    if "executing" in statuses or "compensating" in statuses:
        return ""
    unknown = [name for name, step in state.steps.items() if step.status == "outcome_unknown"]
    return f"the outcome of {_steps(unknown)} is unknown (saga resolve)" if unknown else ""


def _steps(names: list[str] | tuple[str, ...]) -> str:
    listed = ", ".join(map(repr, names))
    return f"step {listed}" if len(names) == 1 else f"steps {listed}"
