"""What a URL may say of an embedded log or store."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagaz_es import connect
from sagaz_es.errors import ConfigurationError


async def test_a_sqlite_log_has_as_many_partitions_as_its_url_says(tmp_path: Path) -> None:
    async with connect(f"sqlite:///{tmp_path / 'a.db'}?partitions=3&group=shop") as engine:
        assert len(engine.host.partitions) == 3
        assert engine.host.config.group == "shop"


@pytest.mark.parametrize(
    ("log", "store", "told"),
    [
        ("sqlite:///a.db?foo=bar", None, "unknown option 'foo'; known: partitions, group"),
        ("sqlite:///a.db?partitions=0", None, "partitions is a number from 1 to 10000, not '0'"),
        ("sqlite:///a.db?partitions=many", None, "from 1 to 10000, not 'many'"),
        ("sqlite:///a.db", "sqlite:///b.db?foo=bar", "store URL .*option 'foo'; known: none"),
    ],
)
def test_an_option_that_a_sqlite_url_does_not_have_is_refused(
    log: str, store: str | None, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        connect(log, store=store)
