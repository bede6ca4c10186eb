"""Several processes on one event loop: each can be killed at any await, paused, and let go on.

A process is a set of tasks (and all that they start) that carry its mark in their context. Killed,
none of its callbacks runs again: no `finally`, no other task. Paused, they wait in their order.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import selectors
import warnings
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any

from sagaz_es.testing.virtual_time import VirtualTimeLoop

current_process: ContextVar[Process | None] = ContextVar("sagaz_es_process", default=None)
"""The simulated process that the running code belongs to; None: the world outside."""

MAX_CLOSES = 20

MAX_TURNS = 20_000
"""Of the loop, at one virtual time: more is something that turns for ever."""


class TurnsForEver(RuntimeError):
    """Something runs again and again, and no time passes."""


class Process:
    """One process. `steps` counts what it ran, so that a seed can kill it at any await."""

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.name = name
        self.alive, self.paused, self.cut = True, False, False  # cut: it reaches no server
        self.steps = 0
        self.dies_at = 0  # the step at which it is killed; 0: at none
        self.died_at = ""  # the point, where it was killed at one
        self.on_change: list[Callable[[], None]] = []  # told when it dies, pauses or goes on
        self._loop = loop
        self._held: list[tuple[Callable[..., Any], tuple[Any, ...], Context]] = []

    def __repr__(self) -> str:
        return f"<process {self.name}>"

    @property
    def runs(self) -> bool:
        return self.alive and not self.paused

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something in this process."""
        context = contextvars.copy_context()
        context.run(current_process.set, self)
        return self._loop.create_task(work, context=context)

    def kill(self, at: str = "") -> None:
        """As kill -9: nothing of it runs after this, except what it runs now, up to its next
        await; whatever it calls of the simulation has no effect any more."""
        if not self.alive:
            return
        self.alive, self.died_at = False, at
        self._held.clear()
        self._loop.take_ready(self)
        self.told()

    def pause(self) -> None:
        """As SIGSTOP."""
        if not self.runs:
            return
        self.paused = True
        self._held += self._loop.take_ready(self)
        self.told()

    def resume(self) -> None:
        """As SIGCONT: it goes on as if no time had passed, and has to find out."""
        if not self.paused or not self.alive:
            return
        self.paused = False
        held, self._held = self._held, []
        for callback, args, context in held:
            self._loop.call_soon(callback, *args, context=context)
        self.told()

    def hold(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context) -> None:
        """Of its loop: something to run that cannot run now."""
        if self.alive:
            self._held.append((callback, args, context))

    def told(self) -> None:
        """Let all who look at it know that it has changed."""
        for tell in list(self.on_change):
            tell()


class _Task(asyncio.Task[Any]):
    """A task whose place in a set does not hang on its address."""

    def __init__(self, work: Coroutine[Any, Any, Any], number: int, **options: Any) -> None:
        self._number = number
        super().__init__(work, **options)

    def __hash__(self) -> int:
        return self._number


class SimulatedLoop(VirtualTimeLoop):
    """A loop of virtual time without sockets, whose callbacks belong to processes.

    Law (same again): what runs on it depends on nothing but what it runs.
    """

    def __init__(self) -> None:
        super().__init__(selector=_Jumps(self))
        self.tasks: list[asyncio.Task[Any]] = []
        self.errors: list[str] = []
        """What callbacks raised: a defect, of the simulation or of what it runs."""
        self.world = contextvars.copy_context()
        """The context of what belongs to no process."""
        self.world.run(current_process.set, None)
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note_error)

    def _make_task(self, _: Any, work: Any, **options: Any) -> asyncio.Task[Any]:
        task = _Task(work, len(self.tasks), loop=self, **options)
        self.tasks.append(task)
        return task

    def _note_error(self, _: Any, context: dict[str, Any]) -> None:
        if "was never retrieved" not in context["message"] and "pending" not in context["message"]:
            self.errors.append(f"{context['message']}: {context.get('exception')!r}")

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        if context is None:
            context = contextvars.copy_context()
        handle = asyncio.Handle(callback, args, self, context)
        process = context.get(current_process)
        if process is None:
            self._ready.append(handle)  # type: ignore[attr-defined]
            return handle
        if not process.alive or process.paused:
            process.hold(callback, args, context)
            return handle
        self._ready.append(handle)  # type: ignore[attr-defined]
        process.steps += 1
        if process.steps == process.dies_at:
            process.kill(f"step {process.steps}")
        return handle

    def take_ready(
        self, process: Process
    ) -> list[tuple[Callable[..., Any], tuple[Any, ...], Context]]:
        """Take back what of a process was to run next."""
        taken = []
        for handle in self._ready:  # type: ignore[attr-defined]
            if not handle.cancelled() and handle._context.get(current_process) is process:
                taken.append((handle._callback, handle._args, handle._context))
                handle.cancel()
        return taken

    def in_world(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> None:
        """Call something after a time, whatever becomes of the process that asked for it."""
        self.call_later(delay_s, callback, *args, context=self.world)

    def close(self) -> None:
        """All is judged: let every coroutine unwind, and look at nothing of it."""
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what unwinding begins and nobody awaits
            for task in self.tasks:
                if not task.done():
                    _close(task.get_coro())
        self.tasks.clear()
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()
        super().close()

    def _make_self_pipe(self) -> None:
        """No other thread wakes this loop."""

    def _close_self_pipe(self) -> None: ...

    def _write_to_self(self) -> None: ...


def _close(work: Any) -> None:
    for _ in range(MAX_CLOSES):
        with contextlib.suppress(BaseException):
            work.close()
            return


class _Jumps(selectors.BaseSelector):
    """No files: when nothing is ready, time jumps."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._at, self._turns = 0.0, 0

    def register(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError("a simulation does no I/O")

    unregister = modify = register

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout != 0:
            self._loop.advance(timeout)
        elif self._at != self._loop.time():
            self._at, self._turns = self._loop.time(), 0
        else:
            self._turns += 1
            if self._turns > MAX_TURNS:
                raise TurnsForEver(f"at {self._at:.6f}")
        return []

    def get_map(self) -> Any:
        return {}
