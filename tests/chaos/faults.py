"""What goes wrong, a coroutine each: it returns when the cause is gone, and says when that was.

From then on the time to normal counts: from the start of a process that takes the place of a killed
one, from the first answer of a server that was started again, from SIGCONT, from the moment when
the network is well or the disk has room.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import asyncpg

from sagaz_es.core import events as e
from sagaz_es.reading.time_travel import SagaHistory
from tests.chaos.processes import Process
from tests.chaos.world import World
from tests.servers import KafkaServer, PostgreSQLServer, Proxy, Way

SESSION_S = 4.0
"""After that long a silence an engine's partitions go to the others."""


class Scene:
    """Two shops: `shop` on Kafka and PostgreSQL, `stall` on one SQLite file; and what they stand
    on. `disk`: the stall's, where it is small enough to be filled."""

    def __init__(
        self, shop: World, stall: World, kafka: KafkaServer, postgresql: PostgreSQLServer
    ) -> None:
        self.shop, self.stall = shop, stall
        self.kafka, self.postgresql = kafka, postgresql
        self.to_kafka = Proxy(kafka.behind_proxy, kafka.proxy_port)
        self.to_postgresql = Proxy(postgresql.port)
        self.disk: Path | None = None
        self.database = ""
        self.kills = 0

    def kill(self, process: Process) -> None:
        self.kills += 1
        process.kill()

    def behind_proxy(self) -> list[Process]:
        return self.shop.engines[1:]


class Hit:
    """Between its two ends something was done to these engines."""

    def __init__(self, world: World, processes: Iterable[Process]) -> None:
        self._world, self._processes = world, tuple(processes)

    def __enter__(self) -> Hit:
        self._since = time.monotonic()
        self._world.listen()
        writers = self._world.writers
        self._known = {each.name: max(0, len(writers[each.name]) - 1) for each in self._processes}
        return self

    def __exit__(self, *_: object) -> None:
        self._world.listen()
        for name, known in self._known.items():  # those of now, and all that were born meanwhile
            writers = self._world.writers[name][known:]
            self._world.checker.hit(writers, self._since, time.monotonic())


Fault = Callable[[Scene, random.Random], Awaitable[float]]
SHOP: dict[str, Fault] = {}
STALL: dict[str, Fault] = {}
DISK_FULL = "SQLite: disk full"

# Seconds in which everything is to work again: after a process was started again, or went on; and
# after a server, or the network to it, was there again.
PROCESS_S, SERVER_S = 2.0, 5.0
# Others hear of the end of a process that has no place of its own when its session has run out.
TAKE_OVER_S = PROCESS_S + SESSION_S

WANTED: dict[str, float] = {}
"""By kind: the seconds to normal that are aimed at. Kinds that stop nothing have no goal."""


def kind(
    where: dict[str, Fault], name: str, *, within_s: float | None = None
) -> Callable[[Fault], Fault]:
    def add(fault: Fault) -> Fault:
        where[name] = fault
        if within_s is not None:
            WANTED[name] = within_s
        return fault

    return add


def deck(kinds: Iterable[str], seed: int) -> Iterator[tuple[str, random.Random]]:
    """Kinds for ever, each once before any comes again, each with numbers of its own."""
    chosen = random.Random(seed)
    names = sorted(kinds)
    while True:
        chosen.shuffle(names)
        for name in names:
            yield name, random.Random(chosen.getrandbits(64))


# --- engines --------------------------------------------------------------------------------------


async def _kill(scene: Scene, world: World, engines: list[Process], again: float = 0.0) -> float:
    with Hit(world, engines):
        for engine in engines:
            scene.kill(engine)
        began = max(engine.start() for engine in engines)
        if again:
            await asyncio.sleep(again)
            for engine in engines:
                scene.kill(engine)
            began = max(engine.start() for engine in engines)
        before = {engine.name: world.ready[engine.name] for engine in engines}
        await world.until(lambda: all(world.ready[name] > n for name, n in before.items()))
    return began


