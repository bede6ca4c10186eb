"""How large a fact may be, and about how large one is."""

from __future__ import annotations

from sagaz_es.core import events as e
from sagaz_es.errors import MemoryFootprintError

MAX_FACT_BYTES = 900_000


def check_size(what: str, size: int, why: str = "") -> None:
    """Raises MemoryFootprintError for what no record holds; `why` it may be larger than thought."""
    if size > MAX_FACT_BYTES:
        raise MemoryFootprintError(
            what,
            size,
            MAX_FACT_BYTES,
            f"{what} takes {size} bytes in the log{why}, more than the limit of {MAX_FACT_BYTES}; "
            "give the engine a store, which keeps large values beside the log, or keep them "
            "elsewhere and their address here",
        )


def check_completed(fact: e.StepCompleted) -> None:
    """As `check_size`, of what a step left behind."""
    twice = ""
    if len(fact.result) > 1000 and fact.keys_set:
        twice = " (a mapping that a step returns is kept twice: as its result, and in the context)"
    check_size(f"what step {fact.step!r} set", fact_size(fact), twice)


def fact_size(fact: e.Fact) -> int:
    """About how many bytes a fact's long texts take."""
    if type(fact) is e.StepStarted:
        return 0
    if type(fact) is e.StepCompleted:
        return len(fact.result) + len(fact.keys_set) + len(fact.reads)
    if type(fact) is e.ChildStarted:
        return len(fact.context) + len(fact.reads)
    if type(fact) is e.SagaStarted:
        return len(fact.context) + len(fact.graph) + len(fact.standing)
    if type(fact) is e.StepFailed:
        return len(fact.traceback) + len(fact.error_message)
    return 1000
