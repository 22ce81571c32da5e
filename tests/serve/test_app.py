"""The application: state, metrics, logs, the shape of errors, shutdown, and the OpenAPI description."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from plain_runtime import PlainRuntime
from serve_client import encoded, form
from starlette.testclient import TestClient

from lookalike import __version__
from lookalike.errors import InputError
from lookalike.models.runtime import Outputs
from lookalike.serve import errors
from lookalike.serve.app import create_app, create_service_app
from lookalike.serve.service import Service
from lookalike.serve.settings import Settings

JPEG = {"Content-Type": "image/jpeg"}


def test_live_and_ready(reader: TestClient) -> None:
    assert reader.get("/live").json() == {"status": "live", "reasons": []}
    ready = reader.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "reasons": []})


def test_about_describes_the_service(reader: TestClient, runtime: PlainRuntime) -> None:
    about = reader.get("/v1/about").json()
    assert about["version"] == __version__
    assert about["model"] == {
        "name": "weave (plain)", "fingerprint": runtime.fingerprint, "classes": 3, "size": 32, "dim": runtime.dim,
        "unknown_threshold": None, "text": False,
    }  # fmt: skip
    counts = [{"label": label, "count": 4} for label in ("cat", "dog", "emu")]
    assert about["gallery"] == {
        "items": 12,
        "threshold": None,
        "calibrated_on": None,
        "model_threshold": None,
        "model_calibrated_on": "images like those that the model was trained on",
        "labels": counts,
    }
    assert about["limits"]["max_images"] == 16
    assert about["keys"] == {"read": False, "write": "open"}


def test_a_starting_service_is_live_but_not_ready(
    settings: Settings, runtime: PlainRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(settings)
    may_load, load = threading.Event(), service.load
    monkeypatch.setattr(service, "load", lambda: (may_load.wait(20), load(runtime)))
    with TestClient(create_service_app(service), base_url="http://127.0.0.1:8000", client=("127.0.0.1", 1)) as client:
        assert client.get("/live").status_code == 200
        ready = client.get("/ready")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
        assert len(ready.json()["reasons"]) == 1
        for method, path in (("POST", "/v1/predict"), ("POST", "/v1/search?id=1"), ("GET", "/v1/about")):
            answer = client.request(method, path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert client.get("/metrics").status_code == 200
        may_load.set()
        while client.get("/ready").status_code != 200:
            pass
        assert client.post("/v1/search?id=1").status_code == 200
    assert runtime.closed


def test_a_failed_start_is_reported(tmp_path: Path) -> None:
    service = Service(Settings(gallery=str(tmp_path / "none")))
    failed = threading.Event()
    with TestClient(create_service_app(service, failed.set), base_url="http://127.0.0.1:8000") as client:
        assert failed.wait(20)
        assert client.get("/ready").status_code == 503
    assert isinstance(service.load_error, InputError)
    assert "none" in str(service.load_error)


def test_a_failing_runtime_makes_the_service_not_ready(
    client: TestClient, runtime: PlainRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "run", lambda pictures: 1 / 0)
    answer = client.post("/v1/predict", content=encoded(1), headers=JPEG)
    assert answer.status_code == 503
    for _ in range(2):
        ready = client.get("/ready")
        assert (ready.status_code, len(ready.json()["reasons"])) == (503, 1)
    assert client.post("/v1/search?id=1").status_code == 200
    monkeypatch.undo()
    assert client.get("/ready").status_code == 200
    assert client.post("/v1/predict", content=encoded(1), headers=JPEG).status_code == 200


def test_metrics_count_requests_and_batches(client: TestClient) -> None:
    for _ in range(3):
        client.post("/v1/predict", files=form(encoded(1), encoded(2)))
    client.get("/v1/items/7")
    client.get("/v1/items/99")
    client.get("/no/such/secret")
    client.request("BREW", "/live")
    client.get("/v1/about", headers={"Host": "elsewhere.example"})  # which the guard refuses
    client.post("/v1/items", headers={"Host": "elsewhere.example"})
    lines = client.get("/metrics").text.splitlines()
    assert 'lookalike_requests_total{method="POST",route="/v1/predict",status="200"} 3.0' in lines
    assert 'lookalike_requests_total{method="GET",route="/v1/items/{id}",status="200"} 1.0' in lines
    assert 'lookalike_requests_total{method="GET",route="/v1/items/{id}",status="404"} 1.0' in lines
    assert 'lookalike_requests_total{method="GET",route="other",status="404"} 1.0' in lines
    assert 'lookalike_requests_total{method="other",route="/live",status="405"} 1.0' in lines
    assert 'lookalike_requests_total{method="GET",route="/v1/about",status="403"} 1.0' in lines
    assert 'lookalike_requests_total{method="POST",route="/v1/items",status="403"} 1.0' in lines
    assert "lookalike_batch_images_sum 6.0" in lines
    assert "lookalike_waiting_images 0.0" in lines
    assert "lookalike_loaded 1.0" in lines
    assert not any("secret" in line for line in lines)


def test_the_log_has_one_line_per_request_without_secrets(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    key = "a-secret-key-of-somebody"
    with caplog.at_level(logging.INFO, logger="lookalike.serve.access"):
        client.post("/v1/search?id=7&label=private", headers={"Authorization": f"Bearer {key}"})
        client.post("/v1/embed?key=" + key, files=form(encoded(1)))
        client.get(f"/{key}")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "lookalike.serve.access"]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/v1/search", 200), ("POST", "/v1/embed", 422), ("GET", "other", 404),
    ]  # fmt: skip
    assert all(line["ms"] > 0 and line["client"] == "127.0.0.1" for line in lines)
    assert not re.search("secret|private|=7", caplog.text)


def test_successful_thumbnails_are_counted_but_not_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lookalike.serve.access"):
        tag = client.get("/v1/items/1/thumbnail").headers["etag"]
        client.get("/v1/items/1/thumbnail", headers={"If-None-Match": tag})
        client.head("/v1/items/1/thumbnail")
        client.get("/v1/items/99/thumbnail")
        client.head("/v1/items/1")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "lookalike.serve.access"]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("GET", "/v1/items/{id}/thumbnail", 404), ("HEAD", "/v1/items/{id}", 200),
    ]  # fmt: skip
    counted = client.get("/metrics").text
    assert 'lookalike_requests_total{method="GET",route="/v1/items/{id}/thumbnail",status="200"} 1.0' in counted
    assert 'lookalike_requests_total{method="GET",route="/v1/items/{id}/thumbnail",status="304"} 1.0' in counted


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/", 404),
        ("GET", "/live/", 404),
        ("PUT", "/v1/items", 405),
        ("GET", "/v1/predict", 405),
        ("GET", "/redoc", 404),
        ("GET", "/page/../service.py", 404),
        ("GET", "/page/..%2fservice.py", 404),
        ("GET", "/page/%2e%2e/service.py", 404),
        ("GET", "/page//etc/passwd", 404),
        ("GET", "/page/none.js", 404),
        ("GET", "/page/%00", 404),
    ],
)
def test_every_error_has_one_shape(reader: TestClient, method: str, path: str, status: int) -> None:
    answer = reader.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"].keys() >= {"message", "remedy"}


def test_an_internal_error_is_500_without_a_traceback(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.serve.routes_items.parse_id", lambda text: 1 / 0)
    answer = client.get("/v1/items/1")
    assert answer.status_code == 500
    assert answer.json()["error"].keys() == {"message", "remedy"}
    assert "division" not in answer.text


def test_requests_cut_off_by_the_shutdown_are_503(settings: Settings, runtime: PlainRuntime) -> None:
    """The server cancels what is still at work when its time is over."""
    started = threading.Event()
    sent: list[dict[str, object]] = []
    slow = runtime.run

    def run(pictures: NDArray[np.uint8]) -> Outputs:
        started.set()
        time.sleep(0.3)
        return slow(pictures)

    app = create_app(settings, runtime)
    runtime.run = run  # type: ignore[method-assign]
    headers = [(b"host", b"127.0.0.1:8000"), (b"content-type", b"image/jpeg")]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/embed", "raw_path": b"/v1/embed", "query_string": b"",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "scheme": "http",
        "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"},
    }  # fmt: skip
    body = iter([{"type": "http.request", "body": encoded(1), "more_body": False}])

    async def receive() -> dict[str, object]:
        for message in body:
            return message
        await asyncio.Event().wait()
        raise AssertionError("nobody goes away")

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def cut_off() -> None:
        task = asyncio.ensure_future(app(scope, receive, send))
        await asyncio.to_thread(started.wait, 20)
        task.cancel()
        await task

    asyncio.run(cut_off())
    assert sent[0]["status"] == 503
    assert b"error" in sent[1]["body"]  # type: ignore[operator]


def test_a_disconnected_client_costs_no_inference(settings: Settings, runtime: PlainRuntime) -> None:
    app = create_app(settings, runtime)
    scope = {
        "type": "http", "method": "POST", "path": "/v1/embed", "raw_path": b"/v1/embed", "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"content-type", b"image/jpeg")], "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000), "scheme": "http", "http_version": "1.1", "root_path": "",
        "asgi": {"version": "3.0"},
    }  # fmt: skip
    before = len(runtime.batches)
    messages = iter([{"type": "http.request", "body": encoded(1, size=(3000, 3000)), "more_body": False}])

    async def receive() -> dict[str, object]:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: dict[str, object]) -> None:
        pass

    asyncio.run(asyncio.wait_for(app(scope, receive, send), 20))
    assert len(runtime.batches) == before


def test_openapi_describes_every_route(reader: TestClient) -> None:
    tree = reader.get("/openapi.json").json()
    operations = {
        (method.upper(), path): operation
        for path, methods in tree["paths"].items()
        for method, operation in methods.items()
    }
    assert operations.keys() == {
        ("GET", "/live"), ("GET", "/ready"), ("GET", "/metrics"), ("GET", "/v1/about"), ("POST", "/v1/predict"),
        ("POST", "/v1/search"), ("POST", "/v1/vote"), ("POST", "/v1/embed"),
        ("POST", "/v1/items"), ("GET", "/v1/items/{id}"),
        ("DELETE", "/v1/items/{id}"), ("GET", "/v1/items/{id}/thumbnail"),
    }  # fmt: skip
    assert tree["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for (method, path), operation in operations.items():
        assert operation["summary"], path
        assert operation["description"], path
        if path.startswith("/v1/"):
            said = {int(status) for status in operation["responses"]}
            assert said >= set(errors.ERROR_RESPONSES), path
        if method == "POST":
            assert "multipart/form-data" in operation["requestBody"]["content"]
    for name, schema in tree["components"]["schemas"].items():
        values = [
            value for value in schema.get("properties", {}).values() if value.get("type") in ("string", "integer")
        ]
        if len(values) > 1:
            assert any("examples" in value for value in values), name
