"""A log that loses its tail: who has to notice it, and what nobody is held to any more.

The broker's promise is broken, so that what it had acknowledged may be gone. What remains to be
kept: whoever had read further says so, loudly, and goes on from what the log has now.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sagaz_es.core import events as e
from sagaz_es.reading.projection import identity_of
from sagaz_es.reading.projector import AWAY_S
from sagaz_es.testing.simulation import Database, Loss
from sagaz_es.testing.simulation.processes import current_process

if TYPE_CHECKING:
    from tests.simulation.machine import Node, Simulation

WORDS = ("lost its tail", "where the store was made from")
"""What says it: LogTruncated, LogReplaced."""

GRACE_S = 3.0
"""Until then an engine may believe what is gone."""


class Losses:
    """What a simulation's log has lost, and who is to notice it."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.ahead: list[tuple[Loss, Node, str]] = []
        """Processes that had read further than the log went from then on, and what in them."""
        self.told: list[tuple[float, str]] = []  # when a process said it, and its name
        self.sagas: set[str] = set()
        """Those that lost events or requests: what was promised of them, nobody is held to."""
        self.starts: set[tuple[str, str, str, int, bytes]] = set()
        """Lost starts of attempts: (do or undo, saga, step, attempt, writer)."""

    def take(self, loss: Loss) -> None:
        """Of the broker: this was lost just now."""
        simulation = self._simulation
        simulation.truth.begin_anew(simulation.broker)
        simulation.counts["lost tails"] += 1
        simulation.trace(f"p{loss.partition} lost {len(loss.records)} records; ends at {loss.end}")
        for record in loss.records:
            entry = record.entry
            if isinstance(entry, e.Event | e.Request):
                self.sagas.add(entry.saga_id)
            if isinstance(entry, e.Event):
                self._take_start(entry)
        self.ahead += [(loss, *found) for found in self._ahead_of(loss)]

    def _take_start(self, event: e.Event) -> None:
        fact = event.fact
        if isinstance(fact, e.StepStarted | e.StepCompensationStarted):
            what = "do" if isinstance(fact, e.StepStarted) else "undo"
            self.starts.add((what, event.saga_id, fact.step, fact.attempt, event.writer))
        elif isinstance(fact, e.ReplayBranched):
            self.sagas.add(fact.branch_saga_id)

    def _ahead_of(self, loss: Loss) -> Iterator[tuple[Node, str]]:
        for node in self._simulation.nodes:
            if not node.process.alive:
                continue
            partitions = node.engine.host.partitions if node.engine is not None else {}
            partition = partitions.get(loss.partition)
            # An append that is on its way may stand where something was lost.
            quiet = partition is not None and not partition.leaving and not partition._sending
            if partition is not None and quiet and partition.position > loss.end:
                yield node, "engine"
            lane = node.projector._lanes.get(loss.partition) if node.projector else None
            if lane is not None and lane.running and lane.checkpoint.next_offset > loss.end:
                yield node, "projector"

    def tell(self, process: str, words: str) -> None:
        """Somebody says something in a loud voice."""
        if any(part in words for part in WORDS):
            self.told.append((self._simulation.loop.time(), process))

    def is_cause_of(self, words: str) -> bool:
        """Whether an alarm says what has happened."""
        return bool(self._simulation.broker.losses) and any(part in words for part in WORDS)

    def may_believe(self, node: Node, partition: int) -> bool:
        """Whether an engine may still believe what is gone."""
        now, slept = self._simulation.loop.time(), node.process.name in self._simulation.slept
        return any(
            loss.partition == partition and (slept or now < loss.at + GRACE_S)
            for loss in self._simulation.broker.losses
        )

    def unnoticed(self) -> Iterator[str]:
        """Who had read further, lived on, and has said nothing."""
        for loss, node, what in self.ahead:
            process = node.process
            if not process.alive or process.name in self._simulation.slept:
                continue
            if not any(at >= loss.at and name == process.name for at, name in self.told):
                yield (
                    f"lost tail unnoticed: the {what} of {process.name} had read further than "
                    f"{loss.partition}/{loss.end}, and goes on"
                )

    def hides(self, client: str) -> bool:
        """Whether a client waits for what is gone, in a process that had not read it."""
        return any(f"'{saga_id}'" in client for saga_id in self.sagas)

    # --- what people do then ---

    def stores_to_rebuild(self) -> bool:
        """Whether the store was made from what is gone."""
        broker = self._simulation.broker
        for partition in broker.partitions:
            kept = self._simulation.database.kept._checkpoints.get(partition.index)
            if kept is None or not kept.last_identity:
                continue
            offset = int(kept.last_identity.partition("/")[0])
            stands = partition.records[offset] if offset < partition.end else None
            if stands is None or identity_of(stands) != kept.last_identity:
                return True
        return False

    def rebuild_store(self) -> None:
        """As `sagaz-es projector rebuild`: the store is made anew, in place."""
        simulation = self._simulation
        simulation.trace("the store is rebuilt")
        simulation.database.kept = Database(simulation.broker).kept


def lose_tail(simulation: Simulation, index: int, records: int, down_s: float) -> None:
    """The leader of a partition goes, and one that lagged behind takes its place."""
    broker = simulation.broker
    broker.lead_elsewhere(index, down_s)
    # No append that was under way lands before the new leader is there.
    broker.loop.in_world(down_s, _lose, simulation, index, records)


def _lose(simulation: Simulation, index: int, records: int) -> None:
    if simulation.counts["retentions"]:
        return  # a store that is made anew needs the whole log
    if simulation.counts["splits"]:
        return  # of two engines at one partition the one behind believes the store
    if any(node.process.paused or node.process.cut for node in simulation.nodes):
        return  # who sleeps through it may wake when the log has grown beyond its place again
    # One who takes over while the store does not answer cannot see that it knows more than the log.
    simulation.broker.weather.store_errors = simulation.database.down_until = 0.0
    # A log that grows again at once may hide it from a projector, which appends nothing, and from
    # an engine that cannot read at that moment, or waits for an append.
    quick = simulation.plan.store == "none" and not any(map(_is_appending, simulation.nodes))
    simulation.broker.weather.errors = simulation.broker.weather.unknown = 0.0
    refuses_s = 0.1 if quick else 2 * AWAY_S
    simulation.broker.lose_tail(index, records, refuses_s=refuses_s)


def _is_appending(node: Node) -> bool:
    partitions = node.engine.host.partitions.values() if node.engine is not None else ()
    return any(partition._sending for partition in partitions)


def process_name() -> str:
    """That of the process whose code runs."""
    process = current_process.get()
    return process.name if process is not None else ""
