"""Sagas/s and latency of a five-step no-op saga with a 2 KB context, at 1, 16 and 256 in flight.

Beside it, in the same run and taking turns: what the raw client does. A saga of five steps is six
appends (its start, five steps); so raw single appends/s ÷ 6 is the limit of an engine that confirms
each append on its own. Group commit can go beyond it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.table import markdown, quantile
from sagaz_es import Saga, action, connect

APPENDS_A_SAGA = 6
ROUNDS = 3
CONTEXT = {"order": "x" * 1900, "customer": "c-17", "amount": 1999}
RECORD = b"r" * 400


class FiveSteps(Saga):
    saga_name = "five-steps"

    @action("one")
    async def one(self, ctx: Any) -> None: ...

    @action("two")
    async def two(self, ctx: Any) -> None: ...

    @action("three")
    async def three(self, ctx: Any) -> None: ...

    @action("four")
    async def four(self, ctx: Any) -> None: ...

    @action("five")
    async def five(self, ctx: Any) -> None: ...


async def load(
    work: Callable[[], Awaitable[object]], in_flight: int, total: int
) -> tuple[float, list[float], float]:
    """Seconds, sorted latencies (ms) and CPU seconds of `total` calls, `in_flight` at a time."""
    taken: list[float] = []
    left = iter(range(total))

    async def worker() -> None:
        for _ in left:
            began = time.perf_counter()
            await work()
            taken.append((time.perf_counter() - began) * 1e3)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return time.perf_counter() - began, sorted(taken), time.process_time() - cpu


async def raw_memory(in_flight: int) -> float:
    """Five bare `await wait_for(noop())`, a second."""

    async def noop() -> None: ...

    async def five() -> None:
        for _ in range(5):
            await asyncio.wait_for(noop(), 60)

    seconds, _, _ = await load(five, in_flight, 5000)
    return 5000 / seconds


async def raw_kafka(bootstrap: str, in_flight: int) -> float:
    """Confirmed single appends/s of aiokafka: acknowledged, and seen by one's own consumer.

    400 bytes each, 4 partitions, acks=all. So an engine would confirm each append on its own.
    """
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    topic = f"raw-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 4, 1)])
    await asyncio.sleep(1)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, acks="all")
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", fetch_max_wait_ms=50
    )
    await producer.start()
    await consumer.start()
    consumer.assign([TopicPartition(topic, partition) for partition in range(4)])
    unseen: dict[bytes, asyncio.Future[None]] = {}

    async def see() -> None:
        async for record in consumer:
            unseen.pop(record.key).set_result(None)

    seeing = asyncio.create_task(see())
    number = 0

    async def one() -> None:
        nonlocal number
        number += 1
        key = str(number).encode()
        seen = unseen[key] = asyncio.get_running_loop().create_future()
        await producer.send_and_wait(topic, RECORD, key=key, partition=number % 4)
        await seen

    await load(one, in_flight, 200)
    total = {1: 1000, 16: 8000}.get(in_flight, 20000)
    seconds, _, _ = await load(one, in_flight, total)
    seeing.cancel()
    await consumer.stop()
    await producer.stop()
    await admin.delete_topics([topic])
    await admin.close()
    return total / seconds


async def raw_sqlite(directory: Path, in_flight: int) -> float:
    """Appends/s in bare SQLite transactions (WAL, synchronous=FULL), `in_flight` rows each."""

    def run() -> float:
        connection = sqlite3.connect(directory / f"raw-{uuid.uuid4().hex}.db", isolation_level=None)
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=full")
        connection.execute("create table log (at integer primary key, saga text, value blob)")
        connection.execute("create index by_saga on log (saga)")
        rows = [("s" * 36, RECORD)] * in_flight
        commits = max(50, min(1000, 20000 // in_flight))
        began = time.perf_counter()
        for _ in range(commits):
            connection.execute("begin immediate")
            connection.executemany("insert into log (saga, value) values (?, ?)", rows)
            connection.execute("commit")
        seconds = time.perf_counter() - began
        connection.close()
        return commits * in_flight / seconds

    return await asyncio.to_thread(run)


async def measure(url: str, raw: Callable[[int], Awaitable[float]], what: str) -> str:
    rows = []
    async with connect(url, sagas=[FiveSteps]) as engine:

        async def one() -> None:
            assert (await engine.run(FiveSteps, CONTEXT)).success

        await load(one, 64, 500)
        for in_flight, total in ((1, 300), (16, 1500), (256, 4000)):
            best: tuple[float, ...] = ()
            limits = []
            for _ in range(ROUNDS):
                limits.append(await raw(in_flight))
                seconds, taken, cpu = await load(one, in_flight, total)
                p50, p99 = quantile(taken, 0.5), quantile(taken, 0.99)
                result = (total / seconds, p50, p99, cpu / total * 1e6)
                best = max(best, result)
            limit = max(limits)
            ours, p50, p99, cpu_us = best
            per = 1 if what == "five wait_for" else APPENDS_A_SAGA
            rows.append(
                (
                    in_flight,
                    f"{ours:.0f}",
                    f"{p50:.1f}",
                    f"{p99:.1f}",
                    f"{p99 / p50:.1f}",
                    f"{cpu_us:.0f}",
                    f"{limit:.0f}",
                    f"{ours / (limit / per) * 100:.0f} %",
                )
            )
    name = url.partition("://")[0]
    divisor = "" if what == "five wait_for" else f" ÷ {APPENDS_A_SAGA}"
    return markdown(
        f"Five-step saga, 2 KB context, on {name}",
        (
            "in flight",
            "sagas/s",
            "p50 ms",
            "p99 ms",
            "p99/p50",
            "CPU µs a saga",
            f"raw: {what}/s",
            f"of raw{divisor}",
        ),
        rows,
    )


async def fixed_cost() -> str:
    """What a saga costs before its first step, and what a further step adds, on memory."""

    def saga(steps: int) -> type[Saga]:
        async def nothing(self: Saga, ctx: Any) -> None: ...

        members: dict[str, Any] = {"saga_name": f"steps-{steps}"}
        for number in range(steps):

            async def step(self: Saga, ctx: Any) -> None: ...

            members[f"step_{number}"] = action(f"step-{number}")(step)
        return type(f"Steps{steps}", (Saga,), members)

    kinds = {steps: saga(steps) for steps in (0, 5, 25)}
    cost: dict[int, float] = {}
    async with connect("memory://", sagas=list(kinds.values())) as engine:
        for steps, kind in kinds.items():

            async def one(kind: type[Saga] = kind) -> None:
                await engine.run(kind, CONTEXT)

            await load(one, 16, 200)
            seconds = min([(await load(one, 16, 1000))[2] for _ in range(ROUNDS)])
            cost[steps] = seconds / 1000 * 1e6
    return markdown(
        "Engine's own CPU on the memory log",
        ("what", "µs"),
        (
            ("a saga without steps", f"{cost[0]:.0f}"),
            ("a five-step saga", f"{cost[5]:.0f}"),
            ("a further step (5 → 25)", f"{(cost[25] - cost[5]) / 20:.1f}"),
        ),
    )


async def run(bootstrap: str | None) -> list[str]:
    tables = [await measure("memory://", raw_memory, "five wait_for"), await fixed_cost()]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        tables.append(
            await measure(f"sqlite:///{path}/log.db", lambda n: raw_sqlite(path, n), "row commits")
        )
    if bootstrap:
        url = f"kafka://{bootstrap}/bench-{uuid.uuid4().hex[:8]}"
        tables.append(await measure(url, lambda n: raw_kafka(bootstrap, n), "confirmed appends"))
    return tables
