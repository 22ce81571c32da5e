"""The model in the package: there, whole, small, and what its card says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lookalike
from lookalike.models.serialization import DEFAULT_FOLDER

RECEIPT = Path(__file__).parents[2] / "docs" / "default-model.json"


def test_it_answers_without_a_download() -> None:
    model = lookalike.load()
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (answers,) = model.predict([picture])
    assert len(answers) == 5
    assert model.config.num_classes == 200
    assert model.config.unknown_threshold is not None
    assert model.config.match_threshold is not None
    assert model.config.is_unknown(0.01)
    assert lookalike.load("default").fingerprint == model.fingerprint


def test_it_is_small_and_its_card_is_from_its_receipt() -> None:
    receipt = json.loads(RECEIPT.read_text())
    assert sum(file.stat().st_size for file in DEFAULT_FOLDER.iterdir()) < 25e6
    assert receipt["fingerprint"] == lookalike.load().fingerprint
    card = (DEFAULT_FOLDER / "README.md").read_text()
    assert f"{receipt['recognition']['top1']:.2%} top-1" in card
    assert receipt["recognition"]["top1"] == pytest.approx(0.5928, abs=0.001)
    assert f"Recall@1 {receipt['twin']['recall']['1']:.2%}" in card
    assert f"AUROC {receipt['twin']['auroc']:.3f}" in card


def test_a_gallery_of_it_finds_it_again(tmp_path: Path) -> None:
    with lookalike.Gallery.create(tmp_path / "g") as gallery:
        assert gallery.about.model == "default"
    with lookalike.Gallery.open(tmp_path / "g") as gallery:
        assert gallery.embedder.fingerprint == gallery.about.fingerprint
