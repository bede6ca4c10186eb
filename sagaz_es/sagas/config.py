"""`SagaConfig`: which log `Saga.run` uses, and what holds for steps that say nothing else."""

from __future__ import annotations

import json
import logging as logs
import os
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

from sagaz_es.core.decide import ParallelFailureStrategy
from sagaz_es.errors import ConfigurationError, MissingDependencyError
from sagaz_es.sagas.large_values import DEFAULT_LIMITS, Limits
from sagaz_es.sagas.listeners import (
    LoggingSagaListener,
    MetricsSagaListener,
    TracingSagaListener,
)
from sagaz_es.sagas.options import check_saga

logger = logs.getLogger("sagaz_es")

LOG_SCHEMES = ("memory", "sqlite", "kafka")
STORE_SCHEMES = ("postgresql", "postgres")
NAMESPACE = "sagaz"
"""Of a broker's URL that names none."""


class InMemorySagaStorage:
    """As `SagaConfig(storage=…)`: the embedded log, in memory; it ends with the process."""

    def __init__(self) -> None:
        self.log = f"memory://sagaz-{uuid4().hex}"

    async def __aenter__(self) -> InMemorySagaStorage:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Nothing to close."""

    async def load_saga_state(self, saga_id: Any) -> dict[str, Any] | None:
        """A saga of this log as plain data; None: there is none."""
        from sagaz_es.sagas import orchestrator

        return await orchestrator.saga_status(saga_id, SagaConfig(storage=self))

    async def list_sagas(
        self, status: Any = None, saga_name: str | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """Sagas of this log, newest first."""
        from sagaz_es.sagas import orchestrator

        config = SagaConfig(storage=self)
        return await orchestrator.summaries(
            config, status=None if status is None else str(status), saga_name=saga_name, limit=limit
        )

    def __getattr__(self, name: str) -> Any:
        if name in _WRITES:
            raise AttributeError(
                f"InMemorySagaStorage has no {name}: what a saga is follows from its log; a "
                "SagaRecorder writes down what other code did"
            )
        raise AttributeError(f"'InMemorySagaStorage' object has no attribute {name!r}")


_WRITES = ("save_saga_state", "update_step_state", "delete_saga_state", "cleanup_completed_sagas")


class InMemoryBroker:
    """As `SagaConfig(broker=…)`: ignored with a warning, since the log is the broker."""


@dataclass(frozen=True)
class SagaConfig:
    """Settings for sagas: `Saga(config=…)`, or `configure(config)` for all of them.

    `log` and `store` are URLs as for `connect`. `storage` takes such a URL, too, or an
    `InMemorySagaStorage()`. `metrics`, `tracing` and `logging` are True, False or a listener; they
    are for sagas that name no listeners. `broker` and `outbox_storage` are ignored with a warning:
    the log is both. Raises ConfigurationError.
    """

    storage: Any = None
    outbox_storage: Any = None
    storage_manager: Any = None
    broker: Any = None
    metrics: Any = True
    tracing: Any = False
    logging: Any = True
    default_timeout: float = 60.0  # seconds, of each attempt
    default_max_retries: int = 3
    failure_strategy: ParallelFailureStrategy | str = "FAIL_FAST_WITH_GRACE"
    replay_config: Any = None
    snapshot_storage: Any = None
    log: str | None = None
    store: str | None = None
    value_warn_bytes: int = DEFAULT_LIMITS.warn  # as in EngineConfig
    value_inline_bytes: int = DEFAULT_LIMITS.inline
    value_max_bytes: int = DEFAULT_LIMITS.most

    def __post_init__(self) -> None:
        if self.storage_manager is not None:
            raise ConfigurationError(
                "storage_manager: there is one log for everything; write SagaConfig(log=URL)"
            )
        for name in ("broker", "outbox_storage"):
            if getattr(self, name) is not None:
                warnings.warn(
                    f"SagaConfig: {name} is ignored: the log is broker and outbox; subscribe to "
                    "its events topic",
                    UserWarning,
                    stacklevel=4,
                )
        if not (_is_number(self.default_timeout) and self.default_timeout > 0):
            raise ConfigurationError(f"default_timeout: above 0, not {self.default_timeout!r}")
        if not isinstance(self.default_max_retries, int) or self.default_max_retries < 0:
            raise ConfigurationError(
                f"default_max_retries: 0 or more, not {self.default_max_retries!r}"
            )
        self.limits.check("value_")
        try:
            strategy = ParallelFailureStrategy(self.failure_strategy)
        except (ValueError, TypeError) as error:
            known = ", ".join(ParallelFailureStrategy)
            raise ConfigurationError(f"failure_strategy: one of {known}") from error
        object.__setattr__(self, "failure_strategy", strategy)
        for name in ("log", "store"):
            if not isinstance(getattr(self, name), str | None):
                kind = type(getattr(self, name)).__name__
                raise ConfigurationError(f"{name}: a URL, not a value of type {kind}")
        check_saga("SagaConfig", {"replay_config": self.replay_config})
        log, store = _place(self.storage)
        object.__setattr__(self, "log", self.log or log)
        object.__setattr__(self, "store", self.store or store)

    def __repr__(self) -> str:
        """Without the passwords of URLs: settings are logged."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("storage", "log", "store"):
            if isinstance(values[name], str):
                values[name] = _without_password(values[name])
        return f"SagaConfig({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @property
    def limits(self) -> Limits:
        """How large values may be."""
        return Limits(self.value_warn_bytes, self.value_inline_bytes, self.value_max_bytes)

    @property
    def listeners(self) -> list[Any]:
        """The listeners that `logging`, `metrics` and `tracing` ask for, made anew."""
        wanted: tuple[tuple[Any, Callable[[], Any]], ...] = (
            (self.logging, LoggingSagaListener),
            (self.metrics, MetricsSagaListener),
            (self.tracing, TracingSagaListener),
        )
        return [make() if asked is True else asked for asked, make in wanted if asked]

    def with_storage(self, storage: Any) -> SagaConfig:
        """The same with another place to keep sagas."""
        return replace(self, storage=storage, log=None, store=None)

    def with_broker(self, broker: Any, outbox_storage: Any = None) -> SagaConfig:
        """The same; warns that brokers are ignored."""
        return replace(self, broker=broker, outbox_storage=outbox_storage)

    @classmethod
    def from_env(cls, load_dotenv: bool = True) -> SagaConfig:
        """From SAGAZ_ES_LOG and SAGAZ_ES_STORE, or sagaz's SAGAZ_STORAGE_URL and SAGAZ_BROKER_URL;
        SAGAZ_METRICS, SAGAZ_TRACING and SAGAZ_LOGGING are true or false. `load_dotenv`: variables
        that are not set are read from `.env`. Raises ConfigurationError."""
        known = dict(_dotenv(Path(".env"))) if load_dotenv else {}
        known.update(os.environ)
        log, store = known.get("SAGAZ_ES_LOG") or None, known.get("SAGAZ_ES_STORE") or None
        old = known.get("SAGAZ_STORAGE_URL")
        if old and not (log or store):
            log, store = _place(old)
            logger.warning("SAGAZ_STORAGE_URL is read; write SAGAZ_ES_LOG or SAGAZ_ES_STORE")
        broker = known.get("SAGAZ_BROKER_URL")
        if broker and not log:
            log = _broker_log(broker)
        return cls(
            log=log,
            store=store,
            metrics=_flag(known, "SAGAZ_METRICS", True),
            tracing=_flag(known, "SAGAZ_TRACING", False),
            logging=_flag(known, "SAGAZ_LOGGING", True),
        )

    @classmethod
    def from_file(cls, file_path: str | Path, substitute_env: bool = True) -> SagaConfig:
        """From YAML or JSON: the fields above, or sagaz's sections `storage`, `broker` and
        `observability`. `${VAR}`, `${VAR:-default}` and `${VAR:?message}` are replaced.

        Raises FileNotFoundError, ConfigurationError, MissingDependencyError (YAML).
        """
        path = Path(file_path)
        data = _parse(path)
        try:
            if substitute_env:
                data = _substitute(data)
        except RecursionError:
            raise ConfigurationError(f"{path}: a section holds itself") from None
        given = {key: data[key] for key in ("log", "store") if data.get(key) is not None}
        given |= {key: _number(data[key]) for key in _NUMBERS if data.get(key) is not None}
        if data.get("failure_strategy"):
            given["failure_strategy"] = data["failure_strategy"]
        if data.get("storage"):
            given["storage"] = _storage_section(data["storage"])
        broker = _section(data, "broker")
        url = broker.get("url") or _section(broker, "connection").get("url")
        if url and not given.get("log"):
            given["log"] = _broker_log(str(url))
        observed = _section(data, "observability")
        for name, section in _OBSERVED.items():
            enabled = _section(observed, section).get("enabled", name != "tracing")
            given[name] = _is_on(enabled) if isinstance(enabled, str) else bool(enabled)
        for name in ("log", "store"):
            if not isinstance(given.get(name), str | None):
                raise ConfigurationError(f"{path}: {name} is a URL, not {given[name]!r}")
        return cls(**given)


