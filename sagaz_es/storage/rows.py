"""What stores keep in their columns: the bytes of heads, events and rows, and what a list shows."""

from __future__ import annotations

import time
from typing import TypeVar

import msgspec
from msgspec import Struct

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.codec.compress import PLAIN, ZSTD, pack, unpack
from sagaz_es.core.events import Event
from sagaz_es.core.state import SagaState, dump_state, load_state
from sagaz_es.errors import CorruptData, StorageFailed, UndecodableRecord
from sagaz_es.ports import ArchivedEvent, Clock, Summary

R = TypeVar("R", bound=Struct)

SINGLE_OBJECT = b"\xc3\x01"
"""What a record of ours begins with, unless a schema registry framed it."""


def now_of(clock: Clock | None) -> int:
    """µs since 1970 UTC, by the clock that was given or the system's."""
    return clock.now() if clock is not None else time.time_ns() // 1000


def summary_of(state: SagaState) -> Summary:
    """The row of a saga in a list."""
    return Summary(
        saga_id=state.saga_id,
        saga_name=state.saga_name,
        status=state.status,
        sequence=state.sequence,
        started_at=state.started_at,
        updated_at=state.updated_at,
        ended_at=state.ended_at,
        error=state.error_text,
        definition=state.definition,
        parent_saga_id=state.parent_saga_id,
        root_saga_id=state.root_saga_id,
        replay_id=state.replay_id,
        recorded=state.recorded,
    )


PACK_FROM = 1024
"""Bytes from which on packing is worth its time (some 20 µs): most heads and events are smaller."""


def pressed(data: bytes) -> bytes:
    """JSON or a record of ours, packed where it is large."""
    return pack(data) if len(data) >= PACK_FROM else data


def opened(data: bytes) -> bytes:
    """The reverse of `pressed`. Raises CorruptData."""
    # Neither JSON nor single-object Avro begins with a byte that names a packed form.
    return unpack(data) if data[:1] in (PLAIN, ZSTD) else data


def dump_head(state: SagaState) -> bytes:
    """The bytes of a head."""
    return pressed(dump_state(state))


def load_head(data: bytes, where: str) -> SagaState:
    """The reverse of `dump_head`. Raises StorageFailed: a head has no older one to go back to."""
    try:
        return load_state(opened(data))
    except (CorruptData, msgspec.MsgspecError) as error:
        detail = f"a saga's head is damaged ({error}); see `sagaz-es projector rebuild`"
        raise StorageFailed(where, detail) from error


def dump_row(row: Struct) -> bytes:
    """The bytes of a whole row, whatever its texts hold."""
    return pack(msgspec.msgpack.encode(row))


def load_row(data: bytes, kind: type[R], where: str) -> R:
    """The reverse of `dump_row`. Raises StorageFailed."""
    try:
        return msgspec.msgpack.decode(unpack(data), type=kind)
    except (CorruptData, msgspec.MsgspecError, UnicodeError) as error:
        raise StorageFailed(where, f"a row is damaged ({error})") from error


class EventBytes:
    """Accepted events <-> bytes, as they stand in the log wherever that can be."""

    def __init__(self, codec: AvroCodec | None = None) -> None:
        self._codec = codec or AvroCodec()

    def dump(self, archived: ArchivedEvent) -> bytes:
        """A record of ours, packed where it is large."""
        value = archived.value
        # A registry's framing needs the registry to be read: it is not kept.
        if not value.startswith(SINGLE_OBJECT):
            value = self._codec.encode(archived.event)
        return pressed(value)

    def load(
        self, sequence: int, offset: int, data: bytes, replay_id: str, where: str
    ) -> ArchivedEvent:
        """The reverse. Raises StorageFailed."""
        try:
            event = self._codec.decode(opened(data), replay_id=replay_id)
        except (CorruptData, UndecodableRecord) as error:
            detail = f"the archived event at offset {offset} cannot be read ({error})"
            raise StorageFailed(where, detail) from error
        if not isinstance(event, Event):
            raise StorageFailed(where, f"what is archived at offset {offset} is no event")
        return ArchivedEvent(sequence, offset, event)
