"""Searching with words over HTTP: for a model with a text tower, in ONNX Runtime as the service runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serve_client import client_of, encoded
from starlette.testclient import TestClient

from lookalike import Gallery
from lookalike.models.pretrained import load
from lookalike.models.runtime import OnnxRuntime
from lookalike.serve.settings import Settings

TEXT = "a dog on a beach"


@pytest.fixture(scope="session")
def clip_gallery(tmp_path_factory: pytest.TempPathFactory, clip: Path, photos: Path) -> Path:
    """The twelve images, with vectors of a pair."""
    place = tmp_path_factory.mktemp("shared") / "words.gallery"
    with Gallery.create(place, clip) as gallery:
        gallery.add(photos)
    return place


@pytest.fixture(scope="session")
def words_reader(clip_gallery: Path, clip: Path, clip_onnx: Path) -> Iterator[TestClient]:
    runtime = OnnxRuntime(clip, cache=clip_onnx)
    with client_of(Settings(gallery=str(clip_gallery), show_names=True), runtime) as client:  # type: ignore[arg-type]
        yield client


def scores(client: TestClient, **given: object) -> dict[int, float]:
    answer = client.post("/v1/search", params={"k": 12, **given})
    assert answer.status_code == 200, answer.text
    return {hit["id"]: hit["score"] for hit in answer.json()["hits"]}


def test_words_find_the_images_nearest_to_their_vector(
    words_reader: TestClient, clip_gallery: Path, clip: Path
) -> None:
    found = scores(words_reader, text=TEXT)
    with Gallery.open(clip_gallery) as gallery:
        ids = list(found)
        cosines = gallery.store.vectors(ids) @ load(clip).embed_text(TEXT)
    assert len(found) == 12
    assert np.allclose(list(found.values()), cosines, atol=1e-3)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert words_reader.get("/v1/about").json()["model"]["text"] is True


def test_words_and_an_image_are_one_query(words_reader: TestClient) -> None:
    file = encoded(3)
    answer = words_reader.post(
        "/v1/search", params={"k": 12, "text": TEXT}, content=file, headers={"Content-Type": "image/jpeg"}
    )
    both = {hit["id"]: hit["score"] for hit in answer.json()["hits"]}
    assert len(both) == 12
    assert both != scores(words_reader, text=TEXT)
    twice = scores(words_reader, text=[TEXT, TEXT])
    once = scores(words_reader, text=TEXT)
    assert all(twice[id] == pytest.approx(once[id], abs=1e-6) for id in once)


def test_a_service_whose_model_has_no_words_refuses_them(reader: TestClient) -> None:
    answer = reader.post("/v1/search", params={"text": TEXT})
    assert answer.status_code == 409
    assert "open_clip" in answer.json()["error"]["remedy"]


@pytest.mark.parametrize("text", ["", "  ", "\x1c", ["a", "\x1f "], "x" * 1001, ["a"] * 17])
def test_words_that_are_none_are_refused(words_reader: TestClient, text: object) -> None:
    assert words_reader.post("/v1/search", params={"text": text}).status_code == 422
    assert words_reader.get("/ready").status_code == 200
