"""What the engine, the projector and the readers need of the world. The docstrings are laws.

An adapter is one file under `log/`, `storage/` or `blobs/`; each law has a test of the same name in
`sagaz_es.testing.contracts`. Every call ends by its adapter's deadline: what outlasts it raises
(`AppendUnknown` for an append, `Unreachable` otherwise). Times are µs since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from msgspec import Struct

from sagaz_es.core.events import Entry, Event
from sagaz_es.core.state import SagaState


class Undecodable(Struct, frozen=True, gc=False):
    """A record that is not ours or is damaged; its bytes are in the Record."""

    reason: str


class Record(Struct, frozen=True, gc=False):
    """One record of the log, decoded."""

    partition: int
    offset: int
    appended_at: int  # the log's own clock
    key: str  # the saga id; empty for NamespaceCreated
    entry: Entry | Undecodable
    value: bytes = b""  # as it stands in the log; empty where the log keeps no bytes (memory)


class Chunk(Struct, frozen=True, gc=False):
    """What one read gave. `next_offset` is where the next read goes on."""

    records: tuple[Record, ...]
    next_offset: int


class Bounds(Struct, frozen=True, gc=False):
    """`start`: the first offset that is kept; `end`: the one that the next append gets."""

    start: int
    end: int


Rebalanced = Callable[[frozenset[int]], Awaitable[None]]
"""Told every set of partitions that this member is to serve, first and after each change.

