"""A schema registry with Confluent's HTTP API (Apicurio, Karapace and Redpanda have it, too).

Every call waits for an answer, so make the codec in a thread: it asks once for each schema. Later
only an id that nobody of this version has registered makes a decode wait, once.
"""

from __future__ import annotations

import json
from base64 import b64encode
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

import msgspec

from sagaz_es.codec.published import Published
from sagaz_es.errors import RegistryRefused, UnknownScheme, Unreachable

CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
LIMIT = 1 << 20
"""Bytes of an answer; the largest of our schemas has 4 KB."""

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class SchemaRegistry:
    """The ids of a topic's schemas, under subjects `<topic>-<record>` (TopicRecordNameStrategy).

    `url` may hold user and password, and the path under which the API stands. With `register` off
    the schemas have to be there; registered ones are only looked up.
    """

    def __init__(
        self, url: str, topic: str, *, register: bool = True, timeout_s: float = 5.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            raise UnknownScheme("schema registry", parts.scheme, ("http", "https"))
        self.address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._topic, self._register, self._timeout_s = topic, register, timeout_s
        self._headers = {"Accept": CONTENT_TYPE, "Content-Type": CONTENT_TYPE}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
        self._ids: dict[bytes, int] = {}
        self._texts: dict[int, str] = {}

    def id_of(self, schema: Published) -> int:
        """See Registry. The registry gives the same id each time, and checks compatibility."""
        if schema.fingerprint not in self._ids:
            subject = f"{self._topic}-{schema.parsed['name']}"
            path = f"/subjects/{quote(subject)}" + ("/versions" if self._register else "")
            answer = self._ask(f"the schema {subject}", path, {"schema": schema.text})
            if answer is None:
                detail = "it is not registered"
                raise RegistryRefused(self.address, f"the schema {subject}", detail)
            schema_id = answer.get("id")
            if type(schema_id) is not int or not 0 <= schema_id < 2**32:
                detail = f"{schema_id!r} is no id"
                raise RegistryRefused(self.address, f"the schema {subject}", detail)
            self._ids[schema.fingerprint] = schema_id
        return self._ids[schema.fingerprint]

    def schema_of(self, schema_id: int) -> str | None:
        """See Registry. Only what was found is remembered: an id may be on its way to a replica."""
        if schema_id not in self._texts:
            answer = self._ask(f"schema id {schema_id}", f"/schemas/ids/{schema_id}") or {}
            text = answer.get("schema")
            if type(text) is not str:
                return None
            self._texts[schema_id] = text
        return self._texts[schema_id]

    def _ask(self, what: str, path: str, body: Any = None) -> dict[str, Any] | None:
        """The object that is answered; None if there is nothing of this name."""
        data = json.dumps(body).encode() if body is not None else None
        try:
            status, answer = self._send(Request(self.address + path, data, self._headers))
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Unreachable("the schema registry", self.address, str(reason)) from None
        if status == 404:
            return None
        if status != 200:
            detail = f"{status} {answer.decode(errors='replace')[:500]}"
            raise RegistryRefused(self.address, what, detail)
        try:
            return _decode_object(answer)
        except msgspec.MsgspecError:
            raise RegistryRefused(self.address, what, "the answer is no JSON object") from None

    def _send(self, request: Request) -> tuple[int, bytes]:
        try:
            with urlopen(request, timeout=self._timeout_s) as response:
                return response.status, response.read(LIMIT)
        except HTTPError as error:
            with error:
                return error.code, error.read(LIMIT)
