"""Whatever stands in a text that people or other programs wrote: it is read, or refused as the
parser's docstring says. Nothing else is raised, nothing hangs, nothing takes memory without end."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sagaz_es import SagaConfig
from sagaz_es.codec.frame import Confluent
from sagaz_es.codec.published import Published, published
from sagaz_es.codec.values import from_text, to_text
from sagaz_es.connect import LOG_SCHEMES, STORE_SCHEMES, open_log, open_store, parse_url
from sagaz_es.core.effects import load_effects
from sagaz_es.core.graph import parse_graph
from sagaz_es.core.history import parse_path, value_at
from sagaz_es.core.snapshot import parse_policy
from sagaz_es.engine.groups import read_note
from sagaz_es.errors import (
    ConfigurationError,
    InvalidOverride,
    LogReplaced,
    LogTruncated,
    SagaError,
    UndecodableRecord,
    UnknownRecordType,
    UnstorableValue,
)
from sagaz_es.log.memory import MemoryEventLog
from sagaz_es.reading.historical import as_point
from sagaz_es.reading.projection import verify_record
from sagaz_es.recording.importing import import_csv
from sagaz_es.sagas.fan_out import one_of
from sagaz_es_cli.options import JsonObject, JsonValue, Time, When
from sagaz_es_cli.overrides import parse_object, parse_overrides, parse_value
from sagaz_es_cli.times import parse_time
from tests.property.mutation import fuzzed, mutated_bytes, mutated_text, slowly

URLS = st.sampled_from(
    [
        "kafka://user:s3cret@host:9092,other/namespace?partitions=4&session_timeout_ms=3000",
        "kafka://[::1]:9092/ns?security_protocol=SASL_SSL&sasl_mechanism=PLAIN&group=mine",
        "sqlite:///some/file.db",
        "sqlite:////tmp/file.db",
        "memory://name",
        "postgresql://user:s3cret@host:5432/db?schema=mine&sslmode=disable",
    ]
)
OBJECTS = st.sampled_from(
    [
        '{"token":"new","n":[1,2,{"a":1.5}]}',
        '{"$decimal":"9.90"}',
        '{"when":{"$datetime":"2026-07-01T10:00:00+02:00[_fold=1]"},"$$x":{"$set":[1,"a"]}}',
        '{"$int":"123456789012345678901234567890"}',
        '{"$sealed":{"algorithm":"A","key_id":"k","ciphertext":"AAAA"}}',
        '{"$blob":"sha256:' + "0" * 64 + '"}',
        "token=new",
        "n=12",
    ]
)
TIMES = st.sampled_from(["2026-07-01T10:00:00Z", "2026-07-01", "12", "step:charge:after"])
CSV = "case,step,time,x\na,pay,2026-07-01T10:00:00,1\nb,pay,2026-07-01 10:00:00+02:00,\n"
CONFIG = """log: kafka://host/orders
storage: {type: postgresql, connection: {host: db, port: 5432, user: me, password: secret}}
broker: {url: "kafka://host"}
observability: {metrics: {enabled: true}}
value_warn_bytes: 1000
default_timeout: ${HOME:-12}
"""


@fuzzed
@given(mutated_text(URLS) | st.text(max_size=30))
@example("kafka://host:port/ns")
@example("kafka://host:99999/ns")
@example("kafka://a..b:9092/ns")
@example("kafka://user:s3cret")
@example("kafka://host/ns?partitions=²")
@example("kafka://host/ns?partitions=99999999999999999999")
@example("postgresql://host:port/db")
@example("sqlite:///a\0b")
def test_a_url_becomes_an_adapter_or_is_refused_without_its_password(url: str) -> None:
    try:
        parse_url(url, "log", LOG_SCHEMES)
        open_log(url or "memory://")
    except SagaError as error:
        assert "s3cret" not in str(error)
    try:
        parse_url(url, "store", STORE_SCHEMES)
        open_store(url or "memory://", MemoryEventLog())
    except SagaError as error:
        assert "s3cret" not in str(error)


@fuzzed
@given(mutated_text(OBJECTS))
def test_a_value_comes_back_or_is_undecodable(text: str) -> None:
    try:
        value = from_text(text)
    except UndecodableRecord:
        return
    try:
        assert to_text(from_text(to_text(value))) == to_text(value)
    except UnstorableValue:
        pass  # what is nested a little deeper than may be written


@fuzzed
@given(mutated_text(OBJECTS) | st.text(max_size=20))
@example('{"$decimal":"9.90"}')
def test_an_override_is_read_or_told_where_it_is_malformed(text: str) -> None:
    try:
        parse_overrides([text, "b=1"])
    except InvalidOverride:
        pass
    for parse in (parse_object, parse_value):
        try:
            parse(text)
        except ValueError:
            pass


@fuzzed
@given(mutated_text(TIMES))
@example("9" * 5000)
def test_a_time_or_point_is_read_or_refused(text: str) -> None:
    try:
        parse_time(text)
    except ValueError:
        pass
    try:
        When().convert(text, None, None)
    except click.BadParameter:
        pass


@fuzzed
@given(mutated_text(TIMES) | st.text(max_size=20))
@example("9" * 5000)
@example("0001-01-01T00:00:00+23:59")
@example("9999-12-31T23:59:59-23:59")
def test_a_point_or_a_time_that_a_program_gives_is_read_or_refused(text: str) -> None:
    try:
        assert as_point(text) is not None
    except ConfigurationError:
        pass
    try:
        Time().convert(text, None, None)
    except click.BadParameter:
        pass


@fuzzed
@given(mutated_text(OBJECTS) | st.text(max_size=20))
@example("[" * 5000)
@example("-1" + "0" * 5000)
def test_json_on_the_command_line_is_read_or_refused(text: str) -> None:
    if text.startswith("@") or text == "-":
        return  # a file, or what is piped in
    for kind in (JsonValue(), JsonObject()):
        try:
            kind.convert(text, None, None)
        except click.BadParameter:
            pass


@fuzzed
@given(
    mutated_text(st.sampled_from(["order.items[3].price", "['a.b'].c[\"d\"]"]))
    | st.text(max_size=20)
)
@example("a[" + "9" * 5000 + "]")
def test_a_path_into_a_context_leads_somewhere_or_nowhere(text: str) -> None:
    try:
        parse_path(text)
    except ValueError:
        pass
    value_at({"order": {"items": [{}, {"price": 3}]}, "a.b": {"c": {"d": 1}}}, text)


@fuzzed
@given(mutated_text(st.just("payment*12")) | st.text(max_size=20))
@example("payment*" + "9" * 5000)
@example("payment*²")
def test_a_sagas_name_says_what_it_starts_or_nothing(text: str) -> None:
    found = one_of(text)
    assert found is None or f"{found[0]}*{found[1]}" == text


@fuzzed
@given(mutated_text(st.just("0/StepStarted order-17 3")) | st.text(max_size=20))
@example("9" * 30 + "/x")
@example("²/x")
def test_a_place_in_the_log_that_is_damaged_is_taken_to_have_stood_or_refused(text: str) -> None:
    async def verified() -> None:
        log = MemoryEventLog(1)
        await log.open()
        await verify_record(log, 0, text)

    try:
        asyncio.run(verified())
    except (LogReplaced, LogTruncated):
        pass


@slowly
@given(mutated_bytes(st.just(b"SAGAZ_ES_LOG=kafka://h/o\nexport SAGAZ_METRICS='no'\n")))
@example(b"SAGAZ_STORAGE_URL=\xff\n")
@example(b"SAGAZ_STORAGE_URL=redis://[::1\n")
def test_a_dotenv_file_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        Path(".env").write_bytes(data)
        try:
            SagaConfig.from_env()
        except ConfigurationError:
            pass


@fuzzed
@given(mutated_text(OBJECTS) | st.text(max_size=20))
def test_texts_of_the_log_are_read_or_mean_nothing(text: str) -> None:
    read_note(text)
    parse_policy(text.encode(errors="replace").decode())  # no record holds a lone surrogate


@fuzzed
@given(st.text(max_size=30) | mutated_text(st.just('[{"name":"a"},{"name":"b"}]')))
def test_a_confluent_schema_that_is_none_of_ours_is_unknown(text: str) -> None:
    class Registry:
        def id_of(self, schema: Published) -> int:
            return 1

        def schema_of(self, schema_id: int) -> str | None:
            return text

    with pytest.raises(UnknownRecordType):
        Confluent(Registry()).find(b"\0\0\0\0\1rest")


@fuzzed
@given(mutated_text(st.sampled_from([v[-1].text for v in published().values()])))
def test_a_damaged_schema_in_a_registry_is_known_or_unknown(text: str) -> None:
    class Registry:
        def id_of(self, schema: Published) -> int:
            return 1

        def schema_of(self, schema_id: int) -> str | None:
            return text

    try:
        Confluent(Registry()).find(b"\0\0\0\0\1rest")
    except UnknownRecordType:
        pass


@slowly
@given(mutated_text(st.just(CSV)) | st.text(max_size=50))
def test_a_csv_file_is_imported_or_its_rows_are_told(text: str) -> None:
    asyncio.run(_imported(text.encode(errors="surrogatepass")))


@slowly
@given(st.binary(max_size=100).map(CSV.encode().__add__))
def test_any_bytes_behind_good_rows_are_told(data: bytes) -> None:
    asyncio.run(_imported(data))


async def _imported(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write(data)
        file.flush()
        log = MemoryEventLog(1)
        await log.open()
        try:
            await import_csv(
                log,
                file.name,
                saga_name="order",
                saga_id_column="case",
                step_column="step",
                time_column="time",
                infer_types=True,
            )
        except ConfigurationError:
            pass


@slowly
@given(mutated_text(st.just(CONFIG)) | st.text(max_size=30), st.sampled_from([".yaml", ".json"]))
@example("log: [", ".yaml")
@example("default_timeout: soon", ".yaml")
@example("default_timeout: .nan", ".yaml")
@example("log: 12", ".yaml")
@example("storage: 12", ".yaml")
@example("broker: {url: 'kafka://[::1'}", ".yaml")
@example("observability: yes", ".yaml")
@example("log: &a [*a]", ".yaml")
@example("[" * 100_000, ".json")
def test_a_settings_file_is_read_or_refused(text: str, suffix: str) -> None:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(text.encode(errors="surrogatepass"))
        file.flush()
        try:
            SagaConfig.from_file(Path(file.name))
        except SagaError:
            pass


def test_the_parsers_of_what_we_wrote_ourselves_are_those_of_msgspec() -> None:
    """Graph and effects are judged before they are parsed (`core.fold`), so these may raise."""
    assert parse_graph("").steps == ()
    assert load_effects("") == ()
