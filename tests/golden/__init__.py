"""Bytes that are written once, and read for ever."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sagaz_es.codec.published import Schemas, versions_in

SCHEMAS = Path(__file__).parents[2] / "schemas"
HISTORY = SCHEMAS / "history"


def history() -> Schemas:
    """What is published in this checkout."""
    return versions_in(HISTORY) if HISTORY.exists() else {}


def file_name(class_name: str) -> str:
    """`StepCompleted` as `step_completed`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


def without_docs(text: str) -> Any:
    """All of a schema that programs see: docs may become better in a published version."""
    return json.loads(text, object_hook=lambda part: {k: part[k] for k in part if k != "doc"})
