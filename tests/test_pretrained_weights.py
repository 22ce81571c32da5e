"""Pretrained weights behind the doors of a model: the command line, a gallery, the service, export, evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

import lookalike
from lookalike.cli.main import app
from lookalike.errors import InputError
from lookalike.models.runtime import create_runtime
from lookalike.serve.app import create_app
from lookalike.serve.settings import Settings


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, flower: Path, china: Path) -> Path:
    """A folder with parts of two photographs, each in a folder of its name."""
    folder = tmp_path_factory.mktemp("photos")
    for path in (flower, china):
        (folder / path.stem).mkdir()
        with Image.open(path) as image:
            for left in range(0, 160, 40):
                image.crop((left, 0, left + 427, 427)).save(folder / path.stem / f"{left}.png")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def done(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_predict(effnet: Path, flower: Path) -> None:
    tree = json.loads(done("predict", flower, "--model", effnet, "--json"))
    (first, *_) = tree["images"][0]["predictions"]
    assert (first["label"], first["class_id"]) == ("daisy", "n11939491")


def test_a_gallery_finds_the_other_parts_of_a_photograph(
    effnet: Path, photos: Path, flower: Path, tmp_path: Path
) -> None:
    place = tmp_path / "photos.gallery"
    done("gallery", "create", place, "--model", effnet)
    done("gallery", "add", place, photos)
    with lookalike.Gallery.open(place) as gallery:  # which remembers its model
        assert gallery.about.dim == 1280
        found = gallery.search(flower, k=4)
        assert {Path(hit.path).parent.name for hit in found} == {"flower"}
        (other,) = gallery.search(photos / "china" / "40.png", k=1)  # a stored image does not find itself
        assert other.label == "china"


@pytest.mark.slow
def test_the_service_predicts_and_searches_in_onnx_runtime(
    effnet: Path, photos: Path, flower: Path, tmp_path: Path
) -> None:
    place = tmp_path / "photos.gallery"
    with lookalike.Gallery.create(place, effnet) as gallery:
        gallery.add(photos)
    settings = Settings(gallery=str(place), model=str(effnet))
    service = create_app(settings, create_runtime(effnet, "onnx", cache=tmp_path))
    with TestClient(service, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000)) as client:
        about = client.get("/v1/about").json()["model"]
        assert "ONNX Runtime" in about["name"]
        assert (about["classes"], about["size"], about["dim"]) == (1000, 224, 1280)
        image = {"image": flower.read_bytes()}
        assert client.post("/v1/predict", files=image).json()["predictions"][0]["classes"][0]["label"] == "daisy"
        hits = client.post("/v1/search", files=image).json()["hits"]
        assert hits[0]["label"] == "flower"


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_an_export_agrees(format: str, effnet: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / ("effnet.onnx" if format == "onnx" else "effnet.pt2")
    said = done("export", effnet, "--format", format, "--out", out)
    assert "100.00%" in said
    assert out.stat().st_size > 10_000_000


def test_the_next_command_of_an_import_is_one_that_runs(tmp_path: Path) -> None:
    import torch

    from lookalike.models.timm import import_timm

    torch.save(import_timm("x").create_model("test_vit", num_classes=0).state_dict(), tmp_path / "bare.pth")
    said = done("models", "import", tmp_path / "bare.pth", "--as", "timm/test_vit", "--out", tmp_path / "bare")
    assert "lookalike embed IMAGE --out FOLDER --model" in said


def test_a_model_without_classes_says_so(tmp_path: Path, flower: Path, photos: Path, album: Path) -> None:
    import torch

    from lookalike.models.importing import import_model
    from lookalike.models.timm import import_timm

    torch.manual_seed(0)
    state = import_timm("x").create_model("test_vit", num_classes=0).state_dict()
    torch.save(state, tmp_path / "bare.pth")
    folder = import_model(tmp_path / "bare.pth", tmp_path / "bare", architecture="timm/test_vit").folder
    result = run("predict", flower, "--model", folder)
    assert isinstance(result.exception, InputError)
    assert "no classes" in result.exception.message
    refused = run("evaluate", folder, photos)
    assert isinstance(refused.exception, InputError)
    assert "no classes" in refused.exception.message
    assert "half-zero-shot" in refused.exception.remedy
    with lookalike.Gallery.create(tmp_path / "some.gallery", folder) as gallery:
        gallery.add(photos)
        assert len(gallery) == 8
    measured = lookalike.evaluate(folder, album, protocol="half-zero-shot")
    assert np.isfinite(measured.metrics["recall_at_1"])


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "FLOWER", "--model"),
        ("gallery", "create", "NEW", "--model"),
        ("embed", "FLOWER", "--out", "NEW", "--model"),
        ("export",),
    ],
    ids=lambda words: words[0],
)
def test_an_unknown_name_of_timm_is_refused_everywhere(command: tuple[str, ...], flower: Path, tmp_path: Path) -> None:
    words = [str({"FLOWER": flower, "NEW": tmp_path / "new"}.get(word, word)) for word in command]
    result = run(*words, "timm/resnt50")
    assert isinstance(result.exception, InputError)
    assert "Did you mean 'resnet50'" in result.exception.message
    assert not (tmp_path / "new").exists()
