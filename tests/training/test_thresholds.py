"""The thresholds of a model: measured when a run ends, kept in the model folder, no part of the fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lookalike
from lookalike.data.catalog import Catalog
from lookalike.data.pack import pack
from lookalike.errors import InputError
from lookalike.evaluation.pair_similarity import match_threshold
from lookalike.recipe import Recipe
from lookalike.run import Run
from lookalike.training.run import train

RECIPE = """
data: {image_size: 32, augment: {crop: none}}
model: {name: resnet18, options: {stem: patch, width: 8}}
training: {epochs: 1, batch_size: 16, device: cpu, precision: float32}
"""
EMBEDDING = [
    "data.protocol=half-zero-shot", "data.sampler={classes: 4, images: 4}", "model.head={dim: 16}",
    "loss={name: multi_similarity}", "evaluation.flip=true",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=["classifier", "embedding"])
def run(request: pytest.FixtureRequest, pictures: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Run:
    more = EMBEDDING if request.param == "embedding" else []
    recipe = Recipe.from_yaml(RECIPE, overrides=[f"data.source={pictures.root}", *more])
    return train(recipe, out=tmp_path_factory.mktemp("runs") / request.param)


def test_at_most_one_in_a_hundred_pairs_of_different_classes_reaches_it(run: Run, pictures: Catalog) -> None:
    model = lookalike.load(run.model_dir)
    at = model.config.match_threshold
    assert at is not None
    rows = pictures.rows_of("val")
    if model.config.head:  # measured on the classes that it was not trained on, of all splits
        rows = np.array([row for row, label in enumerate(pictures.labels) if label >= 12])
    measured = pack(pictures.select(rows), 32)
    vectors = model.embed(measured.images)
    different = measured.labels[:, None] != measured.labels
    cosines = (vectors @ vectors.T)[different & np.tri(len(rows), k=-1, dtype=bool)]
    assert (cosines >= at + 1e-6).mean() <= 0.01
    assert (cosines >= at - 1e-3).mean() > 0.009  # and no higher than it must be


def test_one_image_in_ten_that_was_measured_is_unknown(run: Run, pictures: Catalog) -> None:
    model = lookalike.load(run.model_dir)
    if model.config.head:
        assert model.config.unknown_threshold is None  # it names no classes
        return
    measured = pack(pictures.select(pictures.rows_of("val")), 32)
    likeliest = [answers[0].probability for answers in model.predict(measured.images, k=1)]
    at = model.config.unknown_threshold
    assert at is not None
    assert sum(p < at - 1e-7 for p in likeliest) <= len(likeliest) // 10 < sum(p < at + 1e-7 for p in likeliest)


def test_it_is_no_part_of_the_fingerprint(run: Run, tmp_path: Path) -> None:
    old = shutil.copytree(run.model_dir, tmp_path / "old")
    tree = json.loads((old / "config.json").read_text())
    del tree["match_threshold"]
    (old / "config.json").write_text(json.dumps(tree))
    loaded, whole = lookalike.load(old), lookalike.load(run.model_dir)
    assert loaded.config.match_threshold is None  # a folder of before
    assert loaded.fingerprint == whole.fingerprint


@pytest.mark.parametrize("value", [1.5, -2.0, "high"])
def test_what_is_no_cosine_is_refused(value: object, run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.model_dir, tmp_path / "model")
    tree = json.loads((folder / "config.json").read_text()) | {"match_threshold": value}
    (folder / "config.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match="match_threshold"):
        lookalike.load(folder)


def test_the_threshold_is_the_least_number_that_keeps_the_rate() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.arange(200) % 20
    at = match_threshold(vectors, labels)
    assert at is not None
    one, other = np.triu_indices(200, 1)
    apart = labels[one] != labels[other]
    cosines = np.einsum("nd,nd->n", vectors[one[apart]], vectors[other[apart]])
    allowed = int(0.01 * apart.sum())
    assert (cosines >= at).sum() <= allowed
    assert (cosines >= np.nextafter(np.float32(at), np.float32(-1))).sum() > allowed


def test_copies_do_not_make_it_more_than_a_cosine() -> None:
    same = np.tile(np.float32([[1.0000001, 0]]), (100, 1))
    assert match_threshold(same, np.arange(100) % 10) == 1.0


def test_few_pairs_say_nothing() -> None:
    assert match_threshold(np.eye(8, dtype=np.float32), np.arange(8) // 2) is None
    assert match_threshold(np.eye(8, dtype=np.float32), np.zeros(8, np.int64)) is None