_NUMBERS = (
    "default_timeout",
    "default_max_retries",
    "value_warn_bytes",
    "value_inline_bytes",
    "value_max_bytes",
)
_OBSERVED = {"metrics": "prometheus", "tracing": "tracing", "logging": "logging"}
"""What is said about it, by its section in a file."""


def _number(value: Any) -> Any:
    """The number that a variable holds as text; else the value, to be refused by its name."""
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    return value


def _without_password(url: str) -> str:
    """Scheme, hosts and path: a password stands before the hosts, or among the options."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "…"
    if not parts.scheme or "@" in parts.path:  # taken apart at the wrong place, or no URL
        return "…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of the settings; empty where there is none. Raises ConfigurationError."""
    section = data.get(name) or {}
    if not isinstance(section, Mapping):
        kind = type(section).__name__
        raise ConfigurationError(f"{name}: settings are a mapping, not a {kind}")
    return section


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(storage: Any) -> tuple[str | None, str | None]:
    """Log and store of what is given as storage."""
    if storage is None:
        return None, None
    if isinstance(storage, InMemorySagaStorage):
        return storage.log, None
    if isinstance(storage, str):
        scheme = storage.partition("://")[0]
        if scheme in LOG_SCHEMES:
            return storage, None
        if scheme in STORE_SCHEMES:
            return None, storage
        raise ConfigurationError(
            f"storage: a URL with {scheme!r} can hold no sagas; logs: {', '.join(LOG_SCHEMES)}, "
            f"stores: {', '.join(STORE_SCHEMES)}"
        )
    raise ConfigurationError(
        f"storage: a URL or InMemorySagaStorage(), not a {type(storage).__name__}"
    )


