"""Sagas/s and latency of a five-step no-op saga with a 2 KB context, at 1, 16 and 256 in flight.

Beside it, in the same run and taking turns: what the raw client does. A saga of five steps is six
appends (its start, five steps); so raw appends/s ÷ 6 is the limit of an engine that confirms each
append on its own (Kafka), or that writes nothing but rows (SQLite). Group commit can go beyond the
former.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.goals import Goal, at_least, below
from benchmarks.table import markdown, quantile
from sagaz_es import Saga, action, connect
from sagaz_es.engine.config import EngineConfig

APPENDS_A_SAGA = 6
ROWS_AN_APPEND = 2  # the outcome of one step and the start of the next
IN_FLIGHT = (1, 16, 256)
SAGAS = {1: 300, 16: 1500, 256: 4000}
ROUNDS = 3
CONTEXT = {"order": "x" * 1900, "customer": "c-17", "amount": 1999}
RECORD = b"r" * 400
PARTITIONS = 8  # on Kafka, the raw client's and ours: as many as a new log gets


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


@dataclass(frozen=True)
class Raw:
    """What the bare client does: calls/s, and how long one is until it is acknowledged."""

    per_s: float
    p50_ms: float = 0.0


@dataclass(frozen=True)
class Ours:
    """What the engine does with one number of sagas in flight."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    raw: Raw


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


async def five_waits() -> None:
    """Five bare `await wait_for(noop())`: what asyncio itself asks for five awaits with a limit."""

    async def noop() -> None: ...

    for _ in range(5):
        await asyncio.wait_for(noop(), 60)


async def raw_memory(in_flight: int) -> Raw:
    """Five bare `await wait_for(noop())`, a second."""
    seconds, taken, _ = await load(five_waits, in_flight, 5000)
    return Raw(5000 / seconds, quantile(taken, 0.5))


async def raw_kafka(bootstrap: str, in_flight: int) -> Raw:
    """Confirmed single appends/s of aiokafka: acknowledged, and seen by one's own consumer; and
    after how long one was acknowledged. 400 bytes each, acks=all."""
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    topic = f"raw-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    await asyncio.sleep(1)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, acks="all")
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", fetch_max_wait_ms=50
    )
    await producer.start()
    await consumer.start()
    consumer.assign([TopicPartition(topic, partition) for partition in range(PARTITIONS)])
    unseen: dict[bytes, asyncio.Future[None]] = {}
    acknowledged: list[float] = []

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
        began = time.perf_counter()
        await producer.send_and_wait(topic, RECORD, key=key, partition=number % PARTITIONS)
        acknowledged.append((time.perf_counter() - began) * 1e3)
        await seen

    await load(one, in_flight, 200)
    acknowledged.clear()
    total = {1: 1000, 16: 8000}.get(in_flight, 20000)
    seconds, _, _ = await load(one, in_flight, total)
    seeing.cancel()
    await consumer.stop()
    await producer.stop()
    await admin.delete_topics([topic])
    await admin.close()
    return Raw(total / seconds, quantile(sorted(acknowledged), 0.5))


