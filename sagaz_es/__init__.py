"""Durable sagas on a Kafka log, or on one SQLite file. The public names, and nothing else."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sagaz_es.connect import connect
from sagaz_es.core.decide import ParallelFailureStrategy
from sagaz_es.core.history import Step
from sagaz_es.core.plan import PlannedStep, ReplayPlan, Verdict
from sagaz_es.core.state import SagaStatus, SagaStepStatus
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.replayer import ReplayResult, ReplayStatus
from sagaz_es.errors import SagaError
from sagaz_es.sagas.context import StepContext
from sagaz_es.sagas.decorators import action, child, compensate, forward_recovery
from sagaz_es.sagas.definition import RecoveryAction
from sagaz_es.sagas.observers import SagaListener
from sagaz_es.sagas.result import SagaHandle, SagaResult
from sagaz_es.sagas.saga import Saga

if TYPE_CHECKING:
    from sagaz_es.blobs.files import (
        ExternalReference as ExternalReference,
    )
    from sagaz_es.blobs.files import (
        ExternalStorage as ExternalStorage,
    )
    from sagaz_es.blobs.files import (
        FileSystemExternalStorage as FileSystemExternalStorage,
    )
    from sagaz_es.connect import SagaRecorder
    from sagaz_es.core.decide import (
        CompensationFailureStrategy as CompensationFailureStrategy,
    )
    from sagaz_es.core.snapshot import SnapshotStrategy
    from sagaz_es.core.zones import (
        PivotInfo as PivotInfo,
    )
    from sagaz_es.core.zones import (
        SagaZones as SagaZones,
    )
    from sagaz_es.core.zones import (
        StepZone as StepZone,
    )
    from sagaz_es.core.zones import (
        TaintPropagator as TaintPropagator,
    )
    from sagaz_es.engine.saga_replay import ReplayRequest as ReplayRequest
    from sagaz_es.engine.saga_replay import SagaReplay
    from sagaz_es.errors import (
        CircularDependencyError as CircularDependencyError,
    )
    from sagaz_es.errors import (
        CompensationGraphError as CompensationGraphError,
    )
    from sagaz_es.errors import (
        ConfigurationError as ConfigurationError,
    )
    from sagaz_es.errors import (
        IdempotencyKeyMissingInPayloadError as IdempotencyKeyMissingInPayloadError,
    )
    from sagaz_es.errors import (
        IdempotencyKeyRequiredError as IdempotencyKeyRequiredError,
    )
    from sagaz_es.errors import (
        LargePayloadWarning as LargePayloadWarning,
    )
    from sagaz_es.errors import (
        MemoryFootprintError as MemoryFootprintError,
    )
    from sagaz_es.errors import (
        MissingDependencyError as MissingDependencyError,
    )
    from sagaz_es.errors import (
        ReplayError as ReplayError,
    )
    from sagaz_es.errors import (
        SagaCompensationError as SagaCompensationError,
    )
    from sagaz_es.errors import (
        SagaDependencyError as SagaDependencyError,
    )
    from sagaz_es.errors import (
        SagaExecutionError as SagaExecutionError,
    )
    from sagaz_es.errors import (
        SagaStepError as SagaStepError,
    )
    from sagaz_es.errors import (
        SagaTimeoutError as SagaTimeoutError,
    )
    from sagaz_es.errors import (
        SnapshotCaptureError as SnapshotCaptureError,
    )
    from sagaz_es.errors import (
        SnapshotNotFoundError as SnapshotNotFoundError,
    )
    from sagaz_es.exactly_once import create_once_table, once
    from sagaz_es.ports import SnapshotStorage
    from sagaz_es.reading.historical import HistoricalState, StateChange
    from sagaz_es.reading.saga_time_travel import SagaTimeTravel
    from sagaz_es.reading.time_travel import SagaHistory
    from sagaz_es.sagas.config import (
        InMemoryBroker as InMemoryBroker,
    )
    from sagaz_es.sagas.config import (
        InMemorySagaStorage as InMemorySagaStorage,
    )
    from sagaz_es.sagas.config import (
        SagaConfig as SagaConfig,
    )
    from sagaz_es.sagas.config import (
        configure as configure,
    )
    from sagaz_es.sagas.config import (
        get_config as get_config,
    )
    from sagaz_es.sagas.context import (
        SagaContext as SagaContext,
    )
    from sagaz_es.sagas.definition import CompensationType as CompensationType
    from sagaz_es.sagas.described import (
        SagaStep as SagaStep,
    )
    from sagaz_es.sagas.described import (
        SagaStepDefinition as SagaStepDefinition,
    )
    from sagaz_es.sagas.dry_run import (
        DryRunEngine as DryRunEngine,
    )
    from sagaz_es.sagas.dry_run import (
        DryRunMode as DryRunMode,
    )
    from sagaz_es.sagas.dry_run import (
        DryRunResult as DryRunResult,
    )
    from sagaz_es.sagas.dry_run import (
        ParallelLayerInfo as ParallelLayerInfo,
    )
    from sagaz_es.sagas.dry_run import (
        SimulationResult as SimulationResult,
    )
    from sagaz_es.sagas.dry_run import (
        ValidationResult as ValidationResult,
    )
    from sagaz_es.sagas.execution_graph import (
        CompensationNode as CompensationNode,
    )
    from sagaz_es.sagas.execution_graph import (
        CompensationResult as CompensationResult,
    )
    from sagaz_es.sagas.execution_graph import (
        SagaCompensationContext as SagaCompensationContext,
    )
    from sagaz_es.sagas.execution_graph import (
        SagaExecutionGraph as SagaExecutionGraph,
    )
    from sagaz_es.sagas.listeners import (
        LoggingSagaListener as LoggingSagaListener,
    )
    from sagaz_es.sagas.listeners import (
        MetricsSagaListener as MetricsSagaListener,
    )
    from sagaz_es.sagas.listeners import (
        TracingSagaListener as TracingSagaListener,
    )
    from sagaz_es.sagas.listeners import (
        default_listeners as default_listeners,
    )
    from sagaz_es.sagas.listeners import (
        log_step_lifecycle as log_step_lifecycle,
    )
    from sagaz_es.sagas.listeners import (
        on_step_compensate as on_step_compensate,
    )
    from sagaz_es.sagas.listeners import (
        on_step_enter as on_step_enter,
    )
    from sagaz_es.sagas.listeners import (
        on_step_exit as on_step_exit,
    )
    from sagaz_es.sagas.listeners import (
        on_step_failure as on_step_failure,
    )
    from sagaz_es.sagas.listeners import (
        on_step_success as on_step_success,
    )
    from sagaz_es.sagas.orchestrator import (
        SagaOrchestrator as SagaOrchestrator,
    )
    from sagaz_es.sagas.triggers import (
        RegisteredTrigger as RegisteredTrigger,
    )
    from sagaz_es.sagas.triggers import (
        TriggerEngine as TriggerEngine,
    )
    from sagaz_es.sagas.triggers import (
        TriggerMetadata as TriggerMetadata,
    )
    from sagaz_es.sagas.triggers import (
        TriggerRegistry as TriggerRegistry,
    )
    from sagaz_es.sagas.triggers import (
        fire_event as fire_event,
    )
    from sagaz_es.sagas.triggers import (
        trigger as trigger,
    )
    from sagaz_es.snapshots import ReplayConfig, SagaSnapshot
    from sagaz_es.storage.memory import InMemorySnapshotStorage
    from sagaz_es.storage.postgresql import PostgreSQLSnapshotStorage

step = action
"""sagaz's other name for `action`."""

