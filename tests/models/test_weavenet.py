"""WeaveNet: its size, its strides, and its stage written out."""

from __future__ import annotations

import pytest
import torch

from lookalike.models.registry import create_model
from lookalike.models.weavenet import Weave


def test_it_keeps_to_six_million_parameters() -> None:
    with torch.device("meta"):
        network = create_model("weave", 200)
    assert sum(p.numel() for p in network.parameters()) <= 6_000_000


@pytest.mark.parametrize(("stride", "side"), [(4, 4), (2, 8)])
def test_the_stem_has_its_stride(stride: int, side: int) -> None:
    network = create_model("weave", 5, {"widths": [8, 16, 32], "pairs": [1, 1, 1], "stride": stride})
    assert network.forward_features(torch.randn(1, 3, 64, 64)).shape == (1, 32, side, side)


def test_there_are_as_many_stages_as_widths() -> None:
    network = create_model("weave", 5, {"widths": [8, 16], "pairs": [1, 3]})
    assert sum(isinstance(module, Weave) for module in network.modules()) == 2
    assert network.forward_features(torch.randn(1, 3, 64, 64)).shape == (1, 16, 8, 8)


def test_a_stage_weaves_every_strand() -> None:
    torch.manual_seed(0)
    stage = Weave(8, pairs=2).eval()
    x = torch.randn(2, 8, 5, 5)
    kept, first = stage.enter(x)[:, :4], stage.enter(x)[:, 4:]
    second = first + stage.chain[0](first)
    third = second + stage.chain[1](second)
    convolution, norm, gate = stage.fuse
    mixed = norm(convolution(torch.cat([kept, first, second, third], dim=1)))
    weight = gate.gate(mixed.mean((2, 3)))
    torch.testing.assert_close(stage(x), torch.nn.functional.silu(x + mixed * weight[:, :, None, None]))
