"""URLs become adapters, imported only when asked for; the one place that wires.

Logs: `memory://[name]`, `sqlite:///file.db[?partitions=n]` (relative; `sqlite:////abs/file.db`),
`kafka://[user:password@]host:port[,host:port]/namespace[?option=…]`. Stores: `memory://`,
`sqlite:///…`, `postgresql://…[?schema=name]` (a schema for each namespace that shares a database).
A SQLite or memory log is its own store unless one is given. `?group=name` of any log's URL is the
group of engines that this one joins (EngineConfig.group).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit
from uuid import uuid4

import msgspec

from sagaz_es.engine.config import EngineConfig
from sagaz_es.engine.engine import Engine
from sagaz_es.engine.registry import Source
from sagaz_es.errors import ConfigurationError, MissingDependencyError, UnknownScheme
from sagaz_es.ports import BlobStore, Clock, EventLog, ProjectionStore
from sagaz_es.recording import recorder
from sagaz_es.sagas import standalone
from sagaz_es.sagas.large_values import Limits

LOG_VARIABLE = "SAGAZ_ES_LOG"
STORE_VARIABLE = "SAGAZ_ES_STORE"
INSTANCE_VARIABLE = "SAGAZ_ES_INSTANCE_ID"
DEFAULT_LOG = "sqlite:///sagaz-es.db"
LOG_SCHEMES = ("memory", "sqlite", "kafka")
GROUP_OPTION = "group"  # of a log's URL; for the engine, not for the log
STORE_SCHEMES = ("memory", "sqlite", "postgresql")
_INT32 = 2**31 - 1
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,200}")
_HOST = re.compile(r"(?P<name>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[^:\[\]]*))?")
_memory_logs: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Address:
    """A URL taken apart. `shown` is for people: without password."""

    scheme: str
    hosts: tuple[str, ...] = ()
    path: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    options: Mapping[str, str] = field(default_factory=dict)
    shown: str = ""


def connect(
    log: str | EventLog | None = None,
    *,
    store: str | ProjectionStore | None = None,
    sagas: Iterable[Source] | Mapping[str, Callable[..., Any]] = (),
    resources: Mapping[str, Any] | None = None,
    instance_id: str | None = None,
    config: EngineConfig | None = None,
    clock: Clock | None = None,
) -> Engine:
    """An engine on a log, to be used with `async with`. Nothing is contacted before that.

    `log` and `store` default to SAGAZ_ES_LOG and SAGAZ_ES_STORE, then to one file `sagaz-es.db` for
    both. `resources` are live objects for the steps (`ctx.resources`). `instance_id`
    (SAGAZ_ES_INSTANCE_ID) makes this process a static member of the group: no other may use it,
    and Kafka keeps its partitions for it until the session time-out, after a clean stop, too.

    Raises UnknownScheme, ConfigurationError, MissingDependencyError (which extra to install).
    """
    _check_given(resources, config, instance_id)
    event_log = open_log(log)
    projection_store = open_store(store, event_log)
    config = _with_group(config or EngineConfig(), group_of(log))
    embedded = getattr(event_log, "indexed", False) and projection_store is not None
    projector = None
    if projection_store is not None and (
        embedded if config.projector is None else config.projector
    ):
        from sagaz_es.reading.projector import Projector

        projector = Projector(event_log, projection_store)
    return Engine(
        event_log,
        projection_store,
        blobs=open_blobs(projection_store, event_log),
        sagas=sagas,
        resources=resources,
        clock=clock,
        config=config,
        instance_id=instance_id or os.environ.get(INSTANCE_VARIABLE) or None,
        projector=projector,
    )


def _check_given(resources: Any, config: Any, instance_id: Any) -> None:
    """Raises ConfigurationError with the argument's name."""
    if resources is not None and not isinstance(resources, Mapping):
        raise ConfigurationError(
            'resources: a mapping of live objects, such as {"http": client}, not '
            f"{_kind(resources)}"
        )
    if config is not None and not isinstance(config, EngineConfig):
        raise ConfigurationError(f"config: an EngineConfig, not {_kind(config)}")
    if instance_id is not None and not isinstance(instance_id, str):
        raise ConfigurationError(f"instance_id: a text, not {_kind(instance_id)}")


