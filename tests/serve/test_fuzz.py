"""Random requests to every route cause no error 500, and hostile files are refused."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plain_runtime import PlainRuntime
from serve_client import encoded
from serve_process import start

from lookalike.serve.app import create_app
from lookalike.serve.settings import Settings

COUNT = 10_000
BOUNDARY = b"xyz"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
POSTS = ("/v1/predict", "/v1/search", "/v1/embed", "/v1/items")
QUERIES = (
    b"", b"k=2", b"k=-1", b"k=x", b"k=3&threshold=none", b"k=1000000", b"threshold=nan", b"threshold=2",
    b"id=3", b"id=999999999999999999999", b"id=-1", b"label=cat&label=%00", b"label=%ff%fe", b"exact=maybe", b"=&&&",
)  # fmt: skip
TYPES = (
    b"image/jpeg", b"multipart/form-data; boundary=xyz", b"multipart/form-data", b"application/json", b"", b"\xff\xfe",
    b"image/svg+xml", b"application/octet-stream", b"multipart/form-data; boundary=" + b"q" * 300,
)  # fmt: skip
PATHS = (
    "/v1/items/3", "/v1/items/x", "/v1/items/-1/thumbnail", "/v1/items/3/thumbnail", "/v1/items/99999999999999999999",
    "/v1/\x00", "/v1/about/..", "/page/\u2603.js", "/metrics", "/openapi.json", "/v1/about", "/ready",
)  # fmt: skip


def form(data: bytes) -> bytes:
    """One file as a form."""
    head = (
        b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    return head + data + b"\r\n--xyz--\r\n"


def mutated(body: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, pieces cut out, doubled, or overwritten; now and then nothing at all."""
    found = bytearray(body)
    for _ in range(int(rng.integers(0, 6))):
        if not found:
            break
        place, length = int(rng.integers(0, len(found))), int(rng.integers(1, 40))
        match int(rng.integers(0, 5)):
            case 0:
                found[place] ^= 1 << int(rng.integers(0, 8))
            case 1:
                del found[place : place + length]
            case 2:
                found[place:place] = found[place : place + length]
            case 3:
                found[place : place + length] = rng.bytes(length)
            case _:
                del found[place:]
    return bytes(found)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_random_requests_never_cause_a_500(settings: Settings, runtime: PlainRuntime) -> None:
    app = create_app(settings, runtime)
    rng = np.random.default_rng(0)
    images = [encoded(seed, kind, (24, 20)) for seed, kind in enumerate(FORMATS)]
    statuses: dict[int, int] = {}

    async def ask(method: str, path: str, query: bytes, kind: bytes, body: bytes) -> int:
        parts = [body[: len(body) // 2], body[len(body) // 2 :]] if rng.random() < 0.3 else [body]
        waiting = parts[::-1]
        found: list[int] = []

        async def receive() -> Any:
            if waiting:
                piece = waiting.pop()
                return {"type": "http.request", "body": piece, "more_body": bool(waiting)}
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                found.append(message["status"])

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query,
            "headers": [(b"host", b"localhost"), (b"content-type", kind)], "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000), "scheme": "http", "http_version": "1.1", "root_path": "",
        }  # fmt: skip
        await app(scope, receive, send)
        return found[0]

    async def all_of_them() -> None:
        for number in range(COUNT):
            image = mutated(images[number % len(images)], rng)
            kind = TYPES[int(rng.integers(0, len(TYPES)))] if rng.random() < 0.4 else TYPES[number % 2]
            body = mutated(form(image), rng) if kind.startswith(b"multipart") else image
            query = QUERIES[int(rng.integers(0, len(QUERIES)))]
            if rng.random() < 0.8:
                method, path = "POST", POSTS[int(rng.integers(0, len(POSTS)))]
            else:
                method = ("GET", "DELETE", "PUT", "HEAD", "TRACE", "PO ST")[int(rng.integers(0, 6))]
                path = PATHS[int(rng.integers(0, len(PATHS)))]
            status = await ask(method, path, query, kind, body)
            assert status < 500, (status, method, path, query, kind, body[:100])
            statuses[status] = statuses.get(status, 0) + 1
        assert await ask("POST", "/v1/predict", b"", b"image/png", encoded(0, "PNG")) == 200
        assert await ask("GET", "/ready", b"", b"", b"") == 200

    asyncio.run(all_of_them())
    assert statuses.get(200, 0) > COUNT / 50
    assert statuses.get(422, 0) > COUNT / 10


def test_a_bomb_is_refused_before_it_is_unpacked(settings: Settings, runtime: PlainRuntime) -> None:
    from starlette.testclient import TestClient

    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")
    with TestClient(create_app(settings, runtime), base_url="http://127.0.0.1:8000") as client:
        answer = client.post("/v1/predict", content=file.getvalue(), headers={"Content-Type": "image/png"})
    assert answer.status_code in (413, 422)
    assert answer.json()["error"]["limit"]["name"] == "max_pixels"


@pytest.mark.parametrize("name", ["model.pt", "folder"])
def test_pickles_and_damaged_weights_are_refused(name: str, model_place: Path, tmp_path: Path) -> None:
    if name == "model.pt":
        place = tmp_path / name
        place.write_bytes(b"\x80\x04\x95cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    else:
        place = tmp_path / name
        place.mkdir()
        for file in model_place.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        weights = bytearray((place / "model.safetensors").read_bytes())
        weights[-100] ^= 0xFF
        (place / "model.safetensors").write_bytes(weights)
    process = start("--model", place, "--port", "0", "--runtime", "torch")
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 2, said
    assert "error: " in said
    assert "Traceback" not in said
    assert str(place) in said
