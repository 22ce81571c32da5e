"""`lookalike fit`: the command and its mistakes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from lookalike import Gallery
from lookalike.cli.main import app
from lookalike.errors import InputError
from small_gallery import model_folder


def fit(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("runs") / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))


def test_a_fitted_model_predicts_and_makes_a_gallery(album: Path, model: Path, tmp_path: Path) -> None:
    said = fit(album, "--model", model, "--out", tmp_path / "run")
    assert said.exit_code == 0, said.output
    assert "logistic regression on the features of" in said.stdout
    image = next(album.glob("val/*/*.png"))
    predicted = CliRunner().invoke(app, ["predict", str(image), "--model", str(tmp_path / "run")])
    assert predicted.exit_code == 0, predicted.output
    made = CliRunner().invoke(app, ["gallery", "create", str(tmp_path / "g"), "--model", str(tmp_path / "run")])
    assert made.exit_code == 0, made.output
    with Gallery.open(tmp_path / "g", write=True) as gallery:
        assert gallery.add(album / "val").added == 12


def test_from_a_gallery(album: Path, model: Path, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "photos", model) as gallery:
        gallery.add(album / "train")
    said = fit("--from", tmp_path / "photos", "--out", tmp_path / "run")
    assert said.exit_code == 0, said.output
    assert "5-fold cross-validation" in said.stdout


def test_chance_level_is_said(album: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    meaningless = np.random.default_rng(1).permutation(32) % 2
    for number, path in enumerate(sorted(album.glob("train/*/*.png"))):
        target = folder / f"class{meaningless[number]}" / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    said = fit(folder, "--model", model, "--out", tmp_path / "run")
    assert said.exit_code == 0, said.output
    assert "chance level" in said.stdout
    assert "This is chance level" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("arguments", [[], ["pets", "--from", "photos.gallery"]])
def test_one_source_is_needed(arguments: list[str]) -> None:
    error = fit(*arguments).exception
    assert isinstance(error, InputError)
    assert "--from" in str(error)
