"""Every test has a default log of its own, as a user has who configures nothing."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_default_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SAGAZ_ES_LOG", "SAGAZ_ES_STORE", "SAGAZ_STORAGE_URL", "SAGAZ_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
