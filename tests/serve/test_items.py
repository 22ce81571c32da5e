"""`/v1/items`: add, get and remove items, while searches go on."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from PIL import Image
from plain_runtime import PlainRuntime
from serve_client import client_of, encoded, form
from starlette.testclient import TestClient

from lookalike import Gallery
from lookalike.serve.settings import Settings
from small_gallery import picture


def test_added_items_are_found(client: TestClient, gallery_place: Path) -> None:
    data = encoded(50)
    answer = client.post("/v1/items?label=a%20gnu", files=form(data))
    assert answer.status_code == 200
    assert answer.json() == {"items": [{"id": 13, "added": True, "label": "a gnu"}]}
    hits = client.post("/v1/search?k=1", files=form(data)).json()["same"]
    assert [(hit["id"], hit["label"]) for hit in hits] == [(13, "a gnu")]
    item = client.get("/v1/items/13").json()
    assert item["name"] == f"upload:{item['digest']}"
    assert item["bytes"] == len(data)
    assert {"label": "a gnu", "count": 1} in client.get("/v1/about").json()["gallery"]["labels"]
    with Gallery.open(gallery_place) as gallery:  # as any other reader sees it
        assert len(gallery) == 13
        assert not gallery.check().problems
        assert gallery.search(data, k=1).same[0].id == 13


def test_the_same_bytes_are_one_item(client: TestClient, photos: Path) -> None:
    new, there = encoded(51), (photos / "dog" / "0.png").read_bytes()
    items = client.post("/v1/items?label=x", files=form(new, there, new)).json()["items"]
    assert [one["added"] for one in items] == [True, False, False]
    assert items[0]["id"] == items[2]["id"] == 13
    assert items[1]["label"] == "dog"  # as it was
    again = client.post("/v1/items?label=y", files=form(new)).json()["items"]
    assert again == [{"id": 13, "added": False, "label": "x"}]
    assert client.get("/v1/about").json()["gallery"]["items"] == 13


def test_removed_items_are_gone(client: TestClient) -> None:
    assert client.delete("/v1/items/3").status_code == 204
    assert client.delete("/v1/items/3").status_code == 404
    for path in ("/v1/items/3", "/v1/items/3/thumbnail"):
        assert client.get(path).status_code == 404
    assert 3 not in {hit["id"] for hit in client.post("/v1/search?id=1&k=100").json()["hits"]}
    gallery = client.get("/v1/about").json()["gallery"]
    assert gallery["items"] == 11
    assert sum(each["count"] for each in gallery["labels"]) == 11


def test_thumbnails_are_small_jpegs_with_etags(client: TestClient) -> None:
    data = encoded(52, "PNG", (900, 600))
    (item,) = client.post("/v1/items", files=form(data)).json()["items"]
    answer = client.get(f"/v1/items/{item['id']}/thumbnail")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == "private, no-cache"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert (image.format, image.size) == ("JPEG", (192, 128))
    tag = answer.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(f"/v1/items/{item['id']}/thumbnail", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(f"/v1/items/{item['id']}/thumbnail", headers={"If-None-Match": '"other"'}).status_code == 200


def test_thumbnails_of_another_gallery_have_another_etag(
    client: TestClient, model_place: Path, tmp_path: Path, runtime: PlainRuntime
) -> None:
    """At the same address and of the same id: what a browser has kept of one gallery is not shown of another."""
    with Gallery.create(tmp_path / "other.gallery", model_place) as gallery:
        gallery.add(picture(tmp_path / "other.png", 77))
    first = client.get("/v1/items/1/thumbnail")
    with client_of(Settings(gallery=str(tmp_path / "other.gallery")), runtime) as other:
        second = other.get("/v1/items/1/thumbnail", headers={"If-None-Match": first.headers["etag"]})
    assert second.status_code == 200
    assert second.content != first.content
    assert second.headers["etag"] != first.headers["etag"]


@pytest.mark.parametrize(
    "id", ["0", "-1", "01", "1.0", "x", "..", "%2e%2e", "%00", "%2e%2e%2f1", "9" * 19, "9" * 5000, "١", "1;drop"]
)
def test_invalid_ids_are_404(reader: TestClient, id: str) -> None:
    for method, path in (
        ("GET", f"/v1/items/{id}"), ("GET", f"/v1/items/{id}/thumbnail"), ("DELETE", f"/v1/items/{id}"),
    ):  # fmt: skip
        answer = reader.request(method, path)
        assert answer.status_code in {404, 405}
        assert answer.json()["error"]["message"]
    assert reader.get("/v1/about").json()["gallery"]["items"] == 12


@pytest.mark.parametrize(
    "label",
    ["woman\u200dscientist", "👩\u200d🔬 emoji", "全角\u3000空白", "نیم\u200cفاصله",
     "zero\u200bwidth", "n\u00a0b", "soft\u00adhyphen",
     "\U000e0001tag", "private \ue000", "a\u2028b"],
)  # fmt: skip
def test_labels_of_every_language_are_stored_unchanged(client: TestClient, label: str) -> None:
    data = encoded(53)
    (item,) = client.post("/v1/items", params={"label": label}, files=form(data)).json()["items"]
    assert item["label"] == label
    assert client.get(f"/v1/items/{item['id']}").json()["label"] == label
    found = client.post("/v1/search", params={"label": label, "id": 1}).json()["hits"]
    assert [hit["id"] for hit in found] == [item["id"]]


@pytest.mark.parametrize("label", ["", "%20", "%E3%80%80", "a%0Ab", "a%00", "a%7F", "a%C2%85b", "%1B[31m", "x" * 1001])
def test_invalid_labels_are_refused(reader: TestClient, label: str) -> None:
    answer = reader.post(f"/v1/items?label={label}", files=form(encoded(53)))
    assert answer.status_code == 422
    assert "label" in answer.json()["error"]["message"]


def test_searches_go_on_while_items_are_added(client: TestClient) -> None:
    stop = threading.Event()
    found: list[tuple[int, int]] = []

    def search() -> None:
        while not stop.is_set():
            answer = client.post("/v1/search?id=1&k=1000")
            found.append((answer.status_code, len(answer.json()["hits"])))

    seeker = threading.Thread(target=search)
    seeker.start()
    for seed in range(100, 120):
        assert client.post("/v1/items", files=form(encoded(seed))).status_code == 200
    stop.set()
    seeker.join()
    assert {status for status, _ in found} == {200}
    assert [hits for _, hits in found] == sorted(hits for _, hits in found)  # never less than before
    assert len(found) > 5
    assert len(client.post("/v1/search?id=1&k=1000").json()["hits"]) == 31


def test_another_program_may_write_at_the_same_time(client: TestClient, gallery_place: Path, tmp_path: Path) -> None:
    with Gallery.open(gallery_place, write=True) as other:
        other.add(picture(tmp_path / "a.png", 900))
        assert client.post("/v1/items", files=form(encoded(60))).status_code == 200
        other.add(picture(tmp_path / "b.png", 901))
        assert client.post("/v1/search?id=13").status_code == 200
    assert client.get("/v1/about").json()["gallery"]["items"] == 15
