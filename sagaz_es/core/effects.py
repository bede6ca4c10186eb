"""The table of effects: what stands in the world because of a saga's family.

Effects have one owner, the head of the family. The table is read off the head's state; a branch
inherits it in its first fact, with the recorded results, and goes on from there. Source: DESIGN §8.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from sagaz_es.core.state import SagaState, StepState


class Effect(Struct, frozen=True, gc=False, omit_defaults=True):
    """One effect that stands, or may stand. Texts are JSON, as in StepCompleted."""

    step: str
    owner: str  # the saga whose attempt made it
    result: str = ""
    keys_set: str = ""
    keys_deleted: str = ""
    reads: str = ""
    attempt: int = 1
    unknown: bool = False  # nobody knows whether it happened
    child: str = ""  # the saga whose effects it stands for


def standing(state: SagaState) -> tuple[Effect, ...]:
    """Every effect of this head that stands or may stand, in the order in which they were made."""
    return tuple(
        Effect(
            step=name,
            owner=step.owner or state.saga_id,
            result=step.result,
            keys_set=step.keys_set,
            keys_deleted=step.keys_deleted,
            reads=step.reads,
            attempt=step.attempt,
            unknown=_unknown(step),
            child=step.child,
        )
        for name, step in _standing(state)
    )


def standing_steps(state: SagaState) -> tuple[list[str], list[str]]:
    """Names of the steps whose effect stands, and of those whose effect may stand."""
    certain: list[str] = []
    maybe: list[str] = []
    for name, step in _standing(state):
        (maybe if _unknown(step) else certain).append(name)
    return certain, maybe


def _standing(state: SagaState) -> list[tuple[str, StepState]]:
    rows = [item for item in state.steps.items() if _stands(item[1])]
    rows.sort(key=lambda item: item[1].done_at)
    return rows


def _unknown(step: StepState) -> bool:
    if step.unknown or step.status in ("outcome_unknown", "executing"):
        return True
    return step.status == "waiting" and bool(step.child_start)  # its child may have done anything


def _stands(step: StepState) -> bool:
    if step.undo_skipped:
        return True  # a person let it be: it was not undone
    if step.status in ("completed", "stale", "compensating", "compensation_failed"):
        return True
    return step.status != "compensated" and step.status != "skipped" and _unknown(step)


_DECODER = msgspec.json.Decoder(tuple[Effect, ...])


def dump_effects(effects: tuple[Effect, ...]) -> str:
    """JSON array; an empty table is an empty text."""
    return msgspec.json.encode(effects).decode() if effects else ""


def load_effects(text: str) -> tuple[Effect, ...]:
    """The reverse of `dump_effects`."""
    return _DECODER.decode(text) if text else ()
