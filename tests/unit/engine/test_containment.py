"""A task that a step has made and that would end the process."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sagaz_es.engine.steps.calling import current_saga
from sagaz_es.engine.steps.containment import contain_exits

ENDINGS = [SystemExit(3), KeyboardInterrupt()]


def run(work: Callable[[], Coroutine[Any, Any, Any]], *, saga: str = "s-1") -> Any:
    """In a loop that contains exits, as the code of a saga."""

    async def main() -> Any:
        contain_exits(asyncio.get_running_loop())
        current_saga.set(saga)
        return await work()

    return asyncio.run(main())


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("caught", [False, True], ids=["at once", "while it is cancelled"])
def test_it_fails_and_who_awaits_it_is_told(ending: BaseException, caught: bool) -> None:
    async def ends() -> None:
        try:
            if caught:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ending from None
        raise ending

    async def work() -> BaseException | None:
        task = asyncio.create_task(ends(), name="mine")
        await asyncio.sleep(0)
        if caught:
            task.cancel()
        await asyncio.wait([task])
        assert task.get_name() == "mine"
        return task.exception()

    error = run(work)
    assert type(error) is RuntimeError
    assert type(ending).__name__ in str(error) and "saga 's-1'" in str(error)
    assert error.__cause__ is ending


def test_what_ends_otherwise_ends_as_it_does() -> None:
    async def gives(value: int) -> int:
        await asyncio.sleep(0)
        if not value:
            raise KeyError(value)
        return value

    async def work() -> Any:
        return await asyncio.gather(*(gives(n) for n in (0, 1, 2)), return_exceptions=True)

    zero, *others = run(work)
    assert (type(zero), others) == (KeyError, [1, 2])


def test_a_task_that_is_cancelled_before_its_first_turn_is_cancelled_without_a_warning() -> None:
    async def work() -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(work)


def test_a_task_that_is_no_sagas_ends_the_process_as_always() -> None:
    async def ends() -> None:
        raise SystemExit(3)

    async def work() -> None:
        await asyncio.create_task(ends())

    with pytest.raises(SystemExit):
        run(work, saga="")


def test_a_factory_of_somebody_elses_makes_the_task() -> None:
    made: list[str] = []

    def theirs(loop: Any, coro: Any, **options: Any) -> Any:
        made.append(coro.__qualname__)
        return asyncio.Task(coro, loop=loop, **options)

    async def work() -> None:
        await asyncio.create_task(asyncio.sleep(0))

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(theirs)
        contain_exits(asyncio.get_running_loop())
        current_saga.set("s-1")
        await work()

    asyncio.run(main())
    assert "sleep" in made
