"""What must hold, whatever went wrong: the log, the ledger and the shop's own rules compared.

It knows the acceptance rule by heart (DESIGN.md §4), and asks neither the engine's fold nor its
status: what it takes from the product are the decoded records alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

from msgspec import Struct, field

from sagaz_es.core import events as e
from sagaz_es.ports import Record
from tests.chaos.shop import STEPS, Line

ENDINGS = {
    e.SagaCompleted: "completed",
    e.SagaRolledBack: "rolled_back",
    e.SagaCancelled: "cancelled",
    e.SagaFailed: "failed",
    e.SagaPartiallyCommitted: "partially_committed",
}
AFTERMATH_S = 15.0
"""So long after a fault an engine may still lose its sagas because of it."""

Act = tuple[str, bool, int, str]
"""Step, undo, attempt, writer."""


class Story(Struct):
    """One saga: its accepted facts in their order, and what its steps did."""

    writer: bytes = b""
    epoch: int = 0
    sequence: int = 0
    facts: list[tuple[str, e.Fact]] = field(default_factory=list)  # with the writer that wrote it
    lines: list[Line] = field(default_factory=list)
    status: str = ""
    partition: int = -1
    offset: int = -1  # of its last accepted fact
    checked: int = -1  # facts and lines, when it was last checked

    def accepts(self, event: e.Event) -> bool:
        """The acceptance rule."""
        number = (event.epoch, event.sequence)
        if isinstance(event.fact, e.SagaStarted):
            return not self.sequence and number == (0, 1)
        if isinstance(event.fact, e.SagaClaimed) and event.epoch != self.epoch:
            return bool(self.sequence) and number == (self.epoch + 1, self.sequence + 1)
        return event.writer == self.writer and number == (self.epoch, self.sequence + 1)


class Checker:
    """Told everything, it says what does not fit. `violations`: a sentence each."""

    def __init__(self) -> None:
        self.stories: dict[str, Story] = defaultdict(Story)
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self._acknowledged: set[str] = set()  # starts
        self._ended: set[str] = set()  # since they were last checked
        self._hits: dict[str, list[tuple[float, float]]] = defaultdict(list)

    # --- told ---

    def take(self, record: Record) -> None:
        """The next record of a partition."""
        self.counts["records"] += 1
        event = record.entry
        if not isinstance(event, e.Event):
            return
        story = self.stories[event.saga_id]
        if not story.accepts(event):
            self.counts["rejected"] += 1
            return
        self.counts["events"] += 1
        story.writer, story.epoch, story.sequence = event.writer, event.epoch, event.sequence
        story.facts.append((event.writer.hex(), event.fact))
        story.partition, story.offset = record.partition, record.offset
        story.status = ENDINGS.get(type(event.fact), "")
        if story.status:
            self._ended.add(event.saga_id)

    def hear(self, line: Line) -> None:
        """The next line of the ledger."""
        if line.what == "accepted":
            self.acknowledge(line.saga_id)
        elif line.saga_id:
            self.counts["effects"] += line.what == "done"
            self.stories[line.saga_id].lines.append(line)
            if self.stories[line.saga_id].status:
                self._ended.add(line.saga_id)

    def acknowledge(self, saga_id: str) -> None:
        """Somebody was told that this saga has begun."""
        self.counts["acknowledged"] += 1
        self._acknowledged.add(saga_id)

    def hit(self, writers: Iterable[str], since: float, until: float) -> None:
        """Between these times something was done to these engines: they may lose their sagas."""
        for writer in writers:
            self._hits[writer].append((since, until))

    # --- asked ---

    @property
    def unfinished(self) -> list[str]:
        """Sagas that are in the log and have not ended."""
        return [key for key, story in self.stories.items() if story.sequence and not story.status]

    def check(self) -> list[str]:
        """Look at every saga that ended, or did something, since the last look: these."""
        ended = sorted(self._ended)
        self._ended.clear()
        for saga_id in ended:
            _Judgement(self, saga_id, self.stories[saga_id]).all()
        return ended

    def check_end(self, heads: Mapping[str, tuple[int, str]] | None = None) -> None:
        """When everything has come to rest: nothing is missing, nobody is stuck."""
        self.check()
        for saga_id in sorted(self._acknowledged - self._in_log()):
            self.violations.append(f"{saga_id}: its start was acknowledged, and the log has it not")
        for saga_id in self.unfinished:
            last = type(self.stories[saga_id].facts[-1][1]).__name__
            self.violations.append(f"{saga_id}: stuck after {last}")
        for saga_id, story in self.stories.items():
            self.counts[story.status or "no_saga"] += 1
            if heads is not None and story.sequence:
                if heads.get(saga_id) != (story.sequence, story.status):
                    self.violations.append(
                        f"{saga_id}: the store says {heads.get(saga_id)}, "
                        f"the log {(story.sequence, story.status)}"
                    )

    def tell(self, saga_id: str) -> str:
        """A saga's story, for people who look for the cause of a violation."""
        story = self.stories[saga_id]
        lines = [f"  {writer[:6]} {fact}" for writer, fact in story.facts]
        for line in story.lines:
            hits = [f"{a:.2f}…{b:.2f}" for a, b in self._hits[line.writer]]
            lines.append(f"  {line.at:.2f} {said(line)} hit {', '.join(hits) or 'never'}")
        return "\n".join([saga_id, *lines])

    def _in_log(self) -> set[str]:
        return {saga_id for saga_id, story in self.stories.items() if story.sequence}

    def was_hit(self, writer: str, since: float, until: float) -> bool:
        """Whether a fault explains that this engine lost a saga between these times."""
        return any(
            begin <= until and since <= end + AFTERMATH_S for begin, end in self._hits[writer]
        )


