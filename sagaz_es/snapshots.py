"""Snapshots as users see them: `ReplayConfig` asks for them, `SagaSnapshot` is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any
from uuid import UUID, uuid4

import msgspec

from sagaz_es.codec.values import from_text, to_text
from sagaz_es.core.snapshot import (
    FOR_EVER,
    OFF,
    SnapshotPolicy,
    SnapshotStrategy,
    dump_policy,
    state_hash,
)
from sagaz_es.core.state import SagaState, SagaStatus, dump_state, load_state
from sagaz_es.core.texts import split_object
from sagaz_es.errors import ConfigurationError, SagaError
from sagaz_es.ports import NOT_FOLDED, ReplayEntry, StoredSnapshot

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_FIRST_US = (datetime.min.replace(tzinfo=UTC) - EPOCH) // _US
_LAST_US = (datetime.max.replace(tzinfo=UTC) - EPOCH) // _US
_COMPRESSIONS = ("zstd",)
BLOB_PREFIX = '{"$blob":"'
"""What the JSON text of a value begins with that is kept in the blob store."""

Opener = Callable[[str, bytes], bytes]
"""Decrypts bytes with the key of this id."""


# --- asking for snapshots -------------------------------------------------------------------------


@dataclass(frozen=True)
class ReplayConfig:
    """Which snapshots of a saga are kept. Replay and time travel answer without any, from events.

    `snapshot_strategy` takes the text, too. `retention_days=None` keeps them for ever;
    `max_snapshots_per_saga` keeps the newest. `every_events` (100 unless given) goes with
    `every_n_events`, `every_seconds` (60) with `every_interval`.

    Raises ConfigurationError that names the field and what is allowed.
    """

    enable_snapshots: bool = False
    snapshot_strategy: SnapshotStrategy | str = SnapshotStrategy.BEFORE_EACH_STEP
    retention_days: int | None = 30
    compression: str | None = None
    encryption_key_id: str | None = None
    max_snapshots_per_saga: int | None = None
    every_events: int | None = None
    every_seconds: float | None = None

    def __post_init__(self) -> None:
        allowed = tuple(str(strategy) for strategy in SnapshotStrategy)
        if self.snapshot_strategy not in allowed:
            raise _not_allowed("snapshot_strategy", self.snapshot_strategy, _one_of(allowed))
        object.__setattr__(self, "snapshot_strategy", SnapshotStrategy(self.snapshot_strategy))
        if self.compression is not None and self.compression not in _COMPRESSIONS:
            raise _not_allowed("compression", self.compression, f"{_one_of(_COMPRESSIONS)} or None")
        _check("retention_days", self.retention_days, 0, "0 or more whole days, or None: for ever")
        _check("max_snapshots_per_saga", self.max_snapshots_per_saga, 1, "1 or more, or None: all")
        _check("every_events", self.every_events, 1, "1 or more, or None")
        seconds = self.every_seconds
        if seconds is not None and not (_is_number(seconds) and 0 < seconds < 1e12):
            raise _not_allowed("every_seconds", seconds, "a number above 0, or None")
        if self.encryption_key_id is not None and not str(self.encryption_key_id):
            raise _not_allowed("encryption_key_id", "", "the id of a key, or None")

    def policy(self) -> SnapshotPolicy:
        """The same as the core's value."""
        if not self.enable_snapshots:
            return OFF
        return SnapshotPolicy(
            SnapshotStrategy(self.snapshot_strategy),
            every_events=self.every_events or 100,
            every_us=max(1, round((self.every_seconds or 60) * 1_000_000)),
            retention_days=FOR_EVER if self.retention_days is None else self.retention_days,
            max_snapshots=self.max_snapshots_per_saga or 0,
            compression=self.compression or "",
            encryption_key_id=str(self.encryption_key_id or ""),
        )

    def policy_text(self) -> str:
        """What `SagaStarted.snapshot_policy` says."""
        return dump_policy(self.policy())

    def get_retention_until(self, created_at: datetime | None = None) -> datetime | None:
        """When a snapshot taken at `created_at` (now) expires; None: never."""
        if self.retention_days is None:
            return None
        taken = datetime.now(UTC) if created_at is None else in_utc(created_at)
        return taken + timedelta(days=self.retention_days)


