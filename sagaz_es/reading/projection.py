"""What the projector makes of records: heads, archive, snapshots, replays, and what it sets aside.

No I/O and no clock of its own: the projector brings the heads that are missing, and commits.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping

import msgspec

from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, advance, judge
from sagaz_es.core.snapshot import (
    Due,
    SnapshotPolicy,
    SnapshotStrategy,
    due_after,
    due_before,
    parse_policy,
    snapshot_id,
    state_hash,
)
from sagaz_es.core.state import FOLD_VERSION, SagaState, dump_state
from sagaz_es.errors import HistoryGone, LogReplaced, LogTruncated, StoreOfAnotherLog
from sagaz_es.ports import (
    ArchivedEvent,
    Checkpoint,
    EventLog,
    ParkedRecord,
    Projection,
    ProjectionStore,
    Record,
    ReplayEntry,
    StoredSnapshot,
    Undecodable,
)

logger = logging.getLogger("sagaz_es.projector")

Sealer = Callable[[str, bytes], bytes]
"""Encrypts bytes with the key of this id."""

SET_ASIDE = "its saga is set aside since an earlier record"

_LOOKS_BEFORE = frozenset({SnapshotStrategy.BEFORE_EACH_STEP, SnapshotStrategy.ON_FAILURE})
_TAKES_NONE = frozenset({SnapshotStrategy.OFF, SnapshotStrategy.MANUAL})
_MAX_POLICIES = 1000
_ENDINGS: dict[type[e.Fact], str] = {
    e.SagaCompleted: "success",
    e.SagaRolledBack: "failed",
    e.SagaFailed: "failed",
    e.SagaPartiallyCommitted: "failed",
    e.SagaCancelled: "cancelled",
}
_BRANCH_START = msgspec.json.Decoder(e.SagaStarted)


class BatchFold:
    """One partition's heads at hand, and what the next commit will hold.

    `heads` are folded in place; after a commit that failed for good they are worth nothing.
    """

    def __init__(
        self,
        partition: int,
        parked_sagas: set[str],
        now: Callable[[], int],
        *,
        default_policy: SnapshotPolicy,
        seal: Sealer | None = None,
    ) -> None:
        self.partition, self.parked_sagas = partition, parked_sagas
        self.heads: dict[str, SagaState] = {}  # in the order of their last use
        self._now, self._default_policy, self._seal = now, default_policy, seal
        self._policies: dict[str, SnapshotPolicy] = {}
        self._start()

    def _start(self) -> None:
        self.broken: set[str] = set()  # sagas whose fold broke off half way
        self.not_captured = 0
        self._touched: dict[str, SagaState] = {}
        self._archive: list[ArchivedEvent] = []
        self._snapshots: list[StoredSnapshot] = []
        self._keep: dict[str, int] = {}
        self._replays: list[ReplayEntry] = []
        self._parked: list[ParkedRecord] = []
        self._rejected: dict[str, int] = {}
        self._refused: list[tuple[str, str]] = []
        self._waiting: dict[str, SagaState] = {}

    def missing(self, records: Iterable[Record]) -> tuple[str, ...]:
        """The sagas among these records whose heads are not at hand."""
        heads, parked = self.heads, self.parked_sagas
        wanted = {
            record.entry.saga_id: None
            for record in records
            if type(record.entry) is e.Event
            and record.entry.saga_id not in heads
            and record.entry.saga_id not in parked
        }
        return tuple(wanted)

    # --- folding

    def take(self, records: Iterable[Record], *, pass_over_undecodable: bool = False) -> None:
        """Fold these records; all heads they need are at hand, or do not exist."""
        for record in records:
            entry = record.entry
            if type(entry) is e.Event:
                if entry.saga_id in self.parked_sagas:
                    self._park(record, entry.saga_id, SET_ASIDE)
                    continue
                try:
                    self._fold(record, entry)
                except Exception as error:  # whatever it is, it must not stop the other sagas
                    self._break_off(record, entry.saga_id, error)
            elif type(entry) is Undecodable:
                if not pass_over_undecodable:
                    self._park(record, record.key, entry.reason)
            elif type(entry) is e.ReplayLogged:
                self._replays.append(_logged(entry))
            elif type(entry) is e.StartRequested:
                self._waiting.setdefault(entry.saga_id, _asked_for(entry))
            elif type(entry) is e.RequestRefused:
                self._refuse(entry)

    def _refuse(self, refused: e.RequestRefused) -> None:
        """A start that it was the answer to waits no longer; other requests are nothing to us."""
        start = self._waiting.get(refused.saga_id)
        if start is not None and start.cause == refused.request_id:
            del self._waiting[refused.saga_id]
        self._refused.append((refused.saga_id, refused.request_id))

    def _fold(self, record: Record, event: e.Event) -> None:
        saga_id = event.saga_id
        state = self.heads.get(saga_id)
        if state is None:
            state = self.heads[saga_id] = SagaState()
        verdict = judge(state, event)
        if verdict is not Verdict.ACCEPTED:
            cause = verdict.value
            self._rejected[cause] = self._rejected.get(cause, 0) + 1
            return
        policy = self._policy(state.snapshot_policy)
        updated_before = state.updated_at
        if policy.strategy in _LOOKS_BEFORE:
            self._capture(policy, state, event, None)
        advance(state, event)
        if state.sequence == 1:
            policy = self._policy(state.snapshot_policy)
        self._archive.append(ArchivedEvent(state.sequence, record.offset, event, record.value))
        self._touched[saga_id] = state
        if policy.strategy not in _TAKES_NONE:
            self._capture(policy, state, event, updated_before)
        kind = type(event.fact)
        if kind is e.ReplayBranched:
            self._replays.append(_branched(event, event.fact))  # type: ignore[arg-type]
        elif kind in _ENDINGS and state.replay_id:
            self._replays.append(_ended(state, _ENDINGS[kind]))

    def _break_off(self, record: Record, saga_id: str, error: Exception) -> None:
        logger.debug("fold of saga %r broke off", saga_id, exc_info=error)
        self.broken.add(saga_id)
        self.heads.pop(saga_id, None)
        self._touched.pop(saga_id, None)
        self._park(record, saga_id, f"it cannot be folded: {type(error).__name__}: {error}")

    def repair(self, stored: Mapping[str, SagaState]) -> None:
        """Bring the heads of broken sagas to their last accepted event, from those in the store."""
        for saga_id in self.broken:
            state = stored.get(saga_id) or SagaState()
            for archived in self._archive:
                if archived.event.saga_id == saga_id:
                    advance(state, archived.event)
                    self._touched[saga_id] = state
        self.broken = set()

    def _park(self, record: Record, saga_id: str, reason: str) -> None:
        if saga_id:
            self.parked_sagas.add(saga_id)
        self._parked.append(
            ParkedRecord(self.partition, record.offset, saga_id, reason, record.value, self._now())
        )

    # --- snapshots

    def _policy(self, text: str) -> SnapshotPolicy:
        policy = self._policies.get(text)
        if policy is None:
            if len(self._policies) >= _MAX_POLICIES:
                self._policies.clear()
            policy = self._policies[text] = parse_policy(text, self._default_policy)
        return policy

    def _capture(
        self, policy: SnapshotPolicy, state: SagaState, event: e.Event, updated_before: int | None
    ) -> None:
        """Keep what is due before `event` (`updated_before` None) or after it."""
        try:
            if updated_before is None:
                due = due_before(policy, state, event)
            else:
                due = due_after(policy, state, event, updated_before)
            if due is not None:
                self._keep_snapshot(policy, state, due)
        except Exception as error:  # a snapshot is disposable: the saga is not parked for it
            self.not_captured += 1
            logger.error("no snapshot of saga %r at %d: %s", state.saga_id, state.sequence, error)

    def _keep_snapshot(self, policy: SnapshotPolicy, state: SagaState, due: Due) -> None:
        # By the event, not by the clock: every projector and every rebuild makes the same row.
        created_at = state.updated_at
        retention_until = policy.retention_until(created_at)
        if 0 < retention_until <= self._now():
            return  # a rebuild comes past it: it would be cleaned up at once
        data = dump_state(state)
        if policy.encryption_key_id:
            if self._seal is None:
                raise ValueError(f"there is no key {policy.encryption_key_id!r} to encrypt it with")
            data = self._seal(policy.encryption_key_id, data)
        self._snapshots.append(
            StoredSnapshot(
                snapshot_id=snapshot_id(state.saga_id, state.sequence),
                saga_id=state.saga_id,
                saga_name=state.saga_name,
                sequence=state.sequence,
                occurred_at=created_at,
                created_at=created_at,
                step=due.step,
                step_index=due.step_index,
                status=state.status,
                completed_steps=tuple(state.completed_steps),
                state=data,
                fold_version=FOLD_VERSION,
                state_hash=state_hash(state.saga_id, state.sequence, FOLD_VERSION, data),
                retention_until=retention_until,
                key_id=policy.encryption_key_id,
            )
        )
        if policy.max_snapshots:
            self._keep[state.saga_id] = policy.max_snapshots

    # --- the commit

    def projection(self, checkpoint: Checkpoint, unparked: tuple[str, ...] = ()) -> Projection:
        """All that was taken since the last `settle`."""
        return Projection(
            checkpoint=checkpoint,
            heads=tuple(self._touched.values()),
            archive=tuple(self._archive),
            snapshots=tuple(self._snapshots),
            keep_snapshots=self._keep,
            replays=tuple(self._replays),
            parked=tuple(self._parked),
            unparked=unparked,
            rejected=self._rejected,
            refused=tuple(self._refused),
            waiting=tuple(self._waiting.values()),
        )

    def settle(self, cached_heads: int) -> None:
        """It is committed: keep at hand the unfinished heads that were used last."""
        heads = self.heads
        for saga_id, state in self._touched.items():
            heads.pop(saga_id, None)
            if not state.ended:
                heads[saga_id] = state  # to the end: used last
        for saga_id in list(heads)[: max(0, len(heads) - cached_heads)]:
            del heads[saga_id]
        self._start()


def identity_of(record: Record) -> str:
    """Which record this is, to tell one log from another: its offset and what stands there."""
    known = identity_at(record.offset, record.entry)
    return known or f"{record.offset}/bytes/{hashlib.sha256(record.value).hexdigest()[:16]}"


def identity_at(offset: int, entry: object) -> str:
    """As `identity_of`, of what was appended there; empty where only its bytes would tell."""
    if type(entry) is e.Event:
        return f"{offset}/{entry.saga_id}/{entry.writer.hex()}/{entry.epoch}/{entry.sequence}"
    if isinstance(entry, e.Request):
        return f"{offset}/{entry.saga_id}/request/{entry.request_id}"
    if isinstance(entry, e.NamespaceCreated):
        return f"{offset}/namespace/{entry.namespace}/{entry.created_at}"
    return ""


def _asked_for(request: e.StartRequested) -> SagaState:
    """A start that waits, as a list shows it. The writer's clock is the only one that knows."""
    return SagaState(
        saga_id=request.saga_id,
        saga_name=request.saga_name,
        started_at=request.requested_at,
        updated_at=request.requested_at,
        actor=request.actor,
        cause=request.request_id,
        caller_saga_id=request.caller_saga_id,
        caller_step=request.caller_step,
    )


