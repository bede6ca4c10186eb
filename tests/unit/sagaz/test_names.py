"""Every name that a file written for sagaz may import is here, or says what to use instead."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sagaz_es
from sagaz_es.dropped import DROPPED, LATER

HERE = """
Saga SagaConfig SagaContext SagaError SagaExecutionError SagaExecutionGraph SagaListener SagaResult
SagaOrchestrator SagaStatus SagaStep SagaStepDefinition SagaStepError SagaStepStatus SagaZones
SagaTimeoutError SagaCompensationContext SagaCompensationError StepZone TaintPropagator PivotInfo
RecoveryAction ParallelFailureStrategy CompensationFailureStrategy CompensationGraphError
CompensationNode CompensationResult CompensationType CircularDependencyError ConfigurationError
IdempotencyKeyRequiredError IdempotencyKeyMissingInPayloadError LargePayloadWarning
MemoryFootprintError MissingDependencyError SagaDependencyError LoggingSagaListener
MetricsSagaListener TracingSagaListener default_listeners log_step_lifecycle on_step_enter
on_step_success on_step_failure on_step_compensate on_step_exit action step compensate
forward_recovery configure get_config InMemorySagaStorage ReplayConfig ReplayError ReplayRequest
ReplayResult ReplayStatus SagaReplay SagaSnapshot SagaTimeTravel HistoricalState SnapshotStrategy
SnapshotStorage
DryRunEngine DryRunMode DryRunResult SimulationResult ValidationResult ExternalReference
InMemoryBroker
ExternalStorage FileSystemExternalStorage StateChange TriggerEngine TriggerRegistry trigger
fire_event SnapshotNotFoundError SnapshotCaptureError InMemorySnapshotStorage
PostgreSQLSnapshotStorage
""".split()


@pytest.mark.parametrize("name", HERE)
def test_a_name_of_sagaz_is_at_the_top_level(name: str) -> None:
    assert getattr(sagaz_es, name).__name__ == ({"step": "action"}.get(name, name))


@pytest.mark.parametrize("name", sorted(DROPPED))
def test_a_name_without_a_like_says_what_to_use(name: str) -> None:
    with pytest.raises(ImportError, match=r"sagaz_es; .* see docs/migrating-from-sagaz\.md"):
        getattr(sagaz_es, name)


@pytest.mark.parametrize("name", sorted(LATER))
def test_a_name_that_is_to_come_says_so_and_what_there_is(name: str) -> None:
    with pytest.raises(ImportError, match=f"{name}: .* later release; .*migrating-from-sagaz"):
        getattr(sagaz_es, name)


def test_any_other_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nonsense"):
        sagaz_es.Nonsense  # noqa: B018


def test_no_name_is_both_here_and_dropped() -> None:
    assert not set(HERE) & (DROPPED.keys() | LATER.keys())


def test_importing_a_name_loads_no_optional_package() -> None:
    optional = ("opentelemetry", "prometheus_client", "yaml", "aiokafka", "asyncpg", "click")
    code = (
        "import sys; from sagaz_es import SagaConfig, TracingSagaListener, SagaOrchestrator; "
        f"print([name for name in {optional} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