It returns when the partitions that are no longer in the set have been handed over (within the
engine's drain limit); only then does the log let another member have them.
"""


class Membership(Protocol):
    """This process' share of a namespace's partitions. A hint, never a fence: the fold decides."""

    async def leave(self, *, for_good: bool = False) -> None:
        """Give everything back and stop; calling it twice is harmless.

        Where a member with an `instance_id` keeps its place for a while, it does not `for_good`.
        """

    async def commit_low_water_mark(self, partition: int, offset: int, note: str = "") -> None:
        """Nothing before `offset` belongs to an unfinished saga or an unhandled request.

        Never lowers the mark; a mark that is not raised keeps its note, too. Losing a call is
        harmless: a take-over then reads more.
        """

    async def predecessor_is_alive(self, partition: int) -> bool:
        """Whether the member that served `partition` before is still there to release it."""


class EventLog(Protocol):
    """A partitioned, totally ordered (per partition), append-only log of entries.

    Law (order): a partition's records are read in the order of their offsets, the same for all.
    Law (one append is whole): the entries of one append stand next to each other, or none stands.
    Law (acknowledged is kept): what `append` returned for survives the crash of any process.
    Law (unknown is unknown): what raises AppendUnknown may stand in the log, now or later.
    Law (foreign bytes are shown): what cannot be decoded is read as Undecodable, never skipped.
    Law (keys stay): `partition_of` is murmur2 of the UTF-8 saga id, as every Kafka client does it.
    """

    name: str  # for people: the URL without password

    async def open(self) -> None:
        """Connect and check; creates an empty namespace where the backend can. Raises Unreachable,
        UnsuitableTopic."""

    async def close(self) -> None:
        """Close connections; calling it twice is harmless. Appends under way may still land."""

    @property
    def partitions(self) -> int:
        """How many; known after `open`."""

    def partition_of(self, saga_id: str) -> int:
        """Where all entries of this saga stand."""

    async def append(self, partition: int, entries: Sequence[Entry]) -> int:
        """The offset of the first entry; the others follow it directly.

        Raises AppendUnknown (append the identical entries again), AppendRefused (nothing stands).
        """

    async def append_raw(self, partition: int, key: str, value: bytes) -> int:
        """Append bytes as they are: for tools that repair, and for tests of damaged records."""

    async def read(
        self, partition: int, offset: int, *, limit: int = 1000, wait_s: float = 0.0
    ) -> Chunk:
        """Up to `limit` records from `offset` on, waiting up to `wait_s` for the first one.

        Raises HistoryGone before the start, LogTruncated beyond the end.
        """

    async def read_saga(self, saga_id: str, from_offset: int = 0) -> tuple[Record, ...]:
        """All records of one saga (facts and requests) from an offset on, in order.

        By index where the backend has one, else by a scan of the partition.
        """

    async def bounds(self, partition: int) -> Bounds:
        """Where the partition begins and ends now."""

    async def low_water_mark(self, partition: int, *, group: str = "") -> int:
        """The group's committed mark, or the partition's start."""

    async def mark_note(self, partition: int, *, group: str = "") -> str:
        """What the group's mark was committed with; empty: nothing."""

    async def join(
        self, on_change: Rebalanced, *, instance_id: str | None = None, group: str = ""
    ) -> Membership:
        """Become a member of a group, whose members share the partitions. Groups have nothing in
        common but the log: each gives out all partitions, and has its own marks."""

    async def members(self, *, group: str = "") -> int:
        """How many the group has; one that died counts until the group has noticed."""


# --- what the projector keeps --------------------------------------------------------------------


class Checkpoint(Struct, frozen=True, gc=False):
    """A projector's next offset, the identity of the last record before it, to notice a log that
    was replaced or lost its tail, and which log that is, to notice that two share a store."""

    partition: int
    next_offset: int
    last_identity: str = ""  # "<offset>/<what it is>", see engine.projector; empty: none
    log: str = ""  # "<namespace>/<when it was created>" of the partition; empty: not known


class ArchivedEvent(Struct, frozen=True, gc=False):
    """An accepted event. `sequence` is the saga's own, also for recorded sagas."""

    sequence: int
    offset: int
    event: Event
    value: bytes = b""  # as it stands in the log, spares writing it anew; need not be given back


class StoredSnapshot(Struct, frozen=True, gc=False):
    """A state at a sequence; disposable."""

    snapshot_id: str
    saga_id: str
    saga_name: str
    sequence: int
    occurred_at: int  # of the event that made the state
    created_at: int  # what "the snapshot at a time" and retention go by; occurred_at where captured
    step: str  # the step it was taken before or after; empty: none
    step_index: int
    status: str
    completed_steps: tuple[str, ...]
    state: bytes  # JSON of SagaState; sealed where `key_id` is set
    fold_version: int  # NOT_FOLDED: somebody's own snapshot, no fold goes on from it
    state_hash: str  # core.snapshot.state_hash of it
    retention_until: int = 0  # 0: never expires
    external_refs: str = ""  # JSON object: name -> address of a value kept elsewhere
    key_id: str = ""  # of the key that seals `state`


NOT_FOLDED = 0
"""The fold version of a snapshot that was saved by hand: it is shown, never folded from."""


class ParkedRecord(Struct, frozen=True, gc=False):
    """A record that could not be folded, with its place and reason; its saga is set aside."""

    partition: int
    offset: int
    saga_id: str
    reason: str
    value: bytes  # as it stands in the log; empty where the log keeps no bytes
    parked_at: int


class Summary(Struct, frozen=True, gc=False):
    """A saga in a list."""

    saga_id: str
    saga_name: str
    status: str
    sequence: int
    started_at: int
    updated_at: int
    ended_at: int = 0
    error: str = ""
    definition: str = ""
    parent_saga_id: str = ""
    root_saga_id: str = ""
    replay_id: str = ""
    recorded: bool = False

    @property
    def place(self) -> tuple[int, str]:
        """Where it stands in lists; see `ProjectionStore.summaries`."""
        return self.started_at, self.saga_id


class DefinitionCount(Struct, frozen=True, gc=False):
    """How many sagas of one name, recorded definition and status there are."""

    saga_name: str
    definition: str  # fingerprint; empty: it was recorded, no engine ran it
    status: str
    count: int
    graph: str = ""  # the recorded step graph, as SagaState has it


class ReplayEntry(Struct, frozen=True, gc=False):
    """A replay, a dry run, or an attempt that was refused, for the audit and `list_replays`."""

    replay_id: str
    original_saga_id: str
    new_saga_id: str
    point: str
    overrides: str  # JSON object
    actor: str
    reason: str
    dry_run: bool
    status: str  # pending, success, failed, cancelled, refused
    created_at: int
    completed_at: int = 0
    error_message: str = ""
    force_failure: bool = False


class Projection(Struct, frozen=True, gc=False):
    """What one batch of the log changes, committed with its checkpoint, whole or not at all.

    The heads stay the projector's: a store keeps copies.
    """

    checkpoint: Checkpoint
    heads: tuple[SagaState, ...] = ()
    archive: tuple[ArchivedEvent, ...] = ()
    snapshots: tuple[StoredSnapshot, ...] = ()
    keep_snapshots: Mapping[str, int] = {}  # saga id -> how many of its newest snapshots stay
    replays: tuple[ReplayEntry, ...] = ()
    parked: tuple[ParkedRecord, ...] = ()
    unparked: tuple[str, ...] = ()  # saga ids whose parked records are taken away, before `parked`
    rejected: Mapping[str, int] = {}  # cause -> count, added to what is kept
    refused: tuple[tuple[str, str], ...] = ()
    """Saga and request id of requests that were refused: a start that waits goes out of the lists,
    if it was asked for by this request. Before `waiting`."""
    waiting: tuple[SagaState, ...] = ()
    """Starts that were asked for: pending, of sequence 0, `cause` is the request. Each is in lists
    and counts by status until there is a head; where there is one, it changes nothing. Before
    `heads`."""


SnapshotReport = Callable[[str, str, str], None]
"""Told saga id, snapshot id and reason of a snapshot that was passed over."""


class ProjectionStore(Protocol):
    """Read models: head states, summaries, archive, snapshots, replays, parked records.

    Law (atomic): `commit` keeps the whole Projection with its checkpoint, or nothing of it.
    Law (one projector): `commit` raises CheckpointMoved unless the stored checkpoint is `expected`.
    Law (twice is once): the same snapshot, archive or replay row again changes nothing.
    Law (no mix-up): saga ids are any text; no two are ever mixed up.
    Law (order): archived events by sequence; snapshots and lists newest first where it says so.
    Law (expired is gone): an expired snapshot is in no answer and takes no place in a page.
    Law (passed over, told): a snapshot that is damaged is in no answer, and `report` is told.
    Law (own copies): what was given or got may be changed by the caller; the store keeps its own.

    Any call raises Unreachable if the backend does not answer in time (a commit may then stand),
    StorageFailed if it answers with an error. The next call connects again by itself.
    """

    name: str  # for people: the URL without password

    async def open(self) -> None:
        """Connect, and make the tables where they are missing; two processes may do it at once."""

    async def close(self) -> None:
        """Close connections; calling it twice, or before `open`, is harmless."""

    async def checkpoint(self, partition: int) -> Checkpoint | None: ...
    async def commit(self, projection: Projection, *, expected: int) -> None:
        """`expected`: the next_offset of the checkpoint that this follows; 0: there is none."""

    async def heads(self, saga_ids: Iterable[str]) -> dict[str, SagaState]:
        """The head states of those that exist (a start that waits is none); one query whatever
        their number."""

    async def archived(
        self, saga_id: str, *, after: int = 0, upto: int | None = None, limit: int = 1000
    ) -> tuple[ArchivedEvent, ...]:
        """Events with after < sequence <= upto, ascending."""

    async def summaries(
        self,
        *,
        status: str | None = None,
        saga_name: str | None = None,
        limit: int = 100,
        offset: int = 0,
        after: tuple[int, str] | None = None,
    ) -> tuple[Summary, ...]:
        """Newest start first; of equal starts, by saga id. With the starts that wait, as pending,
        of sequence 0.

        `after`: only those that come behind this place, a start (µs) and a saga id; see
        `Summary.place`. A list is read to its end by it: each page costs the same, and sagas that
        begin meanwhile move nothing. `offset` counts from there.
        """

    async def count_by_status(self) -> dict[str, int]: ...
    async def count_by_definition(self) -> tuple[DefinitionCount, ...]:
        """How many sagas there are of each name, recorded definition and status, in that order;
        without the starts that wait."""

    async def parked(self, limit: int = 100) -> tuple[ParkedRecord, ...]:
        """By partition and offset."""

    async def parked_sagas(self, partition: int) -> frozenset[str]:
        """The sagas that are set aside."""

    async def parked_of(self, partition: int, saga_id: str) -> tuple[ParkedRecord, ...]:
        """What was set aside of one saga, in the order of the log."""

    async def rejected(self) -> dict[str, int]:
        """Events that the fold rejected, by cause."""

    # Snapshots. "Newest" is by sequence, then time, then order of saving.

    async def nearest_snapshot(
        self, saga_id: str, *, sequence: int | None = None, at: int | None = None
    ) -> StoredSnapshot | None:
        """The newest one to fold from at or before the sequence and the time (of its event).

        One that is damaged or of another fold version is passed over for the next older one.
        """

    async def snapshot(self, snapshot_id: str) -> StoredSnapshot | None: ...
    async def snapshots(
        self,
        saga_id: str,
        *,
        before: int | None = None,
        step: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> tuple[StoredSnapshot, ...]:
        """Newest first; with `before`, created at or before it; with `step`, of this step.

        A damaged one leaves its place in the page empty.
        """

    async def latest_snapshot(
        self, saga_id: str, *, before: int | None = None, step: str | None = None
    ) -> StoredSnapshot | None:
        """The newest of those that `snapshots` lists."""

    async def save_snapshot(self, snapshot: StoredSnapshot) -> None:
        """Keep one that no projector made; one of the same id is replaced."""

    async def delete_snapshot(self, snapshot_id: str) -> bool:
        """Whether there was one (an expired one counts as none)."""

    async def delete_expired_snapshots(self) -> int:
        """How many there were."""

    # Replays.

    async def replays(self, saga_id: str, limit: int = 100) -> tuple[ReplayEntry, ...]:
        """Of one original, newest first."""

    async def replay(self, replay_id: str) -> ReplayEntry | None: ...
    async def save_replay(self, entry: ReplayEntry) -> None:
        """Keep one, merged with what is known of it (`merge_replays`)."""

    # Cleaning.

    async def forget(self, saga_id: str) -> int:
        """Drop all that is kept of one saga; how many rows that were. A rebuild brings it back."""

    async def reset(self) -> None:
        """Forget everything that a rebuild makes anew, in one transaction: what people saved by
        hand (snapshots that are NOT_FOLDED) stays."""


FINAL_REPLAYS = frozenset({"success", "failed", "cancelled", "refused"})


def merge_replays(a: ReplayEntry, b: ReplayEntry) -> ReplayEntry:
    """One entry out of two about the same replay; they come from different partitions.

    Law: associative, commutative, and `merge_replays(a, a) == a`. Of two endings the first counts.
    """
    ending = min(a, b, key=_ending)
    return ReplayEntry(
        replay_id=a.replay_id,
        # What both say is the same; where one says nothing, the other counts.
        original_saga_id=max(a.original_saga_id, b.original_saga_id),
        new_saga_id=max(a.new_saga_id, b.new_saga_id),
        point=max(a.point, b.point),
        overrides=max(a.overrides, b.overrides),
        actor=max(a.actor, b.actor),
        reason=max(a.reason, b.reason),
        dry_run=a.dry_run or b.dry_run,
        status=ending.status,
        created_at=min(a.created_at or b.created_at, b.created_at or a.created_at),
        completed_at=ending.completed_at,
        error_message=ending.error_message,
        force_failure=a.force_failure or b.force_failure,
    )


def _ending(entry: ReplayEntry) -> tuple[object, ...]:
    if entry.status in FINAL_REPLAYS:
        return (0, not entry.completed_at, entry.completed_at, entry.status, entry.error_message)
    running = entry.status == "running"
    return (1, not running, entry.completed_at, entry.status, entry.error_message)


class SnapshotStorage(Protocol):
    """Snapshots for people and for the seed's classes; rows are `sagaz_es.snapshots.SagaSnapshot`.

    The spelling is the seed's and sagaz's (SAGAZ.md §3). `before` is inclusive.
    """

    async def save_snapshot(self, snapshot: Any) -> None:
        """Keep it; one of the same id is replaced."""

    async def get_snapshot(self, snapshot_id: Any) -> Any | None:
        """The one of this id; None: there is none, or it has expired."""

    async def get_latest_snapshot(
        self, saga_id: Any, before: datetime | None = None, *, before_step: str | None = None
    ) -> Any | None:
        """The one with the highest sequence, created at or before `before`, of step
        `before_step`."""

    async def get_snapshot_at_time(self, saga_id: Any, timestamp: datetime) -> Any | None:
        """As `get_latest_snapshot(saga_id, timestamp)`."""

    async def list_snapshots(self, saga_id: Any, limit: int = 100, offset: int = 0) -> list[Any]:
        """A page of them, newest first."""

    async def delete_snapshot(self, snapshot_id: Any) -> bool:
        """Whether there was one."""

    async def delete_expired_snapshots(self) -> int:
        """How many there were."""

    async def forget(self, saga_id: Any) -> int:
        """Drop all that is kept of one saga; how many rows that were."""

    async def save_replay_log(self, entry: Any) -> None:
        """Keep a replay: a ReplayResult, or a mapping with its fields."""

    async def get_replay_log(self, replay_id: Any) -> dict[str, Any] | None:
        """What is known of one replay."""

    async def list_replays(self, original_saga_id: Any, limit: int = 100) -> list[dict[str, Any]]:
        """Those of one original, newest first."""

    async def close(self) -> None:
        """Close connections; twice, or before first use, is no error."""


class BlobStore(Protocol):
    """Values too large for a record, kept under the SHA-256 of their bytes (64 hex digits).

    Law (same bytes, same key): putting equal bytes again is harmless and gives the same key.
    Law (whole or absent): `get` gives exactly what was put, or None; never a part of it.
    Law (damage is loud): bytes that do not match their key raise CorruptBlob.
    """

    async def put(self, data: bytes) -> str: ...
    async def get(self, key: str) -> bytes | None: ...
    async def close(self) -> None: ...


class Clock(Protocol):
    """Time, so that a test can set it."""

    def now(self) -> int:
        """µs since 1970 UTC; may step back (the engine keeps a saga's times from falling)."""

    async def sleep_until(self, when: int) -> None:
        """Until `now()` is at least `when`."""
