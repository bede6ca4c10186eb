"""Processes that die, without a process: an engine on a virtual event loop in a thread of its own.

Where it dies the thread stands still: nothing after that place runs, no `finally`, no other task.
What outlives it is the log and the world. When everything about the run has been judged the thread
is let go and unwinds; nobody looks at what that does.
"""

from __future__ import annotations

import asyncio
import contextvars
import linecache
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import CodeType, FrameType
from typing import Any

from sagaz_es.core import events as e
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import Chunk
from sagaz_es.testing.virtual_time import (
    FOR_EVER_SECONDS,
    NothingLeft,
    VirtualTimeLoop,
    WaitsForReality,
)

UNWINDINGS = 20
DEADLINE_SECONDS = 60.0
"""Real time for one life: a step that blocks its thread is an error, not a hang."""


_NOT_USERS = ("sagaz_es.", "asyncio", "threading", "concurrent.", "selectors", "contextvars")


class Killed(SystemExit):
    """Lets a dead process unwind; no code of a user's sees it before all is judged."""


class Points:
    """The places where one life of a process may die, in the order in which it comes to them."""

    def __init__(self, crash_at: int | str = 0) -> None:
        self.crash_at = crash_at  # 1, 2, 3 …; 0: nowhere; or how its name begins
        self.reached: list[str] = []
        self.died_at = ""
        self.stopped = threading.Event()  # dead, or done
        self.judged = threading.Event()  # may unwind

    def reach(self, where: str) -> None:
        """Die here, if this is the place."""
        if self.judged.is_set() or self.died_at:
            return
        self.reached.append(where)
        at = self.crash_at
        if where.startswith(at) if isinstance(at, str) else len(self.reached) == at:
            self.die(where)

    def die(self, where: str) -> None:
        """Nothing after this runs."""
        if self.judged.is_set():
            return
        self.died_at = where
        self.stopped.set()
        self.judged.wait()
        raise Killed


class DurableLog(MemoryEventLog):
    """A memory log of one life; `successor` is what the next one finds."""

    def __init__(self, points: Points) -> None:
        super().__init__(1)
        self._points = points

    def successor(self, points: Points) -> DurableLog:
        """The same records and mark, for another process."""
        other = DurableLog(points)
        for mine, theirs in zip(self._partitions, other._partitions, strict=True):
            theirs.records.clear()
            for record in mine.records:
                theirs.add(record)
        other._marks[:] = self._marks
        return other

    async def append(self, partition: int, entries: Sequence[e.Entry]) -> int:
        if self._points.judged.is_set():
            raise asyncio.CancelledError  # nobody is there any more
        what = ", ".join(map(in_words, entries))
        self._points.reach(f"before {what} is in the log")
        base = await super().append(partition, entries)
        self._points.reach(f"after {what} is in the log")
        return base

    async def read(
        self, partition: int, offset: int, *, limit: int = 1000, wait_s: float = 0.0
    ) -> Chunk:
        # Waits until something comes: asking every second would fill virtual years.
        wait_s = 2 * FOR_EVER_SECONDS if wait_s else 0.0
        return await super().read(partition, offset, limit=limit, wait_s=wait_s)

    def entries(self) -> list[e.Entry]:
        """All that stands in it."""
        records = self._partitions[0].records
        return [r.entry for r in records if isinstance(r.entry, e.Event | e.Request)]


def in_words(entry: e.Entry | e.Fact) -> str:
    """`StepStarted charge`, `SagaCompleted`."""
    fact = entry.fact if isinstance(entry, e.Event) else entry
    return f"{type(fact).__name__} {getattr(fact, 'step', '')}".rstrip()


