"""The convolution that goes by positions on small maps is the ordinary one, in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lookalike.models import layers
from lookalike.models.layers import Conv2d, by_positions
from lookalike.models.registry import create_model


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    size=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_it_is_the_ordinary_convolution(height: int, width: int, size: int, stride: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64, requires_grad=True)
    fast = by_positions(x, weight, stride)
    slow = F.conv2d(x, weight, stride=stride, padding=size // 2)
    torch.testing.assert_close(fast, slow)
    wanted = torch.randn(slow.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(fast, (x, weight), wanted), torch.autograd.grad(slow, (x, weight), wanted), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_output_lies_in_channels_last_memory() -> None:
    out = by_positions(torch.randn(2, 8, 2, 2), torch.randn(6, 8, 3, 3), 1)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("side", "fast"), [(1, True), (2, True), (3, True), (4, False), (8, False)])
def test_only_small_maps_go_by_positions(side: int, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def noting(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        taken.append(x.shape[2])
        return by_positions(x, weight, stride)

    monkeypatch.setattr(layers, "by_positions", noting)
    layer = Conv2d(4, 4, 3)
    layer(torch.randn(2, 4, side, side))
    assert bool(taken) == fast
    taken.clear()
    with torch.no_grad():
        layer(torch.randn(2, 4, side, side))
    assert not taken, "without gradients the ordinary way is taken"


def test_under_autocast_it_computes_in_bfloat16_and_learns_in_float32() -> None:
    layer = Conv2d(16, 16, 3)
    x = torch.randn(4, 16, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    exact = F.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(out.float(), exact, atol=0.05, rtol=0.05)


def test_taps_that_meet_only_padding_get_no_gradient() -> None:
    layer = Conv2d(2, 2, 3)
    layer(torch.randn(3, 2, 1, 1)).sum().backward()
    assert layer.weight.grad is not None
    gradient = layer.weight.grad.clone()
    assert gradient[:, :, 1, 1].abs().min() > 0
    gradient[:, :, 1, 1] = 0
    assert not gradient.any()


def test_weights_are_interchangeable_with_pytorchs_own() -> None:
    own, plain = Conv2d(3, 5, 3, 2), nn.Conv2d(3, 5, 3, 2, padding=1, bias=False)
    plain.load_state_dict(own.state_dict())
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(own(x), plain(x))


@pytest.mark.parametrize("name", ["resnet18", "weave", "simple_cnn"])
def test_a_network_has_the_same_gradients_either_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (
        {"stem": "patch", "width": 8} if name == "resnet18" else {"widths": [8, 16, 32]} if name == "weave" else {}
    )
    torch.manual_seed(0)
    network = create_model(name, 5, options).double().eval()  # eval: norms and dropout the same in both
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    gradients = []
    for most in (layers.MOST_POSITIONS, 0):
        monkeypatch.setattr(layers, "MOST_POSITIONS", most)
        network.zero_grad()
        network(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow)
