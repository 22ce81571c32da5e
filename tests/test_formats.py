"""Files of version 0.1.0, in `tests/formats`, can still be read and give the same answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lookalike.cli.main import app
from lookalike.gallery.gallery import Gallery
from lookalike.gallery.store.sqlite import SqliteStore
from lookalike.image import decode
from lookalike.models.export import read_exported
from lookalike.models.pretrained import load
from lookalike.run import Run

FORMATS = Path(__file__).parent / "formats"
EXPECTED: dict[str, Any] = json.loads((FORMATS / "expected.json").read_text())
IMAGE = FORMATS / "pictures" / "cat" / "0.png"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy of the files, as opening some of them writes beside them."""
    return Path(shutil.copytree(FORMATS, tmp_path / "formats"))


def test_a_model_folder_opens_and_says_the_same() -> None:
    model = load(FORMATS / "run" / "model")
    assert model.fingerprint == EXPECTED["model"]["fingerprint"]
    np.testing.assert_allclose(model.logits([IMAGE])[0], EXPECTED["model"]["cat/0.png"], atol=1e-4)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_an_export_runs_and_says_the_same(name: str) -> None:
    exported = read_exported(FORMATS / name)
    logits = exported.run(decode(IMAGE, 32)[None])["logits"][0]
    np.testing.assert_allclose(logits, EXPECTED["model"]["cat/0.png"], atol=1e-4)


def test_a_gallery_opens_and_answers_the_same(kept: Path) -> None:
    model = load(kept / "run" / "model")
    with Gallery.open(kept / "album.gallery", model=model) as gallery:
        assert len(gallery.store) == EXPECTED["album.gallery"]["rows"]
        assert gallery.store.check() == []
        for id, path, label, score in EXPECTED["album.gallery"]["cat/0.png"]:
            (row,) = gallery.store.get([id])
            assert row is not None
            assert (row.path.endswith(path), row.label) == (True, label)
            found = gallery.search(IMAGE, k=18, threshold=None)
            scores = {hit.id: hit.score for hit in (*found.same, *found.hits)}
            assert scores[id] == pytest.approx(score, abs=2e-3)
        np.testing.assert_allclose(gallery.store.vectors([1])[0], EXPECTED["embedding of row 1"], atol=2e-3)


def test_an_approximate_index_opens_and_answers_the_same(kept: Path) -> None:
    with SqliteStore.open(kept / "vectors.gallery", exact_below=100) as store:
        assert store.facts()["covered by the approximate index"] == 300
        assert store.check() == []
        ids = [answers[0][0] for answers in EXPECTED["vectors.gallery"]]
        for found, answers in zip(store.search(store.vectors(ids), 5), EXPECTED["vectors.gallery"], strict=True):
            assert not found.exact
            assert [hit.id for hit in found.hits] == [id for id, _ in answers]
            np.testing.assert_allclose([hit.score for hit in found.hits], [score for _, score in answers], atol=1e-3)


def test_an_exported_gallery_becomes_one_again(kept: Path) -> None:
    target = kept / "again.gallery"
    arguments = ["gallery", "create", str(target), "--from", str(kept / "album.parquet")]
    done = CliRunner().invoke(app, [*arguments, "--model", str(kept / "run" / "model")])
    assert done.exit_code == 0, done.output
    with SqliteStore.open(target) as store:
        assert len(store) == EXPECTED["album.gallery"]["rows"]
        np.testing.assert_allclose(store.vectors([1])[0], EXPECTED["embedding of row 1"], atol=2e-3)


def test_a_finished_run_is_known_as_one(kept: Path) -> None:
    runs = kept / "runs"
    runs.mkdir()
    shutil.copytree(kept / "run", runs / "sample")
    run = Run.open(runs / "sample")
    assert run.receipt()["results"]["top1"] == pytest.approx(1 / 3)
    assert run.is_finished
    assert run.recipe.training.epochs == 2


def test_a_recipe_with_former_keys_is_read_from_a_run_folder(kept: Path) -> None:
    path = kept / "run" / "recipe.yaml"
    text = path.read_text()
    for former, value in {
        "head_lr: 1.0": 20.0,
        "accumulate: 1": 2,
        "ema: 0.0": 0.9,
        "freeze_norm: false": True,
    }.items():
        assert former in text
        text = text.replace(former, f"{former.partition(':')[0]}: {json.dumps(value)}")
    path.write_text(text)
    recipe = Run.open(kept / "run").recipe
    training = recipe.training
    assert recipe.optimizer.head_lr_scale == 20
    assert (training.grad_accum_steps, training.ema_decay, training.freeze_bn) == (2, 0.9, True)
