"""What the tests of a user of sagaz-es need; `docs/how-to/test-your-sagas.md` shows it.

`given(…).when(…).then(…)` says how a saga ends; `memory_engine()` is an engine for a test of one's
own. Suites for adapters are in `sagaz_es.testing.contracts`.
"""

from sagaz_es.testing.crash_report import CrashReport, SagaNotCrashProof, Violation
from sagaz_es.testing.crashing import crash_everywhere
from sagaz_es.testing.faults import InjectedFailure
from sagaz_es.testing.memory import MemoryEngine, memory_engine
from sagaz_es.testing.runs import Action, Outcome
from sagaz_es.testing.specification import (
    cancel,
    crash,
    given,
    pause,
    recover,
    replay,
    resolve,
    resume,
    signal,
    wait,
)
from sagaz_es.testing.virtual_time import VirtualClock, WaitsForReality
from sagaz_es.testing.watching import Call

__all__ = [
    "Action",
    "Call",
    "CrashReport",
    "InjectedFailure",
    "MemoryEngine",
    "Outcome",
    "SagaNotCrashProof",
    "Violation",
    "VirtualClock",
    "WaitsForReality",
    "cancel",
    "crash",
    "crash_everywhere",
    "given",
    "memory_engine",
    "pause",
    "recover",
    "replay",
    "resolve",
    "resume",
    "signal",
    "wait",
]
