"""Entries <-> the bytes of a record: Avro, after a header that names the schema.

Law (round trip): `decode(encode(entry))` equals the entry, given its `replay_id`.
Law (loud): bytes that are not exactly one record raise UndecodableRecord.
Law (read for ever): records of every published version are read, lifted to the newest one.

What an event costs, and why a library writes it: docs/decisions/0004-fastavro.md.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

from fastavro import schemaless_reader

from sagaz_es.codec.frame import Framing, SingleObject
from sagaz_es.codec.published import Published, Schemas, published
from sagaz_es.codec.shapes import ENVELOPE, TYPES, Fields, entry_by_name, entry_of
from sagaz_es.codec.upcast import UPCASTS, Upcasts, lift
from sagaz_es.codec.writing import Write, writer_of
from sagaz_es.core.events import FACTS, Entry, Event
from sagaz_es.errors import UndecodableRecord, UnknownRecordType, UnstorableValue


class _Reader(NamedTuple):
    start: int  # where the header ends
    schema: Any  # the one that the record is written with
    entry_of: Callable[[Fields, str], Entry]
    name: str


class AvroCodec:
    """One serves a whole process: it has no state but the headers that it has met.

    With a Confluent framing, making one asks the registry for the id of every schema.
    """

    def __init__(
        self,
        framing: Framing | None = None,
        *,
        schemas: Schemas | None = None,
        upcasts: Upcasts = UPCASTS,
    ) -> None:
        self._framing = framing or SingleObject()
        self._header_size = self._framing.size
        self._schemas = published() if schemas is None else schemas
        self._upcasts = upcasts
        self._by_fingerprint = {
            schema.fingerprint: schema for versions in self._schemas.values() for schema in versions
        }
        self._writers: dict[type[Any], Write] = {}
        self._readers: dict[bytes, _Reader] = {}
        for cls in TYPES:
            newest = self._schemas[cls.__name__][-1]
            header = self._framing.header(newest)
            envelope = frozenset(ENVELOPE if cls in FACTS else ())
            self._writers[cls] = writer_of(newest.parsed, header, envelope)
            self._readers[header] = self._reader(len(header), newest)

    def encode(self, entry: Entry) -> bytes:
        """The value of the entry's record. Raises UnstorableValue for a text that is no Unicode."""
        own: Any = entry.fact if type(entry) is Event else entry
        try:
            return self._writers[type(own)](entry, own)
        except UnicodeEncodeError:
            raise _no_unicode(entry, own) from None

    def decode(self, value: bytes | memoryview, *, replay_id: str = "") -> Entry:
        """The entry of a record; an event gets the `replay_id`, which travels beside the value.

        Raises UndecodableRecord; as UnknownRecordType, if only its schema is not known here.
        """
        if type(value) is not bytes:
            value = bytes(value)
        reader = self._readers.get(value[: self._header_size]) or self._find(value)
        body = BytesIO(value)
        body.seek(reader.start)
        try:
            fields: Any = schemaless_reader(body, reader.schema, None)
        except (EOFError, IndexError):
            raise UndecodableRecord(f"a {reader.name} cut off or damaged") from None
        except ValueError as error:
            raise UndecodableRecord(f"a damaged {reader.name}: {error}") from None
        # fastavro leaves what it does not need: two records in one would be read as the first.
        if rest := len(value) - body.tell():
            raise UndecodableRecord(f"a {reader.name} with {rest} bytes too many")
        return reader.entry_of(fields, replay_id)

    def _find(self, value: bytes) -> _Reader:
        """The reader for a header that is not written today."""
        start, fingerprint = self._framing.find(value)
        header = value[:start]
        if header not in self._readers:
            schema = self._by_fingerprint.get(fingerprint)
            if schema is None:
                mark = fingerprint[::-1].hex()
                raise UnknownRecordType(f"unknown schema {mark}: written by a newer version?")
            self._readers[header] = self._reader(start, schema)
        return self._readers[header]

    def _reader(self, start: int, schema: Published) -> _Reader:
        name, version, newest = schema.name, schema.version, len(self._schemas[schema.name])
        cls = next(cls for cls in TYPES if cls.__name__ == name)
        if version == newest:
            return _Reader(start, schema.parsed, entry_of(cls), name)

        def lifted(fields: Fields, replay_id: str) -> Entry:
            fields = lift(fields, name, version, newest, self._upcasts)
            return entry_by_name(cls, fields, replay_id)

        return _Reader(start, schema.parsed, lifted, name)


def _no_unicode(entry: Any, own: Any) -> UnstorableValue:
    places = [(own, name) for name in own.__struct_fields__]
    if entry is not own:
        places += [(entry, name) for name in ENVELOPE]
    field = next(name for place, name in places if not _is_unicode(getattr(place, name)))
    hint = "it is no Unicode text; write it with errors='backslashreplace'"
    return UnstorableValue(f"{type(own).__name__}.{field}", "str with a lone surrogate", hint)


def _is_unicode(value: Any) -> bool:
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True
