"""Publish the schemas that have changed: `python -m tests.golden.publish`, then look at the diff.

Each gets a new version under `schemas/history/` with the bytes of one sample record, which a test
reads for ever. What stands there is never rewritten.
"""

from __future__ import annotations

import json
from typing import Any

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.codec.frame import SingleObject
from sagaz_es.codec.published import Published, Schemas, read_schema
from sagaz_es.codec.shapes import TYPES, entry_by_name
from tests.golden import HISTORY, SCHEMAS, file_name, history, without_docs


def main() -> None:
    schemas = dict(history())
    new: list[type[Any]] = []
    for cls in TYPES:
        text = (SCHEMAS / f"{file_name(cls.__name__)}.avsc").read_text(encoding="utf-8")
        known = schemas.get(cls.__name__, ())
        if not known or without_docs(known[-1].text) != without_docs(text):
            published = Published(cls.__name__, len(known) + 1, text, *read_schema(text))
            schemas[cls.__name__] = (*known, published)
            new.append(cls)
    for cls in new:
        write(cls, schemas)


def write(cls: type[Any], schemas: Schemas) -> None:
    newest = schemas[cls.__name__][-1]
    folder = HISTORY / file_name(cls.__name__)
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        field["name"]: sample(number, field) for number, field in enumerate(fields_of(newest))
    }
    value = AvroCodec(SingleObject(), schemas=schemas).encode(entry_by_name(cls, fields, ""))
    if "writer" in fields:
        fields["writer"] = fields["writer"].hex()
    golden = {"hex": value.hex(), "fields": fields}
    (folder / f"{newest.version}.avsc").write_text(newest.text, encoding="utf-8")
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    (folder / f"{newest.version}.json").write_text(f"{text}\n", encoding="utf-8")
    print(f"published {cls.__name__} version {newest.version}")


def fields_of(schema: Published) -> list[dict[str, Any]]:
    fields: list[dict[str, Any]] = schema.parsed["fields"]
    return fields


def sample(number: int, field: dict[str, Any]) -> Any:
    """A value that is no default, and different for each field."""
    match field["type"]:
        case "string":
            return f"{field['name']} ü"
        case "boolean":
            return True
        case "int":
            return 1000 + number
        case "long":
            return 1_760_000_000_000_000 + number
        case _:
            return bytes(range(16))


if __name__ == "__main__":
    main()
