"""The API is what its description says: checked in, and tried with what nobody in his right mind would send.

`REQUESTS=2000` tries so many of each operation (150).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send

from cpe_controller import api, enrolment, openapi, setup
from cpe_controller.feed import Feed
from cpe_controller.limits import Limits, Rate
from cpe_controller.reports import Reports
from tests.controller.conftest import EXAMPLE, Served

DOCUMENTED = EXAMPLE.parents[1] / "docs" / "openapi.json"
REQUESTS = int(os.environ.get("REQUESTS", "150"))
UNLIMITED = Rate(burst=1_000_000, every_s=0.000001)
OPERATIONS = [
    (path, method) for path, its in openapi.document()["paths"].items() for method in its if method != "servers"
]


def test_what_is_checked_in_is_what_is_served(served: Served) -> None:
    assert DOCUMENTED.read_text() == openapi.text(), "write it anew: see docs/CONTROLLER.md"
    with served.client("van-1") as client:
        assert client.get("/v1/openapi.json").text == openapi.text()


class _Certified:
    """The app as a site with a certificate meets it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = (("DNS", "van-1.blood.cpe"),)
        scope["state"] = {"certified_names": names, "certified_until": "Jun  1 12:00:00 2031 GMT", "transport": None}
        await self._app(scope, receive, send)


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, ASGIApp]]:
    """Of sites (True) and of new ones, without limits, so that every request is looked at."""
    state = tmp_path_factory.mktemp("openapi") / "state"
    setup.init_state(state, "blood", ["127.0.0.1"])
    setup.apply(state, EXAMPLE)
    with setup.opened(state) as (store, told), pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "REPORTS", (UNLIMITED, UNLIMITED))
        patch.setattr(api, "CERTIFICATES", (UNLIMITED, UNLIMITED))

        def vouched() -> enrolment.Vouching:
            return setup.vouching(state, told)

        serves = api.Serves(store, Feed(store), Reports(store), vouched, "blood", 0.1)
        yield {
            True: _Certified(api.make_app(serves)),
            False: enrolment.make_app(store, vouched, Limits(UNLIMITED, UNLIMITED)),
        }


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_breaks_the_server(apps: dict[bool, ASGIApp], path: str, method: str) -> None:
    schema = schemathesis.openapi.from_dict(openapi.document())
    operation = schema[path][method]
    app = apps[path not in ("/v1/ca", "/v1/enroll")]
    codes: set[int] = set()

    @settings(max_examples=REQUESTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        case=st.one_of(
            operation.as_strategy(),
            operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE),
        ),
        raw=st.none() | st.binary(max_size=300),
    )
    def tried(case: Any, raw: bytes | None) -> None:
        if path == "/v1/changes":
            case.query = {**(case.query or {}), "wait": "0"} if not case.query else case.query | {"wait": "0"}
        request = requests.Request(**case.as_transport_kwargs(base_url="http://controller")).prepare()
        body = raw if raw is not None and method == "post" else request.body
        answer = asyncio.run(_send(app, request, body))
        codes.add(answer.status_code)
        assert answer.status_code < 500, answer.text
        assert str(answer.status_code) in operation.definition.raw["responses"], (answer.status_code, answer.text)
        if answer.status_code >= 400:
            assert set(answer.json()) == {"error", "code"}

    tried()
    assert codes


async def _send(app: ASGIApp, request: requests.PreparedRequest, body: Any) -> httpx.Response:
    content = body.encode() if isinstance(body, str) else body
    headers = {k: v for k, v in request.headers.items() if k.lower() not in ("content-length", "transfer-encoding")}
    encoded = [
        (name.encode("latin-1", "replace"), str(value).encode("latin-1", "replace")) for name, value in headers.items()
    ]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, timeout=20) as client:
        return await client.request(request.method or "GET", str(request.url), content=content, headers=encoded)