@kind(SHOP, "engine killed (static member)", within_s=PROCESS_S)
async def engine_killed(scene: Scene, chosen: random.Random) -> float:
    return await _kill(scene, scene.shop, [scene.shop.engines[1]])


@kind(SHOP, "engine killed (others take over)", within_s=TAKE_OVER_S)
async def member_killed(scene: Scene, chosen: random.Random) -> float:
    return await _kill(scene, scene.shop, [scene.shop.engines[2]])


@kind(SHOP, "engine killed while it takes over", within_s=PROCESS_S)
async def killed_twice(scene: Scene, chosen: random.Random) -> float:
    return await _kill(scene, scene.shop, [scene.shop.engines[1]], chosen.uniform(0.3, 2.0))


@kind(SHOP, "two engines killed at once", within_s=TAKE_OVER_S)
async def two_killed(scene: Scene, chosen: random.Random) -> float:
    return await _kill(scene, scene.shop, scene.shop.engines[1:])


@kind(SHOP, "engine stopped in order", within_s=PROCESS_S)
async def engine_stopped(scene: Scene, chosen: random.Random) -> float:
    engine = chosen.choice(scene.shop.engines[1:])
    if not await asyncio.to_thread(engine.stop):
        scene.shop.checker.violations.append(f"{engine.name} did not stop: {engine.said()}")
    return engine.start()


async def _freeze(world: World, engine: Process, seconds: float) -> float:
    with Hit(world, [engine]):
        engine.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        engine.send(signal.SIGCONT)
    return time.monotonic()


@kind(SHOP, "engine frozen beyond its session", within_s=PROCESS_S)
async def engine_frozen(scene: Scene, chosen: random.Random) -> float:
    engine = chosen.choice(scene.shop.engines)
    return await _freeze(scene.shop, engine, SESSION_S + chosen.uniform(1.0, 3.0))


@kind(SHOP, "clock of an engine jumps")
async def clock_jumps(scene: Scene, chosen: random.Random) -> float:
    engine = chosen.choice(scene.shop.engines)
    engine.skew(chosen.choice((-1, 1)) * chosen.uniform(1.0, 20.0))
    await asyncio.sleep(chosen.uniform(1.0, 3.0))
    engine.skew(0.0)
    return time.monotonic()


# --- the projector --------------------------------------------------------------------------------


@kind(SHOP, "projector killed", within_s=PROCESS_S)
async def projector_killed(scene: Scene, chosen: random.Random) -> float:
    projector = scene.shop.projectors[0]
    scene.kill(projector)
    return projector.start()


@kind(SHOP, "projector frozen while another works", within_s=PROCESS_S)
async def projector_frozen(scene: Scene, chosen: random.Random) -> float:
    projector, rival = scene.shop.projectors
    projector.send(signal.SIGSTOP)
    rival.start()
    await asyncio.sleep(chosen.uniform(2.0, 4.0))
    projector.send(signal.SIGCONT)
    await asyncio.sleep(chosen.uniform(0.5, 2.0))
    scene.kill(rival)
    return time.monotonic()


# --- servers --------------------------------------------------------------------------------------


@kind(SHOP, "Kafka restarted", within_s=SERVER_S)
async def kafka_restarted(scene: Scene, chosen: random.Random) -> float:
    with Hit(scene.shop, scene.shop.engines):
        await asyncio.to_thread(scene.kafka.restart)
    return time.monotonic()


@kind(SHOP, "Kafka killed", within_s=SERVER_S)
async def kafka_killed(scene: Scene, chosen: random.Random) -> float:
    with Hit(scene.shop, scene.shop.engines):
        scene.kills += 1
        await asyncio.to_thread(scene.kafka.kill)
        await asyncio.to_thread(scene.kafka.restart)
    return time.monotonic()


@kind(SHOP, "Kafka frozen", within_s=SERVER_S)
async def kafka_frozen(scene: Scene, chosen: random.Random) -> float:
    with Hit(scene.shop, scene.shop.engines):
        await asyncio.to_thread(scene.kafka.pause)
        await asyncio.sleep(chosen.uniform(1.0, 6.0))
        await asyncio.to_thread(scene.kafka.resume)
    return time.monotonic()


