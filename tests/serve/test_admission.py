"""Admission: keys, sizes, time limits, foreign sites, and the security headers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import pytest
from plain_runtime import PlainRuntime
from pydantic import SecretStr
from serve_client import client_of, encoded
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from lookalike.serve.admission import SECURITY_HEADERS, AdmissionGuard
from lookalike.serve.app import create_app, create_service_app
from lookalike.serve.auth import permission_for
from lookalike.serve.service import Service
from lookalike.serve.settings import Settings

READ, WRITE = "r" * 20, "w" * 20
JPEG = {"Content-Type": "image/jpeg"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def locked(settings: Settings, runtime: PlainRuntime) -> Iterator[TestClient]:
    """The service with both keys."""
    with client_of(replace(settings, read_key=SecretStr(READ), write_key=SecretStr(WRITE)), runtime) as client:
        yield client


def routes_of(settings: Settings) -> list[tuple[str, str]]:
    """Every method and path of the application: what OpenAPI knows, and what it does not."""
    layers: Any = create_service_app(Service(settings))
    while not hasattr(layers, "openapi"):
        layers = layers._app
    known = [(method.upper(), path) for path, item in layers.openapi()["paths"].items() for method in item]
    hidden = [("GET", path) for path in ("/", "/docs", "/page/app.js", "/openapi.json", "/metrics")]
    return [(method, path.replace("{id}", "3")) for method, path in {*known, *hidden}]


def test_every_route_requires_the_right_key(locked: TestClient, settings: Settings) -> None:
    routes = routes_of(settings)
    assert len(routes) >= 10
    for method, path in routes:
        permission = permission_for(method, path)
        answers = {
            name: locked.request(method, path, headers=headers).status_code
            for name, headers in {
                "none": {}, "wrong": bearer("x" * 20), "read": bearer(READ), "write": bearer(WRITE),
                "basic": {"Authorization": f"Basic {READ}"}, "empty": {"Authorization": "Bearer"},
            }.items()
        }  # fmt: skip
        refused = {name for name, status in answers.items() if status in (401, 403)}
        expected = {
            "open": set(),
            "read": {"none", "wrong", "basic", "empty"},
            "write": {"none", "wrong", "basic", "empty", "read"},
        }[permission]
        assert refused == expected, (method, path, answers)
        assert permission == "write" or method != "DELETE"
    assert permission_for("POST", "/v1/items") == permission_for("DELETE", "/v1/items/3") == "write"


def test_unknown_paths_require_a_key_too(locked: TestClient) -> None:
    assert locked.get("/v2/secret").status_code == 401
    assert locked.get("/v2/secret", headers=bearer(READ)).status_code == 404


def test_errors_never_show_a_key(locked: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    missing = locked.get("/v1/about")
    assert missing.status_code == 401
    assert missing.headers["www-authenticate"] == "Bearer"
    assert "Bearer KEY" in missing.json()["error"]["remedy"]
    wrong = locked.get("/v1/about", headers=bearer("secret-of-mine-12345"))
    reader = locked.delete("/v1/items/3", headers=bearer(READ))
    assert reader.status_code == 403
    for text in (missing.text, wrong.text, reader.text, caplog.text):
        assert not any(key in text for key in (READ, WRITE, "secret-of-mine"))


def test_with_only_a_read_key_nobody_writes(settings: Settings, runtime: PlainRuntime) -> None:
    with client_of(replace(settings, read_key=SecretStr(READ)), runtime) as client:
        answer = client.post("/v1/items", content=encoded(), headers={**JPEG, **bearer(READ)})
        assert answer.status_code == 403
        assert "write key" in answer.json()["error"]["remedy"]


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_above_the_limit_is_not_read(settings: Settings, runtime: PlainRuntime, announced: bool) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield bytes(2**20)

    with client_of(replace(settings, max_body_bytes=2**21), runtime) as client:
        content: Any = bytes(2**21 + 1) if announced else endless()
        answer = client.post("/v1/predict", content=content, headers=JPEG)
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert answer.json()["error"]["limit"] == {"name": "max_body_bytes", "value": 2**21}


async def answered(guard: AdmissionGuard, scope: dict[str, Any], receive: Receive) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "POST", "path": "/v1/embed", "headers": [(b"host", b"localhost")], **scope}
    await guard(whole, receive, send)
    return sent


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await PlainTextResponse(body)(scope, receive, send)


def test_a_slow_body_times_out_and_frees_its_place() -> None:
    guard = AdmissionGuard(echo, Settings(receive_seconds=0.1))

    async def slow() -> Any:
        await asyncio.sleep(0.06)
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    async def whole() -> Any:
        return {"type": "http.request", "body": b"abc", "more_body": False}

    async def both() -> tuple[list[Any], list[Any]]:
        return await answered(guard, {}, slow), await answered(guard, {}, whole)

    late, well = asyncio.run(both())
    assert late[0]["status"] == 408
    assert (well[0]["status"], well[1]["body"]) == (200, b"abc")
    assert (guard._requests, guard._held_bytes) == (0, 0)


def test_when_full_requests_are_refused_before_their_body() -> None:
    guard = AdmissionGuard(echo, Settings(max_waiting=20), is_full=lambda: True)
    a_body = {"headers": [(b"host", b"localhost"), (b"content-length", b"3")]}

    no_body = {"headers": [(b"host", b"localhost"), (b"content-length", b"0")]}  # as browsers say it

    async def never() -> Any:
        await asyncio.Event().wait()

    async def nothing() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def all_of_them() -> list[list[Any]]:
        refused = await asyncio.wait_for(answered(guard, a_body, never), 5)
        return [refused, await answered(guard, {}, nothing), await answered(guard, no_body, nothing)]

    refused, *without_images = asyncio.run(all_of_them())
    assert [sent[0]["status"] for sent in (refused, *without_images)] == [503, 200, 200]
    assert json.loads(refused[1]["body"])["error"]["limit"] == {"name": "max_waiting", "value": 20}


def test_requests_beyond_the_limit_are_refused_at_once() -> None:
    guard = AdmissionGuard(echo, Settings(max_requests=3))

    async def crowd() -> list[list[Any]]:
        arrived = asyncio.Event()

        async def waiting() -> Any:
            await arrived.wait()
            return {"type": "http.request", "body": b"abc", "more_body": False}

        inside = [asyncio.create_task(answered(guard, {}, waiting)) for _ in range(3)]
        await asyncio.sleep(0)
        outside = await asyncio.wait_for(answered(guard, {}, waiting), 0.1)
        state = await answered(guard, {"method": "GET", "path": "/live"}, waiting_not)
        arrived.set()
        return [*await asyncio.gather(*inside), outside, state]

    async def waiting_not() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    *inside, outside, state = asyncio.run(crowd())
    assert [sent[0]["status"] for sent in inside] == [200] * 3
    assert outside[0]["status"] == 503
    assert (b"retry-after", b"1") in outside[0]["headers"]
    assert state[0]["status"] == 200


def test_bodies_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = AdmissionGuard(echo, Settings(max_body_bytes=100))

    async def crowd() -> list[list[Any]]:
        arrived = asyncio.Event()

        def sender() -> Receive:
            first = True

            async def receive() -> Any:
                nonlocal first
                if first:
                    first = False
                    return {"type": "http.request", "body": b"x" * 90, "more_body": True}
                await arrived.wait()
                return {"type": "http.request", "body": b"", "more_body": False}

            return receive

        tasks = [asyncio.create_task(answered(guard, {}, sender())) for _ in range(12)]
        await asyncio.sleep(0.01)
        arrived.set()
        return await asyncio.gather(*tasks)

    statuses = sorted(sent[0]["status"] for sent in asyncio.run(crowd()))
    assert statuses == [200] * 8 + [503] * 4
    assert guard._held_bytes == 0


@pytest.mark.parametrize("host", ["localhost:8000", "LocalHost", "127.0.0.1", "127.0.0.2:80", "[::1]:8000"])
def test_loopback_host_names_are_served(reader: TestClient, host: str) -> None:
    assert reader.get("/live", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "localhost.evil.example:8000", "10.0.0.1", "", "[::1", "127.evil.example",
        "127.0.0.1.evil.example",
        "127.1", "127.0.0.1@evil.example", "evil.example@127.0.0.1", "127.0.0.1/evil", "127.0.0.1:80:80", "127.0.0.01",
        "[::1%25evil.example]", "::1", "[127.0.0.1]x", "0.0.0.0", "127.0.0.1,evil.example",
    ],
)  # fmt: skip
def test_other_host_names_are_refused(reader: TestClient, host: str) -> None:
    answer = reader.get("/live", headers={"Host": host})
    assert answer.status_code == 403
    own = {"Origin": f"http://{host}"}  # as of a page whose name was given this machine's address
    assert reader.post("/v1/search?id=1", headers={"Host": host, **own}).status_code == 403


def test_the_services_own_host_is_served(runtime: PlainRuntime) -> None:
    with client_of(Settings(host="127.8.9.1"), runtime) as client:
        assert client.get("/live", headers={"Host": "127.8.9.1:8000"}).status_code == 200
    with client_of(Settings(host="photos.example", read_key=SecretStr(READ)), runtime) as client:
        assert client.get("/live", headers={"Host": "what.ever"}).status_code == 200  # a key keeps others out there


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "file://127.0.0.1:8000"}, 403),
        ({"Origin": "HTTP://127.0.0.1:8000"}, 200),
        ({"Origin": "http://127.0.0.1:8000.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8000"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_pages_of_other_sites_cannot_send_requests(reader: TestClient, headers: dict[str, str], status: int) -> None:
    answer = reader.post("/v1/predict", content=encoded(), headers={**JPEG, **headers})
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/page/app.js", "/live", "/v1/about", "/nowhere", "/v1/items/3/thumbnail"]
)
def test_every_response_has_security_headers(reader: TestClient, path: str) -> None:
    answer = reader.get(path)
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers[name] == value
    assert "unsafe" not in SECURITY_HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path", ["/live", "/ready", "/v1/about", "/v1/items/3", "/metrics", "/openapi.json", "/v1/items/99"]
)
def test_responses_are_not_cached(reader: TestClient, path: str) -> None:
    assert reader.get(path).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/page/app.js", "/live", "/ready", "/metrics", "/v1/about", "/v1/items/3", "/v1/items/3/thumbnail",
     "/openapi.json", "/v1/items/99", "/v1/search", "/nowhere"],
)  # fmt: skip
def test_head_answers_as_get_does_without_a_body(reader: TestClient, path: str) -> None:
    get, head = reader.get(path), reader.head(path)
    assert head.status_code == get.status_code
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    if path not in ("/metrics", "/v1/about"):  # which tell of what was asked so far
        assert head.headers == get.headers


def test_there_is_no_cors(reader: TestClient) -> None:
    answer = reader.options(
        "/v1/search", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert answer.status_code in (403, 404, 405)
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/settings.py", "/page//etc/passwd", "/page/%00",
        "/page/..%5capp.py", "/page/app.js%00.css", "/page/./../admission.py", "//page/app.js",
        "/page/%252e%252e%252fapp.py",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(settings: Settings, runtime: PlainRuntime, path: str) -> None:
    app = create_app(settings, runtime)

    async def nothing() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def ask() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "GET", "path": unquote(path), "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
            "scheme": "http", "http_version": "1.1", "root_path": "",
        }  # fmt: skip
        await app(scope, nothing, send)
        return sent

    start, *rest = asyncio.run(ask())
    assert start["status"] in (400, 403, 404)
    assert b"import" not in b"".join(message.get("body", b"") for message in rest)
