"""Exported models, run by ONNX Runtime and by PyTorch, say what the model says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from lookalike.cli.export import export as verb
from lookalike.errors import InputError
from lookalike.image import CropMode, ResizeCrop
from lookalike.models.export import Format, OnnxModel, compare, export, read_exported
from lookalike.models.pretrained import ImageModel
from lookalike.models.registry import create_model
from lookalike.models.serialization import ModelConfig
from lookalike.recipe import Head

pytest.importorskip("onnxruntime", reason="the extra export is not installed")

SMALL = {"stem": "patch", "width": 8}
CUBS = {**SMALL, "features": 32, "tokens": 8}
NETWORKS: dict[str, dict[str, Any]] = {
    "simple_cnn": {},
    "weave": {"widths": [16, 32], "pairs": [1, 1]},
    "resnet18": SMALL,
    "resnet50": {**SMALL, "blur": True},
    "cubs_resnet_1": {**CUBS, "placement": "last"},
    "cubs_resnet_2": {**CUBS, "placement": "stage"},
    "cubs_resnet_3": {**CUBS, "placement": "stage"},
}
HEADS = {
    "none": None,
    "gem": Head(dim=12, pooling="gem"),
    "mlp": Head(dim=12, pooling="both", kind="mlp", hidden=20),
    "projection": Head(dim=12, projection=True),
}


def model_of(name: str, head: Head | None = None, seed: int = 0) -> ImageModel:
    """A network of random weights, with statistics of batch norms that are not those of the beginning."""
    config = ModelConfig(
        name=name,
        options=NETWORKS[name],
        head=head,
        image_size=32,
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.3, 0.2),
        class_names=("cat", "dog", "emu"),
        class_ids=("c", "d", "e"),
        temperature=1.5,
        unknown_threshold=0.4,
    )
    torch.manual_seed(seed)
    network = create_model(name, 3, config.options, head)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, 3, 32, 32))
    return ImageModel(network.eval(), config)


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_says_the_same_in_onnx(name: str, images: NDArray[np.uint8], tmp_path: Path) -> None:
    model = model_of(name)
    export(model, tmp_path / "m.onnx")
    read = OnnxModel(tmp_path / "m.onnx", threads=1)
    found = compare(model, read, images)
    assert found.problems(exact=True) == []
    assert found.logits is not None
    assert found.logits < 1e-3
    assert read.outputs == ("logits", "embedding")
    for count in (1, 7):  # any number of images
        assert read.run(images[:count])["embedding"].shape == (count, model.embedding_dim)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_every_head_says_the_same_in_every_format(
    head: str, format: Format, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    model = model_of("resnet18", HEADS[head])
    path = tmp_path / ("m.onnx" if format == "onnx" else "m.pt2")
    export(model, path, format)
    read = read_exported(path)
    found = compare(model, read, images)
    assert found.problems(exact=True) == []
    assert (found.logits is None) == (HEADS[head] is not None)
    assert read.about["fingerprint"] == model.fingerprint
    assert read.about["image_size"] == 32
    assert read.about["class_names"] == ([] if HEADS[head] else ["cat", "dog", "emu"])
    assert (read.about["temperature"], read.about["unknown_threshold"]) == (1.5, 0.4)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_int8_is_smaller_and_near(images: NDArray[np.uint8], tmp_path: Path) -> None:
    model = model_of("resnet18")
    export(model, tmp_path / "whole.onnx")
    export(model, tmp_path / "small.onnx", precision="int8", images=images)
    read = OnnxModel(tmp_path / "small.onnx", threads=1)
    found = compare(model, read, images)
    assert found.cosine > 0.95
    assert found.logits is not None
    assert found.logits > 1e-4  # it was quantised
    assert read.about["class_names"] == ["cat", "dog", "emu"]
    assert (tmp_path / "small.onnx").stat().st_size < 0.6 * (tmp_path / "whole.onnx").stat().st_size


def test_what_cannot_be_is_refused_and_leaves_nothing(images: NDArray[np.uint8], tmp_path: Path) -> None:
    model = model_of("resnet18")
    with pytest.raises(InputError, match=r"End the name in|not the ending"):
        export(model, tmp_path / "m.pt2", "onnx")
    with pytest.raises(InputError, match="ONNX only"):
        export(model, tmp_path / "m.pt2", "torch", "int8", images)
    with pytest.raises(InputError, match="nothing to be fitted to"):
        export(model, tmp_path / "m.onnx", precision="int8")
    with pytest.raises(InputError, match="no such folder"):
        export(model, tmp_path / "no" / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_no_model_of_ours(images: NDArray[np.uint8], tmp_path: Path) -> None:
    model = model_of("resnet18")
    export(model, tmp_path / "m.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes((tmp_path / "m.onnx").read_bytes()[:1000])
    for path in (cut, tmp_path / "none.onnx"):
        with pytest.raises(InputError, match=path.name):
            OnnxModel(path)
    (tmp_path / "cut.pt2").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"cut\.pt2"):
        read_exported(tmp_path / "cut.pt2")
    with pytest.raises(InputError, match="of another model"):
        compare(model_of("resnet18", seed=1), OnnxModel(tmp_path / "m.onnx"), images)
    with pytest.raises(InputError, match="too few"):
        compare(model, OnnxModel(tmp_path / "m.onnx"), images[:3])


def run(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(verb)
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_the_command_line_checks_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    model_of("weave").save_pretrained(tmp_path / "model")
    said = run(tmp_path / "model")
    assert said.exit_code == 0, said.output
    assert said.stdout.startswith("model.onnx: ")
    assert "100.00% of the ten nearest are the same" in said.stdout
    tree = json.loads(run(tmp_path / "model", "--format", "torch", "--json").stdout)
    assert tree["file"] == "model.pt2"
    assert tree["bytes"] == (tmp_path / "model.pt2").stat().st_size
    assert tree["agreement"]["top1"] == 1.0


def test_a_file_that_is_too_far_off_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    model_of("weave").save_pretrained(tmp_path / "model")
    right = OnnxModel.run
    monkeypatch.setattr(
        OnnxModel, "run", lambda self, images: {k: v[::-1].copy() for k, v in right(self, images).items()}
    )
    out = tmp_path / "m.onnx"
    failed = run(tmp_path / "model", "--out", out)
    assert isinstance(failed.exception, InputError)
    assert "not kept" in failed.exception.message
    assert not out.exists()
    assert {file.name for file in tmp_path.iterdir()} == {"cache", "model"}


def test_the_program_in_the_how_to_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "export.md").read_text()
    program = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    model = model_of("resnet18")
    export(model, Path("pets.onnx"))
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(picture).save("photo.png")
    exec(program.replace("photo.jpg", "photo.png"), {})
    assert capsys.readouterr().out.strip() == model.predict([picture], k=1)[0][0].label


@pytest.mark.parametrize(
    "crop_mode", ["center", "squash", ResizeCrop(0.8, "bilinear"), ResizeCrop(0.9, squash=True)], ids=str
)
def test_the_program_in_the_how_to_agrees_with_predict_on_photos(
    crop_mode: CropMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "export.md").read_text()
    program = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    plain = model_of("resnet18")
    model = ImageModel(plain.network, plain.config.model_copy(update={"crop_mode": crop_mode}))
    export(model, Path("pets.onnx"))
    coarse = np.random.default_rng(1).integers(0, 256, (5, 4, 3), np.uint8)
    photo = Image.fromarray(coarse).resize((60, 80), Image.Resampling.BICUBIC)
    see_through = photo.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(photo.size))
    see_through.save("clear.png")
    names = ["clear.png"]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        names.append(f"turned-{orientation}.jpg")
        photo.save(names[-1], quality=95, exif=exif)
    for name in names:
        found: dict[str, Any] = {}
        exec(program.replace("photo.jpg", name), found)
        np.testing.assert_allclose(found["logits"], model.logits([name]), atol=1e-3)


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_the_file_says_all_of_the_preprocessing(format: Format, tmp_path: Path) -> None:
    path = tmp_path / ("m.onnx" if format == "onnx" else "m.pt2")
    export(model_of("simple_cnn"), path, format)
    said = read_exported(path).about["preprocessing"]
    assert said["size"] == [32, 32]
    assert said["normalization"] == {
        "where": "inside the file",
        "scale": 1 / 255,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.25, 0.3, 0.2],
    }
    assert (said["resampling"], said["antialias"], said["background"]) == ("bicubic", True, [255, 255, 255])
    for key, word in {"orientation": "EXIF", "transparency": "white", "color_space": "sRGB", "crop": "center"}.items():
        assert word in said[key]
    assert "shorter side" in said["resize"]


@pytest.mark.parametrize("name", ["nodir/x.onnx", "x.pt2", "x.txt", "folder", "folder.onnx", f"{'x' * 300}.onnx"])
def test_what_is_refused_is_named_as_it_was_given(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lookalike.cli.export._pictures", None)  # it is refused before they are drawn
    monkeypatch.chdir(tmp_path)
    model_of("simple_cnn").save_pretrained(tmp_path / "model")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "folder").mkdir()
    failed = run(tmp_path / "model", "--out", name)
    assert isinstance(failed.exception, InputError)
    assert failed.exception.message.startswith(f"{name}: ")
    assert "checked" not in failed.exception.message
    assert {file.name for file in tmp_path.iterdir()} == {"model", "folder", "folder.onnx"}


def test_a_missing_package_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookalike.cli.export._pictures", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    model_of("simple_cnn").save_pretrained(tmp_path / "model")
    failed = run(tmp_path / "model", "--out", tmp_path / "m.onnx")
    assert isinstance(failed.exception, InputError)
    assert "onnxscript" in failed.exception.message
    assert "export" in failed.exception.remedy
