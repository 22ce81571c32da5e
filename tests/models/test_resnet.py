"""ResNet against the published numbers, its stems, and what anti-aliased down-sampling is for."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from lookalike.errors import InputError
from lookalike.models.registry import create_model
from lookalike.models.resnet import BlurPool, make_stem


@pytest.mark.parametrize(
    ("name", "parameters"), [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)]
)
def test_parameters_are_those_of_the_paper(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = create_model(name, 1000, {"stem": "imagenet"})
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(("kind", "stride"), [("imagenet", 4), ("small", 1), ("half", 2), ("patch", 4)])
def test_a_stem_has_its_stride(kind: str, stride: int) -> None:
    stem = make_stem(kind, 8)  # type: ignore[arg-type]
    assert stem(torch.randn(1, 3, 64, 48)).shape == (1, 8, 64 // stride, 48 // stride)


@pytest.mark.parametrize("blur", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_stages_halve_three_times_also_where_the_size_is_odd(name: str, blur: bool) -> None:
    network = create_model(name, 5, {"width": 8, "blur": blur})
    channels = network.num_features
    assert channels == 8 * 8 * (4 if name == "resnet50" else 1)
    assert network.forward_features(torch.randn(2, 3, 32, 32)).shape == (2, channels, 4, 4)
    assert network.forward_features(torch.randn(2, 3, 33, 25)).shape == (2, channels, 5, 4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cubs_resnet_2"])
def test_the_last_stage_may_keep_the_size_of_its_maps_with_the_same_parameters(name: str) -> None:
    plain, kept = (create_model(name, 5, {"width": 8, "stem": "patch", "last_stride": stride}) for stride in (2, 1))
    x = torch.randn(2, 3, 64, 64)
    assert plain.forward_features(x).shape[2:] == (2, 2)
    assert kept.forward_features(x).shape[2:] == (4, 4)
    kept.load_state_dict(plain.state_dict())  # same names, same shapes
    with pytest.raises(InputError, match="last_stride must be 1 or 2, not 3"):
        create_model(name, 5, {"last_stride": 3})


def test_a_block_is_its_shortcut_at_the_start() -> None:
    network = create_model("resnet18", 5, {"width": 8}).eval()
    x = torch.rand(1, 8, 8, 8)
    torch.testing.assert_close(network.blocks[0](x), x)


def test_blur_pool_is_a_binomial_average_of_every_second_place() -> None:
    x = torch.randn(2, 3, 7, 6)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    expected = torch.zeros(2, 3, 4, 3)
    for i, j in itertools.product(range(4), range(3)):
        for di, dj in itertools.product(range(3), range(3)):
            weight = (1, 2, 1)[di] * (1, 2, 1)[dj] / 16
            expected[:, :, i, j] += weight * padded[:, :, 2 * i + di, 2 * j + dj]
    torch.testing.assert_close(BlurPool(3)(x), expected)


def moved_by_a_shift(blur: bool, seed: int) -> float:
    """How far the pooled features of smooth pictures move when the pictures move by one pixel, over their length."""
    torch.manual_seed(seed)
    network = create_model("resnet18", 5, {"width": 8, "blur": blur}).eval()
    with torch.no_grad():
        for block in network.blocks:
            block.branch[-1][1].weight.fill_(0.5)  # the branches, silent at the start, have their say
        x = torch.randn(8, 3, 40, 40, generator=torch.Generator().manual_seed(seed))

        def pooled(x: Tensor) -> Tensor:
            features: Tensor = network.forward_features(x)[:, :, 1:-1, 1:-1]  # away from the edges
            return features.mean((2, 3))

        here, there = pooled(x[:, :, :, :-1]), pooled(x[:, :, :, 1:])
    return float(((here - there).norm(dim=1) / here.norm(dim=1)).mean())


def test_with_blur_a_shifted_picture_changes_less() -> None:
    seeds = range(3)
    without, with_blur = (sum(moved_by_a_shift(blur, seed) for seed in seeds) for blur in (False, True))
    assert with_blur < 0.9 * without


def test_dropout_acts_in_training_only() -> None:
    network = create_model("resnet18", 5, {"width": 8, "dropout": 0.5})
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.eval()(x), network(x))
    features = network.forward_features(x).mean((2, 3))
    torch.testing.assert_close(network(x), network.head(features))
    network.train()
    torch.manual_seed(0)
    assert not torch.equal(network.dropout(features), features)
