"""The published schemas: they say what the Structs say, and can be read by everybody for ever."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import avro.schema
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from msgspec import structs

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.codec.published import Published, published, read_schema
from sagaz_es.codec.shapes import ENVELOPE, TYPES, entry_by_name
from sagaz_es.core.events import FACTS, Event
from tests.golden import HISTORY, SCHEMAS, file_name, history, without_docs

NAMES = [cls.__name__ for cls in TYPES]
VERSIONS = [schema for versions in history().values() for schema in versions]
MICROS = {"type": "long", "logicalType": "timestamp-micros"}
INTS = ("epoch", "attempt", "partition", "partitions", "format_version")


def schema_of(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((SCHEMAS / f"{file_name(name)}.avsc").read_text("utf-8"))
    return schema


def label(schema: Published) -> str:
    return f"{schema.name}-{schema.version}"


def avro_type(field: structs.FieldInfo) -> Any:
    if field.name.endswith("_at"):
        return MICROS
    if field.type is int:
        return "int" if field.name in INTS else "long"
    return {
        str: "string",
        bool: "boolean",
        bytes: {"type": "fixed", "name": "Writer", "size": 16},
    }[field.type]


def test_there_is_one_schema_for_each_fact_and_request() -> None:
    assert {file.stem for file in SCHEMAS.glob("*.avsc")} == {file_name(name) for name in NAMES}


@pytest.mark.parametrize("cls", TYPES, ids=NAMES)
def test_a_schema_has_the_fields_of_its_struct_in_order_after_the_envelope(cls: type[Any]) -> None:
    schema = schema_of(cls.__name__)
    fields = list(structs.fields(cls))
    if cls in FACTS:
        fields = [field for field in structs.fields(Event) if field.name in ENVELOPE] + fields
    assert (schema["type"], schema["name"], schema["namespace"]) == (
        "record",
        cls.__name__,
        "sagaz",
    )
    found = [
        (field["name"], field["type"], field.get("default", "required"))
        for field in schema["fields"]
    ]
    assert found == [
        (field.name, avro_type(field), "required" if field.required else field.default)
        for field in fields
    ]


@pytest.mark.parametrize("name", NAMES)
def test_records_and_fields_say_what_they_mean(name: str) -> None:
    schema = schema_of(name)
    for part in (schema, *schema["fields"]):
        assert len(part["doc"]) > 10 and part["doc"].endswith("."), part["name"]


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_default_is_explained(name: str) -> None:
    for field in schema_of(name)["fields"]:
        if field["type"] == "string" and field.get("default") == "":
            assert "empty" in field["doc"], field["name"]
        if field["type"] == MICROS:
            assert "UTC" in field["doc"] and ("default" not in field or "0: " in field["doc"])


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_that_has_changed_is_published(name: str) -> None:
    """If not: `python -m tests.golden.publish` makes it the next version."""
    text = (SCHEMAS / f"{file_name(name)}.avsc").read_text("utf-8")
    newest = history()[name][-1]
    assert without_docs(text) == without_docs(newest.text)


def incompatibilities(versions: list[str]) -> list[str]:
    """What FULL_TRANSITIVE forbids: any version must read any other."""
    parsed = [avro.schema.parse(text) for text in versions]
    found = []
    for one, other in combinations(parsed, 2):
        for reader, writer in ((one, other), (other, one)):
            checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]
            answer = checker.get_compatibility(reader, writer)
            if answer.compatibility is not SchemaCompatibilityType.compatible:
                found += sorted(answer.messages)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_version_reads_every_other(name: str) -> None:
    assert incompatibilities([schema.text for schema in history()[name]]) == []


def changed(**changes: Any) -> list[str]:
    """StepStarted, and a version of it with a field changed, added or, if None, left out."""
    schema = schema_of("StepStarted")
    fields = {field["name"]: field for field in schema["fields"]}
    for name, change in changes.items():
        fields[name] = {"name": name, **change} if change else None
    later = {**schema, "fields": [field for field in fields.values() if field]}
    return [json.dumps(schema), json.dumps(later)]


@pytest.mark.parametrize(
    "change",
    [
        {"step": None},
        {"worker": {"type": "string"}},
        {"attempt": {"type": "string", "default": ""}},
        {"attempt": {"type": "long", "default": 1}},
        {"writer": {"type": {"type": "fixed", "name": "Writer", "size": 8}}},
    ],
    ids=str,
)
def test_a_change_that_breaks_a_reader_is_noticed(change: dict[str, Any]) -> None:
    assert incompatibilities(changed(**change)) != []


@pytest.mark.parametrize(
    "change", [{"worker": {"type": "string", "default": ""}}, {"attempt": None}], ids=str
)
def test_a_field_with_a_default_may_come_and_go(change: dict[str, Any]) -> None:
    assert incompatibilities(changed(**change)) == []


def test_a_break_with_a_version_before_the_last_one_is_noticed() -> None:
    first, second = changed(attempt=None)
    third = changed(attempt={"type": "string", "default": ""})[1]
    assert incompatibilities([first, second]) == incompatibilities([second, third]) == []
    assert incompatibilities([first, second, third]) != []


@pytest.mark.parametrize("schema", VERSIONS, ids=label)
def test_golden_bytes_are_read(schema: Published) -> None:
    cls = next(cls for cls in TYPES if cls.__name__ == schema.name)
    value, fields = golden(schema)
    # A version that needed an upcaster says here what its sample is today.
    assert AvroCodec().decode(value) == entry_by_name(cls, fields, "")


@pytest.mark.parametrize("name", NAMES)
def test_the_newest_golden_bytes_are_what_is_written(name: str) -> None:
    value, _ = golden(history()[name][-1])
    assert AvroCodec().encode(AvroCodec().decode(value)).hex() == value.hex()


def golden(schema: Published) -> tuple[bytes, dict[str, Any]]:
    sample = json.loads(
        (HISTORY / file_name(schema.name) / f"{schema.version}.json").read_text("utf-8")
    )
    fields = dict(sample["fields"])
    if "writer" in fields:
        fields["writer"] = bytes.fromhex(fields["writer"])
    return bytes.fromhex(sample["hex"]), fields


def test_golden_bytes_hold_no_defaults() -> None:
    for schema in VERSIONS:
        fields = golden(schema)[1]
        for field in json.loads(schema.text)["fields"]:
            assert fields[field["name"]] != field.get("default"), (schema.name, field["name"])


@pytest.mark.parametrize("schema", VERSIONS, ids=label)
def test_another_library_finds_the_same_fingerprint(schema: Published) -> None:
    # Of what the specification calls [PRIMITIVES] the other one leaves {"type": "long"} as it is.
    text = schema.text.replace(json.dumps(MICROS), '"long"')
    theirs = avro.schema.parse(text).fingerprint("CRC-64-AVRO")
    assert theirs.hex() == schema.fingerprint.hex()


def test_the_fingerprint_is_the_one_of_the_specification() -> None:
    # "int" in Apache Avro's own table, share/test/data/schema-tests.txt: 8247732601305521295.
    assert int.from_bytes(read_schema('"int"')[0], "little") == 8247732601305521295


def test_no_two_schemas_have_one_fingerprint() -> None:
    assert len({schema.fingerprint for schema in VERSIONS}) == len(VERSIONS)


def test_versions_are_numbered_without_a_gap_and_have_golden_bytes() -> None:
    for folder in HISTORY.iterdir():
        count = len(list(folder.glob("*.avsc")))
        expected = {f"{n}.{ext}" for n in range(1, count + 1) for ext in ("avsc", "json")}
        assert {file.name for file in folder.iterdir()} == expected


def test_the_package_finds_the_schemas_of_its_checkout() -> None:
    assert {name: [v.version for v in versions] for name, versions in published().items()} == {
        name: [v.version for v in versions] for name, versions in history().items()
    }
