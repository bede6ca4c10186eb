"""Membership over the processes that share one SQLite log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sagaz_es.log.sqlite_owners import Owners
from sagaz_es.ports import Rebalanced

_POLL_S = 0.1  # how long a change of the members, or a death, may go unnoticed
_log = logging.getLogger("sagaz_es.log")


class FileMembership:
    """A member that owns a partition as long as it holds a lock on its file.

    Law (one owner): at most one live member has a partition; a death frees it at once.
    """

    def __init__(
        self,
        owners: Owners,
        on_change: Rebalanced,
        raise_mark: Callable[[int, int, str], Awaitable[None]],
    ) -> None:
        self._owners, self._on_change, self._raise_mark = owners, on_change, raise_mark
        self._leaving = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Enter, take what is free of one's share, and go on watching."""
        self._owners.enter()
        try:
            await self._follow()
        except BaseException:
            self._owners.leave()
            raise
        self._polling = asyncio.get_running_loop().create_task(self._poll())

    async def leave(self, *, for_good: bool = False) -> None:
        self._leaving.set()
        polling, self._polling = self._polling, None
        if polling is not None:
            await polling  # it may be in the middle of a hand-over
            if self._owners.held:
                await self._tell(frozenset())
            self._owners.leave()

    async def abandon(self) -> None:
        """Release everything without a hand-over, because the log is closed."""
        polling, self._polling = self._polling, None
        if polling is not None:
            polling.cancel()
            await asyncio.wait([polling])
            self._owners.leave()

    async def commit_low_water_mark(self, partition: int, offset: int, note: str = "") -> None:
        await self._raise_mark(partition, offset, note)

    async def predecessor_is_alive(self, partition: int) -> bool:
        return False  # the lock was free: it was handed over, or its owner is dead

    async def _poll(self) -> None:
        while not self._leaving.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._leaving.wait()
                return
            try:
                await self._follow()
            except OSError as error:
                _log.warning("who owns the partitions cannot be seen: %s", error)

    async def _follow(self) -> None:
        """Come to one's share: hand over what is too much, then take what is free."""
        owners = self._owners
        share = owners.share()
        if too_much := (owners.held - share) | owners.lost():
            await self._tell(owners.held - too_much)
            owners.release(too_much)
        if missing := share - owners.held:
            if owners.take(missing):
                await self._tell(owners.held)

    async def _tell(self, share: frozenset[int]) -> None:
        try:
            await self._on_change(share)
        except Exception:  # what this engine failed to let go of must not be lost to the others
            _log.exception("an engine failed to follow the change of its partitions")