def _not_allowed(field: str, value: object, allowed: str) -> ConfigurationError:
    return ConfigurationError(f"ReplayConfig: {field}={value!r} is not allowed; allowed: {allowed}")


def _one_of(values: Iterable[str]) -> str:
    return ", ".join(repr(value) for value in values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(field: str, value: int | None, least: int, allowed: str) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and value >= least):
        raise _not_allowed(field, value, allowed)


# --- a snapshot -----------------------------------------------------------------------------------


class _Texts(dict[str, str]):
    """A context as JSON texts, key by key, as a SagaState has it."""


class _Kept:
    """A field that is kept in a form nobody can change, and given as a fresh copy each time."""

    def __init__(self, name: str, lower: Callable[[Any], Any], lift: Callable[[Any], Any]) -> None:
        self._name, self._lower, self._lift = f"_{name}", lower, lift

    def __get__(self, instance: object | None, owner: type) -> Any:
        return self if instance is None else self._lift(instance.__dict__[self._name])

    def __set__(self, instance: object, value: Any) -> None:
        instance.__dict__[self._name] = self._lower(value)


def _lower_context(context: Mapping[str, Any]) -> _Texts:
    if isinstance(context, _Texts):
        return context
    return _Texts((str(key), to_text(value, str(key))) for key, value in context.items())


def _lift_context(texts: _Texts) -> dict[str, Any]:
    return {key: from_text(text) for key, text in texts.items()}


def _known_status(text: str) -> str:
    return SagaStatus(text) if text in _STATUSES else text


_STATUSES = frozenset(str(status) for status in SagaStatus)


