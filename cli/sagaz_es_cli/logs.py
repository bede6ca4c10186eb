"""The log lines of a program that stays: lines for people, or JSON for machines, on stderr.

Only `engine run` configures logging, while it runs: root handler, levels, and warnings.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sagaz_es.engine.steps.calling import current_saga

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
_SAGA_TASKS = ("sagaz-es saga ", "sagaz-es take-over ", "sagaz-es adopt ", "sagaz-es branch ")


def saga_of(record: logging.LogRecord) -> str:
    """The saga that a log line is about; empty: none, or it is not known.

    It is asked for where the line is made: in the code of a step, or in a task of the engine.
    """
    if given := getattr(record, "saga_id", ""):
        return str(given)
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a thread without an event loop
        task = None
    name = task.get_name() if task is not None else ""
    about = next((name.removeprefix(kind) for kind in _SAGA_TASKS if name.startswith(kind)), "")
    return about or current_saga.get()


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message; saga_id and exception where known."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if saga_id := saga_of(record):
            line["saga_id"] = saga_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Lines(logging.Formatter):
    """The same for people; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        saga_id = saga_of(record)
        about = f" [{saga_id}]" if saga_id else ""
        head = f"{_time(record)} {record.levelname.lower()} {record.name}{about}"
        line = f"{head}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def logging_as(format: str, level: str = "info") -> Iterator[None]:
    """Send everything that is logged or warned of to stderr meanwhile."""
    root = logging.getLogger()
    before = root.level
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else Lines())
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(before)
        root.removeHandler(handler)
