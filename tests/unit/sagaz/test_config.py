"""`SagaConfig`: where sagas are kept, and defaults that take effect; the orchestrator on top."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sagaz_es import ParallelFailureStrategy, ReplayConfig, Saga, SagaStatus, action
from sagaz_es.errors import ConfigurationError
from sagaz_es.sagas import config as saga_config
from sagaz_es.sagas.config import (
    InMemoryBroker,
    InMemorySagaStorage,
    SagaConfig,
    configure,
    get_config,
)
from sagaz_es.sagas.listeners import LoggingSagaListener, MetricsSagaListener
from sagaz_es.sagas.orchestrator import SagaOrchestrator


@pytest.fixture(autouse=True)
def nothing_configured() -> Iterator[None]:
    saga_config._configured.clear()
    yield
    saga_config._configured.clear()


class Order(Saga):
    saga_name = "order"

    @action("left")
    async def left(self, ctx: Any) -> None: ...

    @action("said", max_retries=3, timeout_seconds=60)
    async def said(self, ctx: Any) -> None:
        if ctx.get("poor"):
            raise ValueError("poor")


def test_the_defaults_are_for_steps_that_say_nothing() -> None:
    saga = Order(config=SagaConfig(default_timeout=5, default_max_retries=1))
    shown = [(step.max_retries, step.timeout_seconds) for step in saga.get_steps()]
    assert shown == [(1, 5.0), (3, 60.0)]
    assert [step.max_retries for step in Order().get_steps()] == [3, 3]


def test_the_failure_strategy_is_for_sagas_that_say_nothing() -> None:
    class Waiting(Order):
        failure_strategy = ParallelFailureStrategy.WAIT_ALL

    configure(SagaConfig(failure_strategy="FAIL_FAST"))
    assert Order().definition().rules.failure_strategy is ParallelFailureStrategy.FAIL_FAST
    assert Waiting().definition().rules.failure_strategy is ParallelFailureStrategy.WAIT_ALL


def test_listeners_are_for_sagas_that_name_none() -> None:
    class Quiet(Order):
        listeners: ClassVar[list[Any]] = []

    assert Order().definition().listeners == ()
    configure(SagaConfig())
    assert [type(each) for each in Order().definition().listeners] == [
        LoggingSagaListener,
        MetricsSagaListener,
    ]
    assert Quiet().definition().listeners == ()
    mine = LoggingSagaListener()
    assert SagaConfig(logging=mine, metrics=False).listeners == [mine]


def test_snapshots_are_asked_for_by_the_configuration_too() -> None:
    configure(SagaConfig(replay_config=ReplayConfig(enable_snapshots=True)))
    assert Order().definition().snapshot_policy


def test_what_is_configured_is_given_back() -> None:
    config = SagaConfig(default_timeout=5)
    configure(config)
    assert get_config() is config


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"default_timeout": 0}, "default_timeout"),
        ({"default_max_retries": -1}, "default_max_retries"),
        ({"failure_strategy": "HOPE"}, "failure_strategy"),
        ({"storage": "redis://localhost"}, "redis"),
        ({"storage": object()}, "InMemorySagaStorage"),
        ({"storage_manager": object()}, "log=URL"),
    ],
)
def test_a_setting_that_is_not_usable_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        SagaConfig(**fields)


def test_brokers_are_ignored_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="subscribe"):
        SagaConfig(broker=object())
    with pytest.warns(UserWarning, match="broker is ignored"):
        SagaConfig(broker=InMemoryBroker())


def test_a_state_that_is_written_by_hand_is_refused_with_what_to_use() -> None:
    with pytest.raises(AttributeError, match="SagaRecorder"):
        InMemorySagaStorage().save_saga_state  # noqa: B018
    assert not hasattr(InMemorySagaStorage(), "nonsense")


# --- where sagas are kept -------------------------------------------------------------------------


async def test_storage_in_memory_means_the_embedded_log_in_memory(tmp_path: Path) -> None:
    storage = InMemorySagaStorage()
    config = SagaConfig(storage=storage)
    await Order(config=config).run({}, saga_id="order-1")
    assert await Order(config=config).run({"late": True}, saga_id="order-1") == {
        "saga_id": "order-1"
    }
    assert os.listdir(tmp_path) == []
    state = await storage.load_saga_state("order-1")
    assert state is not None and state["status"] == "completed"
    assert await storage.load_saga_state("order-2") is None
    assert [each["saga_id"] for each in await storage.list_sagas(status="completed")] == ["order-1"]


async def test_the_log_of_the_configuration_is_used(tmp_path: Path) -> None:
    configure(SagaConfig(log="sqlite:///mine.db", logging=False))
    await Order().run({})
    assert "mine.db" in os.listdir(tmp_path)
    assert "sagaz-es.db" not in os.listdir(tmp_path)


def test_the_variables_of_sagaz_are_still_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SAGAZ_STORAGE_URL", "postgresql://host/db")
    monkeypatch.setenv("SAGAZ_BROKER_URL", "kafka://host:9092")
    monkeypatch.setenv("SAGAZ_METRICS", "false")
    config = SagaConfig.from_env()
    assert (config.log, config.store) == ("kafka://host:9092/sagaz", "postgresql://host/db")
    assert config.metrics is False
    assert "SAGAZ_ES_STORE" in caplog.text and "SAGAZ_ES_LOG" in caplog.text


def test_variables_can_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('# mine\nexport SAGAZ_ES_LOG="sqlite:///env.db"\n')
    assert SagaConfig.from_env().log == "sqlite:///env.db"
    assert SagaConfig.from_env(load_dotenv=False).log is None


FILE = """\
storage:
  type: postgresql
  connection:
    host: ${DB_HOST:-localhost}
    password: ${DB_PASSWORD}
    database: sagas