@dataclass(frozen=True, eq=False, repr=False)
class SagaSnapshot:
    """A saga's state at a sequence. Frozen in depth: what it was made of and what it hands out may
    be changed by whoever holds it, the snapshot does not change.

    Ids are texts (a UUID is taken, too); times have a zone (without one: UTC). `step_name` is the
    step it was taken before or after. `status` is a SagaStatus, or the text that was stored.

    Raises UnstorableValue with the path of a context value that cannot be kept.
    """

    snapshot_id: str
    saga_id: str
    saga_name: str
    step_name: str
    step_index: int
    status: str
    context: Mapping[str, Any]
    completed_steps: Sequence[str]
    created_at: datetime
    retention_until: datetime | None = None
    external_refs: Mapping[str, str] | None = None
    sequence: int = 0

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "snapshot_id", str(self.snapshot_id))
        put(self, "saga_id", str(self.saga_id))
        put(self, "status", _known_status(str(self.status)))
        put(self, "created_at", in_utc(self.created_at))
        if self.retention_until is not None:
            put(self, "retention_until", in_utc(self.retention_until))

    @classmethod
    def create(
        cls,
        saga_id: str | UUID,
        saga_name: str,
        step_name: str,
        step_index: int,
        status: str,
        context: Mapping[str, Any],
        completed_steps: Sequence[str],
        retention_until: datetime | None = None,
        *,
        sequence: int = 0,
        created_at: datetime | None = None,
        external_refs: Mapping[str, str] | None = None,
    ) -> SagaSnapshot:
        """A new one, taken now unless `created_at` says otherwise."""
        return cls(
            snapshot_id=str(uuid4()),
            saga_id=str(saga_id),
            saga_name=saga_name,
            step_name=step_name,
            step_index=step_index,
            status=status,
            context=context,
            completed_steps=completed_steps,
            created_at=datetime.now(UTC) if created_at is None else created_at,
            retention_until=retention_until,
            external_refs=external_refs,
            sequence=sequence,
        )

    def to_dict(self) -> dict[str, Any]:
        """A plain record: JSON can hold it, ids are texts, times have a zone."""
        return {
            "snapshot_id": self.snapshot_id,
            "saga_id": self.saga_id,
            "saga_name": self.saga_name,
            "step_name": self.step_name,
            "step_index": self.step_index,
            "status": str(self.status),
            "context": {key: msgspec.json.decode(text) for key, text in texts_of(self).items()},
            "completed_steps": self.completed_steps,
            "external_refs": self.external_refs,
            "created_at": self.created_at.isoformat(),
            "retention_until": self.retention_until and self.retention_until.isoformat(),
            "sequence": self.sequence,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SagaSnapshot:
        """The reverse of `to_dict`; fields that this version does not know are passed over."""
        until = data.get("retention_until")
        return cls(
            snapshot_id=data["snapshot_id"],
            saga_id=data["saga_id"],
            saga_name=data["saga_name"],
            step_name=data["step_name"],
            step_index=data["step_index"],
            status=data["status"],
            context=_Texts((key, _text_of(value)) for key, value in data["context"].items()),
            completed_steps=data["completed_steps"],
            created_at=_time_of(data["created_at"]),
            retention_until=_time_of(until) if until is not None else None,
            external_refs=data.get("external_refs"),
            sequence=data.get("sequence", 0),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SagaSnapshot):
            return NotImplemented
        # Equal texts are equal values; other texts may be, too: a nested order is none.
        return self.__dict__ == other.__dict__ or self._values() == other._values()

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __hash__(self) -> int:
        return hash(self.snapshot_id)

    def __repr__(self) -> str:  # without the context: it may be personal
        at = f"at {self.sequence} ({self.step_name or 'no step'}, {self.status})"
        return f"<SagaSnapshot {self.snapshot_id} of {self.saga_id!r} {at}>"


# Set once the dataclass is made: it would take them for defaults.
for _kept in (
    _Kept("context", _lower_context, _lift_context),
    _Kept("completed_steps", tuple, list),
    _Kept("external_refs", lambda refs: dict(refs or {}), dict),
):
    setattr(SagaSnapshot, _kept._name[1:], _kept)


def texts_of(snapshot: SagaSnapshot) -> dict[str, str]:
    """The context as JSON texts, key by key."""
    return dict(snapshot.__dict__["_context"])


_INT64 = 2**63


def _text_of(value: Any) -> str:
    """The JSON text of what `to_dict` gave, where values are tagged, or of any storable value."""
    return msgspec.json.encode(value).decode() if _is_json(value) else to_text(value)


def _is_json(value: Any) -> bool:
    kind = type(value)
    if kind is dict:
        return all(type(key) is str for key in value) and all(map(_is_json, value.values()))
    if kind is list:
        return all(map(_is_json, value))
    if kind is int:
        return bool(-_INT64 <= value < _INT64)
    return value is None or kind in (str, bool) or (kind is float and isfinite(value))


# --- as stores keep them --------------------------------------------------------------------------


def to_stored(snapshot: SagaSnapshot) -> StoredSnapshot:
    """The row of a snapshot that was saved by hand: shown as it is, never folded from."""
    created_at = to_us(snapshot.created_at)
    until = snapshot.retention_until
    state = dump_state(
        SagaState(
            saga_id=snapshot.saga_id,
            saga_name=snapshot.saga_name,
            status=str(snapshot.status),
            sequence=snapshot.sequence,
            updated_at=created_at,
            context=texts_of(snapshot),
        )
    )
    refs = snapshot.external_refs
    return StoredSnapshot(
        snapshot_id=snapshot.snapshot_id,
        saga_id=snapshot.saga_id,
        saga_name=snapshot.saga_name,
        sequence=snapshot.sequence,
        occurred_at=created_at,
        created_at=created_at,
        step=snapshot.step_name,
        step_index=snapshot.step_index,
        status=str(snapshot.status),
        completed_steps=tuple(snapshot.completed_steps),
        state=state,
        fold_version=NOT_FOLDED,
        state_hash=state_hash(snapshot.saga_id, snapshot.sequence, NOT_FOLDED, state),
        retention_until=0 if until is None else max(1, to_us(until)),
        external_refs=msgspec.json.encode(refs).decode() if refs else "",
    )


def state_of(stored: StoredSnapshot, opener: Opener | None = None) -> SagaState:
    """The state of a row. Raises SnapshotSealed if it is encrypted and no `opener` is given."""
    data = stored.state
    if stored.key_id:
        if opener is None:
            raise SnapshotSealed(stored.saga_id, stored.snapshot_id, stored.key_id)
        data = opener(stored.key_id, data)
    return load_state(data)


def from_stored(
    stored: StoredSnapshot,
    opener: Opener | None = None,
    loaded: Mapping[str, str] | None = None,
) -> SagaSnapshot:
    """A row as users see it. `loaded`: texts of large values, in place of their references."""
    texts = state_of(stored, opener).context
    refs = {
        key: msgspec.json.decode(text)["$blob"]
        for key, text in texts.items()
        if text.startswith(BLOB_PREFIX)
    }
    if stored.external_refs:
        refs.update(msgspec.json.decode(stored.external_refs))
    return SagaSnapshot(
        snapshot_id=stored.snapshot_id,
        saga_id=stored.saga_id,
        saga_name=stored.saga_name,
        step_name=stored.step,
        step_index=stored.step_index,
        status=stored.status,
        context=_Texts({**texts, **(loaded or {})}),
        completed_steps=stored.completed_steps,
        created_at=from_us(stored.created_at),
        retention_until=from_us(stored.retention_until) if stored.retention_until else None,
        external_refs=refs,
        sequence=stored.sequence,
    )


class SnapshotSealed(SagaError):
    """A snapshot is encrypted, and nobody gave its key."""

    def __init__(self, saga_id: str, snapshot_id: str, key_id: str) -> None:
        super().__init__(saga_id, snapshot_id, key_id)
        self.saga_id, self.snapshot_id, self.key_id = saga_id, snapshot_id, key_id

    def __str__(self) -> str:
        return (
            f"snapshot {self.snapshot_id} of saga {self.saga_id!r} is encrypted with the key "
            f"{self.key_id!r}; give the keys that open it"
        )


# --- times ----------------------------------------------------------------------------------------


def in_utc(when: datetime) -> datetime:
    """The same moment in UTC; a time without a zone is UTC."""
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def to_us(when: datetime) -> int:
    """µs since 1970 UTC."""
    # Not by way of UTC: near the ends of the calendar a zone leads out of it.
    return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - EPOCH) // _US


def from_us(when: int) -> datetime:
    """The reverse of `to_us`. What another program wrote may lie beyond the calendar: its end."""
    return EPOCH + timedelta(microseconds=min(max(when, _FIRST_US), _LAST_US))


def _time_of(value: str | datetime) -> datetime:
    return in_utc(value if isinstance(value, datetime) else datetime.fromisoformat(value))


# --- replays ------------------------------------------------------------------------------------


def shown_replay(entry: ReplayEntry) -> dict[str, Any]:
    """A replay as a plain record; ids are texts, times have a zone."""
    overrides = split_object(entry.overrides)
    return {
        "replay_id": entry.replay_id,
        "original_saga_id": entry.original_saga_id,
        "new_saga_id": entry.new_saga_id or None,
        "checkpoint_step": entry.point,
        "replay_status": entry.status,
        "status": entry.status,
        "initiated_by": entry.actor,
        "reason": entry.reason,
        "context_override": {key: from_text(text) for key, text in overrides.items()} or None,
        "dry_run": entry.dry_run,
        "force_failure": entry.force_failure,
        "error_message": entry.error_message or None,
        "created_at": from_us(entry.created_at).isoformat(),
        "completed_at": from_us(entry.completed_at).isoformat() if entry.completed_at else None,
    }
