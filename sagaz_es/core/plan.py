"""A replay's plan: what it will do, step by step, computed and shown before anything happens.

| verdict | when |
|---|---|
| REUSE | before the point, the effect stands, nothing it read is changed |
| REDO | it never ran, its effect was undone, or it has none (`effects=False`) |
| UNDO_FIRST | the effect stands but is stale: compensate with the recorded result, then redo |
| BLOCKED | as UNDO_FIRST, but it cannot be undone; only an explicit allow, by name, goes on |

The point and the start context come from the saga that was named, the table of standing effects
from
the head of its family: effects have one owner.

Law (exactly once): after the branch completes, each step's effect stands once, whatever was
replayed
before, unless a step was allowed by name to happen again.
Law (nothing ships unpaid): no step runs before all it depends on stands.
Source: `tests/property/test_replay_families.py`, `tests/property/test_replay_children.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec
from msgspec import Struct

from sagaz_es.core.effects import Effect, dump_effects, standing
from sagaz_es.core.events import SagaStarted
from sagaz_es.core.graph import Graph, StepNode
from sagaz_es.core.state import SagaState, StepState
from sagaz_es.core.texts import join_object, names, split_object
from sagaz_es.errors import SnapshotNotFoundError

ALL_KEYS = "*"


class Verdict(StrEnum):
    """What a replay does with one step."""

    REUSE = "reuse"
    REDO = "redo"
    UNDO_FIRST = "undo_first"
    BLOCKED = "blocked"


class PlannedStep(Struct, frozen=True, gc=False):
    """One step of a plan, in the order of running, with the reason for people."""

    step: str
    verdict: Verdict
    reason: str


class ReplayPlan(Struct, frozen=True):
    """What a replay of `saga_id` from `from_step` will do. `digest` changes when anything of it
    does.

    `head_saga_id` and `head_sequence`: the family's newest branch and where its stream stood; the
    plan is refused once that has moved.
    """

    saga_id: str
    saga_name: str
    from_step: str
    steps: tuple[PlannedStep, ...]
    digest: str
    blocked: bool
    head_saga_id: str
    head_sequence: int
    head_status: str = ""
    overrides: str = ""  # JSON object: as they were given for this replay
    allow: tuple[str, ...] = ()
    force_failure: bool = False
    start: str = ""  # JSON of the branch's first fact, without its ids

    @property
    def blockers(self) -> tuple[str, ...]:
        """Steps that must be allowed by name, or the replay is refused."""
        return tuple(s.step for s in self.steps if s.verdict is Verdict.BLOCKED)

    def verdict(self, step: str) -> Verdict:
        """The verdict on one step. Raises KeyError."""
        return {s.step: s.verdict for s in self.steps}[step]


class ChildNow(Struct, frozen=True):
    """What stands of a child's saga now: the head of its family, for it may have been replayed."""

    head: str
    status: str  # "undone": a replay of it was undone, and what that had reused stands
    pivots: tuple[str, ...] = ()  # completed ones
    result: str = ""  # where it was replayed: JSON, what its step's result is now
    keys_set: str = ""  # and what that sets in the context

    @property
    def gone(self) -> bool:
        """Nothing of it stands."""
        return self.status in ("rolled_back", "cancelled")


def result_key(step: str) -> str:
    """How a read of another step's recorded result is noted among the keys read."""
    return f"result_of:{step}"


def make_plan(
    named: SagaState,
    head: SagaState,
    graph: Graph,
    point: str,
    *,
    overrides: Mapping[str, str] | None = None,
    migrated: Mapping[str, str] | None = None,
    allow: Iterable[str] = (),
    force_failure: bool = False,
    children: Mapping[str, ChildNow] | None = None,
) -> ReplayPlan:
    """The plan. `named` is the saga that was asked for, `head` the newest branch of its family
    (often the same), `overrides` key -> JSON text, `migrated` the same, where changed code needs
    other values: what was asked for goes before. `children` by their ids: those that the effects of
    the head stand for.

    Raises SnapshotNotFoundError if the graph has no such step.
    """
    overrides = dict(overrides or {})
    allowed = tuple(sorted(set(allow)))
    if point not in graph.by_name:
        raise SnapshotNotFoundError(
            named.saga_id, point, f"it has no such step; its steps: {', '.join(graph.order)}"
        )
    for name in allowed:
        if name not in graph.by_name:
            why = f"allow names {name!r}, which is none of its steps: {', '.join(graph.order)}"
            raise SnapshotNotFoundError(named.saga_id, point, why)
    kin = children or {}
    effects, renewed = _effects_now(head, kin)
    # Replayed again, a branch still has the overrides that it went on with.
    applied = {**_kept_overrides(named), **(migrated or {}), **overrides}
    changed = _changed_keys(named, head, applied) | renewed
    steps = _verdicts(head, graph, point, changed, frozenset(allowed), effects, kin)
    start = SagaStarted(
        definition=graph.fingerprint,
        graph=graph.text,
        context=join_object(_start_context(named)),
        snapshot_policy=named.snapshot_policy,
        parent_saga_id=named.saga_id,
        head_saga_id=head.saga_id,
        root_saga_id=head.root_saga_id or head.saga_id,
        point=point,
        plan=msgspec.json.encode([(s.step, str(s.verdict), s.reason) for s in steps]).decode(),
        overrides=join_object(applied) if applied else "",
        standing=dump_effects(tuple(effects.values())),
        force_failure=force_failure,
    )
    text = msgspec.json.encode(start)
    digest = hashlib.sha256(
        b"\0".join(
            [
                text,
                head.saga_id.encode(),
                str(head.sequence).encode(),
                *map(str.encode, allowed),
                *(msgspec.json.encode(child) for child in kin.values()),
            ]
        )
    ).hexdigest()[:16]
    return ReplayPlan(
        saga_id=named.saga_id,
        saga_name=named.saga_name,
        from_step=point,
        steps=steps,
        digest=digest,
        blocked=any(s.verdict is Verdict.BLOCKED for s in steps),
        head_saga_id=head.saga_id,
        head_sequence=head.sequence,
        head_status=head.status,
        overrides=join_object(overrides) if overrides else "",
        allow=allowed,
        force_failure=force_failure,
        start=text.decode(),
    )