class Life:
    """One process: runs `script` and whatever follows from it until it dies or nothing is left."""

    def __init__(self, points: Points, start: float) -> None:
        self.points = points
        self.loop = VirtualTimeLoop(start)
        self.loop.set_exception_handler(lambda loop, context: None)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def run(
        self,
        script: Callable[[], Coroutine[Any, Any, Any]],
        last: Callable[[], Coroutine[Any, Any, Any]],
    ) -> bool:
        """Whether it lived until nothing was left to do; `last` is run then. Raises what they
        raise, and TimeoutError where a step blocks."""
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._main, script, last), name="sagaz-es life", daemon=True
        )
        self._thread.start()
        if not self.points.stopped.wait(DEADLINE_SECONDS):
            self.points.died_at = "blocked"  # it comes to no further point
            where = self._where()
            if where:
                raise TimeoutError(
                    f"a step has blocked its thread for {DEADLINE_SECONDS:g} s ({where}): under "
                    "virtual time a step may wait with asyncio, but not outside it"
                )
            raise TimeoutError(
                f"the saga has not ended within {DEADLINE_SECONDS:g} s: does a step wait for "
                "something again and again, for virtual years?"
            )
        if self._error is not None:
            raise self._error
        return not self.points.died_at

    def _where(self) -> str:
        """Where it stands now, as far as that is the user's code."""
        assert self._thread is not None
        frames = sys._current_frames()
        idents = [*self.loop.thread_idents(), self._thread.ident or 0]
        for frame in map(frames.get, idents):
            while frame is not None:
                code = frame.f_code
                if not frame.f_globals.get("__name__", "").startswith(_NOT_USERS):
                    return f"{code.co_filename}, line {frame.f_lineno}, in {code.co_name}"
                frame = frame.f_back
        return ""

    def bury(self) -> None:
        """All is judged: let the thread end."""
        self.points.judged.set()
        if self._thread is None:
            self.loop.close()
        elif self.points.stopped.is_set():
            self._thread.join(DEADLINE_SECONDS)
        else:  # blocked, or in an endless loop: it ends when it comes by
            self.loop.call_soon_threadsafe(self.loop.stop)

    def _main(
        self,
        script: Callable[[], Coroutine[Any, Any, Any]],
        last: Callable[[], Coroutine[Any, Any, Any]],
    ) -> None:
        try:
            try:
                self.loop.run_until_complete(script())
            except NothingLeft:
                self.loop.run_until_complete(last())
        except Killed:
            pass
        except BaseException as error:
            self._error = error
        self.points.stopped.set()
        self.points.judged.wait()
        self._unwind()

    def _unwind(self) -> None:
        """Let all tasks end. Who waits for something in its clean-up is cancelled again."""
        for _ in range(UNWINDINGS):
            tasks = asyncio.all_tasks(self.loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            try:
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
            except (NothingLeft, WaitsForReality, Killed):
                continue
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.loop.close()


class Lines:
    """Comes by at every line of some functions, while it is followed."""

    def __init__(self, reach: Callable[[str], None]) -> None:
        self._reach = reach
        self._codes: dict[CodeType, str] = {}
        self._followers = 0
        self._before: Any = None

    def add(self, name: str, function: Callable[..., Any]) -> None:
        """Also the lines of a step's function, and of what else its class defines."""
        bound = getattr(function, "__self__", None)
        for cls in type(bound).__mro__ if bound is not None else ():
            if cls is not object and not cls.__module__.startswith("sagaz_es."):
                for attribute in vars(cls).values():
                    code = getattr(getattr(attribute, "__func__", attribute), "__code__", None)
                    if isinstance(code, CodeType):
                        self._codes.setdefault(code, code.co_name)
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if isinstance(code, CodeType):
            self._codes[code] = name

    def __enter__(self) -> None:
        self._followers += 1
        if self._followers == 1:
            self._before = sys.gettrace()
            sys.settrace(self._trace)

    def __exit__(self, *exc: object) -> None:
        self._followers -= 1
        if not self._followers:
            sys.settrace(self._before)

    def in_thread(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, followed in whatever thread it is called."""

        def followed(*args: Any) -> Any:
            before = sys.gettrace()
            sys.settrace(self._trace)
            try:
                return function(*args)
            finally:
                sys.settrace(before)

        return followed

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code in self._codes else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            code, number = frame.f_code, frame.f_lineno
            text = linecache.getline(code.co_filename, number).strip()
            self._reach(f"in {self._codes[code]}, before line {number}: {text}")
        return self._line
