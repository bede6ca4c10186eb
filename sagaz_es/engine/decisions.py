"""What reaches a running saga from outside: signals, pauses, and what a person decides (how it goes
forward behind a pivot, what became of an at-most-once step). Each becomes a fact of its own."""

from __future__ import annotations

from sagaz_es.codec.values import from_text
from sagaz_es.core import events as e
from sagaz_es.core.state import SagaState
from sagaz_es.engine.attempts import not_happened
from sagaz_es.engine.definition import RecoveryAction
from sagaz_es.engine.host import Host
from sagaz_es.engine.lookup import current_state
from sagaz_es.errors import (
    ConfigurationError,
    HandingOver,
    SagaEnded,
    SagaNotFound,
    StepNotFound,
)

Decision = (
    e.SignalSent | e.PauseRequested | e.ResumeRequested | e.RecoveryRequested | e.OutcomeReported
)


async def decide(host: Host, request: Decision) -> None:
    """Carry a decision out here, or ask the engine that runs the saga. Returns once it stands.

    Raises SagaNotFound, StepNotFound (with the steps that wait), ConfigurationError.
    """
    state = await current_state(host.log, host.store, request.saga_id)
    if state is None:
        raise SagaNotFound(request.saga_id, host.log.name)
    if state.ended:
        raise SagaEnded(request.saga_id, state.status, _ASKED[type(request)])
    fact = fact_of(state, request)
    if host.awake(request.saga_id) is not None:
        await answer(host, request)
        return

    def answers(found: e.Fact) -> bool:
        if type(found) is not type(fact):
            return False
        if hasattr(found, "request_id"):
            return bool(found.request_id == request.request_id)
        return getattr(found, "step", "") == getattr(fact, "step", "")

    await host.ask(request, answers)


_ASKED = {
    e.SignalSent: "signalled",
    e.PauseRequested: "paused",
    e.ResumeRequested: "resumed",
    e.RecoveryRequested: "decided about",
    e.OutcomeReported: "decided about",
}


async def answer(host: Host, request: Decision) -> None:
    """Carry a decision out on a saga that runs here."""
    runner = host.awake(request.saga_id)
    if runner is None:
        state = await current_state(host.log, host.store, request.saga_id)
        if state is None:
            raise SagaNotFound(request.saga_id, host.log.name)
        if state.ended:
            raise SagaEnded(request.saga_id, state.status, _ASKED[type(request)])
        raise HandingOver(request.saga_id)
    await runner.post(fact_of(runner.state, request))


def fact_of(state: SagaState, request: Decision) -> e.Fact:
    """The fact that a decision becomes. Raises StepNotFound, ConfigurationError."""
    if isinstance(request, e.SignalSent):
        return e.SignalReceived(request.name, request.payload, request.request_id, request.actor)
    if isinstance(request, e.PauseRequested):
        return e.SagaPaused(request.reason, request.actor, request.request_id)
    if isinstance(request, e.ResumeRequested):
        return e.SagaResumed(request.reason, request.actor, request.request_id)
    step = state.step(request.step)
    if isinstance(request, e.RecoveryRequested):
        if request.action not in set(RecoveryAction) - {RecoveryAction.MANUAL_INTERVENTION}:
            raise ConfigurationError(
                f"action: one of retry, retry_with_alternate, skip, compensate_pivot, not "
                f"{request.action!r}"
            )
        if state.status != "forward_recovery" or step.status != "failed":
            waiting = tuple(n for n, s in state.steps.items() if s.status == "failed")
            waiting = waiting if state.status == "forward_recovery" else ()
            raise StepNotFound(state.saga_id, request.step, waiting, "does not wait about step")
        return e.RecoveryDecided(
            request.step, request.action, request.keys_set, request.actor, request.reason
        )
    if step.status != "outcome_unknown":
        unknown = tuple(n for n, s in state.steps.items() if s.status == "outcome_unknown")
        raise StepNotFound(state.saga_id, request.step, unknown, "has no unknown outcome of step")
    if request.happened:
        # A mapping is merged into the context, as the step's own result would have been.
        merged = isinstance(from_text(request.result or "null"), dict)
        keys_set = request.result if merged else ""
        return e.StepCompleted(request.step, step.attempt, request.result, keys_set)
    return not_happened(request.step, step.attempt)