def _effects_now(
    head: SagaState, children: Mapping[str, ChildNow]
) -> tuple[dict[str, Effect], set[str]]:
    """The table of effects by step, with what children have become since; and the keys whose values
    are others by that."""
    effects: dict[str, Effect] = {}
    renewed: set[str] = set()
    for effect in standing(head):
        child = children.get(effect.child) if effect.child else None
        if child is not None and child.gone:
            continue
        if child is not None and child.result and child.result != effect.result:
            before, after = split_object(effect.keys_set), split_object(child.keys_set)
            renewed |= {key for key in before | after if before.get(key) != after.get(key)}
            renewed.add(result_key(effect.step))
            effect = msgspec.structs.replace(effect, result=child.result, keys_set=child.keys_set)
        effects[effect.step] = effect
    return effects, renewed


def _start_context(state: SagaState) -> dict[str, str]:
    """What the saga was started with; a branch's own overrides count as given at its start."""
    return {**state.start, **state.overrides}


def _kept_overrides(state: SagaState) -> dict[str, str]:
    """A branch's overrides whose keys no step of its own has written since."""
    own = [step for step in state.steps.values() if not step.owner]
    written = set().union(*(_keys_of(step) for step in own))
    return {key: text for key, text in state.overrides.items() if key not in written}


def _keys_of(step: StepState | Effect) -> set[str]:
    """Context keys that a step set or deleted."""
    return {*split_object(step.keys_set), *names(step.keys_deleted)}


def _changed_keys(named: SagaState, head: SagaState, overrides: Mapping[str, str]) -> set[str]:
    """Keys whose value the branch will see otherwise than the standing effects saw them.

    The standing effects belong to the head and agree with its start and overrides: its own plan has
    redone whatever did not, but for what is `_left_stale`.
    """
    before = {**head.start, **head.overrides}
    after = {**_start_context(named), **overrides}
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    kept = _kept_overrides(head)
    written = set().union(*(_keys_of(step) for step in head.steps.values()))
    # A key that steps wrote: the standing effects may have seen any of the values.
    changed |= {key for key, text in overrides.items() if key in written and kept.get(key) != text}
    return changed


_PLAN = msgspec.json.Decoder(list[tuple[str, str, str]])


def _left_stale(head: SagaState) -> frozenset[str]:
    """Inherited effects that the head was to undo before going forward, and that still stand."""
    if not head.plan:
        return frozenset()
    stale = {step for step, verdict, _ in _PLAN.decode(head.plan) if verdict == Verdict.UNDO_FIRST}
    return frozenset(name for name in stale if head.step(name).owner)


def _verdicts(
    head: SagaState,
    graph: Graph,
    point: str,
    changed: set[str],
    allowed: frozenset[str],
    effects: Mapping[str, Effect],
    children: Mapping[str, ChildNow],
) -> tuple[PlannedStep, ...]:
    written: dict[str, set[str]] = {}  # by each step that runs again
    while True:
        known = len(written)
        planned = _verdicts_given(head, graph, point, changed, allowed, effects, children, written)
        if len(written) == known:
            return planned
        # A step may have read what one behind it in the order, of which it is no ancestor, wrote.