async def raw_sqlite(directory: Path, in_flight: int) -> Raw:
    """Appends/s in bare SQLite transactions (WAL, synchronous=FULL) that hold the rows of
    `in_flight` appends each: no engine, no events, one thread that does nothing else."""

    def run() -> Raw:
        connection = sqlite3.connect(directory / f"raw-{uuid.uuid4().hex}.db", isolation_level=None)
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=full")
        connection.execute("create table log (at integer primary key, saga text, value blob)")
        connection.execute("create index by_saga on log (saga)")
        commits = max(50, min(1000, 20000 // in_flight))
        value = RECORD[: len(RECORD) // ROWS_AN_APPEND]
        taken = []
        for _ in range(commits):
            rows = [(str(uuid.uuid4()), value)] * (in_flight * ROWS_AN_APPEND)
            began = time.perf_counter()
            connection.execute("begin immediate")
            connection.executemany("insert into log (saga, value) values (?, ?)", rows)
            connection.execute("commit")
            taken.append(time.perf_counter() - began)
        connection.close()
        return Raw(commits * in_flight / sum(taken), quantile(sorted(taken), 0.5) * 1e3)

    return await asyncio.to_thread(run)


async def measure(
    url: str, raw: Callable[[int], Awaitable[Raw]], what: str, scale: float
) -> tuple[str, dict[int, Ours]]:
    """The table, and its figures by the number in flight."""
    found: dict[int, Ours] = {}
    async with connect(url, sagas=[FiveSteps]) as engine:

        async def one() -> None:
            assert (await engine.run(FiveSteps, CONTEXT)).success

        await load(one, 64, 500)
        for in_flight in IN_FLIGHT:
            total = max(in_flight * 4, round(SAGAS[in_flight] * scale))
            best = (0.0, 0.0, 0.0, 0.0)
            limits = []
            for _ in range(ROUNDS):
                limits.append(await raw(in_flight))
                seconds, taken, cpu = await load(one, in_flight, total)
                p50, p99 = quantile(taken, 0.5), quantile(taken, 0.99)
                best = max(best, (total / seconds, p50, p99, cpu / total * 1e6))
            per_s, p50, p99, cpu_us = best
            limit = max(limits, key=lambda limit: limit.per_s)
            found[in_flight] = Ours(per_s, p50, p99, cpu_us, limit)
    per = 1 if what == "five wait_for" else APPENDS_A_SAGA
    rows = [
        (
            in_flight,
            f"{ours.per_s:.0f}",
            f"{ours.p50_ms:.1f}",
            f"{ours.p99_ms:.1f}",
            f"{ours.p99_ms / ours.p50_ms:.1f}",
            f"{ours.cpu_us:.0f}",
            f"{ours.raw.per_s:.0f}",
            f"{ours.per_s / (ours.raw.per_s / per) * 100:.0f} %",
        )
        for in_flight, ours in found.items()
    ]
    name = url.partition("://")[0]
    table = markdown(
        f"Five-step saga, 2 KB context, on {name}",
        (
            "in flight",
            "sagas/s",
            "p50 ms",
            "p99 ms",
            "p99/p50",
            "CPU µs a saga",
            f"raw: {what}/s",
            "of raw" if per == 1 else f"of raw ÷ {per}",
        ),
        rows,
    )
    return table, found


def of_raw(ours: Ours) -> float:
    """Our sagas/s, in % of what the raw appends/s would allow."""
    return ours.per_s / (ours.raw.per_s / APPENDS_A_SAGA) * 100


def kafka_goals(found: dict[int, Ours]) -> list[Goal]:
    alone, some, many = (found[in_flight] for in_flight in IN_FLIGHT)
    six = alone.raw.p50_ms * APPENDS_A_SAGA
    return [
        at_least("Kafka, 256 in flight: of raw confirmed appends ÷ 6", of_raw(many), 40, "%"),
        at_least("Kafka, 256 in flight", many.per_s, 1500, "sagas/s"),
        at_least("Kafka, from 16 to 256 in flight", many.per_s / some.per_s, 1, "times as many"),
        below("Kafka, 256 in flight: p99", many.p99_ms / many.p50_ms, 3, "times p50"),
        below("Kafka, alone: p50", alone.p50_ms / six, 1.3, "times 6 acknowledged appends"),
        below("Kafka, alone: p50", alone.p50_ms, 5, "ms"),
    ]


def sqlite_goals(found: dict[int, Ours]) -> list[Goal]:
    many = found[256]
    return [
        at_least("SQLite, 256 in flight: of raw group commits ÷ 6", of_raw(many), 60, "%"),
        at_least("SQLite, 256 in flight", many.per_s, 1500, "sagas/s"),
    ]


async def own_cost(scale: float) -> tuple[str, list[Goal]]:
    """What a saga costs before its first step, and what a further step adds, on memory."""

    def saga(steps: int) -> type[Saga]:
        members: dict[str, Any] = {"saga_name": f"steps-{steps}"}
        for number in range(steps):

            async def step(self: Saga, ctx: Any) -> None: ...

            members[f"step_{number}"] = action(f"step-{number}")(step)
        return type(f"Steps{steps}", (Saga,), members)

    kinds = {steps: saga(steps) for steps in (0, 5, 25)}
    rounds, calls = max(3, round(20 * scale)), 150
    costs: dict[bool, dict[object, float]] = {}
    for projector in (False, True):
        config = EngineConfig(projector=projector)
        cost = costs[projector] = dict.fromkeys((*kinds, "waits"), float("inf"))
        async with connect("memory://", sagas=list(kinds.values()), config=config) as engine:
            # In turns, and the best of many: another process disturbs both alike.
            for _ in range(rounds):
                waits = (await load(five_waits, 16, calls * 2))[2] / (calls * 2) * 1e6
                cost["waits"] = min(cost["waits"], waits)
                for steps, kind in kinds.items():

                    async def one(kind: type[Saga] = kind) -> None:
                        await engine.run(kind, CONTEXT)

                    cost[steps] = min(cost[steps], (await load(one, 16, calls))[2] / calls * 1e6)
    rows = []
    for projector, cost in costs.items():
        with_it = "with the projector in the process" if projector else "the engine alone"
        for what, us in (
            ("a saga without steps", cost[0]),
            ("a five-step saga", cost[5]),
            ("a further step (5 → 25)", (cost[25] - cost[5]) / 20),
        ):
            rows.append((what, with_it, f"{us:.1f}", f"{us / cost['waits']:.2f}"))
    alone = costs[False]
    goals = [
        below("Memory: a five-step saga", alone[5] / alone["waits"], 5, "times five wait_for"),
        below("Memory: a further step", (alone[25] - alone[5]) / 20, 25, "µs"),
    ]
    table = markdown(
        "Engine's own CPU on the memory log",
        ("what", "", "µs", f"times five wait_for ({alone['waits']:.0f} µs)"),
        rows,
    )
    return table, goals


async def run(bootstrap: str | None, scale: float = 1.0) -> tuple[list[str], list[Goal]]:
    """The tables, and what of the goals is met; `scale`: of the usual number of sagas."""
    table, _ = await measure("memory://", raw_memory, "five wait_for", scale)
    own, goals = await own_cost(scale)
    tables = [table, own]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        log = f"sqlite:///{path}/log.db"
        table, found = await measure(log, lambda n: raw_sqlite(path, n), "appends", scale)
        tables.append(table)
        goals += sqlite_goals(found)
    if bootstrap:
        log = f"kafka://{bootstrap}/bench-{uuid.uuid4().hex[:8]}?partitions={PARTITIONS}"
        table, found = await measure(
            log, lambda n: raw_kafka(bootstrap, n), "confirmed appends", scale
        )
        tables.append(table)
        goals += kafka_goals(found)
    return tables, goals
