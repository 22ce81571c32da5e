"""`lookalike.fit`: a classifier on the features of a model that is not trained."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lookalike
from lookalike import Gallery
from lookalike.errors import InputError
from lookalike.evaluation.evaluate import evaluate_classification, read_as_trained
from lookalike.evaluation.pair_similarity import match_threshold
from lookalike.models.pretrained import ImageModel, load
from lookalike.models.registry import create_model
from lookalike.models.runtime import TorchRuntime
from lookalike.models.serialization import ModelConfig
from lookalike.recipe import Head
from lookalike.run import Run
from lookalike.training.run import Callbacks, train
from small_gallery import model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier of three animals with random weights."""
    return model_folder(tmp_path_factory.mktemp("runs") / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))


COLORS = {"blue": (60, 60, 200), "green": (60, 200, 60), "grey": (120, 120, 120), "red": (200, 60, 60)}


def images(folder: Path, each: int, seed: int) -> Path:
    """Noise of four colours, `each` images a class."""
    rng = np.random.default_rng(seed)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = np.clip(rng.normal(color, 70, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Eight images of each of four classes, without a validation split."""
    return images(tmp_path / "pets", 8, seed=0)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Eight training and three validation images of each of four classes."""
    images(tmp_path / "split" / "train", 8, seed=0)
    images(tmp_path / "split" / "val", 3, seed=1)
    return tmp_path / "split"


def test_a_validation_split_measures_it(split: Path, model: Path, tmp_path: Path) -> None:
    run = lookalike.fit(split, model=model, out=tmp_path / "run")
    receipt = run.receipt()
    assert receipt["results"]["split"] == "val"
    assert receipt["results"]["n"] == receipt["data"]["val"] == 12
    assert receipt["data"]["train"] == 32
    assert receipt["fit"]["classifier"] == "logistic regression"
    assert receipt["fit"]["views"] == 2
    assert receipt["start"]["fingerprint"] == load(model).fingerprint
    assert "logistic" in run.recipe_path.read_text()
    assert "optimizer" not in run.recipe_path.read_text()
    found = load(run.path)  # the run folder names its model
    again = evaluate_classification(found, read_as_trained(split, found.config))
    assert again.metrics["top1"] == receipt["results"]["top1"] >= 0.5
    np.testing.assert_allclose(again.metrics["nll"], receipt["results"]["nll"], rtol=1e-4)
    assert Run.open(run.path).is_finished


def test_without_one_each_image_is_held_out_once(pets: Path, model: Path, tmp_path: Path) -> None:
    run = lookalike.fit(pets, model=model, out=tmp_path / "run")
    results = run.receipt()["results"]
    assert (results["n"], results["folds"]) == (32, 5)
    report = run.report_path.read_text()
    assert "5-fold cross-validation" in report
    assert "logistic regression (strength" in report
    trained = [load(run.path).predict(path).label == path.parent.name for path in pets.glob("*/*.png")]
    assert np.mean(trained) >= results["top1"] > 0.5
    assert load(run.path).config.unknown_threshold is not None


def test_the_vectors_are_those_of_the_model(pets: Path, model: Path, tmp_path: Path) -> None:
    run = lookalike.fit(pets, model=model, out=tmp_path / "run")
    images = sorted(pets.glob("*/*.png"))[:5]
    ours, theirs = load(run.path), load(model)
    np.testing.assert_allclose(ours.embed(images), theirs.embed(images), atol=1e-6)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    served = TorchRuntime(ours).run(pixels)
    np.testing.assert_allclose(served.logits, ours.logits(pixels), rtol=1e-3, atol=1e-3)


def test_the_logits_are_those_of_the_features(pets: Path, model: Path, tmp_path: Path) -> None:
    fitted = load(lookalike.fit(pets, model=model, out=tmp_path / "run").path)
    images = sorted(pets.glob("*/*.png"))
    head = fitted.network.head
    by_hand = fitted.embed(images) @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(fitted.logits(images), by_hand, rtol=1e-4, atol=1e-4)


def test_the_pooling_is_the_one_that_was_measured(split: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = Head(dim=8)
    config = ModelConfig(
        name="timm/test_vit", options={"img_size": 32}, head=head, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3,
        class_names=("cat", "dog"), class_ids=("cat", "dog"),
    )  # fmt: skip
    ImageModel(create_model(config.name, 2, config.options, head), config).save_pretrained(tmp_path / "model")
    fitted = load(lookalike.fit(split, model=tmp_path / "model", out=tmp_path / "run").path)
    images = sorted(split.glob("val/*/*.png"))
    last = fitted.network.head
    by_hand = fitted.embed(images) @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    np.testing.assert_allclose(fitted.logits(images), by_hand, rtol=1e-4, atol=1e-4)


def test_few_images_get_prototypes(pets: Path, model: Path, tmp_path: Path) -> None:
    for path in pets.glob("*/[2-7].png"):
        path.unlink()
    run = lookalike.fit(pets, model=model, out=tmp_path / "run")
    assert run.receipt()["fit"]["classifier"] == "class prototypes"
    chosen = lookalike.fit(pets, model=model, out=tmp_path / "other", classifier="logistic")
    assert chosen.receipt()["fit"]["classifier"] == "logistic regression"


def test_a_class_needs_two_images(pets: Path, model: Path, tmp_path: Path) -> None:
    owner, *others = sorted((pets / "red").iterdir())
    for path in others:
        path.unlink()
    with pytest.raises(InputError, match=f"class '{owner.parent.name}' has one image"):
        lookalike.fit(pets, model=model, out=tmp_path / "run")
    shutil.copy(owner, owner.with_name("copy.png"))
    with pytest.raises(InputError, match=f"class '{owner.parent.name}' has 2 copies of one image"):
        lookalike.fit(pets, model=model, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_replaced(pets: Path, model: Path, tmp_path: Path) -> None:
    lookalike.fit(pets, model=model, out=tmp_path / "run")
    before = (tmp_path / "run" / "receipt.json").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        lookalike.fit(pets, model=model, out=tmp_path / "run")
    assert (tmp_path / "run" / "receipt.json").read_bytes() == before


def test_a_copy_in_another_class_is_named(pets: Path, model: Path, tmp_path: Path) -> None:
    one, other = sorted(pets.iterdir())[:2]
    shutil.copy(one / "0.png", other / "twin.png")
    said: list[str] = []
    lookalike.fit(pets, model=model, out=tmp_path / "run", callbacks=Callbacks(on_message=said.append))
    assert any(f"{other.name}/twin.png" in words for words in said)


def test_its_recipe_is_not_for_training(pets: Path, model: Path, tmp_path: Path) -> None:
    run = lookalike.fit(pets, model=model, out=tmp_path / "run")
    with pytest.raises(InputError, match="lookalike fit"):
        train(run.recipe_path, out=tmp_path / "other")


def test_an_unknown_classifier(pets: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="classifier"):
        lookalike.fit(pets, model=model, out=tmp_path / "run", classifier="forest")


# From a gallery


def test_stored_vectors_do_as_well_as_the_files(pets: Path, model: Path, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "photos", model) as gallery:
        gallery.add(pets)
        for path in pets.glob("*/*.png"):
            path.unlink()
        run = lookalike.fit(gallery.labelled(), out=tmp_path / "run")
    assert run.receipt()["fit"]["views"] == 1
    assert run.receipt()["data"]["train"] == 32
    assert Path(run.recipe.model.init) == model
    assert set(load(run.path).config.class_names) == {path.name for path in pets.iterdir()}
    assert run.receipt()["results"]["top1"] > 0.5


def test_stored_vectors_set_the_threshold_and_no_image_is_read_for_it(
    pets: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    embed = ImageModel.embed
    monkeypatch.setattr(ImageModel, "embed", lambda self, images, **how: seen.append(1) or embed(self, images, **how))
    with Gallery.create(tmp_path / "photos", model) as gallery:
        gallery.add(pets)
        items = gallery.labelled()
        read: list[int] = []
        watched = replace(items, thumbnail=lambda row: read.append(row) or items.thumbnail(row))
        seen.clear()
        run = lookalike.fit(watched, out=tmp_path / "run")
    assert load(run.path).config.match_threshold == match_threshold(items.vectors, items.labels)
    assert len(seen) == 1  # of the one image that compares the stored vectors with the classifier's
    wrong = run.receipt()["results"]["n"] * (1 - run.receipt()["results"]["top1"])
    assert 0 < len(set(read)) <= round(wrong)


def test_another_model_reads_the_files(pets: Path, model: Path, tmp_path: Path) -> None:
    other = model_folder(tmp_path / "other", seed=5)
    with Gallery.create(tmp_path / "photos", model) as gallery:
        gallery.add(pets)
        run = lookalike.fit(gallery.labelled(), model=other, out=tmp_path / "run")
        assert run.receipt()["fit"]["views"] == 2
        assert run.receipt()["start"]["fingerprint"] == load(other).fingerprint
        gone = sorted(pets.glob("*/*.png"))[0]
        gone.unlink()
        with pytest.raises(InputError, match=gone.name):
            lookalike.fit(gallery.labelled(), model=other, out=tmp_path / "again")


def test_a_gallery_without_labels(pets: Path, model: Path, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "photos", model) as gallery:
        gallery.add(pets, folder_labels=False)
        with pytest.raises(InputError, match="no item has a label"):
            gallery.labelled()
