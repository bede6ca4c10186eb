"""Entry -> the bytes of its Avro record, by code made once from each schema.

Law (Avro): the bytes are those that fastavro writes for the same record; a test compares them.

A flat record is written in a few lines, and by fastavro it was a sixth of what a saga costs: why
this is ours and reading is not, docs/decisions/0004-fastavro.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Write: TypeAlias = Callable[[Any, Any], bytes]
"""From an event and its fact (or twice a request) to the bytes of its record, header first."""

_SMALL = 4096
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


def varint(number: int) -> bytes:
    """Avro's int and long: zigzag, then seven bits a byte, the lowest first."""
    if not _LOWEST <= number <= _HIGHEST:
        raise OverflowError(f"{number} does not fit into 64 bits")
    rest = number << 1 if number >= 0 else ~(number << 1)
    if 1 << 49 <= rest < 1 << 56:  # a time in µs; the loop below would take a third of an event
        return bytes(
            (
                rest & 127 | 128,
                rest >> 7 & 127 | 128,
                rest >> 14 & 127 | 128,
                rest >> 21 & 127 | 128,
                rest >> 28 & 127 | 128,
                rest >> 35 & 127 | 128,
                rest >> 42 & 127 | 128,
                rest >> 49,
            )
        )
    out = bytearray()
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out)


class _Varints(dict[int, bytes]):
    """Those of small numbers are kept, all others made anew."""

    def __missing__(self, number: int) -> bytes:
        return varint(number)


_VARINTS = _Varints({number: varint(number) for number in range(_SMALL)})


def writer_of(schema: Mapping[str, Any], header: bytes, envelope: frozenset[str]) -> Write:
    """The code for a flat record of strings, ints, longs, booleans and fixed bytes.

    `envelope`: the fields that stand in the event; all others stand in the fact.
    Its function raises UnicodeEncodeError (a lone surrogate), OverflowError (beyond 64 bits) and
    ValueError (fixed bytes of another size).
    """
    lines = ["def write(event, own):"]
    parts = ["header"]
    for number, field in enumerate(schema["fields"]):
        name, kind = field["name"], field["type"]
        value = f"{'event' if name in envelope else 'own'}.{name}"
        if kind == "string":
            lines.append(f"    v{number} = {value}.encode()")
            parts += [f"varints[len(v{number})]", f"v{number}"]
        elif kind in ("int", "long"):
            parts.append(f"varints[{value}]")
        elif kind == "boolean":
            parts.append(f"b'\\1' if {value} else b'\\0'")
        elif kind["type"] == "fixed":
            lines += [
                f"    v{number} = {value}",
                f"    if len(v{number}) != {kind['size']}:",
                f"        raise ValueError('{name} is not of {kind['size']} bytes')",
            ]
            parts.append(f"v{number}")
        else:
            raise NotImplementedError(f"{schema['name']}.{name}: {kind}")
    lines.append(f"    return join(({', '.join(parts)}))")
    made: dict[str, Any] = {"header": header, "varints": _VARINTS, "join": b"".join}
    exec("\n".join(lines), made)
    write: Write = made["write"]
    return write
