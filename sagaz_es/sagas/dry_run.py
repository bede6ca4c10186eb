"""A saga looked at before it runs: whether it would begin, and in which order its steps could go.

The checks are those that a start makes, so what passes here is not refused there. Layers are for
display: a step starts when its own dependencies are done, not when a layer is.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sagaz_es.codec.values import to_text
from sagaz_es.core.graph import Graph
from sagaz_es.errors import ConfigurationError, SagaError
from sagaz_es.sagas.config import settings_of
from sagaz_es.sagas.definition import Definition
from sagaz_es.sagas.large_values import DEFAULT_LIMITS, LargeValues
from sagaz_es.sagas.saga import Saga
from sagaz_es.sagas.typed import Contents, as_mapping, check_texts


class DryRunMode(StrEnum):
    """How far a dry run goes."""

    VALIDATE = "validate"  # the definition and the context
    SIMULATE = "simulate"  # and the order of the steps


@dataclass(frozen=True)
class ParallelLayerInfo:
    """Steps that could run side by side, and what they wait for."""

    layer_number: int
    steps: list[str]
    dependencies: set[str] = field(default_factory=set)


@dataclass
class ValidationResult:
    """What a start would be refused with (`errors`), and what a person may want to know."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    checks: dict[str, Any] = field(default_factory=dict)

    @property
    def is_valid(self) -> bool:
        """A start would not be refused."""
        return not self.errors


@dataclass
class SimulationResult:
    """The steps as written, in an order of running, and by layers."""

    steps: list[str]
    order: list[str]
    parallel_groups: list[list[str]] = field(default_factory=list)


@dataclass
class DryRunResult:
    """What a dry run has found; of `validate`, everything after the checks is empty."""

    mode: DryRunMode
    success: bool
    validation_errors: list[str] = field(default_factory=list)
    validation_warnings: list[str] = field(default_factory=list)
    validation_checks: dict[str, Any] = field(default_factory=dict)
    steps_planned: list[str] = field(default_factory=list)
    execution_order: list[str] = field(default_factory=list)
    parallel_groups: list[list[str]] = field(default_factory=list)
    forward_layers: list[ParallelLayerInfo] = field(default_factory=list)
    backward_layers: list[ParallelLayerInfo] = field(default_factory=list)
    total_layers: int = 0
    max_parallel_width: int = 0
    critical_path: list[str] = field(default_factory=list)  # the longest chain of dependencies
    parallelization_ratio: float = 1.0  # layers to steps
    sequential_complexity: int = 0  # steps
    parallel_complexity: int = 0  # layers
    metadata: dict[str, Any] = field(default_factory=dict)


class DryRunEngine:
    """Looks at sagas without running any of their code but `build` and constructors."""

    async def run(
        self,
        saga: type[Saga] | Saga,
        context: Contents | None = None,
        mode: DryRunMode | str = DryRunMode.VALIDATE,
    ) -> DryRunResult:
        """Check the definition and the context; with SIMULATE lay out the steps, too.

        A saga that would be refused is a result. Raises ConfigurationError for another mode.
        """
        try:
            mode = DryRunMode(mode)
        except ValueError as error:
            known = ", ".join(DryRunMode)
            raise ConfigurationError(f"mode: one of {known}, not {mode!r}") from error
        checked = ValidationResult()
        definition = await _define(saga, checked)
        if definition is not None:
            _look_at_steps(definition, checked)
            await _look_at_context(saga, definition, context, checked)
        result = DryRunResult(
            mode,
            checked.is_valid,
            checked.errors,
            checked.warnings,
            checked.checks,
        )
        if definition is not None and checked.is_valid and mode is DryRunMode.SIMULATE:
            _lay_out(definition.graph, result)
        return result


