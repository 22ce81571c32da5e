"""What the recipe `own` takes from the model that it starts from, and from the number of images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lookalike import recipe as recipes
from lookalike.errors import InputError
from lookalike.models.pretrained import load
from lookalike.training.adapt import adapted
from lookalike.training.fit import fit
from lookalike.training.run import Callbacks, train
from small_gallery import model_folder

QUICK = ["training.epochs=1", "training.batch_size=8", "training.device=cpu", "training.precision=float32"]


def test_network_and_preprocessing_are_those_of_the_model() -> None:
    found = adapted(recipes.load("own"), 1000)
    default = load("default").config
    assert (found.model.name, found.data.mean, found.data.std) == (default.name, default.mean, default.std)
    assert found.data.image_size == 96
    assert not found.training.adapt


def test_fewer_images_are_seen_more_often() -> None:
    small, medium, large = (adapted(recipes.load("own"), images).training for images in (60, 2000, 50_000))
    assert small.batch_size < medium.batch_size == large.batch_size
    assert small.epochs > medium.epochs > large.epochs
    assert adapted(recipes.load("own"), 50_000).data.image_size == 64


def test_what_the_user_sets_stays() -> None:
    given = recipes.load("own", ["training.epochs=3", "data.image_size=80"]).with_values({"data.source": "pets"})
    found = adapted(given, 1000)
    assert (found.training.epochs, found.data.image_size, found.data.source) == (3, 80, "pets")


def test_it_needs_a_model_to_start_from() -> None:
    with pytest.raises(InputError, match=r"model\.init") as caught:
        adapted(recipes.load("own", ["model.init="]), 1000)
    assert "quickstart" in caught.value.remedy


def test_a_run_starts_from_the_fitted_classifier(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    model = model_folder(tmp_path / "model")
    recipe = recipes.load("own", [*QUICK, "optimizer.lr=1e-12", f"model.init={model}", "data.image_size=32"])
    said: list[str] = []
    run = train(recipe, data=album, out=tmp_path / "run", callbacks=Callbacks(on_message=said.append))
    assert any("lookalike fit" in words for words in said)  # 8 images a class are few
    trained, before = load(run.path), load(model)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(trained.embed(pixels), before.embed(pixels), atol=1e-4)
    assert run.recipe.model.unit_features
    fitted = load(fit(album, model=model, out=tmp_path / "fitted").path)
    np.testing.assert_allclose(trained.network.head.weight.detach(), fitted.network.head.weight.detach(), rtol=1e-3)
    again = train(recipe, data=album, out=tmp_path / "run", resume=True)  # the same recipe, adapted in the same way
    assert again.receipt() == run.receipt()


def test_a_class_of_one_training_image_is_named(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    model = model_folder(tmp_path / "model")
    pets = Path(shutil.copytree(album, tmp_path / "pets"))
    first = sorted((pets / "train").iterdir())[0]
    for path in sorted(first.iterdir())[1:]:
        path.unlink()
    with pytest.raises(InputError, match=f"class '{first.name}' has one image"):
        train(recipes.load("own", [*QUICK, f"model.init={model}"]), data=pets, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
