"""kill -9 with 1,000 sagas inside their third step: how long until all of them have finished.

Counted from the start of the process that goes on: its imports, its way back into the group, the
read from the low-water mark, the claims, the rest of the steps. What the steps did is written down
by the steps themselves, in a file beside the engine: no completed step may be there twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.goals import Goal, below
from benchmarks.sagas import CONTEXT
from benchmarks.table import markdown

SAGAS = 1000
PARTITIONS = 8
SESSION_MS = 1000
PATIENCE_S = 60
COMPLETED = ("one", "two", "four", "five")  # steps that must not run again

Told = dict[str, list[float]]


# --- the process that is killed, and the one that goes on -----------------------------------------


async def work(url: str, instance: str, ledger: str, count: int, *, hold: bool) -> None:
    """Start `count` sagas and hold them in their third step; or finish what is found."""
    from sagaz_es import Saga, action, connect
    from sagaz_es.engine import serving, takeover

    tell("imports")
    handle = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(ctx: Any) -> None:
        os.write(handle, f"{ctx.step} {ctx.saga_id}\n".encode())

    class FiveSteps(Saga):
        saga_name = "five-steps"

        @action("one")
        async def one(self, ctx: Any) -> None:
            note(ctx)

        @action("two")
        async def two(self, ctx: Any) -> None:
            note(ctx)

        @action("three", timeout_seconds=3600)
        async def three(self, ctx: Any) -> None:
            note(ctx)
            if hold:
                await asyncio.Event().wait()

        @action("four")
        async def four(self, ctx: Any) -> None:
            note(ctx)

        @action("five")
        async def five(self, ctx: Any) -> None:
            note(ctx)

    async def timed(*arguments: Any, **named: Any) -> Any:
        tell("assigned")  # the group has said what is ours
        found = await takeover.read_from_mark(*arguments, **named)
        tell("read")
        return found

    vars(serving)["read_from_mark"] = timed
    async with connect(url, sagas=[FiveSteps], instance_id=instance or None) as engine:
        tell("open")
        if count:
            await asyncio.to_thread(sys.stdin.readline)
            while not engine.host.partitions:  # noqa: ASYNC110 - handed over by the other one
                await asyncio.sleep(0.02)
        for _ in range(0, count, 100):
            await asyncio.gather(*(engine.start(FiveSteps, CONTEXT) for _ in range(100)))
        tell("started")
        # What it finds is unfinished until its last fact is confirmed. Nothing waits for sagas that
        # somebody else started, so it is looked at.
        began = False
        while True:
            unfinished = sum(len(part.cells) for part in engine.host.partitions.values())
            began = began or unfinished > 0
            if began and not unfinished:
                tell("finished")
                await asyncio.Event().wait()
            await asyncio.sleep(0.005)


def tell(what: str) -> None:
    """One write a line: where a process is, and when."""
    os.write(1, f"{json.dumps([what, time.monotonic(), time.process_time()])}\n".encode())


class Process:
    """A worker; `told[what]`: when it said so, in seconds of `time.monotonic`."""

    def __init__(self, log: str, instance: str, ledger: Path, count: int, then: str) -> None:
        self.began = time.monotonic()
        self.told: Told = defaultdict(list)
        self.cpu: dict[str, float] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.recovery", log, instance, ledger, str(count), then],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        # Nobody waits for ever for what it says: then it ends, and what it says does.
        self._limit = threading.Timer(PATIENCE_S, self._process.kill)
        self._limit.daemon = True
        self._limit.start()

    def go(self) -> None:
        """Let it start its sagas."""
        self._stdin.write("\n")
        self._stdin.flush()

    def until(self, what: str) -> None:
        """Read on until it says so (once more). Raises RuntimeError where it ends before."""
        word = ""
        while word != what:
            line = self._stdout.readline()
            if not line:
                raise RuntimeError(f"the process ended before it said {what!r}")
            word, at, cpu = json.loads(line)
            self.told[word].append(at)
            self.cpu[word] = cpu

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL."""
        self._limit.cancel()
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()


