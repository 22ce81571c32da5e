"""The two CUBS attention blocks and the ResNet-18s that carry them.

CUBS-1 (`CubsChannel`) weighs channels and CUBS-2 (`CubsSpatial`) weighs positions; each builds its weights from a
matrix of cosine similarities between queries and keys. Source: the student project that Lookalike grew from; the
softmax-attention form is Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762).

Why d > 1. The project used d = 1, where queries and keys are single numbers. A cosine of two numbers is the sign of
their product, +1 or -1: it is constant almost everywhere, so no gradient reaches queries and keys. Its own way out was
to take the squared difference instead, kept here as `similarity="squared_difference"`; ours is vectors of d numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalike.models.layers import global_average
from lookalike.models.resnet import Attention, BasicBlock, Placement, ResNet, Stem

Similarity = Literal["cosine", "squared_difference"]
OPEN_GATE = (
    2.0  # bias of the gate at the start: sigmoid(2) = 0.88 lets the signal through until there is a reason not to
)


class SimilarityMatrices(nn.Module):
    """Row-wise attention weights from similarities of queries and keys, sharpened by a learned temperature.

    "cosine": q . k / (|q| |k|), times a scale that starts at 8. "squared_difference": -|q - k|^2, times a scale that
    starts at 1 (the sign makes it a similarity: the closer, the larger).
    """

    def __init__(self, kind: Similarity) -> None:
        super().__init__()
        if kind not in ("cosine", "squared_difference"):
            raise ValueError(f"similarity must be 'cosine' or 'squared_difference', not {kind!r}")
        self.kind = kind
        start = 8.0 if kind == "cosine" else 1.0
        self.log_scale = nn.Parameter(torch.tensor(start).log())

    def matrix(self, q: Tensor, k: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """Similarities S (B, N, N) of queries and keys (B, N, d), times a scale.

        The scale is taken into the queries, few numbers beside the matrix, where its gradient costs nothing.
        """
        if self.kind == "cosine":
            return (F.normalize(q, dim=-1) * scale) @ F.normalize(k, dim=-1).mT
        # |q - k|^2 = |q|^2 + |k|^2 - 2 q.k, in one matrix product
        q_norms, k_norms = (scale * x.square().sum(-1) for x in (q, k))
        products = (2 * scale * q) @ k.mT
        return products - q_norms[:, :, None].to(products.dtype) - k_norms[:, None, :].to(products.dtype)

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """Weights A (B, N, N), each row a softmax over the keys; float32 sums whatever the precision of q and k.

        The matrix keeps its precision, which has to be said: on a GPU, autocast would make float32 of it, three times
        the memory (64-pixel maps have 4096 positions: 32 MiB an image in bfloat16).
        """
        s = self.matrix(q, k, self.log_scale.exp().to(q.dtype))
        return torch.softmax(s, dim=-1, dtype=s.dtype)


class CubsChannel(nn.Module):
    """CUBS-1: attention over channels.

    For x (B, C, H, W), with T tokens of d = features / tokens numbers:

        g       = mean of x over positions                        (B, C)
        q, k, v = three linear maps of g, arranged as tokens      (B, T, d)
        S       = similarity of q_i and k_j                       (B, T, T)
        A       = softmax over j of S x temperature
        h       = A v, flattened                                  (B, T d)
        u       = linear(h) + g                                   (B, C)
        output  = x * sigmoid(u), per channel

    The brief's own form is `tokens=features` (so d = 1) with `similarity="squared_difference"`.

    Args:
        channels: C.
        features: width of q, k and v together.
        tokens: T; must divide `features`.
        similarity: "cosine" or "squared_difference" (see `Similarities` and the head of this file).

    Raises:
        ValueError: `tokens` does not divide `features`, or an unknown similarity.
    """

    def __init__(self, channels: int, features: int = 512, tokens: int = 64, similarity: Similarity = "cosine") -> None:
        super().__init__()
        if tokens < 1 or features % tokens:
            raise ValueError(f"tokens={tokens} does not divide features={features}")
        self.tokens = tokens
        self.query = nn.Linear(channels, features)
        self.key = nn.Linear(channels, features)
        self.value = nn.Linear(channels, features)
        self.similarities = SimilarityMatrices(similarity)
        self.out = nn.Linear(features, channels)
        nn.init.constant_(self.out.bias, OPEN_GATE)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        g = global_average(x)  # (B, C)
        q, k, v = (f(g).unflatten(1, (self.tokens, -1)) for f in (self.query, self.key, self.value))  # (B, T, d)
        h = (self.similarities(q, k) @ v).flatten(1)  # (B, T d)
        u = self.out(h) + g  # (B, C)
        return x * torch.sigmoid(u)[:, :, None, None].to(x.dtype)


class CubsSpatial(nn.Module):
    """CUBS-2: attention over positions.

    For x (B, C, H, W), with N = H W positions:

        q, k    = 1x1 convolutions of x to d channels             (B, N, d)
        v       = 1x1 convolution of x to one channel             (B, N, 1)
        S       = similarity of q_i and k_j                       (B, N, N)
        A       = softmax over j of S x temperature
        h       = A v                                             (B, N)
        output  = x * sigmoid(h), per position

    The brief's own form is `dim=1` with `similarity="squared_difference"`.

    Args:
        channels: C.
        dim: d.
        similarity: "cosine" or "squared_difference" (see `Similarities` and the head of this file).
    """

    def __init__(self, channels: int, dim: int = 16, similarity: Similarity = "cosine") -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, dim, 1)
        self.key = nn.Conv2d(channels, dim, 1)
        self.value = nn.Conv2d(channels, 1, 1)
        self.similarities = SimilarityMatrices(similarity)
        nn.init.constant_(self.value.bias, OPEN_GATE)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        q, k, v = (f(x).flatten(2).mT for f in (self.query, self.key, self.value))  # (B, N, d), (B, N, d), (B, N, 1)
        h = (self.similarities(q, k) @ v).mT.unflatten(2, x.shape[2:])  # (B, 1, H, W)
        return x * torch.sigmoid(h).to(x.dtype)


class Sum(nn.Module):
    """The sum of several blocks' outputs for the same input."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        first, *rest = self.blocks
        total: Tensor = first(x)
        for block in rest:
            total = total + block(x)
        return total