def _adapter_given(what: str, value: Any, method: str, url: str) -> bool:
    """Whether an adapter was given in place of a URL. Raises ConfigurationError for neither."""
    if value is None or isinstance(value, str):
        return False
    if hasattr(value, "engine_store"):
        raise ConfigurationError(
            f"{what}: a snapshot storage is given to the saga, Saga(snapshot_storage=…); write "
            f"a URL here, such as {url}"
        )
    if not hasattr(value, method):
        raise ConfigurationError(f"{what}: a URL, such as {url}, not {_kind(value)}")
    return True


def _kind(value: object) -> str:
    """Of what was given by mistake: it is not shown itself, as it may hold a password."""
    return f"a value of type {type(value).__name__}"


def _with_group(config: EngineConfig, group: str) -> EngineConfig:
    if group and config.group not in ("", group):
        raise ConfigurationError(
            f"the log's URL says group={group}, the configuration {config.group!r}: leave one out"
        )
    return msgspec.structs.replace(config, group=group) if group else config


def group_of(log: str | EventLog | None) -> str:
    """The group that the log's URL names; empty: none."""
    if log is not None and not isinstance(log, str):
        return ""
    return parse_url(log_url(log), "log", LOG_SCHEMES).options.get(GROUP_OPTION, "")


def log_url(log: str | None = None) -> str:
    """The log's URL after defaults."""
    return log or os.environ.get(LOG_VARIABLE) or DEFAULT_LOG


def open_log(log: str | EventLog | None = None, *, reading: bool = False) -> EventLog:
    """The adapter of a URL, not opened yet. `reading`: nothing will be written, so that a file that
    this process may only read will do."""
    if _adapter_given("log", log, "read_saga", DEFAULT_LOG):
        return cast(EventLog, log)
    address = parse_url(log_url(cast("str | None", log)), "log", LOG_SCHEMES)
    if address.scheme == "memory":
        return _memory_log(address)
    if address.scheme == "sqlite":
        module = _adapter("sagaz_es.log.sqlite")
        given = _known_options(address, "log", SQLITE_OPTIONS)
        opened: EventLog = module.SQLiteEventLog(_file(address), _codec(), reading=reading, **given)
        return opened
    return _kafka_log(address)


def _memory_log(address: Address) -> EventLog:
    from sagaz_es.log.memory import MemoryEventLog

    name = address.hosts[0] if address.hosts else ""
    if not name:
        return MemoryEventLog()
    if name not in _memory_logs:
        _memory_logs[name] = MemoryEventLog(name=f"memory://{name}")
    named: EventLog = _memory_logs[name]
    return named


class SagaRecorder(recorder.SagaRecorder):
    """For services that run their sagas by other means: writes the same facts to the same log.

    `log` is a URL (default: SAGAZ_ES_LOG, then `sagaz-es.db`) or an open EventLog.
    """

    def __init__(self, log: str | EventLog | None, saga_name: str, **options: Any) -> None:
        _adapter_given("log", log, "read_saga", DEFAULT_LOG)
        super().__init__(log or log_url(), saga_name, **{"opener": open_log, **options})


_NUMBERS = {"partitions": 10_000, "session_timeout_ms": _INT32}  # the most that each may be
SQLITE_OPTIONS = ("partitions",)
KAFKA_OPTIONS = (
    "partitions",
    "security_protocol",
    "sasl_mechanism",
    "ssl_cafile",
    "ssl_certfile",
    "ssl_keyfile",
    "session_timeout_ms",
)


def _kafka_log(address: Address) -> EventLog:
    namespace = address.path.strip("/")
    if not address.hosts or not namespace or not _NAMESPACE.fullmatch(namespace):
        raise ConfigurationError(
            f"log URL {address.shown}: write kafka://host:port[,host:port]/namespace; a namespace "
            "has letters, digits, '.', '_' and '-'"
        )
    options = _known_options(address, "log", KAFKA_OPTIONS)
    if address.user:
        options.update(username=address.user, password=address.password)
        options.setdefault("security_protocol", "SASL_PLAINTEXT")
        options.setdefault("sasl_mechanism", "PLAIN")
    hosts = [host if _has_port(host) else f"{host}:9092" for host in address.hosts]
    module = _adapter("sagaz_es.log.kafka")
    opened: EventLog = module.KafkaEventLog(hosts, namespace, _codec(), **options)
    return opened


