"""What stands before the Avro bytes of a record and says which schema they are written with."""

from __future__ import annotations

from typing import Protocol

from fastavro.schema import SchemaParseException

from sagaz_es.codec.published import Published, read_schema
from sagaz_es.errors import UndecodableRecord, UnknownRecordType


class Framing(Protocol):
    """A header of `size` bytes, the same for every record of one schema."""

    @property
    def size(self) -> int: ...

    def header(self, schema: Published) -> bytes:
        """What a record of this schema begins with."""

    def find(self, value: bytes) -> tuple[int, bytes]:
        """How many bytes of `value` are header, and the fingerprint of the schema that it names.

        Raises UndecodableRecord if it does not begin with a header, UnknownRecordType if the header
        names no schema.
        """


class SingleObject:
    """Avro's own: `C3 01`, then the schema's CRC-64-AVRO fingerprint, little-endian."""

    size = 10

    def header(self, schema: Published) -> bytes:
        return b"\xc3\x01" + schema.fingerprint

    def find(self, value: bytes) -> tuple[int, bytes]:
        if not value.startswith(b"\xc3\x01"):
            hint = "; was it written with a schema registry?" if value.startswith(b"\0") else ""
            raise UndecodableRecord(f"no record of ours: it does not begin with C3 01{hint}")
        if len(value) < self.size:
            raise UndecodableRecord(f"a record cut off after {len(value)} bytes")
        return self.size, value[2:10]


class Registry(Protocol):
    """The ids of a schema registry. What was asked once is remembered; the first time waits.

    Raises Unreachable if the registry does not answer, RegistryRefused if it does not agree.
    """

    def id_of(self, schema: Published) -> int:
        """The id of one of our schemas, registered if need be."""

    def schema_of(self, schema_id: int) -> str | None:
        """The text of a schema, whatever its language; None if there is none of this id."""


class Confluent:
    """The format of Confluent's serializers: a zero byte, then the schema's id, big-endian.

    Records without a registry are read as well: a log may be older than its registry.
    """

    size = 5

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def header(self, schema: Published) -> bytes:
        return b"\0" + self._registry.id_of(schema).to_bytes(4, "big")

    def find(self, value: bytes) -> tuple[int, bytes]:
        if not value.startswith(b"\0"):
            return SingleObject().find(value)
        if len(value) < self.size:
            raise UndecodableRecord(f"a record cut off after {len(value)} bytes")
        schema_id = int.from_bytes(value[1:5], "big")
        text = self._registry.schema_of(schema_id)
        if text is None:
            raise UnknownRecordType(f"schema id {schema_id} is not known to the registry")
        try:
            # By fingerprint, not by id: the same schema with other docs has another id.
            return self.size, read_schema(text)[0]
        except (KeyError, TypeError, ValueError, RecursionError, SchemaParseException) as error:
            raise UnknownRecordType(f"schema id {schema_id} is not usable: {error}") from None
