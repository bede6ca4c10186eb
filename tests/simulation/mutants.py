"""Planted bugs: our own code with one thing wrong. The simulation has to find each.

A mutant is a module whose text is changed as it is imported; nothing on disk changes. This module
imports nothing of ours, so that the change is in place before anything is.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Mutant:
    """In `module` the text `old` becomes `new`. `needs`: what a schedule that can show it has among
    its words (`lose_tail`, `run house`, see `words_of`); others do not count."""

    name: str
    module: str
    old: str
    new: str
    needs: str = ""
    also: tuple[tuple[str, str], ...] = ()
    """Further texts of the module, and what they become: where one thing is made sure of twice."""

    @property
    def changes(self) -> tuple[tuple[str, str], ...]:
        return (self.old, self.new), *self.also


MUTANTS = (
    Mutant(
        "the fold does not look at the writer",
        "sagaz_es.core.fold",
        "if event.writer == state.writer and event.epoch == state.epoch and state.sequence:",
        "if event.epoch == state.epoch and state.sequence:",
    ),
    Mutant(
        "an event that comes again is accepted again",
        "sagaz_es.core.fold",
        "if sequence == expected:",
        "if sequence <= expected:",
    ),
    Mutant(
        "an unknown step is forgotten when its next attempt fails",
        "sagaz_es.core.fold",
        'unknown=fact.unknown or (step.unknown and step.status == "executing"),',
        "unknown=fact.unknown,",
    ),
    Mutant(
        "a saga goes back while its pivot runs",
        "sagaz_es.core.decide",
        "for name in graph.pivots if _is_open(graph, name, state.step(name))",
        "for name in ()",
    ),
    Mutant(
        "a step runs before its start is confirmed",
        "sagaz_es.engine.runner",
        "                    await self._send()\n                    if self._attempts.telling is",
        "                    self._send()\n                    if self._attempts.telling is",
    ),
    Mutant(
        "a gap before an append is not read",
        "sagaz_es.engine.partitions.partition",
        "if base == self.position:",
        "if base >= self.position:",
    ),
    Mutant(
        "after an unknown outcome the events get new numbers",
        "sagaz_es.engine.partitions.partition",
        '                logger.warning("%s; appending the identical events again", error)\n',
        "                entries = [\n"
        "                    type(x)(x.saga_id, x.saga_name, x.writer, x.epoch,\n"
        "                    x.sequence + len(entries), x.occurred_at, x.fact, x.replay_id)\n"
        "                    if isinstance(x, e.Event) else x for x in entries]\n",
    ),
    Mutant(
        "an append is given up after an unknown outcome",
        "sagaz_es.engine.partitions.partition",
        '                logger.warning("%s; appending the identical events again", error)\n',
        "                self._confirm(batch, self.position)\n                return\n",
    ),
    Mutant(
        "the mark passes sagas that are not finished",
        "sagaz_es.engine.partitions.partition",
        "return min([self.position, *begins, *self.held.values()])",
        "return min([self.position, *self.held.values()])",
    ),
    Mutant(
        "the mark passes requests that are not answered",
        "sagaz_es.engine.partitions.partition",
        "return min([self.position, *begins, *self.held.values()])",
        "return min([self.position, *begins])",
    ),
    Mutant(
        "an id that ended long ago starts again",
        "sagaz_es.engine.taken_ids",
        "    if is_indexed(host.log):\n"
        "        return await current_state(host.log, None, saga_id) is not None\n"
        "    store = host.store\n",
        "    return False\n    store = host.store\n",
    ),
    Mutant(
        "a request counts as often as it is told",
        "sagaz_es.engine.runner",
        "if request_id not in self.state.answered:",
        "if True:",
    ),
    Mutant(
        "a claim does not raise the epoch",
        "sagaz_es.engine.runner",
        "epoch = state.epoch + 1 if type(fact) is e.SagaClaimed else state.epoch",
        "epoch = state.epoch",
    ),
    Mutant(
        "what is lost goes on running",
        "sagaz_es.engine.serving",
        "            for task in late:\n                task.cancel()\n",
        "            late = set()\n",
    ),
    Mutant(
        "a branch that was decided is not begun by the next owner",
        "sagaz_es.engine.serving",
        "        for event, offset in found.branched:\n",
        "        for event, offset in ():\n",
    ),
    Mutant(
        "steps are undone forwards",
        "sagaz_es.core.decide",
        "if name in graph.dependents and not graph.dependents[name].isdisjoint(waiting):",
        "if name in graph.dependents and not graph.ancestors[name].isdisjoint(waiting):",
    ),
    Mutant(
        "a step that may run at most once runs again",
        "sagaz_es.core.decide",
        "            if node.at_most_once:\n                facts.append(",
        "            if False:\n                facts.append(",
    ),
    Mutant(
        "a saga goes back behind its pivot",
        "sagaz_es.core.decide",
        'if node is not None and node.pivot and step.status == "completed":',
        "if False:",
    ),
    Mutant(
        "what was interrupted is not undone",
        "sagaz_es.core.decide",
        "unknown=not _is_child(graph, name),",
        "unknown=False,",
    ),
    Mutant(
        "a child that runs is not taken back",
        "sagaz_es.core.decide",
        "certain |= bool(step.child_start)",
        "certain |= False",
    ),
    Mutant(
        "of a child that was replayed the old saga is taken back",
        "sagaz_es.engine.children",
        "        if child.branch:\n            found = await head_of_family(self._host.log,",
        "        if False:\n            found = await head_of_family(self._host.log,",
    ),
    Mutant(
        "the next owner of a parent does not ask for its child",
        "sagaz_es.core.decide",
        'run.append(Attempt(node.name, step.attempt, ask="child"))\n            continue',
        'run.extend([Attempt(node.name, step.attempt, ask="child")] * (state.epoch == 0))\n'
        "            continue",
    ),
    Mutant(
        "how a child ends is recorded though its step is being undone",
        "sagaz_es.engine.runner",
        'return forward and self.state.step(step).status == "compensating"',
        "return False",
        needs="run house",
    ),
    Mutant(
        "one saga more than there is room for is let in",
        "sagaz_es.engine.admission",
        "self.in_flight() + len(self.backlog.expected) < self._limit",
        "self.in_flight() + len(self.backlog.expected) <= self._limit",
    ),
    Mutant(
        "what is taken over runs beyond the bound",
        "sagaz_es.engine.backlog",
        "        if self._admission.takes_back(saga_id, others_wait=bool(self._lines)):",
        "        if True:",
        needs="max_in_flight",
    ),
    Mutant(
        "who came last begins first",
        "sagaz_es.engine.admission",
        "waiting = line.popleft()",
        "waiting = line.pop()",
    ),
    Mutant(
        "a start that waits is forgotten with its partition",
        "sagaz_es.engine.serving",
        "                self._host.admission.line_up(waiting)",
        "                pass",
    ),
    Mutant(
        "a group answers for classes that it does not have",
        "sagaz_es.engine.host",
        "return not self.config.group or saga_name in self.registry",
        "return True",
    ),
    Mutant(
        "for a class that comes to a group nothing is read before its mark",
        "sagaz_es.engine.groups",
        "starts = [known.get(name, beginning) for name in classes]",
        "starts = [known.get(name, mark) for name in classes]",
    ),
    Mutant(
        "how another group's saga ends is not heard of",
        "sagaz_es.engine.partitions.partition",
        "if event.saga_id in self.waiting and type(event.fact) in _AWAITED:",
        "if False:",
    ),
    Mutant(
        "a large value is referred to, and not kept",
        "sagaz_es.sagas.large_values",
        "return f'{_PREFIX}{await self._blobs.put(data)}\"}}'",
        "from sagaz_es.blobs.hashing import key_of\n        return f'{_PREFIX}{key_of(data)}\"}}'",
        needs="delete_blobs",
    ),
    Mutant(
        "a large value that is gone is read as null",
        "sagaz_es.sagas.large_values",
        "        if data is None:\n",
        '        if data is None:\n            return "null"\n        if data is None:\n',
        needs="delete_blobs",
    ),
    Mutant(
        "a blob store that is away fails the step",
        "sagaz_es.engine.host",
        "blobs=self._patient_values,",
        "blobs=self.large_values,",
        needs="restart_blobs",
    ),
    Mutant(
        "what is stopped while it waits for the log leaves its steps running",
        "sagaz_es.engine.runner",
        "            for task in self._running.values():\n                task.cancel()\n",
        "            if self._woken is None or self._posted or self._partition.pending_since:\n"
        "                raise\n"
        "            for task in self._running.values():\n                task.cancel()\n",
        needs="max_in_flight",
    ),
    Mutant(
        "an undone step counts as standing",
        "sagaz_es.core.effects",
        'if step.status in ("completed", "stale", "compensating", "compensation_failed"):',
        'if step.status in ("completed", "stale", "compensating", "compensation_failed", '
        '"compensated"):',
    ),
    Mutant(
        "a plan takes the effects from the saga that was named",
        "sagaz_es.core.plan",
        "effects, renewed = _effects_now(head,",
        "effects, renewed = _effects_now(named,",
    ),
    Mutant(
        "a compensation is not given its step's result",
        "sagaz_es.sagas.definition",
        "given = (context.result_of(step), context)",
        "given = (None, context)",
    ),
    Mutant(
        "the checkpoint is committed before the data",
        "sagaz_es.reading.projector",
        "                await self._store.commit(projection, expected=lane.stored)\n"
        "                return\n",
        "                await self._store.commit(\n"
        "                    Projection(projection.checkpoint), expected=lane.stored)\n"
        "                await self._store.commit(\n"
        "                    projection, expected=projection.checkpoint.next_offset)\n"
        "                return\n",
    ),
    Mutant(
        "two projectors of one partition both commit",
        "sagaz_es.storage.memory",
        "if found != expected:",
        "if False:",
    ),
    Mutant(
        "a snapshot of a later state answers for an earlier one",
        "sagaz_es.storage.memory",
        "snapshot.sequence <= sequence)",
        "snapshot.sequence <= sequence + 1)",
    ),
    Mutant(
        "the state at a time is that before its first event",
        "sagaz_es.core.history",
        "return effective_time(state, event) > point.at",
        "return effective_time(state, event) >= point.at",
    ),
    Mutant(
        "a partition whose log lost its tail says nothing",
        "sagaz_es.engine.partitions.partition",
        "            except (LogTruncated, HistoryGone) as error:  # more is gone",
        "            except HistoryGone as error:  # more is gone",
        needs="lose_tail",
    ),
    Mutant(
        "an append that stands before what was read is confirmed",
        "sagaz_es.engine.partitions.partition",
        "if base < begun_at or (",
        "if False and (",
        needs="lose_tail",
    ),
    Mutant(
        "a log that lost its tail is read anew from the mark",
        "sagaz_es.engine.serving",
        "await self._until_served(index, whole=isinstance(error, LogTruncated))",
        "await self._until_served(index, whole=False)",
        needs="lose_tail",
    ),
    Mutant(
        "a store that knows more than the log is believed",
        "sagaz_es.engine.serving",
        "                await verify_checkpoint(log, checkpoint, store.name)\n",
        "                pass\n",
        needs="lose_tail",
    ),
    Mutant(
        "a compensation whose start is on its way is withdrawn by a cancel",
        "sagaz_es.engine.runner",
        "if attempt.undo or (attempt.step in self._graph.pivots and self._in_doubt(attempt)):",
        "if attempt.step in self._graph.pivots and self._in_doubt(attempt):",
    ),
    Mutant(
        "each attempt has a key of its own",
        "sagaz_es.engine.steps.contexts",
        'key = f"{owner}/{step.idempotency_key or step.name}"',
        'key = f"{owner}/{step.name}/{state.step(step.name).attempt}"',
    ),
    Mutant(
        "a compensation has the key of its step",
        "sagaz_es.engine.steps.contexts",
        'return f"{key}/compensation" if attempt.undo else key',
        "return key",
    ),
    Mutant(
        "an inherited effect is undone under the branch's own key",
        "sagaz_es.engine.steps.contexts",
        "owner = (attempt.undo and state.step(step.name).owner) or state.saga_id",
        "owner = state.saga_id",
    ),
    Mutant(
        "a deadline does not stop a saga",
        "sagaz_es.core.decide",
        "        deadline = state.deadline_at\n",
        "        deadline = 0\n",
    ),
    Mutant(
        "a paused saga starts steps",
        "sagaz_es.core.decide",
        "decision = IDLE if state.paused else _forward(state, graph, now, rules)",
        "decision = _forward(state, graph, now, rules)",
    ),
    Mutant(
        "a step does not wait for its time",
        "sagaz_es.core.decide",
        "    if step.wait_until and now >= step.wait_until:",
        "    if step.wait_until:",
    ),
    Mutant(
        "a retry does not wait",
        "sagaz_es.core.decide",
        "        if step is not None and step.retry_at > now:",
        "        if False:",
    ),
    Mutant(
        "a retry of a compensation does not wait",
        "sagaz_es.core.decide",
        "if step.undo_attempt and step.retry_at > now:",
        "if False:",
    ),
    Mutant(
        "later facts of a saga that was set aside are folded",
        "sagaz_es.reading.projection",
        "                if entry.saga_id in self.parked_sagas:\n",
        "                if False:\n",
    ),
    Mutant(
        "what is driven on stays aside",
        "sagaz_es.reading.projector",
        "unparked=(saga_id,)",
        "unparked=()",
    ),
    Mutant(
        "a state is looked up with one record too few",
        "sagaz_es.reading.lookup",
        "    found = state.get(saga_id) or SagaState()\n",
        "    found, offset = state.get(saga_id) or SagaState(), offset + 1\n",
    ),
    Mutant(
        "a read that gives nothing is taken for another log",
        "sagaz_es.reading.projection",
        "while not chunk.records and chunk.next_offset == offset:",
        "while False:",
    ),
    Mutant(
        "an append of a saga that was lost meanwhile is confirmed",
        "sagaz_es.engine.partitions.partition",
        "            if cell is not None and cell.lost:\n"
        "                item.fail(LostOwnership(cell.state.saga_id))\n"
        "                base += len(item.entries)\n"
        "                continue\n",
        "",
        also=(
            (
                "            if cell is not None and cell.lost:\n"
                "                item.fail(LostOwnership(cell.state.saga_id))\n"
                "            else:\n"
                "                if cell is not None and cell.begin < 0:\n",
                "            if True:\n                if cell is not None and cell.begin < 0:\n",
            ),
            ("            self._owner.on_lost(self, cell, event, offset)\n", ""),
        ),
    ),
    Mutant(
        "a recorder counts on after an unknown outcome",
        "sagaz_es.recording.recorder",
        "        except SagaError as error:\n            self._begin_anew()\n",
        "        except SagaError as error:\n",
        needs="record",
    ),
    Mutant(
        "a recorder that begins anew keeps its writer's id",
        "sagaz_es.recording.recorder",
        "        self._writer = os.urandom(16)\n        self._counts: dict[str, int] = {}\n",
        "        self._writer = getattr(self, '_writer', None) or os.urandom(16)\n"
        "        self._counts: dict[str, int] = {}\n",
        needs="record",
    ),
    Mutant(
        "of two recorders of a saga one is accepted",
        "sagaz_es.core.fold",
        "state.recorders.get(event.writer.hex(), 0)",
        "(max(state.recorders.values(), default=0))",
        needs="record",
    ),
    Mutant(
        "each import of a file has a writer of its own",
        "sagaz_es.recording.importing",
        "+ digest + msgspec.json.encode(options)",
        "+ digest + os.urandom(4) + msgspec.json.encode(options)",
        needs="import",
    ),
    Mutant(
        "what is stale is done again before it is undone",
        "sagaz_es.core.plan",
        '    return Verdict.UNDO_FIRST, f"its effect stands, but {stale}"',
        '    return Verdict.REDO, f"its effect stands, but {stale}"',
    ),
    Mutant(
        "a plan that is blocked is run",
        "sagaz_es.engine.replayer",
        "    if plan.blocked:\n        reasons",
        "    if False:\n        reasons",
    ),
    Mutant(
        "a plan allows what nobody has allowed",
        "sagaz_es.core.plan",
        "if verdict is Verdict.BLOCKED and name in allowed:",
        "if verdict is Verdict.BLOCKED:",
    ),
    Mutant(
        "an undo of a replay goes back behind its pivot",
        "sagaz_es.engine.replayer",
        "    if pivots:\n        raise UndoRefused",
        "    if False:\n        raise UndoRefused",
    ),
    Mutant(
        "the overrides of a replay are ignored",
        "sagaz_es.core.fold",
        "    state.context.update(state.overrides)\n",
        "    pass\n",
    ),
    Mutant(
        "a saga begins without its context",
        "sagaz_es.core.fold",
        "    state.context = dict(state.start)\n",
        "    state.context = {}\n",
    ),
    Mutant(
        "a step is not given the payload of its signal",
        "sagaz_es.core.fold",
        "    return first\n",
        "    return ''\n",
    ),
    Mutant(
        "a signal is taken twice",
        "sagaz_es.core.fold",
        "        state.signals.pop(step.waits_for, None)\n",
        "        pass\n",
    ),
    Mutant(
        "a key that a step has deleted stays",
        "sagaz_es.core.fold",
        "            context.pop(key, None)",
        "            pass",
    ),
    Mutant(
        "what a step has read is forgotten",
        "sagaz_es.core.fold",
        "        reads=fact.reads,\n        child=before.child",
        "        reads='',\n        child=before.child",
    ),
    Mutant(
        "what a replay was to undo and did not counts as good",
        "sagaz_es.core.plan",
        "    if not head.plan:\n        return frozenset()\n",
        "    return frozenset()\n",
    ),
    Mutant(
        "an effect is kept whatever it has read",
        "sagaz_es.core.plan",
        "        stale = _stale_because(node, effect, changed, again)",
        "        stale = ''",
    ),
    Mutant(
        "a replay of a branch forgets what was overridden there",
        "sagaz_es.core.plan",
        "    return {key: text for key, text in state.overrides.items() if key not in written}",
        "    return {}",
        needs="replay fare-0",
    ),
    Mutant(
        "what a step writes that runs again is not changed",
        "sagaz_es.core.plan",
        "written[name] = _written(effect, name, head)",
        "written[name] = set()",
    ),
    Mutant(
        "a step is tried once more than it may be",
        "sagaz_es.core.decide",
        "        if failures > self.max_retries:",
        "        if failures > self.max_retries + 1:",
    ),
    Mutant(
        "compensations go on though one has failed",
        "sagaz_es.core.decide",
        "_GIVING_UP = (CompensationFailureStrategy.FAIL_FAST, "
        "CompensationFailureStrategy.SKIP_DEPENDENTS)",
        "_GIVING_UP = ()",
    ),
    Mutant(
        "a saga that waits for all stops the others when one fails",
        "sagaz_es.core.decide",
        "            return Decision(run=children)\n        until = state.failed_at",
        "            pass\n        until = state.failed_at",
    ),
    Mutant(
        "a step sees what is still on its way to the log",
        "sagaz_es.engine.steps.contexts",
        "        seen = seen or self._look(attempt)\n",
        "        seen = self._look(attempt)\n",
    ),
    Mutant(
        "a branch undoes what it inherited with its overrides",
        "sagaz_es.engine.steps.contexts",
        '        if attempt.undo and state.status == "executing":\n',
        "        if False:\n",
    ),
    Mutant(
        "a compensation is tried again whatever the strategy",
        "sagaz_es.engine.steps.attempts",
        "            may_retry &= strategy is CompensationFailureStrategy.RETRY_THEN_CONTINUE\n",
        "",
    ),
    Mutant(
        "a compensation is tried again for ever",
        "sagaz_es.core.fold",
        "undo_failures=step.undo_failures + 1,",
        "undo_failures=0,",
    ),
    Mutant(
        "each child of a list starts with the first item",
        "sagaz_es.sagas.fan_out",
        "        return ctx[number]\n",
        '        return ctx["1"]\n',
    ),
    Mutant(
        "the results of the children of a list are in any order",
        "sagaz_es.sagas.fan_out",
        "for number in numbers]}",
        "for number in reversed(numbers)]}",
    ),
)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.origin is not None, name
        spec.loader = _Loader(self._mutant, name, spec.origin)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, mutant: Mutant, name: str, path: str) -> None:
        super().__init__(name, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> object:  # type: ignore[override]
        source = self.get_data(self.path).decode()
        for old, new in self._mutant.changes:
            if source.count(old) != 1:
                raise AssertionError(
                    f"{self._mutant.name!r}: {self.path} has its place {source.count(old)} times, "
                    "not once: the code has changed, change the mutant"
                )
            source = source.replace(old, new)
        return compile(source, self.path, "exec")


def plant(name: str) -> Mutant:
    """From now on the module is imported with the bug in it."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    assert mutant.module not in sys.modules, "planted too late"
    sys.meta_path.insert(0, _Finder(mutant))
    return mutant


def hunt(seeds: int, jobs: int, only: str = "") -> list[tuple[Mutant, int, str]]:
    """For each mutant how many schedules it took, and what was found; 0: it was missed."""
    chosen = [mutant for mutant in MUTANTS if only in mutant.name]
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda mutant: _hunt(mutant, seeds), chosen)
        # In here: who is stopped (Ctrl-C) while it waits for the results begins no others.
        return [(mutant, *result) for mutant, result in zip(chosen, found, strict=True)]


def _hunt(mutant: Mutant, seeds: int) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "mutant", mutant.name, "--seeds", str(seeds)],
        capture_output=True,
        text=True,
    )
    told = re.search(r"^found after (\d+): (.*)$", ended.stdout, re.MULTILINE)
    if told:
        return int(told[1]), told[2]
    return 0, (ended.stderr or ended.stdout).strip().rpartition("\n")[2]
