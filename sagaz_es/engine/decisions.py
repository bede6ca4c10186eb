"""What reaches a running saga from outside: signals, pauses, and what a person decides (how it goes
forward behind a pivot, what became of an at-most-once step). Each becomes a fact of its own."""

from __future__ import annotations

import asyncio
import logging

from sagaz_es.codec.values import from_text
from sagaz_es.core import events as e
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import split_object
from sagaz_es.engine.asking import ask
from sagaz_es.engine.host import Host
from sagaz_es.errors import (
    ConfigurationError,
    HandingOver,
    LostOwnership,
    SagaEnded,
    SagaIsRecorded,
    SagaNotFound,
    StepNotFound,
)
from sagaz_es.reading.lookup import current_state, waiting_start
from sagaz_es.sagas.definition import Definition, RecoveryAction

logger = logging.getLogger("sagaz_es.engine")

Decision = (
    e.SignalSent | e.PauseRequested | e.ResumeRequested | e.RecoveryRequested | e.OutcomeReported
)


ASK_AGAIN_S = 0.05
"""How soon one asks again about a saga that has just moved."""


async def decide(host: Host, request: Decision) -> None:
    """Carry a decision out here, or ask the engine that runs the saga. Returns once it stands; a
    request that was answered before changes nothing again.

    Raises SagaNotFound, StepNotFound (with the steps that wait), ConfigurationError;
    DefinitionChanged, MigrationFailed, where the saga is this engine's and its code does not fit.
    """
    while host.awake(request.saga_id) is not None:
        try:
            await answer(host, request)
            return
        except LostOwnership:
            host.check_open(request.saga_id)  # it goes on elsewhere: ask there, it counts once
            await asyncio.sleep(ASK_AGAIN_S)

    async def stands() -> bool:
        """Whether it was answered before. Raises what it would be refused with."""
        await host.check_fits(request.saga_id)  # refused now, it is not in the log for later
        state = await current_state(host.log, host.store, request.saga_id)
        if state is None:
            if await waiting_start(host.log, request.saga_id, host.config.group) is not None:
                return False  # it will begin for this
            raise SagaNotFound(request.saga_id, host.log.name)
        if request.request_id in state.answered:
            return True
        if state.ended:
            raise SagaEnded(request.saga_id, state.status, _ASKED[type(request)])
        if state.recorded:
            raise SagaIsRecorded(request.saga_id, _ASKED[type(request)])
        fact_of(state, request)
        return False

    def answers(fact: e.Fact) -> bool:
        return e.request_of(fact) == request.request_id

    await ask(host, request, answers, stands, confirmed=stands)


_ASKED = {
    e.SignalSent: "signalled",
    e.PauseRequested: "paused",
    e.ResumeRequested: "resumed",
    e.RecoveryRequested: "decided about",
    e.OutcomeReported: "decided about",
}


async def answer(host: Host, request: Decision) -> None:
    """Carry a decision out on a saga that runs here, unless that was done before."""
    runner = host.awake(request.saga_id)
    if runner is None:
        state = await current_state(host.log, host.store, request.saga_id)
        if state is None:
            raise SagaNotFound(request.saga_id, host.log.name)
        if request.request_id in state.answered:
            return
        if state.ended:
            raise SagaEnded(request.saga_id, state.status, _ASKED[type(request)])
        if state.recorded:
            raise SagaIsRecorded(request.saga_id, _ASKED[type(request)])
        raise HandingOver(request.saga_id)
    if isinstance(request, e.RecoveryRequested) and request.keys_set:
        changed = {**runner.state.context, **split_object(request.keys_set)}
        await host.check_context(runner.definition, changed, "after the override")
    await runner.post(request.request_id, lambda state: fact_of(state, request))
    if isinstance(request, e.SignalSent):
        _warn_of_unawaited(request, runner.definition)


def _warn_of_unawaited(signal: e.SignalSent, definition: Definition) -> None:
    """It is kept, as later code may wait for it; far more often its name is wrong."""
    awaited = sorted({wait.signal for wait in definition.rules.waits.values() if wait.signal})
    if signal.name not in awaited:
        logger.warning(
            "saga %s (%s) was sent a signal %r, and no step of its class waits for that; they wait "
            "for: %s",
            signal.saga_id,
            definition.name,
            signal.name,
            ", ".join(map(repr, awaited)) or "none",
            extra={"saga_id": signal.saga_id},
        )


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
            raise StepNotFound(
                state.saga_id, request.step, waiting, "does not wait about step", "it waits about"
            )
        return e.RecoveryDecided(
            request.step,
            request.action,
            request.keys_set,
            request.actor,
            request.reason,
            request.request_id,
        )
    if step.status != "outcome_unknown":
        unknown = tuple(n for n, s in state.steps.items() if s.status == "outcome_unknown")
        why = "has no unknown outcome of step"
        raise StepNotFound(state.saga_id, request.step, unknown, why, "unknown are")
    # A mapping is merged into the context, as the step's own result would have been.
    merged = request.happened and isinstance(from_text(request.result or "null"), dict)
    return e.OutcomeResolved(
        request.step,
        step.attempt,
        request.happened,
        request.result if request.happened else "",
        request.result if merged else "",
        request.actor,
        request.reason,
        request.request_id,
    )