observability:
  tracing: {enabled: false}
  prometheus: {enabled: false}
default_timeout: 5
"""


def test_a_file_with_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sagaz.yaml"
    path.write_text(FILE)
    with pytest.raises(ConfigurationError, match="DB_PASSWORD"):
        SagaConfig.from_file(path)
    monkeypatch.setenv("DB_PASSWORD", "p@ss")
    config = SagaConfig.from_file(path)
    assert config.store == "postgresql://postgres:p%40ss@localhost:5432/sagas"
    assert (config.default_timeout, config.metrics, config.logging) == (5, False, True)


def test_a_file_in_json(tmp_path: Path) -> None:
    path = tmp_path / "sagaz.json"
    path.write_text(json.dumps({"log": "sqlite:///a.db", "failure_strategy": "WAIT_ALL"}))
    config = SagaConfig.from_file(path)
    assert config.log == "sqlite:///a.db"
    assert config.failure_strategy is ParallelFailureStrategy.WAIT_ALL
    path.write_text("[1]")
    with pytest.raises(ConfigurationError, match="mapping"):
        SagaConfig.from_file(path)


@pytest.mark.parametrize(
    ("text", "enabled"), [("false", False), ("0", False), ("true", True), ("on", True)]
)
def test_a_variable_may_be_a_number_or_a_truth_value(
    text: str, enabled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENABLED", text)
    path = tmp_path / "sagaz.json"
    switch = {"enabled": "${ENABLED}"}
    path.write_text(
        json.dumps(
            {
                "default_timeout": "${LIMIT:-7.5}",
                "default_max_retries": "${RETRIES:-2}",
                "observability": {"prometheus": switch, "tracing": switch, "logging": switch},
            }
        )
    )
    config = SagaConfig.from_file(path)
    assert (config.default_timeout, config.default_max_retries) == (7.5, 2)
    assert (config.metrics, config.tracing, config.logging) == (enabled,) * 3


def test_what_is_no_number_is_still_refused(tmp_path: Path) -> None:
    path = tmp_path / "sagaz.json"
    path.write_text(json.dumps({"default_timeout": "${LIMIT:-soon}"}))
    with pytest.raises(ConfigurationError, match="default_timeout: above 0, not 'soon'"):
        SagaConfig.from_file(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"log": "kafka://ann:s3cret@h:9092/shop?ssl_password=s3cret"},
        {"store": "postgresql://ann:s3cret@h/db?password=s3cret"},
        {"storage": "postgresql://ann:s3cret@h/db"},
        {"storage": "postgresql://ann:s3cret/x@h/db"},  # taken apart at the wrong place
        {"log": "s3cret"},
    ],
)
def test_no_password_is_shown(settings: dict[str, Any]) -> None:
    shown = repr(SagaConfig(**settings))
    assert "s3cret" not in shown and "ann" not in shown
    assert shown.startswith("SagaConfig(storage=") and "default_timeout=60.0" in shown


def test_where_sagas_are_kept_is_shown() -> None:
    shown = repr(SagaConfig(log="sqlite:///a.db", store="postgresql://ann:s3cret@h:1/db"))
    assert "log='sqlite:///a.db', store='postgresql://h:1/db'" in shown


# --- the orchestrator -----------------------------------------------------------------------------


async def test_the_orchestrator_tells_of_all_sagas_of_the_log() -> None:
    configure(SagaConfig(storage=InMemorySagaStorage(), logging=False, default_max_retries=0))
    await Order().run({}, saga_id="elsewhere")
    orchestrator = SagaOrchestrator()
    good, bad = Order(), Order()
    good.context.set("poor", False)
    assert (await orchestrator.execute_saga(good)).success

    class Poor(Order):
        saga_name = "poor"

        @action("said", max_retries=0)
        async def said(self, ctx: Any) -> None:
            raise ValueError("poor")

    bad = Poor()
    result = await orchestrator.execute_saga(bad)
    assert result.status is SagaStatus.ROLLED_BACK
    assert await orchestrator.get_saga(result.saga_id) is bad
    status = await orchestrator.get_saga_status("elsewhere")
    assert status is not None and (status["status"], status["completed_steps"]) == ("completed", 2)
    assert await orchestrator.get_saga_status("nothing") is None
    assert (await orchestrator.count_completed(), await orchestrator.count_rolled_back()) == (2, 1)
    assert (await orchestrator.get_statistics())["total_sagas"] == 3
    assert {each["name"] for each in await orchestrator.get_all_sagas_status()} == {
        "order",
        "poor",
    }


@pytest.mark.parametrize(
    ("setting", "value"),
    [("log", 5), ("store", ["secret"]), ("replay_config", {"enable_snapshots": True})],
)
def test_a_setting_of_another_type_is_refused_by_its_name(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"\b{setting}\b") as caught:
        SagaConfig(**{setting: value})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("config", [{"log": "memory://"}, 5])
def test_what_is_no_config_is_not_passed_over(config: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^config: a SagaConfig"):
        configure(config)
    with pytest.raises(ConfigurationError, match=r"^config: a SagaConfig"):
        Order(config=config)
