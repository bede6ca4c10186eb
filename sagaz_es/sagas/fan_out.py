"""One child for each item of a list: the saga between a step and them.

The step starts one child as any child step does. That child is a saga whose steps `1` … `n` are
child steps beside each other, one for each item, and whose last step gathers what they ended with.
It is made from its name alone, `<saga>*<n>`, so that any process that has the saga's class can
carry it on. Crashes, going back, replays and ids are those of children.
Source: docs/decisions/0047.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sagaz_es.core.texts import join_object
from sagaz_es.errors import DefinitionError, UnstorableValue
from sagaz_es.sagas.inputs import context_texts
from sagaz_es.sagas.saga import Saga

EACH = "*"
RESULTS = "results"
MAX_CHILDREN = 1000
"""Of one step: the recorded graph, and the work of each decision, grow with them."""
_DIGITS = len(str(MAX_CHILDREN))


def child_name(child: str, start: Mapping[str, str]) -> str:
    """The name of the saga that a step starts; `child` is what its recorded graph says."""
    return f"{child}{len(start)}" if child.endswith(EACH) else child


def one_of(name: str) -> tuple[str, int] | None:
    """Of which saga, and how many, a saga of this name starts; None: it is no such saga."""
    child, star, count = name.rpartition(EACH)
    if not (child and star and count.isascii() and count.isdecimal()) or len(count) > _DIGITS:
        return None  # any text may stand there, also a number that is too long for `int`
    number = int(count)
    return (child, number) if number <= MAX_CHILDREN and str(number) == count else None


def starts_of(step: str, value: Any) -> dict[str, str]:
    """What the children start with, as the context of the saga between: number -> JSON object.

    Raises UnstorableValue, DefinitionError.
    """
    if not isinstance(value, list | tuple):
        found = type(value).__name__
        raise UnstorableValue(f"step {step!r}", found, "for_each takes a list, an item a child")
    if len(value) > MAX_CHILDREN:
        raise DefinitionError(
            f"step {step!r} starts {len(value)} children, more than {MAX_CHILDREN}: let each of "
            "fewer children start some of its own"
        )
    return {str(n): join_object(context_texts(item)) for n, item in enumerate(value, 1)}


def fan_out(child: str, count: int) -> Saga:
    """The saga that starts `count` sagas of this name."""
    made = Saga(f"{child}{EACH}{count}")
    numbers = [str(number) for number in range(1, count + 1)]
    for number in numbers:
        made.add_step(number, _start(number), child=child, depends_on=[], pivot=False)
    made.add_step(RESULTS, _gather(numbers), depends_on=numbers, effects=False)
    return made


def _start(number: str) -> Callable[[Any], Awaitable[Any]]:
    async def start(ctx: Any) -> Any:
        return ctx[number]

    return start


def _gather(numbers: list[str]) -> Callable[[Any], Awaitable[Any]]:
    async def gather(ctx: Any) -> Any:
        return {RESULTS: [ctx.result_of(number) for number in numbers]}

    return gather
