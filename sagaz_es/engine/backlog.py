"""Sagas that were taken over, or woken, and have a step to run: beyond `max_in_flight` they wait.

What is taken over is claimed at once, all of it: so the dead owner's late facts are rejected,
requests for it are answered, and its times are kept, while it waits. What waits here is parked:
some hundred bytes and no task. A saga that has nothing to run (it waits for a signal, or only its
end has to be written) does not come here at all.

Of two classes that wait each gets its turn; within a class it goes by the order of coming.

Law (claimed, not run): a saga that waits here starts no step and no compensation; what is decided
about it meanwhile (a signal, a cancel, its deadline) stands in the log at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sagaz_es.core.state import SagaState
    from sagaz_es.engine.admission import Admission


class Backlog:
    """The sagas of a host that were taken over or woken, and wait for room."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._lines: dict[str, dict[str, None]] = {}  # by class; whose turn comes next is first
        self._name_of: dict[str, str] = {}  # of those that wait: their class
        self.expected: set[str] = set()
        """Found unfinished, and it is not known yet whether they have anything to run."""
        self.outside: set[str] = set()
        """Sagas with a runner that has not been let in: they run nothing, and take no room."""

    def __len__(self) -> int:
        return len(self._name_of)

    def __contains__(self, saga_id: str) -> bool:
        return saga_id in self._name_of

    def lets_in(self, state: SagaState) -> bool:
        """Asked by a runner before it numbers the start of anything. False: it is in line now, and
        will be woken; what it has decided it decides anew then."""
        saga_id = state.saga_id
        if saga_id in self._name_of:
            return False
        if self._admission.takes_back(saga_id, others_wait=bool(self._lines)):
            self.outside.discard(saga_id)
            return True
        self._name_of[saga_id] = state.saga_name
        self._lines.setdefault(state.saga_name, {})[saga_id] = None
        return False

    def next(self) -> str | None:
        """Whose turn it is; it waits no longer."""
        for name in list(self._lines):
            line = self._lines.pop(name)
            saga_id = next(iter(line))
            self._lines[name] = line  # the others come before it the next time
            self.remove(saga_id)
            return saga_id
        return None

    def remove(self, saga_id: str) -> bool:
        """It waits no longer; whether it did."""
        name = self._name_of.pop(saga_id, None)
        if name is None:
            return False
        del self._lines[name][saga_id]
        if not self._lines[name]:
            del self._lines[name]
        return True
