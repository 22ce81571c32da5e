"""`/v1/search` agrees with the gallery, and invalid searches are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plain_runtime import PlainRuntime
from serve_client import client_of, encoded, form
from starlette.testclient import TestClient

from lookalike import Gallery, Query
from lookalike.errors import InputError
from lookalike.models.pretrained import load
from lookalike.serve import gallery_pool
from lookalike.serve.settings import Settings
from small_gallery import model_folder

JPEG = {"Content-Type": "image/jpeg"}


def test_an_image_finds_what_the_gallery_finds(client: TestClient, gallery_place: Path, photos: Path) -> None:
    data = (photos / "cat" / "1.png").read_bytes()
    answer = client.post("/v1/search?k=5", files=form(data))
    assert answer.status_code == 200
    tree = answer.json()
    with Gallery.open(gallery_place) as gallery:
        expected = gallery.search(data, k=5)
    assert tree["exact"] is True
    assert tree["threshold"] is None
    assert [hit["id"] for hit in tree["hits"]] == [hit.id for hit in expected.hits]
    np.testing.assert_allclose([hit["score"] for hit in tree["hits"]], [hit.score for hit in expected.hits], atol=1e-3)
    (first,) = tree["same"]
    assert [first["id"]] == [hit.id for hit in expected.same]
    assert first["id"] not in {hit["id"] for hit in tree["hits"]}
    assert (first["label"], first["name"]) == ("cat", "1.png")
    assert first["score"] == pytest.approx(1, abs=1e-3)
    assert first["thumbnail"] == f"/v1/items/{first['id']}/thumbnail"
    assert str(photos) not in answer.text


def test_an_item_is_not_its_own_answer(reader: TestClient) -> None:
    tree = reader.post("/v1/search?id=3&k=100").json()
    assert len(tree["hits"]) == 11
    assert 3 not in {hit["id"] for hit in tree["hits"]}


def test_several_labels_filter_by_any_of_them(reader: TestClient) -> None:
    for query, expected in (("label=cat", {"cat"}), ("label=cat&label=emu", {"cat", "emu"}), ("label=gnu", set())):
        tree = reader.post(f"/v1/search?k=100&{query}", content=encoded(1), headers=JPEG).json()
        assert {hit["label"] for hit in tree["hits"]} == expected


def test_thresholds(tmp_path: Path, photos: Path, model_place: Path) -> None:
    calibrated = model_folder(tmp_path / "calibrated", threshold=0.9)
    with Gallery.create(tmp_path / "g", calibrated) as gallery:
        gallery.add(photos)
        gallery.store.calibrated(replace(gallery.about, own_threshold=0.9, own_rows=12, own_labels=3))
    with client_of(Settings(gallery=str(tmp_path / "g")), PlainRuntime(calibrated)) as client:
        about = client.get("/v1/about").json()["gallery"]
        assert about["threshold"] == about["model_threshold"] == 0.9
        assert about["calibrated_on"] == "12 labelled items of this gallery with 3 labels"
        assert about["model_calibrated_on"] == "images like those that the model was trained on"
        for text, least, bound in (
            ("calibrated", 0.9, 0.9), ("none", None, -1), ("-0.5", -0.5, -0.5), ("1", 1.0, 1.0),
        ):  # fmt: skip
            tree = client.post(f"/v1/search?id=1&k=100&threshold={text}").json()
            assert tree["threshold"] == least
            assert all(hit["score"] >= bound for hit in tree["hits"])
            assert (len(tree["hits"]) == 11) == (bound < 0.6)


def test_a_new_calibration_is_used_by_a_running_service(
    client: TestClient, gallery_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_pool, "CHECK_INTERVAL", 0.0)
    for threshold in (0.5, 0.8):
        with Gallery.open(gallery_place, write=True) as gallery:
            gallery.store.calibrated(replace(gallery.about, own_threshold=threshold, own_rows=12, own_labels=3))
        assert client.get("/v1/about").json()["gallery"]["threshold"] == threshold
        assert client.post("/v1/search?id=1&threshold=calibrated").json()["threshold"] == threshold


@pytest.mark.parametrize(
    ("query", "status", "named"),
    [
        ("id=99", 404, "99"),
        ("id=0", 422, "query id"),
        (f"id={2**63}", 422, "query id"),
        ("id=1&k=0", 422, "query k"),
        ("id=1&k=1001", 422, "query k"),
        ("id=1&threshold=2", 422, "query threshold"),
        ("id=1&threshold=nan", 422, "query threshold"),
        ("id=1&threshold=default", 422, "query threshold"),
        ("id=1&threshold=calibrated", 422, "threshold"),
        ("id=1&label=", 422, "query label"),
        ("id=1&label=a%00b", 422, "query label"),
        ("id=1&exact=perhaps", 422, "query exact"),
    ],
)
def test_invalid_searches_are_refused(reader: TestClient, query: str, status: int, named: str) -> None:
    answer = reader.post(f"/v1/search?{query}")
    assert answer.status_code == status
    assert named in answer.json()["error"]["message"]
    assert answer.json()["error"]["remedy"]


def fields(*files: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """The files of a form, with the names of their fields."""
    return [(name, (f"{place}.jpg", data)) for place, (name, data) in enumerate(files)]


def test_images_and_ids_are_one_query(client: TestClient, gallery_place: Path) -> None:
    like, unlike = encoded(1), encoded(2)
    files = fields(("image", like), ("image", encoded(3)), ("unlike", unlike))
    answer = client.post("/v1/search?id=3&id=5&unlike=7&unlike_weight=0.75&k=5", files=files)
    assert answer.status_code == 200
    with Gallery.open(gallery_place) as gallery:
        query = Query(like=[3, 5, like, encoded(3)], unlike=[7, unlike], unlike_weight=0.75)
        expected = gallery.search(query, k=5)
    hits = answer.json()["hits"]
    assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
    np.testing.assert_allclose([hit["score"] for hit in hits], [hit.score for hit in expected], atol=2e-3)
    assert {3, 5, 7}.isdisjoint(hit["id"] for hit in hits)


def test_a_box_searches_with_a_part_of_the_image(client: TestClient, gallery_place: Path) -> None:
    image = encoded(1)
    answer = client.post("/v1/search?k=3&box=2,3,20,30&id=4", content=image, headers=JPEG)
    with Gallery.open(gallery_place) as gallery:
        expected = gallery.search(Query(like=[4, image], box=(2, 3, 20, 30)), k=3)
    np.testing.assert_allclose(
        [hit["score"] for hit in answer.json()["hits"]], [hit.score for hit in expected], atol=2e-3
    )


def test_re_ranking(reader: TestClient, gallery_place: Path) -> None:
    with Gallery.open(gallery_place) as gallery:
        expected = gallery.search(2, k=3, rerank=10)
    hits = reader.post("/v1/search?id=2&k=3&rerank=10").json()["hits"]
    assert [hit["id"] for hit in hits] == [hit.id for hit in expected]


@pytest.mark.parametrize(
    ("query", "files", "status", "named"),
    [
        ("unlike=3", (), 422, "resemble"),
        ("", (("unlike", b"x"),), 422, "resemble"),
        ("id=1&unlike=99", (), 404, "99"),
        ("id=1&id=99", (), 404, "99"),
        ("id=0", (), 422, "query id"),
        ("id=1&unlike=0", (), 422, "query unlike"),
        ("id=1&unlike=1&unlike_weight=1", (), 422, "cancel"),
        ("id=1&unlike=2&unlike_weight=-1", (), 422, "query unlike_weight"),
        ("id=1&unlike=2&unlike_weight=nan", (), 422, "query unlike_weight"),
        ("id=1&box=0,0,8,8", (), 422, "query box"),
        ("box=0,0,8,8", (("image", encoded(1)), ("image", encoded(2))), 422, "query box"),
        ("box=0,0,8", (("image", encoded(1)),), 422, "query box"),
        ("box=0,0,8,8000", (("image", encoded(1)),), 422, "0,0,8,8000"),
        ("id=1&k=5&rerank=4", (), 422, "query rerank"),
        ("id=1&rerank=1001", (), 422, "query rerank"),
        ("", (("picture", encoded(1)),), 422, "picture"),
    ],
)
def test_invalid_combinations_are_refused(
    reader: TestClient, query: str, files: tuple[tuple[str, bytes], ...], status: int, named: str
) -> None:
    answer = reader.post(f"/v1/search?{query}", files=fields(*files) or None)
    assert answer.status_code == status
    assert named in answer.json()["error"]["message"]
    assert answer.json()["error"]["remedy"]
    assert reader.post("/v1/search?id=1").status_code == 200


def test_neighbours_vote_for_labels(client: TestClient, gallery_place: Path) -> None:
    answer = client.post("/v1/vote?k=2&neighbours=6", files=form(encoded(1), encoded(2)))
    assert answer.status_code == 200
    with Gallery.open(gallery_place) as gallery:
        expected = gallery.predict([encoded(1), encoded(2)], 2, neighbours=6)
    for found, one in zip(answer.json()["votes"], expected, strict=True):
        assert [(each["label"], each["count"]) for each in found["labels"]] == [
            (each.label, each.count) for each in one
        ]
        assert [each["share"] for each in found["labels"]] == pytest.approx([each.share for each in one], abs=0.02)
        assert (found["neighbours"], found["unknown"]) == (6, False)
    unknown = client.post("/v1/vote?threshold=1", content=encoded(1), headers=JPEG).json()["votes"]
    assert unknown == [{"unknown": True, "neighbours": 0, "labels": []}]


def test_votes_that_cannot_be(client: TestClient, gallery_place: Path) -> None:
    for query, named in (("neighbours=1001", "neighbours"), ("k=0", "k"), ("threshold=calibrated", "calibrated")):
        answer = client.post(f"/v1/vote?{query}", content=encoded(1), headers=JPEG)
        assert answer.status_code == 422
        assert named in answer.json()["error"]["message"]
    with Gallery.open(gallery_place, write=True) as gallery:
        gallery.remove([item.id for item in gallery.store.rows()])
    assert client.post("/v1/vote", content=encoded(1), headers=JPEG).status_code == 409


def test_a_service_notices_another_model(
    client: TestClient, gallery_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.post("/v1/search?id=1").status_code == 200
    with Gallery.open(gallery_place, write=True) as gallery:
        gallery.reembed(model_folder(tmp_path / "other", seed=1))
    answer = client.post("/v1/search?id=1")
    assert answer.status_code == 503
    assert "did not make the vectors" in answer.json()["error"]["message"]
    assert client.post("/v1/items", content=encoded(50), headers=JPEG).status_code == 503
    monkeypatch.setattr(gallery_pool, "CHECK_INTERVAL", 0.0)
    assert client.get("/ready").status_code == 503


def test_no_names_hides_file_names(settings: Settings, runtime: PlainRuntime) -> None:
    with client_of(replace(settings, show_names=False), runtime) as client:
        answer = client.post("/v1/search?id=1")
        assert {hit["name"] for hit in answer.json()["hits"]} == {None}
        assert client.get("/v1/items/1").json()["name"] is None
        assert ".png" not in answer.text


def test_without_a_gallery_only_predict_and_embed_work(runtime: PlainRuntime) -> None:
    with client_of(Settings(), runtime) as client:
        assert client.get("/ready").status_code == 200
        assert client.get("/v1/about").json()["gallery"] is None
        assert client.get("/v1/about").json()["keys"] == {"read": False, "write": "off"}
        assert client.post("/v1/predict", content=encoded(1), headers=JPEG).status_code == 200
        for method, path in (("POST", "/v1/search?id=1"), ("GET", "/v1/items/1"), ("GET", "/v1/items/1/thumbnail")):
            answer = client.request(method, path)
            assert answer.status_code == 409
            assert "lookalike serve GALLERY" in answer.json()["error"]["remedy"]


def test_a_gallery_of_another_model_is_refused_at_once(settings: Settings, tmp_path: Path) -> None:
    other = PlainRuntime(load(model_folder(tmp_path / "other", seed=1)))
    with pytest.raises(InputError, match=str(settings.gallery)):
        client_of(settings, other)


@pytest.mark.parametrize(
    ("method", "path", "named"),
    [
        ("POST", "/v1/search?treshold=1", ("treshold", "'threshold'")),
        ("POST", "/v1/search?id=1&labels=cat", ("labels", "'label'")),
        ("POST", "/v1/search?id=1&K=5", ("K",)),
        ("POST", "/v1/search?id=1&k=5&k=6", ("k",)),
        ("POST", "/v1/search?id=1&label=%FF", ()),
        ("POST", "/v1/predict?top=5", ("top",)),
        ("POST", "/v1/embed?k=5", ("k",)),
        ("POST", "/v1/items?lable=cat", ("lable", "'label'")),
        ("GET", "/v1/items/1?size=5", ("size",)),
        ("HEAD", "/v1/items/1?size=5", ()),
        ("GET", "/v1/items/1/thumbnail?size", ("size",)),
        ("DELETE", "/v1/items/1?dry=1", ("dry",)),
        ("GET", "/v1/about?x=", ("x",)),
        ("GET", "/live?x=1", ("x",)),
        ("GET", "/ready?x=1", ("x",)),
        ("GET", "/metrics?x=1", ("x",)),
    ],
)
def test_unknown_parameters_are_refused(reader: TestClient, method: str, path: str, named: tuple[str, ...]) -> None:
    answer = reader.request(method, path)
    assert answer.status_code == 422
    if method != "HEAD":
        error = answer.json()["error"]
        assert all(name in error["message"] for name in named)
        assert error["remedy"]
    assert reader.get("/v1/items/1").status_code == 200  # nothing was done


def test_an_answer_has_a_limit_of_bytes(settings: Settings, runtime: PlainRuntime, gallery_place: Path) -> None:
    with Gallery.open(gallery_place, write=True) as gallery:
        gallery.update([1, 2, 3, 4], metadata={"text": "é" * 10_000})  # of 2 bytes each
    with client_of(replace(settings, max_answer_bytes=50_000), runtime) as client:
        assert client.get("/v1/about").json()["limits"]["max_answer_bytes"] == 50_000
        answer = client.post("/v1/search?id=1&k=12")
        assert answer.status_code == 422
        assert answer.json()["error"]["limit"] == {"name": "max_answer_bytes", "value": 50_000}
        assert "k" in answer.json()["error"]["remedy"]
        assert client.post("/v1/search?id=12&k=2&label=dog").status_code == 200
        assert client.post("/v1/search?id=1&k=2").status_code == 200
        assert client.get("/v1/items/1").status_code == 200
    with client_of(replace(settings, max_answer_bytes=10_000), runtime) as client:
        answer = client.get("/v1/items/1")
        assert (answer.status_code, answer.json()["error"]["limit"]["name"]) == (422, "max_answer_bytes")
        assert client.get("/v1/items/12").status_code == 200
        assert client.get("/v1/items/1/thumbnail").status_code == 200
    with client_of(replace(settings, max_answer_bytes=500), runtime) as client:
        assert [one["label"] for one in client.get("/v1/about").json()["gallery"]["labels"]] == ["cat", "dog"]
        votes = [client.post(f"/v1/vote?k={k}", content=encoded(50), headers=JPEG) for k in (2, 3)]
        assert [answer.status_code for answer in votes] == [200, 422]
        assert votes[1].json()["error"]["limit"] == {"name": "max_answer_bytes", "value": 500}
