"""A gallery that fails or is replaced while it is served: the service reports it, and recovers."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain_runtime import PlainRuntime
from serve_client import client_of, encoded, form
from starlette.testclient import TestClient

from lookalike import Gallery
from lookalike.serve import gallery_pool
from lookalike.serve.settings import Settings
from small_gallery import model_folder

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_pool, "CHECK_INTERVAL", 0.0)


def ready(client: TestClient) -> list[str]:
    """Why it is not; an empty list when it is."""
    answer = client.get("/ready")
    assert answer.status_code == (503 if answer.json()["reasons"] else 200)
    reasons: list[str] = answer.json()["reasons"]
    return reasons


def test_the_service_recovers_when_the_gallerys_files_return(client: TestClient, gallery_place: Path) -> None:
    away = gallery_place.with_name("away")
    for _ in range(2):
        assert not ready(client)
        gallery_place.rename(away)
        assert len(ready(client)) == 1
        for method, path in (("POST", "/v1/search?id=1"), ("GET", "/v1/items/1"), ("GET", "/v1/items/1/thumbnail")):
            answer = client.request(method, path)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "5"
            assert str(gallery_place.parent) not in answer.text
        added = client.post("/v1/items", files=form(encoded(70)))
        assert added.status_code == 503
        assert client.post("/v1/predict", content=encoded(1), headers=JPEG).status_code == 200
        assert client.get("/live").status_code == 200
        away.rename(gallery_place)
        assert not ready(client)
        assert client.post("/v1/search?id=1").status_code == 200


def test_a_copy_in_place_of_the_gallery_is_served(client: TestClient, gallery_place: Path, photos: Path) -> None:
    copy = gallery_place.with_name("copy")
    shutil.copytree(gallery_place, copy)
    with Gallery.open(copy, write=True) as gallery:
        gallery.remove([1, 2, 3])
    assert client.get("/v1/about").json()["gallery"]["items"] == 12
    shutil.rmtree(gallery_place)
    copy.rename(gallery_place)
    assert not ready(client)
    assert client.get("/v1/about").json()["gallery"]["items"] == 9
    assert client.get("/v1/items/1").status_code == 404
    assert client.post("/v1/items", files=form(encoded(71))).status_code == 200


def test_items_are_added_to_the_gallery_that_replaced_another(
    client: TestClient, gallery_place: Path, model_place: Path, photos: Path
) -> None:
    assert client.post("/v1/items?label=first", files=form(encoded(71))).status_code == 200  # the way to write is open
    old = gallery_place.rename(gallery_place.with_name("old"))
    with Gallery.create(gallery_place, model_place) as gallery:
        gallery.add(photos / "cat", label="cat")
    shown = client.get("/v1/items/1/thumbnail")
    assert (shown.status_code, client.get("/v1/items/13").status_code) == (200, 404)
    (item,) = client.post("/v1/items?label=second", files=form(encoded(72))).json()["items"]
    assert item == {"id": 5, "added": True, "label": "second"}
    assert client.delete("/v1/items/2").status_code == 204
    assert not ready(client)
    for place, labels in ((old, {"cat": 4, "dog": 4, "emu": 4, "first": 1}), (gallery_place, {"cat": 3, "second": 1})):
        with Gallery.open(place) as gallery:
            assert dict(gallery.store.labels(10)) == labels
            assert not gallery.check().problems


def test_a_gallery_of_another_model_is_not_searched(
    client: TestClient, gallery_place: Path, tmp_path: Path, photos: Path
) -> None:
    own = gallery_place.rename(tmp_path / "own")
    with Gallery.create(gallery_place, model_folder(tmp_path / "other", seed=1)) as gallery:
        gallery.add(photos)
    (reason,) = ready(client)
    assert str(tmp_path) not in reason
    assert client.post("/v1/search?id=1").status_code == 503
    shutil.rmtree(gallery_place)
    own.rename(gallery_place)
    assert not ready(client)


def test_a_damaged_database(client: TestClient, gallery_place: Path) -> None:
    database = gallery_place / "gallery.db"
    whole = database.read_bytes()
    database.unlink()
    database.write_bytes(b"no database at all" * 1000)
    (reason,) = ready(client)
    assert str(gallery_place) not in reason
    assert client.post("/v1/search?id=1").status_code == 503
    database.unlink()
    database.write_bytes(whole)
    assert not ready(client)
    assert client.post("/v1/search?id=1").status_code == 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here ({done.stderr.decode().strip()})")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk(small_disk: Path, gallery_place: Path, runtime: PlainRuntime) -> None:
    place = small_disk / "g"
    shutil.copytree(gallery_place, place)
    with client_of(Settings(gallery=str(place)), runtime) as client:
        assert not ready(client)
        _fill(small_disk / "filler")
        assert len(ready(client)) == 1
        added = 0
        for seed in range(1000, 1200):  # until the last page is used
            answer = client.post("/v1/items", files=form(encoded(seed, "PNG", (250, 200))))
            if answer.status_code != 200:
                break
            added += 1
        assert answer.status_code == 503
        assert str(small_disk) not in answer.text
        assert ready(client)
        assert client.post("/v1/search?id=1").status_code == 200  # what is there is found
        (small_disk / "filler").unlink()
        deadline = time.monotonic() + 10
        while ready(client) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not ready(client)
        assert client.post("/v1/items", files=form(encoded(5000))).status_code == 200
        assert client.get("/v1/about").json()["gallery"]["items"] == 13 + added
    with Gallery.open(place) as gallery:
        assert not gallery.check().problems
        assert len(gallery) == 13 + added


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return