@kind(SHOP, "PostgreSQL killed", within_s=SERVER_S)
async def postgresql_killed(scene: Scene, chosen: random.Random) -> float:
    scene.kills += 1
    await asyncio.to_thread(scene.postgresql.kill)
    await asyncio.sleep(chosen.uniform(0.0, 2.0))
    await asyncio.to_thread(scene.postgresql.restart)
    return time.monotonic()


@kind(SHOP, "PostgreSQL killed every two seconds", within_s=SERVER_S)
async def postgresql_killed_often(scene: Scene, chosen: random.Random) -> float:
    for _ in range(3):
        scene.kills += 1
        await asyncio.to_thread(scene.postgresql.kill)
        await asyncio.to_thread(scene.postgresql.restart)
        healed = time.monotonic()
        await asyncio.sleep(chosen.uniform(1.0, 2.0))
    return healed


@kind(SHOP, "PostgreSQL frozen", within_s=SERVER_S)
async def postgresql_frozen(scene: Scene, chosen: random.Random) -> float:
    await asyncio.to_thread(scene.postgresql.pause)
    await asyncio.sleep(chosen.uniform(1.0, 6.0))
    await asyncio.to_thread(scene.postgresql.resume)
    return time.monotonic()


# --- the network ----------------------------------------------------------------------------------


def _proxies(scene: Scene, chosen: random.Random) -> list[Proxy]:
    return chosen.choice(
        ([scene.to_kafka], [scene.to_postgresql], [scene.to_kafka, scene.to_postgresql])
    )


async def _hold(scene: Scene, chosen: random.Random, *ways: Way) -> float:
    proxies = _proxies(scene, chosen)
    with Hit(scene.shop, scene.behind_proxy()):
        for proxy in proxies:
            proxy.hold(*ways)
        await asyncio.sleep(chosen.uniform(1.0, SESSION_S + 3.0))
        for proxy in proxies:
            proxy.release()
    return time.monotonic()


@kind(SHOP, "network: nothing reaches the servers", within_s=SERVER_S)
async def deaf_server(scene: Scene, chosen: random.Random) -> float:
    return await _hold(scene, chosen, Way.TO_SERVER)


@kind(SHOP, "network: nothing comes back", within_s=SERVER_S)
async def deaf_client(scene: Scene, chosen: random.Random) -> float:
    return await _hold(scene, chosen, Way.TO_CLIENT)


@kind(SHOP, "network: black hole both ways", within_s=SERVER_S)
async def black_hole(scene: Scene, chosen: random.Random) -> float:
    return await _hold(scene, chosen)


@kind(SHOP, "network: cut at any byte, again and again", within_s=SERVER_S)
async def cut(scene: Scene, chosen: random.Random) -> float:
    with Hit(scene.shop, scene.behind_proxy()):
        for _ in range(chosen.randrange(5, 15)):
            chosen.choice((scene.to_kafka, scene.to_postgresql)).cut_after(chosen.randrange(5000))
            await asyncio.sleep(chosen.uniform(0.1, 0.5))
        scene.to_kafka.release()
        scene.to_postgresql.release()
    return time.monotonic()


@kind(SHOP, "network: all connections reset", within_s=SERVER_S)
async def reset(scene: Scene, chosen: random.Random) -> float:
    with Hit(scene.shop, scene.behind_proxy()):
        scene.to_kafka.reset()
        scene.to_postgresql.reset()
    return time.monotonic()


@kind(SHOP, "network: slow", within_s=SERVER_S)
async def slow(scene: Scene, chosen: random.Random) -> float:
    proxies = _proxies(scene, chosen)
    with Hit(scene.shop, scene.behind_proxy()):
        for proxy in proxies:
            proxy.delay_s = chosen.uniform(0.05, 0.3)
        await asyncio.sleep(4.0)
        for proxy in proxies:
            proxy.release()
    return time.monotonic()


