"""A process that uses a SQLite log, for tests: `process.py FILE append NAME COUNT`, `member` or
`parent`, a member with a child made by fork.

It says on its standard output what happened, a line each.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.log.sqlite import SQLiteEventLog
from sagaz_es.testing.contracts.entries import steps


def say(*words: object) -> None:
    print(*words, flush=True)


async def append(log: SQLiteEventLog, name: str, count: int) -> None:
    """Sagas of 10 events, several at once; each event is appended with a twin beside it."""

    async def saga(number: int) -> None:
        saga_id = f"{name}-{number}"
        for sequence in range(1, 11, 2):
            base = await log.append(number % log.partitions, steps(saga_id, 2, sequence))
            say(saga_id, number % log.partitions, base, sequence)

    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    for first in range(0, count // 10, 10):
        await asyncio.gather(*(saga(first + n) for n in range(10)))


async def member(log: SQLiteEventLog, *, with_child: bool) -> None:
    async def on_change(share: frozenset[int]) -> None:
        say(*sorted(share))

    membership = await log.join(on_change)
    if with_child:
        child = os.fork()
        if not child:  # as a step does that uses multiprocessing
            signal.pause()
        say(child)
    await asyncio.to_thread(sys.stdin.readline)
    await membership.leave()


async def main(path: str, what: str, *arguments: str) -> None:
    log = SQLiteEventLog(path, AvroCodec(), partitions=4)
    await log.open()
    if what == "append":
        await append(log, arguments[0], int(arguments[1]))
    else:
        await member(log, with_child=what == "parent")
    await log.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
