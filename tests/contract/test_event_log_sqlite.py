"""The SQLite log keeps the laws of a log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.log.sqlite import SQLiteEventLog
from sagaz_es.ports import EventLog
from sagaz_es.testing.contracts.event_log import EventLogContract


class TestSQLiteEventLog(EventLogContract):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncIterator[EventLog]:
        self._path = tmp_path / "sagas.db"
        log = SQLiteEventLog(self._path, AvroCodec(), partitions=4)
        await log.open()
        yield log
        await log.close()

    async def another(self, log: EventLog) -> EventLog:
        other = SQLiteEventLog(self._path, AvroCodec())
        await other.open()
        return other
