"""Runtimes agree with the model; the file of ONNX Runtime is exported once, and checked each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lookalike.errors import InputError
from lookalike.models.pretrained import ImageModel
from lookalike.models.registry import create_model
from lookalike.models.runtime import OnnxRuntime, Runtime, TorchRuntime, create_runtime
from lookalike.models.serialization import ModelConfig
from lookalike.recipe import Head
from small_gallery import model_folder


def model_of(head: Head | None = None, **about: Any) -> ImageModel:
    config = ModelConfig(
        name="resnet18",
        options={"stem": "patch", "width": 8},
        head=head,
        image_size=32,
        crop_mode="squash",
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.3, 0.2),
        class_names=("cat", "dog", "emu"),
        class_ids=("c", "d", "e"),
        temperature=1.5,
        unknown_threshold=0.4,
        **about,
    )
    torch.manual_seed(0)
    return ImageModel(create_model(config.name, 3, config.options, head).eval(), config)


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of exported files: models of the same weights share a file."""
    return tmp_path_factory.mktemp("onnx")


def runtime(kind: str, model: ImageModel, cache: Path) -> Runtime:
    return create_runtime(model, "onnx" if kind == "onnx" else "torch", threads=1, cache=cache)


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_it_gives_what_the_model_gives(kind: str, images: NDArray[np.uint8], cache: Path) -> None:
    model = model_of(dataset="pets")
    made = runtime(kind, model, cache)
    found = made.run(images)
    assert found.logits is not None
    np.testing.assert_allclose(found.logits, model.logits(images), atol=1e-4)
    np.testing.assert_allclose(found.vectors, model.embed(images), atol=1e-5)
    assert (found.vectors * model.embed(images)).sum(1).min() >= 0.9999
    np.testing.assert_array_equal(made.embed(images), found.vectors)
    assert (made.fingerprint, made.size, made.crop_mode, made.dim) == (model.fingerprint, 32, "squash", 64)
    assert (made.class_names, made.class_ids) == (("cat", "dog", "emu"), ("c", "d", "e"))
    assert (made.temperature, made.unknown_threshold) == (1.5, 0.4)
    assert made.name.startswith("resnet18, pets (")
    made.close()


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_an_embedding_model_has_no_classes(kind: str, images: NDArray[np.uint8], cache: Path) -> None:
    model = model_of(Head(dim=12))
    made = runtime(kind, model, cache)
    found = made.run(images)
    assert found.logits is None
    assert made.class_names == ()
    assert made.dim == 12
    np.testing.assert_allclose(found.vectors, model.embed(images), atol=1e-5)


def test_the_file_is_made_once_and_made_again_when_it_is_damaged(
    images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lookalike.models import export as exporting

    model = model_of()
    made: list[Path] = []
    right = exporting.export
    monkeypatch.setattr(exporting, "export", lambda one, path: made.append(path) or right(one, path))
    for _ in range(2):
        OnnxRuntime(model, 1, tmp_path).close()
    assert len(made) == 1
    data = bytearray(made[0].read_bytes())
    data[len(data) // 2] ^= 1
    made[0].write_bytes(data)
    again = OnnxRuntime(model, 1, tmp_path)
    assert len(made) == 2
    np.testing.assert_allclose(again.run(images).vectors, model.embed(images), atol=1e-5)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".onnx", ".sha256"]


AGAIN = """
import sys
from pathlib import Path
import numpy as np
from lookalike.models.runtime import create_runtime
runtime = create_runtime(sys.argv[1], "onnx", cache=Path(sys.argv[2]))
print(runtime.run(np.zeros((2, runtime.size, runtime.size, 3), np.uint8)).vectors.shape, "torch" in sys.modules)
"""


def test_from_a_kept_file_it_starts_without_pytorch(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    said = [
        subprocess.run([sys.executable, "-c", AGAIN, folder, tmp_path], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [one.stdout for one in said] == ["(2, 32) True\n", "(2, 32) False\n"]


def test_a_kept_file_does_not_hide_that_the_model_is_damaged(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    OnnxRuntime(folder, 1, tmp_path).close()
    weights = folder / "model.safetensors"
    right = weights.read_bytes()
    for data, words in ((right[:-4], "SHA-256 is"), (right[:-4] + b"\0\0\0\1", "SHA-256 is")):
        weights.write_bytes(data)
        with pytest.raises(InputError, match=words):
            OnnxRuntime(folder, 1, tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        OnnxRuntime(folder, 1, tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"LOOKALIKE_CACHE|cannot be written"):
        OnnxRuntime(model_of(), 1, tmp_path / "file" / "onnx")


def test_on_a_cpu_it_is_onnx_runtime(cache: Path) -> None:
    assert isinstance(create_runtime(model_of(), cache=cache), OnnxRuntime)
    assert isinstance(create_runtime(model_of(), "torch"), TorchRuntime)


def test_a_closed_runtime_does_not_run(images: NDArray[np.uint8], cache: Path) -> None:
    made = OnnxRuntime(model_of(), 1, cache)
    made.close()
    with pytest.raises(RuntimeError, match="closed"):
        made.run(images)
