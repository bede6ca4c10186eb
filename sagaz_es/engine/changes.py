"""Changed code under sagas that have begun: refused with the differences, or carried on where the
class declares it (`compatible_with`, `migrate`).

Law (all read the same): the definition that a saga goes on by is in the log. Who carries it on says
so in the claim, with the new graph and what `migrate` set, and every fold takes both over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec import structs

from sagaz_es.codec.values import from_text
from sagaz_es.core import events as e
from sagaz_es.core.effects import standing
from sagaz_es.core.evolution import begun_steps, obstacles
from sagaz_es.core.fold import advance
from sagaz_es.core.graph import Graph
from sagaz_es.core.state import SagaState
from sagaz_es.core.texts import join_object
from sagaz_es.errors import DefinitionChanged, MigrationFailed
from sagaz_es.sagas.definition import Definition, RecordedSaga
from sagaz_es.sagas.inputs import context_texts
from sagaz_es.sagas.typed import check_texts

if TYPE_CHECKING:
    from sagaz_es.sagas.large_values import LargeValues


def check_definition(state: SagaState, definition: Definition) -> None:
    """Raises DefinitionChanged with the differences, unless this code may carry the saga on."""
    _check(state, definition, begun_steps(state))


def check_replayable(state: SagaState, definition: Definition) -> None:
    """As `check_definition`, for a branch: of what has run, only what still stands counts."""
    _check(state, definition, _standing_steps(state))


def _check(state: SagaState, definition: Definition, begun: Iterable[str]) -> None:
    code = definition.graph
    if state.definition == code.fingerprint:
        return
    if not state.definition:
        missing = tuple(
            f"step {name!r} is recorded and not in the code"
            for name in begun
            if name not in code.by_name
        )
        if missing:
            raise DefinitionChanged(state.saga_id, state.saga_name, missing, "", code.fingerprint)
        return
    declared = state.definition in definition.compatible_with
    stops = obstacles(begun, state.step_graph, code)
    differences = stops if declared else state.step_graph.differences(code)
    if differences or not declared:
        raise DefinitionChanged(
            state.saga_id,
            state.saga_name,
            differences,
            state.definition,
            code.fingerprint,
            declared,
            () if declared else stops,
        )


def _standing_steps(state: SagaState) -> tuple[str, ...]:
    return tuple(effect.step for effect in standing(state))


def graph_of_branch(named: SagaState, head: SagaState, definition: Definition | None) -> Graph:
    """By which graph a replay is planned: the recorded one, or the code's where the class declares
    to go on with it and can."""
    if definition is None:
        return named.step_graph
    if not named.graph:  # a recorded saga
        return definition.graph
    try:
        check_replayable(named, definition)
        check_replayable(head, definition)
    except DefinitionChanged:
        return named.step_graph  # the plan can be shown; running it will be refused
    return definition.graph


def branch_state(saga_id: str, saga_name: str, start: e.SagaStarted) -> SagaState:
    """The state of a branch that has begun and done nothing yet."""
    if not start.replay_id:  # of a plan: without one it would be folded as no branch
        start = structs.replace(start, replay_id="planned")
    state = SagaState()
    advance(state, e.Event(saga_id, saga_name, bytes(16), 0, 1, 0, start, start.replay_id))
    return state


async def claim(
    state: SagaState, definition: Definition, cause: str, large_values: LargeValues
) -> e.SagaClaimed:
    """The claim with which this code goes on with a saga. Raises DefinitionChanged,
    MigrationFailed."""
    check_definition(state, definition)
    if state.definition in ("", definition.graph.fingerprint):
        return e.SagaClaimed(cause)
    keys_set = await migrated(state, definition, large_values)
    return e.SagaClaimed(
        cause,
        definition.graph.fingerprint,
        definition.graph.text,
        join_object(keys_set) if keys_set else "",
    )


async def migrated(
    state: SagaState, definition: Definition, large_values: LargeValues
) -> dict[str, str]:
    """What the class's `migrate` sets in the context: key -> JSON text. Raises MigrationFailed."""
    if state.definition in ("", definition.graph.fingerprint) or definition.migrate is None:
        return {}
    texts = await large_values.load(state.context)
    recorded = RecordedSaga(
        state.saga_id,
        state.definition,
        state.status,
        {key: from_text(text) for key, text in texts.items()},
        tuple(state.completed_steps),
    )
    try:
        keys_set = context_texts(definition.migrate(recorded))
        left = {**texts, **keys_set}
        check_texts(definition.context_type, left, state.saga_name, "after migrate")
    except Exception as error:
        raise MigrationFailed(state.saga_id, state.saga_name, repr(error)) from error
    return await large_values.off_load(keys_set, state.saga_name)