def _broker_log(url: str) -> str | None:
    """The log of a broker's URL, if it can be one."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"broker: its URL is none: {error}") from None
    if parts.scheme != "kafka":
        logger.warning("the broker's URL is ignored: %s:// can be no log", parts.scheme)
        return None
    logger.warning(
        "the broker's URL is the log now; write SAGAZ_ES_LOG=kafka://host:port/namespace"
    )
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/{NAMESPACE}"


def _storage_section(section: Any) -> Any:
    if isinstance(section, str):
        return section
    section = _section({"storage": section}, "storage")
    connection = _section(section, "connection")
    kind = str(section.get("type", "postgresql")).lower()
    if section.get("url") or connection.get("url"):
        return section.get("url") or connection.get("url")
    if kind == "memory":
        return InMemorySagaStorage()
    if kind != "postgresql":
        return f"{kind}://"
    user = quote(str(connection.get("user", "postgres")), safe="")
    password = quote(str(connection.get("password", "postgres")), safe="")
    host, port = connection.get("host", "localhost"), connection.get("port", 5432)
    return f"postgresql://{user}:{password}@{host}:{port}/{connection.get('database', 'sagaz')}"


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        data = json.loads(text) if path.suffix == ".json" else _from_yaml(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigurationError(f"{path}: settings are a mapping, not a {type(data).__name__}")
    return data or {}


def _from_yaml(text: str) -> Any:
    try:
        yaml: Any = import_module("yaml")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("pyyaml", "a YAML file", "cli") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


_VARIABLE = re.compile(r"\$\{([^}:]+)(?::([?-])([^}]*))?\}")


def _substitute(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _substitute(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item) for item in value]
    return _VARIABLE.sub(_variable, value) if isinstance(value, str) else value


def _variable(match: re.Match[str]) -> str:
    name, operator, operand = match.groups()
    value = os.environ.get(name)
    if value is not None:
        return value
    if operator == "-":
        return str(operand)
    raise ConfigurationError(f"{name}: {operand or 'this variable is not set'}")


def _dotenv(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    pairs = []
    for line in text.splitlines():
        key, found, value = line.removeprefix("export ").partition("=")
        if found and not key.lstrip().startswith("#"):
            pairs.append((key.strip(), value.strip().strip("'\"")))
    return pairs


def _flag(known: Mapping[str, str], name: str, default: bool) -> bool:
    text = known.get(name)
    return default if text is None else _is_on(text)


def _is_on(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on")


# --- for all sagas --------------------------------------------------------------------------------

_configured: list[SagaConfig] = []


def configure(config: SagaConfig) -> None:
    """The settings of every saga that is given none, from now on. Raises ConfigurationError."""
    _configured[:] = [checked(config)]


def get_config() -> SagaConfig:
    """The settings given to `configure`, else the defaults."""
    return _configured[0] if _configured else SagaConfig()


def checked(config: Any) -> SagaConfig:
    """Raises ConfigurationError for what is no SagaConfig."""
    if not isinstance(config, SagaConfig):
        kind = type(config).__name__
        raise ConfigurationError(f"config: a SagaConfig, such as SagaConfig(log=URL), not a {kind}")
    return config


def settings_of(config: Any) -> SagaConfig | None:
    """A saga's own settings, else those of all; None: nobody has configured anything."""
    if isinstance(config, SagaConfig):
        return config
    return _configured[0] if _configured else None
