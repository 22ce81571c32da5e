"""The CUBS blocks against slow and obvious twins, and what their descriptions claim."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lookalike.models.cubs import CubsChannel, CubsSpatial, Similarity, SimilarityMatrices, Sum
from lookalike.models.registry import create_model

KINDS: list[Similarity] = ["cosine", "squared_difference"]


def similarity(q: list[float], k: list[float], kind: str) -> float:
    if kind == "cosine":
        lengths = math.sqrt(sum(a * a for a in q)) * math.sqrt(sum(b * b for b in k))
        return sum(a * b for a, b in zip(q, k, strict=True)) / lengths
    return -sum((a - b) ** 2 for a, b in zip(q, k, strict=True))


def attend(q: list[list[float]], k: list[list[float]], v: list[list[float]], kind: str, scale: float) -> list[float]:
    """Softmax attention, one token at a time; the rows of the result one after the other."""
    out = []
    for query in q:
        weights = [math.exp(scale * similarity(query, key, kind)) for key in k]
        for place in range(len(v[0])):
            out.append(sum(w * value[place] for w, value in zip(weights, v, strict=True)) / sum(weights))
    return out


def linear(layer: nn.Module, x: list[float]) -> list[float]:
    """A linear map, or a 1x1 convolution at one position."""
    rows = layer.weight.flatten(1).tolist()  # type: ignore[operator, union-attr]
    return [
        sum(w * a for w, a in zip(row, x, strict=True)) + b for row, b in zip(rows, layer.bias.tolist(), strict=True)
    ]  # type: ignore[operator, union-attr]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_channel(block: CubsChannel, x: Tensor) -> Tensor:
    out = x.clone()
    scale, kind = math.exp(block.similarities.log_scale.item()), block.similarities.kind
    for b, image in enumerate(x):
        g = [float(channel.sum()) / channel.numel() for channel in image]
        q, k, v = (linear(layer, g) for layer in (block.query, block.key, block.value))
        d = len(q) // block.tokens
        tokens = [[f[i : i + d] for i in range(0, len(f), d)] for f in (q, k, v)]
        u = linear(block.out, attend(*tokens, kind, scale))
        for c in range(x.shape[1]):
            out[b, c] = image[c] * sigmoid(u[c] + g[c])
    return out


def slow_spatial(block: CubsSpatial, x: Tensor) -> Tensor:
    out = x.clone()
    scale, kind = math.exp(block.similarities.log_scale.item()), block.similarities.kind
    height, width = x.shape[2:]
    for b, image in enumerate(x):
        positions = [image[:, i, j].tolist() for i in range(height) for j in range(width)]
        q, k, v = ([linear(layer, p) for p in positions] for layer in (block.query, block.key, block.value))
        h = attend(q, k, v, kind, scale)
        for n, weight in enumerate(h):
            out[b, :, n // width, n % width] = image[:, n // width, n % width] * sigmoid(weight)
    return out


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    tokens=st.integers(1, 4),
    d=st.integers(1, 3),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
)
def test_channel_attention_is_what_its_description_says(
    batch: int, channels: int, tokens: int, d: int, height: int, width: int, kind: Similarity, seed: int
) -> None:
    torch.manual_seed(seed)
    block = CubsChannel(channels, features=tokens * d, tokens=tokens, similarity=kind).double()
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    torch.testing.assert_close(block(x), slow_channel(block, x))


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    d=st.integers(1, 3),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
)
def test_spatial_attention_is_what_its_description_says(
    batch: int, channels: int, d: int, height: int, width: int, kind: Similarity, seed: int
) -> None:
    torch.manual_seed(seed)
    block = CubsSpatial(channels, dim=d, similarity=kind).double()
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    torch.testing.assert_close(block(x), slow_spatial(block, x))


def largest_gradient(block: CubsChannel | CubsSpatial) -> float:
    """Of queries and keys, after a loss that every output takes part in."""
    torch.manual_seed(1)
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    (block.double()(x) * torch.randn_like(x)).sum().backward()
    layers = (block.query, block.key)
    return max(float(p.grad.abs().max()) for layer in layers for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("make", [CubsChannel, CubsSpatial])
def test_a_cosine_of_single_numbers_passes_no_gradient_and_the_ways_out_do(make: Any) -> None:
    def block(d: int, kind: Similarity) -> CubsChannel | CubsSpatial:
        torch.manual_seed(0)
        made: CubsChannel | CubsSpatial = (
            CubsChannel(8, features=4 * d, tokens=4, similarity=kind)
            if make is CubsChannel
            else CubsSpatial(8, dim=d, similarity=kind)
        )
        return made

    assert largest_gradient(block(1, "cosine")) < 1e-12
    assert largest_gradient(block(1, "squared_difference")) > 1e-4
    assert largest_gradient(block(4, "cosine")) > 1e-4


def test_a_cosine_of_single_numbers_is_a_sign() -> None:
    block = CubsSpatial(8, dim=1)
    q, k = torch.randn(1, 5, 1), torch.randn(1, 5, 1)
    torch.testing.assert_close(block.similarities.matrix(q, k), (q * k.mT).sign())


def test_the_form_of_the_project_it_comes_from() -> None:
    """Every feature a token of one number, compared by squared difference."""
    torch.manual_seed(0)
    block = CubsChannel(6, features=16, tokens=16, similarity="squared_difference")
    x = torch.randn(2, 6, 4, 4)
    g = x.mean((2, 3))
    q, k = block.query(g), block.key(g)  # (B, 16)
    torch.testing.assert_close(
        block.similarities.matrix(q[:, :, None], k[:, :, None]), -((q[:, :, None] - k[:, None, :]) ** 2)
    )
    torch.testing.assert_close(block(x).double(), slow_channel(block.double(), x.double()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [CubsChannel, CubsSpatial])
def test_the_gate_is_open_at_the_start(make: Any, kind: Similarity) -> None:
    torch.manual_seed(0)
    x = 0.1 * torch.randn(4, 32, 8, 8)
    share = make(32, similarity=kind)(x) / x
    assert 0.75 < share.mean() < 0.95
    assert share.min() > 0.5


def test_a_weight_is_the_same_over_what_it_is_not_about() -> None:
    x = torch.rand(2, 8, 4, 4) + 0.5
    by_channel, by_position = CubsChannel(8, 16, 4)(x) / x, CubsSpatial(8, 4)(x) / x
    torch.testing.assert_close(by_channel, by_channel[:, :, :1, :1].expand_as(x))
    torch.testing.assert_close(by_position, by_position[:, :1].expand_as(x))


def test_on_a_gpu_autocast_leaves_the_matrix_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen on tensors without content, which need no GPU; PyTorch's autocast treats them like real ones."""
    similarities = SimilarityMatrices("cosine")
    was = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            s = torch.empty(2, 9, 9, device="cuda", dtype=torch.bfloat16)
            assert torch.softmax(s, dim=-1).dtype == torch.float32  # what it would do
            monkeypatch.setattr(similarities, "matrix", lambda *_: s)
            assert similarities(s, s).dtype == torch.bfloat16
    finally:
        torch.set_autocast_enabled("cuda", was[0])
        torch.set_autocast_dtype("cuda", was[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_says_the_same_in_bfloat16_and_keeps_little(kind: Similarity) -> None:
    torch.manual_seed(0)
    block = CubsSpatial(16, 8, kind)
    x = torch.randn(2, 16, 16, 16)
    kept: list[Tensor] = []
    with (
        torch.autocast("cuda", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t),
    ):
        there = block.cuda()(x.cuda())
    assert {t.dtype for t in kept if t.shape == (2, 256, 256)} == {torch.bfloat16}
    torch.testing.assert_close(there.cpu(), block.cpu()(x), rtol=0.02, atol=0.02)


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


SMALL = {"width": 8, "features": 32, "tokens": 8, "dim": 4}


@pytest.mark.parametrize(("placement", "times"), [("every", 8), ("stage", 4), ("last", 1)])
@pytest.mark.parametrize(
    ("which", "channel", "spatial"),
    [(1, True, True), (2, True, False), (3, False, True), (4, True, True), (5, True, True)],
)
def test_blocks_stand_where_they_are_placed(
    which: int, channel: bool, spatial: bool, placement: str, times: int
) -> None:
    network = create_model(f"cubs_resnet_{which}", 5, {**SMALL, "placement": placement})
    assert count(network, CubsChannel) == channel * times
    assert count(network, CubsSpatial) == spatial * times
    assert isinstance(network.blocks[-1], {1: Sum, 2: CubsChannel, 3: CubsSpatial}.get(which, nn.Sequential))


def test_four_and_five_are_the_two_orders() -> None:
    four, five = (
        create_model(f"cubs_resnet_{which}", 5, {**SMALL, "placement": "last"}).blocks[-1] for which in (4, 5)
    )
    assert [type(block) for block in four] == [CubsChannel, CubsSpatial]
    assert [type(block) for block in five] == [CubsSpatial, CubsChannel]
    channel, spatial = four
    x = torch.randn(2, 64, 4, 4)
    torch.testing.assert_close(four(x), spatial(channel(x)))
    assert not torch.allclose(spatial(channel(x)), channel(spatial(x)), rtol=1e-4)


def test_one_is_the_sum() -> None:
    block = create_model("cubs_resnet_1", 5, {**SMALL, "placement": "last"}).blocks[-1]
    channel, spatial = block.blocks
    x = torch.randn(2, 64, 4, 4)
    torch.testing.assert_close(block(x), channel(x) + spatial(x))


def test_without_its_blocks_it_is_resnet18() -> None:
    torch.manual_seed(0)
    network = create_model("cubs_resnet_2", 5, {**SMALL, "placement": "last"}).eval()
    plain = create_model("resnet18", 5, {"width": 8}).eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("blocks.8.")})
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network.blocks[-1](plain.forward_features(x)), network.forward_features(x))