# --- damage ---------------------------------------------------------------------------------------


@kind(SHOP, "damaged records")
async def damaged_records(scene: Scene, chosen: random.Random) -> float:
    await _damage(scene.shop, chosen)
    return time.monotonic()


@kind(STALL, "SQLite: damaged records")
async def damaged_rows(scene: Scene, chosen: random.Random) -> float:
    await _damage(scene.stall, chosen)
    return time.monotonic()


async def _damage(world: World, chosen: random.Random) -> None:
    """Bytes that are none of ours, or ours with some wrong, also under the keys of sagas."""
    from sagaz_es.codec.avro import AvroCodec

    stories = world.checker.stories
    ended = [saga_id for saga_id, story in stories.items() if story.status]
    for number in range(5):
        saga_id = chosen.choice(ended)
        found = await world.log.read_saga(saga_id)
        entry = chosen.choice(found).entry
        assert isinstance(entry, e.Event | e.Request)
        value = bytearray(AvroCodec().encode(entry))
        if number % 2:
            value = value[: chosen.randrange(len(value))]
        elif number:
            value[chosen.randrange(10)] ^= 1 << chosen.randrange(8)
        else:
            saga_id, value = f"nobody-{chosen.random()}", bytearray(chosen.randbytes(100))
        await world.log.append_raw(world.log.partition_of(saga_id), saga_id, bytes(value))


@kind(SHOP, "damaged snapshots")
async def damaged_snapshots(scene: Scene, chosen: random.Random) -> float:
    """Damage bytes of stored snapshots; every past state is the same as from the log alone."""
    connection = await asyncpg.connect(scene.database)
    try:
        rows = await connection.fetch(
            "UPDATE sagaz_snapshots SET row = set_byte(row, length(row) / 2, "
            "(get_byte(row, length(row) / 2) + 1) % 256) WHERE number IN "
            "(SELECT number FROM sagaz_snapshots ORDER BY number DESC LIMIT 5) RETURNING saga_id"
        )
    finally:
        await connection.close()
    world = scene.shop
    for saga_id in {row["saga_id"] for row in rows}:
        kept = SagaHistory(saga_id, world.log, world.store, None)
        told = SagaHistory(saga_id, world.log, None, None)
        for sequence in range(1, world.checker.stories[saga_id].sequence + 1):
            ours, whole = await kept.state_at(sequence), await told.state_at(sequence)
            world.checker.counts["past_states"] += 1
            if (ours.status, ours.context) != (whole.status, whole.context):
                world.checker.violations.append(f"{saga_id}: not its past at {sequence}")
    return time.monotonic()


# --- the stall: engines on one file ---------------------------------------------------------------


@kind(STALL, "SQLite: engine killed", within_s=PROCESS_S)
async def stall_killed(scene: Scene, chosen: random.Random) -> float:
    return await _kill(scene, scene.stall, [scene.stall.engines[1]])


@kind(STALL, "SQLite: all engines killed", within_s=PROCESS_S)
async def stall_all_killed(scene: Scene, chosen: random.Random) -> float:
    return await _kill(scene, scene.stall, scene.stall.engines)


@kind(STALL, "SQLite: engine frozen", within_s=PROCESS_S)
async def stall_frozen(scene: Scene, chosen: random.Random) -> float:
    engine = chosen.choice(scene.stall.engines)
    return await _freeze(scene.stall, engine, chosen.uniform(2.0, 6.0))


@kind(STALL, DISK_FULL)
async def disk_full(scene: Scene, chosen: random.Random) -> float:
    assert scene.disk is not None
    ballast = scene.disk / "ballast"
    with Hit(scene.stall, scene.stall.engines), ballast.open("wb", buffering=0) as file:
        until = time.monotonic() + chosen.uniform(2.0, 4.0)
        while time.monotonic() < until:
            try:  # what others free is taken again
                file.write(bytes(4096))
            except OSError:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)
        ballast.unlink()
    return time.monotonic()