def cubs_resnet(
    which: int,
    num_classes: int,
    *,
    stem: Stem = "small",
    width: int = 64,
    blur: bool = False,
    last_stride: int = 2,
    placement: Placement = "every",
    dropout: float = 0.0,
    features: int = 512,
    tokens: int = 64,
    dim: int = 16,
    similarity: Similarity = "cosine",
) -> ResNet:
    """ResNet-18 with the blocks of network `which`, 1 to 5; the keyword arguments are `ResNet`'s and the blocks'."""
    channel: Attention = partial(CubsChannel, features=features, tokens=tokens, similarity=similarity)
    spatial: Attention = partial(CubsSpatial, dim=dim, similarity=similarity)
    attention: Attention = {
        1: lambda channels: Sum(channel(channels), spatial(channels)),
        2: channel,
        3: spatial,
        4: lambda channels: nn.Sequential(channel(channels), spatial(channels)),
        5: lambda channels: nn.Sequential(spatial(channels), channel(channels)),
    }[which]
    return ResNet(
        BasicBlock,
        (2, 2, 2, 2),
        num_classes,
        stem=stem,
        width=width,
        blur=blur,
        last_stride=last_stride,
        attention=attention,
        placement=placement,
        dropout=dropout,
    )


def cubs_resnet_1(num_classes: int, **options: object) -> ResNet:
    """ResNet-18 with the sum of both blocks; `options` as `ResNet`'s and the blocks' keyword arguments."""
    return cubs_resnet(1, num_classes, **options)  # type: ignore[arg-type]


def cubs_resnet_2(num_classes: int, **options: object) -> ResNet:
    """ResNet-18 with CUBS-1, the channel block; `options` as for `cubs_resnet_1`."""
    return cubs_resnet(2, num_classes, **options)  # type: ignore[arg-type]


def cubs_resnet_3(num_classes: int, **options: object) -> ResNet:
    """ResNet-18 with CUBS-2, the spatial block; `options` as for `cubs_resnet_1`."""
    return cubs_resnet(3, num_classes, **options)  # type: ignore[arg-type]


def cubs_resnet_4(num_classes: int, **options: object) -> ResNet:
    """ResNet-18 with CUBS-1 then CUBS-2; `options` as for `cubs_resnet_1`."""
    return cubs_resnet(4, num_classes, **options)  # type: ignore[arg-type]


def cubs_resnet_5(num_classes: int, **options: object) -> ResNet:
    """ResNet-18 with CUBS-2 then CUBS-1; `options` as for `cubs_resnet_1`."""
    return cubs_resnet(5, num_classes, **options)  # type: ignore[arg-type]
