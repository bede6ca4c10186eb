"""What all stores do alike: summaries from heads, the check of a snapshot, telling of a bad one."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from sagaz_es.core.snapshot import state_hash
from sagaz_es.core.state import FOLD_VERSION, SagaState
from sagaz_es.ports import NOT_FOLDED, Clock, SnapshotReport, StoredSnapshot, Summary

logger = logging.getLogger("sagaz_es.storage")

NEAREST_PAGE = 3
"""Snapshots fetched at a time to fold from: the second and third are for when one is damaged."""


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
        error=state.error_message or state.error_type,
        definition=state.definition,
        parent_saga_id=state.parent_saga_id,
        root_saga_id=state.root_saga_id,
        replay_id=state.replay_id,
        recorded=state.recorded,
    )


def damage_of(snapshot: StoredSnapshot) -> str:
    """Why a snapshot must not be used; empty: it is as it was written."""
    found = state_hash(snapshot.saga_id, snapshot.sequence, snapshot.fold_version, snapshot.state)
    return "" if found == snapshot.state_hash else "its bytes do not match its hash"


def outdated(snapshot: StoredSnapshot) -> str:
    """Why no fold of this version can go on from it; empty: it can."""
    if snapshot.fold_version == FOLD_VERSION:
        return ""
    return f"it is of fold version {snapshot.fold_version}, this is {FOLD_VERSION}"


class Doubts:
    """Counts snapshots that were passed over, and tells about each."""

    def __init__(self, report: SnapshotReport | None = None) -> None:
        self.passed_over = 0
        self._report = report

    def tell(self, saga_id: str, snapshot_id: str, reason: str) -> None:
        """A snapshot is not used, for this reason; the caller looks for an older one."""
        self.passed_over += 1
        if self._report is not None:
            self._report(saga_id, snapshot_id, reason)
        else:
            logger.warning(
                "snapshot %s of saga %r is passed over: %s", snapshot_id, saga_id, reason
            )

    def sound(self, snapshots: Iterable[StoredSnapshot]) -> tuple[StoredSnapshot, ...]:
        """Those that are as they were written."""
        return tuple(snapshot for snapshot in snapshots if self._is_sound(snapshot))

    def first_sound(self, snapshots: Iterable[StoredSnapshot]) -> StoredSnapshot | None:
        """The first that is as it was written."""
        return next((snapshot for snapshot in snapshots if self._is_sound(snapshot)), None)

    def first_to_fold_from(self, snapshots: Iterable[StoredSnapshot]) -> StoredSnapshot | None:
        """The first that is as it was written and that this version's fold can go on from."""
        for snapshot in snapshots:
            if snapshot.fold_version == NOT_FOLDED:
                continue
            if reason := outdated(snapshot):
                self.tell(snapshot.saga_id, snapshot.snapshot_id, reason)
            elif self._is_sound(snapshot):
                return snapshot
        return None

    def _is_sound(self, snapshot: StoredSnapshot) -> bool:
        reason = damage_of(snapshot)
        if reason:
            self.tell(snapshot.saga_id, snapshot.snapshot_id, reason)
        return not reason


def now_of(clock: Clock | None) -> int:
    """µs since 1970 UTC, by the clock that was given or the system's."""
    return clock.now() if clock is not None else time.time_ns() // 1000
