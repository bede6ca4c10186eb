"""What `connect` takes, and what a URL may say of an embedded log or store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sagaz_es import EngineConfig, InMemorySnapshotStorage, Saga, action, connect
from sagaz_es.errors import ConfigurationError, ResourceMissing


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


class Order(Saga):
    saga_name = "order"

    @action("look", max_retries=0)
    async def look(self, ctx: Any) -> None:
        ctx.resources["shop"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("log", ["kafka://user:secret@host/ns"]),
        ("store", ["postgresql://user:secret@host/db"]),
        ("store", InMemorySnapshotStorage()),
        ("sagas", Order),
        ("sagas", "order"),
        ("sagas", [5]),
        ("sagas", None),
        ("sagas", {"order": "shop:Order"}),
        ("resources", ["secret"]),
        ("config", {"drain_seconds": 1}),
        ("instance_id", 5),
    ],
)
def test_what_connect_cannot_use_is_refused_by_the_name_of_its_argument(
    argument: str, value: Any
) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{argument}: ") as caught:
        connect(**{"log": "memory://", argument: value})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("drain_seconds", -1),
        ("housekeeping_seconds", 0),
        ("takeover_seconds", None),
        ("checkpoint_seconds", "1"),
        ("request_seconds", float("nan")),
        ("max_in_flight", -1),
        ("max_in_flight", "many"),
        ("group", 5),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_by_its_name(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{setting} "):
        EngineConfig(**{setting: value})


async def test_a_factory_without_a_parameter_for_the_name_is_told_its_form() -> None:
    async with connect("memory://", sagas={"order": lambda: Order()}) as engine:
        with pytest.raises(ConfigurationError, match=r"its factory is called with the saga's name"):
            await engine.run("order")


async def test_a_resource_that_nobody_gave_is_named_beside_those_that_there_are() -> None:
    async with connect("memory://", sagas=[Order], resources={"http": 1}) as engine:
        result = await engine.run(Order)
    assert isinstance(result.error, ResourceMissing) and isinstance(result.error, KeyError)
    assert "no resource 'shop'; there is: 'http'" in str(result.error)
