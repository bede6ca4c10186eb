"""One run: two shops under load, one fault after the other, and what the checker says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.chaos.faults import DISK_FULL, SESSION_S, SHOP, STALL, Scene, deck
from tests.chaos.memory import trend
from tests.chaos.report import Happened, Outcome, missed, rows
from tests.chaos.world import NORMAL_WITHIN_S, World
from tests.servers import KafkaServer, PostgreSQLServer

DISK_BYTES = 400_000_000
MEASURE_EVERY_S = 1.0


class Run:
    """`outcome()` after `run()`. `say` is told each fault as it ends."""

    def __init__(
        self,
        kafka: KafkaServer,
        postgresql: PostgreSQLServer,
        directory: Path,
        *,
        namespace: str,
        database: str,
        seed: int,
        rate: float = 3.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.seed, self._rate, self._say = seed, rate, say
        self.happened: list[Happened] = []
        self.began = time.monotonic()
        (directory / "shop").mkdir()
        (directory / "stall").mkdir()
        options = f"{namespace}?partitions=4&session_timeout_ms={int(SESSION_S * 1000)}"
        direct = f"kafka://{kafka.bootstrap}/{options}"
        self._shop = World("shop", directory / "shop", (direct, database))
        self._directory = directory
        file = f"sqlite:///{directory}/stall/disk/stall.db"
        self._stall = World("stall", directory / "stall", (file, file))
        self.scene = Scene(self._shop, self._stall, kafka, postgresql)
        self.scene.database = database
        self._logs = direct, f"kafka://{kafka.through_proxy}/{options}", file

    @property
    def worlds(self) -> tuple[World, World]:
        return self._shop, self._stall

    @property
    def violations(self) -> list[str]:
        return [line for world in self.worlds for line in world.checker.violations]

    async def run(
        self, kinds: Iterable[str], *, count: int = 10**9, seconds: float = math.inf
    ) -> None:
        """Faults of these kinds, until there were so many or so long has passed; then rest."""
        with small_disk(self._directory / "stall" / "disk") as disk:
            self.scene.disk = disk
            kinds = [name for name in kinds if disk is not None or name != DISK_FULL]
            async with self.scene.to_kafka, self.scene.to_postgresql:
                measuring = asyncio.create_task(self._measure())
                try:
                    await self._open()
                    self.began = time.monotonic()
                    for name, chosen in deck(kinds, self.seed):
                        late = time.monotonic() - self.began >= seconds
                        if late or len(self.happened) >= count:
                            break
                        await self._one(name, chosen)
                    for world in self.worlds:
                        await world.stop_ordering()
                    for world in self.worlds:
                        await world.rest()
                finally:
                    measuring.cancel()
                    await asyncio.gather(measuring, return_exceptions=True)
                    for world in self.worlds:
                        await world.close()

    async def _open(self) -> None:
        direct, behind, file = self._logs
        database = self.scene.database
        port = f":{self.scene.postgresql.port}/"
        proxied = database.replace(port, f":{self.scene.to_postgresql.port}/")
        shop, rate = self._shop, self._rate
        shop.add_engine("engine 1", direct, database, rate, "shop-1")
        shop.add_engine("engine 2", behind, proxied, rate, "shop-2")
        shop.add_engine("engine 3", behind, proxied, rate)
        shop.add_projector("projector", behind, proxied)
        shop.add_projector("rival projector", direct, database)
        for number in (1, 2):
            self._stall.add_engine(f"SQLite engine {number}", file, file, rate / 2)
        await asyncio.gather(
            *(world.open(self.seed + n, self._rate) for n, world in enumerate(self.worlds))
        )
        for world in self.worlds:
            if not await world.normal():
                raise RuntimeError(f"{world.name} does not even work as it is\n{world.said()}")

    async def _one(self, name: str, chosen: random.Random) -> None:
        world, fault = (self._shop, SHOP[name]) if name in SHOP else (self._stall, STALL[name])
        await asyncio.sleep(chosen.uniform(0.5, 2.0))
        began = time.monotonic()
        healed = await fault(self.scene, chosen)
        if not await world.normal():
            world.checker.violations.append(
                f"after {name!r} nothing works within {NORMAL_WITHIN_S} s"
            )
        normal = time.monotonic()
        for each in self.worlds:
            each.listen()
            await each.check()
        last = Happened(name, began - self.began, healed - began, normal - healed)
        self.happened.append(last)
        wrong = len(self.violations)
        self._say(
            f"{last.at:6.1f} s  {name}: lasted {last.down_s:.1f} s, "
            f"normal again after {last.normal_s:.2f} s" + (f"; {wrong} VIOLATIONS" if wrong else "")
        )

    async def _measure(self) -> None:
        while True:
            for world in self.worlds:
                for process in world.processes:
                    process.measure()
            await asyncio.sleep(MEASURE_EVERY_S)

    def outcome(self) -> Outcome:
        counts = self._shop.checker.counts + self._stall.checker.counts
        processes = [process for world in self.worlds for process in world.processes]
        memory = {each.name: found for each in processes if (found := trend(each.memory))}
        by_kind = rows(self.happened)
        return Outcome(
            seed=self.seed,
            minutes=round((time.monotonic() - self.began) / 60, 1),
            faults=len(self.happened),
            kinds=len({each.kind for each in self.happened}),
            kills=self.scene.kills,
            orders=sum(len(world.checker.stories) for world in self.worlds),
            events_checked=counts["events"],
            effects_checked=counts["effects"],
            records=counts["records"],
            rejected_by_the_fold=counts["rejected"],
            steps_run_again=counts["twice"],
            late_effects_of_the_cut_off=counts["late_effects"],
            past_states_checked=counts["past_states"],
            violations=len(self.violations),
            goals_missed=len(missed(by_kind, memory)),
            memory=memory,
            by_kind=by_kind,
        )


def all_kinds() -> list[str]:
    """Every kind of fault; a full disk only happens where a small one can be had."""
    return [*SHOP, *STALL]


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path | None]:
    """A file system of its own for what is to fill up; None where nobody lets us mount one."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(directory)]
    mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    try:
        yield directory if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(directory)], check=True)


@contextlib.contextmanager
def be_quiet() -> Iterator[None]:
    """What the product says about servers that we kill is not news."""
    levels = {logging.getLogger(name): 0 for name in ("sagaz_es", "aiokafka")}
    for logger in levels:
        levels[logger] = logger.level
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
