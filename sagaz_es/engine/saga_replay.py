"""SagaReplay: replays under the names of the original design, on the same engine.

What a replay does is decided by its plan (`core.plan`), not by a snapshot: a step that was undone
is done again, one that stands is reused or undone first.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sagaz_es.core.plan import ReplayPlan
from sagaz_es.engine import replayer
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.replayer import ReplayResult, ReplayStatus
from sagaz_es.errors import ConfigurationError, ReplayError, SagaError
from sagaz_es.reading.lookup import current_state
from sagaz_es.reading.replay_log import replays_of
from sagaz_es.reading.time_travel import SagaHistory
from sagaz_es.sagas import standalone
from sagaz_es.sagas.definition import Definition
from sagaz_es.sagas.inputs import check_id, check_said, check_text
from sagaz_es.sagas.saga import Saga
from sagaz_es.snapshots import shown_replay

Factory = Callable[[str], Any]
"""Makes the saga that carries the branch on, by its name; sync or async."""


@dataclass
class ReplayRequest:
    """What is asked of a replay, as sagaz writes it down."""

    original_saga_id: Any
    checkpoint_step: str
    context_override: Mapping[str, Any] | None = None
    initiated_by: str = "system"
    dry_run: bool = False

    def merge_context(self, original_context: Mapping[str, Any]) -> dict[str, Any]:
        """The context with the overrides: each replaces its key as a whole."""
        return {**original_context, **(self.context_override or {})}


class SagaReplay:
    """Replays of one saga.

    `snapshot_storage`: an engine that is open; a log's URL; or a snapshot storage, as given to the
    saga, or nothing: then the log is the one that the saga ran on, else the default log.
    `saga_factory(name)` makes the saga whose code runs; without one it is the class that the engine
    has. While a replay runs, its engine runs sagas of that name with that code.
    """

    def __init__(
        self,
        saga_id: Any,
        snapshot_storage: Any = None,
        initiated_by: str = "system",
        saga_factory: Factory | None = None,
    ) -> None:
        self.saga_id = check_id(saga_id)
        check_said(initiated_by)
        self.snapshot_storage = snapshot_storage
        self.initiated_by = initiated_by
        self.saga_factory = saga_factory

    async def from_checkpoint(
        self,
        step_name: str,
        context_override: Mapping[str, Any] | None = None,
        dry_run: bool = False,
        *,
        force_failure: bool = False,
        saga_factory: Factory | None = None,
        allow: Iterable[str] = (),
        reason: str = "",
    ) -> ReplayResult:
        """Replay from a step, which is the first to run again, as a branch; wait for its end.

        A branch that fails is a result, as is whatever a dry run would be refused with. `allow`
        names steps that may run again although their effect stands and cannot be undone.

        Raises SnapshotNotFoundError (unknown saga or step), ReplayError (a blocked plan, a saga
        that still runs, code that does not fit, no code); nothing has run then. Every attempt is in
        `get_replay_history`.
        """
        check_text("step_name", step_name, empty=True)
        check_said(self.initiated_by, reason)
        attempt = _Attempt(
            self.saga_id,
            step_name,
            context_override,
            force_failure=force_failure,
            allow=allow,
            actor=self.initiated_by,
            reason=reason,
            dry_run=dry_run,
        )
        async with self._engine(asking=dry_run) as engine:
            try:
                return await attempt.run(engine, saga_factory or self.saga_factory)
            except ReplayError:
                raise
            except SagaError as error:
                raise ReplayError(f"saga {self.saga_id!r} was not replayed: {error}") from error

    async def list_available_checkpoints(self) -> list[dict[str, Any]]:
        """Every step that the saga has reached, once, in order: `step_name`, `step_index`, `status`
        (as the step stands now), `created_at`, `sequence`. Raises SagaNotFound."""
        async with self._engine(asking=True) as engine:
            history = SagaHistory(self.saga_id, engine.log, engine.store, engine.blob_store)
            kept = await self._kept() if not await self._is_known(engine) else []
            if kept:
                return kept
            return [
                {
                    "step_name": one.step,
                    "step_index": one.index,
                    "status": str(one.status),
                    "created_at": one.timestamp.isoformat(),
                    "sequence": one.sequence,
                }
                for one in await history.checkpoints()
            ]

    async def _is_known(self, engine: Engine) -> bool:
        return await current_state(engine.log, engine.store, self.saga_id) is not None

    async def _kept(self) -> list[dict[str, Any]]:
        """Of a saga that no log has: the snapshots that were saved by hand, oldest first."""
        if not hasattr(self.snapshot_storage, "list_snapshots"):
            return []
        found = await self.snapshot_storage.list_snapshots(self.saga_id)
        return [
            {
                "step_name": one.step_name,
                "step_index": one.step_index,
                "status": str(one.status),
                "created_at": one.created_at.isoformat(),
                "sequence": one.sequence,
                "snapshot_id": str(one.snapshot_id),
            }
            for one in reversed(found)
        ]

    async def get_replay_history(self, limit: int = 100) -> list[dict[str, Any]]:
        """Replays, dry runs and refused attempts, newest first; with the same keys as
        `SnapshotStorage.list_replays`."""
        async with self._engine(asking=True) as engine:
            entries = await replays_of(engine.log, engine.store, self.saga_id, limit)
            return [shown_replay(entry) for entry in entries]

    @asynccontextmanager
    async def _engine(self, *, asking: bool) -> AsyncIterator[Engine]:
        place = self.snapshot_storage
        if isinstance(place, Engine):
            yield place
            return
        shared = standalone.engine_with(place)
        async with shared.asked() if asking else shared as engine:
            yield engine


@dataclass(frozen=True)
class _Attempt:
    saga_id: str
    step: str
    context_override: Mapping[str, Any] | None
    force_failure: bool
    allow: Iterable[str]
    actor: str
    reason: str
    dry_run: bool

    async def run(self, engine: Engine, factory: Factory | None) -> ReplayResult:
        """Raises what the replay is refused with, unless it is dry."""
        state = await current_state(engine.log, engine.store, self.saga_id)
        name = "" if state is None else state.saga_name
        try:
            definition = await _made(factory, name) if factory is not None and name else None
            with engine.registry.lent(name, definition):
                plan = await self._plan(engine)
                return await replayer.replay(
                    engine.host,
                    plan,
                    actor=self.actor,
                    reason=self.reason,
                    dry_run=self.dry_run,
                )
        except _NotPrepared as error:
            await self._note(engine, error)
            if not self.dry_run:
                raise ReplayError(
                    f"saga {self.saga_id!r} was not replayed: {error}"
                ) from error.__cause__
            return self._failed(engine, str(error))

    async def _plan(self, engine: Engine) -> ReplayPlan:
        try:
            return await replayer.plan(
                engine.host,
                self.saga_id,
                self.step,
                context_override=self.context_override,
                force_failure=self.force_failure,
                allow=self.allow,
                actor=self.actor,
                reason=self.reason,
                dry_run=self.dry_run,
            )
        except ReplayError:
            raise  # it is in the audit trail
        except SagaError as error:
            raise _NotPrepared(str(error)) from error

    async def _note(self, engine: Engine, error: Exception) -> None:
        await replayer.note(
            engine.host,
            self.saga_id,
            self.step,
            "failed" if self.dry_run else "refused",
            actor=self.actor,
            reason=self.reason,
            dry_run=self.dry_run,
            error=str(error),
        )

    def _failed(self, engine: Engine, error: str) -> ReplayResult:
        now = datetime.fromtimestamp(engine.host.clock.now() / 1e6, UTC)
        return ReplayResult(
            str(uuid.uuid4()),
            self.saga_id,
            None,
            self.step,
            ReplayStatus.FAILED,
            initiated_by=self.actor,
            context_override=dict(self.context_override) if self.context_override else None,
            error_message=error,
            dry_run=self.dry_run,
            force_failure=self.force_failure,
            created_at=now,
            completed_at=now,
        )


class _NotPrepared(Exception):
    """No plan, or no code: in words."""


async def _made(factory: Factory, name: str) -> Definition:
    """The definition of what a factory makes. Raises _NotPrepared."""
    try:
        saga = factory(name)
        if inspect.isawaitable(saga):
            saga = await saga
        if not isinstance(saga, Saga):
            raise ConfigurationError(f"it gave a {type(saga).__name__}, not a Saga")
        if not type(saga)._collected and not saga.__dict__.get("_added"):
            await saga.build()
        return saga.definition()
    except Exception as error:
        raise _NotPrepared(
            f"its factory failed for {name!r} with {type(error).__name__}: {error}"
        ) from error
