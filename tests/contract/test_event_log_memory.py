"""The memory log keeps the laws of a log."""

from __future__ import annotations

import pytest

from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.ports import EventLog
from sagaz_es.testing.contracts.event_log import EventLogContract


class TestMemoryEventLog(EventLogContract):
    checks_entry_size = False  # it keeps entries as they are and knows no size

    @pytest.fixture
    async def log(self) -> EventLog:
        log = MemoryEventLog()
        await log.open()
        return log

    async def another(self, log: EventLog) -> EventLog:
        return log  # the engines of one process share the object
