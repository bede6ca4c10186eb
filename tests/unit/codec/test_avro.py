"""Records as bytes: what is written, what is read, what is refused and how it is said."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from msgspec.structs import replace

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.codec.published import Published, Schemas, published, read_schema
from sagaz_es.codec.upcast import Fields, lift
from sagaz_es.core.events import (
    CancelRequested,
    Entry,
    Event,
    NamespaceCreated,
    StepCompleted,
    StepFailed,
    StepStarted,
)
from sagaz_es.errors import UndecodableRecord, UnknownRecordType, UnstorableValue

WRITER = bytes(range(16))
EVENT = Event("order-17", "order", WRITER, 0, 7, 1_760_000_000_000_000, StepStarted("charge", 2))
CODEC = AvroCodec()
VALUE = CODEC.encode(EVENT)


def zigzag(number: int) -> bytes:
    """Avro's own way to write an int or long."""
    number = number << 1 if number >= 0 else ~(number << 1)
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def test_a_record_is_a_header_and_its_fields_in_order() -> None:
    assert VALUE == b"".join(
        [
            b"\xc3\x01",
            published()["StepStarted"][-1].fingerprint,
            zigzag(8) + b"order-17",
            zigzag(5) + b"order",
            WRITER,
            zigzag(0),
            zigzag(7),
            zigzag(1_760_000_000_000_000),
            zigzag(6) + b"charge",
            zigzag(2),
        ]
    )


@pytest.mark.parametrize(
    "entry",
    [
        EVENT,
        replace(EVENT, epoch=-1, fact=StepCompleted("charge", 1, '{"a":"ü"}', "{}", "[]", "[]")),
        replace(EVENT, fact=StepFailed("charge", unknown=True, retry_at=2**62)),
        CancelRequested("r-1", "order-17", 5, "anna", "called"),
        NamespaceCreated("shop", 3, 4),
    ],
    ids=lambda entry: type(entry).__name__,
)
def test_an_entry_comes_back(entry: Entry) -> None:
    assert CODEC.decode(CODEC.encode(entry)) == entry


def test_an_event_gets_the_replay_id_that_travels_beside_it() -> None:
    value = CODEC.encode(replace(EVENT, replay_id="replay-1"))
    assert value == VALUE
    assert CODEC.decode(value, replay_id="replay-1") == replace(EVENT, replay_id="replay-1")


