"""Parameters and operations against counts done by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lookalike.errors import InputError
from lookalike.models.profile import Profile, profile, profile_of
from lookalike.models.registry import NETWORKS


def test_counts_are_those_done_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 8 * 8, 7)).train()
    multiply_adds = 8 * 8 * 5 * 3 * 9 + 5 * 8 * 8 * 7
    assert profile(network, 8) == Profile(3 * 5 * 9 + 5 + 5 * 8 * 8 * 7 + 7, 2 * multiply_adds)
    assert network.training


def test_resnet18_is_as_published() -> None:
    """1.8 billion multiply-adds at 224 pixels with the ImageNet stem (He et al., table 1)."""
    from lookalike.models.registry import create_model

    with torch.device("meta"):
        found = profile(create_model("resnet18", 1000, {"stem": "imagenet"}), 224)
    assert found.parameters == 11_689_512
    assert found.flops / 2 == pytest.approx(1.814e9, rel=0.01)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_a_profile_and_more_pixels_cost_more(name: str) -> None:
    small, large = (profile_of(name, size=size, num_classes=10) for size in (32, 64))
    assert small.parameters == large.parameters > 1_000_000
    assert 1e6 < small.flops < large.flops


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="images of 9 pixels do not go through"):
        profile(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), 9)
