"""Logits over packed images: the same however they are cut into batches, and as one image at a time gives them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.evaluation.evaluate import outputs_of
from lookalike.models.registry import create_model

MEAN, STD = (0.48, 0.45, 0.4), (0.28, 0.27, 0.3)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network with batch norm that has seen some data, left in training mode."""
    torch.manual_seed(0)
    network = create_model("weave", 4, {"widths": [16, 32], "pairs": [1, 1]})
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, 3, 16, 16))
        network.head.weight.normal_()
    return network.train()


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    images.flags.writeable = False  # as a memory-mapped pack is
    return images


def measured(network: nn.Module, images: NDArray[np.uint8], **options: object) -> NDArray[np.float32]:
    return outputs_of(network, images, view="outputs", mean=MEAN, std=STD, **options)  # type: ignore[arg-type]


def one_by_one(network: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Each image by itself: scaled to 0..1, mean taken off, divided by the deviation, channels first."""
    network.eval()
    rows = []
    for image in images:
        x = ((image / 255.0 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)
        with torch.no_grad():
            rows.append(network(torch.tensor(x[None], dtype=torch.float32))[0].numpy())
    network.train()
    return np.array(rows)


def test_they_are_those_of_each_image_by_itself(network: nn.Module, images: NDArray[np.uint8]) -> None:
    found = measured(network, images)
    assert found.dtype == np.float32
    assert found.shape == (7, 4)
    assert np.ptp(found, axis=0).min() > 0.01, "the network tells these images apart"
    np.testing.assert_allclose(found, one_by_one(network, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("flip", [False, True])
def test_batches_make_no_difference(network: nn.Module, images: NDArray[np.uint8], batch_size: int, flip: bool) -> None:
    np.testing.assert_allclose(
        measured(network, images, batch_size=batch_size, flip=flip), measured(network, images, flip=flip), atol=1e-4
    )


def test_flip_is_the_mean_with_the_mirrored_image(network: nn.Module, images: NDArray[np.uint8]) -> None:
    plain, mirrored = one_by_one(network, images), one_by_one(network, images[:, :, ::-1])
    assert np.abs(plain - mirrored).max() > 0.01
    np.testing.assert_allclose(measured(network, images, flip=True), (plain + mirrored) / 2, rtol=1e-4, atol=1e-4)


def test_bf16_is_near_and_comes_as_float32(network: nn.Module, images: NDArray[np.uint8]) -> None:
    exact, rough = measured(network, images), measured(network, images, precision="bf16")
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(network: nn.Module, images: NDArray[np.uint8], training: bool) -> None:
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measured(network, images)
    assert network.training is training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.train()


class Failing(nn.Module):
    """A network that cannot take these images."""

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        raise RuntimeError("no")


def test_its_mode_is_put_back_after_a_failure_too(images: NDArray[np.uint8]) -> None:
    failing = Failing().train()
    with pytest.raises(RuntimeError, match="no"):
        measured(failing, images)
    assert failing.training


def test_progress_is_told_to_the_end(network: nn.Module, images: NDArray[np.uint8]) -> None:
    told: list[tuple[int, int]] = []
    measured(network, images, batch_size=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 7), (6, 7), (7, 7)]