@contextmanager
def process(
    log: str, instance: str, ledger: Path, count: int = 0, then: str = "finish"
) -> Iterator[Process]:
    started = Process(log, instance, ledger, count, then)
    try:
        yield started
    finally:
        started.kill()


# --- the measurement ------------------------------------------------------------------------------


def steps_done(ledger: Path) -> Counter[str]:
    """How often each step of each saga ran: "three 7f…" and so on."""
    return Counter(ledger.read_text().splitlines() if ledger.exists() else [])


def held(ledger: Path, by: Process) -> None:
    """Wait until every saga is inside its third step."""
    until = time.monotonic() + PATIENCE_S
    while sum(line.startswith("three ") for line in steps_done(ledger)) < SAGAS:
        if time.monotonic() > until or by.ended:
            raise TimeoutError(f"not {SAGAS} sagas in their third step within {PATIENCE_S} s")
        time.sleep(0.02)


def same_process(log: str, ledger: Path) -> tuple[Process, float, str]:
    """Killed, and started again under the same instance id."""
    with process(log, "worker-1", ledger, SAGAS, "hold") as first:
        first.until("open")
        first.go()
        held(ledger, first)
    with process(log, "worker-1", ledger) as second:
        second.until("finished")
    return second, second.began, "the same process"


def another_process(log: str, ledger: Path) -> tuple[Process, float, str]:
    """One of two is killed; counted from when the group gives its partitions to the other one."""
    with process(log, "", ledger) as second:
        second.until("open")
        with process(log, "", ledger, SAGAS, "hold") as first:
            first.until("open")
            first.go()
            held(ledger, first)
            killed = time.monotonic()
        second.until("finished")
    given = [at for at in second.told["assigned"] if at > killed]
    return second, given[0], "the other process"


def measured(bootstrap: str, directory: Path, way: Any, partitions: int) -> tuple[object, ...]:
    """A row of the table."""
    ledger = directory / uuid4().hex
    log = f"kafka://{bootstrap}/recovery-{ledger.name}?partitions={partitions}"
    log += f"&session_timeout_ms={SESSION_MS}"
    second, since, who = way(log, ledger)
    done = steps_done(ledger)
    finished = sum(line.startswith("five ") for line in done)
    if finished != SAGAS:
        raise RuntimeError(f"{finished} of {SAGAS} sagas finished")
    again = sum(times - 1 for line, times in done.items() if line.split()[0] in COMPLETED)
    told = second.told
    marks = [since]
    for word in ("imports", "assigned", "read", "finished"):
        marks.append(max(marks[-1], told[word][-1]))
    parts = [f"{now - before:.2f}" for before, now in pairwise(marks)]
    total = told["finished"][-1] - since
    return who, partitions, *parts, f"{total:.2f}", f"{second.cpu['finished']:.2f}", again


def run(bootstrap: str) -> tuple[str, list[Goal]]:
    """The table, and what of the goals is met."""
    with tempfile.TemporaryDirectory() as directory:
        ways = ((same_process, 1), (same_process, PARTITIONS), (another_process, PARTITIONS))
        rows = [measured(bootstrap, Path(directory), way, number) for way, number in ways]
    table = markdown(
        f"kill -9 with {SAGAS:,} sagas in their third step, Kafka: seconds until all have finished",
        (
            "who goes on",
            "partitions",
            "imports",
            "join",
            "read",
            "claim and run",
            "all",
            "CPU s",
            "completed steps run again",
        ),
        rows,
    )
    goals = [
        below(f"After kill -9, {who}, {count} partitions", float(str(row[6])), 2, "s")
        for row in rows
        for who, count in (row[:2],)
    ]
    goals.append(below("Completed steps run again", sum(int(str(row[-1])) for row in rows), 1))
    return table, goals


def main() -> None:
    log, instance, ledger, count, then = sys.argv[1:]
    asyncio.run(work(log, instance, ledger, int(count), hold=then == "hold"))


if __name__ == "__main__":
    main()
