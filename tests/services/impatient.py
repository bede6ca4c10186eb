"""Orders, for a worker that waits only a moment for a log that does not answer when it stops."""

from __future__ import annotations

import sagaz_es_cli.engine
from tests.services.takeover_worker import Order

sagaz_es_cli.engine.STOP_SECONDS = 0.5

__all__ = ["Order"]
