"""Fold and codec, µs an event."""

from __future__ import annotations

import time

from benchmarks.sagas import FiveSteps
from benchmarks.table import markdown
from sagaz_es.codec.avro import AvroCodec
from sagaz_es.core import events as e
from sagaz_es.core.fold import fold_into
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import join_object

WRITER = b"w" * 16


def history() -> list[e.Event]:
    """The twelve events of a five-step saga with a 2 KB context."""
    graph = FiveSteps().definition().graph
    context = '{"order":"' + "x" * 1900 + '"}'
    facts: list[e.Fact] = [e.SagaStarted(graph.fingerprint, graph.text, context)]
    for name in graph.order:
        facts.append(e.StepStarted(name))
        facts.append(
            e.StepCompleted(
                name,
                1,
                '{"id":"r-1"}',
                join_object({name: '"r-1"'}),
                "",
                '["order"]',
            )
        )
    facts.append(e.SagaCompleted())
    at = 1_790_000_000_000_000
    return [
        e.Event("5d2c7a3e-11f0-4a57-9c1d-000000000000", "five-steps", WRITER, 0, n, at + n, fact)
        for n, fact in enumerate(facts, 1)
    ]


def _us(work: object, times: int) -> float:
    assert callable(work)
    best = min(_once(work, times) for _ in range(5))
    return best / times * 1e6


def _once(work: object, times: int) -> float:
    assert callable(work)
    began = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - began


def run() -> str:
    events = history()
    codec = AvroCodec()

    def fold() -> None:
        state = SagaState()
        for event in events:
            fold_into(state, event)

    rows: list[tuple[str, str]] = [
        ("fold, mean of a five-step saga's 12", f"{_us(fold, 2000) / len(events):.2f}")
    ]
    kinds = {type(event.fact).__name__: event for event in reversed(events)}
    for name, event in kinds.items():
        data = codec.encode(event)
        encode = _us(lambda event=event: codec.encode(event), 5000)
        decode = _us(lambda data=data: codec.decode(data), 5000)
        rows.append((f"encode / decode {name} ({len(data)} bytes)", f"{encode:.1f} / {decode:.1f}"))
    return markdown("Core and codec, one core", ("what", "µs an event"), rows)
