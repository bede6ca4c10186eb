"""Durable sagas with nothing but the Kafka one already runs. The public names, and nothing else."""

from sagaz_es.connect import connect
from sagaz_es.core.decide import ParallelFailureStrategy
from sagaz_es.core.plan import PlannedStep, ReplayPlan, Verdict
from sagaz_es.core.state import SagaStatus, SagaStepStatus
from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.definition import (
    RecoveryAction,
    Saga,
    action,
    compensate,
    forward_recovery,
)
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.replayer import ReplayResult, ReplayStatus
from sagaz_es.engine.result import SagaHandle, SagaResult
from sagaz_es.errors import SagaError

step = action
"""sagaz's other name for `action`."""

__all__ = [
    "Engine",
    "EngineConfig",
    "ParallelFailureStrategy",
    "PlannedStep",
    "RecoveryAction",
    "ReplayPlan",
    "ReplayResult",
    "ReplayStatus",
    "Saga",
    "SagaError",
    "SagaHandle",
    "SagaResult",
    "SagaStatus",
    "SagaStepStatus",
    "Verdict",
    "action",
    "compensate",
    "connect",
    "forward_recovery",
    "step",
]
