"""Confluent's format, and a client of its registry against a stand-in that speaks its API.

The stand-in is a real HTTP server with the three calls that are used; a real registry comes with
the tests that need services.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import pytest
from msgspec.structs import replace

from sagaz_es.codec.avro import AvroCodec
from sagaz_es.codec.frame import Confluent
from sagaz_es.codec.published import published
from sagaz_es.codec.registry import SchemaRegistry
from sagaz_es.codec.shapes import TYPES
from sagaz_es.core.events import Event, StepCompleted, StepStarted
from sagaz_es.errors import (
    RegistryRefused,
    UndecodableRecord,
    UnknownRecordType,
    UnknownScheme,
    Unreachable,
)

TOPIC = "orders.saga-events"
EVENT = Event("order-17", "order", bytes(16), 0, 7, 1_760_000_000_000_000, StepStarted("charge", 2))


class StandIn(ThreadingHTTPServer):
    """A registry in memory. Ids count up from 100,000; equal texts have one id."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.subjects: dict[str, set[int]] = {}
        self.schemas: dict[int, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.authorization: str | None = None
        self.answer: tuple[int, bytes] | None = None  # whatever is asked
        self.garbled = self.slow = False
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, text: str, **more: Any) -> int:
        for known, schema in self.schemas.items():
            if schema["schema"] == text:
                return known
        schema_id = 100_000 + len(self.schemas)
        self.schemas[schema_id] = {"schema": text, **more}
        return schema_id

    def reply(self, path: list[str], body: dict[str, Any]) -> tuple[int, Any]:
        match path:
            case ["subjects", subject, "versions"]:
                schema_id = self.add(body["schema"])
                self.subjects.setdefault(subject, set()).add(schema_id)
                return 200, {"id": schema_id}
            case ["subjects", subject]:
                for schema_id in self.subjects.get(subject, ()):
                    if self.schemas[schema_id]["schema"] == body["schema"]:
                        return 200, {"id": schema_id, "subject": subject, "version": 1}
            case ["schemas", "ids", schema_id] if int(schema_id) in self.schemas:
                return 200, self.schemas[int(schema_id)]
        return 404, {"error_code": 40403, "message": "not found"}


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(f"{self.command} {self.path}")
        server.authorization = self.headers.get("Authorization")
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if server.garbled:
            self.wfile.write(b"220 mail ready\r\n\r\n")
            return
        if server.slow and server.closing.wait(2):
            return
        if server.answer is not None:
            status, data = server.answer
        else:
            parts = [unquote(part) for part in self.path.removeprefix("/api").split("/")[1:]]
            status, reply = server.reply(parts, body)
            data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("no_proxy", "*")
    with StandIn() as stand_in:
        thread = threading.Thread(target=stand_in.serve_forever, args=(0.01,))
        thread.start()
        yield stand_in
        stand_in.closing.set()
        stand_in.shutdown()
        thread.join()


@pytest.fixture
def codec(server: StandIn) -> AvroCodec:
    return AvroCodec(Confluent(SchemaRegistry(server.url, TOPIC)))


def test_all_schemas_are_registered_at_once_each_under_topic_and_name(
    server: StandIn, codec: AvroCodec
) -> None:
    assert set(server.subjects) == {f"{TOPIC}-sagaz.{cls.__name__}" for cls in TYPES}
    assert len(server.asked) == len(TYPES)
    started = server.subjects[f"{TOPIC}-sagaz.StepStarted"]
    assert [server.schemas[schema_id]["schema"] for schema_id in started] == [
        published()["StepStarted"][-1].text
    ]


def test_a_record_is_a_zero_byte_the_id_and_the_same_fields(
    server: StandIn, codec: AvroCodec
) -> None:
    (schema_id,) = server.subjects[f"{TOPIC}-sagaz.StepStarted"]
    value = codec.encode(EVENT)
    assert value == b"\0" + schema_id.to_bytes(4, "big") + AvroCodec().encode(EVENT)[10:]


def test_events_come_back_and_the_registry_is_not_asked_again(
    server: StandIn, codec: AvroCodec
) -> None:
    server.asked.clear()
    for event in (EVENT, replace(EVENT, fact=StepCompleted("charge"), replay_id="replay-1")):
        assert codec.decode(codec.encode(event), replay_id=event.replay_id) == event
    assert server.asked == []


def test_a_second_process_gets_the_same_ids_from_the_registry(
    server: StandIn, codec: AvroCodec
) -> None:
    for register in (True, False):
        registry = SchemaRegistry(server.url, TOPIC, register=register)
        assert AvroCodec(Confluent(registry)).encode(EVENT) == codec.encode(EVENT)


def test_without_leave_to_register_the_schemas_must_be_there(server: StandIn) -> None:
    with pytest.raises(RegistryRefused, match=r"sagaz\.SagaStarted: it is not registered"):
        AvroCodec(Confluent(SchemaRegistry(server.url, TOPIC, register=False)))
    assert server.subjects == {}


def test_records_from_before_the_registry_are_read(codec: AvroCodec) -> None:
    for _ in range(2):
        assert codec.decode(AvroCodec().encode(EVENT)) == EVENT


