"""The short form of `make chaos`: two shops under load, the servers and processes fail in turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.report import curve, last_line, table
from tests.chaos.run import Run, all_kinds, be_quiet
from tests.servers import KafkaServer, PostgreSQLServer

SEED = 17
KINDS = (
    "engine killed (static member)",
    "engine killed while it takes over",
    "engine frozen beyond its session",
    "projector frozen while another works",
    "Kafka killed",
    "PostgreSQL killed",
    "network: cut at any byte, again and again",
    "network: nothing comes back",
    "damaged snapshots",
    "SQLite: all engines killed",
    "SQLite: disk full",
)


@pytest.mark.timeout(400)
async def test_whatever_fails_every_effect_is_balanced_and_everything_works_again(
    kafka_server: KafkaServer,
    kafka_namespace: str,
    postgresql_server: PostgreSQLServer,
    postgresql_url: str,
    tmp_path: Path,
) -> None:
    assert set(KINDS) <= set(all_kinds())
    told: list[str] = []
    run = Run(
        kafka_server,
        postgresql_server,
        tmp_path,
        namespace=kafka_namespace,
        database=postgresql_url,
        seed=SEED,
        rate=2.0,
        say=told.append,
    )
    with be_quiet():  # a disk to fill is not to be had everywhere: one fault less
        await run.run(KINDS, count=len(KINDS) - 1)
    assert run.violations == [], "\n".join(told)
    outcome = run.outcome()
    assert outcome.faults == outcome.kinds == len(KINDS) - 1
    assert outcome.orders > 100
    assert outcome.effects_checked > 500
    assert outcome.past_states_checked > 0
    assert last_line(outcome).startswith(f"chaos: seed {SEED}, ")
    told_of = table(outcome.by_kind, outcome.memory)
    assert all(f"| {each.kind} | 1 |" in told_of for each in run.happened)
    assert all(f"- {each.name}: " in told_of for world in run.worlds for each in world.engines)
    assert "polyline" in curve([p for world in run.worlds for p in world.processes], run.began)
