"""The ids of children: sagas that a step of another saga, their parent, starts.

`<parent>/<step>`, then `<parent>/<step>~2`, `~3` …, with `%`, `/` and `~` of the step's name
escaped. What stands behind the last `/` is the step and the number, so that no two steps of any
sagas share an id. Source: docs/decisions/0045.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from msgspec import Struct


class Caller(Struct, frozen=True, gc=False):
    """What started a child: a step of a saga, and the replay that this saga is part of."""

    saga_id: str = ""  # empty: nobody's child
    step: str = ""
    replay_id: str = ""


NOBODY = Caller()

MAX_BYTES = 512
"""A longer id has a SHA-256 for its part before the `~`: children have children."""

_ESCAPED = str.maketrans({"%": "%25", "/": "%2F", "~": "%7E"})


def child_id(parent: str, step: str, number: int = 1) -> str:
    """The `number`-th id that the step's children can have."""
    name = f"{parent}/{step.translate(_ESCAPED)}"
    if len(name.encode(errors="surrogatepass")) > MAX_BYTES:
        name = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return name if number == 1 else f"{name}~{number}"


def next_child_id(parent: str, step: str, used: str, fits: Callable[[str], bool]) -> str:
    """The first of the step's ids behind `used` (empty: none was) that fits, which is to say that
    its saga lives in the parent's partition."""
    number = 1
    if used:
        _, marked, last = used.rpartition("~")
        number = 1 + (int(last) if marked and child_id(parent, step) != used else 1)
    while not fits(found := child_id(parent, step, number)):
        number += 1
    return found
