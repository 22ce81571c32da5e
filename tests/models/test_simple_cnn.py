"""The simple CNN layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lookalike.models.registry import create_model


def layers(kind: type[nn.Module]) -> list[nn.Module]:
    with torch.device("meta"):
        return [module for module in create_model("simple_cnn", 200).modules() if isinstance(module, kind)]


def test_the_convolutions_have_the_widths_they_should() -> None:
    convolutions = layers(nn.Conv2d)
    assert [layer.out_channels for layer in convolutions] == [32, 64, 128, 128, 256, 256, 512, 512]
    assert [layer.in_channels for layer in convolutions] == [3, 32, 64, 128, 128, 256, 256, 512]
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
    assert len(layers(nn.BatchNorm2d)) == 8


def test_the_dense_layers_have_the_sizes_they_should() -> None:
    assert [(layer.in_features, layer.out_features) for layer in layers(nn.Linear)] == [
        (512 * 2 * 2, 4096),
        (4096, 2048),
        (2048, 200),
    ]
    assert [layer.p for layer in layers(nn.Dropout)] == [0.5, 0.5]


@pytest.mark.parametrize(("size", "side"), [(64, 2), (32, 1), (96, 3), (50, 2)])
def test_pooling_halves_five_times(size: int, side: int) -> None:
    network = create_model("simple_cnn", 5).eval()
    with torch.no_grad():
        assert network.forward_features(torch.randn(1, 3, size, size)).shape == (1, 512, side, side)
        assert network(torch.randn(1, 3, size, size)).shape == (1, 5)


def test_at_64_pixels_the_dense_layers_see_the_map_as_it_is() -> None:
    network = create_model("simple_cnn", 5).eval()
    features = torch.randn(1, 512, 2, 2)
    assert torch.equal(network.pool(features), features)
