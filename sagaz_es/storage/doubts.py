"""Snapshots that must not be used: told, counted, and passed over for an older one."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator

import msgspec

from sagaz_es.codec.compress import unpack
from sagaz_es.core.snapshot import state_hash
from sagaz_es.core.state import FOLD_VERSION
from sagaz_es.errors import CorruptData
from sagaz_es.ports import NOT_FOLDED, SnapshotReport, StoredSnapshot

logger = logging.getLogger("sagaz_es.storage")

NEAREST_PAGE = 3
"""Snapshots fetched at a time to fold from: the second and third are for when one is damaged."""


def damage_of(snapshot: StoredSnapshot) -> str:
    """Why a snapshot must not be used; empty: it is as it was written."""
    found = state_hash(snapshot.saga_id, snapshot.sequence, snapshot.fold_version, snapshot.state)
    return "" if found == snapshot.state_hash else "its bytes do not match its hash"


def outdated(snapshot: StoredSnapshot) -> str:
    """Why no fold of this version can go on from it; empty: it can."""
    if snapshot.fold_version == FOLD_VERSION:
        return ""
    return f"it is of fold version {snapshot.fold_version}, this is {FOLD_VERSION}"


SnapshotRow = tuple[str, bytes]
"""Its id, and the bytes of the rest: of damaged bytes at least the id can be told."""

_SNAPSHOTS = msgspec.msgpack.Decoder(StoredSnapshot)


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

    def loaded(self, saga_id: str, rows: Iterable[SnapshotRow]) -> Iterator[StoredSnapshot]:
        """Rows as snapshots; one whose bytes cannot be read is passed over."""
        for snapshot_id, data in rows:
            try:
                yield _SNAPSHOTS.decode(unpack(data))
            except (CorruptData, msgspec.MsgspecError, UnicodeError) as error:
                self.tell(saga_id, snapshot_id, str(error))

    async def first_of(
        self,
        saga_id: str,
        page: Callable[[int, int], Awaitable[list[SnapshotRow]]],
        choose: Callable[[Iterable[StoredSnapshot]], StoredSnapshot | None],
    ) -> StoredSnapshot | None:
        """The first that is chosen, of pages by limit and offset; the next is rarely needed."""
        offset = 0
        while True:
            rows = await page(NEAREST_PAGE, offset)
            chosen = choose(self.loaded(saga_id, rows))
            if chosen is not None or len(rows) < NEAREST_PAGE:
                return chosen
            offset += NEAREST_PAGE

    def _is_sound(self, snapshot: StoredSnapshot) -> bool:
        reason = damage_of(snapshot)
        if reason:
            self.tell(snapshot.saga_id, snapshot.snapshot_id, reason)
        return not reason
