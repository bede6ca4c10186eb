"""Which unfinished sagas code would not carry on: each is judged by what the engine judges by."""

from __future__ import annotations

import hashlib
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass

from sagaz_es.core.state import ENDED, SagaStatus
from sagaz_es.engine.changes import claim
from sagaz_es.errors import SagaError, StorageFailed
from sagaz_es.ports import BlobStore, ProjectionStore
from sagaz_es.sagas.definition import Definition
from sagaz_es.sagas.large_values import LargeValues
from sagaz_es_cli import exits

PAGE = 500


@dataclass
class Looked:
    """What became of a look at the unfinished sagas of one definition."""

    at: int = 0
    refused: int = 0
    why: str = ""  # of the first one that is refused
    cut: bool = False  # there may be more


class _WritesNothing:
    """A blob store that can be read, and only names what it is given."""

    def __init__(self, blobs: BlobStore | None) -> None:
        self._blobs = blobs

    async def put(self, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    async def get(self, key: str) -> bytes | None:
        return None if self._blobs is None else await self._blobs.get(key)

    async def close(self) -> None:
        """Whoever opened the other one closes it."""


async def look(
    store: ProjectionStore,
    blobs: BlobStore | None,
    definition: Definition,
    saga_name: str,
    most: dict[str, int],
) -> dict[str, Looked]:
    """What this code would do with unfinished sagas of the fingerprints in `most`, which says at
    how many of each to look.

    Law (no effects): the claim is made and thrown away; `migrate` is called, as it only computes.
    """
    values = LargeValues(_WritesNothing(blobs))
    found = {fingerprint: Looked() for fingerprint in most}
    seen: set[str] = set()  # a saga may move to another page, or status, meanwhile
    for status in (status for status in SagaStatus if status not in ENDED):
        last: tuple[int, str] | None = None
        while any(looked.at < most[key] for key, looked in found.items()):
            page = await store.summaries(status=status, saga_name=saga_name, limit=PAGE, after=last)
            ours = [one.saga_id for one in page if one.definition in found and not one.recorded]
            heads = await store.heads(saga_id for saga_id in ours if saga_id not in seen)
            seen.update(ours)
            for state in heads.values():
                looked = found.get(state.definition)
                if looked is None or state.ended or looked.at >= most[state.definition]:
                    continue
                looked.at += 1
                try:
                    with redirect_stdout(sys.stderr):
                        await claim(state, definition, "check", values)
                except StorageFailed:
                    raise
                except SagaError as error:
                    looked.refused += 1
                    looked.why = looked.why or exits.sentence_of(error)
            if len(page) < PAGE:
                break
            last = page[-1].place
    return found
