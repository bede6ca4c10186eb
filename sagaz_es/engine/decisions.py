"""What a person decides about a saga that waits: how it goes forward behind a pivot, or what became
of an at-most-once step. Each decision is a fact, with its actor and reason."""

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
    RequestRefusedError,
    SagaNotFound,
    StepNotFound,
)

Decision = e.RecoveryRequested | e.OutcomeReported


async def decide(host: Host, request: Decision) -> None:
    """Carry a decision out here, or ask the engine that runs the saga. Returns once it stands.

    Raises SagaNotFound, StepNotFound (with the steps that wait), ConfigurationError.
    """
    state = await current_state(host.log, host.store, request.saga_id)
    if state is None:
        raise SagaNotFound(request.saga_id, host.log.name)
    fact = fact_of(state, request)
    if host.runner_of(request.saga_id) is not None:
        await answer(host, request)
        return
    await host.ask(
        request,
        lambda found: type(found) is type(fact) and getattr(found, "step", "") == request.step,
    )


async def answer(host: Host, request: Decision) -> None:
    """Carry a decision out on a saga that runs here."""
    runner = host.runner_of(request.saga_id)
    if runner is None:
        state = await current_state(host.log, host.store, request.saga_id)
        if state is None or state.ended:
            raise RequestRefusedError(f"saga {request.saga_id!r} does not run any more")
        raise HandingOver(request.saga_id)
    await runner.decide_by_hand(fact_of(runner.state, request))


def fact_of(state: SagaState, request: Decision) -> e.Fact:
    """The fact that a decision becomes. Raises StepNotFound, ConfigurationError."""
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
