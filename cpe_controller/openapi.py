"""What is the API, in words that programs read?

OpenAPI 3.1 of both ports, made from the types that the server itself decodes with. Served at /v1/openapi.json and
checked in as docs/openapi.json; a test holds the two together.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import msgspec

from cpe_controller.answers import STATUS
from cpe_controller.enrolment import Enrolling
from cpe_controller.reports import Report

_REF = "#/components/schemas/{name}"
_PEM = {"type": "string", "description": "PEM"}
_SITES = [{"url": "https://CONTROLLER:8443", "description": "sites, with their certificates"}]
_NEW = [{"url": "https://CONTROLLER:8444", "description": "new sites, without certificates"}]


@cache
def text() -> str:
    return json.dumps(document(), indent=1) + "\n"


def document() -> dict[str, Any]:
    _, components = msgspec.json.schema_components((Enrolling, Report), ref_template=_REF)
    components["Refusal"] = {
        "type": "object",
        "required": ["error", "code"],
        "properties": {
            "error": {"type": "string", "description": "for people"},
            "code": {"type": "string", "enum": sorted(STATUS)},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cpe-controller",
            "version": "1",
            "description": "Mutual TLS: the site is the one that the client's certificate names. /v1/ca and /v1/enroll "
            "are on a port of their own, for boxes that have no certificate yet.",
        },
        "servers": _SITES,
        "paths": {
            "/v1/document": {"get": _document()},
            "/v1/changes": {"get": _changes()},
            "/v1/status": {"post": _status()},
            "/v1/certificate": {"post": _certificate()},
            "/v1/openapi.json": {"get": _self()},
            "/v1/ca": {"servers": _NEW, "get": _ca()},
            "/v1/enroll": {"servers": _NEW, "post": _enroll()},
        },
        "components": {"schemas": components},
    }


def _document() -> dict[str, Any]:
    headers = {name: {"schema": {"type": "string"}} for name in ("ETag", "Cpe-Signature", "Cpe-Key-Id")}
    return {
        "operationId": "document",
        "summary": "The site's document; the Ed25519 signature is over 'cpe-document-v1\\n' and the exact bytes.",
        "parameters": [
            _header("If-None-Match", "The ETag of the document that the client has."),
            _header("Cpe-Schemas", "The document schemas that the agent speaks, as in '1, 2'."),
        ],
        "responses": {
            "200": {"description": "the document", "headers": headers, "content": _json({"type": "object"})},
            "304": {"description": "the client has it already"},
            **_refusals(400, 403, 404, 503),
        },
    }


def _changes() -> dict[str, Any]:
    number = {"type": "number", "minimum": 0, "maximum": 999999999}
    line = {
        "type": "object",
        "properties": {
            "epoch": {"type": "integer"},
            "version": {"type": "integer"},
            "heartbeat": {"const": True},
            "report": {"const": True, "description": "say how the site fares now: POST /v1/status"},
            "document": {"type": "string", "description": "the document's exact bytes, as text"},
            "signature": {"type": "string"},
            "key_id": {"type": "string"},
        },
    }
    return {
        "operationId": "changes",
        "summary": "One JSON object per line: which document is in force, now and whenever it changes, or a heartbeat; "
        "any of them may ask for a report. "
        "A held stream; with `after` or `wait` one line, when there is something after, or when the wait is over.",
        "parameters": [
            _query("after", {"type": "string", "pattern": "^[0-9]{1,15}\\.[0-9]{1,15}$"}, "EPOCH.VERSION"),
            _query("wait", number, "seconds; at most 55 are waited"),
            _query("documents", number, "documents of up to so many bytes come with their lines"),
        ],
        "responses": {
            "200": {"description": "lines", "content": {"application/x-ndjson": {"schema": line}}},
            **_refusals(400, 403),
        },
    }


def _status() -> dict[str, Any]:
    return {
        "operationId": "status",
        "summary": "How the site fares: at a change, at most every 2 s, every 60 s, and when a line of changes asks.",
        "requestBody": _body("Report"),
        "responses": {"204": {"description": "heard"}, **_refusals(400, 403, 413, 429)},
    }


def _certificate() -> dict[str, Any]:
    asked = {"type": "object", "required": ["csr"], "properties": {"csr": _PEM}}
    given = {
        "type": "object",
        "required": ["certificate", "cas"],
        "properties": {"certificate": _PEM, "cas": {"type": "array", "items": _PEM}},
    }
    return {
        "operationId": "certificate",
        "summary": "The next certificate of this site, for the key of the PKCS#10 request; names in it are ignored.",
        "requestBody": {"required": True, "content": _json(asked)},
        "responses": {
            "200": {"description": "the chain, the site's own first", "content": _json(given)},
            **_refusals(400, 403, 413, 429),
        },
    }


def _self() -> dict[str, Any]:
    return {
        "operationId": "openapi",
        "summary": "This description.",
        "responses": {"200": {"description": "OpenAPI 3.1", "content": _json({"type": "object"})}},
    }


def _ca() -> dict[str, Any]:
    return {
        "operationId": "ca",
        "summary": "The network's root, to be believed only if its SHA-256 is the token's.",
        "responses": {
            "200": {"description": "PEM", "content": {"application/x-pem-file": {"schema": _PEM}}},
            **_refusals(429),
        },
    }


def _enroll() -> dict[str, Any]:
    key = {"type": "object", "properties": {"id": {"type": "string"}, "key": {"type": "string"}}}
    given = {
        "type": "object",
        "required": ["site", "network", "certificate", "cas", "signing_keys", "controllers", "now"],
        "properties": {
            "site": {"type": "string"},
            "network": {"type": "string"},
            "certificate": _PEM,
            "cas": {"type": "array", "items": _PEM},
            "signing_keys": {"type": "array", "items": key},
            "controllers": {"type": "array", "items": {"type": "string"}},
            "now": {"type": "string", "format": "date-time"},
        },
    }
    return {
        "operationId": "enroll",
        "summary": "A site's first certificate, for a token's secret. The same key gets the same answer again.",
        "requestBody": _body("Enrolling"),
        "responses": {
            "200": {"description": "what the site needs", "content": _json(given)},
            **_refusals(400, 403, 404, 409, 410, 413, 429, 503),
        },
    }


def _refusals(*statuses: int) -> dict[str, Any]:
    found = {}
    for status in statuses:
        codes = sorted(code for code, its in STATUS.items() if its == status) or ["busy"]
        found[str(status)] = {"description": ", ".join(codes), "content": _json({"$ref": _REF.format(name="Refusal")})}
        if status in (429, 503):
            retry = {"schema": {"type": "integer"}, "description": "seconds"}
            found[str(status)]["headers"] = {"Retry-After": retry}
    return found


def _body(name: str) -> dict[str, Any]:
    return {"required": True, "content": _json({"$ref": _REF.format(name=name)})}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _header(name: str, about: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": about, "schema": {"type": "string"}}


def _query(name: str, schema: dict[str, Any], about: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": about, "schema": schema}