# --- replays ------------------------------------------------------------------------------------


def _branched(event: e.Event, fact: e.ReplayBranched) -> ReplayEntry:
    start = _BRANCH_START.decode(fact.start) if fact.start else e.SagaStarted()
    return ReplayEntry(
        replay_id=fact.replay_id,
        original_saga_id=fact.parent_saga_id or event.saga_id,
        new_saga_id=fact.branch_saga_id,
        point=fact.point,
        overrides=start.overrides,
        actor=fact.actor,
        reason=fact.reason,
        dry_run=False,
        status="pending",
        created_at=event.occurred_at,
        force_failure=start.force_failure,
    )


def _ended(branch: SagaState, status: str) -> ReplayEntry:
    """What the branch's own stream says; the store merges it with what the original's said."""
    return ReplayEntry(
        replay_id=branch.replay_id,
        original_saga_id=branch.parent_saga_id,
        new_saga_id=branch.saga_id,
        point=branch.point,
        overrides="",
        actor=branch.actor,
        reason="",
        dry_run=False,
        status=status,
        created_at=branch.started_at,
        completed_at=branch.ended_at,
        error_message="" if status == "success" else branch.error_message,
        force_failure=branch.force_failure,
    )


def _logged(note: e.ReplayLogged) -> ReplayEntry:
    ended = note.status not in ("pending", "running")
    return ReplayEntry(
        replay_id=note.replay_id or note.request_id,
        original_saga_id=note.saga_id,
        new_saga_id=note.branch_saga_id,
        point=note.point,
        overrides=note.overrides,
        actor=note.actor,
        reason=note.reason,
        dry_run=note.dry_run,
        status=note.status,
        created_at=note.requested_at,
        completed_at=note.requested_at if ended else 0,
        error_message=note.error_message,
    )