async def _define(saga: Any, checked: ValidationResult) -> Definition | None:
    checked.checks["has_steps"] = False
    try:
        made = saga() if isinstance(saga, type) else saga
        if not isinstance(made, Saga):
            raise ConfigurationError(f"saga: a Saga, or a class of them, not {saga!r}")
        if not type(made)._collected and not made.__dict__.get("_added"):
            built = made.build()
            if inspect.isawaitable(built):
                await built
        return made.definition()
    except (SagaError, TypeError, ValueError) as error:
        checked.errors.append(str(error))
        return None


def _look_at_steps(definition: Definition, checked: ValidationResult) -> None:
    graph = definition.graph
    names = list(definition.steps)
    checked.checks |= {
        "has_steps": bool(names),
        "step_count": len(names),
        "step_names": sorted(names),
        "has_dependencies": any(node.depends_on for node in graph.steps),
        "has_compensation": any(node.compensable for node in graph.steps),
        "has_cycles": False,
        "fingerprint": graph.fingerprint,
    }
    if not names:
        checked.errors.append("the saga has no steps")
    for node in graph.steps:
        if node.effects and not node.compensable and not node.pivot and graph.dependents[node.name]:
            checked.warnings.append(
                f"step {node.name!r} has no compensation: its effect stands if a later step fails"
            )


async def _look_at_context(
    saga: Any, definition: Definition, context: Contents | None, checked: ValidationResult
) -> None:
    given: Mapping[str, Any] | None = {} if context is None else as_mapping(context)
    if given is None:
        checked.errors.append(f"context: a mapping, not a {type(context).__name__}")
        return
    wanted = [str(key) for key in getattr(saga, "required_context_fields", ())]
    checked.checks["required_context_fields"] = wanted
    missing = sorted(set(wanted) - set(given))
    if missing:
        checked.errors.append(f"missing required context fields: {missing}")
    settings = settings_of(getattr(saga, "__dict__", {}).get("_config"))
    limits = DEFAULT_LIMITS if settings is None else settings.limits
    texts: dict[str, str] = {}
    for key, value in given.items():
        try:
            texts[key] = to_text(value, str(key))
            await LargeValues(None, limits).off_load_one(texts[key], str(key), definition.name)
        except SagaError as error:
            checked.errors.append(str(error))
            texts.pop(key, None)
    try:
        check_texts(definition.context_type, texts, definition.name, "at its start")
    except SagaError as error:
        checked.errors.append(str(error))


# --- the order ------------------------------------------------------------------------------------


def simulated(graph: Graph) -> SimulationResult:
    """An order in which the steps could run, and their layers."""
    return SimulationResult([node.name for node in graph.steps], list(graph.order), graph.levels)


def _lay_out(graph: Graph, result: DryRunResult) -> None:
    simulation = simulated(graph)
    result.steps_planned, result.execution_order = simulation.steps, simulation.order
    result.parallel_groups = simulation.parallel_groups
    result.forward_layers = [
        ParallelLayerInfo(
            number, layer, {need for name in layer for need in graph.by_name[name].depends_on}
        )
        for number, layer in enumerate(graph.levels)
    ]
    undone = [node.name for node in graph.steps if node.compensable]
    result.backward_layers = [
        ParallelLayerInfo(number, layer) for number, layer in enumerate(graph.undo_levels(undone))
    ]
    result.total_layers = result.parallel_complexity = len(graph.levels)
    result.sequential_complexity = len(graph.steps)
    result.max_parallel_width = max(map(len, graph.levels), default=0)
    result.critical_path = _longest_chain(graph)
    if graph.steps:
        result.parallelization_ratio = len(graph.levels) / len(graph.steps)
    result.metadata = {
        "pivots": [node.name for node in graph.steps if node.pivot],
        "at_most_once": [node.name for node in graph.steps if node.at_most_once],
    }


def _longest_chain(graph: Graph) -> list[str]:
    chains: dict[str, list[str]] = {}
    for name in graph.order:
        before = (chains[need] for need in graph.by_name[name].depends_on)
        chains[name] = [*max(before, key=len, default=[]), name]
    return max(chains.values(), key=len, default=[])