def _verdicts_given(
    head: SagaState,
    graph: Graph,
    point: str,
    changed: set[str],
    allowed: frozenset[str],
    effects: Mapping[str, Effect],
    children: Mapping[str, ChildNow],
    written: dict[str, set[str]],
) -> tuple[PlannedStep, ...]:
    """The verdicts where the steps of `written` write other values; it gains those that do, too."""
    left = _left_stale(head)
    again: set[str] = set()  # steps whose standing effect is stale
    planned: list[PlannedStep] = []
    for name in graph.order:
        node = graph.by_name[name]
        effect = effects.get(name)
        child = children.get(head.step(name).child)
        others = (keys for by, keys in written.items() if by not in graph.dependents[name])
        seen = changed.union(*others)  # who runs before a step has seen nothing of it
        verdict, reason = _verdict(node, effect, graph, point, seen, left, again, head, child)
        if verdict is Verdict.BLOCKED and name in allowed:
            verdict = Verdict.REDO
            reason = f"allowed by name, although {reason}"
            again.add(name)
        elif verdict in (Verdict.UNDO_FIRST, Verdict.BLOCKED):
            again.add(name)
        elif effect is None and child is not None and head.step(name).status == "completed":
            again.add(name)  # what depends on it ran, and stands on nothing now
        if verdict is not Verdict.REUSE and (node.effects or name in again):
            written[name] = _written(effect, name, head)
        planned.append(PlannedStep(name, verdict, reason))
    return tuple(planned)


def _written(effect: Effect | None, name: str, head: SagaState) -> set[str]:
    """Keys that a step wrote the last time it ran: run again, it may write other values."""
    if effect is None and not head.step(name).attempt:
        return set()
    return _keys_of(effect or head.step(name)) | {result_key(name)}


def _verdict(
    node: StepNode,
    effect: Effect | None,
    graph: Graph,
    point: str,
    changed: set[str],
    left: frozenset[str],
    again: set[str],
    head: SagaState,
    child: ChildNow | None,
) -> tuple[Verdict, str]:
    if node.name == point:
        stale = "it is the point of the replay"
    elif node.name in graph.dependents[point]:
        stale = f"it depends on the point, {point!r}"
    elif node.name in left:
        stale = "the last replay was to undo it and did not get there"
    else:
        stale = _stale_because(node, effect, changed, again)
    if not node.effects:
        if stale:
            again.add(node.name)
        return Verdict.REDO, "it only computes"
    if effect is None:
        if child is not None and head.step(node.name).status == "completed":
            return Verdict.REDO, "its saga was undone since"
        return Verdict.REDO, _gone_because(node.name, head)
    if child is not None:
        return _child_verdict(node, effect, child, stale)
    if effect.unknown:
        if node.compensable and node.on_unknown:
            return Verdict.UNDO_FIRST, "nobody knows whether its effect happened"
        return (
            Verdict.BLOCKED,
            "nobody knows whether its effect happened, and its compensation is not for such a case",
        )
    if not stale:
        return Verdict.REUSE, "its effect stands and nothing it read is changed"
    if node.pivot:
        return Verdict.BLOCKED, f"its effect stands, {stale}, and it is a pivot"
    if node.at_most_once:
        return Verdict.BLOCKED, f"its effect stands, {stale}, and it may run at most once"
    if not node.compensable:
        return Verdict.BLOCKED, f"its effect stands, {stale}, and it has no compensation"
    return Verdict.UNDO_FIRST, f"its effect stands, but {stale}"


def _child_verdict(
    node: StepNode, effect: Effect, child: ChildNow, stale: str
) -> tuple[Verdict, str]:
    saga = f"its saga {child.head!r}"
    if child.status not in ("completed", "failed", "partially_committed", "undone"):
        return Verdict.BLOCKED, f"{saga} is {child.status}"
    if child.status != "completed":
        stale = f"it is {child.status}"
    elif effect.unknown:
        stale = stale or "its step failed"
    if not stale:
        newest = ", with the result of its replay" if child.result else ""
        return Verdict.REUSE, f"{saga} stands{newest}, and nothing it read is changed"
    if child.pivots:
        return Verdict.BLOCKED, f"{saga} stands, {stale}, behind its pivot {child.pivots[-1]!r}"
    if node.pivot:
        return Verdict.BLOCKED, f"{saga} stands, {stale}, and it is a pivot"
    return Verdict.UNDO_FIRST, f"{saga} stands, but {stale}: it goes back, and another one starts"


def _stale_because(
    node: StepNode, effect: Effect | None, changed: set[str], again: set[str]
) -> str:
    for need in node.depends_on:
        if need in again:
            return f"it depends on {need!r}, which runs again"
    if effect is None:
        return ""
    reads = set(names(effect.reads))
    if ALL_KEYS in reads and changed:
        return f"it read the whole context, of which {min(changed)!r} is changed"
    touched = reads & changed
    return f"it read {min(touched)!r}, which is changed" if touched else ""


def _gone_because(name: str, head: SagaState) -> str:
    step = head.step(name)
    if step.status == "compensated":
        return "its effect was undone"
    if step.status == "failed":
        return f"it failed ({step.error_type})" if step.error_type else "it failed"
    if step.status == "skipped":
        return "it was skipped"
    return "it never ran"
