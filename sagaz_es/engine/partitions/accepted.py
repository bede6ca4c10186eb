"""The folded truth of a saga, as much of it as the acceptance rule needs.

It moves only by records whose place in the log is known; what a saga carries ahead of the log is in
`cell.py`.
"""

from __future__ import annotations

from msgspec import Struct, field

from sagaz_es.core import events as e
from sagaz_es.core.fold import Verdict, judge
from sagaz_es.core.state import SagaState

ENDINGS = frozenset(
    {
        e.SagaCompleted,
        e.SagaRolledBack,
        e.SagaFailed,
        e.SagaPartiallyCommitted,
        e.SagaCancelled,
        e.ReplayUndone,
    }
)

_NOBODY: dict[str, int] = {}  # shared by all sagas that have an engine; never changed in place


class Accepted(Struct):
    """What the acceptance rule must know of a saga: folded from records whose place is known."""

    writer: bytes = b""
    epoch: int = 0
    sequence: int = 0
    ended: bool = False
    recorded: bool = False
    recorders: dict[str, int] = field(default_factory=lambda: _NOBODY)
    end_offset: int = 0  # of the record that ended it; 0: it must not be forgotten

    @classmethod
    def of(cls, state: SagaState) -> Accepted:
        """The rule's part of a folded state."""
        return cls(
            state.writer,
            state.epoch,
            state.sequence,
            state.ended,
            state.recorded,
            state.recorders or _NOBODY,
        )

    def take(self, event: e.Event, offset: int) -> None:
        """Go on by an event that was judged accepted."""
        if not self.sequence:
            self.recorded, self.epoch = event.epoch == e.RECORDED_EPOCH, event.epoch
        if event.epoch == e.RECORDED_EPOCH:
            self.recorders = {**self.recorders, event.writer.hex(): event.sequence}
        else:
            self.writer, self.epoch = event.writer, event.epoch
        self.sequence += 1
        kind = type(event.fact)
        if kind in ENDINGS:
            self.ended, self.end_offset = True, offset
        elif kind is e.CompensationStarted or kind is e.StepCompensationStarted:
            self.ended = False


def pass_by(known: dict[str, Accepted], event: e.Event, offset: int) -> None:
    """An event of a saga that is recorded, or another group's: what matters here is that its id is
    taken."""
    accepted = known.get(event.saga_id)
    if accepted is None:
        if type(event.fact) is not e.SagaStarted and event.epoch != e.RECORDED_EPOCH:
            return  # it began before what is known; the store or a scan answers for its id
        accepted = known[event.saga_id] = Accepted()
    if judge(accepted, event) is Verdict.ACCEPTED:
        accepted.take(event, offset)
    accepted.end_offset = offset
