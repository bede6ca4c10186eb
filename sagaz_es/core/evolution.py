"""Whether changed code can carry on a saga that has begun.

The recorded graph rules. A class may declare that it goes on with sagas of other definitions; even
then nothing may change about what has begun, because its facts and effects rest on it.
"""

from __future__ import annotations

from collections.abc import Iterable

from sagaz_es.core.graph import Graph
from sagaz_es.core.state import PENDING, SagaState


def begun_steps(state: SagaState) -> tuple[str, ...]:
    """Steps that something stands recorded of."""
    return tuple(name for name, step in state.steps.items() if step != PENDING)


def obstacles(begun: Iterable[str], recorded: Graph, code: Graph) -> tuple[str, ...]:
    """Why `code` cannot carry on a saga whose steps `begun` ran by `recorded`; empty: it can.

    Free to change: steps that have not begun (new, gone, with other dependencies), and that a step
    has a compensation now which it had not before.
    """
    told: list[str] = []
    for name in begun:
        was, now = recorded.by_name.get(name), code.by_name.get(name)
        if was is None:
            continue
        if now is None:
            told.append(f"step {name!r} has begun and is missing")
            continue
        if set(now.depends_on) != set(was.depends_on):
            told.append(
                f"step {name!r} has begun and depends on {sorted(now.depends_on)} "
                f"instead of {sorted(was.depends_on)}"
            )
        for field in ("pivot", "at_most_once", "effects", "compensable", "on_unknown", "child"):
            before, after = getattr(was, field), getattr(now, field)
            gained = after and field in ("compensable", "on_unknown")
            if before != after and not gained:
                told.append(f"step {name!r} has begun and has {field}={after} instead of {before}")
    return tuple(told)
