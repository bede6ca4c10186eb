"""What an event costs to write and to read, and a value; µs each, the best of several rounds."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from io import BytesIO
from timeit import repeat
from typing import Any

from fastavro import schemaless_reader, schemaless_writer

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.codec.published import published
from sagaz_es.codec.shapes import ENVELOPE
from sagaz_es.codec.values import from_text, to_text
from sagaz_es.core.events import Event, Fact, StepCompleted, StepFailed, StepStarted

ROUNDS, CALLS = 5, 10_000

FACTS: tuple[Fact, ...] = (
    StepStarted("charge", 1),
    StepCompleted(
        "charge",
        1,
        '{"payment":"p-17","amount":{"$decimal":"9.90"}}',
        '{"payment":"p-17"}',
        "",
        '["order","reservation"]',
    ),
    StepFailed("charge", 1, "PaymentDeclined", "card expired", "Traceback\n" * 40),
)
VALUES: dict[str, Any] = {
    "a small context": {"reservation": "r-1", "sku": "A1", "quantity": 3},
    "with a Decimal": {"reservation": "r-1", "sku": "A1", "price": Decimal("9.90")},
    "of 2 KB": {f"k{n}": {"sku": "A1", "n": n, "tags": ["a", "b"]} for n in range(50)},
}


def run() -> list[tuple[str, float]]:
    """(name, µs an event or value), the library's own share beside ours."""
    codec = AvroCodec()
    rows: list[tuple[str, float]] = []
    for fact in FACTS:
        name = type(fact).__name__
        event = Event(
            "0b7e3f8c-7a94-4ad8-a9d5-1c6f7e2b9d10", "order", b"w" * 16, 0, 7, 10**15, fact
        )
        value = codec.encode(event)
        schema = published()[name][-1].parsed
        fields = {name: getattr(event, name) for name in ENVELOPE}
        fields |= {name: getattr(fact, name) for name in fact.__struct_fields__}
        write = partial(schemaless_writer, BytesIO(), schema, fields)
        read = partial(_read, schema, value[10:])
        rows += [
            (f"encode {name} ({len(value)} bytes)", measure(partial(codec.encode, event))),
            ("  fastavro alone", measure(write)),
            (f"decode {name}", measure(partial(codec.decode, value))),
            ("  fastavro alone", measure(read)),
        ]
    for name, data in VALUES.items():
        rows.append((f"to_text {name}", measure(partial(to_text, data))))
        rows.append((f"from_text {name}", measure(partial(from_text, to_text(data)))))
    return rows


def _read(schema: Any, body: bytes) -> object:
    return schemaless_reader(BytesIO(body), schema, None)


def measure(call: Callable[[], object]) -> float:
    return min(repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6


if __name__ == "__main__":
    for row, cost in run():
        print(f"{row:40} {cost:6.2f}")