def _known_options(address: Address, what: str, known: tuple[str, ...]) -> dict[str, Any]:
    """The options that an adapter takes; the engine's are left out."""
    engines = (GROUP_OPTION,) if what == "log" else ()
    options: dict[str, Any] = {}
    for key, value in sorted(address.options.items()):
        if key in engines:
            continue
        if key not in known:
            raise ConfigurationError(
                f"{what} URL {address.shown}: unknown option {key!r}; known: "
                f"{', '.join((*known, *engines)) or 'none'}"
            )
        most = _NUMBERS.get(key, 0)
        if most and not (_is_number(value, most) and int(value)):
            raise ConfigurationError(
                f"{what} URL {address.shown}: {key} is a number from 1 to {most}, not {value!r}"
            )
        options[key] = int(value) if most else value
    return options


def open_store(
    store: str | ProjectionStore | None, log: EventLog, *, reading: bool = False
) -> ProjectionStore | None:
    """The store of a URL, not opened yet; a SQLite or memory log's own where none is given.
    `reading`: as of `open_log`."""
    if _adapter_given("store", store, "checkpoint", "postgresql://user@host/database"):
        return cast(ProjectionStore, store)
    url = cast("str | None", store) or os.environ.get(STORE_VARIABLE)
    if not url:
        return _own_store(log, reading)
    address = parse_url(url, "store", STORE_SCHEMES)
    if address.scheme == "memory":
        from sagaz_es.storage.memory import MemoryProjectionStore

        return MemoryProjectionStore()
    if address.scheme == "sqlite":
        _known_options(address, "store", ())
        module = _adapter("sagaz_es.storage.sqlite")
        opened: ProjectionStore = module.SQLiteProjectionStore(_file(address), reading=reading)
        return opened
    module = _adapter("sagaz_es.storage.postgresql")
    schema = address.options.get("schema", "")
    if schema:  # ours, not the driver's: one database can hold the stores of several namespaces
        url = _without_option(url, "schema")
    served: ProjectionStore = module.PostgreSQLProjectionStore(url, schema=schema)
    return served


def _without_option(url: str, name: str) -> str:
    parts = urlsplit(url)
    options = [(key, value) for key, value in parse_qsl(parts.query) if key != name]
    return urlunsplit(parts._replace(query=urlencode(options)))


def _own_store(log: EventLog, reading: bool) -> ProjectionStore | None:
    path = getattr(log, "path", None)
    if path is not None:
        module = _adapter("sagaz_es.storage.sqlite")
        opened: ProjectionStore = module.SQLiteProjectionStore(path, reading=reading)
        return opened
    if getattr(log, "indexed", False):
        from sagaz_es.storage.memory import MemoryProjectionStore

        # Engines that share a memory log share what is projected from it.
        own: ProjectionStore | None = getattr(log, "own_store", None)
        if own is None:
            own = MemoryProjectionStore()
            log.own_store = own  # type: ignore[attr-defined]
        return own
    return None


def open_blobs(store: ProjectionStore | None, log: EventLog | None = None) -> BlobStore | None:
    """The blob store beside a store: large values are kept where the projections are, but not in
    memory beside a log in a file: they have to live as long as the events that refer to them."""
    kind = type(store).__name__
    of: Any = store  # its address, which is the adapter's own
    if kind == "MemoryProjectionStore":
        from sagaz_es.blobs.memory import MemoryBlobStore

        # Engines that share a memory log find each other's large values, too.
        shared: BlobStore | None = getattr(store, "own_blobs", None)
        if shared is None:
            path = getattr(log, "path", None)
            kept = _adapter("sagaz_es.blobs.sqlite").SQLiteBlobStore(path) if path else None
            shared = of.own_blobs = kept or MemoryBlobStore()
        return shared
    if kind == "SQLiteProjectionStore":
        opened: BlobStore = _adapter("sagaz_es.blobs.sqlite").SQLiteBlobStore(
            of.path, reading=of.reading
        )
        return opened
    if kind == "PostgreSQLProjectionStore":
        module = _adapter("sagaz_es.blobs.postgresql")
        served: BlobStore = module.PostgreSQLBlobStore(of.url, schema=of.schema)
        return served
    return None