def test_a_schema_with_other_docs_is_ours_and_asked_for_once(
    server: StandIn, codec: AvroCodec
) -> None:
    text = published()["StepStarted"][-1].text.replace('"doc": "', '"doc": "In short: ')
    schema_id = server.add(text)
    value = b"\0" + schema_id.to_bytes(4, "big") + codec.encode(EVENT)[5:]
    server.asked.clear()
    for _ in range(2):
        assert codec.decode(value) == EVENT
    assert server.asked == [f"GET /schemas/ids/{schema_id}"]


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ('{"type":"record","name":"Other","fields":[]}', {}),
        ('{"type":"nonsense"}', {}),
        ("not JSON", {}),
        ('{"type":"record"}', {}),
        ('{"size":1}', {}),
        ('{"type":"fixed","name":"a b","size":1}', {}),
        ("[]", {}),
        ("1", {}),
        ("null", {}),
        ('{"type":' * 10_000 + '"int"' + "}" * 10_000, {}),
        ('syntax = "proto3";', {"schemaType": "PROTOBUF"}),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_record_of_another_schema_is_of_unknown_type(
    server: StandIn, codec: AvroCodec, text: str, more: dict[str, Any]
) -> None:
    schema_id = server.add(text, **more)
    server.asked.clear()
    for _ in range(2):
        with pytest.raises(UnknownRecordType):
            codec.decode(b"\0" + schema_id.to_bytes(4, "big") + b"abc")
    assert len(server.asked) == 1


def test_a_record_whose_id_nobody_knows_is_of_unknown_type(codec: AvroCodec) -> None:
    with pytest.raises(UnknownRecordType, match="schema id 7 is not known to the registry"):
        codec.decode(b"\0\0\0\0\x07abc")


def test_an_id_that_reaches_the_registry_later_is_found_then(server: StandIn) -> None:
    registry = SchemaRegistry(server.url, TOPIC)
    assert registry.schema_of(100_000) is None
    assert server.add('"int"') == 100_000
    assert registry.schema_of(100_000) == '"int"'


@pytest.mark.parametrize("value", [b"", b"\0\0", b"{}", b"\xc3\x01"])
def test_bytes_without_a_header_are_undecodable(codec: AvroCodec, value: bytes) -> None:
    with pytest.raises(UndecodableRecord) as caught:
        codec.decode(value)
    assert type(caught.value) is UndecodableRecord


# A record must not be taken for poison because the registry is away.
def test_a_registry_that_is_gone_is_unreachable(server: StandIn, codec: AvroCodec) -> None:
    server.server_close()
    server.shutdown()
    with pytest.raises(Unreachable, match=f"schema registry at {server.url} cannot be reached"):
        codec.decode(b"\0\0\0\0\x07abc")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://nobody.invalid"])
def test_a_registry_that_was_never_there_is_unreachable(url: str) -> None:
    with pytest.raises(Unreachable):
        SchemaRegistry(url, TOPIC).schema_of(7)


def test_a_registry_that_does_not_answer_in_time_is_unreachable(server: StandIn) -> None:
    schema_id = server.add('"int"')
    server.slow = True
    with pytest.raises(Unreachable, match="timed out"):
        SchemaRegistry(server.url, TOPIC, timeout_s=0.05).schema_of(schema_id)


def test_a_server_that_is_no_registry_at_all_is_unreachable(server: StandIn) -> None:
    server.garbled = True
    with pytest.raises(Unreachable, match="220 mail ready"):
        SchemaRegistry(server.url, TOPIC).schema_of(7)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        ((409, b'{"message":"incompatible"}'), '409 {"message":"incompatible"}'),
        ((401, b""), "401"),
        ((500, b"\xff"), "500"),
        ((200, b"<html>"), "the answer is no JSON object"),
        ((200, b"[]"), "the answer is no JSON object"),
        ((200, b"{}"), "None is no id"),
        ((200, b'{"id":-1}'), "-1 is no id"),
        ((200, b'{"id":4294967296}'), "4294967296 is no id"),
        ((404, b"{}"), "it is not registered"),
    ],
)
def test_a_registry_that_does_not_agree_is_quoted(
    server: StandIn, answer: tuple[int, bytes], detail: str
) -> None:
    server.answer = answer
    registry = SchemaRegistry(server.url.replace("//", "//anna:secret@"), TOPIC)
    with pytest.raises(RegistryRefused) as caught:
        AvroCodec(Confluent(registry))
    assert detail in caught.value.detail
    assert str(caught.value).startswith(
        f"the schema registry at {server.url} refused the schema {TOPIC}-sagaz.SagaStarted: "
    )
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8081", "kafka://localhost", ""])
def test_a_url_that_is_not_http_is_refused(url: str) -> None:
    with pytest.raises(UnknownScheme, match="known: http://, https://"):
        SchemaRegistry(url, TOPIC)


def test_user_password_and_path_of_the_url_are_used(server: StandIn) -> None:
    url = server.url.replace("//", "//anna:p%40ss@") + "/api/"
    registry = SchemaRegistry(url, TOPIC)
    assert registry.address == f"{server.url}/api"
    registry.id_of(published()["StepStarted"][-1])
    assert server.asked == [f"POST /api/subjects/{TOPIC}-sagaz.StepStarted/versions"]
    assert server.authorization == "Basic YW5uYTpwQHNz"