async def origin_of(log: EventLog, partition: int) -> str:
    """Which log a partition is of, as `Checkpoint.log` has it; empty: its beginning is gone."""
    try:
        chunk = await log.read(partition, 0, limit=1)
    except HistoryGone:
        return ""
    first = chunk.records[0].entry if chunk.records else None
    if not isinstance(first, e.NamespaceCreated):
        return ""
    return f"{first.namespace}/{first.created_at}"


async def verify_store(log: EventLog, store: ProjectionStore) -> None:
    """Whether an open store was made from this log, and from no more than it still has.

    Raises LogReplaced (StoreOfAnotherLog), LogTruncated.
    """
    for partition in range(log.partitions):
        checkpoint = await store.checkpoint(partition)
        if checkpoint is not None:
            await verify_checkpoint(log, checkpoint, store.name)


async def verify_checkpoint(log: EventLog, checkpoint: Checkpoint, store: str = "") -> None:
    """Whether the log still holds the record that the store was last made from.

    Raises LogReplaced, LogTruncated: the store belongs to another log, or this one lost its tail.
    """
    if checkpoint.log:
        origin = await origin_of(log, checkpoint.partition)
        if origin and origin != checkpoint.log:
            raise StoreOfAnotherLog(store, checkpoint.log, log.name, origin)
    await verify_record(log, checkpoint.partition, checkpoint.last_identity)


_OFFSET_DIGITS = 18  # what a log can be asked for


async def verify_record(log: EventLog, partition: int, identity: str) -> None:
    """Whether the log still holds a record, by its `identity_of`; if not, raises LogReplaced,
    LogTruncated. One that retention has passed, or whose identity is missing or damaged (people can
    write into a mark's note), is taken to have stood."""
    place, _, expected = identity.partition("/")
    if not expected or not (place.isascii() and place.isdecimal()) or len(place) > _OFFSET_DIGITS:
        return
    offset = int(place)
    try:
        chunk = await log.read(partition, offset, limit=1)
        while not chunk.records and chunk.next_offset == offset:  # it may only not have answered
            end = (await log.bounds(partition)).end
            if end <= offset:
                raise LogTruncated(partition, offset + 1, end)
            chunk = await log.read(partition, offset, limit=1, wait_s=1.0)
    except HistoryGone:
        return  # the log keeps less than was known
    record = chunk.records[0] if chunk.records else None
    found = identity_of(record) if record is not None and record.offset == offset else "nothing"
    if found != identity:
        raise LogReplaced(partition, offset, expected, found.partition("/")[2])