def parse_url(url: str, what: str, known: tuple[str, ...]) -> Address:
    """Take a URL apart. Raises UnknownScheme, ConfigurationError; neither shows a password."""
    scheme, found, _ = url.partition("://")
    if not found:
        raise ConfigurationError(f"{what} URL: write scheme://…, with one of {', '.join(known)}")
    scheme = "postgresql" if scheme == "postgres" else scheme
    if scheme not in known:
        raise UnknownScheme(what, scheme, known)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"{what} URL with scheme {scheme!r}: {error}") from None
    if scheme not in ("sqlite", "memory") and "@" in parts.path + parts.fragment:
        # Taken apart at the wrong place, the password would be shown as a host or a path.
        raise ConfigurationError(
            f"{what} URL with scheme {scheme!r}: write the special characters of user and password "
            "percent-encoded, such as %2F for / and %23 for #"
        )
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    shown = f"{scheme}://{hosts}{parts.path}"
    addresses, path = tuple(host for host in hosts.split(",") if host), unquote(parts.path)
    if "\0" in path or not _is_unicode(url):
        raise ConfigurationError(f"{what} URL with scheme {scheme!r}: it is no text")
    if scheme in ("kafka", "postgresql"):
        for host in addresses:
            _check_host(host, what, scheme, shown)
    return Address(
        scheme,
        addresses,
        path,
        unquote(user),
        unquote(password),
        dict(parse_qsl(parts.query, keep_blank_values=True)),
        shown,
    )


def _check_host(host: str, what: str, scheme: str, shown: str) -> None:
    """Raises ConfigurationError for what no connection can be made to: drivers say it each in
    another way, and late."""
    parts = _HOST.fullmatch(host)
    if parts is None:
        raise ConfigurationError(
            f"{what} URL with scheme {scheme!r}: write a host as host:port, or [address]:port for "
            "an IPv6 address"
        )
    name, port = parts["name"], parts["port"]
    if port is not None and not (_is_number(port, 65535) and int(port)):
        # It may be a password that lacks its host: it is not shown.
        raise ConfigurationError(
            f"{what} URL with scheme {scheme!r}: a port is a number from 1 to 65535; write "
            f"{scheme}://user:password@host:port/…"
        )
    try:
        if "%2F" not in name.upper():  # else it is the path of a socket
            name.encode("idna")
    except UnicodeError:
        raise ConfigurationError(f"{what} URL {shown}: {name!r} is no host name") from None


def _has_port(host: str) -> bool:
    parts = _HOST.fullmatch(host)
    return parts is not None and parts["port"] is not None


def _is_number(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 11 and int(text) <= most


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _file(address: Address) -> str:
    """sqlite:///file.db is relative, sqlite:////abs/file.db absolute."""
    if address.hosts:
        raise ConfigurationError(
            f"{address.shown}: a SQLite URL has three slashes (sqlite:///file.db, relative) "
            "or four (sqlite:////absolute/file.db)"
        )
    path = address.path[1:]
    if not path:
        raise ConfigurationError(f"{address.shown}: which file? Write sqlite:///file.db")
    return path


def _codec() -> Any:
    from sagaz_es.codec.avro import AvroCodec

    return AvroCodec()


_EXTRAS = {
    "aiokafka": ("kafka", "the Kafka log"),
    "asyncpg": ("postgresql", "the PostgreSQL store"),
    "redis": ("redis", "the Redis store"),
    "obstore": ("s3", "the S3 store"),
}


def _adapter(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        extra, feature = _EXTRAS[missing]
        raise MissingDependencyError(missing, feature, extra) from error


def _default_engine(
    log: str | None, *, store: str | None, snapshots: Any, limits: Limits
) -> Engine:
    """For `Saga.run`. A snapshot storage given to the saga is the store of its log, if that is an
    embedded one and no other store is named."""
    config = EngineConfig(
        value_warn_bytes=limits.warn,
        value_inline_bytes=limits.inline,
        value_max_bytes=limits.most,
    )
    url = log_url(log)
    address = parse_url(url, "log", LOG_SCHEMES)
    if snapshots is None or store is not None or address.scheme == "kafka":
        return connect(url, store=store, config=config)
    if address.scheme == "memory" and not address.hosts:  # it has to be found again
        url = where = snapshots.log_url or f"memory://{uuid4().hex}"
    else:
        where = os.path.abspath(_file(address)) if address.scheme == "sqlite" else url
    snapshots.log_url = snapshots.log_url or where
    if snapshots.log_url != where:
        raise ConfigurationError(
            f"snapshot_storage: it keeps the snapshots of sagas in {snapshots.log_url}, and these "
            f"are in {where}: give them a storage of their own"
        )
    return connect(url, store=snapshots.engine_store(), config=config)


standalone.open_with(_default_engine)
