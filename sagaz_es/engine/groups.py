"""What stands beside a low-water mark: for the sagas of which classes it holds, in a named group;
and which record was the last one read, so that who comes next sees whether the log lost its tail.

A group leaves the sagas of all other classes to other groups, and its mark passes them. So a class
that comes to the group later may have unfinished sagas before the mark: then what is read begins
further back, for this class at the beginning of the partition.

Law (no class is passed): whatever classes come and go, no unfinished saga of a class that is here
stands before `start_of`.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from msgspec import Struct

MAX_NOTE_BYTES = 3000
"""Kafka keeps up to 4096 bytes beside an offset. Without a note more is read, nothing is lost."""


class Note(Struct, frozen=True, omit_defaults=True):
    """`here`: the classes that the mark holds for. `left`: the mark as it was when a class left.
    `last`: the last record that was read when the mark was committed (`identity_of`)."""

    here: tuple[str, ...] = ()
    left: dict[str, int] = {}
    last: str = ""


_DECODER = msgspec.json.Decoder(Note)


def read_note(text: str) -> Note:
    """A note as it was committed; an unreadable one says nothing."""
    try:
        return _DECODER.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return Note()


def start_of(mark: int, note: Note, classes: Collection[str], beginning: int) -> int:
    """Where unfinished sagas of these classes may begin; `beginning` is the partition's."""
    known = {**note.left, **dict.fromkeys(note.here, mark)}
    starts = [known.get(name, beginning) for name in classes]
    return max(beginning, min(starts, default=mark))


def next_note(mark: int, note: Note, classes: Collection[str]) -> str:
    """What to commit beside the marks of an engine that has these classes, and found this note."""
    left = {**note.left, **dict.fromkeys(note.here, mark)}
    for name in classes:
        left.pop(name, None)
    for kept in (left, {}):
        text = msgspec.json.encode(Note(tuple(sorted(classes)), kept))
        if len(text) <= MAX_NOTE_BYTES:
            return text.decode()
    return ""


def with_last(text: str, last: str) -> str:
    """A note that also says which record was the last one read; the same where none is known, or
    there is no room for it."""
    if not last:
        return text
    encoded = msgspec.json.encode(msgspec.structs.replace(read_note(text), last=last))
    return encoded.decode() if len(encoded) <= MAX_NOTE_BYTES else text
