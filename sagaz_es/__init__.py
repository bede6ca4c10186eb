"""Durable sagas with nothing but the Kafka one already runs. The public names, and nothing else."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sagaz_es.connect import connect
from sagaz_es.core.decide import ParallelFailureStrategy
from sagaz_es.core.history import Step
from sagaz_es.core.plan import PlannedStep, ReplayPlan, Verdict
from sagaz_es.core.state import SagaStatus, SagaStepStatus
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.context import StepContext
from sagaz_es.engine.definition import (
    RecoveryAction,
    Saga,
    action,
    compensate,
    forward_recovery,
)
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.observers import SagaListener
from sagaz_es.engine.replayer import ReplayResult, ReplayStatus
from sagaz_es.engine.result import SagaHandle, SagaResult
from sagaz_es.errors import SagaError

if TYPE_CHECKING:
    from sagaz_es.connect import SagaRecorder
    from sagaz_es.core.snapshot import SnapshotStrategy
    from sagaz_es.engine.historical import HistoricalState, StateChange
    from sagaz_es.engine.saga_time_travel import SagaTimeTravel
    from sagaz_es.engine.time_travel import SagaHistory
    from sagaz_es.once import once
    from sagaz_es.ports import SnapshotStorage
    from sagaz_es.snapshots import ReplayConfig, SagaSnapshot
    from sagaz_es.storage.memory import InMemorySnapshotStorage
    from sagaz_es.storage.postgresql import PostgreSQLSnapshotStorage

step = action
"""sagaz's other name for `action`."""

# Imported when first asked for: they load what a service that only runs sagas does not need.
_LAZY = {
    "HistoricalState": "sagaz_es.engine.historical",
    "InMemorySnapshotStorage": "sagaz_es.storage.memory",
    "PostgreSQLSnapshotStorage": "sagaz_es.storage.postgresql",
    "ReplayConfig": "sagaz_es.snapshots",
    "SagaHistory": "sagaz_es.engine.time_travel",
    "SagaRecorder": "sagaz_es.connect",
    "SagaSnapshot": "sagaz_es.snapshots",
    "SagaTimeTravel": "sagaz_es.engine.saga_time_travel",
    "SnapshotStorage": "sagaz_es.ports",
    "SnapshotStrategy": "sagaz_es.core.snapshot",
    "StateChange": "sagaz_es.engine.historical",
    "once": "sagaz_es.once",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module), name)


__all__ = [
    "Engine",
    "EngineConfig",
    "HistoricalState",
    "InMemorySnapshotStorage",
    "ParallelFailureStrategy",
    "PlannedStep",
    "PostgreSQLSnapshotStorage",
    "RecoveryAction",
    "ReplayConfig",
    "ReplayPlan",
    "ReplayResult",
    "ReplayStatus",
    "Saga",
    "SagaError",
    "SagaHandle",
    "SagaHistory",
    "SagaListener",
    "SagaRecorder",
    "SagaResult",
    "SagaSnapshot",
    "SagaStatus",
    "SagaStepStatus",
    "SagaTimeTravel",
    "SnapshotStorage",
    "SnapshotStrategy",
    "StateChange",
    "Step",
    "StepContext",
    "Verdict",
    "action",
    "compensate",
    "connect",
    "forward_recovery",
    "once",
    "step",
]