class _Judgement:
    """One saga that has ended."""

    def __init__(self, checker: Checker, saga_id: str, story: Story) -> None:
        self._checker, self._id, self._story = checker, saga_id, story
        self._begun: dict[Act, int] = {}  # accepted starts, with their place among the facts
        self._completed: dict[Act, int] = {}
        self._unknown: set[Act] = set()
        for place, (writer, fact) in enumerate(story.facts):
            match fact:
                case e.StepStarted():
                    self._begun[fact.step, False, fact.attempt, writer] = place
                case e.StepCompensationStarted():
                    self._begun[fact.step, True, fact.attempt, writer] = place
                case e.StepCompleted():
                    self._completed[fact.step, False, fact.attempt, writer] = place
                case e.StepCompensated():
                    self._completed[fact.step, True, fact.attempt, writer] = place
                case e.StepFailed(unknown=True):
                    self._unknown.add((fact.step, False, fact.attempt, writer))
        self._lines: dict[tuple[str, str, bool], list[Line]] = defaultdict(list)
        for line in story.lines:
            self._lines[line.what, line.step, line.undo].append(line)

    def all(self) -> None:
        story = self._story
        if story.checked == len(story.facts) + len(story.lines):
            return
        story.checked = len(story.facts) + len(story.lines)
        self._checker.counts["judged"] += 1
        self._effects_were_begun()
        self._facts_have_effects()
        self._effects_have_facts()
        for step in STEPS:
            for undo in (False, True):
                self._twice_only_after_a_fault(step, undo)
        self._order()
        if story.status == "completed":
            self._everything_done()
        elif story.status in ("rolled_back", "cancelled"):
            self._everything_undone()
        else:
            self._wrong(f"it ended {story.status!r}, which no order does")
        self._nothing_shipped_unpaid()

    def _wrong(self, what: str) -> None:
        self._checker.violations.append(f"{self._id}: {what}")

    def _effects_were_begun(self) -> None:
        seen: set[Act] = set()
        for line in self._story.lines:
            act = act_of(line)
            if act not in self._begun:
                self._wrong(f"{said(line)} without an accepted start of that engine's")
            if line.what == "begin":
                if act in seen:
                    self._wrong(f"{said(line)} although the same attempt has begun before")
                seen.add(act)

    def _facts_have_effects(self) -> None:
        done = {act_of(line) for line in self._story.lines if line.what == "done"}
        for act in self._completed:
            if act not in done:
                self._wrong(f"the log says that {act[:3]} is done, the world does not")

    def _effects_have_facts(self) -> None:
        for line in self._story.lines:
            act = act_of(line)
            if line.what != "done" or act in self._completed or act in self._unknown:
                continue
            if self._story.status != "cancelled" and not self._hit(line):
                self._wrong(f"{said(line)}, which the log does not know, and nothing was wrong")

    def _twice_only_after_a_fault(self, step: str, undo: bool) -> None:
        done = self._lines["done", step, undo]
        if len(done) < 2:
            return
        self._checker.counts["twice"] += 1
        if len({line.key for line in done}) > 1:
            self._wrong(f"{step} was done under different keys")
        done = sorted(done, key=lambda line: self._begun.get(act_of(line), -1))
        for first, second in pairwise(done):
            begin, end = (self._begun.get(act_of(line), -1) for line in (first, second))
            between = self._story.facts[begin : end + 1]
            claimed = any(isinstance(fact, e.SagaClaimed) for _, fact in between)
            released = any(
                isinstance(fact, e.SagaReleased) and writer == first.writer
                for writer, fact in between
            )
            if not claimed or released or not self._hit(first, second):
                how = "after a hand-over in good order" if released else "without a fault"
                self._wrong(f"{said(second)} a second time, {how}")

    def _hit(self, line: Line, until: Line | None = None) -> bool:
        end = max(line.at, until.at) if until is not None else line.at
        return self._checker.was_hit(line.writer, line.at - AFTERMATH_S, end + AFTERMATH_S)

    def _order(self) -> None:
        """A step begins after those it depends on, and is undone before them."""
        done: dict[str, int] = {}
        undone: dict[str, int] = {}
        for (step, undo, _, _), place in self._completed.items():
            (undone if undo else done).setdefault(step, place)
        for (step, undo, _, _), place in self._begun.items():
            if undo:
                late = [other for other in UNDONE_FIRST & done.keys() if step in STEPS[other]]
                if any(undone.get(other, len(self._story.facts)) > place for other in late):
                    self._wrong(f"{step} was undone before what depends on it")
                if not any(act[0] == step and not act[1] for act in self._begun):
                    self._wrong(f"{step} was undone and never begun")
            elif any(done.get(other, len(self._story.facts)) > place for other in STEPS[step]):
                self._wrong(f"{step} began before what it depends on was done")

    def _everything_done(self) -> None:
        for step in STEPS:
            if not self._lines["done", step, False]:
                self._wrong(f"it completed without {step}")
            if self._lines["begin", step, True]:
                self._wrong(f"it completed, and {step} was undone")

    def _everything_undone(self) -> None:
        for step in STEPS:
            done, undone = self._lines["done", step, False], self._lines["done", step, True]
            if not done:
                continue
            if not undone and step in UNDONE_FIRST | {"reserve"}:
                self._wrong(f"it is {self._story.status}, and {step} still stands")
            elif undone and done[-1].at > undone[-1].at:
                self._late(done[-1], "after it was undone")

    def _nothing_shipped_unpaid(self) -> None:
        refunds = self._lines["done", "charge", True]
        for line in self._lines["done", "ship", False]:
            if not any(paid.at < line.at for paid in self._lines["done", "charge", False]):
                self._wrong("it was shipped unpaid")
            if refunds and act_of(line) in self._unknown:
                self._checker.counts["pivot_unknown"] += 1  # stopped by a cancel: people see it
            elif refunds:
                self._late(line, "and its payment is given back")

    def _late(self, line: Line, what: str) -> None:
        """A process that was cut off from all others may do late what it had begun before."""
        if self._hit(line):
            self._checker.counts["late_effects"] += 1
        else:
            self._wrong(f"{said(line)} {what}")


UNDONE_FIRST = {"charge", "pack"}  # before `reserve`


def act_of(line: Line) -> Act:
    return line.step, line.undo, line.attempt, line.writer


def said(line: Line) -> str:
    name = f"undo {line.step}" if line.undo else line.step
    return f"engine {line.writer[:6]} {line.what} {name}, attempt {line.attempt},"
