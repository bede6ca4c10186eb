"""Names of sagaz that have no like here, or not yet, and what to use instead."""

from __future__ import annotations

_LOG = "the log keeps sagas: connect(log=URL), SagaConfig(log=URL) or SAGAZ_ES_LOG"
_OUTBOX = "the log is the outbox: subscribe to its events topic"
_STANDARD = "use the standard library's logging"
_ENVIRONMENT = "use os.environ; SagaConfig.from_file replaces ${VAR:-default}"
_WEB = "call `await engine.start(…)` in a view of your own"
_TRIGGER = "start sagas with `await engine.start(Saga, context, saga_id=key)`"
_METRICS = "use MetricsSagaListener, TracingSagaListener and LoggingSagaListener"

_BY_REASON = {
    _OUTBOX: "OutboxSagaListener OutboxWorker OutboxEvent ConsumerInbox OptimisticPublisher "
    "KafkaBroker RabbitMQBroker RedisBroker create_broker "
    "publish_on_success publish_on_failure publish_on_compensate",
    _LOG: "SagaStorage RedisSagaStorage PostgreSQLSagaStorage SQLiteSagaStorage StorageManager "
    "create_storage create_storage_manager transfer_data",
    "snapshots in files: use a SQLite log, which keeps them": "FilesystemSnapshotStorage",
    _STANDARD: "get_logger set_logger NullLogger",
    _ENVIRONMENT: "EnvManager get_env load_env substitute",
    _WEB: "SagaFlask create_webhook_router sagaz_startup sagaz_shutdown sagaz_webhook_view "
    "get_webhook_status",
    _TRIGGER: "CronScheduler BrokerTriggerConsumer",
    _METRICS: "PrometheusMetrics SagaMetrics SagaTracer setup_tracing setup_saga_logging",
    "see the examples folder of the repository": "cli_examples",
}

_NO_STORE = "snapshots are kept by the log's store: SQLite, or PostgreSQLSnapshotStorage"
_BY_LATER = {
    f"Redis stores come with a later release; {_NO_STORE}": "RedisSnapshotStorage",
    f"S3 stores come with a later release; {_NO_STORE}": "S3SnapshotStorage",
    "S3 stores come with a later release; large values are kept beside the store by themselves": (
        "S3ExternalStorage"
    ),
    "compliance (encryption, access, erasure) comes with a later release; until then nothing is "
    "encrypted": "ComplianceManager ComplianceConfig AccessLevel",
}

LATER = {name: reason for reason, names in _BY_LATER.items() for name in names.split()}
"""Name -> what there is until it comes."""

DROPPED = {name: reason for reason, names in _BY_REASON.items() for name in names.split()}
"""Name -> what to use instead."""


def why(name: str) -> str:
    """The sentence for somebody who imports a name; empty: it was never one of sagaz."""
    if name in LATER:
        return f"{name}: {LATER[name]}; see docs/migrating-from-sagaz.md"
    reason = DROPPED.get(name)
    if reason is None:
        return ""
    return f"{name} of sagaz does not exist in sagaz_es; {reason}; see docs/migrating-from-sagaz.md"