@pytest.mark.parametrize("view", [memoryview, bytearray, lambda v: memoryview(bytearray(v))])
def test_any_buffer_is_read(view: Any) -> None:
    assert CODEC.decode(view(VALUE)) == EVENT


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "no record of ours: it does not begin with C3 01"),
        (b'{"saga_id": "x"}', "no record of ours: it does not begin with C3 01"),
        (b"\0\0\0\0\x01abc", "does not begin with C3 01; was it written with a schema registry"),
        (b"\xc3\x02" + VALUE[2:], "no record of ours: it does not begin with C3 01"),
        (VALUE[:9], "a record cut off after 9 bytes"),
        (VALUE[:10], "a StepStarted cut off or damaged"),
        (VALUE[:-1], "a StepStarted cut off or damaged"),
        (VALUE + b"\0\0", "a StepStarted with 2 bytes too many"),
        (VALUE + VALUE, f"a StepStarted with {len(VALUE)} bytes too many"),
        (VALUE.replace(b"charge", b"charg\xff"), "a damaged StepStarted: 'utf-8' codec"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_bytes_that_are_no_record_are_undecodable_and_it_is_said_why(
    value: bytes, reason: str
) -> None:
    with pytest.raises(UndecodableRecord) as caught:
        CODEC.decode(value)
    assert reason in caught.value.reason
    assert type(caught.value) is UndecodableRecord


def test_a_record_of_a_newer_version_is_told_from_a_damaged_one() -> None:
    with pytest.raises(UnknownRecordType, match=r"^unknown schema 0807060504030201: written by a"):
        CODEC.decode(b"\xc3\x01" + bytes(range(1, 9)) + b"...")


@pytest.mark.parametrize("length", [-1, -(2**31), 60, 2**31, 2**33, 2**62, -(2**63), 2**63 - 1])
def test_a_text_that_claims_any_length_costs_no_memory(length: int) -> None:
    value = VALUE[:10] + zigzag(length) + VALUE[11:]
    tracemalloc.start()
    try:
        with pytest.raises(UndecodableRecord):
            CODEC.decode(value)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("number", [b"\xff" * 30, b"\x80" * 30 + b"\0", b"\xff" * 10_000])
def test_a_number_that_never_ends_is_undecodable(number: bytes) -> None:
    with pytest.raises(UndecodableRecord):
        CODEC.decode(VALUE[:10] + number + VALUE[11:])


def test_a_text_that_is_no_unicode_is_refused_with_its_field() -> None:
    fact = StepFailed("charge", error_type="OSError", error_message="no file '\udcff'")
    with pytest.raises(UnstorableValue) as caught:
        CODEC.encode(replace(EVENT, fact=fact))
    assert caught.value.path == "StepFailed.error_message"


# --- old versions --------------------------------------------------------------------------------


def version(number: int, text: str) -> Published:
    return Published("StepStarted", number, text, *read_schema(text))


def two_older_versions() -> Schemas:
    """StepStarted as it never was: first without `attempt`, then with the step called `task`."""
    newest = published()["StepStarted"][-1]
    first = json.loads(newest.text)
    first["fields"][-1] = {"name": "colour", "type": "string"}
    second = json.loads(newest.text.replace('"step"', '"task"'))
    versions = (
        version(1, json.dumps(first)),
        version(2, json.dumps(second)),
        version(3, newest.text),
    )
    return {**published(), "StepStarted": versions}


def step_is_task(fields: Fields) -> Fields:
    return {"task": fields["step"], **{k: fields[k] for k in fields if k != "step"}}


def task_is_step(fields: Fields) -> Fields:
    return {"step": fields["task"], **{k: fields[k] for k in fields if k != "task"}}


UPCASTS = {("StepStarted", 1): step_is_task, ("StepStarted", 2): task_is_step}


def written_as(number: int, body: bytes) -> bytes:
    fingerprint = two_older_versions()["StepStarted"][number - 1].fingerprint
    return b"\xc3\x01" + fingerprint + VALUE[10:-8] + body


@pytest.mark.parametrize(
    ("value", "attempt"),
    [
        (written_as(1, zigzag(6) + b"charge" + zigzag(3) + b"red"), 1),
        (written_as(2, zigzag(6) + b"charge" + zigzag(2)), 2),
        (VALUE, 2),
    ],
    ids=["1", "2", "3"],
)
def test_a_record_of_any_version_is_lifted_to_the_newest(value: bytes, attempt: int) -> None:
    codec = AvroCodec(schemas=two_older_versions(), upcasts=UPCASTS)
    for _ in range(2):  # the second time its header is known
        decoded = codec.decode(value, replay_id="replay-1")
        assert decoded == replace(EVENT, fact=StepStarted("charge", attempt), replay_id="replay-1")


def test_only_the_newest_version_is_written() -> None:
    assert AvroCodec(schemas=two_older_versions(), upcasts=UPCASTS).encode(EVENT) == VALUE


def test_an_older_request_is_lifted_as_well() -> None:
    newest = published()["CancelRequested"][-1]
    first = json.loads(newest.text)
    del first["fields"][2:]
    text = json.dumps(first)
    old = Published("CancelRequested", 1, text, *read_schema(text))
    schemas = {**published(), "CancelRequested": (old, version(2, newest.text))}
    value = b"\xc3\x01" + old.fingerprint + zigzag(3) + b"r-1" + zigzag(5) + b"order"
    assert AvroCodec(schemas=schemas).decode(value) == CancelRequested("r-1", "order")


def test_fields_pass_every_version_between() -> None:
    upcasts = {("A", n): (lambda fields, n=n: {"seen": [*fields["seen"], n]}) for n in (1, 3, 4)}
    assert lift({"seen": []}, "A", 1, 4, upcasts) == {"seen": [1, 3]}
    assert lift({"seen": []}, "A", 4, 4, upcasts) == {"seen": []}
    assert lift({"seen": []}, "B", 1, 4, upcasts) == {"seen": []}
