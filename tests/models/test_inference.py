"""A prepared network gives the vectors of the plain one, and images are normalised as in training."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lookalike.data import augment, synthetic
from lookalike.errors import InputError
from lookalike.image import decode
from lookalike.models import inference
from lookalike.models.fusion import DenseConvolution, fold_batch_norm, use_dense_for_small_maps
from lookalike.models.inference import Compute, Normalize
from lookalike.models.pretrained import ImageModel, load
from lookalike.models.registry import create_model
from lookalike.models.runtime import TorchRuntime
from lookalike.models.serialization import ModelConfig
from lookalike.recipe import Head
from small_gallery import model_folder

NETWORKS = {
    "weave": {"widths": [16, 32], "pairs": [1, 1]},
    "resnet18": {"stem": "patch", "width": 16},
    "resnet50": {"stem": "imagenet", "width": 8, "blur": True},
    "cubs_resnet_2": {"stem": "small", "width": 8, "placement": "stage"},
    "simple_cnn": {},
}


def pictures(count: int, size: int = 32) -> NDArray[np.uint8]:
    """Drawn, not noise: of noise, which no network is made for, bfloat16 changes the vectors several times as much."""
    rng = np.random.default_rng(0)
    return np.stack([synthetic.render(synthetic.CLASS_NAMES[i % 24], rng, size) for i in range(count)])


def model_of(name: str, head: Head | None = None) -> ImageModel:
    """A network with batch norms that do something, as after training."""
    config = ModelConfig(
        name=name, options=NETWORKS[name], image_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), head=head,
        class_names=("a", "b"), class_ids=("a", "b"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = ImageModel(create_model(name, 2, NETWORKS[name], head), config)
    generator = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.2, generator=generator)
    model.train()
    with torch.no_grad():
        normalize = Normalize(model.config.mean, model.config.std)
        for x in torch.from_numpy(pictures(48)).split(24):
            model.network(normalize(x))
    return model.eval()


def cosines(model: ImageModel, embedder: TorchRuntime, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (model.embed(images) * embedder.embed(images)).sum(1)


@pytest.mark.parametrize("head", [None, Head(dim=24), Head(dim=24, pooling="gem", kind="mlp", hidden=48)])
@pytest.mark.parametrize("name", NETWORKS)
def test_vectors_are_those_of_the_plain_way(name: str, head: Head | None) -> None:
    model, images = model_of(name, head), pictures(48)
    before = model.network.state_dict()
    for compute, least in (("float32", 1 - 1e-5), ("bfloat16", 0.999)):
        embedder = TorchRuntime(model, compute)  # type: ignore[arg-type]
        found = embedder.embed(images)
        assert (found.shape, found.dtype) == ((48, model.embedding_dim), np.float32)
        assert (embedder.dim, embedder.size, embedder.fingerprint) == (found.shape[1], 32, model.fingerprint)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        assert cosines(model, embedder, images).min() >= least
    assert all(torch.equal(before[key], now) for key, now in model.network.state_dict().items())


def test_in_bfloat16_the_network_is_really_computed_in_it_but_for_the_stem() -> None:
    model, seen = model_of("resnet18", Head(dim=8)), []
    embedder = TorchRuntime(model, "bfloat16")
    for module in embedder._network.network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):  # the dense ones are linear, too
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    embedder.embed(pictures(2))
    assert seen[:2] == [torch.float32] * 2
    assert set(seen[2:-1]) == {torch.bfloat16}
    assert seen[-1] == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_folding_takes_every_batch_norm_that_follows_a_convolution() -> None:
    for name in NETWORKS:
        network = model_of(name).network
        fold_batch_norm(network)
        assert not [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)], name


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0), (2, 1, 1), (5, 1, 2), (3, (2, 1), (1, 2))]
)
@pytest.mark.parametrize(("height", "width"), [(2, 2), (1, 1), (3, 4), (4, 1)])
def test_a_dense_convolution_is_the_convolution(
    height: int, width: int, size: int, stride: int, padding: int, bias: bool
) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(6, 10, size, stride, padding, bias=bias)
    x = torch.randn(3, 6, height, width)
    expected = plain(x)
    with torch.no_grad():
        found = DenseConvolution(plain, height, width)(x.contiguous(memory_format=torch.channels_last))
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)


def test_convolutions_on_the_smallest_maps_become_dense_and_others_do_not() -> None:
    network = model_of("resnet18").network  # maps of 8, 4, 2 and 1 positions a side
    use_dense_for_small_maps(network, 32)
    dense = [name for name, module in network.named_modules() if isinstance(module, DenseConvolution)]
    assert dense == [
        f"blocks.{block}.branch.{part}.0" for block, part in ((4, 1), (5, 0), (5, 1), (6, 0), (6, 1), (7, 0), (7, 1))
    ]


@pytest.mark.parametrize(("in_hardware", "faster"), [(True, True), (True, False), (False, True)])
def test_bfloat16_is_chosen_where_the_cpu_has_it_and_it_is_faster(
    in_hardware: bool, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("resnet18")
    monkeypatch.setattr(inference, "has_bfloat16", lambda: in_hardware)
    monkeypatch.setattr(inference, "is_faster_in_bfloat16", lambda *_: faster)
    assert TorchRuntime(model).bfloat16 == (in_hardware and faster)
    assert not TorchRuntime(model, "float32").bfloat16
    assert TorchRuntime(model, "bfloat16").bfloat16


def test_the_slower_precision_is_measured_as_slower() -> None:
    class Slow(torch.nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.dtype = dtype

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_autocast_enabled("cpu") == (self.dtype == torch.bfloat16):
                time.sleep(0.02)
            return x

    slow_in_float32, slow_in_bfloat16 = Slow(torch.float32), Slow(torch.bfloat16)
    assert inference.is_faster_in_bfloat16(slow_in_float32, slow_in_float32, 8)
    assert not inference.is_faster_in_bfloat16(slow_in_bfloat16, slow_in_bfloat16, 8)


def test_a_batch_may_be_of_any_size(tmp_path: Path) -> None:
    embedder = TorchRuntime(load(model_folder(tmp_path / "model")), "float32")
    images = pictures(7)
    assert embedder.embed(images[:0]).shape == (0, embedder.dim)
    alone = np.concatenate([embedder.embed(images[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(embedder.embed(images), alone, atol=1e-5)
    np.testing.assert_allclose(embedder.embed(images[::-1]), alone[::-1], atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 32, 32, 3), np.float32), np.zeros((32, 32, 3), np.uint8)]
)
def test_what_is_no_batch_is_refused(wrong: NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(str(wrong.shape))):
        TorchRuntime(load(model_folder(tmp_path / "model"))).embed(wrong)


def test_images_are_normalised_as_in_training() -> None:
    images = torch.from_numpy(pictures(3))
    mean, std = (0.48, 0.45, 0.4), (0.28, 0.27, 0.3)
    x = Normalize(mean, std)(images)
    assert torch.equal(x, augment.normalise(images, mean, std))
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_one_run_gives_logits_and_vectors(compute: Compute) -> None:
    model, images = model_of("weave"), pictures(12)
    runtime = TorchRuntime(model, compute)
    outputs = runtime.run(images)
    assert outputs.logits is not None
    np.testing.assert_allclose(outputs.logits, model.logits(images), atol=1e-4 if compute == "float32" else 0.05)
    np.testing.assert_array_equal(outputs.vectors, runtime.embed(images))


@pytest.mark.real_data
@pytest.mark.skipif("LOOKALIKE_REAL_MODEL" not in os.environ, reason="needs a trained model: set LOOKALIKE_REAL_MODEL")
def test_on_real_images_and_a_trained_model_nothing_is_lost(real_data: Path) -> None:
    model = load(os.environ["LOOKALIKE_REAL_MODEL"])
    files = sorted((real_data / "tiny-imagenet-200" / "val" / "images").iterdir())[:256]
    images = np.stack([decode(file.read_bytes(), model.config.image_size) for file in files])
    assert cosines(model, TorchRuntime(model, "float32"), images).min() >= 0.999999
    assert cosines(model, TorchRuntime(model, "bfloat16"), images).min() >= 0.9999