# Imported when first asked for: they load what a service that only runs sagas does not need.
_LAZY = {
    "HistoricalState": "sagaz_es.reading.historical",
    "InMemorySnapshotStorage": "sagaz_es.storage.memory",
    "PostgreSQLSnapshotStorage": "sagaz_es.storage.postgresql",
    "ReplayConfig": "sagaz_es.snapshots",
    "SagaHistory": "sagaz_es.reading.time_travel",
    "SagaRecorder": "sagaz_es.connect",
    "SagaSnapshot": "sagaz_es.snapshots",
    "SagaReplay": "sagaz_es.engine.saga_replay",
    "SagaTimeTravel": "sagaz_es.reading.saga_time_travel",
    "SnapshotStorage": "sagaz_es.ports",
    "SnapshotStrategy": "sagaz_es.core.snapshot",
    "StateChange": "sagaz_es.reading.historical",
    # No module has the name of a public name: imported, it would stand in its place.
    "create_once_table": "sagaz_es.exactly_once",
    "once": "sagaz_es.exactly_once",
}

# What else a file written for sagaz may import.
_OF_SAGAZ = {
    "sagaz_es.core.decide": "CompensationFailureStrategy",
    "sagaz_es.core.zones": "PivotInfo SagaZones StepZone TaintPropagator",
    "sagaz_es.sagas.context": "SagaContext",
    "sagaz_es.sagas.definition": "CompensationType",
    "sagaz_es.sagas.described": "SagaStep SagaStepDefinition",
    "sagaz_es.blobs.files": "ExternalReference ExternalStorage FileSystemExternalStorage",
    "sagaz_es.sagas.dry_run": (
        "DryRunEngine DryRunMode DryRunResult ParallelLayerInfo SimulationResult ValidationResult"
    ),
    "sagaz_es.sagas.execution_graph": (
        "CompensationNode CompensationResult SagaCompensationContext SagaExecutionGraph"
    ),
    "sagaz_es.sagas.listeners": (
        "LoggingSagaListener MetricsSagaListener TracingSagaListener default_listeners "
        "log_step_lifecycle on_step_compensate on_step_enter on_step_exit on_step_failure "
        "on_step_success"
    ),
    "sagaz_es.sagas.orchestrator": "SagaOrchestrator",
    "sagaz_es.sagas.config": ("InMemoryBroker InMemorySagaStorage SagaConfig configure get_config"),
    "sagaz_es.engine.saga_replay": "ReplayRequest",
    "sagaz_es.sagas.triggers": (
        "RegisteredTrigger TriggerEngine TriggerMetadata TriggerRegistry fire_event trigger"
    ),
    "sagaz_es.errors": (
        "CircularDependencyError CompensationGraphError ConfigurationError "
        "IdempotencyKeyMissingInPayloadError IdempotencyKeyRequiredError LargePayloadWarning "
        "MemoryFootprintError MissingDependencyError ReplayError SagaCompensationError "
        "SagaDependencyError SagaExecutionError SagaStepError SagaTimeoutError "
        "SnapshotCaptureError SnapshotNotFoundError"
    ),
}
_LAZY.update({name: module for module, names in _OF_SAGAZ.items() for name in names.split()})


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        if name == "__version__":
            from importlib.metadata import version

            return version("sagaz-es")
        if not name.startswith("_"):
            from sagaz_es.dropped import why

            if said := why(name):
                # `from sagaz_es import …` would hide the sentence of an AttributeError.
                raise ImportError(said)
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
    "SagaReplay",
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
    "child",
    "compensate",
    "connect",
    "create_once_table",
    "forward_recovery",
    "once",
    "step",
]
