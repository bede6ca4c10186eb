"""Laws of the records' bytes over generated entries and generated damage."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from fastavro import schemaless_writer
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.codec.frame import SingleObject
from sagaz_es.codec.published import published
from sagaz_es.codec.shapes import ENVELOPE, TYPES
from sagaz_es.codec.writing import varint
from sagaz_es.core.events import Entry, Event, Fact, StepStarted
from sagaz_es.errors import UndecodableRecord

CODEC = AvroCodec()
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
LONG = st.integers(-(2**63), 2**63 - 1)
HEADERS = st.sampled_from([SingleObject().header(old[0]) for old in published().values()])


def own(cls: type[Any]) -> st.SearchStrategy[Any]:
    kinds: dict[Any, st.SearchStrategy[Any]] = {str: TEXT, int: LONG, bool: st.booleans()}
    return st.builds(cls, *(kinds[field.type] for field in structs.fields(cls)))


def entry(cls: type[Any]) -> st.SearchStrategy[Entry]:
    if not issubclass(cls, Fact):
        return own(cls)
    writer = st.binary(min_size=16, max_size=16)
    return st.builds(Event, TEXT, TEXT, writer, LONG, LONG, LONG, own(cls), TEXT)


ENTRIES = st.one_of([entry(cls) for cls in TYPES])
VALUES = ENTRIES.map(CODEC.encode)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A record some of whose bytes are replaced by others, or by none."""
    value = draw(VALUES)
    start = draw(st.integers(10, len(value)))
    end = draw(st.integers(start, len(value)))
    return value[:start] + draw(st.binary(max_size=12)) + value[end:]


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
@given(st.data())
def test_an_entry_comes_back_as_it_was(cls: type[Any], data: st.DataObject) -> None:
    written = data.draw(entry(cls))
    replay_id = written.replay_id if isinstance(written, Event) else ""
    assert CODEC.decode(CODEC.encode(written), replay_id=replay_id) == written


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
@given(st.data())
def test_a_record_has_the_bytes_that_fastavro_writes(cls: type[Any], data: st.DataObject) -> None:
    written = data.draw(entry(cls))
    fact = written.fact if isinstance(written, Event) else written
    fields = {name: getattr(fact, name) for name in cls.__struct_fields__}
    if isinstance(written, Event):
        fields |= {name: getattr(written, name) for name in ENVELOPE}
    newest = published()[cls.__name__][-1]
    out = BytesIO()
    schemaless_writer(out, newest.parsed, fields)
    assert CODEC.encode(written) == SingleObject().header(newest) + out.getvalue()


@given(
    st.one_of(
        LONG,
        st.integers(0, 62).flatmap(
            lambda bit: st.integers(-2, 2).map(lambda beside: (1 << bit) + beside)
        ),
    )
)
def test_a_number_has_the_bytes_that_fastavro_writes(number: int) -> None:
    out = BytesIO()
    schemaless_writer(out, "long", number)
    assert varint(number) == out.getvalue()


@given(st.integers(max_value=-(2**63) - 1) | st.integers(min_value=2**63))
def test_a_number_beyond_64_bits_is_refused(number: int) -> None:
    with pytest.raises(OverflowError, match="64 bits"):
        varint(number)


@given(st.binary(max_size=40).filter(lambda writer: len(writer) != 16))
def test_a_writer_of_another_size_is_refused(writer: bytes) -> None:
    with pytest.raises(ValueError, match="writer is not of 16 bytes"):
        CODEC.encode(Event("s", "order", writer, 0, 1, 1, StepStarted("charge", 1)))


@given(VALUES, st.data())
def test_a_record_that_was_cut_off_is_undecodable(value: bytes, data: st.DataObject) -> None:
    with pytest.raises(UndecodableRecord):
        CODEC.decode(value[: data.draw(st.integers(0, len(value) - 1))])


@given(VALUES, st.binary(min_size=1))
def test_a_record_with_bytes_after_it_is_undecodable(value: bytes, rest: bytes) -> None:
    with pytest.raises(UndecodableRecord):
        CODEC.decode(value + rest)


@given(st.one_of(st.binary(), st.builds(bytes.__add__, HEADERS, st.binary()), damaged()))
def test_any_bytes_are_an_entry_that_can_be_written_again_or_undecodable(value: bytes) -> None:
    try:
        read = CODEC.decode(value)
    except UndecodableRecord:
        return
    assert CODEC.decode(CODEC.encode(read)) == read
